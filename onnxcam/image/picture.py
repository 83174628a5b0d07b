"""Reading pictures: from a path, bytes, a PIL image or an array to upright 8-bit RGB pixels."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import InputError, PictureError
from onnxcam.image.header import LARGEST, NUMPY, Header, HeaderError, orientation, read_header
from onnxcam.image.integrity import check_whole
from onnxcam.image.opencv import import_cv2
from onnxcam.image.pipe import open_picture

# arrays and TIFF files of bands have modules of their own, which photographs do not need
if TYPE_CHECKING:
    from onnxcam.image import arrays

Pixels = NDArray[np.uint8]
Color = Literal["RGB", "BGR"]

MAX_PIXELS = 50_000_000
_WHITE = (255, 255, 255)


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: what is shown of it, uint8 [H, W, 3] RGB, upright.
        name: for messages and files.
        path: of a file.
        values: what the model is to be given where that is more than 8-bit RGB: float32 [H, W, C] on the scale of
            pixels (0 to 255), not rounded; None where `pixels` are all there is.
        tensor: the model's own input `[1, ...]`, where that is what was passed.
        doubts: sentences for the explanation's warnings.
        encoded: the file that the pixels were decoded from, if it is a JPEG; None of any other.
    """

    pixels: Pixels
    name: str = "picture"
    path: Path | None = None
    values: NDArray[np.float32] | None = None
    tensor: NDArray[Any] | None = None
    doubts: tuple[str, ...] = ()
    encoded: bytes | None = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def load(
    source: Any,
    *,
    color: str = "RGB",
    max_pixels: int | None = MAX_PIXELS,
    background: tuple[int, int, int] | None = _WHITE,
    header: Header | None = None,
    channels: int | None = None,
    value_range: arrays.Range | None = None,
    bands: Sequence[int] | None = None,
) -> Picture:
    """Read one picture.

    Args:
        source: a path (a `.npy` file too); an encoded picture as bytes; a PIL image; a uint8 array [H, W], [H, W, 1],
            [H, W, 3] or [H, W, 4], any other with a `value_range` or `channels`; or a Picture, which is returned
            unchanged.
        color: channel order of an *array*: "RGB", or "BGR" as in OpenCV (with alpha: RGBA or BGRA).
        max_pixels: refuse encoded pictures of more pixels than this before anything is decoded; None: no limit.
        background: RGB colour under transparent pixels, white as in most viewers; None drops the alpha channel and
            shows the colour that the file stores there, as `PIL.Image.convert("RGB")` does.
        header: the header of a path or bytes from `peek`; None: it is read from the source.
        channels: how many the model takes; other than 1 or 3 the picture is read as that many bands.
        value_range: the values that become 0 and 255; the picture is then held as `values`. None: the whole range of 8
            and 16 bits, and a refusal of any other type.
        bands: indices of the bands that are shown, see `onnxcam.image.arrays.display`.

    Returns:
        Grey expanded to three channels, 16 bits reduced to their high byte, EXIF orientation applied; of an animation
        the first frame. Anything else as `values`.

    Raises:
        PictureError: the source is missing, not a picture, cut off, too large, or of an unsupported kind.
        DependencyError: OpenCV cannot be loaded.
    """
    if color not in ("RGB", "BGR"):
        raise PictureError(f"color is {color!r}, expected 'RGB' or 'BGR' (the channel order of an array)")
    if isinstance(source, Picture):
        return source
    form = _Form.of(cast(Color, color), background, channels, value_range, bands)
    if isinstance(source, np.ndarray) and form.usual:
        return Picture(_from_array(source, form.color, background))
    array = source if hasattr(source, "stored") else read_array(source, max_pixels, header)
    if array is not None:
        try:
            return form.of_array(array)
        except HeaderError as error:
            raise PictureError(f"{array.subject} {error}") from error
    if isinstance(source, (str, os.PathLike)):
        return _from_path(Path(os.fspath(cast(Any, source))), max_pixels, form, header)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        try:
            header = _checked(header or read_header(io.BytesIO(data)), max_pixels)
            return form.decoded(data, header)
        except HeaderError as error:
            raise PictureError(f"the picture (given as {len(data):,} bytes) {error}") from error
    if hasattr(source, "convert") and hasattr(source, "mode") and hasattr(source, "size"):
        return _from_pil(source, max_pixels, form)
    raise PictureError(
        f"a {type(source).__name__} is not a picture: give a path, encoded bytes, a PIL image or a uint8 array "
        "[H, W] or [H, W, 3]"
    )


