"""What an ONNX model computes, in nothing but ONNX Runtime on the CPU, its warnings kept off standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

Model = onnx.ModelProto | bytes | str | Path


def session(model: Model, *, threads: int = 0, optimise: bool = True) -> onnxruntime.InferenceSession:
    """Open a model, its bytes or its file; 0 threads are one per core."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised too
    options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(
    model: Model,
    feeds: Any = None,
    /,
    *,
    outputs: Sequence[str] | None = None,
    threads: int = 0,
    optimise: bool = True,
    **values: Any,
) -> dict[str, np.ndarray]:
    """Return outputs by name, in the model's order or as `outputs` names them.

    Arguments:
        model: a model, its bytes or its file.
        feeds: values by input, or the value of the first input, whatever it is called.
        outputs: which to compute; None for all.
        threads: how many the session computes on; 0 for one per core.
        optimise: whether ONNX Runtime may rewrite the graph.
        values: further inputs by name.
    """
    opened = session(model, threads=threads, optimise=optimise)
    if feeds is not None and not isinstance(feeds, Mapping):
        feeds = {opened.get_inputs()[0].name: feeds}
    arrays = {name: np.asarray(value) for name, value in {**(feeds or {}), **values}.items()}
    names = [output.name for output in opened.get_outputs()] if outputs is None else list(outputs)
    return dict(zip(names, opened.run(names, arrays), strict=True))
