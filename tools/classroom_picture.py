"""Draw docs/images/classroom.png: what the classroom's networks look at, where they are right and where they are wrong.

    python tools/classroom_picture.py

One column per bundled picture: the picture, what speaks for the class that the network chose, and, where it is wrong,
what speaks for the right one. HiResCAM, of the committed models; needs nothing but `onnxcam[cpu]`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np

import onnxcam
from onnxcam import image
from onnxcam.explain.explanation import Explanation
from onnxcam.image.panel import percentage
from onnxcam.image.resample import resize
from onnxcam.image.text import Font

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models" / "classroom"
NAMES = ("mnist", "fashion_mnist")
CELL, GAP, LINE = 140, 16, 22
INK, FAINT, WRONG = (26, 28, 32), (112, 118, 128), (196, 30, 30)


def truth(stem: str, labels: list[str]) -> str:
    """The right class of a bundled picture, from its name: right_7, wrong_9_as_3."""
    words = {re.sub(r"\W+", "_", label.lower()): label for label in labels}
    _, _, rest = stem.partition("_")
    return words[rest.split("_as_")[0]]


def cell(explanation: Explanation) -> np.ndarray:
    """The overlay, with the picture's pixels kept visible."""
    picture = resize(explanation.picture, (CELL, CELL), "nearest")
    return image.overlay(picture, image.resize_map(explanation.heatmap, (CELL, CELL)))


def rows(name: str) -> np.ndarray:
    """The pictures of one data set, uint8 `[h, w, 3]`."""
    explainer = onnxcam.Explainer(MODELS / f"{name}.onnx")
    labels = explainer.labels or []
    files = sorted((MODELS / name).glob("*.png"))
    canvas = np.full((3 * (CELL + LINE + GAP), len(files) * (CELL + GAP) + GAP, 3), 255, np.uint8)
    font = Font(14)

    def place(row: int, column: int, pixels: np.ndarray, caption: str, color: tuple[int, int, int]) -> None:
        top, left = row * (CELL + LINE + GAP) + GAP // 2, column * (CELL + GAP) + GAP
        canvas[top : top + CELL, left : left + CELL] = pixels
        font.draw(canvas, font.fit(caption, CELL), left, top + CELL + LINE - 5, color)

    for column, file in enumerate(files):
        right = truth(file.stem, labels)
        answer = explainer.explain(file, method="hirescam")
        place(0, column, resize(answer.picture, (CELL, CELL), "nearest"), right, FAINT)
        caption = f"{answer.label}, {percentage(answer.probability)}"
        place(1, column, cell(answer), caption, INK if answer.label == right else WRONG)
        if answer.label != right:
            missed = explainer.explain(file, target=right, method="hirescam")
            place(2, column, cell(missed), f"{right}, {percentage(missed.probability)}", INK)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "images" / "classroom.png")
    output: Path = parser.parse_args().output
    image.write_png(output, np.vstack([rows(name) for name in NAMES]))
    print(output)


if __name__ == "__main__":
    main()
