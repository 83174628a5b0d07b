"""From a Keras model to an explainable ONNX file, its gradients checked against TensorFlow's GradientTape.

    manifest = onnxcam.exporters.keras.export(model, "model.onnx", layers=["efficientnetb0/top_conv"])

As a program, `python exporters/keras.py classifier.keras -o classifier.onnx` does the same from a file or a name.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # this file's own folder comes first on the path then, and there it is what `keras` finds
    sys.path[:] = sys.path[1:]

import argparse
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxcam import image
from onnxcam.errors import LayerError, ModelError, OnnxcamError, OutputError, listing
from onnxcam.exporters import keras_capture, keras_layers, keras_oracle, parity
from onnxcam.exporters.keras_module import Call, Target, Watched, import_tensorflow, tensors
from onnxcam.exporters.outputs import choose
from onnxcam.graph import edit
from onnxcam.graph.layers import Layer
from onnxcam.graph.load import save
from onnxcam.graph.shape_inference import describe
from onnxcam.network import gate as gates
from onnxcam.network import manifest
from onnxcam.network.explainable import augment
from onnxcam.network.manifest import Manifest
from onnxcam.targets.readout import Readout

AGAINST = "TensorFlow GradientTape"
DEFAULT_SIDE = 224
_ENDED = {"softmax": "probabilities", "sigmoid": "probabilities", "log_softmax": "log_probabilities"}
# layers that leave a picture's numbers as they are
_GEOMETRY = {"InputLayer", "Resizing", "CenterCrop", "ZeroPadding2D", "Cropping2D", "Permute", "Reshape"}

log = logging.getLogger(__name__)


def export(
    model: Any,
    path: str | os.PathLike[str] | None,
    *,
    layers: Sequence[Any] | str | None = None,
    labels: Sequence[str] | None = None,
    preprocess: Any = None,
    methods: Sequence[str] = ("gradcam",),
    target: str | int = "optional",
    opset: int | None = None,
    verify: bool | int = True,
    scores: str | None = None,
    outputs: str = "all",
    gate: str | None = None,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
    input_size: int | Sequence[int] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Manifest | onnx.ModelProto:
    """Export a Keras classifier as an explainable ONNX file.

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
        methods: CAM methods whose heatmaps the file computes.
        target: `optional`, `required`, or the one class the file explains.
        opset: 18 to 21; 18 by default, the newest tf2onnx writes.
        verify: compare with GradientTape on 4 random samples, on that many, or (False) not at all.
        scores: name of the output with the class scores, where the model returns several candidates.
        outputs: `all`, or `heatmap` to leave activations and gradients out of the file.
        gate: compute gradients and heatmaps only where a prediction meets this, such as `confidence < 0.6`.
        grid, prefix_tokens: rows and columns of the patches in layers of tokens, and how many tokens come before them,
            where the graph does not tell.
        input_size: n, (h, w) or (c, h, w) of the picture, where the model leaves it open; it becomes fixed.
        origin: more entries for the manifest's `source`, such as `name`.

    Returns:
        the manifest; with `path=None` the `ModelProto`, which holds it.

    Raises:
        LayerError: an unknown or ambiguous layer, or one without positions.
        VerificationError: scores, activations or gradients differ from TensorFlow's by more than the tolerance: 1e-3,
            or three times TensorFlow's own float32 error. Nothing is written then.
        ModelError: not a Keras classifier of one picture, or it cannot be exported.
        DependencyError: TensorFlow or tf2onnx is missing.
        OutputError: the file cannot be written.
    """
    samples = parity.samples(verify)
    gates.parse(gate or "", labels)  # told now, not after the export
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {Path(path).absolute().parent}; make it first")
    import_tensorflow()
    watched = Watched(model)
    shape, dtype = _input(model, input_size)
    with keras_capture.quiet(), _single_precision(watched):
        picture = _example(shape, dtype, None)
        calls, returned = watched.calls(picture)
        spec = _preprocess(preprocess, calls, watched, shape)
        picture = _example(shape, dtype, spec)
        names, place = _outputs(model, returned, picture, scores)
        if layers is None:
            targets, captured = keras_layers.default(watched, calls, picture, names, place, opset)
        else:
            targets = [watched.resolve(layer, calls) for layer in _listed(layers)]
            captured = keras_capture.capture(watched, picture, targets, names, opset)
        captured = _by_meaning(captured, place)
        source = _source(watched, captured, origin)

        def explain(part: str, gate: str | None) -> onnx.ModelProto:
            return augment(
                captured.model,
                [_layer(*pair) for pair in zip(targets, captured.values, strict=True)],
                methods,
                target,
                scores=captured.outputs[place],
                outputs=part,
                labels=labels,
                preprocess=spec,
                origin=source,
                gate=gate,
                grid=grid,
                prefix_tokens=prefix_tokens,
            )

        explained = explain("all", None)
        held = manifest.read(explained)
        assert held is not None
        if samples:
            oracle = keras_oracle.KerasOracle(
                watched,
                targets,
                picture,
                outputs=len(names),
                place=place,
                readout=Readout.from_manifest(held["scores"]),
                stepped_over=held["scores"]["name"] != captured.outputs[place],
            )
            held["parity"] = parity.verify(explained, held, oracle, parity.draw(picture, samples), AGAINST)
    if outputs != "all" or gate:
        record = held.get("parity")
        explained = explain(outputs, gate)
        held = manifest.read(explained)
        assert held is not None
        held["parity"] = record
    manifest.write(explained, held)
    if path is None:
        return explained
    save(explained, path)
    return held


def list_layers(model: Any, *, input_size: int | Sequence[int] | None = None) -> list[Layer]:
    """Candidate target layers of a Keras classifier in the order they are called; exactly one is the default.

    Takes as long as an export without verification, since the default is found in the exported graph.

    Raises:
        ModelError: not a Keras classifier of one picture.
    """
    import_tensorflow()
    watched = Watched(model)
    shape, dtype = _input(model, input_size)
    with keras_capture.quiet(), _single_precision(watched):
        picture = _example(shape, dtype, None)
        calls, returned = watched.calls(picture)
        names, place = _outputs(model, returned, picture, None)
        (chosen,), captured = keras_layers.default(watched, calls, picture, names, place, None)
    found = [keras_layers.target_of(call) for call in keras_layers.candidates(calls, chosen)]
    if all(target.path != chosen.path for target in found):
        found.append(chosen)
    tokens = keras_layers.grid(captured, chosen, captured.values[0]) if len(chosen.shape) == 3 else (None, 0)
    return [
        Layer(
            target.name,
            target.path,
            layout="NHWC" if len(target.shape) == 4 else "NTC",
            shape=(keras_capture.BATCH, *target.shape[1:]),
            grid=(target.shape[1], target.shape[2]) if len(target.shape) == 4 else tokens[0],
            prefix_tokens=0 if len(target.shape) == 4 else tokens[1],
            default=target.path == chosen.path,
        )
        for target in found
    ]


def _listed(layers: Any) -> list[Any]:
    listed = list(layers) if isinstance(layers, (list, tuple)) else [layers]
    if not listed:
        raise LayerError("`layers` is empty; name at least one target layer, or pass None for the default")
    return listed


def _layer(target: Target, value: str) -> Layer:
    layout = "NHWC" if len(target.shape) == 4 else None
    return Layer(target.name, value, layout=layout, shape=(keras_capture.BATCH, *target.shape[1:]))


def _input(model: Any, size: int | Sequence[int] | None) -> tuple[tuple[int, int, int], np.dtype]:
    """Height, width and channels of the picture, and its dtype.

    Raises:
        ModelError: several inputs, no picture, or a size that contradicts the model's.
    """
    declared, dtype = _declared(model)
    given = [size, size] if isinstance(size, int) else list(size or ())
    if len(given) == 3:
        given = [*given[1:], given[0]]
    elif len(given) not in (0, 2):
        raise ModelError(f"got {given} as the input size; expected n, (h, w) or (c, h, w)")
    if declared is None:
        if not given:
            raise ModelError(
                "the model was never built, so the size of its pictures is unknown; call it once on a picture batch, "
                "or give the size (input_size=, --input-size)"
            )
        declared = (None, None, None)
    if len(declared) != 3:
        raise ModelError(
            f"the model's input is {describe(('N', *declared))}; expected a batch of pictures [N, H, W, C]"
        )
    height, width, channels = declared
    if given and any(own is not None and own != wanted for own, wanted in zip(declared, given, strict=False)):
        raise ModelError(f"the input size {given} was asked for, but the model takes {[height, width, channels]}")
    if not given and (height is None or width is None):
        log.warning("the model leaves the size of its pictures open; %d × %d is taken", DEFAULT_SIDE, DEFAULT_SIDE)
        given = [DEFAULT_SIDE, DEFAULT_SIDE]
    height, width = (given[0], given[1]) if given else (height, width)
    channels = channels or (given[2] if len(given) == 3 else 3)
    assert height is not None and width is not None
    return (int(height), int(width), int(channels)), dtype


def _declared(model: Any) -> tuple[tuple[int | None, ...] | None, np.dtype]:
    """The dimensions the model declares for its one input, without the batch; None where it declares nothing."""
    try:
        inputs = tensors(model.inputs) if getattr(model, "inputs", None) is not None else []
    except (AttributeError, ValueError):
        inputs = []
    if len(inputs) > 1:
        told = ", ".join(f"{getattr(i, 'name', '?')!r} {['N', *i.shape[1:]]}" for i in inputs)
        raise ModelError(f"the model has {len(inputs)} inputs ({told}); expected exactly one, a batch of pictures")
    if inputs:
        kind = (
            np.dtype(getattr(inputs[0].dtype, "name", inputs[0].dtype)) if "float" not in str(inputs[0].dtype) else None
        )
        return tuple(inputs[0].shape[1:]), kind or np.dtype(np.float32)
    config = model.get_build_config() if getattr(model, "built", False) and hasattr(model, "get_build_config") else None
    shape = (config or {}).get("input_shape") or next(iter(((config or {}).get("shapes_dict") or {}).values()), None)
    if shape is None or not all(side is None or isinstance(side, int) for side in shape):
        return None, np.dtype(np.float32)
    return tuple(shape[1:]), np.dtype(np.float32)


def _example(shape: tuple[int, int, int], dtype: np.dtype, spec: Mapping[str, Any] | None) -> np.ndarray:
    """Two seeded noise pictures: prepared as the model expects them where that is known, else standard normal."""
    generator = np.random.default_rng(parity.SEED)
    if spec is None and np.issubdtype(dtype, np.floating):
        return generator.standard_normal((2, *shape)).astype(dtype)
    pixels = generator.integers(0, 256, (2, *shape)).astype(np.float64)
    known = spec or {}
    prepared = (pixels * known.get("scale", 1.0) - known.get("mean", 0.0)) / known.get("std", 1.0)
    return np.asarray(prepared).astype(dtype)


def _preprocess(
    asked: Any, calls: Sequence[Call], watched: Watched, shape: tuple[int, int, int]
) -> dict[str, Any] | None:
    """What is stored about preprocessing: what the caller says, or what the model's own first layers tell."""
    spec = asked if asked is not None else _own_scaling(watched, calls)
    if spec is None:
        return None
    return image.resolve(spec, ["N", *shape], layout="NHWC").to_dict()


