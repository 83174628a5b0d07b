"""`onnxcam demo`: explain the bundled pictures with the bundled model; an example of how to use the library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam import Explainer, image, models
from onnxcam.explain.explanation import Explanation
from onnxcam.explain.saving import file_stem
from onnxcam.image.panel import percentage
from onnxcam.image.text import Font
from onnxcam.runtime import Provider

COMPOSITE = "cat_and_coffee.png"
PHOTOGRAPH = "cat.png"
# the classes to explain on the composite: the first is on its left half, the second on its right
CLASSES = ["tiger cat", "espresso"]


def run(output: str | Path, providers: Sequence[Provider] | None = None) -> dict[str, Any]:
    """Explain the composite for the cat and for the coffee, and the photograph of the cat for its top class.

    Arguments:
        output: folder for the pictures, made if need be.
        providers: execution providers, as for `Explainer`.

    Returns:
        predictions, the share of each map's energy on either half of the composite, and the files written.

    Raises:
        OutputError: the folder cannot be written to.
        RuntimeUnavailable: no usable runtime or execution provider.
    """
    output = Path(output)
    explainer = Explainer(models.path(models.MODEL), providers=providers)
    cat = explainer.explain(models.path(PHOTOGRAPH))

    # twice as wide as high: the file's own preprocessing would crop both objects, so the picture is stretched instead
    whole = explainer.manifest["input"]["preprocess"] | {"resize": {"mode": "stretch"}, "crop": None}
    stretching = Explainer(models.path(models.MODEL), preprocess=whole, providers=providers)
    both = stretching.explain([models.path(COMPOSITE)] * len(CLASSES), target=CLASSES)

    folders = {Path(PHOTOGRAPH).stem: cat}
    folders |= {f"{Path(COMPOSITE).stem}/{file_stem(e.label)}": e for e in both}
    files = [f"{folder}/{name}" for folder, e in folders.items() for name in e.save(output / folder).values()]
    image.write_png(output / "demo.png", side_by_side(both))
    return {
        "output": str(output),
        "providers": explainer.providers,
        "pictures": [
            {"picture": COMPOSITE, "predictions": _predictions(both[0]), "maps": [_halved(e) for e in both]},
            {"picture": PHOTOGRAPH, "predictions": _predictions(cat), "maps": [_map(cat)]},
        ],
        "files": ["demo.png", *files],
    }


def halves(heatmap: np.ndarray) -> list[float]:
    """The share of a map's energy on the left and on the right half; zeros for a map that is zero everywhere."""
    middle, total = heatmap.shape[1] // 2, float(heatmap.sum(dtype=np.float64))
    left = float(heatmap[:, :middle].sum(dtype=np.float64))
    return [left / total, 1.0 - left / total] if total > 0 else [0.0, 0.0]


def side_by_side(explanations: Sequence[Explanation], margin: int = 16) -> np.ndarray:
    """The picture and one overlay per explanation in a row, each with its caption: uint8 `[h, w, 3]` RGB."""
    first = explanations[0]
    cells = [(first.picture, "picture")]
    cells += [(e.overlay(), f"{e.label}, {percentage(e.probability)}") for e in explanations]
    height, width = first.picture.shape[:2]
    canvas = np.full((height + margin * 3 + 8, (width + margin) * len(cells) + margin, 3), 255, np.uint8)
    font = Font(18)
    for index, (pixels, caption) in enumerate(cells):
        left = margin + index * (width + margin)
        canvas[margin : margin + height, left : left + width] = pixels
        font.draw(canvas, font.fit(caption, width), left, height + margin * 2 + 10, (26, 28, 32))
    return canvas


def _predictions(explanation: Explanation) -> list[dict[str, Any]]:
    return [{"index": i, "label": label, "probability": p} for i, label, p in explanation.predictions]


def _map(explanation: Explanation) -> dict[str, Any]:
    return {
        "index": explanation.target,
        "label": explanation.label,
        "probability": explanation.probability,
        "method": explanation.method,
        "layer": explanation.layer,
    }


def _halved(explanation: Explanation) -> dict[str, Any]:
    return _map(explanation) | {"energy": dict(zip(("left", "right"), halves(explanation.heatmap), strict=True))}
