"""Shows that a change leaves the emitted graphs as they were, byte for byte, over many architectures.

    python tools/graphs.py sources SOURCES            # once: 56 classifiers as plain ONNX files, random weights
    python tools/graphs.py write SOURCES BEFORE       # in a checkout of the tree before
    python tools/graphs.py write SOURCES AFTER        # in this one
    python tools/graphs.py compare BEFORE AFTER       # exit status 1 and the first difference of each graph

Of each classifier, at its default layer and at a middle one: the explainable file, the model `onnxcam.gradient` makes,
and the head, the tail and the backward passes that explanations run on. `write` keeps a SHA-256 of every serialized
graph, and the graph as text without its weights. It runs on trees from commit 579ec6f on, whose names differ.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx

ROOT = Path(__file__).parent.parent
TORCHVISION = {
    "alexnet": 224, "convnext_tiny": 64, "densenet121": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64,
    "googlenet": 64, "inception_v3": 139, "maxvit_t": 224, "mnasnet0_5": 64, "mobilenet_v2": 64,
    "mobilenet_v3_small": 64, "regnet_x_400mf": 64, "regnet_y_400mf": 64, "resnet18": 64, "resnet50": 64,
    "resnext50_32x4d": 64, "shufflenet_v2_x0_5": 64, "squeezenet1_1": 64, "swin_t": 64, "swin_v2_t": 64,
    "vgg11_bn": 224,
}  # fmt: skip
TIMM = {
    "cait_xxs24_224": 224, "convmixer_768_32": 64, "deit_tiny_distilled_patch16_224": 224, "edgenext_xx_small": 64,
    "ghostnet_050": 64, "hrnet_w18_small": 64, "levit_128s": 224, "mobilevit_xxs": 64, "poolformer_s12": 64,
    "pvt_v2_b0": 64, "repvgg_a0": 64, "vit_tiny_patch16_224": 224,
}  # fmt: skip
KERAS = {"DenseNet121": 64, "EfficientNetB0": 64, "MobileNetV2": 64, "NASNetMobile": 64, "ResNet50": 64, "Xception": 71}
LIGHT = ("densenet121", "inception_v2", "shufflenet", "squeezenet")
CLASSES = 10  # small heads: the files are many


def sources(folder: Path) -> None:
    """Write the classifiers that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], onnx.ModelProto]] = dict(_small())
    makers |= {f"onnx-{name}": lambda name=name: _light(name) for name in LIGHT}
    makers |= {f"torchvision-{name}": lambda name=name: _torchvision(name) for name in TORCHVISION}
    makers |= {f"timm-{name}": lambda name=name: _timm(name) for name in TIMM}
    makers |= {f"keras-{name}": lambda name=name: _keras(name) for name in KERAS}
    for name, make in makers.items():
        path = folder / f"{name.replace(' ', '-')}.onnx"
        if path.exists():
            continue
        try:
            onnx.save(make(), path)
        except Exception as error:
            print(f"{name}: no source ({type(error).__name__}: {str(error).splitlines()[0]})", file=sys.stderr)
        else:
            print(path.name, flush=True)


def _small() -> Iterator[tuple[str, Callable[[], onnx.ModelProto]]]:
    """The small networks of the tests."""
    models = importlib.import_module("tests.support.models")
    yield "small-cnn", models.tiny_cnn
    architectures = importlib.import_module("tests.support.wrong_gradients")
    for name in architectures.ARCHITECTURES:
        yield f"small-{name}", lambda name=name: architectures.build(name)
    yield "small-vit", importlib.import_module("tests.graph.transformers").vit


def _light(name: str) -> onnx.ModelProto:
    return importlib.import_module("tests.support.onnx_models").light(name)


def _torchvision(name: str) -> onnx.ModelProto:
    torchvision = importlib.import_module("tests.support.torchvision_stub").import_torchvision()
    import torch

    torch.manual_seed(1234)
    kwargs: dict[str, Any] = {"weights": None, "num_classes": CLASSES}
    if name in ("googlenet", "inception_v3"):
        kwargs |= {"aux_logits": False, "init_weights": False}
    return _torch(torchvision.models.get_model(name, **kwargs), TORCHVISION[name])


def _timm(name: str) -> onnx.ModelProto:
    importlib.import_module("tests.support.torchvision_stub").import_torchvision()
    import timm
    import torch

    torch.manual_seed(1234)
    return _torch(timm.create_model(name, pretrained=False, num_classes=CLASSES), TIMM[name])


