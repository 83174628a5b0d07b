"""`onnxcam.Monitor`: sees every prediction, explains those it was told to, and never hurts one."""

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
from onnxcam.monitor import baseline as baselines
from onnxcam.monitor import model as models
from onnxcam.monitor import worker as workers
from onnxcam.monitor.admission import Clock, Limits, Sampler, SystemClock, parse_rate
from onnxcam.monitor.complaints import Complaints
from onnxcam.monitor.evidence import Evidence, Settings
from onnxcam.monitor.forks import after_fork
from onnxcam.monitor.judgement import Judge, Verdict
from onnxcam.monitor.predictions import Batch, Row, to_numpy
from onnxcam.monitor.redaction import MODES
from onnxcam.monitor.session import WatchedSession, connect
from onnxcam.monitor.sinks import open_sink
from onnxcam.monitor.table import Subject
from onnxcam.monitor.units import parse_bytes, parse_seconds
from onnxcam.monitor.waiting import ON_FULL, Candidates, Capacity, Waiting
from onnxcam.monitor.watching import watched
from onnxcam.runtime import CPU, Provider
from onnxcam.targets import conditions

SCORES = ("auto", "logits", "probabilities")
_Function = TypeVar("_Function", bound=Callable[..., Any])
_names: ContextVar[tuple[str | None, str | None]] = ContextVar("onnxcam_request", default=(None, None))
_open_monitors: weakref.WeakSet[Monitor] = weakref.WeakSet()
_POLL = 0.005
_AT_EXIT = 5.0  # seconds for what still waits when the interpreter ends


@contextlib.contextmanager
def request(identity: str | None, trace: str | None = None) -> Iterator[None]:
    """Name the request whose predictions are made inside, for the records; of this thread or task alone.

    Arguments:
        identity: the record's `request`.
        trace: the record's `trace`, such as a W3C traceparent.
    """
    token = _names.set((identity, trace))
    try:
        yield
    finally:
        _names.reset(token)


