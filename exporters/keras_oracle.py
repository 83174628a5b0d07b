"""TensorFlow's own numbers for a Keras model: scores, layer values, GradientTape's gradients at those values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from onnxcam.errors import LayerError, ModelError
from onnxcam.exporters import task_scalars
from onnxcam.exporters.keras_capture import ending, quiet, tapped, trace
from onnxcam.exporters.keras_module import Target, Watched, import_tensorflow, tensors
from onnxcam.exporters.keras_weights import freeze, without_content
from onnxcam.targets.readout import Readout
from onnxcam.targets.tasks import Detect, Embed


class _Kind(NamedTuple):
    """The form in which targets are handed to TensorFlow."""

    rank: int
    dtype: Any


_CLASSES, _SUM, _PRODUCT, _COSINE = _Kind(1, np.int64), _Kind(2, np.float64), _Kind(2, np.int64), _Kind(2, np.float32)


def _kind(readout: Readout) -> _Kind:
    """The form of the targets of a task, see `task_scalars.draw`."""
    if readout.task is None:
        return _CLASSES
    if isinstance(readout.task, Detect):
        return _PRODUCT
    return _COSINE if isinstance(readout.task, Embed) else _SUM


def _numbers(target: np.ndarray | task_scalars.Target) -> np.ndarray:
    """A target as an array."""
    match target:
        case task_scalars.Sum(weights):
            return weights
        case task_scalars.Product(columns):
            return columns
        case task_scalars.Cosine(reference):
            return reference
        case _:
            return target


class Evaluation:
    """One batch through the model: a `parity.Reference`."""

    def __init__(self, outputs: list[np.ndarray], scores: np.ndarray, activations: list[np.ndarray], rest: Any) -> None:
        self.outputs, self.scores, self.activations = outputs, scores, activations
        self._gradients = rest

    def gradients(self, targets: np.ndarray | task_scalars.Target) -> list[np.ndarray]:
        """d score[n, targets[n]] / d value, per target layer; for a binary logit minus that at class 0.

        Of another task than classification d scalar / d value.
        """
        gradients: list[np.ndarray] = self._gradients(_numbers(targets))
        return gradients


class KerasOracle:
    """A `parity.Oracle`: the model under GradientTape in float32, or its frozen graph in float64.

    Arguments:
        watched, targets: the model and its target layers.
        picture: a batch of the right shape and dtype.
        outputs: how many output tensors the model has.
        places: which of them hold the scores: one of a classifier, of another task those that are its columns.
        readout: the meaning of the scores.
        stepped_over: whether a Softmax or Sigmoid ends the model and its input is meant.
    """

    def __init__(
        self,
        watched: Watched,
        targets: Sequence[Target],
        picture: np.ndarray,
        *,
        outputs: int,
        places: Sequence[int],
        readout: Readout,
        stepped_over: bool,
    ) -> None:
        self._watched, self._targets, self._picture, self._outputs = watched, list(targets), picture, outputs
        self._places, self._readout, self._stepped_over = list(places), readout, stepped_over
        self._kind = _kind(readout)
        self._single: Any = None
        self._double: Any = None

    def __call__(self, batch: np.ndarray, double: bool) -> Evaluation | None:
        tensorflow = import_tensorflow()
        if not double:
            self._single = self._single or self._under_tape()
            function = self._single
        else:
            try:
                self._double = self._double or self._frozen_in_float64()
            except Exception:  # an operator that has no float64 form
                return None
            function = self._double
            if np.issubdtype(batch.dtype, np.floating):
                batch = batch.astype(np.float64)

        def run(targets: np.ndarray) -> list[np.ndarray]:
            with tensorflow.device("/CPU:0"):
                return [
                    np.asarray(array) for array in function(tensorflow.constant(batch), tensorflow.constant(targets))
                ]

        count, outputs = len(self._targets), self._outputs
        try:
            arrays = run(np.zeros((len(batch), *[1] * (self._kind.rank - 1)), self._kind.dtype))
        except Exception:
            if double:
                return None
            raise
        scores = arrays[outputs]
        values = arrays[outputs + 1 : outputs + 1 + count]
        return Evaluation(
            arrays[:outputs],
            scores.reshape(len(scores), -1),
            values,
            lambda targets: run(targets)[outputs + 1 + count :],
        )

    def _under_tape(self) -> Any:
        tensorflow = import_tensorflow()

        def evaluate(batch: Any, targets: Any) -> list[Any]:
            layers: dict[int, Any] = {}
            with tensorflow.GradientTape() as tape:

                def tap(place: int, value: Any) -> Any:
                    tape.watch(value)
                    layers[place] = value
                    return value

                outputs = tensors(tapped(self._watched, self._targets, tap)(batch))
                scores = self._scores(outputs)
                total = self._total(scores, targets)
            values = [layers[place] for place in range(len(self._targets))]
            return [*outputs, scores, *values, *_require_all(tape.gradient(total, values))]

        with quiet():
            return self._traced(evaluate)

    def _traced(self, evaluate: Any) -> Any:
        tensorflow = import_tensorflow()
        signature = [
            tensorflow.TensorSpec((None, *self._picture.shape[1:]), self._picture.dtype),
            tensorflow.TensorSpec((None,) * self._kind.rank, self._kind.dtype),
        ]
        reason: Exception | None = None
        for autograph in (False, True):
            try:
                return tensorflow.function(
                    evaluate, input_signature=signature, autograph=autograph
                ).get_concrete_function()
            except LayerError:
                raise
            except Exception as error:
                reason = reason or error
        assert reason is not None
        raise ModelError(f"the model cannot be differentiated by TensorFlow: {reason}") from reason

    def _scores(self, outputs: Sequence[Any]) -> Any:
        """What is differentiated, `[N, K]`, from the output tensors."""
        tensorflow = import_tensorflow()
        if self._readout.task is None:
            return self._logits(outputs[self._places[0]])
        parts = [outputs[place] for place in self._places]
        dtype = next(part.dtype for part in parts if part.dtype.is_floating)
        flat = [tensorflow.reshape(part, (tensorflow.shape(part)[0], -1)) for part in parts]
        return tensorflow.concat([tensorflow.cast(part, dtype) for part in flat], axis=1)

    def _logits(self, tensor: Any) -> Any:
        readout, tensorflow = self._readout, import_tensorflow()
        end = ending(tensor) if self._stepped_over and not (readout.logarithmic or readout.numeric) else None
        scores = tensor if end is None else end[1]
        if readout.logarithmic or (
            end is None and self._stepped_over and readout.probabilities_output and not readout.exclusive
        ):
            p = tensor / tensorflow.cast(readout.scale, tensor.dtype)
            smallest = tensor.dtype.as_numpy_dtype(np.finfo(tensor.dtype.as_numpy_dtype).tiny)
            scores = tensorflow.math.log(tensorflow.maximum(p, smallest))
            if not readout.logarithmic:
                scores -= tensorflow.math.log(tensorflow.maximum(1 - p, smallest))
        rows = tensorflow.shape(scores)[0]
        return tensorflow.reshape(scores, (rows, -1))

    def _total(self, scores: Any, targets: Any) -> Any:
        tensorflow = import_tensorflow()
        if self._kind == _SUM:
            return tensorflow.reduce_sum(scores * tensorflow.cast(targets, scores.dtype))
        if self._kind == _PRODUCT:
            factors = tensorflow.gather(scores, targets, axis=1, batch_dims=1)
            return tensorflow.reduce_sum(tensorflow.reduce_prod(factors, axis=1))
        if self._kind == _COSINE:
            reference = tensorflow.cast(targets, scores.dtype)
            lengths = tensorflow.norm(scores, axis=1) * tensorflow.norm(reference, axis=1)
            smallest = tensorflow.cast(1e-12, scores.dtype)  # of a reference that is zero the gradient is not read
            dot = tensorflow.reduce_sum(scores * reference, axis=1)
            return tensorflow.reduce_sum(dot / tensorflow.maximum(lengths, smallest))
        if self._readout.signed:
            signs = tensorflow.cast(2 * targets - 1, scores.dtype)
            return tensorflow.reduce_sum(scores[:, 0] * signs)
        return tensorflow.reduce_sum(tensorflow.gather(scores, targets, axis=1, batch_dims=1))

    def _frozen_in_float64(self) -> Any:
        """The model's graph with float64 in place of float32.

        Its weights are arguments: as constants, TensorFlow holds them ten times while it optimises the graph.
        """
        tensorflow = import_tensorflow()
        with quiet():
            concrete = trace(self._watched, self._picture, self._targets).get_concrete_function()
            frozen, weights = freeze(concrete)
        graph = frozen.graph.as_graph_def()
        inputs = [tensor.name for tensor in frozen.inputs]
        returned = [tensor.name for tensor in frozen.outputs]
        count = len(returned) - len(self._targets)
        without_content(graph, weights, "Placeholder")
        for function in (graph.node, *(f.node_def for f in graph.library.function)):
            for node in function:
                _widen(node)
        constants = {f"{name}:0": tensorflow.constant(array, tensorflow.float64) for name, array in weights.items()}
        del weights

        def evaluate(batch: Any, targets: Any, *arguments: Any) -> list[Any]:
            results = tensorflow.graph_util.import_graph_def(
                graph,
                input_map={inputs[0]: batch, **dict(zip(constants, arguments, strict=True))},
                return_elements=returned,
                name="",
            )
            # the function's outputs are copies off the path to the scores: their inputs are on it
            values = [tensor.op.inputs[0] if tensor.op.type == "Identity" else tensor for tensor in results[count:]]
            scores = self._scores(results[:count])
            gradients = tensorflow.gradients(self._total(scores, targets), values)
            return [*results[:count], scores, *values, *_require_all(gradients)]

        kind = np.float64 if np.issubdtype(self._picture.dtype, np.floating) else self._picture.dtype
        signature = [
            tensorflow.TensorSpec((None, *self._picture.shape[1:]), kind),
            tensorflow.TensorSpec((None,) * self._kind.rank, self._kind.dtype),
            *(tensorflow.TensorSpec(weight.shape, weight.dtype) for weight in constants.values()),
        ]
        function = tensorflow.compat.v1.wrap_function(evaluate, signature)
        return lambda batch, targets: function(batch, targets, *constants.values())


def _widen(node: Any) -> None:
    """Change a node of a graph definition from float32 to float64."""
    tensorflow = import_tensorflow()
    single, double = tensorflow.float32.as_datatype_enum, tensorflow.float64.as_datatype_enum
    # a custom gradient (swish has one) refers to float32 tensors; without it the operators' own gradients are used
    node.attr.pop("_gradient_op_type", None)
    for value in node.attr.values():
        if value.HasField("type") and value.type == single:
            value.type = double
        if value.HasField("tensor") and value.tensor.dtype == single:
            array = tensorflow.make_ndarray(value.tensor).astype(np.float64)
            value.tensor.CopyFrom(tensorflow.make_tensor_proto(array, shape=array.shape))
        for place, kind in enumerate(value.list.type):
            if kind == single:
                value.list.type[place] = double


def _require_all(gradients: Sequence[Any]) -> list[Any]:
    """The gradients, none of which may be missing.

    Raises:
        LayerError: a score does not depend on a layer.
    """
    if any(gradient is None for gradient in gradients):
        raise LayerError("the scores do not depend on the target layer; choose one between picture and scores")
    return list(gradients)
