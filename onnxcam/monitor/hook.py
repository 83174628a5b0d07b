"""`onnxcam.Monitor`: sees every prediction, explains those it was told to, and never hurts one."""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from onnxcam.cam import conditions
from onnxcam.errors import InputError, MethodError, SettingError
from onnxcam.monitor import admission, model, worker
from onnxcam.monitor.complaints import Complaints
from onnxcam.monitor.judgement import Judge, Verdict
from onnxcam.monitor.rows import Batch, Row, to_numpy
from onnxcam.monitor.waiting import ON_FULL, Candidates, Capacity, Waiting
from onnxcam.runtime import CPU, Provider

SCORES = ("auto", "logits", "probabilities")
REDACT = ("heatmap_only", "none", "hash")
_Function = TypeVar("_Function", bound=Callable[..., Any])
_names: ContextVar[tuple[str | None, str | None]] = ContextVar("onnxcam_request", default=(None, None))
_monitors: weakref.WeakSet[Monitor] = weakref.WeakSet()
_TICK = 0.005


class Monitor:
    """Explains the predictions a model was unsure of, in the background, within bounds.

    Arguments:
        model: an explainable model or any classifier `.onnx`: path, bytes or `ModelProto`. It explains; what predicts
            may be any model with the same classes.
        sink: where records go: a folder or `file://` URL, `stdout:`, `logging:NAME`, a callable taking
            (record, files), a sink, or a list of these.
        when: which predictions are explained, in the grammar of `onnxcam.cam.conditions`.
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
        baseline: a file made by `onnxcam monitor baseline`.
        layer, method: where and how to explain.
        labels, preprocess: as for `Explainer`.
        region: where maps should lie, `[H, W]` with weights 0 to 1.
        duplicates: for how long a picture that was explained is not explained again, as `1min`; 0 for never.
        colormap: of the heatmaps. color: channel order of pictures given as arrays.
        timeout: seconds after which a worker process counts as hung.
        clock: where the time comes from, for tests.
        seed: of the sampling, for tests.

    Rate, budget and queue are each process's own. After a fork the child starts with empty counters and its own worker.

    Raises:
        SettingError: a setting cannot be used. ModelError, LayerError, MethodError, LabelsError, TargetError: as they say.
    """

    def __init__(
        self,
        model_: Any,
        /,
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
        clock: admission.Clock | None = None,
        seed: int | None = None,
    ) -> None:
        ...