def read_array(source: Any, max_pixels: int | None = MAX_PIXELS, header: Header | None = None) -> arrays.Array | None:
    """The array in a `.npy` file or in its bytes, or the array itself; None for any other source.

    Raises:
        PictureError: the file is damaged, too large, or holds something else than numbers.
    """
    npy_path = isinstance(source, (str, os.PathLike)) and Path(os.fspath(cast(Any, source))).suffix.lower() == ".npy"
    encoded = isinstance(source, (bytes, bytearray, memoryview)) and bytes(source[:6]) == b"\x93NUMPY"
    if header is None and not (isinstance(source, np.ndarray) or npy_path or encoded):
        return None
    if header is not None and header.format != NUMPY:
        return None
    from onnxcam.image import arrays

    if isinstance(source, np.ndarray):
        return arrays.Array(source)
    path = Path(os.fspath(cast(Any, source))) if isinstance(source, (str, os.PathLike)) else None
    subject = repr(str(path))
    try:
        if path is not None:
            with open_picture(path) as stream:
                header = header or read_header(stream)
                if header.format != NUMPY:
                    return None
                _checked(header, max_pixels)
                size = stream.seek(0, os.SEEK_END)
                return arrays.Array(arrays.read(stream, size), path.name, path, stored=True)
        if encoded:
            subject = f"the picture (given as {len(source):,} bytes)"
            _checked(read_header(io.BytesIO(source)), max_pixels)
            return arrays.Array(arrays.read(bytes(source), len(source)), stored=True)
    except HeaderError as error:
        raise PictureError(f"{subject} {error}") from error
    return None


def peek(source: Any) -> Header | None:
    """Read the header of a picture file or of encoded bytes; nothing is decoded.

    Returns:
        Format and size; None for a pipe, or a picture that cannot be read, of which `load` reports the reason.
    """
    try:
        if isinstance(source, (bytes, bytearray, memoryview)):
            return read_header(io.BytesIO(source))
        path = Path(source)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return read_header(file)
    except (OSError, ValueError, HeaderError):
        return None


def as_pixels(picture: Picture | Pixels) -> Pixels:
    """Return the pixels, uint8 [H, W, 3] RGB, of a Picture or of an array of that form.

    Raises:
        InputError: a different shape or dtype.
    """
    pixels = picture.pixels if isinstance(picture, Picture) else np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise InputError(
            f"the picture is {pixels.dtype} {list(pixels.shape)}, expected uint8 [H, W, 3] RGB; read it with load()"
        )
    return np.ascontiguousarray(pixels)


class _Form(NamedTuple):
    """The form in which a picture is to be read: arguments of `load`."""

    color: Color
    background: tuple[int, int, int] | None
    channels: int | None
    value_range: arrays.Range | None
    bands: tuple[int, ...] | None

    @classmethod
    def of(
        cls,
        color: Color,
        background: tuple[int, int, int] | None,
        channels: int | None,
        value_range: Any,
        bands: Any,
    ) -> _Form:
        """The form, checked.

        Raises:
            PictureError: a range or bands that cannot be.
        """
        if value_range is None and bands is None:
            return cls(color, background, channels, None, None)
        from onnxcam.image import arrays

        return cls(color, background, channels, arrays.check_range(value_range), arrays.check_bands(bands))

    @property
    def photographic(self) -> bool:
        """Whether the model takes grey or colours."""
        return self.channels in (None, 1, 3)

    @property
    def usual(self) -> bool:
        """Whether 8-bit RGB is all that the model is to be given."""
        return self.photographic and self.value_range is None

    @property
    def accepted(self) -> tuple[int, ...]:
        """The numbers of channels that can be converted to those of the model."""
        return (1, 3, 4) if self.channels in (None, 1, 3) else (self.channels,)

    def of_array(self, array: arrays.Array) -> Picture:
        """A picture from an array that was passed or read from a `.npy` file."""
        from onnxcam.image import arrays

        values = array.values
        if array.stored or not self.usual:
            values = arrays.channels_last(array, self.accepted)
        if self.usual and (not array.stored or values.dtype == np.uint8):
            pixels = _from_array(values, self.color, self.background)
            return Picture(pixels, array.name, array.path)
        if self.color == "BGR" and values.shape[2] in (3, 4) and self.photographic:
            values = values[..., [2, 1, 0, *range(3, values.shape[2])]]
        return self.of_values(values, array.name, array.path)

    def of_values(
        self, values: NDArray[Any], name: str = "picture", path: Path | None = None, alpha: bool = True
    ) -> Picture:
        """A picture of values [H, W, C], RGB or bands, that are more than 8-bit RGB.

        Arguments:
            name, path: of the picture.
            alpha: whether the last of four bands is opacity, where the model takes colours.

        Raises:
            HeaderError: another number of bands than the model takes; the message lacks its subject.
        """
        from onnxcam.image import arrays

        count = values.shape[2]
        if count not in self.accepted:
            raise HeaderError(
                f"has {count} bands, and the model takes {' or '.join(map(str, self.accepted))}; give those that it "
                "was trained on, in their order"
            )
        colors = values[..., :3] if count == 4 and self.photographic else values
        scaled, doubt = arrays.to_scale(colors, self.value_range)
        doubts = [] if doubt is None else [doubt]
        if count == 4 and self.photographic and alpha and self.background is not None:
            opacity = arrays.unit(values[..., 3:])
            scaled = scaled * opacity + np.asarray(self.background, np.float32) * (np.float32(1.0) - opacity)
        elif count == 4 and self.photographic and not alpha:
            doubts.append("its fourth band is not declared to be opacity, and is left out")
        pixels = arrays.display(colors, self.bands)
        return Picture(pixels, name, path, np.ascontiguousarray(scaled), doubts=tuple(doubts))

    def decoded(self, data: bytes, header: Header, name: str = "picture", path: Path | None = None) -> Picture:
        """A picture from encoded data.

        Raises:
            HeaderError: it cannot be decoded; the message lacks its subject.
        """
        pixels = _decode(data, header, self)
        if isinstance(pixels, tuple):
            return self.of_values(pixels[0], name, path, pixels[1])
        return Picture(pixels, name, path, encoded=data if header.format == "JPEG" else None)


