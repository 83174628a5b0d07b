"""Explain in Ray. Ray Data takes the callable as it is; `run` is for callers that choose an engine by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from onnxcam.errors import DependencyError
from onnxcam.fleet.columns import import_pyarrow

if TYPE_CHECKING:
    from onnxcam.fleet.callable import Explain

_WAITING = 2  # batches that each worker has: the next one is there when the last is done
_STARTS = 3  # of a worker that ends without an answer, for one batch


def run(
    explain: Explain, batches: Iterable[Mapping[str, Sequence[Any]]], *, workers: int | None = None
) -> Iterator[Any]:
    """Explain batches by Ray actors, see `onnxcam.fleet.local.run`.

    A batch whose worker is killed is explained again by a new one; each gives one table. Ray is started on this machine
    if it is not running, or connected to.

    Arguments:
        workers: actors of one core each; None for as many as the cluster has cores.
    """
    pyarrow = import_pyarrow()
    try:
        import ray
    except ImportError as error:
        raise DependencyError(f"Ray cannot be imported ({error}); install it: pip install 'ray[data]'") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    worker = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=_STARTS)(Worker)
    shared = ray.put(explain)
    actors = [worker.remote(shared) for _ in range(count)]
    source = iter(batches)
    pending: dict[Any, Any] = {}
    try:
        for actor in actors * _WAITING:
            for batch in islice(source, 1):
                pending[actor.explain.remote(pyarrow.table(dict(batch)))] = actor
        while pending:
            (done,), _ = ray.wait(list(pending))
            actor = pending.pop(done)
            for batch in islice(source, 1):
                pending[actor.explain.remote(pyarrow.table(dict(batch)))] = actor
            yield _result(ray, done)
    finally:
        for actor in actors:
            ray.kill(actor)


def _result(ray: Any, reference: Any) -> Any:
    """A table, or the error that the callable raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


class Worker:
    """An actor with a callable."""

    def __init__(self, explain: Explain) -> None:
        self._explain = explain

    def explain(self, batch: Any) -> Any:
        """The table of a batch, which comes as a `pyarrow.Table`: its buffers are shared and not copied."""
        return self._explain(batch)
