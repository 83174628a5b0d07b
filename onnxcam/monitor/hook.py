"""`onnxcam.Monitor`: observes every prediction, explains those that meet a condition, and never breaks one."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NoReturn, TypeVar

import numpy as np

from onnxcam.cam.registry import USUAL, default_method
from onnxcam.errors import InputError, SerializationError, SettingError
from onnxcam.image import DEFAULT_COLORMAP
from onnxcam.monitor import baseline as baselines
from onnxcam.monitor import feedback as feedbacks
from onnxcam.monitor import model as models
from onnxcam.monitor import pipeline as pipelines
from onnxcam.monitor import worker as workers
from onnxcam.monitor.admission import Clock, Limits, Sampler, SystemClock, parse_rate
from onnxcam.monitor.checks import check_choice, check_number
from onnxcam.monitor.decorator import watch_function
from onnxcam.monitor.error_log import ErrorLog
from onnxcam.monitor.forks import after_fork
from onnxcam.monitor.interruptions import attempt, interruption
from onnxcam.monitor.pipeline import Pipeline
from onnxcam.monitor.predictions import Batch, Row, name_of, size_of
from onnxcam.monitor.queue import ON_FULL, Candidates, Capacity, RowQueue, Ticket
from onnxcam.monitor.redaction import MODES
from onnxcam.monitor.row_explainer import RowExplainer, Settings
from onnxcam.monitor.selection import Selection, Selector
from onnxcam.monitor.session import WatchedSession, find_values, watcher_of, wrapped_in
from onnxcam.monitor.sinks import folder_of, open_sink
from onnxcam.monitor.table import OWN_LAYER, Configuration
from onnxcam.monitor.task_selection import TaskSelector, check_condition
from onnxcam.monitor.units import parse_bytes, parse_seconds
from onnxcam.runtime import CPU, Provider
from onnxcam.targets import conditions
from onnxcam.targets.classes import resolve
from onnxcam.targets.tasks import Detect

SCORES = ("auto", "logits", "probabilities")
_Function = TypeVar("_Function", bound=Callable[..., Any])
_request: ContextVar[tuple[str | None, str | None]] = ContextVar("onnxcam_request", default=(None, None))


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
        model: an explainable model or any classifier, detector or segmentation `.onnx`: path, bytes or `ModelProto`. It
            computes the explanations; the model that predicts may be another one with the same classes. Of a detector
            its best box is explained, of a segmentation its largest class: their score or share is the `confidence`.
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
        layer, method: the target layer and the CAM method; by default those of `Explainer`, of a detector the layer
            that the box's score comes from.
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
        method: str | None = None,
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
        self._model = models.read(model, layer, method or USUAL, scores_output=scores_output, kind=kind)
        method = method or default_method(self._model.readout)
        self._model.readout.require_probabilities(f"when={when!r}")
        class_names = self._model.labels(labels)
        condition = conditions.parse(when, class_names, self._model.manifest["scores"]["classes"] or None)
        task = self._model.readout.task
        if task is not None:
            check_condition(condition, when, task.name)
        self._clock: Clock = clock or SystemClock()
        self._selector = (Selector if task is None else TaskSelector)(
            condition, self._model.manifest, sample, baseline_sample
        )
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
            layer_named=layer is not None,
            method=method,
            providers=providers,
            redact=redact,
            colormap=colormap,
            color=color,
            region=None if region is None else np.asarray(region, np.float64),
            baseline=None if baseline is None else os.path.abspath(baseline),  # noqa: PTH100
        )
        if baseline is not None:
            own_layer = isinstance(task, Detect) and layer is None
            layer_name = OWN_LAYER if own_layer else self._model.layer
            configuration = Configuration(self._model.sha256, when, method, layer_name)
            baselines.check(baselines.load(os.fspath(baseline)), configuration)
        self._sink = open_sink(sink, **(sink_options or {}))
        self._error_log = ErrorLog(self._clock)
        self._limits = Limits(parse_rate(rate), burst, daily_budget, baseline_sample > 0)
        self._capacity = Capacity(queue, parse_bytes(queue_bytes, "queue_bytes"), on_full)
        self._start()
        after_fork(self, Monitor._forked)

    def wrap(self, session: Any) -> Any:
        """Return a drop-in replacement for an `onnxruntime.InferenceSession` whose predictions the monitor observes.

        `run`, `run_async` and `run_with_iobinding` are observed; everything else is forwarded. If the session outputs
        the target layer's value, an explanation runs only the tail, the graph from that layer to the scores. A run's
        `RunOptions.logid` becomes the record's `request`. A session that this monitor observes already is returned as
        it is: a prediction is counted once.

        Raises:
            InputError: the session's inputs and outputs do not fit the model that explains.
        """
        inner = session
        while type(inner) is WatchedSession:  # `isinstance` sees the class of the wrapped session
            if watcher_of(inner) is self:
                return session
            inner = wrapped_in(inner)
        names = find_values(session, self._model.manifest, self._scores_form, self._model.cut, self._model.entry)
        return WatchedSession(session, names, self, self._observe, self._error_log.report)

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

        The decorator raises a `SettingError` for a function that this monitor watches already, or without the argument.
        """

        def observe(result: Any, inputs: Any, as_pictures: bool) -> None:
            self.observe(result, **{"pictures" if as_pictures else "tensor": inputs})

        return watch_function(self, observe, self._error_log.report, image, scores, pictures)

    def observe(
        self, scores: Any, *, tensor: Any = None, pictures: Any = None, ids: Any = None, traces: Any = None
    ) -> int:
        """Observe a batch of predictions. Never blocks (but `inline`), keeps no reference to arguments.

        Raises nothing of its own; what a signal handler raises meanwhile, or Ctrl-C, passes to the caller.

        Arguments:
            scores: `[N, classes]`, or `[classes]` for a single row; of any framework. Of a detector or segmentation the
                file's output with its rows, of several a list in the file's order, or by name.
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
        return pipelines.wait([self._pipeline], timeout)[0]

    def close(self, timeout: float = 5.0) -> bool:
        """Explain queued rows for at most `timeout` seconds, drop the rest, and release worker and sink.

        Returns within `timeout` plus half a second, whatever hangs; rows observed later are counted as dropped. Like
        every method, it may be called from a signal handler.

        Returns:
            whether everything was explained in time.
        """
        self._closed = True
        return pipelines.close([self._pipeline], timeout)[0]

    def stats(self) -> dict[str, Any]:
        """Return counts of rows: a consistent snapshot, of this process.

        `seen = confident + sum(dropped.values()) + queued + running + explained + failed`, always. `failures` are the
        failed rows by cause, `baseline` the explained rows of the baseline's sample, `queue_bytes` the bytes in the
        queue, `restarts` how often the explainer was opened again, `lost` the explained rows whose records others than
        retention have removed from the sink's folder since, `thresholds` how each `top` of the condition is decided:
        the rows that it ranks, how many it takes to begin, and the present threshold.
        """
        line = self._pipeline
        lost = {"lost": getattr(self._sink, "lost", 0)}
        rest = {"restarts": max(0, line.handler.opened - 1), "pid": os.getpid()}
        thresholds = self._selector.thresholds()
        return line.queue.counts() | lost | rest | ({"thresholds": thresholds} if thresholds else {})

    def feedback(self, ids: Any, truth: Any) -> int:
        """Store the true classes of predictions beside their records, as they become known.

        `onnxcam monitor stats`, `report` and `feedback` compare them with the records: how often predictions were
        right, and, of a calibrated file, whether its sets still cover as many true classes as they should.

        Arguments:
            ids: of records or requests, or one of them.
            truth: for each, the class: an index or a label.

        Returns:
            how many were stored.

        Raises:
            SettingError: no sink is a folder. TargetError: no class of the model. InputError: not one class for each
                id. OutputError: the folder cannot be written.
        """
        self._model.readout.require_classes("feedback, the true classes of predictions,")
        root = folder_of(self._sink)
        if root is None:
            raise SettingError("feedback is stored beside records in a folder, and no sink of this monitor is one")
        names = [ids] if isinstance(ids, (str, int)) else list(ids)
        classes = [truth] if isinstance(truth, (str, int, np.integer)) else list(truth)
        if len(names) != len(classes):
            raise InputError(f"got {len(names)} ids and {len(classes)} true classes; give one for each")
        size = self._model.manifest["scores"]["classes"]
        indices = resolve(classes, len(names), size, self._settings.labels).tolist() if classes else []
        if any(index < 0 for index in indices):
            raise InputError("a true class is -1; expected an index from 0, or a label")
        return feedbacks.append(
            root, [(str(name), index) for name, index in zip(names, indices, strict=True)], self._clock.time()
        )

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and not sys.is_finalizing():
            self._pipeline.forget()
            warnings.warn(
                f"a monitor of {self._model.name!r} was never closed; call close(), or use it in a `with` block",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise SerializationError(
            "a Monitor cannot be pickled: its queue, worker and counts belong to this process; make one in each "
            "process, or fork before the first prediction"
        )

    def _observe(self, scores: Any, form: str, batch: Batch) -> int:
        """Admit, copy, queue and count rows; runs in the thread that predicts, and delays it."""
        ticket = Ticket()
        try:
            queued = self._enqueue(ticket, scores, form, batch)
            if queued:
                self._pipeline.explain()
            return queued
        except BaseException as error:
            failure = error
        try:
            self._give_up(ticket, scores, failure)
        finally:
            del failure
        return 0

    def _enqueue(self, ticket: Ticket, scores: Any, form: str, batch: Batch) -> int:
        """Count the rows of a batch, and queue copies of those that are admitted; returns how many."""
        values, single = self._selector.read(scores)
        ticket.observed = len(values)
        if not len(values):
            return 0
        batch = batch.as_rows(len(values), single=single, keep_tensor=self._keep_tensor)
        selection = self._selector.select(values, form, self._sampler)
        ticket.confident = selection.confident
        classes = selection.probabilities.shape[1] + self._selector.copied(values)
        groups = [
            Candidates(batch.sizes(selection.uncertain, classes), False),
            Candidates(batch.sizes(selection.baseline, classes), True),
        ]
        queue = self._pipeline.queue
        counts = queue.admit(ticket, selection.sampled_out, groups)
        admitted = [(int(row), "condition") for row in selection.uncertain[: counts[0]]]
        admitted += [(int(row), "baseline") for row in selection.baseline[: counts[1]]]
        if not admitted:
            return 0
        rows, failure = self._copy(batch, selection, admitted)
        lost = len(admitted) - len(rows)
        queued = queue.add(ticket, rows, {} if failure is None else {_reason(failure): lost})
        if failure is not None:
            self._error_log.report("copy", failure)
        return queued

    def _copy(
        self, batch: Batch, selection: Selection, admitted: Sequence[tuple[int, str]]
    ) -> tuple[list[Row], Exception | None]:
        """Copy the admitted rows until one cannot be copied; returns them, and why it cannot."""
        rows: list[Row] = []
        try:
            selector = self._selector
            quantities = selector.quantities(selection, [number for number, _ in admitted])
            sets = selector.prediction_sets(selection, [number for number, _ in admitted])
            now, monotonic = self._clock.time(), self._clock.monotonic()
            identity, trace = map(name_of, _request.get())
            for (number, reason), row_quantities, row_set in zip(admitted, quantities, sets, strict=True):
                fields = batch.copy_row(number)
                fields["request"] = fields["request"] or identity
                fields["trace"] = fields["trace"] or trace
                if (columns := selector.columns(selection, number)) is not None:
                    fields["columns"] = columns
                probabilities = selection.probabilities[number].astype(np.float32)
                row = Row(
                    observed=now,
                    queued=monotonic,
                    probabilities=probabilities,
                    quantities=row_quantities,
                    reason=reason,
                    sample=selector.sample if reason == "condition" else selector.baseline_sample,
                    size=size_of(probabilities, fields),
                    prediction_set=row_set,
                    **fields,
                )
                rows.append(row)
            return rows, None
        except Exception as error:
            failure = error
        if (passing := interruption(failure)) is not None:
            raise passing
        return rows, failure

    def _give_up(self, ticket: Ticket, scores: Any, failure: BaseException) -> None:
        """Count the rows of a call that failed, unless they are; raise what must pass to the caller, log the rest."""
        passing = interruption(failure)
        try:
            reason = _reason(failure) if passing is None else "interrupted"
            self._pipeline.queue.refuse(ticket, self._length(scores), reason)
        except BaseException as error:
            failure = error
        passing = passing or interruption(failure)
        if passing is not None:
            raise passing
        self._error_log.report("observe", failure)

    def _length(self, scores: Any) -> int:
        """Guess the number of rows of a value that is not scores."""
        lengths: list[int] = []
        return 1 if attempt(lambda: lengths.append(self._selector.count(scores))) is not None else lengths[0]

    def _start(self) -> None:
        """Create what belongs to this process: a forked child must not share it with its parent."""
        self._sampler = Sampler(self._seed)
        queue = RowQueue(self._limits, self._capacity, self._clock)
        open_explainer = partial(_open_explainer, self._settings, self._worker_kind, self._timeout)
        duplicates = workers.DuplicateFilter(self._duplicates_lifetime, self._clock)
        handler = workers.RowHandler(queue, open_explainer, self._sink, duplicates, self._error_log, self._clock)
        self._pipeline = Pipeline(self._worker_kind, queue, handler, self._sink, self._error_log)
        self._closed = False

    def _forked(self) -> None:
        """Start afresh in a forked child: queue, counters and worker belong to the parent."""
        self._error_log = ErrorLog(self._clock)
        self._start()


def _open_explainer(settings: Settings, worker: str, timeout: float) -> workers.Explain:
    if worker == "process":
        from onnxcam.monitor.process import ExplainerProcess

        return ExplainerProcess(settings, timeout)
    return RowExplainer(settings, workers.yield_interpreter if worker == "thread" else lambda: None)


def _reason(error: BaseException) -> str:
    """Return the reason for dropping rows that an error at their reading or copying is counted as."""
    return "invalid" if isinstance(error, (InputError, TypeError, ValueError, IndexError, KeyError)) else "error"