def _from_path(path: Path, max_pixels: int | None, form: _Form, header: Header | None) -> Picture:
    try:
        with open_picture(path) as stream:
            header = _checked(header or read_header(stream), max_pixels)
            if header.format == NUMPY:  # under another name than .npy
                from onnxcam.image import arrays

                values = arrays.read(stream, stream.seek(0, os.SEEK_END))
                return form.of_array(arrays.Array(values, path.name, path, stored=True))
            # metadata can be arbitrarily large; 8 bytes per pixel suffice for any uncompressed photograph
            bound = (64 << 20) + (8 * LARGEST if header.format == "TIFF" else 8 * header.pixels)
            if stream.seek(0, os.SEEK_END) > bound:
                raise HeaderError(
                    f"is larger than {bound:,} bytes for {header.width}x{header.height} pixels; save it again without "
                    "its metadata"
                )
            stream.seek(0)
            data = stream.read(bound)
        return form.decoded(data, header, path.name or "picture", path)
    except HeaderError as error:
        raise PictureError(f"{str(path)!r} {error}") from error


def _checked(header: Header, max_pixels: int | None) -> Header:
    _check_pixels(header.height, header.width, max_pixels)
    return header


def _check_pixels(height: int, width: int, max_pixels: int | None) -> None:
    if max_pixels is not None and height * width > max_pixels:
        raise HeaderError(
            f"has {width}x{height} = {height * width:,} pixels, more than the limit of {max_pixels:,}; scale it down, "
            "or raise max_pixels"
        )


def _decode(data: bytes, header: Header, form: _Form) -> Pixels | tuple[NDArray[Any], bool]:
    """8-bit RGB; or values [H, W, C] and whether the last of four is opacity."""
    check_whole(data, header)
    if header.format == "TIFF":
        from onnxcam.image import tiff
    if header.format == "TIFF" and not tiff.is_plain(data, form.channels):
        return orient(tiff.read(data), orientation(data, "TIFF")), tiff.has_alpha(data)
    cv2 = import_cv2()
    # BMP's fourth byte is undefined and JPEG has no alpha; the others are read unchanged to keep alpha
    plain = header.format in ("JPEG", "BMP")
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION if plain else cv2.IMREAD_UNCHANGED
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        reason = str(getattr(error, "err", "") or error).strip().splitlines()[0]
        raise HeaderError(f"is a {header.format} that OpenCV cannot decode ({reason}); save it again") from error
    if pixels is None:
        raise HeaderError(f"is a {header.format} that cannot be decoded; it is damaged, so save or copy it again")
    turn = orientation(data, header.format)
    premultiplied = False
    if header.format == "TIFF":
        # libtiff has already multiplied 8-bit colours by alpha, and OpenCV has already applied the orientation
        premultiplied, turn = pixels.dtype == np.uint8, 1
    if plain and form.usual:
        return orient(np.asarray(pixels, np.uint8), turn)
    if not form.usual:
        values = np.atleast_3d(pixels)
        if not plain and values.shape[2] >= 3:
            values = values[..., [2, 1, 0, *range(3, values.shape[2])]]
        return orient(values, turn), True
    if pixels.dtype == np.uint16:
        _check_bits(pixels[..., :3] if pixels.ndim == 3 else pixels)
    return orient(_to_rgb(_to_uint8(pixels), "BGR", form.background, premultiplied), turn)