class Monitor:
    """Explains the predictions a model was unsure of, in the background, within bounds.

    Arguments:
        model: an explainable model or any classifier `.onnx`: path, bytes or `ModelProto`. It explains; what predicts
            may be any model with the same classes.
        sink: where records go: a folder or `file://` URL, `stdout:`, `logging:NAME`, a callable taking
            (record, files), a sink, or a list of these.
        when: which predictions are explained, in the grammar of `onnxcam.targets.conditions`.
        sample: the probability with which such a prediction is kept.
        baseline_sample: the same for all others: what drift is measured against.
        rate: at most so many, as `2/s` or `500/h`; None for no limit. `burst`: how many may be saved up, by default
            the number before the slash.
        daily_budget: at most so many in a day (UTC); None for no limit.
        queue, queue_bytes: rows and bytes that may wait.
        on_full: `drop_newest` or `drop_oldest`.
        worker: `thread`; `process`, which never takes the interpreter lock from predictions; or `inline`, which
            explains before `observe` returns.
        providers: execution providers of the worker's session.
        scores: what is observed: `logits`, `probabilities`, or `auto` to tell from the values.
        redact: `heatmap_only`, `none` (pictures and overlays are kept too) or `hash` (no files).
        baseline: a file made by `onnxcam monitor baseline` from records of this model, condition, method and layer.
        layer, method: where and how to explain.
        labels, preprocess: as for `Explainer`.
        region: where maps should lie, `[H, W]` with weights 0 to 1.
        duplicates: for how long a picture that was explained is not explained again, as `1min`; 0 for never.
        colormap: of the heatmaps. color: channel order of pictures given as arrays.
        timeout: seconds after which a worker process counts as hung; on Linux it runs only in idle time, so where the
            machine has none, allow for it.
        sink_options: of the sink, where it is a folder or a URL (`retain_bytes`, `segment_age`, `min_free` …).
        clock: where the time comes from, for tests.
        seed: of the sampling, for tests.

    Rate, budget and queue are each process's own. After a fork the child starts with empty counters and its own worker.

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
        redact: str = "heatmap_only",
        baseline: str | os.PathLike[str] | None = None,
        layer: str | None = None,
        method: str = "gradcam",
        labels: Sequence[str] | None = None,
        preprocess: Any = None,
        region: Any = None,
        duplicates: str | float | None = "1min",
        colormap: str = "jet",
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
        self._model = models.read(model, layer, method)
        names = self._model.labels(labels)
        condition = conditions.parse(when, names, self._model.manifest["scores"]["classes"])
        self._clock: Clock = clock or SystemClock()
        self._judge = Judge(condition, self._model.manifest, sample, baseline_sample)
        self._form = scores
        self._kind = worker
        self._timeout = timeout
        self._seed = seed
        self._lifetime = 0.0 if duplicates is None else parse_seconds(duplicates, "duplicates")
        # an overlay and a hash need the picture itself; a heatmap of features alone does not
        self._keep_tensor = redact != "heatmap_only"
        self._settings = Settings(
            source=self._model.source,
            name=self._model.name,
            sha256=self._model.sha256,
            when=when,
            labels=names,
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
            own = Subject(self._model.sha256, when, method, self._model.layer)
            baselines.check(baselines.load(os.fspath(baseline)), own)
        self._sink = open_sink(sink, **(sink_options or {}))
        self._complaints = Complaints(self._clock)
        limits = Limits(parse_rate(rate), burst, daily_budget, baseline_sample > 0)
        capacity = Capacity(queue, parse_bytes(queue_bytes, "queue_bytes"), on_full)
        self._waiting = Waiting(limits, capacity, self._clock)
        self._closed = False
        self._inline = threading.RLock()
        self._starting = threading.Lock()
        self._worker: workers.Worker | None = None
        self._sampler, self._desk = self._fresh()
        after_fork(self, Monitor._forked)
        _open_monitors.add(self)

    def wrap(self, session: Any) -> Any:
        """A drop-in for an `onnxruntime.InferenceSession` whose predictions the monitor sees.

        Watched are `run`, `run_async` and `run_with_iobinding`; everything else is forwarded. Where the session's
        outputs show the target layer's value, only the graph behind it runs again for an explanation. A run's
        `RunOptions.logid` becomes the record's `request`.

        Raises:
            InputError: the session's inputs and outputs do not fit the model that explains.
        """
        wiring = connect(session, self._model.manifest, self._form, self._model.tail, self._model.entry)
        return WatchedSession(session, wiring, self._see, self._complaints.about)

    def watch(
        self, image: int | str = 0, *, scores: Any = None, pictures: bool | None = None
    ) -> Callable[[_Function], _Function]:
        """A decorator for a predict function of any framework, plain or `async`.

        Arguments:
            image: the argument that holds what is predicted, by position or name: a prepared batch, or pictures.
            scores: where the scores are in what the function returns: a key, an index, or a function of it; None for
                all of it.
            pictures: whether the argument holds pictures (as for `Explainer.explain`) and not prepared tensors; None
                to tell from the values.
        """

        def observe(found: Any, given: Any, as_pictures: bool) -> None:
            part = {"pictures": given} if as_pictures else {"tensor": given}
            self.observe(found, **part)

        return watched(observe, self._complaints.about, image, scores, pictures)

    def observe(
        self, scores: Any, *, tensor: Any = None, pictures: Any = None, ids: Any = None, traces: Any = None
    ) -> int:
        """Show the monitor a batch of predictions. Never raises, never waits (but `inline`), keeps nothing of yours.

        Arguments:
            scores: `[N, classes]`, or `[classes]` for a single row; of any framework.
            tensor: what the model was given, `[N, …]` in the explaining model's layout; or
            pictures: one per row: a path, encoded bytes, or a uint8 array `[H, W]` or `[H, W, 3]`.
            ids, traces: one per row, for the records; those of `request` by default.

        Returns:
            how many rows were queued.
        """
        return self._see(scores, self._form, Batch(tensor=tensor, pictures=pictures, requests=ids, traces=traces))

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until everything that waits is explained; False where that took longer than `timeout` seconds."""
        end = time.monotonic() + timeout
        with self._waiting.hurry():
            while not self._waiting.idle():
                if time.monotonic() >= end:
                    return False
                time.sleep(min(_POLL, max(0.0, end - time.monotonic())))
        return True

    def close(self, timeout: float = 5.0) -> bool:
        """Explain what waits for at most `timeout` seconds, drop the rest, and let go of everything.

        Returns within `timeout` and half a second more, whatever hangs; what is observed later is counted as dropped.

        Returns:
            whether everything was explained in time.
        """
        end = time.monotonic() + timeout
        self._waiting.close()
        done = self.flush(timeout)
        self._waiting.stop()
        worker, desk = self._worker, self._desk
        if worker is not None:
            worker.join(max(0.05, end - time.monotonic()))
            if worker.alive() and self._kind == "process":
                desk.close()  # ends the hung child; the thread then finds its pipe closed
        if self._kind == "inline":
            desk.close()
        if not self._closed:
            self._closed = True
            _open_monitors.discard(self)
            # a sink may hang too, so it is not waited for in this thread
            closing = threading.Thread(target=self._close_sink, args=(max(0.1, end - time.monotonic()),), daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started once the interpreter ends
                closing.start()
                closing.join(max(0.25, end - time.monotonic()))
        return done

    def stats(self) -> dict[str, Any]:
        """Counts in rows, all of one moment and of this process.

        `seen = confident + sum(dropped.values()) + queued + running + explained + failed`, always. `failures` are the
        failed ones by cause, `baseline` those explained that are of the baseline's sample, `queue_bytes` what waits,
        `restarts` how often the worker was opened again.
        """
        return self._waiting.counts() | {"restarts": max(0, self._desk.opened - 1), "pid": os.getpid()}

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _see(self, scores: Any, form: str, batch: Batch) -> int:
        """Everything that happens while a prediction waits."""
        try:
            return self._queue(*self._admit(scores, form, batch))
        except Exception as error:
            self._complaints.about("observe", error)
            return 0

    def _admit(self, scores: Any, form: str, batch: Batch) -> tuple[Batch, Verdict | None, list[tuple[int, str, int]]]:
        """Judge a batch and count its rows: what is admitted, as (row, reason, bytes)."""
        waiting = self._waiting
        rows = None
        try:
            array = to_numpy(scores)
            values = self._judge.rows(array)
            rows = len(values)
            if not rows:
                return batch, None, []
            batch = batch.of(rows, single=array.ndim == 1, keep_tensor=self._keep_tensor)
            verdict = self._judge.judge(values, form, self._sampler)
            lanes = [
                Candidates(batch.sizes(verdict.unsure), False),
                Candidates(batch.sizes(verdict.baseline), True),
            ]
            admitted = waiting.admit(rows, verdict.confident, verdict.sampled_out, lanes)
        except Exception as error:
            waiting.refuse(_length(scores) if rows is None else rows, "invalid" if _invalid(error) else "error")
            raise
        unsure = zip(verdict.unsure[: admitted[0]], lanes[0].sizes, strict=False)
        baseline = zip(verdict.baseline[: admitted[1]], lanes[1].sizes, strict=False)
        wanted = [(int(row), "condition", size) for row, size in unsure]
        wanted += [(int(row), "baseline", size) for row, size in baseline]
        return batch, verdict, wanted

    def _queue(self, batch: Batch, verdict: Verdict | None, wanted: list[tuple[int, str, int]]) -> int:
        """Copy the admitted rows and hand them on."""
        if verdict is None or not wanted:
            return 0
        waiting, judge = self._waiting, self._judge
        left, queued = list(reversed(wanted)), 0
        try:
            quantities = judge.quantities(verdict.probabilities[[row for row, _, _ in wanted]])
            now, moment = self._clock.time(), self._clock.monotonic()
            identity, trace = _names.get()
            for held in quantities:
                row, reason, size = left[-1]
                found = batch.copies(row)
                found["request"] = found["request"] or identity
                found["trace"] = found["trace"] or trace
                made = Row(
                    observed=now,
                    queued=moment,
                    probabilities=verdict.probabilities[row].astype(np.float32),
                    quantities=held,
                    reason=reason,
                    sample=judge.sample if reason == "condition" else judge.baseline_sample,
                    size=size,
                    **found,
                )
                queued += waiting.put(made)
                left.pop()
        except BaseException as error:
            reason = "invalid" if _invalid(error) else "error"
            for _, _, size in left:
                waiting.give_up(reason, size)
            if not isinstance(error, Exception):
                raise
            self._complaints.about("copy", error)
        if queued:
            self._work()
        return queued

    def _work(self) -> None:
        """See that somebody explains what waits."""
        if self._kind == "inline":
            with self._inline:
                while (row := self._waiting.take(0.0)) is not None:
                    self._desk.handle(row)
            return
        if self._worker is not None and self._worker.alive():
            return
        if self._starting.acquire(blocking=False):
            try:
                if self._worker is None or not self._worker.alive():
                    self._worker = workers.Worker(self._waiting, self._desk, rests=self._kind == "thread")
            except RuntimeError as error:  # no more threads: the next row tries again
                self._complaints.about("worker", error)
            finally:
                self._starting.release()

    def _open(self) -> workers.Explain:
        if self._kind == "process":
            from onnxcam.monitor.process import Child

            return Child(self._settings, self._timeout)
        return Evidence(self._settings, workers.give_way if self._kind == "thread" else lambda: None)

    def _fresh(self) -> tuple[Sampler, workers.Desk]:
        """What chooses, and what explains, in one process alone."""
        duplicates = workers.Duplicates(self._lifetime, self._clock)
        desk = workers.Desk(self._waiting, self._open, self._sink, duplicates, self._complaints, self._clock)
        return Sampler(self._seed), desk

    def _forked(self) -> None:
        """In the child of a fork: what waits, runs and was counted is the parent's."""
        self._desk.abandon()
        self._complaints = Complaints(self._clock)
        self._waiting = self._waiting.fresh()
        self._inline, self._starting = threading.RLock(), threading.Lock()
        self._closed, self._worker = False, None
        self._sampler, self._desk = self._fresh()
        _open_monitors.add(self)

    def _close_sink(self, timeout: float) -> None:
        try:
            with contextlib.suppress(OutputError, OSError):  # a sink that fails has said so for every row
                getattr(self._sink, "note", lambda counts: None)(self._waiting.counts())
            self._sink.close(timeout)
        except Exception as error:
            self._complaints.about("sink", error)


def check_choice(name: str, value: Any, allowed: Any) -> None:
    """Refuse what is none of the allowed values.

    Raises:
        SettingError: it is not.
    """
    if value not in allowed:
        raise SettingError(f"{name}={value!r}; expected one of {listing(allowed)}")


def check_number(
    name: str, value: Any, low: float, high: float, *, optional: bool = False, whole: bool = False
) -> None:
    """Refuse what is no number between two bounds.

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
    """How many rows something that is no scores most likely had."""
    try:
        return len(scores)
    except Exception:
        return 1


def _invalid(error: BaseException) -> bool:
    return isinstance(error, (InputError, TypeError, ValueError, IndexError, KeyError))


@atexit.register
def _close_all() -> None:
    """Explain what still waits when the interpreter ends."""
    for monitor in list(_open_monitors):
        monitor.close(_AT_EXIT)