def _own_scaling(watched: Watched, calls: Sequence[Call]) -> str | None:
    """`raw` or `0..1` where the model scales such pixels itself before anything else, None where it does not.

    Both Rescaling(1/255) and a Normalization whose mean is above 1 are made for pixels of 0 to 255.
    """
    for call in calls:
        kind = type(call.layer).__name__
        if not call.leaf or kind in _GEOMETRY or kind.startswith(("Random", "Dropout", "GaussianNoise")):
            continue
        if kind == "Rescaling":
            scale = float(np.max(np.asarray(call.layer.scale)))
            return "raw" if scale <= 0.05 else "0..1" if scale <= 4 else None
        if kind == "Normalization":
            mean = float(np.max(np.abs(np.asarray(call.layer.mean))))
            return "raw" if mean > 1 else "0..1" if mean > 0 else None
        break
    operations = getattr(watched.root, "operations", [])
    for operation in operations:
        kind = type(operation).__name__
        if kind in ("TrueDivide", "Divide", "Multiply") and not hasattr(operation, "get_weights"):
            return "raw"  # x / 127.5 - 1 and the like in a functional model, as preprocess_input writes it
        if kind not in _GEOMETRY and not kind.startswith("Random"):
            break
    return None


def _outputs(model: Any, returned: Any, picture: np.ndarray, asked: str | None) -> tuple[list[str], int]:
    """Names for the model's output tensors, and the place of the class scores among them."""
    found = tensors(returned)
    names = [str(key) for key in returned] if isinstance(returned, dict) else list(getattr(model, "output_names", []))
    if len(found) == 1 and not isinstance(returned, dict):
        names = ["output"]
    if len(names) != len(found) or len(set(names)) != len(names):
        names = ["output", *(f"output_{k}" for k in range(1, len(found)))][: len(found)]
    names = [f"output_{k}" if name in keras_capture.RESERVED else name for k, name in enumerate(names)]
    shapes = [tuple(tensor.shape) for tensor in found]
    floating = ["float" in str(tensor.dtype) for tensor in found]
    return names, choose(names, shapes, floating, len(picture), asked)


