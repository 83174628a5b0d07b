"""Feature maps and receptive fields of whole architectures, written into inside.md.

    python -m benchmarks.inside                      # what the page lacks
    python -m benchmarks.inside --cells 3 resnet18   # one architecture anew
    python -m benchmarks.inside build/jax            # the network that benchmarks/jax_network.py wrote

For each architecture, with seeded random weights: the feature maps of two layers of the exported file against the
framework's own activations (a forward hook of PyTorch; a second functional model of Keras), as ‖a − b‖ / ‖b‖, and both
against the framework's in float64, which tells rounding from mistakes; whether channels come in NumPy's order of the
variances; and how many pixels outside the theoretical receptive field of some cells of each layer have a gradient that
is not exactly 0.
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
    "convnext_tiny", "vit_b_32", "regnet_y_400mf",
)  # fmt: skip
KERAS = ("MobileNetV2", "ResNet50", "EfficientNetB0")
CELLS = 20


Values = dict[str, np.ndarray]


def torch_values(name: str) -> tuple[Any, np.ndarray, Values, Values]:
    """The explainable model of a torchvision architecture, a picture, its activations `[C, h, w]` or `[T, C]`.

    The last are the same in float64.
    """
    import torch

    from benchmarks.architectures import TORCH as ENTRIES
    from benchmarks.torch_matrix import build
    from onnxcam.exporters import pytorch

    model, picture = build(name)
    entry = ENTRIES[name]
    layers = [layer for layer in (entry.middle, entry.last) if layer]
    hooked: Values = {}
    modules = dict(model.named_modules())
    for layer in layers:
        modules[layer].register_forward_hook(
            lambda module, inputs, output, layer=layer: hooked.update({layer: output.detach().clone().numpy()[0]})
        )
    with torch.no_grad():
        model(picture)
        values = dict(hooked)
        model.double()(picture.double())
        exact = dict(hooked)
    model.float()
    for layer in layers:
        modules[layer]._forward_hooks.clear()
    explained = pytorch.export(model, picture, None, layers=layers, verify=False)
    return explained, picture.numpy(), values, exact


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
    framework = "Keras" if name in KERAS else "PyTorch" if name in TORCH else "JAX"
    read: Any = {"Keras": keras_values, "PyTorch": torch_values, "JAX": lambda name: stored_values(Path(name))}
    explained, picture, values, exact = read[framework](name)
    last = framework != "PyTorch"
    explainer = onnxcam.Explainer(explained, probe=False, providers=["CPUExecutionProvider"])
    rows = []
    rng = np.random.default_rng(SEED)
    for maps in inside.features(explainer, picture, list(values)):
        expected = np.ascontiguousarray(canonical(values[maps.layer], last, maps.shape))
        truth = canonical(exact[maps.layer], last, maps.shape)
        error, ours, theirs = (
            np.linalg.norm(a - b) / np.linalg.norm(truth)
            for a, b in ((maps.values, expected), (maps.values, truth), (expected, truth))
        )
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
        rows.append(
            f"| {title} ({framework}) | `{maps.layer}` | {' x '.join(map(str, maps.shape))} | {error:.1e} | "
            f"{ours:.1e} | {theirs:.1e} | {'yes' if same else 'NO'} | {size} | "
            f"{cells} | {clear:,} | {outside} |"
        )
    print(f"{name}: {time.perf_counter() - began:.0f} s", *rows, sep="\n", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="architectures, or the folder of a JAX network (default: what is missing)"
    )
    parser.add_argument("--cells", type=int, default=CELLS)
    arguments = parser.parse_args()
    head = [
        "# Feature maps and receptive fields of whole architectures",
        "",
        "Written by `python -m benchmarks.inside`: seeded random weights, exported by onnxcam (JAX: by jax2onnx).",
        "*Error*: feature maps against the framework's own activations, ‖a − b‖ / ‖b‖; *file* and *framework*: either",
        "against the framework in float64. Where *error* exceeds 1e-5, so does the framework's own rounding: random",
        "weights cancel more than trained ones do (–: not computed). *Order*: whether channels come in NumPy's order",
        "of variance.",
        "*Outside*: pixels outside the theoretical field of so many *cells*, and those whose gradient is not exactly",
        "0.",
        "",
        "| architecture | layer | map | error | file | framework | order | field | cells | outside | not 0 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.count("|") == 12][2:] if PAGE.exists() else []
    present = {row.split()[1] for row in rows}
    for name in arguments.names or [name for name in (*TORCH, *KERAS) if name not in present]:
        made = measure(name, arguments.cells)
        rows = [row for row in rows if row.split(" | ")[0] != made[0].split(" | ")[0]] + made
        PAGE.write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
