"""From a Keras model to an explainable ONNX file, its gradients checked against TensorFlow's GradientTape.

    manifest = onnxcam.exporters.keras.export(model, "model.onnx", layers=["efficientnetb0/top_conv"])

As a program, `python exporters/keras.py classifier.keras -o classifier.onnx` does the same from a file or a name.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # this file's own folder comes first on the path then, and there it is what `keras` finds
    sys.path[:] = sys.path[1:]

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from onnxcam import image
from onnxcam.exporters import export as exporting
from onnxcam.exporters import keras_capture, keras_input, keras_layers, keras_oracle, keras_source, program
from onnxcam.exporters import scores as class_scores
from onnxcam.exporters.export import Classifier, Loaded
from onnxcam.exporters.keras_module import Call, Target, Watched, import_tensorflow, tensors
from onnxcam.graph import edit
from onnxcam.graph.layers import Layer
from onnxcam.network.layout import Layout
from onnxcam.network.manifest import Manifest
from onnxcam.targets.readout import Readout
from onnxcam.targets.tasks import REGRESS

# names of an output by the operator that ends it
_MEANINGS = {"softmax": "probabilities", "sigmoid": "probabilities", "log_softmax": "log_probabilities"}


def export(
    model: Any,
    path: str | os.PathLike[str] | None,
    *,
    layers: Sequence[Any] | str | None = None,
    labels: Sequence[str] | None = None,
    preprocess: Any = None,
    methods: Sequence[str] | None = None,
    target: str | int = "optional",
    opset: int | None = None,
    verify: bool | int = True,
    scores: str | None = None,
    kind: str | None = None,
    task: str | None = None,
    boxes_output: str | None = None,
    outputs: str = "all",
    gate: str | None = None,
    portable: bool = False,
    pixels: bool = False,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
    input_size: int | Sequence[int] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Manifest | onnx.ModelProto:
    """Export a Keras classifier, or a model of another task, as an explainable ONNX file.

    The model is exported in inference mode, on the CPU and in float32 (a mixed-precision model as its float32 values),
    and is afterwards what it was. It must not be used from another thread meanwhile.

    Arguments:
        model: a Keras 3 or tf_keras model on TensorFlow: functional, Sequential, subclassed or nested.
        path: where to write; None to get the model instead.
        layers: target layers by Keras name or as layer objects; nested ones by path (`efficientnetb0/top_conv`) or,
            where that is unique, by the inner name alone; `name#k` is the k-th call of a layer called several times
            (without it: the last). None: for VGG16, ResNet50, EfficientNetB0 and MobileNetV2, nested too, what is usual
            there (`block5_conv3`, `conv5_block3_out`, `top_conv`, `Conv_1`); else the last convolution, followed
            through norm, activation and residual add, never through pooling; of a transformer the last layer whose
            patches still reach the scores.
        labels: class names by index.
        preprocess: how pictures become tensors: the manifest's form, a preset's name, or a JSON file. None: known where
            the model itself scales its pixels (Rescaling, Normalization), else left out of the file.
        methods: CAM methods whose heatmaps the file computes; None for Grad-CAM, of a detector
            LayerCAM, of a segmentation HiResCAM.
        target: `optional`, `required`, or the one class the file explains.
        opset: 18 to 21; 18 by default, the newest tf2onnx writes.
        verify: compare with GradientTape on 4 random samples, on that many, or (False) not at all.
        scores: name of the output with the class scores, where the model returns several candidates.
        kind: what the scores are: `logits`, `probabilities`, `binary_logit`, `multilabel` (a sigmoid outside the
            model), or `regression`; None to find out.
        task: `detect`, `segment`, `embed` or `regress`, of a model that is no classifier; None to find out from what
            its outputs measure. GradientTape is then compared at a box's score, the sum of a class over a region, the
            cosine with an embedding, or a value.
        boxes_output: the output with the boxes of a detector, where the model has several candidates.
        outputs: `all`, or `heatmap` to leave activations and gradients out of the file.
        gate: compute gradients and heatmaps only where a prediction meets this, such as `confidence < 0.6`.
        portable: as of `onnxcam.augment`: a file for more runtimes, with one `target` for all rows.
        pixels: as of `onnxcam.augment`: a file that takes the picture itself and returns an overlay of its size.
        grid, prefix_tokens: rows and columns of the patches in layers of tokens, and how many tokens come before them,
            where the graph does not tell.
        input_size: n, (h, w) or (c, h, w) of the picture, where the model leaves it open; it becomes fixed.
        origin: more entries for the manifest's `source`, such as `name`.

    Returns:
        the manifest; with `path=None` the `ModelProto`, which holds it.

    Raises:
        LayerError: an unknown or ambiguous layer, or one without positions.
        VerificationError: scores, activations or gradients differ from TensorFlow's by more than the tolerance: 1e-3,
            or three times TensorFlow's own float32 error or the rounding of small probabilities. Nothing is written
            then.
        ModelError: not a Keras model of one picture, nothing in it can be explained, or it cannot be exported.
        DependencyError: TensorFlow or tf2onnx is missing.
        OutputError: the file cannot be written.
    """
    return exporting.export(
        Keras(model, input_size),
        path,
        layers=layers,
        labels=labels,
        preprocess=preprocess,
        methods=methods,
        target=target,
        opset=opset,
        verify=verify,
        scores=scores,
        kind=kind,
        task=task,
        boxes_output=boxes_output,
        outputs=outputs,
        gate=gate,
        portable=portable,
        pixels=pixels,
        grid=grid,
        prefix_tokens=prefix_tokens,
        origin=origin,
    )


def list_layers(model: Any, *, input_size: int | Sequence[int] | None = None) -> list[Layer]:
    """Candidate target layers of a Keras model in the order they are called; exactly one is the default.

    Takes as long as an export without verification, since the default is found in the exported graph.

    Raises:
        ModelError: not a Keras model of one picture.
    """
    keras = Keras(model, input_size)
    with keras.inference():
        keras.example(None)
        calls, default, captured = keras.default_layer()
    targets = [keras_layers.target_of(call) for call in keras_layers.candidates(calls, default)]
    if all(target.path != default.path for target in targets):
        targets.append(default)
    tokens = keras_layers.grid(captured, default, captured.values[0]) if len(default.shape) == 3 else (None, 0)
    return [
        Layer(
            target.name,
            target.path,
            layout=target.layout.name if len(target.shape) == 4 else "NTC",
            shape=(keras_capture.BATCH, *target.shape[1:]),
            grid=target.layout.size(target.shape) if len(target.shape) == 4 else tokens[0],
            prefix_tokens=0 if len(target.shape) == 4 else tokens[1],
            default=target.path == default.path,
        )
        for target in targets
    ]


class Keras:
    """A Keras model to be exported: a `Framework`.

    Arguments:
        model: a Keras 3 or tf_keras model.
        input_size: n, (h, w) or (c, h, w) of the picture, where the model leaves it open.
    """

    autograd = "TensorFlow GradientTape"

    _watched: Watched
    _shape: tuple[int, int, int]
    _dtype: np.dtype
    _layout: Layout
    _picture: np.ndarray
    _calls: list[Call]
    _returned: Any
    _targets: list[Target]
    _captured: keras_capture.Captured
    _place: int | None

    def __init__(self, model: Any, input_size: int | Sequence[int] | None = None) -> None:
        self._model, self._size = model, input_size

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Hold the model in float32; it is called in inference mode, on the CPU."""
        import_tensorflow()
        self._watched = Watched(self._model)
        self._shape, self._dtype, self._layout = keras_input.shape_and_type(self._watched, self._size)
        with keras_capture.quiet(), _single_precision(self._watched):
            yield

    def example(self, preprocess: Any) -> tuple[np.ndarray, dict[str, Any] | None]:
        """Two seeded noise pictures, and the preprocessing: the given one, or what the model's first layers tell."""
        self._calls, self._returned = self._watched.calls(keras_input.example(self._shape, self._dtype, None))
        spec = preprocess if preprocess is not None else keras_input.scaling(self._watched, self._calls)
        if spec is not None:
            spec = image.resolve(spec, ["N", *self._shape], layout=self._layout.name).to_dict()
        self._picture = keras_input.example(self._shape, self._dtype, spec, self._layout)
        if spec is not None:
            # the default layer is found by comparing the layers' values with the graph's for this picture
            self._calls, self._returned = self._watched.calls(self._picture)
        return self._picture, spec

    def capture(
        self,
        layers: Sequence[Any] | None,
        scores: str | None,
        opset: int | None,
        task: str | None,
        boxes_output: str | None = None,
    ) -> Classifier:
        """Write the model as ONNX.

        Raises:
            LayerError: a layer that cannot be a target.
            ModelError: the model returns nothing that could be explained, or cannot be written.
        """
        names, self._place = self._outputs(scores, task)
        if layers is not None:
            self._targets = [self._watched.resolve(layer, self._calls) for layer in layers]
            captured = keras_capture.capture(self._watched, self._picture, self._targets, names, opset)
        else:
            self._targets, captured = self._default(names, opset, scores, task, boxes_output)
        self._captured = captured if self._place is None else _by_meaning(captured, self._place)
        pairs = zip(self._targets, self._captured.values, strict=True)
        # the levels of a pyramid, and the one of another task, are what they are
        default = layers is None and self._place is not None
        targets = [replace(_layer(*pair), default=default) for pair in pairs]
        value = scores if self._place is None else self._captured.outputs[self._place]
        return Classifier(self._captured.model, value, targets, self._place is None)

    def _default(
        self,
        names: list[str],
        opset: int | None,
        scores: str | None = None,
        task: str | None = None,
        boxes_output: str | None = None,
    ) -> tuple[list[Target], keras_capture.Captured]:
        """The default layers, and the model captured with them."""
        if self._place is not None:
            return keras_layers.default(self._watched, self._calls, self._picture, names, self._place, opset)
        return keras_layers.of_task(
            self._watched, self._calls, self._picture, names, opset,
            scores=scores, task=task, boxes_output=boxes_output,
        )  # fmt: skip

    def default_layer(self) -> tuple[list[Call], Target, keras_capture.Captured]:
        """The layer calls, the default layer, and the model captured with it."""
        names, self._place = self._outputs(None, None)
        targets, captured = self._default(names, None)
        return self._calls, targets[-1], replace(captured, values=captured.values[-1:])

    def _outputs(self, name: str | None, task: str | None) -> tuple[list[str], int | None]:
        """Names for the model's output tensors, and the position of the class scores among them, None of a model of
        another task."""
        outputs, returned = tensors(self._returned), self._returned
        names = list(getattr(self._model, "output_names", []))
        if isinstance(returned, dict):
            names = [str(key) for key in returned]
        elif len(outputs) == 1:
            names = ["output"]
        if len(names) != len(outputs) or len(set(names)) != len(names):
            names = ["output", *(f"output_{k}" for k in range(1, len(outputs)))][: len(outputs)]
        names = [f"output_{k}" if name in keras_capture.RESERVED else name for k, name in enumerate(names)]
        shapes = [tuple(tensor.shape) for tensor in outputs]
        floating = ["float" in str(tensor.dtype) for tensor in outputs]
        rows = len(self._picture)
        if task is None:
            return names, class_scores.search(names, shapes, floating, rows, name)
        if name is not None:
            class_scores.position(names, shapes, floating, rows, name)
        quantities = class_scores.values(shapes, floating, rows) if name is None else [names.index(name)]
        # one quantity is the score of a readout without a task
        single = task == REGRESS and [int(np.prod(shapes[k])) for k in quantities] == [rows]
        return names, quantities[0] if single else None

    def source(self, classifier: Classifier) -> dict[str, Any]:
        """The manifest's `source` entry; `sha256` is that of the weights, values in order."""
        import tf2onnx

        digest = hashlib.sha256()
        for variable in self._watched.root.weights:
            array = np.ascontiguousarray(np.asarray(variable))
            digest.update(f"{array.dtype} {list(array.shape)}\n".encode())
            digest.update(array.view(np.uint8).data if array.size else b"")
        return {
            "framework": "keras",
            "name": str(self._watched.root.name),
            "opset": classifier.opset,
            "exporter": f"tf2onnx {tf2onnx.__version__}",
            "tensorflow": str(import_tensorflow().__version__),
            "sha256": digest.hexdigest(),
        }

    def default_name(self, explainable: onnx.ModelProto, manifest: Manifest) -> str:
        """Unused: Keras' default layer is chosen among its own layers when the model is captured."""
        return self._targets[0].name

    def oracle(self, manifest: Manifest) -> keras_oracle.KerasOracle:
        """GradientTape on the model itself.

        Raises:
            ModelError: the model does not return what is explained.
        """
        places = class_scores.columns(manifest, self._captured.outputs, self._place, "GradientTape")
        return keras_oracle.KerasOracle(
            self._watched,
            self._targets,
            self._picture,
            outputs=len(self._captured.outputs),
            places=places,
            readout=Readout.from_manifest(manifest["scores"]),
            stepped_over=manifest["scores"]["name"] != self._captured.outputs[places[0]],
        )


