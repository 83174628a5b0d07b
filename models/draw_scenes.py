"""Synthetic scenes: shapes of four classes on textured backgrounds, with the box and the mask of each.

What a detector and a segmenter can be trained on in minutes and judged by without anybody's pictures: every scene is
drawn from a seed, often with two objects of one class far apart, between lines and patches that belong to no class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from onnxcam.image.opencv import import_cv2

LABELS = ("disc", "triangle", "square", "star")
SIDE = 128
_SMALLEST, _LARGEST = 16, 54  # of an object's longer side, pixels
_MOST = 6  # objects
_TWINS = 0.5  # share of scenes with two objects of one class at least half the picture apart
_CONTRAST = 70.0  # least distance of an object's colour from what lies around it, of 255 per channel
_FRACTION = 4  # bits of sub-pixel coordinates


@dataclass(frozen=True)
class Scene:
    """A picture and what lies in it.

    Attributes:
        picture: uint8 `[side, side, 3]`, RGB.
        boxes: float32 `[n, 4]`, x0, y0, x1, y1 in pixels, around what is visible of each object.
        labels: int64 `[n]`, indices into `LABELS`.
        mask: uint8 `[side, side]`, 0 where no object is, else its label's index + 1.
    """

    picture: np.ndarray = field(repr=False)
    boxes: np.ndarray
    labels: np.ndarray
    mask: np.ndarray = field(repr=False)


def scenes(seed: int, count: int | None = None, side: int = SIDE) -> Iterator[Scene]:
    """Scenes in a fixed order: `count` of them, or without an end; each of a seed of its own."""
    number = 0
    while count is None or number < count:
        yield draw(np.random.default_rng([seed, number]), side)
        number += 1


def draw(rng: np.random.Generator, side: int = SIDE) -> Scene:
    """Draw a scene."""
    picture = _background(rng, side)
    for _ in range(int(rng.integers(2, 7))):
        _clutter(rng, picture)
    owner = np.zeros((side, side), np.int64)
    labels: list[int] = []
    areas: list[int] = []
    for label, radius, centre in _places(rng, side):
        alpha = _shape(rng, label, radius, centre, side)
        solid = alpha > 0.5
        if solid.sum() < 40:
            continue
        labels.append(label)
        areas.append(int(solid.sum()))
        owner[solid] = len(labels)
        colour = _surface(rng, picture, alpha, side)
        picture = picture * (1 - alpha[..., None]) + colour * alpha[..., None]
    picture = picture + rng.normal(scale=rng.uniform(0, 8), size=picture.shape)
    boxes, classes, mask = [], [], np.zeros((side, side), np.uint8)
    for number, label in enumerate(labels, 1):
        visible = owner == number
        if visible.sum() < 0.6 * areas[number - 1]:
            continue
        rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        classes.append(label)
        mask[visible] = label + 1
    return Scene(
        np.clip(np.rint(picture), 0, 255).astype(np.uint8),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes, np.int64),
        mask,
    )


def _places(rng: np.random.Generator, side: int) -> list[tuple[int, float, np.ndarray]]:
    """Label, radius and centre of each object; none reaches out of the picture or far into another."""
    count = int(rng.integers(1, _MOST + 1))
    twins = count > 1 and rng.random() < _TWINS
    places: list[tuple[int, float, np.ndarray]] = []
    for number in range(count):
        label = places[0][0] if twins and number == 1 and places else int(rng.integers(len(LABELS)))
        for _ in range(30):
            radius = math.exp(rng.uniform(math.log(_SMALLEST / 2), math.log(_LARGEST / 2)))
            centre = rng.uniform(radius + 1, side - radius - 1, 2)
            away = [math.dist(centre, other) for _, _, other in places]
            apart = all(d > 0.9 * (radius + r) for d, (_, r, _) in zip(away, places, strict=True))
            if apart and not (twins and number == 1 and places and away[0] < side / 2):
                places.append((label, radius, centre))
                break
    return places


def _shape(rng: np.random.Generator, label: int, radius: float, centre: np.ndarray, side: int) -> np.ndarray:
    """How much of each pixel an object covers, float64 `[side, side]`, 0 to 1."""
    turn, squeeze = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 1.0)
    name = LABELS[label]
    if name == "disc":
        angles, radii = np.linspace(0, 2 * math.pi, 48, endpoint=False), np.ones(48)
    elif name == "star":
        angles, radii = np.arange(10) * math.pi / 5, np.where(np.arange(10) % 2, 0.42, 1.0)
    else:
        corners = 3 if name == "triangle" else 4
        angles, radii = np.arange(corners) * 2 * math.pi / corners, np.ones(corners)
    points = np.stack([radii * np.cos(angles), squeeze * radii * np.sin(angles)], axis=1)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    points = points @ rotation.T * radius + centre
    cv2 = import_cv2()
    canvas = np.zeros((side, side), np.uint8)
    fixed = np.rint(points * (1 << _FRACTION)).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], 255, lineType=cv2.LINE_AA, shift=_FRACTION)
    return np.asarray(canvas / 255.0)


def _surface(rng: np.random.Generator, picture: np.ndarray, alpha: np.ndarray, side: int) -> np.ndarray:
    """An object's colours, float64 `[side, side, 3]`, that stand out from what it covers."""
    behind = picture[alpha > 0.5].mean(axis=0)
    colour = rng.uniform(0, 255, 3)
    for _ in range(50):
        if np.abs(colour - behind).max() >= _CONTRAST:
            break
        colour = rng.uniform(0, 255, 3)
    slope = rng.uniform(-0.3, 0.3, 2)
    rows, columns = np.mgrid[:side, :side] - side / 2
    shade = (slope[0] * rows + slope[1] * columns)[..., None]
    return np.asarray(colour + shade + rng.normal(scale=rng.uniform(2, 12), size=(side, side, 1)))


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Noise of several scales around a colour, perhaps with stripes, float64 `[side, side, 3]`."""
    cv2 = import_cv2()
    picture = np.broadcast_to(rng.uniform(40, 215, 3), (side, side, 3)).copy()
    for cells in (4, 12, 40):
        noise = rng.normal(scale=rng.uniform(3, 16), size=(cells, cells, 3)).astype(np.float32)
        picture += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.4:
        rows, columns = np.mgrid[:side, :side]
        turn, period = rng.uniform(0, math.pi), rng.uniform(6, 30)
        wave = np.sin(2 * math.pi * (math.cos(turn) * rows + math.sin(turn) * columns) / period)
        picture += wave[..., None] * rng.uniform(-25, 25, 3)
    return np.asarray(np.clip(picture, 0, 255))


def _clutter(rng: np.random.Generator, picture: np.ndarray) -> None:
    """Draw a line or an open curve, which belongs to no class."""
    cv2 = import_cv2()
    side = len(picture)
    colour, width = [float(c) for c in rng.uniform(0, 255, 3)], int(rng.integers(1, 4))
    start = rng.uniform(0, side, 2)
    if rng.random() < 0.5:
        end = start + rng.uniform(-side / 2, side / 2, 2)
        first, second = (tuple(int(v) for v in point) for point in (start, end))
        cv2.line(picture, first, second, colour, width)
    else:
        axes, turn = rng.integers(6, 40, 2), float(rng.uniform(0, 360))
        middle, radii = (tuple(int(v) for v in pair) for pair in (start, axes))
        cv2.ellipse(picture, middle, radii, turn, 0, float(rng.uniform(40, 160)), colour, width)