def _by_meaning(captured: keras_capture.Captured, place: int) -> keras_capture.Captured:
    """The scores called `logits`, or `probabilities` where a Softmax or Sigmoid ends the model."""
    name = captured.outputs[place]
    if name not in ("output", "logits"):
        return captured
    ended = captured.endings[place]
    rank = len(captured.model.graph.output[place].type.tensor_type.shape.dim)
    meaning = _ENDED[ended] if ended is not None else "logits" if rank == 2 else "scores"
    if meaning != name:
        used = {v for node in captured.model.graph.node for v in (*node.input, *node.output)}
        edit.rename(captured.model, {meaning: f"{meaning}_inner"} if meaning in used else {})
        edit.rename(captured.model, {name: meaning})
    names = [meaning if k == place else other for k, other in enumerate(captured.outputs)]
    values = [meaning if value == name else value for value in captured.values]
    return keras_capture.Captured(captured.model, values, names, captured.endings)


@contextmanager
def _single_precision(watched: Watched) -> Iterator[None]:
    """Mixed-precision layers compute in float32 meanwhile."""
    changed = []
    try:
        for layer in {id(held): held for path in watched.layers.values() for held in path}.values():
            if str(getattr(layer, "compute_dtype", "float32")) in ("float16", "bfloat16"):
                changed.append((layer, layer.dtype_policy))
                layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in changed:
            layer.dtype_policy = policy


