"""The page docs/reference/methods.md, from the registry of methods."""

from __future__ import annotations

import re
from pathlib import Path

from onnxcam.cam.methods import GRAPH, INPUT, LAYER, find, methods
from onnxcam.cli.methods import cost
from onnxcam.cli.question import shown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "methods.md"
TOP = """# Methods

Written by `make pages` from the methods themselves; do not edit. `onnxcam methods` prints the same.

A is the activation of the target layer, dA the gradient of what is explained with respect to it, S its places, c its
channels, y the score explained. A map is cut off below 0, brought to 0..1, enlarged to the picture. Several methods
of a picture share one run of the network up to the layer: `onnxcam explain --method gradcam --method layercam`,
`explainer.attribute(batch, method=[...])`.

**Which one?** `gradcam` is what most people mean, and at the last convolution of a network that ends in pooling and a
linear layer it equals HiResCAM, XGrad-CAM, ShapleyCAM and the classic CAM. At earlier layers `layercam` and
`hirescam` keep the places apart that Grad-CAM averages over. `finercam` shows what tells a class from those that
resemble it. `ablationcam`, `scorecam` and `reciprocam` use no gradients of the model as such: they ask what it says
when something is taken away. `eigencam`, `activationmap`, `fem` and `kpcacam` do not know the class. `randomcam` is
there to be beaten: [evaluate](../how-to/evaluate.md) tells which methods beat it on your pictures.
"""
KINDS = {
    GRAPH: (
        "In a file, or beside it",
        "Made of plain ONNX operators: `onnxcam export --method NAME` (repeatable) puts them into the file, where any "
        "runtime computes them; asked of a file that does not hold them, they are computed beside it, from the same "
        "nodes.",
    ),
    LAYER: (
        "At a layer, beside the file",
        "Computed from any explainable file, by running the part of the graph behind the layer where that is needed. "
        "Where that part is an affine function, as pooling and a linear layer are, one pass back says exactly what "
        "running it for each channel or place would.",
    ),
    INPUT: (
        "At the picture",
        "One signed number for each value of the tensor (`Explainer.attribution`); the map is the sum of their "
        "absolute values over channels, at the size of the input.",
    ),
}
BOTTOM = """## Options of all methods

- `layer`: several are fused, `fusion="mean"`, `"max"` or `"product"` (`--fusion`).
- `smooth="eigen"`: of a map that is a sum over channels, the first principal component of what is summed;
  `smooth="augment"`: the mean over the mirror image and 0.9, 1 and 1.1 times the tensor. As pytorch-grad-cam's
  `eigen_smooth` and `aug_smooth`, but for the component's sign, which is arbitrary there and here goes with the mean.
- `seed` fixes what is random; `progress` is called as long methods go, and stops them by raising an exception.
- `target`: a class, or what [Python](python.md) says of contrasts, probabilities and weighted sums.

## How each is proved

Those that pytorch-grad-cam 1.5.7 has agree with it within 1e-3 on random networks, batches of three and pictures that
are not square; attributions agree with captum 0.9; the others with a plain computation from their paper in
`tests/cam`. A test fails for a method that is compared with nothing.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [TOP]
    for kind, (title, text) in KINDS.items():
        lines = [f"## {title}", "", text, "", "| method | formula, source | options | costs |", "|---|---|---|---|"]
        for name in methods(kind):
            method = find(name)
            formula = re.sub(r"(https?://\S+?)([.,;)]?(?:\s|$))", r"[source](\1)\2", method.formula.replace("|", "\\|"))
            options = ", ".join(f"`{key}={shown(value)}`" for key, value in method.options.items())
            lines.append(f"| `{name}` | {formula} | {options} | {cost(method)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join([*parts, BOTTOM])
