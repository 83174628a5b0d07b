"""Pictures to judge methods on: read a few at a time, and drawn with their maps for the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.errors import PictureError
from onnxcam.explain.explainer import Explainer
from onnxcam.image.opencv import import_cv2

_CHUNK = 8
_SIDE = 200  # pixels of a picture in the report
_DARKEST = np.float32(0.25)  # of a picture's light, where a map is 0


@dataclass
class Read:
    """Some pictures, ready for the model."""

    places: list[int]
    batch: np.ndarray
    geometry: list[image.Geometry]
    pixels: list[np.ndarray]
    names: list[str]


def read_pictures(
    explainer: Explainer,
    pictures: Sequence[Any],
    names: Sequence[str] | None,
    failures: list[tuple[int, PictureError]],
) -> Iterator[Read]:
    """Read pictures a few at a time, those of one size together."""
    fixed = explainer.preprocess is not None and explainer.preprocess.output_size is not None
    chunk: list[tuple[int, Any, np.ndarray, image.Geometry]] = []

    def together() -> Read:
        return Read(
            [place for place, *_ in chunk],
            np.concatenate([tensor for _, _, tensor, _ in chunk]),
            [geometry for *_, geometry in chunk],
            [picture.pixels for _, picture, _, _ in chunk],
            [picture.name if names is None else names[place] for place, picture, _, _ in chunk],
        )

    for place, source in enumerate(pictures):
        try:
            chunk.append((place, *explainer.prepare(source)))
        except PictureError as error:
            failures.append((place, error))
            continue
        if len(chunk) == (_CHUNK if fixed else 1):
            yield together()
            chunk = []
    if chunk:
        yield together()


def small(pixels: np.ndarray) -> np.ndarray:
    scale = min(1.0, _SIDE / max(pixels.shape[:2]))
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    cv2 = import_cv2()
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def drawn(heatmap: np.ndarray, pixels: np.ndarray, visible: Sequence[image.Rectangle] | None) -> np.ndarray:
    """Darken the picture where the map is low, readable without colour; mark what the map does not cover."""
    shrunk = small(pixels)
    height, width = shrunk.shape[:2]
    light = _DARKEST + (1 - _DARKEST) * np.clip(image.resize_map(heatmap, (height, width)), 0, 1)
    picture = np.asarray(np.rint(shrunk * light[..., None]), np.uint8)
    return image.Marks.at((height, width), heatmap.shape, visible).draw(picture)
