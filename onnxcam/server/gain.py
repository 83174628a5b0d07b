"""Measures whether rows of several requests should share a run of a model.

On a GPU they should. On a CPU whose cores are all at work on requests of their own, a run of many rows costs as much as
the rows one by one, unless the model is so small that a run itself is the cost, or so wide that its weights do not fit
into a cache. Which it is cannot be told from the file, so it is measured, when nobody waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from onnxcam.explain.conditional import NEVER
from onnxcam.network.layout import Layout
from onnxcam.runtime.session import CPU
from onnxcam.server.models import Model, Models
from onnxcam.server.scheduler import Scheduler

SIZES = (4, 8, 16)
_PAYS = 1.25  # times as many rows a second: less is lost to waiting for one another
_NEAR = 0.95  # of the best rate: the smallest size that has it keeps answers quick
_ROUNDS = 3
_LONGEST = 2.0  # seconds for a single run in a measurement
_IDLE = 1.0  # seconds without a request before it begins
_PATIENCE = 600.0  # seconds after which a server that is never idle is left as it is
_LONGEST_RUN = 30.0  # seconds for which the run under way is waited for at the end


class Busy(Exception):
    """A request came while it was measured."""


def pays(model: Model, idle: Callable[[], bool] = lambda: True) -> int:
    """The number of rows in a run that pays, 1 if none does.

    Arguments:
        model: which is run on rows of zeros.
        idle: whether to go on.

    Raises:
        Busy: `idle` said no.
    """
    size = model.explainer.batch_size
    if size is not None:
        return size
    row = _row(model)
    if row is None:
        return 1
    question = None if model.when == NEVER else model.question({})

    def seconds(rows: int) -> float:
        batch = np.repeat(row, rows, axis=0)
        times = []
        for _ in range(_ROUNDS):
            if not idle():
                raise Busy
            began = time.perf_counter()
            if question is None:
                model.explainer.batch_scores(batch)
            else:
                model.explainer.batch_maps(question, batch)
            times.append(time.perf_counter() - began)
        return min(times)

    seconds(1)
    alone = seconds(1)
    rates = {}
    for rows in SIZES:
        if rows * alone > _LONGEST:
            break
        rates[rows] = rows * alone / seconds(rows)
    best = max(rates.values(), default=0.0)
    return next((rows for rows, rate in rates.items() if rate >= _NEAR * best), 1) if best >= _PAYS else 1


def _row(model: Model) -> np.ndarray | None:
    """One row of zeros; None where pictures differ in size."""
    entry, preprocess = model.explainer.manifest["input"], model.explainer.preprocess
    size = None if preprocess is None else preprocess.output_size
    if size is None:
        return None
    shape = [side if isinstance(side, int) else 1 for side in entry["shape"]]
    layout = Layout.of(entry)
    shape[0] = 1
    shape[layout.height], shape[layout.width] = size
    return np.zeros(shape, entry["dtype"])


def on_accelerator(model: Model) -> bool:
    """Whether the model runs elsewhere than on the processor's cores."""
    return model.explainer.providers[0] != CPU


def apply(model: Model, rows: int, scheduler: Scheduler) -> None:
    """Let rows share a run, with threads enough to prepare them meanwhile."""
    places = 1 if on_accelerator(model) else scheduler.places
    if rows > 1:
        scheduler.grow(places * rows)
    model.set_rows(rows, places)


class Measurement:
    """Measures every model once, in a thread of its own, as soon as the server is idle.

    Arguments:
        models: to set.
        scheduler: tells whether it is idle.
    """

    def __init__(self, models: Models, scheduler: Scheduler) -> None:
        self._models = list(models)
        self._scheduler = scheduler
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to wait for an idle moment."""
        self._thread = threading.Thread(target=self._measure, name="onnxcam-server-gain", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the measurement, after the run under way."""
        self._ended.set()
        if self._thread is not None:
            # a thread inside ONNX Runtime when the interpreter ends aborts the process
            self._thread.join(_LONGEST_RUN)

    def _measure(self) -> None:
        until = time.monotonic() + _PATIENCE
        waiting = list(self._models)
        while waiting and time.monotonic() < until and not self._ended.wait(_IDLE / 4):
            if not self._idle():
                continue
            try:
                rows = pays(waiting[0], self._idle)
            except Busy:
                continue
            except Exception:  # a model that cannot run zeros is left as it is
                rows = 1
            apply(waiting.pop(0), rows, self._scheduler)

    def _idle(self) -> bool:
        return self._scheduler.idle_seconds >= _IDLE and not self._ended.is_set()
