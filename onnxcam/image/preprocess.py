"""Preprocessing: from a picture to the model's input tensor, exactly as in training.

`tensor = (pixel * scale - mean) / std`, pixels 0 to 255, channels in `color` order, after `resize` and then `crop`.
docs/reference/preprocessing.md states every rounding rule for other languages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import PictureError, PreprocessError, listing, nearest
from onnxcam.image.geometry import Geometry, Size
from onnxcam.image.opencv import import_cv2
from onnxcam.image.picture import Picture, load
from onnxcam.image.resample import INTERPOLATIONS, resize_values
from onnxcam.image.resample import resize as resize_pixels

if TYPE_CHECKING:
    from onnxcam.image.arrays import Range

Pixels = NDArray[np.uint8]

COLORS = ("RGB", "BGR", "L", "bands")
MODES = ("stretch", "shortest", "letterbox")
ANCHORS = ("center", "center_floor", "top_left", "top_right", "bottom_left", "bottom_right")
# enlarging the short side of a very narrow picture multiplies the long one; 200 million pixels take 600 MB
_LARGEST = 200_000_000
DTYPES = ("float32", "float16", "float64", "uint8")


@dataclass(frozen=True)
class Resize:
    """Resizing; `size` is (h, w), or n for the shorter side (mode "shortest") or a square (the other modes)."""

    mode: Literal["stretch", "shortest", "letterbox"]
    size: int | Size
    interpolation: str = "bilinear"
    antialias: bool = True
    pad_value: tuple[float, ...] = (0.0,)

    def resized(self, picture: Size) -> Size:
        """Height and width to which a picture of this (height, width) is resized, before padding."""
        if self.mode == "stretch":
            return _pair(self.size)
        if self.mode == "shortest" and isinstance(self.size, int):
            short, long = sorted(picture)
            # torchvision's Resize(n) truncates the longer side
            longer = max(int(self.size * long / short), 1)
            return (self.size, longer) if picture[0] <= picture[1] else (longer, self.size)
        height, width = _pair(self.size)
        ratios = (picture[0] / height, picture[1] / width)
        ratio = max(ratios) if self.mode == "letterbox" else min(ratios)
        fitted = (round(picture[0] / ratio), round(picture[1] / ratio))
        if self.mode == "letterbox":
            return min(max(fitted[0], 1), height), min(max(fitted[1], 1), width)
        return max(fitted[0], height), max(fitted[1], width)


@dataclass(frozen=True)
class Crop:
    """Cropping to `size` (h, w); a smaller picture is padded with black first."""

    size: Size
    anchor: str = "center"

    def offset(self, size: Size) -> tuple[int, int]:
        """Top and left of a picture of this size on the crop; negative where the crop cuts."""
        vertical, _, horizontal = self.anchor.partition("_")
        if self.anchor.startswith("center"):
            vertical = horizontal = self.anchor
        return _anchored(size[0], self.size[0], vertical), _anchored(size[1], self.size[1], horizontal)

    def window(self, size: Size) -> tuple[slice, slice] | None:
        """The rows and columns inside the crop of a picture of this size; None if it must be padded."""
        if size[0] < self.size[0] or size[1] < self.size[1]:
            return None
        top, left = self.offset(size)
        return slice(-top, self.size[0] - top), slice(-left, self.size[1] - left)


def _anchored(old: int, new: int, anchor: str) -> int:
    if anchor in ("top", "left"):
        return 0
    if anchor in ("bottom", "right"):
        return new - old
    if new >= old:
        return (new - old) // 2
    # torchvision's CenterCrop rounds half to even; Hugging Face's rounds down
    return -((old - new) // 2) if anchor == "center_floor" else -round((old - new) / 2.0)


def _pair(size: int | Size) -> Size:
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True)
class Preprocess:
    """How pictures become tensors; `mean` and `std` have one value per channel of `color`, in that order.

    `color` "bands" takes `bands` channels in the order of the picture; `value_range` are the values of pictures of more
    than 8 bits, or of arrays, that count as pixels of 0 and 255.
    """

    color: Literal["RGB", "BGR", "L", "bands"] = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: Resize | None = None
    crop: Crop | None = None
    bands: int = 0
    value_range: Range | None = None
    _tables: dict[str, NDArray[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def channels(self) -> int:
        """1 for "L", `bands` for "bands", else 3."""
        return {"L": 1, "bands": self.bands}.get(self.color, 3)

    @property
    def output_size(self) -> Size | None:
        """Height and width of every tensor; None if they depend on the picture."""
        if self.crop is not None:
            return self.crop.size
        if self.resize is None or self.resize.mode == "shortest":
            return None
        return _pair(self.resize.size)

    @property
    def range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The smallest and the largest possible value of a tensor, per channel of `color`."""
        ends = (np.array([[0.0], [255.0]]) * self.scale - self.mean) / self.std
        return ends.min(axis=0), ends.max(axis=0)

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any], input_size: Size | None = None) -> Preprocess:
        """Read the manifest's JSON form.

        Args:
            spec: keys `color` (with `channels`, their number, for "bands"), `scale`, `mean`, `std` (a number or one
                per channel), `resize`, `crop`, and `range`, the values that count as pixels of 0 and 255.
            input_size: the model's (height, width), used if the key `resize` is missing (the picture is stretched) or
                has no size; with an explicit null nothing is resized.

        Raises:
            PreprocessError: an unknown key or value, or a missing one.
        """
        _check_keys(spec, ("color", "channels", "scale", "mean", "std", "resize", "crop", "range"), "preprocess")
        color = _choice(spec.get("color", "RGB"), COLORS, "color")
        channels = _read_channels(spec.get("channels"), color)
        std = _numbers(spec.get("std", 1.0), channels, "std")
        if 0.0 in std:
            raise PreprocessError(f"preprocess std is {list(std)}: dividing by 0; give 1 for no scaling")
        return cls(
            cast(Any, color),
            _number(spec.get("scale", 1.0), "scale"),
            _numbers(spec.get("mean", 0.0), channels, "mean"),
            std,
            _read_resize(spec, channels, input_size),
            _read_crop(spec.get("crop"), input_size),
            channels if color == "bands" else 0,
            _read_range(spec.get("range")),
        )

    def to_dict(self) -> dict[str, Any]:
        """The complete JSON form; `from_dict` reads it back to an equal object."""
        resize, crop = self.resize, self.crop
        further: dict[str, Any] = {"channels": self.bands} if self.color == "bands" else {}
        further |= {} if self.value_range is None else {"range": list(self.value_range)}
        return further | {
            "color": self.color,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": resize
            and {
                "mode": resize.mode,
                "size": resize.size if isinstance(resize.size, int) else list(resize.size),
                "interpolation": resize.interpolation,
                "antialias": resize.antialias,
                "pad_value": list(resize.pad_value) if len(resize.pad_value) > 1 else resize.pad_value[0],
            },
            "crop": crop and {"size": list(crop.size), "anchor": crop.anchor},
        }

    def transform(self, picture: Picture | Pixels) -> tuple[NDArray[Any], Geometry]:
        """Resize and crop a picture: uint8 [h, w, C] in `color` order, not yet scaled, and the geometry.

        Of a picture with `values` these, float32.
        """
        loaded = load(picture, channels=self.channels, value_range=self.value_range)
        pixels: NDArray[Any] = loaded.pixels if loaded.values is None else loaded.values
        resize: Any = resize_pixels if loaded.values is None else resize_values
        original = (pixels.shape[0], pixels.shape[1])
        pixels = _recolor(pixels, self.color, self.channels)
        offset = (0, 0)
        if self.resize is not None:
            resized = self.resize.resized(original)
            if resized[0] * resized[1] > _LARGEST:
                raise PictureError(
                    f"a picture of {original[0]}x{original[1]} (height x width) would be resized to "
                    f"{resized[0]}x{resized[1]} pixels, more than the limit of {_LARGEST:,}: it is too narrow for this "
                    "model; crop it first"
                )
            how = (self.resize.interpolation, self.resize.antialias)
            cut = None if self.crop is None or self.resize.mode == "letterbox" else self.crop.window(resized)
            if self.crop is not None and cut is not None:
                cropped = resize(pixels, resized, *how, cut)
                return cropped, Geometry(original, resized, (-cut[0].start, -cut[1].start), self.crop.size)
            pixels = resize(pixels, resized, *how)
            if self.resize.mode == "letterbox":
                box = _pair(self.resize.size)
                offset = ((box[0] - resized[0]) // 2, (box[1] - resized[1]) // 2)
                pixels = _place(pixels, box, offset, self.resize.pad_value)
        else:
            resized = original
        if self.crop is not None:
            moved = self.crop.offset((pixels.shape[0], pixels.shape[1]))
            pixels = _place(pixels, self.crop.size, moved, (0.0,))
            offset = (offset[0] + moved[0], offset[1] + moved[1])
        return pixels, Geometry(original, resized, offset, (pixels.shape[0], pixels.shape[1]))

    def apply(
        self, picture: Picture | Pixels, *, layout: str = "NCHW", dtype: str = "float32"
    ) -> tuple[NDArray[Any], Geometry]:
        """Preprocess one picture to the model's input.

        Args:
            picture: a Picture, or any source that `load` reads.
            layout: "NCHW" or "NHWC".
            dtype: "float32", "float16", "float64", or "uint8" if the values are whole numbers.

        Returns:
            The tensor [1, C, h, w] or [1, h, w, C], and the Geometry that maps heatmaps back.

        Raises:
            PreprocessError: an unknown layout or dtype, or values out of the range of uint8.
            PictureError: the picture cannot be read.
        """
        _choice(layout, ("NCHW", "NHWC"), "layout")
        _choice(dtype, DTYPES, "dtype")
        pixels, geometry = self.transform(picture)
        height, width, channels = pixels.shape
        shape = (1, channels, height, width) if layout == "NCHW" else (1, height, width, channels)
        if pixels.dtype != np.uint8:
            planes = self._scaled(pixels, dtype)
            return np.ascontiguousarray(np.moveaxis(planes, 2, 0) if layout == "NCHW" else planes)[None], geometry
        table = self._table(dtype)
        tensor = np.empty(shape, table.dtype)
        planes = tensor[0] if layout == "NCHW" else np.moveaxis(tensor[0], 2, 0)
        if table.dtype == np.float16:  # not supported by cv2.LUT
            for channel in range(channels):
                planes[channel] = table[channel][pixels[..., channel]]
            return tensor, geometry
        cv2 = import_cv2()
        for channel in range(channels):
            planes[channel] = cv2.LUT(np.ascontiguousarray(pixels[..., channel]), table[channel])
        return tensor, geometry

    def _scaled(self, values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
        """The tensor's values [h, w, C] of those on the scale of pixels."""
        tensor = (values.astype(np.float64) * self.scale - np.asarray(self.mean)) / np.asarray(self.std)
        if dtype == "uint8":
            self._table(dtype)  # refuses a scaling that makes no whole numbers from 0 to 255
            tensor = np.clip(np.rint(tensor), 0, 255)
        return np.asarray(tensor.astype(dtype))

    def _table(self, dtype: str) -> NDArray[Any]:
        """The tensor value of each of the 256 pixel values, [C, 256]: exact, and faster than arithmetic per pixel."""
        if dtype not in self._tables:
            mean, std = np.array(self.mean)[:, None], np.array(self.std)[:, None]
            values = (np.arange(256.0) * self.scale - mean) / std
            if dtype == "uint8" and not (
                np.allclose(values, np.rint(values)) and 0 <= values.min() <= values.max() < 256
            ):
                raise PreprocessError(
                    f"the model takes uint8 but its preprocessing gives {values.min():.4g} to {values.max():.4g}; for "
                    "a uint8 input use scale 1, mean 0 and std 1 (preset 'raw')"
                )
            self._tables[dtype] = (np.rint(values) if dtype == "uint8" else values).astype(dtype)
        return self._tables[dtype]


def _recolor(pixels: NDArray[Any], color: str, channels: int) -> NDArray[Any]:
    if color == "bands":
        if pixels.shape[2] != channels:
            raise PictureError(f"the picture has {pixels.shape[2]} channels, and the model takes {channels} bands")
        return pixels
    if pixels.shape[2] == 1:
        return pixels if color == "L" else np.repeat(pixels, 3, axis=2)
    if color == "RGB":
        return pixels
    if color == "BGR":
        return pixels[..., ::-1]
    if pixels.dtype != np.uint8:
        return np.asarray(pixels @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    # PIL's convert("L"): ITU-R 601 in 16-bit fixed point
    weighted = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((weighted + 0x8000) >> 16).astype(np.uint8)[..., None]


def _place(pixels: NDArray[Any], size: Size, offset: tuple[int, int], fill: tuple[float, ...]) -> NDArray[Any]:
    """Place the picture with its top left corner at `offset` on a canvas of `size`; pixels outside are dropped."""
    rows, columns = (
        (max(at, 0), min(at + old, new), max(-at, 0))
        for at, old, new in zip(offset, pixels.shape[:2], size, strict=True)
    )
    height, width = max(rows[1] - rows[0], 0), max(columns[1] - columns[0], 0)
    inner = pixels[rows[2] : rows[2] + height, columns[2] : columns[2] + width]
    if (height, width) == size:
        return inner
    canvas = np.empty((*size, pixels.shape[2]), pixels.dtype)
    canvas[:] = np.rint(np.clip(fill, 0, 255)).astype(pixels.dtype)
    canvas[rows[0] : rows[0] + height, columns[0] : columns[0] + width] = inner
    return canvas


def _read_channels(count: Any, color: str) -> int:
    if color != "bands":
        usual = 1 if color == "L" else 3
        if count not in (None, usual):
            raise PreprocessError(
                f"preprocess channels is {count!r} and color {color!r}; for {count} give color 'bands'"
            )
        return usual
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 65536:
        raise PreprocessError(f"preprocess channels is {count!r}, expected the number of bands, with color 'bands'")
    return count


def _read_range(ends: Any) -> Range | None:
    if ends is None:
        return None
    pair = list(ends) if isinstance(ends, Sequence) and not isinstance(ends, str) else []
    if len(pair) != 2 or _number(pair[0], "range") == _number(pair[1], "range"):
        raise PreprocessError(f"preprocess range is {ends!r}, expected [low, high]: the values of black and of white")
    return float(pair[0]), float(pair[1])


def _read_resize(spec: Mapping[str, Any], channels: int, input_size: Size | None) -> Resize | None:
    if "resize" not in spec:
        return Resize("stretch", input_size) if input_size else None
    resize = spec["resize"]
    if resize is None:
        return None
    if not isinstance(resize, Mapping):
        raise PreprocessError(f"preprocess resize is {resize!r}, expected null or {{'mode': ..., 'size': ...}}")
    _check_keys(resize, ("mode", "size", "interpolation", "antialias", "pad_value"), "resize")
    mode = _choice(resize.get("mode", "stretch"), MODES, "resize mode")
    antialias = resize.get("antialias", True)
    if not isinstance(antialias, bool):
        raise PreprocessError(f"preprocess resize antialias is {antialias!r}, expected true or false")
    pad = resize.get("pad_value", 0.0)
    return Resize(
        cast(Any, mode),
        _size(resize.get("size", input_size), "resize size"),
        _choice(resize.get("interpolation", "bilinear"), INTERPOLATIONS, "resize interpolation"),
        antialias,
        _numbers(pad, channels, "pad_value") if isinstance(pad, Sequence) else (_number(pad, "pad_value"),),
    )


def _read_crop(crop: Any, input_size: Size | None) -> Crop | None:
    if crop is None:
        return None
    if not isinstance(crop, Mapping):
        raise PreprocessError(f"preprocess crop is {crop!r}, expected null or {{'size': [h, w], 'anchor': 'center'}}")
    _check_keys(crop, ("size", "anchor"), "crop")
    size = _pair(_size(crop.get("size", input_size), "crop size"))
    return Crop(size, _choice(crop.get("anchor", "center"), ANCHORS, "crop anchor"))


def _check_keys(spec: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in spec:
        if key not in keys:
            close = nearest(str(key), keys, 1)[0]
            raise PreprocessError(f"{where} has no key {key!r}; did you mean {close!r}? Its keys are {listing(keys)}")


def _choice(value: Any, options: tuple[str, ...], what: str) -> str:
    if not isinstance(value, str) or value not in options:
        close = f"; did you mean {nearest(value, options, 1)[0]!r}?" if isinstance(value, str) and value else ""
        raise PreprocessError(f"preprocess {what} is {value!r}, expected one of {listing(options)}{close}")
    return value


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PreprocessError(f"preprocess {what} is {value!r}, expected a number")
    return float(value)


def _numbers(value: Any, channels: int, what: str) -> tuple[float, ...]:
    """Read one number for all channels, or a list of one per channel."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        numbers = tuple(_number(v, what) for v in value)
        if len(numbers) not in (1, channels):
            raise PreprocessError(f"preprocess {what} has {len(numbers)} values, expected {channels}, one per channel")
    else:
        numbers = (_number(value, what),)
    return numbers * channels if len(numbers) == 1 else numbers


def _size(value: Any, what: str) -> int | Size:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int) or not 1 <= v <= 65536:
            raise PreprocessError(f"preprocess {what} is {value!r}, expected n or [height, width] in pixels")
    if isinstance(value, int):
        return value
    if len(values) != 2:
        raise PreprocessError(f"preprocess {what} is {value!r}, expected n or [height, width] in pixels")
    return values[0], values[1]
