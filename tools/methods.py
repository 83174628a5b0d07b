"""The page docs/reference/methods.md, from the registry of methods."""

from __future__ import annotations

import re
from pathlib import Path

from onnxcam.cam.methods import GRAPH, INPUT, LAYER, find, methods
from onnxcam.cli.methods import cost
from onnxcam.explain.texts import spelled

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "methods.md"
TOP = """# Methods

Written by `make pages` from the methods themselves; do not edit. `onnxcam methods` prints the same.

A is the activation of the target layer, dA the gradient of the explained scalar with respect to it, S its positions,
c its channels, y the explained score. Negative values of a map are set to 0, then it is scaled to 0..1 and resized to
the picture. Several methods for one picture share one run of the network up to the layer: `onnxcam explain --method
gradcam --method layercam`,
`explainer.attribute(batch, method=[...])`.

**Which one?** `gradcam` is what most people mean, and at the last convolution of a network that ends in pooling and a
linear layer it equals HiResCAM, XGrad-CAM, ShapleyCAM and the classic CAM. At earlier layers `layercam` and
`hirescam` keep the positions apart that Grad-CAM averages over. `finercam` shows what tells a class from similar ones.
`ablationcam`, `scorecam` and `reciprocam` use no gradients of the model as such: they measure how the score changes
when something is removed. `eigencam`, `activationmap`, `fem` and `kpcacam` do not depend on the class. `randomcam` is
a baseline: [evaluate](../how-to/evaluate.md) tells which methods beat it on your pictures.
"""
KINDS = {
    GRAPH: (
        "Stored in the file",
        "Made of plain ONNX operators: `onnxcam export --method NAME` (repeatable) stores them in the file, where any "
        "runtime computes them. With a file that does not store them they are computed in memory, from the same nodes.",
    ),
    LAYER: (
        "At a layer, in memory",
        "Computed from any explainable file, by running the tail, the graph from the layer to the scores, where that "
        "is needed. Where the tail is affine, as pooling and a linear layer are, one backward pass gives exactly what "
        "running it for each channel or position would.",
    ),
    INPUT: (
        "At the picture",
        "One signed number for each value of the tensor (`Explainer.attribution`); the map is the sum of their "
        "absolute values over channels, at the size of the input.",
    ),
}
BOTTOM = """## Options of all methods

- `layer`: several are fused, `fusion="mean"`, `"max"` or `"product"` (`--fusion`).
- `smooth="eigen"`: for a map that is a sum over channels, the first principal component of the terms instead;
  `smooth="augment"`: the mean over the mirror image and 0.9, 1 and 1.1 times the tensor. As pytorch-grad-cam's
  `eigen_smooth` and `aug_smooth`, except for the component's sign, which is arbitrary there and here follows the mean.
- `seed` fixes all random numbers; long methods call `progress` as they go, and an exception raised by it stops them.
- `target`: a class, or a [contrast, a probability or a weighted sum](python.md#targets).

## How each is tested

Methods that pytorch-grad-cam 1.5.7 has agree with it within 1e-3 on random networks, batches of three and pictures that
are not square; attributions agree with captum 0.9; the others with a plain computation from their paper in
`tests/cam`. A test fails for a method that is not compared with anything.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [TOP]
    for kind, (title, text) in KINDS.items():
        lines = [f"## {title}", "", text, "", "| method | formula, source | options | costs |", "|---|---|---|---|"]
        for name in methods(kind):
            method = find(name)
            formula = re.sub(r"(https?://\S+?)([.,;)]?(?:\s|$))", r"[source](\1)\2", method.formula.replace("|", "\\|"))
            options = ", ".join(f"`{key}={spelled(value)}`" for key, value in method.options.items())
            lines.append(f"| `{name}` | {formula} | {options} | {cost(method)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join([*parts, BOTTOM])
