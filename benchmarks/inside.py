"""Feature maps and receptive fields of whole architectures, written into inside.md.

    python -m benchmarks.inside                      # what the page lacks
    python -m benchmarks.inside --cells 3 resnet18   # one architecture anew
    python -m benchmarks.inside build/jax            # the network that benchmarks/jax_network.py wrote
    python -m benchmarks.inside --growth             # how rounding grows, anew

For each architecture, with seeded random weights or trained: the feature maps of two layers of the exported file
against the framework's own activations (a forward hook of PyTorch; a second functional model of Keras), as
‖a − b‖ / ‖b‖, and both against the framework's in float64, which tells rounding from mistakes; whether channels come in
NumPy's order of the variances; and how many pixels outside the theoretical receptive field of some cells of each layer
have a gradient that is not exactly 0. "efficientnet-lite0" needs the packages that models/build_efficientnet_lite0.py
names.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.files import SEED

PAGE = Path(__file__).with_suffix(".md")
TORCH = (
    "resnet18", "mobilenet_v2", "densenet121", "efficientnet_b0", "shufflenet_v2_x1_0", "squeezenet1_1",
    "convnext_tiny", "vit_b_32", "regnet_y_400mf", "googlenet", "swin_t", "alexnet", "squeezenet1_0",
)  # fmt: skip
KERAS = ("MobileNetV2", "ResNet50", "EfficientNetB0")
TRAINED_TORCH, TRAINED_KERAS = ("efficientnet-lite0",), ("mnist", "fashion_mnist")
# of some: the layers, where the coverage matrix names none
LAYERS = {"densenet121": ("features.denseblock2", "features.norm5"), "efficientnet-lite0": ("_blocks.7", "_swish")}
GROWTH = (
    "resnet18", "squeezenet1_1", "efficientnet_b0", "shufflenet_v2_x1_0", "regnet_y_400mf", "mobilenet_v2",
    "efficientnet-lite0",
)  # fmt: skip
CELLS, CLOSE, SLACK = 20, 1e-5, 3.0
MOVED = 1e-6  # by which share of its size the picture is moved, to see what becomes of it


Values = dict[str, np.ndarray]


def torch_network(name: str) -> tuple[Any, Any, list[str]]:
    """A network of PyTorch in eval mode, a picture, and two of its layers."""
    import torch

    if name in TRAINED_TORCH:
        from models.build_efficientnet_lite0 import network
        from onnxcam import Explainer
        from onnxcam import models as bundled

        model, _ = network()
        _, picture, _ = Explainer(bundled.path(bundled.MODEL)).prepare(bundled.path("cat.png"))
        return model, torch.from_numpy(picture), list(LAYERS[name])
    from benchmarks.architectures import TORCH as ENTRIES
    from benchmarks.torch_matrix import build

    model, picture = build(name)
    entry = ENTRIES[name]
    return model, picture, list(LAYERS.get(name, (entry.middle, entry.last)))


def hooked(model: Any, layers: list[str]) -> tuple[Values, list[Any]]:
    """The activations of layers of one picture, filled at each run, and the handles of what fills them."""
    values: Values = {}
    modules = dict(model.named_modules())
    handles = [
        modules[layer].register_forward_hook(
            lambda module, inputs, output, layer=layer: values.update({layer: output.detach().clone().numpy()[0]})
        )
        for layer in layers
    ]
    return values, handles


def torch_values(name: str) -> tuple[Any, np.ndarray, Values, Values]:
    """The explainable model of an architecture, a picture, its activations `[C, h, w]` or `[T, C]`.

    The last are the same in float64.
    """
    import torch

    from onnxcam.exporters import pytorch

    model, picture, layers = torch_network(name)
    computed, handles = hooked(model, layers)
    with torch.no_grad():
        model(picture)
        values = dict(computed)
        model.double()(picture.double())
        exact = dict(computed)
    model.float()
    for handle in handles:
        handle.remove()
    explained = pytorch.export(model, picture, None, layers=layers, verify=False)
    return explained, picture.numpy(), values, exact


def growth_rows(name: str) -> list[str]:
    """How a change of the picture grows, in float64, and the rounding of float32, at the layers of a network."""
    import torch

    model, picture, layers = torch_network(name)
    computed, _ = hooked(model, layers)
    torch.manual_seed(SEED)
    with torch.no_grad():
        model(picture)
        single = dict(computed)
        model.double()(picture.double())
        exact = dict(computed)
        changes: dict[str, list[float]] = {layer: [] for layer in layers}
        for _ in range(4):
            noise = torch.randn(picture.shape, dtype=torch.float64)
            model(picture.double() + noise * (MOVED * picture.norm() / noise.norm()))
            for layer in layers:
                changes[layer].append(distance(computed[layer], exact[layer]) / MOVED)
    kind = "trained" if name in TRAINED_TORCH else "random"
    return [
        f"| {name} | `{layer}` | {kind} | {np.sqrt(np.mean(np.square(changes[layer]))):.1f} | "
        f"{distance(single[layer], exact[layer]):.1e} |"
        for layer in layers
    ]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖a − b‖ / ‖b‖."""
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))