def _source(watched: Watched, captured: keras_capture.Captured, origin: Mapping[str, Any] | None) -> dict[str, Any]:
    """The manifest's `source` entry; `sha256` is that of the weights, values in order."""
    import tf2onnx

    tensorflow = import_tensorflow()
    digest = hashlib.sha256()
    for variable in watched.root.weights:
        array = np.ascontiguousarray(np.asarray(variable))
        digest.update(f"{array.dtype} {list(array.shape)}\n".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return {
        "framework": "keras",
        "name": str(watched.root.name),
        "opset": next(o.version for o in captured.model.opset_import if o.domain in ("", "ai.onnx")),
        "exporter": f"tf2onnx {tf2onnx.__version__}",
        "tensorflow": str(tensorflow.__version__),
        "sha256": digest.hexdigest(),
        **(origin or {}),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Export from the command line; 0 when done, 3 for a model that cannot be exported or trusted."""
    from onnxcam.exporters import keras_source

    parser = argparse.ArgumentParser(description="Export a Keras classifier as an explainable ONNX file.")
    parser.add_argument("source", help="a .keras or .h5 file, keras:NAME, or package.module:callable")
    parser.add_argument("-o", "--output", required=True, help="the .onnx file to write")
    parser.add_argument("--weights", help="a weights file, 'none' or 'imagenet'")
    parser.add_argument("--layer", action="append", help="target layer (repeatable)")
    parser.add_argument("--trust-model", action="store_true", help="allow loading to run code from the file")
    given = parser.parse_args(arguments)
    try:
        loaded = keras_source.load(given.source, weights=given.weights, trust=given.trust_model)
        held = export(
            loaded.model,
            given.output,
            layers=given.layer,
            labels=loaded.info.labels,
            preprocess=loaded.info.preprocess,
            origin={"name": loaded.info.name},
        )
    except OnnxcamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    assert isinstance(held, dict)
    print(f"{given.output}: layer {listing(e['name'] for e in held['layers'])}, parity {held['parity']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