def _check_bits(values: NDArray[Any]) -> None:
    from onnxcam.image import arrays

    arrays.check_bits(values)


def _to_uint8(pixels: NDArray[Any]) -> Pixels:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        # the high byte, as in PIL and OpenCV's 8-bit readers
        return (pixels >> 8).astype(np.uint8)
    raise HeaderError(f"has {pixels.dtype} pixels, expected 8 or 16 bits per channel; save it as 8-bit PNG or JPEG")


def _to_rgb(
    pixels: Pixels, color: Color, background: tuple[int, int, int] | None, premultiplied: bool = False
) -> Pixels:
    """Convert [H, W], [H, W, 1 | 3 | 4] in `color` order to contiguous [H, W, 3] RGB."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    rgb = pixels[..., :3] if color == "RGB" else pixels[..., 2::-1]
    if pixels.shape[2] == 4 and background is not None:
        alpha = pixels[..., 3:].astype(np.uint16)
        if (alpha < 255).any():
            under = np.array(background, np.uint16) * (255 - alpha)
            over = rgb.astype(np.uint16) * (255 if premultiplied else alpha)
            rgb = np.minimum((over + under + 127) // 255, 255).astype(np.uint8)
    if color == "BGR" and rgb.strides == (3 * pixels.shape[1], 3, -1):
        return np.asarray(import_cv2().cvtColor(pixels, import_cv2().COLOR_BGR2RGB), np.uint8)  # many times faster
    return np.ascontiguousarray(rgb)


def orient(pixels: Pixels, orientation: int) -> Pixels:
    """Turn a picture [H, W, C] upright from its EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _from_array(array: NDArray[Any], color: Color, background: tuple[int, int, int] | None) -> Pixels:
    actual = f"an array of {array.dtype} {list(array.shape)}"
    expected = "expected uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] with values 0 to 255"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        advice = "give one picture at a time"
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            advice = "it looks channels-first, so pass array.transpose(1, 2, 0)"
        elif array.ndim == 4:
            advice = "it looks like a batch: pass its pictures as a list, or a prepared batch to attribute()"
        raise PictureError(f"{actual} is not a picture: {expected}; {advice}")
    if array.dtype != np.uint8:
        advice = "pass an already prepared tensor to attribute() instead"
        if array.dtype.kind == "f":
            advice = (
                "scale it to 0-255 and use .astype(np.uint8), state its range (value_range=), or pass an already "
                "prepared tensor to attribute()"
            )
        raise PictureError(f"{actual} is not a picture: {expected}; {advice}")
    if array.size == 0:
        raise PictureError(f"{actual} has no pixels: {expected}")
    return _to_rgb(np.asarray(array), color, background).copy()


def _from_pil(image: Any, max_pixels: int | None, form: _Form) -> Picture:
    """Read a PIL image, by its attributes, so that PIL is never imported."""
    width, height = image.size
    file = getattr(image, "filename", None)
    path = Path(os.fsdecode(file)) if file else None
    name = path.name if path is not None else "picture"
    subject = f"the PIL image {name!r}" if path is not None else "the PIL image"
    try:
        _check_pixels(height, width, max_pixels)
        if width < 1 or height < 1:
            raise HeaderError(f"has {width}x{height} pixels; give one with pixels in it")
        # load first: while loading a TIFF, PIL applies the orientation and removes its tag
        image.load()
        turn = int(image.getexif().get(0x0112, 1)) if hasattr(image, "getexif") else 1
        mode = str(image.mode)
        if not form.usual and (not form.photographic or mode in ("I", "F") or mode.startswith("I;16")):
            values = orient(np.atleast_3d(np.asarray(image)), turn)
            return form.of_values(values, name, path, alpha="A" in mode)
        return Picture(orient(_pil_pixels(image, form.background), turn), name, path)
    except HeaderError as error:
        raise PictureError(f"{subject} {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureError(f"{subject} cannot be decoded ({error}); give a whole picture file") from error


def _pil_pixels(image: Any, background: tuple[int, int, int] | None) -> Pixels:
    mode = str(image.mode)
    if mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        _check_bits(values)
        return _to_rgb(_to_uint8(values), "RGB", background)
    if mode in ("I", "F"):
        raise HeaderError(
            f"has mode {mode!r} (32 bits per pixel); state its range (value_range=), or convert it to 8 "
            "bits, for example mode 'L' or 'RGB'"
        )
    transparent = mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in getattr(image, "info", {})
    converted = image.convert("RGBA" if transparent else "RGB")
    return _to_rgb(np.array(converted, np.uint8), "RGB", background)