def keras_values(name: str) -> tuple[Any, np.ndarray, Values, Values]:
    """The same of a Keras architecture, whose maps are `[h, w, C]`."""
    import keras

    from benchmarks.architectures import KERAS as ENTRIES
    from benchmarks.keras_matrix import Built
    from onnxcam.exporters import keras as exporter

    key = next(key for key, entry in ENTRIES.items() if entry.build == name)
    built = Built(key)
    layers = [built.entry.middle, next(one.name for one in built.model.layers[::-1] if len(one.output.shape) == 4)]
    picture = built.pictures(1, SEED)

    def values(model: Any, picture: np.ndarray) -> Values:
        outputs = [model.get_layer(layer).output for layer in layers]
        computed = keras.Model(model.inputs, outputs)(picture, training=False)
        return {layer: np.asarray(value)[0] for layer, value in zip(layers, computed, strict=True)}

    explained = exporter.export(built.model, None, layers=layers, verify=False)
    return explained, picture, values(built.model, picture), values(built.exact, picture.astype(np.float64))


def trained_keras_values(name: str) -> tuple[Any, np.ndarray, Values, Values]:
    """A network of the classroom: its file as bundled, a picture and Keras's activations; none in float64."""
    import keras

    from onnxcam import Explainer, models

    file = models.path(f"classroom/{name}.onnx")
    pictures = sorted(file.with_suffix("").glob("right_*.png"))
    _, picture, _ = Explainer(file).prepare(pictures[-1])
    network = keras.models.load_model(file.with_suffix(".keras"))
    names = {"conv1": "classroom_1/conv1_1/Relu:0", "conv2": "conv2"}  # Keras's and the file's
    computed = keras.Model(network.inputs, [network.get_layer(layer).output for layer in names])(picture)
    return file, picture, {name: np.asarray(v)[0] for name, v in zip(names.values(), computed, strict=True)}, {}


def stored_values(folder: Path) -> tuple[Any, np.ndarray, Values, Values]:
    """The network of `benchmarks/jax_network.py`, whose maps are `[h, w, C]`."""
    with np.load(folder / "network.npz") as arrays:
        exact = {name.partition("/")[0]: arrays[name] for name in arrays if "/" in name}
        return folder / "network.onnx", arrays["x"], {name: arrays[name] for name in exact}, exact


def title_of(folder: Path) -> str:
    """What `benchmarks/jax_network.py` calls the network it wrote."""
    with np.load(folder / "network.npz") as arrays:
        return str(arrays["title"])


def canonical(value: np.ndarray, channels_last: bool, shape: tuple[int, ...]) -> np.ndarray:
    """A framework's activation of one picture as `[C, h, w]`; tokens on their grid."""
    if value.ndim == 2:
        patches = value[len(value) - shape[1] * shape[2] :]
        return patches.T.reshape(shape)
    return value.transpose(2, 0, 1) if channels_last or value.shape != shape else value


def measure(name: str, cells: int) -> list[str]:
    """The rows of the table for one architecture, or a folder."""
    import onnxcam
    from onnxcam import inside
    from onnxcam.inside import receptive_fields

    began = time.perf_counter()
    framework = framework_of(name)
    read: Any = {"Keras": keras_values, "PyTorch": torch_values, "JAX": lambda name: stored_values(Path(name))}
    explained, picture, values, exact = (trained_keras_values if name in TRAINED_KERAS else read[framework])(name)
    last = framework != "PyTorch"
    explainer = onnxcam.Explainer(explained, probe=False, providers=["CPUExecutionProvider"])
    rows = []
    rng = np.random.default_rng(SEED)
    for maps in inside.features(explainer, picture, list(values)):
        expected = np.ascontiguousarray(canonical(values[maps.layer], last, maps.shape))
        rounding = ["–", "–"]
        if maps.layer in exact:
            truth = canonical(exact[maps.layer], last, maps.shape)
            rounding = [f"{distance(value, truth):.1e}" for value in (maps.values, expected)]
        same = np.argsort(-maps.values.var(axis=(1, 2)), kind="stable")[:64].tolist() == list(maps.channels)
        (field,) = receptive_fields.fields_of(explainer, picture, [maps.layer])
        outside = clear = 0
        for _ in range(cells):
            cell = (int(rng.integers(field.grid[0])), int(rng.integers(field.grid[1])))
            effect = receptive_fields.of_tensor(explainer, picture, maps.layer, cell)
            x0, y0, x1, y1 = field.box(cell) or (0, 0, 0, 0)
            clear += effect.size - (x1 - x0) * (y1 - y0)
            effect[y0:y1, x0:x1] = 0
            outside += int(np.count_nonzero(effect))
        size = "whole picture" if field.mixing and field.whole else f"{field.size[0]:g}"
        title = title_of(Path(name)) if framework == "JAX" else name
        trained = ", trained" if name in (*TRAINED_TORCH, *TRAINED_KERAS) else ""
        rows.append(
            f"| {title} ({framework}{trained}) | `{maps.layer}` | {' x '.join(map(str, maps.shape))} | "
            f"{distance(maps.values, expected):.1e} | {' | '.join(rounding)} | {'yes' if same else 'NO'} | {size} | "
            f"{cells} | {clear:,} | {outside} |"
        )
    print(f"{name}: {time.perf_counter() - began:.0f} s", *rows, sep="\n", flush=True)
    return rows


