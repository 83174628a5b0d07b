"""Boxes on pictures: from pixels of the model's input to those of the picture and back, and as outlines."""

from __future__ import annotations

from math import ceil, floor

import numpy as np

from onnxcam.image import Geometry
from onnxcam.image.sheet import Pixels

Box = tuple[int, int, int, int]  # x0, y0, x1, y1, the last two exclusive


def to_picture(box: Box, geometry: Geometry) -> Box:
    """A box of the model's input on the picture, clipped to it, at least a pixel."""
    ends = []
    for axis, (low, high) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        scale, shift, size = geometry.scale[axis], geometry.offset[axis], geometry.picture_size[axis]
        start = min(max(floor((low - shift) / scale + 1e-9), 0), size - 1)
        ends.append((start, min(max(ceil((high - shift) / scale - 1e-9), start + 1), size)))
    (top, bottom), (left, right) = ends
    return left, top, right, bottom


def to_input(box: Box, geometry: Geometry) -> Box | None:
    """The pixels of the model's input that show a box of the picture, at least one; None where it was cut off."""
    ends = []
    for axis, (low, high) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        scale, shift, size = geometry.scale[axis], geometry.offset[axis], geometry.input_size[axis]
        first, last = low * scale + shift, high * scale + shift
        if last <= 0 or first >= size:
            return None
        start = min(max(round(first), 0), size - 1)
        ends.append((start, min(max(round(last), start + 1), size)))
    (top, bottom), (left, right) = ends
    return left, top, right, bottom


def outlined(pixels: Pixels, box: Box, thickness: int = 0) -> Pixels:
    """The picture with a box drawn black in white, visible on any ground; by default 1 % of its size.

    The lines lie inside the box, or around it where they would hide most of it.
    """
    width = thickness or max(max(pixels.shape[:2]) // 100, 1)
    drawn = pixels.copy()
    x0, y0, x1, y1 = box
    if min(x1 - x0, y1 - y0) < 12 * width:
        _surround(drawn, box, 3 * width, 255)
        _surround(drawn, (x0 - width, y0 - width, x1 + width, y1 + width), width, 0)
        return drawn
    _frame(drawn, box, 3 * width, 255)
    _frame(drawn, (x0 + width, y0 + width, x1 - width, y1 - width), width, 0)
    return drawn


def _surround(pixels: Pixels, box: Box, width: int, shade: int) -> None:
    """Draw a frame outside a box, as far as the picture reaches."""
    x0, y0, x1, y1 = box
    outside = np.zeros(pixels.shape[:2], bool)
    outside[max(y0 - width, 0) : max(y1 + width, 0), max(x0 - width, 0) : max(x1 + width, 0)] = True
    outside[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = False
    pixels[outside] = shade


def _frame(pixels: Pixels, box: Box, width: int, shade: int) -> None:
    """Draw a frame inside a box."""
    x0, y0, x1, y1 = box
    inside = np.zeros(pixels.shape[:2], bool)
    inside[y0:y1, x0:x1] = True
    inside[y0 + width : y1 - width, x0 + width : x1 - width] = False
    pixels[inside] = shade