def _torch(model: Any, side: int) -> onnx.ModelProto:
    import io
    import warnings

    import torch

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(), (torch.randn(2, 3, side, side),), buffer, dynamo=False, opset_version=18,
            input_names=["input"], output_names=["scores"], dynamic_axes={"input": {0: "N"}, "scores": {0: "N"}},
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def _keras(name: str) -> onnx.ModelProto:
    import keras
    import tensorflow as tf
    import tf2onnx

    keras.utils.set_random_seed(1234)
    side = KERAS[name]
    model = getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3), classes=CLASSES)
    function = tf.function(lambda x: model(x, training=False))
    spec = (tf.TensorSpec((None, side, side, 3), tf.float32, name="input"),)
    return tf2onnx.convert.from_function(function, input_signature=spec, opset=18)[0]


def write(folder: Path, output: Path, only: list[str]) -> None:
    """Emit every graph of every classifier: its digest in `graphs.json`, its text in a file."""
    output.mkdir(parents=True, exist_ok=True)
    record = output / "graphs.json"
    digests: dict[str, dict[str, str]] = json.loads(record.read_text("utf-8")) if record.exists() else {}
    for path in sorted(folder.glob("*.onnx")):
        if only and not any(part in path.stem for part in only):
            continue
        digests[path.stem] = {}
        for name, emit in _graphs(path):
            try:
                model = emit()
            except Exception as error:
                digests[path.stem][name] = f"{type(error).__name__}: {error}"
                continue
            if model is None:
                digests[path.stem][name] = "none"
                continue
            data = model.SerializeToString(deterministic=True)
            digests[path.stem][name] = hashlib.sha256(data).hexdigest()
            with gzip.open(output / f"{path.stem}.{name}.txt.gz", "wt", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in _lines(model))
        print(path.stem, len(digests[path.stem]), flush=True)
        record.write_text(json.dumps(digests, indent=1, sort_keys=True), "utf-8")