def framework_of(name: str) -> str:
    """The framework of a network that `measure` takes."""
    if name in (*KERAS, *TRAINED_KERAS):
        return "Keras"
    return "PyTorch" if name in (*TORCH, *TRAINED_TORCH) else "JAX"


def summary(rows: list[str]) -> list[str]:
    """What the table says: how many architectures are within 1e-5, and what the others are within."""
    errors: dict[str, list[tuple[float, float | None]]] = {}
    for row in rows:
        name, _, _, error, _, framework = row.removeprefix("| ").split(" | ")[:6]
        errors.setdefault(name, []).append((float(error), None if framework == "–" else float(framework)))
    close = [name for name, pairs in errors.items() if all(error <= CLOSE for error, _ in pairs)]
    rest = [name for name in errors if name not in close]
    wrong = [
        name
        for name in rest
        if any(original and error > max(CLOSE, SLACK * original) for error, original in errors[name])
    ]
    lines = [f"Within {CLOSE:.0e} at both layers: {len(close)} of {len(errors)} architectures."]
    if rest:
        lines += [
            f"Above it: {', '.join(rest)};",
            f"there the framework itself is off by as much, up to a factor of {SLACK:g}.",
        ]
    if wrong:
        lines.append(f"**Further off than that: {', '.join(wrong)}.**")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="architectures, or the folder of a JAX network (default: what is missing)"
    )
    parser.add_argument("--cells", type=int, default=CELLS)
    parser.add_argument("--growth", action="store_true", help="how rounding grows, and nothing else")
    arguments = parser.parse_args()
    present = PAGE.read_text("utf-8").splitlines() if PAGE.exists() else []
    rows, grown = ([line for line in present if line.count("|") == bars][2:] for bars in (12, 6))
    if arguments.growth:
        grown = [row for name in GROWTH for row in growth_rows(name)]
        PAGE.write_text(page(rows, grown), encoding="utf-8")
        print(*grown, sep="\n")
        return
    listed = {row.split()[1] for row in rows}
    every = (*TORCH, *KERAS, *TRAINED_TORCH, *TRAINED_KERAS)
    for name in arguments.names or [name for name in every if name not in listed]:
        measured = measure(name, arguments.cells)
        rows = [row for row in rows if row.split(" | ")[0] != measured[0].split(" | ")[0]] + measured
        PAGE.write_text(page(rows, grown), encoding="utf-8")


HEAD = """\
# Feature maps and receptive fields of whole architectures

Written by `python -m benchmarks.inside`: seeded random weights where not trained, exported by onnxcam (JAX: by
jax2onnx). *Error*: feature maps against the framework's own activations, ‖a − b‖ / ‖b‖; *file* and *framework*: either
against the framework in float64 (–: not computed). *Order*: whether channels come in NumPy's order of variance.
*Outside*: pixels outside the theoretical field of so many *cells*, and those whose gradient is not exactly 0.

"""
MAPS = "| architecture | layer | map | error | file | framework | order | field | cells | outside | not 0 |"
WHY = f"""
## Why some are above 1e-5

No operator is computed otherwise: a random network magnifies every rounding. In a deep network of random weights all
pictures give nearly the same activations, and each batch norm takes the common part away and enlarges the rest, and the
rounding with it. *Growth*: by how much the relative size of a change of the picture ({MOVED:.0e} of its size, in
float64) has grown at the layer; *framework*: PyTorch in float32 against itself in float64.

"""
GROWN = "| architecture | layer | weights | growth | framework |"


def page(rows: list[str], grown: list[str]) -> str:
    """The page of both tables."""
    lines = [*summary(rows), "", MAPS, "|---" * 11 + "|", *rows]
    text = HEAD + "\n".join(lines) + "\n"
    return text + WHY + "\n".join([GROWN, "|---" * 5 + "|", *grown]) + "\n" if grown else text


if __name__ == "__main__":
    main()
