"""Arrays as pictures: `.npy` files, and values of any number of channels and any type brought to the scale of pixels.

A picture of more than 8 bits, of floating point, or of other than 1, 3 or 4 channels is held as its values, float32
`[H, W, C]`, on the scale of pixels: 0 at the low end of a stated range, 255 at its high end, not rounded. What is shown
of it are three of its bands.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import PictureError
from onnxcam.files import FileError, read_bytes
from onnxcam.image.header import HeaderError, read_array_header

Pixels = NDArray[np.uint8]
Range = tuple[float, float]

# 14-bit sensors and below: whether such data fill 10, 12, 14 or 16 bits cannot be told from them
_LOW_BITS = 1 << 14
_LARGEST_VECTOR = 8 << 20  # bytes
_SAMPLE = 1 << 20  # values converted at a time, and about as many for the percentiles
_DISPLAYED = (2, 98)  # percentiles between which a display is stretched
_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "bool": (0.0, 1.0)}
_STATE_RANGE = "state which values are black and white: --range LO,HI (value_range=)"


@dataclass(frozen=True, eq=False)
class Array:
    """An array with its name for messages; `stored` if it comes from a `.npy` file or its bytes."""

    values: NDArray[Any]
    name: str = "picture"
    path: Path | None = None
    stored: bool = False

    @property
    def subject(self) -> str:
        """The array as messages call it."""
        shape = f"an array of {self.values.dtype} {list(self.values.shape)}"
        return shape if self.path is None else f"{str(self.path)!r}, {shape},"


def read(data: bytes | BinaryIO, size: int, ranks: Sequence[int] = (2, 3, 4)) -> NDArray[Any]:
    """Read a `.npy` file without unpickling anything.

    Arguments:
        data: the file.
        size: its length in bytes.
        ranks: numbers of axes that it may have.

    Raises:
        HeaderError: as of `read_array_header`, or cut off.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    dtype, shape, fortran = read_array_header(stream, ranks)
    needed = math.prod(shape) * dtype.itemsize
    if size - stream.tell() < needed:
        raise HeaderError(f"is a NumPy array that is cut off after {size:,} bytes; copy or save it again")
    values = np.frombuffer(stream.read(needed), dtype)
    ordered = values.reshape(shape, order="F" if fortran else "C")
    return ordered.astype(dtype.newbyteorder("="), copy=False)


def read_vector(path: str) -> NDArray[np.float64]:
    """Read a stored vector, `[D]` or `[1, D]`, such as an embedding.

    Raises:
        PictureError: it cannot be read, or is no vector of finite numbers.
    """
    try:
        data = read_bytes(path, _LARGEST_VECTOR)
        dtype, shape, _ = read_array_header(io.BytesIO(data), (1, 2))
        values = read(data, len(data), (1, 2))
    except (HeaderError, FileError) as error:
        raise PictureError(f"{path!r} {error}") from error
    if len(shape) == 2 and shape[0] != 1:
        raise PictureError(f"{path!r} holds {shape[0]} rows of {shape[1]} numbers; store the one to compare with")
    vector = np.asarray(values, np.float64).reshape(-1)
    if dtype.kind not in "fiu" or not np.isfinite(vector).all():
        raise PictureError(f"{path!r} is no vector of finite numbers; store one as np.save of float32 [D]")
    return vector


def channels_last(array: Array, accepted: Sequence[int]) -> NDArray[Any]:
    """The values as `[H, W, C]`, also where the channels come first.

    Arguments:
        accepted: numbers of channels that the model takes, or that are converted.

    Raises:
        PictureError: neither the first nor the last axis can be the channels, or both.
    """
    values = array.values
    names = " or ".join(map(str, sorted(accepted)))
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3:
        raise PictureError(
            f"{array.subject} is not one picture: expected [H, W] or [H, W, C]; give one picture at a time, or a "
            "tensor of the model's own input shape and type"
        )
    first, last = values.shape[0] in accepted, values.shape[2] in accepted
    if first and last and values.shape[1] not in accepted:
        raise PictureError(
            f"{array.subject} could have its channels first or last; give it as [H, W, C] with another height"
        )
    if not first and not last:
        count = values.shape[2]
        raise PictureError(
            f"{array.subject} has {count} channels, and the model takes {names}; give those that it was trained on, "
            "for example array[..., [3, 2, 1, 7]]"
        )
    return values if last else np.ascontiguousarray(np.moveaxis(values, 0, -1))


