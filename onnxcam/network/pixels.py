"""A file that takes the picture itself: pixels in; predictions, heatmap and overlay of the picture's own size out.

Nodes before the model prepare the picture, nodes behind it draw the maps; the explainable model between them stays as
it is, and `unwrap` gives it back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnxcam import image
from onnxcam.errors import ModelError, PreprocessError
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.view import Graph
from onnxcam.network import manifest as manifests
from onnxcam.network import pixel_drawing as drawing
from onnxcam.network import pixel_resampling as resampling
from onnxcam.network.gate import emit_probabilities
from onnxcam.network.layout import Layout
from onnxcam.network.manifest import Manifest
from onnxcam.targets.readout import Readout

PIXELS, PREDICTIONS, TARGET_CLASS, PICTURE_HEATMAP, OVERLAY = (
    "pixels", "predictions", "target_class", "picture_heatmap", "overlay",
)  # fmt: skip
UNPREPARED = (
    "a file that takes pixels prepares the picture itself, and nothing says how; name the preprocessing: preprocess= "
    f"or --preprocess, one of {', '.join(image.candidates())}"
)
_INT64 = onnx.TensorProto.INT64


def require_wrappable(manifest: Manifest) -> image.Preprocess:
    """The preprocessing that a file of pixels would do.

    Raises:
        PreprocessError: the manifest has none, or one that a graph cannot do to a uint8 picture `[H, W, 3]`, or one
            that does not give the model's input size.
        ModelError: the model takes several pictures at a time, or its maps do not cover its input.
    """
    entry = manifest["input"]
    if not entry.get("preprocess"):
        raise PreprocessError(UNPREPARED)
    spec = image.resolve(entry["preprocess"], entry["shape"], layout=entry["layout"])
    resampling.require_expressible(spec)
    rows = entry["shape"][0]
    if isinstance(rows, int) and rows != 1:
        raise ModelError(
            f"the model takes {rows} pictures at a time, and a file of pixels one; export it without pixels"
        )
    size = Layout.of(entry).size(entry["shape"])
    output_size = spec.output_size or ("height", "width")
    if any(isinstance(side, int) and side != other for side, other in zip(size, output_size, strict=True)):
        raise PreprocessError(
            f"the preprocessing makes inputs of {' x '.join(map(str, output_size))} (height x width), and the "
            f"model takes {' x '.join(map(str, size))}; add a resize or crop of that size"
        )
    for layer in manifest["layers"]:
        if layer.get("window"):
            raise ModelError(
                f"the map of layer {layer['name']!r} covers only a part of the model's input, and a file of pixels "
                "does not draw such maps; export it without pixels, or choose another layer"
            )
    return spec


def wrap(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Make an explainable model take a uint8 picture `[H, W, 3]`, RGB and upright, of any size, in place.

    Its outputs stay, for one row, and these are added: `predictions`, float32 `[classes]`, probabilities (the value of
    a regression); `target_class`, int64 `[1]`, the class explained; for each heatmap `picture_heatmap`, float32
    `[H, W]` from 0 to 1, and `overlay`, uint8 `[H, W, 3]`, with the suffix of the heatmap's own name.

    Arguments:
        model: an explainable model.
        manifest: its manifest, to which `pixels` is added; it is not written to the model.

    Raises:
        PreprocessError, ModelError: as of `require_wrappable`.
    """
    spec = require_wrappable(manifest)
    graph, entry = Graph(model), manifest["input"]
    before = Builder(graph, "onnxcam.pixels")
    names = {name: _name(before, name) for name in (PIXELS, PREDICTIONS, TARGET_CLASS)}
    pixels = names[PIXELS]
    place = resampling.axes(before, spec, pixels)
    tensor = resampling.prepare(before, spec, pixels, place, entry["layout"], entry["dtype"])
    before.Identity(tensor, name=entry["name"])
    resized = next(name for node in before.nodes for name in node.output if name.endswith("/resized"))

    # a second builder, so that its nodes come behind the model's; it reads what the first one computed
    after = Builder(graph, "onnxcam.picture")
    canvas = drawing.canvas(after, pixels, place, cropped=spec.crop is not None)
    maps: list[dict[str, str]] = []
    for layer in manifest["layers"]:
        for method, heatmap in layer["heatmaps"].items():
            tag = heatmap.partition("/")[1] + heatmap.partition("/")[2]
            outputs = _name(after, PICTURE_HEATMAP + tag), _name(after, OVERLAY + tag)
            drawing.draw(after, canvas, heatmap, outputs)
            maps.append(
                {"layer": layer["name"], "method": method, "heatmap": heatmap}
                | {PICTURE_HEATMAP: outputs[0], OVERLAY: outputs[1]}
            )
    _predict(after, manifest, names)

    inputs = [pixels_info(pixels), *(i for i in model.graph.input if i.name != entry["name"])]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    nodes = list(model.graph.node)
    edit.replace_nodes(model, [*before.nodes, *nodes, *after.nodes])
    read = {name for node in (*before.nodes, *after.nodes) for name in node.input}
    model.graph.initializer.extend(one for one in (*before.initializers, *after.initializers) if one.name in read)
    readout = Readout.from_manifest(manifest["scores"])
    added = [
        edit.info(names[PREDICTIONS], onnx.TensorProto.FLOAT, [readout.size]),
        edit.info(names[TARGET_CLASS], _INT64, [1]),
    ]
    for one in maps:
        added.append(edit.info(one[PICTURE_HEATMAP], onnx.TensorProto.FLOAT, ["height", "width"]))
        added.append(edit.info(one[OVERLAY], onnx.TensorProto.UINT8, ["height", "width", 3]))
    model.graph.output.extend(added)
    manifest["pixels"] = {
        "name": pixels,
        "shape": ["height", "width", 3],
        "dtype": "uint8",
        "resized": resized,
        "predictions": names[PREDICTIONS],
        "target": names[TARGET_CLASS],
        "maps": maps,
    }


