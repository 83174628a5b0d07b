"""Regions in which maps should lie: boxes from a file, or a folder of masks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnxcam import image
from onnxcam.errors import PictureError, SettingError, listing
from onnxcam.explain import boxes as box_files

_ENDINGS = (".png", ".npy", ".bmp", ".tif", ".tiff", ".webp", ".gif")  # of masks: formats without loss
_MOST = 200_000  # masks in a folder
_PALETTE = 1 << 20  # bytes of a file in which its palette begins


class Region(NamedTuple):
    """A named region of a picture: a box in its pixels, or a file whose pixels above zero are inside."""

    name: str
    place: box_files.Box | Path


class Regions:
    """Regions by picture.

    Arguments:
        boxes: where they are boxes.
        masks: where they are masks, by the picture's path below the folder, without its ending.
    """

    def __init__(self, boxes: box_files.Boxes | None = None, masks: Mapping[tuple[str, ...], Path] | None = None):
        self._boxes = boxes
        self._masks = dict(masks or {})

    def of(self, name: str) -> list[Region]:
        """The regions of a picture: those under the longest end of its path; none where there are none."""
        if self._boxes is not None:
            return [Region("" if box.label is None else str(box.label), box) for box in self._boxes.of(name)]
        parts = _parts(name)
        paths = (self._masks.get(parts[start:]) for start in range(len(parts)))
        return [Region("", path) for path in paths if path is not None][:1]

    @property
    def files(self) -> list[Path]:
        """The masks."""
        return list(self._masks.values())

    @property
    def names(self) -> str:
        """Some of the pictures that have regions, for messages."""
        names = self._boxes.names if self._boxes is not None else ["/".join(parts) for parts in self._masks]
        return listing(names, 3)


def checked(regions: Any) -> Regions:
    """Return regions from `Regions`, a file, a folder of masks, or a mapping from picture to boxes.

    Raises:
        SettingError: the file or folder cannot be used. InputError: something else.
    """
    if isinstance(regions, Regions):
        return regions
    return read(regions) if isinstance(regions, (str, os.PathLike)) else Regions(box_files.checked(regions))


def read(path: str | os.PathLike[str]) -> Regions:
    """Read regions.

    A CSV file with a header `picture,x0,y0,x1,y1` and perhaps `name`, one box a line; JSON as for `onnxcam evaluate
    --boxes`; or a folder of masks that lie and are called as the pictures are (`cats/1.png` for `photos/cats/1.jpg`),
    of the picture's size, where pixels above zero are inside.

    Raises:
        SettingError: it cannot be read, or there is no region in it.
    """
    folder = Path(path)
    if not folder.is_dir():
        return Regions(box_files.read(path, ("name", "label")))
    masks: dict[tuple[str, ...], Path] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in _ENDINGS and not file.name.startswith("."):
            masks[_parts(str(file.relative_to(folder)))] = file
            if len(masks) > _MOST:
                raise SettingError(f"the folder of masks {str(path)!r} has more than {_MOST:,} files; divide it")
    if not masks:
        raise SettingError(
            f"the folder of masks {str(path)!r} has none; expected files that end in {listing(_ENDINGS)}"
        )
    return Regions(masks=masks)


def masks(regions: Sequence[Region], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return by name which pixels of a picture (height, width) are inside, bool `[H, W]`.

    Regions of one name count together; one that lies outside the picture is left out.

    Raises:
        SettingError: a mask cannot be read, or is of another size.
    """
    inside_of: dict[str, np.ndarray] = {}
    for region in regions:
        if isinstance(region.place, Path):
            mask = _mask(region.place, size)
        else:
            box = box_files.mask([region.place], size)
            mask = np.zeros(size, bool) if box is None else box
        if mask.any():
            inside_of[region.name] = inside_of[region.name] | mask if region.name in inside_of else mask
    return inside_of


def inside(heatmap: np.ndarray, mask: np.ndarray) -> float | None:
    """Return the share of a map's energy inside a region, 0 to 1; None for a map without energy."""
    energy = np.maximum(np.asarray(heatmap, np.float64), 0.0)
    total = float(energy.sum())
    return float(energy[mask].sum()) / total if total > 0 else None


def _mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        pixels = image.read_array(path) if path.suffix.lower() == ".npy" else None
        values = _drawn(path) if pixels is None else np.asarray(pixels.values)
    except PictureError as error:
        raise SettingError(f"the mask of a picture cannot be read: {error}") from error
    values = values.max(axis=-1) if values.ndim == 3 else values
    if values.shape != size:
        raise SettingError(
            f"the mask {str(path)!r} is {values.shape[1]} x {values.shape[0]} pixels and its picture "
            f"{size[1]} x {size[0]}; give masks of the pictures' size"
        )
    return np.asarray(values > 0)


def _drawn(path: Path) -> np.ndarray:
    """The values of a picture [H, W, C]; what is transparent is zero, whatever colour is stored there.

    Raises:
        SettingError: it cannot be told what is inside.
    """
    first = _first_color(path)
    if any(first):
        raise SettingError(
            f"the mask {str(path)!r} has a palette whose first colour is {first} and not black, so that it cannot be "
            "told what is inside; save it as grey, with 0 outside and 255 inside"
        )
    values, on_white = (
        np.asarray(image.load(path, value_range=(0, 255), background=color).values)
        for color in ((0, 0, 0), (255, 255, 255))
    )
    if not values.any() and on_white.any() and not on_white.all():
        raise SettingError(
            f"the mask {str(path)!r} is black on transparent, so that it cannot be told what is inside; save it as "
            "grey, with 0 outside and 255 inside"
        )
    return values


def _first_color(path: Path) -> tuple[int, ...]:
    """The first colour of a file's palette (PNG, GIF, BMP), black where it is transparent or there is no palette."""
    try:
        with path.open("rb") as file:
            data = file.read(_PALETTE)
    except OSError:
        return (0, 0, 0)  # loading says why
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return tuple(data[13:16]) if data[10:11] and data[10] & 0x80 else (0, 0, 0)
    if data[:2] == b"BM" and len(data) > 30 and data[28] <= 8:
        start = 14 + int.from_bytes(data[14:18], "little")
        return tuple(data[start : start + 3][::-1])
    color: tuple[int, ...] = (0, 0, 0)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[25:26] == b"\3":
        place = 8
        while place + 8 < len(data) and (kind := data[place + 4 : place + 8]) != b"IDAT":
            content = data[place + 8 : place + 11]
            if kind == b"PLTE":
                color = tuple(content)
            elif kind == b"tRNS" and content[:1] == b"\0":
                color = (0, 0, 0)
            place += 12 + int.from_bytes(data[place : place + 4], "big")
    return color


def _parts(name: str) -> tuple[str, ...]:
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return (*parts[:-1], Path(parts[-1]).stem) if parts else ()