def _layer(target: Target, value: str) -> Layer:
    layout = target.layout.name if len(target.shape) == 4 else None
    return Layer(target.name, value, layout=layout, shape=(keras_capture.BATCH, *target.shape[1:]))


def _by_meaning(captured: keras_capture.Captured, place: int) -> keras_capture.Captured:
    """The scores called `logits`, or `probabilities` where a Softmax or Sigmoid ends the model."""
    name = captured.outputs[place]
    if name not in ("output", "logits"):
        return captured
    ending = captured.endings[place]
    rank = len(captured.model.graph.output[place].type.tensor_type.shape.dim)
    meaning = _MEANINGS[ending] if ending is not None else "logits" if rank == 2 else "scores"
    if meaning != name:
        values = {v for node in captured.model.graph.node for v in (*node.input, *node.output)}
        edit.rename(captured.model, {meaning: f"{meaning}_inner"} if meaning in values else {})
        edit.rename(captured.model, {name: meaning})
    names = [meaning if k == place else other for k, other in enumerate(captured.outputs)]
    targets = [meaning if value == name else value for value in captured.values]
    return keras_capture.Captured(captured.model, targets, names, captured.endings)


@contextmanager
def _single_precision(watched: Watched) -> Iterator[None]:
    """Let mixed-precision layers compute in float32."""
    changed = []
    try:
        for layer in {id(layer): layer for layers in watched.layers.values() for layer in layers}.values():
            if str(getattr(layer, "compute_dtype", "float32")) in ("float16", "bfloat16"):
                changed.append((layer, layer.dtype_policy))
                layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in changed:
            layer.dtype_policy = policy


def load(
    source: str,
    *,
    weights: str | None = None,
    trust: bool = False,
    import_file: str | None = None,
    input_size: int | Sequence[int] | None = None,
    model: Any = None,
) -> Loaded:
    """Load a model from its name or file, ready for `onnxcam.exporters.export.export`.

    Arguments:
        source, weights, trust, import_file, input_size: as of `onnxcam.exporters.keras_source.load`.
        model: what calling a `package.module:callable` returned.
    """
    if model is None:
        network, info = keras_source.load(
            source, weights=weights, trust=trust, import_file=import_file, input_size=input_size
        )
    else:
        network, info = keras_source.from_object(model, source, weights)
    return Loaded(Keras(network, input_size), info)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export from the command line; 0 when done, 3 for a model that cannot be exported or trusted."""
    return program.run("Keras", "a .keras or .h5 file, keras:NAME, or package.module:callable", load, arguments)


if __name__ == "__main__":
    sys.exit(main())