def to_scale(values: NDArray[Any], value_range: Range | None) -> tuple[NDArray[np.float32], str | None]:
    """Bring values to the scale of pixels, and say whether some lie outside the stated range.

    Arguments:
        values: numbers of any type.
        value_range: the values that become 0 and 255; None for the whole range of 8 and 16 bits.

    Returns:
        float32 of the same shape, not rounded and not clipped; a sentence, or None.

    Raises:
        HeaderError: no range is stated and the type does not tell it, or values that are not finite.
    """
    check_finite(values)
    low, high = float(values.min()), float(values.max())
    stated = value_range
    if stated is None and values.dtype == np.uint16:
        check_bits(values)
    if stated is None:
        stated = _RANGES.get(values.dtype.name)
    if stated is None:
        raise HeaderError(f"has {values.dtype} values from {low:.6g} to {high:.6g}; {_STATE_RANGE}")
    scaled = np.empty(values.shape, np.float32)
    _scale(values, stated[0], 255.0 / (stated[1] - stated[0]), scaled)
    if low < min(stated) or high > max(stated):
        return scaled, (
            f"its values go from {low:.6g} to {high:.6g}, beyond the stated range {stated[0]:.6g} to {stated[1]:.6g}"
        )
    return scaled, None


def unit(values: NDArray[Any]) -> NDArray[np.float32]:
    """Opacity as float32 from 0 to 1."""
    top = _RANGES.get(values.dtype.name, (0.0, 1.0))[1]
    return np.asarray(np.clip(values.astype(np.float32) / np.float32(top), 0.0, 1.0), np.float32)


def check_finite(values: NDArray[Any]) -> None:
    """Refuse values that are not finite: one makes the whole map NaN.

    Raises:
        HeaderError: some are NaN or infinite.
    """
    missing = int(values.size - np.isfinite(values).sum()) if values.dtype.kind == "f" else 0
    if missing:
        raise HeaderError(
            f"has {missing:,} of {values.size:,} values that are not finite (NaN or infinite); replace them first, for "
            "example by np.nan_to_num"
        )


def check_bits(values: NDArray[Any]) -> None:
    """Refuse 16-bit values of which it cannot be told how many bits they fill.

    Raises:
        HeaderError: none reaches a quarter of the range.
    """
    top = int(values.max(initial=0))
    if 0 < top < _LOW_BITS:
        bits = next(bits for bits in (8, 10, 12, 14) if top < 1 << bits)
        raise HeaderError(
            f"has 16 bits and no value above {top:,}, as data of {bits} bits have; {_STATE_RANGE}, for example --range "
            f"0,{(1 << bits) - 1}, or --range 0,65535 if it is that dark"
        )


def display(values: NDArray[Any], bands: Sequence[int] | None) -> Pixels:
    """The bands that are shown as red, green and blue, or one as grey: uint8 `[H, W, 3]`.

    8-bit values are shown as they are; any others are stretched, all shown bands alike, between their 2nd and 98th
    percentile.

    Arguments:
        values: `[H, W, C]`.
        bands: indices of one or three bands; None for the first three, of one or two channels the first.

    Raises:
        HeaderError: no such band; the message lacks its subject.
    """
    count = values.shape[2]
    indices = list(bands) if bands is not None else list(range(3)) if count >= 3 else [0]
    if any(band >= count for band in indices):
        raise HeaderError(f"has bands 0 to {count - 1}, and --bands (bands=) names {max(indices)}; name some of those")
    shown_bands = values[..., indices]
    if shown_bands.dtype != np.uint8:
        step = max(1, int(np.sqrt(shown_bands.size / _SAMPLE)))
        low, high = np.percentile(shown_bands[::step, ::step], _DISPLAYED)
        if high <= low:
            low, high = float(shown_bands.min()), float(shown_bands.max())
        stretched = np.empty(shown_bands.shape, np.uint8)
        _scale(shown_bands, low, 255.0 / (high - low) if high > low else 0.0, stretched)
        shown_bands = stretched
    return np.ascontiguousarray(np.repeat(shown_bands, 3, axis=2) if len(indices) == 1 else shown_bands)


def _scale(values: NDArray[Any], low: float, scale: float, out: NDArray[Any]) -> None:
    """Write `(values - low) * scale` into `out`, rounded and clipped for 8 bits; in float64, a few rows at a time."""
    step = max(1, _SAMPLE // max(1, values[0].size))
    for start in range(0, len(values), step):
        rows = slice(start, start + step)
        scaled = (values[rows].astype(np.float64) - low) * scale
        out[rows] = np.clip(np.rint(scaled), 0, 255) if out.dtype == np.uint8 else scaled


def check_range(value_range: Any) -> Range | None:
    """A stated range as two numbers, low first where it is not inverted on purpose.

    Raises:
        PictureError: not two different finite numbers.
    """
    if value_range is None:
        return None
    try:
        low, high = (float(end) for end in value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        raise PictureError(f"the range is {value_range!r}; expected two different numbers, black first: --range 0,4095")
    return low, high


def check_bands(bands: Any) -> tuple[int, ...] | None:
    """Indices of one or three bands.

    Raises:
        PictureError: another number of them, or something else than indices.
    """
    if bands is None:
        return None
    indices = list(bands) if isinstance(bands, (list, tuple)) else [bands]
    whole = all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) and i >= 0 for i in indices)
    if not whole or len(indices) not in (1, 3):
        raise PictureError(f"the bands are {bands!r}; expected the indices of one or three, from 0: --bands 2,1,0")
    return tuple(int(index) for index in indices)
