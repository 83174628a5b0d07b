"""`onnxcam.Monitor`: observes every prediction, explains those that meet a condition, and never breaks one."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np

from onnxcam.errors import InputError, OutputError, SettingError, listing
from onnxcam.image import DEFAULT_COLORMAP
from onnxcam.monitor import baseline as baselines
from onnxcam.monitor import model as models
from onnxcam.monitor import worker as workers
from onnxcam.monitor.admission import Clock, Limits, Sampler, SystemClock, parse_rate
from onnxcam.monitor.decorator import watch_function
from onnxcam.monitor.error_log import ErrorLog
from onnxcam.monitor.forks import after_fork
from onnxcam.monitor.predictions import Batch, Row, to_numpy
from onnxcam.monitor.queue import ON_FULL, Candidates, Capacity, RowQueue
from onnxcam.monitor.redaction import MODES
from onnxcam.monitor.row_explainer import RowExplainer, Settings
from onnxcam.monitor.selection import Selection, Selector
from onnxcam.monitor.session import WatchedSession, find_values
from onnxcam.monitor.sinks import open_sink
from onnxcam.monitor.table import Configuration
from onnxcam.monitor.units import parse_bytes, parse_seconds
from onnxcam.runtime import CPU, Provider
from onnxcam.targets import conditions

SCORES = ("auto", "logits", "probabilities")
_Function = TypeVar("_Function", bound=Callable[..., Any])
_request: ContextVar[tuple[str | None, str | None]] = ContextVar("onnxcam_request", default=(None, None))
_open_monitors: weakref.WeakSet[Monitor] = weakref.WeakSet()
_POLL = 0.005  # seconds
_EXIT_TIMEOUT = 5.0  # seconds to explain the queued rows when the interpreter exits


@contextlib.contextmanager
def request(identity: str | None, trace: str | None = None) -> Iterator[None]:
    """Record which request the predictions inside the block belong to; applies to this thread or task only.

    Arguments:
        identity: the record's `request`.
        trace: the record's `trace`, such as a W3C traceparent.
    """
    token = _request.set((identity, trace))
    try:
        yield
    finally:
        _request.reset(token)


class Monitor:
    """Explains a model's uncertain predictions in the background, within limits on rate, budget and memory.

    Arguments:
        model: an explainable model or any classifier `.onnx`: path, bytes or `ModelProto`. It computes the
            explanations; the model that predicts may be another one with the same classes.
        sink: where records go: a folder or `file://` URL, `stdout:`, `logging:NAME`, a callable taking
            (record, files), a sink, or a list of these.
        when: which predictions are explained, in the grammar of `onnxcam.targets.conditions`.
        sample: the probability with which such a prediction is explained.
        baseline_sample: the same for all other predictions: the sample that drift is measured against.
        rate: the most explanations per period, as `2/s` or `500/h`; None for no limit. `burst`: the size of the token
            bucket, by default the number before the slash.
        daily_budget: the most explanations per day (UTC); None for no limit.
        queue, queue_bytes: the most rows and bytes in the queue.
        on_full: `drop_newest` or `drop_oldest`.
        worker: `thread`; `process`, which never holds the interpreter lock that predictions need; or `inline`, which
            explains before `observe` returns.
        providers: execution providers of the worker's session.
        scores: the form of the observed scores: `logits` (what the manifest calls the scores, also where they are
            log p), `probabilities`, or `auto` to decide by the values.
        scores_output: of a plain model with several candidates, the output with the class scores.
        kind: of a plain model, what its scores are, where the file does not tell: as of `onnxcam.augment`.
        redact: `heatmap_only`, `none` (pictures and overlays are stored too) or `hash` (no files).
        baseline: a file made by `onnxcam monitor baseline` from records of this model, condition, method and layer.
        layer, method: the target layer and the CAM method.
        labels, preprocess: as for `Explainer`.
        region: where maps should lie, `[H, W]` with weights 0 to 1.
        duplicates: for how long a picture is not explained again after it was explained, as `1min`; 0 disables this.
        colormap: of the heatmaps. color: channel order of pictures given as arrays.
        timeout: seconds after which a worker process counts as hung. On Linux it runs only while processors are idle:
            allow more time on a machine that is always busy.
        sink_options: options of a sink that is a folder or a URL (`retain_bytes`, `segment_age`, `min_free` …).
        clock: the source of time, for tests.
        seed: of the sampling, for tests.

    Rate, budget and queue apply to each process separately. After a fork the child starts with empty counters and its
    own worker.

    Raises:
        SettingError: a setting cannot be used.
        InputError: the baseline is missing or damaged.
        ModelError, LayerError, MethodError, LabelsError, TargetError: as their names say.
    """

    def __init__(
        self,
        model: Any,
        *,
        sink: Any,
        when: str = "confidence < 0.6",
        sample: float = 1.0,
        baseline_sample: float = 0.01,
        rate: str | float | None = "2/s",
        burst: float | None = None,
        daily_budget: int | None = 5000,
        queue: int = 256,
        queue_bytes: str | int = "256MiB",
        on_full: str = "drop_newest",
        worker: str = "thread",
        providers: Sequence[Provider] | None = (CPU,),
        scores: str = "auto",
        scores_output: str | None = None,
        kind: str | None = None,
        redact: str = "heatmap_only",
        baseline: str | os.PathLike[str] | None = None,
        layer: str | None = None,
        method: str = "gradcam",
        labels: Sequence[str] | None = None,
        preprocess: Any = None,
        region: Any = None,
        duplicates: str | float | None = "1min",
        colormap: str = DEFAULT_COLORMAP,
        color: str = "RGB",
        timeout: float = 60.0,
        sink_options: dict[str, Any] | None = None,
        clock: Clock | None = None,
        seed: int | None = None,
    ) -> None:
        check_choice("on_full", on_full, ON_FULL)
        check_choice("worker", worker, workers.WORKERS)
        check_choice("scores", scores, SCORES)
        check_choice("redact", redact, MODES)
        check_number("sample", sample, 0.0, 1.0)
        check_number("baseline_sample", baseline_sample, 0.0, 1.0)
        check_number("burst", burst, 1.0, math.inf, optional=True)
        check_number("daily_budget", daily_budget, 0, math.inf, optional=True, whole=True)
        check_number("queue", queue, 1, math.inf, whole=True)
        check_number("timeout", timeout, 0.0, math.inf)
        self._model = models.read(model, layer, method, scores_output=scores_output, kind=kind)
        self._model.readout.require_probabilities(f"when={when!r}")
        class_names = self._model.labels(labels)
        condition = conditions.parse(when, class_names, self._model.manifest["scores"]["classes"])
        self._clock: Clock = clock or SystemClock()
        self._selector = Selector(condition, self._model.manifest, sample, baseline_sample)
        self._scores_form = scores
        self._worker_kind = worker
        self._timeout = timeout
        self._seed = seed
        self._duplicates_lifetime = 0.0 if duplicates is None else parse_seconds(duplicates, "duplicates")
        # an overlay and a hash need the picture itself; a heatmap computed from features does not
        self._keep_tensor = redact != "heatmap_only"
        self._settings = Settings(
            source=self._model.source,
            name=self._model.name,
            sha256=self._model.sha256,
            when=when,
            target=self._model.bound_class,
            labels=class_names,
            preprocess=preprocess,
            layer=self._model.layer,
            method=method,
            providers=providers,
            redact=redact,
            colormap=colormap,
            color=color,
            region=None if region is None else np.asarray(region, np.float64),
            baseline=None if baseline is None else os.path.abspath(baseline),  # noqa: PTH100
        )
        if baseline is not None:
            configuration = Configuration(self._model.sha256, when, method, self._model.layer)
            baselines.check(baselines.load(os.fspath(baseline)), configuration)
        self._sink = open_sink(sink, **(sink_options or {}))
        self._error_log = ErrorLog(self._clock)
        limits = Limits(parse_rate(rate), burst, daily_budget, baseline_sample > 0)
        capacity = Capacity(queue, parse_bytes(queue_bytes, "queue_bytes"), on_full)
        self._queue = RowQueue(limits, capacity, self._clock)
        self._closed = False
        self._inline_lock = threading.RLock()
        self._start_lock = threading.Lock()
        self._worker: workers.Worker | None = None
        self._sampler, self._handler = self._process_parts()
        after_fork(self, Monitor._forked)
        _open_monitors.add(self)

    def wrap(self, session: Any) -> Any:
        """Return a drop-in replacement for an `onnxruntime.InferenceSession` whose predictions the monitor observes.

        `run`, `run_async` and `run_with_iobinding` are observed; everything else is forwarded. If the session outputs
        the target layer's value, an explanation runs only the tail, the graph from that layer to the scores. A run's
        `RunOptions.logid` becomes the record's `request`.

        Raises:
            InputError: the session's inputs and outputs do not fit the model that explains.
        """
        names = find_values(session, self._model.manifest, self._scores_form, self._model.cut, self._model.entry)
        return WatchedSession(session, names, self._observe, self._error_log.report)

    def watch(
        self, image: int | str = 0, *, scores: Any = None, pictures: bool | None = None
    ) -> Callable[[_Function], _Function]:
        """Return a decorator for a predict function of any framework, plain or `async`.

        Arguments:
            image: the argument that holds the model's input, by position or name: a prepared batch, or pictures.
            scores: how to get the scores from the function's result: a key, an index, or a function; None if the result
                is the scores.
            pictures: whether the argument holds pictures (as for `Explainer.explain`) rather than prepared tensors;
                None to decide by the values.
        """

        def observe(result: Any, inputs: Any, as_pictures: bool) -> None:
            self.observe(result, **{"pictures" if as_pictures else "tensor": inputs})

        return watch_function(observe, self._error_log.report, image, scores, pictures)

    def observe(
        self, scores: Any, *, tensor: Any = None, pictures: Any = None, ids: Any = None, traces: Any = None
    ) -> int:
        """Observe a batch of predictions. Never raises, never blocks (but `inline`), keeps no reference to arguments.

        Arguments:
            scores: `[N, classes]`, or `[classes]` for a single row; of any framework.
            tensor: the model's input, `[N, …]` in the explaining model's layout; or
            pictures: one per row: a path (`.npy` too), encoded bytes, or a uint8 array `[H, W]` or `[H, W, 3]`; with a
                preprocessing in the file that states their channels and range also `[H, W, C]` and uint16.
            ids, traces: one per row, for the records; those of `request` by default.

        Returns:
            how many rows were queued.
        """
        return self._observe(
            scores, self._scores_form, Batch(tensor=tensor, pictures=pictures, requests=ids, traces=traces)
        )

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until every queued row is explained; False if that takes longer than `timeout` seconds."""
        end = time.monotonic() + timeout
        with self._queue.hurry():
            while not self._queue.idle():
                if time.monotonic() >= end:
                    return False
                time.sleep(min(_POLL, max(0.0, end - time.monotonic())))
        return True

    def close(self, timeout: float = 5.0) -> bool:
        """Explain queued rows for at most `timeout` seconds, drop the rest, and release worker and sink.

        Returns within `timeout` plus half a second, whatever hangs; rows observed later are counted as dropped.

        Returns:
            whether everything was explained in time.
        """
        end = time.monotonic() + timeout
        self._queue.close()
        done = self.flush(timeout)
        self._queue.stop()
        worker, handler = self._worker, self._handler
        if worker is not None:
            worker.join(max(0.05, end - time.monotonic()))
            if worker.alive() and self._worker_kind == "process":
                handler.close()  # ends the hung child; the thread then finds its pipe closed
        if self._worker_kind == "inline":
            handler.close()
        if not self._closed:
            self._closed = True
            _open_monitors.discard(self)
            # a sink may hang too, so another thread closes it
            closing = threading.Thread(target=self._close_sink, args=(max(0.1, end - time.monotonic()),), daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started once the interpreter exits
                closing.start()
                closing.join(max(0.25, end - time.monotonic()))
        return done

    def stats(self) -> dict[str, Any]:
        """Return counts of rows: a consistent snapshot, of this process.

        `seen = confident + sum(dropped.values()) + queued + running + explained + failed`, always. `failures` are the
        failed rows by cause, `baseline` the explained rows of the baseline's sample, `queue_bytes` the bytes in the
        queue, `restarts` how often the explainer was opened again, `lost` the explained rows whose records others than
        retention have removed from the sink's folder since.
        """
        lost = {"lost": getattr(self._sink, "lost", 0)}
        return self._queue.counts() | lost | {"restarts": max(0, self._handler.opened - 1), "pid": os.getpid()}

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _observe(self, scores: Any, form: str, batch: Batch) -> int:
        """Admit, copy and queue rows; runs in the thread that predicts, and delays it."""
        try:
            return self._enqueue(*self._admit(scores, form, batch))
        except Exception as error:
            self._error_log.report("observe", error)
            return 0

    def _admit(
        self, scores: Any, form: str, batch: Batch
    ) -> tuple[Batch, Selection | None, list[tuple[int, str, int]]]:
        """Select and count the rows of a batch; the admitted ones as (row, reason, bytes)."""
        rows = None
        try:
            array = to_numpy(scores)
            values = self._selector.as_rows(array)
            rows = len(values)
            if not rows:
                return batch, None, []
            batch = batch.as_rows(rows, single=array.ndim == 1, keep_tensor=self._keep_tensor)
            selection = self._selector.select(values, form, self._sampler)
            groups = [
                Candidates(batch.sizes(selection.uncertain), False),
                Candidates(batch.sizes(selection.baseline), True),
            ]
            counts = self._queue.admit(rows, selection.confident, selection.sampled_out, groups)
        except Exception as error:
            self._queue.refuse(_length(scores) if rows is None else rows, "invalid" if _invalid(error) else "error")
            raise
        uncertain = zip(selection.uncertain[: counts[0]], groups[0].sizes, strict=False)
        baseline = zip(selection.baseline[: counts[1]], groups[1].sizes, strict=False)
        admitted = [(int(row), "condition", size) for row, size in uncertain]
        admitted += [(int(row), "baseline", size) for row, size in baseline]
        return batch, selection, admitted

    def _enqueue(self, batch: Batch, selection: Selection | None, admitted: list[tuple[int, str, int]]) -> int:
        """Copy the admitted rows into the queue."""
        if selection is None or not admitted:
            return 0
        selector = self._selector
        left, queued = list(reversed(admitted)), 0
        try:
            quantities = selector.quantities(selection.probabilities[[number for number, _, _ in admitted]])
            now, monotonic = self._clock.time(), self._clock.monotonic()
            identity, trace = _request.get()
            for row_quantities in quantities:
                number, reason, size = left[-1]
                fields = batch.copy_row(number)
                fields["request"] = fields["request"] or identity
                fields["trace"] = fields["trace"] or trace
                row = Row(
                    observed=now,
                    queued=monotonic,
                    probabilities=selection.probabilities[number].astype(np.float32),
                    quantities=row_quantities,
                    reason=reason,
                    sample=selector.sample if reason == "condition" else selector.baseline_sample,
                    size=size,
                    **fields,
                )
                queued += self._queue.add(row)
                left.pop()
        except BaseException as error:
            reason = "invalid" if _invalid(error) else "error"
            for _, _, size in left:
                self._queue.give_up(reason, size)
            if not isinstance(error, Exception):
                raise
            self._error_log.report("copy", error)
        if queued:
            self._start_worker()
        return queued

    def _start_worker(self) -> None:
        """Start the worker thread unless it runs; `inline`, explain the queued rows here."""
        if self._worker_kind == "inline":
            with self._inline_lock:
                while (row := self._queue.take(0.0)) is not None:
                    self._handler.handle(row)
            return
        if self._worker is not None and self._worker.alive():
            return
        if self._start_lock.acquire(blocking=False):
            try:
                if self._worker is None or not self._worker.alive():
                    backs_off = self._worker_kind == "thread"
                    self._worker = workers.Worker(self._queue, self._handler, backs_off)
            except RuntimeError as error:  # no more threads: the next row tries again
                self._error_log.report("worker", error)
            finally:
                self._start_lock.release()

    def _open_explainer(self) -> workers.Explain:
        if self._worker_kind == "process":
            from onnxcam.monitor.process import ExplainerProcess

            return ExplainerProcess(self._settings, self._timeout)
        pause = workers.yield_interpreter if self._worker_kind == "thread" else lambda: None
        return RowExplainer(self._settings, pause)

    def _process_parts(self) -> tuple[Sampler, workers.RowHandler]:
        """Create the sampler and the handler, which a forked child must not share with its parent."""
        duplicates = workers.DuplicateFilter(self._duplicates_lifetime, self._clock)
        handler = workers.RowHandler(
            self._queue, self._open_explainer, self._sink, duplicates, self._error_log, self._clock
        )
        return Sampler(self._seed), handler

    def _forked(self) -> None:
        """Start afresh in a forked child: queue, counters and worker belong to the parent."""
        self._handler.abandon()
        self._error_log = ErrorLog(self._clock)
        self._queue = self._queue.fresh()
        self._inline_lock, self._start_lock = threading.RLock(), threading.Lock()
        self._closed, self._worker = False, None
        self._sampler, self._handler = self._process_parts()
        _open_monitors.add(self)

    def _close_sink(self, timeout: float) -> None:
        try:
            with contextlib.suppress(OutputError, OSError):  # a sink that fails has failed for every row already
                getattr(self._sink, "note", lambda counts: None)(self._queue.counts())
            self._sink.close(timeout)
        except Exception as error:
            self._error_log.report("sink", error)


def check_choice(name: str, value: Any, allowed: Any) -> None:
    """Check that a setting has one of the allowed values.

    Raises:
        SettingError: it has not.
    """
    if value not in allowed:
        raise SettingError(f"{name}={value!r}; expected one of {listing(allowed)}")


def check_number(
    name: str, value: Any, low: float, high: float, *, optional: bool = False, whole: bool = False
) -> None:
    """Check that a setting is a number within bounds.

    Raises:
        SettingError: it is not.
    """
    if optional and value is None:
        return
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        what = "a whole number" if whole else "a number"
        bounds = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
        raise SettingError(f"{name}={value!r}; expected {what} {bounds}{', or None for no limit' if optional else ''}")


def _length(scores: Any) -> int:
    """Guess the number of rows of a value that is not scores."""
    try:
        return len(scores)
    except Exception:
        return 1


def _invalid(error: BaseException) -> bool:
    return isinstance(error, (InputError, TypeError, ValueError, IndexError, KeyError))


@atexit.register
def _close_all() -> None:
    """Explain the queued rows of every open monitor when the interpreter exits."""
    for monitor in list(_open_monitors):
        monitor.close(_EXIT_TIMEOUT)