def pixels_info(name: str) -> onnx.ValueInfoProto:
    """The input of a file of pixels."""
    return edit.info(name, onnx.TensorProto.UINT8, ["height", "width", 3])


def _name(op: Builder, name: str) -> str:
    """A name, or one that begins with `onnxcam.` where the model has it already."""
    free = op.unique(name)
    return free if free == name else op.unique(f"onnxcam.{name}")


def _predict(op: Builder, manifest: Manifest, names: dict[str, str]) -> None:
    """Emit the probabilities and the class that is explained."""
    readout = Readout.from_manifest(manifest["scores"])
    op.dtype = onnx.TensorProto.FLOAT
    scores = op.cast(readout.value)
    values = scores if readout.numeric else emit_probabilities(op, scores, readout)
    op.Squeeze(values, [0], name=names[PREDICTIONS])
    target = manifest["target"]
    if target["mode"] == "constant":
        op.Identity([int(target["class"])], name=names[TARGET_CLASS])
        return
    if readout.signed:
        best = op.Squeeze(op.Cast(op.Greater(scores, 0.0), to=_INT64), [1])
    else:
        best = op.ArgMax(scores, axis=1, keepdims=0)
    first = op.Slice(target["name"], [0], [1])
    op.Where(op.Less(first, 0), best, first, name=names[TARGET_CLASS])


def unwrap(model: onnx.ModelProto) -> dict[str, Any] | None:
    """Give back the explainable model inside a file of pixels, in place; None, and nothing done, for any other.

    Returns:
        what the manifest said of the pixels.

    Raises:
        ModelError: the manifest names a value that the graph does not have.
    """
    manifest = manifests.read(model)
    if manifest is None or not manifest.get("pixels"):
        return None
    pixels: dict[str, Any] = manifest.pop("pixels")
    entry = manifest["input"]
    nodes = [node for node in model.graph.node if entry["name"] not in node.output]
    if len(nodes) == len(model.graph.node):
        raise ModelError(
            f"the manifest says that the file prepares the picture as {entry['name']!r}, which the graph does not "
            "compute; export the model again"
        )
    edit.replace_nodes(model, nodes)
    dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(entry["dtype"]))
    inputs = [edit.info(entry["name"], dtype, entry["shape"])]
    inputs += [i for i in model.graph.input if i.name != pixels["name"]]
    added = {pixels["predictions"], pixels["target"]}
    added |= {one[key] for one in pixels["maps"] for key in (PICTURE_HEATMAP, OVERLAY)}
    outputs = [o for o in model.graph.output if o.name not in added]
    infos = [v for v in model.graph.value_info if v.name != entry["name"]]
    for field, values in (
        (model.graph.input, inputs), (model.graph.output, outputs), (model.graph.value_info, infos),
    ):  # fmt: skip
        del field[:]
        field.extend(values)
    manifests.write(model, manifest)
    edit.prune(model)
    return pixels