def _graphs(path: Path) -> Iterator[tuple[str, Callable[[], onnx.ModelProto | None]]]:
    """The graphs of one classifier, by name."""
    import onnxcam

    source = str(path)
    layers = list(onnxcam.layers(source))
    default = next(layer.name for layer in layers if layer.default)
    middle = layers[len(layers) // 2].name
    chosen_layers = {"default": default} | ({"middle": middle} if middle != default else {})
    methods = ("gradcam", "hirescam", "layercam")
    for kind, layer in chosen_layers.items():
        yield f"explainable-{kind}", lambda layer=layer: onnxcam.augment(source, [layer])
    yield "explainable-methods", lambda: onnxcam.augment(source, list(chosen_layers.values()), methods, "required")
    yield "explainable-gated", lambda: onnxcam.augment(source, gate="confidence < 0.6 or margin < 0.1")
    yield "explainable-class", lambda: onnxcam.augment(source, target=1, outputs="heatmap")
    model = onnx.load(source)
    scores, picture = model.graph.output[0].name, model.graph.input[0].name
    yield "gradient", lambda: onnxcam.gradient(source, scores, [picture])
    parts = _Parts(source)
    yield "head", lambda: parts.head(list(chosen_layers.values()))
    for kind, layer in chosen_layers.items():
        yield f"tail-{kind}", lambda layer=layer: parts.tail(layer)
        yield f"backward-{kind}", lambda layer=layer: parts.backward(layer, "plain", False)
        yield f"backward-class-{kind}", lambda layer=layer: parts.backward(layer, "plain", True)
        yield f"class-maps-{kind}", lambda layer=layer: parts.class_maps(layer, methods, False)
        yield f"class-maps-repeated-{kind}", lambda layer=layer: parts.class_maps(layer, methods, True)
        yield f"curvature-{kind}", lambda layer=layer: parts.curvature(layer)
    for relu in ("plain", "guided"):
        yield f"backward-picture-{relu}", lambda relu=relu: parts.backward("", relu, False)
        yield f"input-gradient-{relu}", lambda relu=relu: parts.input_gradient(relu)
    yield "contributions", lambda: parts.contributions()
    yield "attention", lambda: parts.attention()
    yield "attention-backward", lambda: parts.attention_backward()


class _Parts:
    """The graphs that explanations run on, in this tree or in one from before `network.subgraphs`."""

    def __init__(self, source: str) -> None:
        try:
            subgraphs = importlib.import_module("onnxcam.network.subgraphs")
            network = importlib.import_module("onnxcam.network.network").Network(source)
        except (ImportError, AttributeError):
            anatomy = importlib.import_module("onnxcam.anatomy").Anatomy(source)
            self._emit = lambda name, *args, **kwargs: getattr(anatomy, _BEFORE.get(name, name))(*args, **kwargs)
        else:
            self._emit = lambda name, *args, **kwargs: getattr(subgraphs, name)(network, *args, **kwargs)

    def head(self, layers: list[str]) -> onnx.ModelProto:
        return self._emit("head", layers)

    def tail(self, layer: str) -> onnx.ModelProto:
        return self._emit("tail", layer)

    def backward(self, layer: str, relu: str, of_class: bool) -> onnx.ModelProto:
        return self._emit("backward", layer, relu=relu, of_class=of_class)

    def class_maps(self, layer: str, methods: tuple[str, ...], repeated: bool) -> onnx.ModelProto:
        return self._emit("class_maps", layer, methods, repeated)

    def curvature(self, layer: str) -> onnx.ModelProto | None:
        return self._emit("curvature", layer)

    def input_gradient(self, relu: str) -> onnx.ModelProto:
        return self._emit("input_gradient", relu=relu)

    def contributions(self) -> onnx.ModelProto:
        return self._emit("contributions")[0]

    def attention(self) -> onnx.ModelProto:
        return self._emit("attention")[0]

    def attention_backward(self) -> onnx.ModelProto:
        return self._emit("attention_backward")


# names of the same graphs up to commit 579ec6f
_BEFORE = {"input_gradient": "aimed", "contributions": "constants"}


def _lines(model: onnx.ModelProto) -> Iterator[str]:
    """A model as text, a line for each input, output, weight and node; of a weight its shape and a digest."""
    yield f"ir {model.ir_version}, opsets {[(o.domain, o.version) for o in model.opset_import]}"
    yield from (f"metadata {entry.key} {entry.value}" for entry in model.metadata_props)
    yield from _body(model.graph)


def _body(graph: onnx.GraphProto) -> Iterator[str]:
    for role, infos in (("input", graph.input), ("output", graph.output), ("value", graph.value_info)):
        for info in infos:
            yield f"{role} {' '.join(str(info).split())}"
    for tensor in graph.initializer:
        digest = hashlib.sha256(tensor.SerializeToString(deterministic=True)).hexdigest()[:12]
        yield f"weight {tensor.name} {list(tensor.dims)} {digest}"
    for node in graph.node:
        plain = [a for a in node.attribute if not a.HasField("g")]
        attributes = "; ".join(" ".join(str(attribute).split()) for attribute in plain)
        yield f"node {node.name}: {list(node.output)} = {node.domain} {node.op_type}({list(node.input)}) {attributes}"
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from (f"  {attribute.name}: {line}" for line in _body(attribute.g))


def compare(before: Path, after: Path) -> int:
    """Print every graph that differs with its first differing line; 1 if any does."""
    old, new = (json.loads((folder / "graphs.json").read_text("utf-8")) for folder in (before, after))
    equal, refused, different = 0, 0, []
    for model in sorted(old.keys() | new.keys()):
        for name in sorted(old.get(model, {}).keys() | new.get(model, {}).keys()):
            digests = [tree.get(model, {}).get(name, "missing") for tree in (old, new)]
            kinds = [digest.split(":")[0] for digest in digests]  # of a refusal the error's type: its words may change
            if kinds[0] == kinds[1]:
                equal += 1
                refused += ":" in digests[0] or digests[0] == "none"
            else:
                different.append((model, name, digests))
    for model, name, digests in different:
        print(f"{model}: {name} differs: {_first(before, after, f'{model}.{name}.txt.gz', digests)}")
    print(f"{len(old.keys() & new.keys())} models: {equal} graphs equal ({refused} of them refused alike or absent)")
    print(f"{len(different)} graphs different")
    return int(bool(different))


def _first(before: Path, after: Path, name: str, digests: list[str]) -> str:
    if not all((folder / name).exists() for folder in (before, after)):
        return f"{digests[0]!r} before, {digests[1]!r} after"
    with gzip.open(before / name, "rt", encoding="utf-8") as a, gzip.open(after / name, "rt", encoding="utf-8") as b:
        lines = [a.read().splitlines(), b.read().splitlines()]
    pairs = enumerate(zip(*lines, strict=False), start=1)
    number, pair = next(((n, pair) for n, pair in pairs if pair[0] != pair[1]), (min(map(len, lines)) + 1, ("", "")))
    return f"line {number} of {len(lines[0])} and {len(lines[1])}:\n  - {pair[0][:400]}\n  + {pair[1][:400]}"


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("sources").add_argument("folder", type=Path)
    writing = commands.add_parser("write")
    writing.add_argument("folder", type=Path)
    writing.add_argument("output", type=Path)
    writing.add_argument("--only", action="append", default=[], metavar="PART", help="models whose names have it")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "compare":
        return compare(arguments.before, arguments.after)
    if arguments.command == "sources":
        sources(arguments.folder)
    else:
        write(arguments.folder, arguments.output, arguments.only)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
