"""Run a plain model with some of its values exposed, and count what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcam import runtime
from onnxcam.errors import ModelError
from onnxcam.graph import edit
from onnxcam.graph.load import serialize
from onnxcam.graph.view import Graph
from onnxcam.runtime.rows import like


class Runner:
    """One session of a model, on the CPU.

    Arguments:
        graph: a normalised model; it is the same again afterwards.
        picture: its input.
        values: what every run returns, outputs or values inside.

    Attributes:
        loads, passes: sessions opened, and rows that were run so far, those of failed runs too.

    Raises:
        ModelError: ONNX Runtime refuses the model. RuntimeUnavailable: there is no ONNX Runtime.
    """

    def __init__(self, graph: Graph, picture: str, values: Sequence[str]) -> None:
        self._feed, self._values = picture, list(dict.fromkeys(values))
        self._dtype = _numpy_type(graph, picture)
        self.loads = self.passes = 0
        options = runtime.options.in_turn(single_use=True)
        # the model as it stands, without fusions that round otherwise, and quickly loaded
        options.log_severity_level = 4  # a model that fails is reported by what could not be measured
        options.graph_optimization_level = runtime.import_onnxruntime().GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session: Any = runtime.open_session(_exposing(graph, self._values), [runtime.CPU], options)
        self.loads += 1

    def run(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """Run pictures in the model's own layout, in one batch; return the values by name.

        Raises:
            ModelError: the model fails, or does not return the values of as many rows.
        """
        self.passes += len(pictures)
        outputs = runtime.run(self._session, self._values, {self._feed: self.typed(pictures)})
        for name, value in outputs.items():
            if value.ndim == 0 or len(value) % len(pictures):
                raise ModelError(f"{name!r} has shape {list(value.shape)} for {len(pictures)} pictures")
        return outputs

    def typed(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures in the model's input type."""
        return np.ascontiguousarray(like(pictures, self._dtype).astype(self._dtype, copy=False))


def _exposing(graph: Graph, values: Sequence[str]) -> Any:
    """Serialize a model with further outputs, without a copy of its weights in between."""
    outputs = graph.model.graph.output
    present = {output.name for output in outputs}
    added = [edit.info(value, graph.dtype(value), graph.shape(value)) for value in values if value not in present]
    outputs.extend(added)
    try:
        return serialize(graph.model)
    finally:
        del outputs[len(outputs) - len(added) :]


def _numpy_type(graph: Graph, value: str) -> np.dtype[Any]:
    import onnx

    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(graph.dtype(value)))
