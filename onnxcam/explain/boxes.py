"""Boxes around objects, read from JSON or CSV files."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam import documents, files
from onnxcam.errors import InputError, SettingError, listing
from onnxcam.files import FileError

_LARGEST = 8 << 20  # bytes
_MOST = 100_000
_SIDES = ("x0", "y0", "x1", "y1")
_PICTURE = ("picture", "image", "file", "filename")


@dataclass(frozen=True, slots=True)
class Box:
    """A box in pixels of the upright picture, from (x0, y0) up to and without (x1, y1); of one class, or of any."""

    x0: float
    y0: float
    x1: float
    y1: float
    label: str | int | None = None


class Boxes:
    """Boxes by picture.

    Arguments:
        by_picture: boxes by the picture's name: a path as it was given, its end, or the file's name alone.
    """

    def __init__(self, by_picture: Mapping[str, Sequence[Box]]) -> None:
        self._by_key = {_key(name): list(boxes) for name, boxes in by_picture.items()}

    def of(self, name: str) -> list[Box]:
        """The boxes of a picture: those under the longest end of its path; none where there are none."""
        parts = _key(name).split("/")
        for start in range(len(parts)):
            boxes = self._by_key.get("/".join(parts[start:]))
            if boxes is not None:
                return boxes
        return []

    @property
    def names(self) -> list[str]:
        """Names of the pictures that have boxes."""
        return list(self._by_key)

    def __len__(self) -> int:
        return sum(len(boxes) for boxes in self._by_key.values())


def read(path: str | os.PathLike[str], labels: Sequence[str] = ("label",)) -> Boxes:
    """Read boxes from JSON or CSV.

    JSON: `{"cat.jpg": [[x0, y0, x1, y1], ...]}`, where a box may also be `{"box": [x0, y0, x1, y1], "label": "tabby"}`;
    or a list of such objects with `"picture"`. CSV: a header with picture, x0, y0, x1, y1 and perhaps label, one box a
    line.

    Arguments:
        path: of the file.
        labels: names of the column or key that labels a box, the first that there is.

    Raises:
        SettingError: the file cannot be read, or something in it is not a box.
    """
    path = Path(path)
    try:
        data = files.read_bytes(path, _LARGEST).removeprefix(b"\xef\xbb\xbf")
    except FileError as error:
        raise SettingError(f"boxes file {str(path)!r} {error}") from error
    try:
        boxes = (_json if data[:1000].lstrip()[:1] in (b"{", b"[") else _csv)(data, labels)
    except (SettingError, FileError, csv.Error) as error:
        raise SettingError(f"boxes file {str(path)!r}: {error}") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"boxes file {str(path)!r} is not UTF-8 text; save it as UTF-8") from error
    if not boxes:
        raise SettingError(f"boxes file {str(path)!r} has no box; give a line picture,x0,y0,x1,y1 for each")
    return Boxes(boxes)


def mask(boxes: Sequence[Box], size: tuple[int, int]) -> np.ndarray | None:
    """Which pixels of a picture (height, width) lie in a box, bool `[H, W]`; None where no box reaches into it."""
    inside = np.zeros(size, bool)
    for box in boxes:
        rows = slice(max(0, math.floor(box.y0)), max(0, math.ceil(box.y1)))
        columns = slice(max(0, math.floor(box.x0)), max(0, math.ceil(box.x1)))
        inside[rows, columns] = True
    return inside if inside.any() else None


def _key(name: str) -> str:
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _json(text: bytes, labels: Sequence[str]) -> dict[str, list[Box]]:
    try:
        data = documents.parse_json(text)
    except ValueError as error:
        raise SettingError(f"it {error}") from error
    by_picture: dict[str, list[Box]] = {}
    entries: list[tuple[Any, Any]] = []
    if isinstance(data, dict):
        for name, boxes in data.items():
            single = isinstance(boxes, dict) or (
                isinstance(boxes, list) and boxes and not isinstance(boxes[0], (list, dict))
            )
            for box in [boxes] if single else boxes if isinstance(boxes, list) else [boxes]:
                entries.append((name, box))
    else:
        entries = [(entry.get("picture") if isinstance(entry, dict) else None, entry) for entry in data]
    _require_few(len(entries))
    for name, entry in entries:
        if not isinstance(name, str):
            raise SettingError(f'{json.dumps(entry)[:80]} does not name a picture; give "picture": "cat.jpg"')
        sides, label = entry, None
        if isinstance(entry, dict):
            sides, label = entry.get("box"), next((entry[key] for key in labels if key in entry), None)
        by_picture.setdefault(name, []).append(_box(sides, label, name))
    return by_picture


def _csv(text: bytes, labels: Sequence[str]) -> dict[str, list[Box]]:
    reader = csv.DictReader(documents.lines_of(text))
    header = [name.strip().lower() for name in reader.fieldnames or []]
    reader.fieldnames = header
    column = next((name for name in _PICTURE if name in header), None)
    if column is None or not set(_SIDES) <= set(header):
        raise SettingError(
            f"the header is {listing([name[:60] for name in header])}; expected picture, x0, y0, x1, y1 and perhaps "
            "label"
        )
    by_picture: dict[str, list[Box]] = {}
    for count, row in enumerate(reader):
        _require_few(count + 1)
        name = (row[column] or "").strip()
        if not name:
            raise SettingError(f"line {reader.line_num} names no picture")
        label = next((cell for key in labels if (cell := (row.get(key) or "").strip())), None)
        by_picture.setdefault(name, []).append(_box([row[side] for side in _SIDES], label, name))
    return by_picture


def _require_few(count: int) -> None:
    if count > _MOST:
        raise SettingError(f"it has more than {_MOST:,} boxes; leave pictures out")


def _box(sides: Any, label: Any, name: str) -> Box:
    try:
        if isinstance(sides, (str, bytes, Mapping)):
            raise TypeError
        x0, y0, x1, y1 = (float(side) for side in sides)
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"{_short(sides)} of {_short(name)} is not a box; expected four numbers x0, y0, x1, y1 in pixels"
        ) from error
    if label is not None and (isinstance(label, bool) or not isinstance(label, (str, int))):
        raise SettingError(f"the label {_short(label)} of {_short(name)} is neither a name nor an index")
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise SettingError(
            f"the box {[x0, y0, x1, y1]} of {_short(name)} is empty; expected x0 < x1 and y0 < y1 in pixels"
        )
    return Box(x0, y0, x1, y1, label)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def checked(boxes: Any) -> Boxes:
    """Return boxes from `Boxes`, a file, or a mapping from picture to `[x0, y0, x1, y1]` lists.

    Raises:
        InputError: something else.
    """
    if isinstance(boxes, Boxes):
        return boxes
    if isinstance(boxes, (str, os.PathLike)):
        return read(boxes)
    if isinstance(boxes, Mapping):
        return Boxes(
            {str(k): [b if isinstance(b, Box) else _box(b, None, str(k)) for b in v] for k, v in boxes.items()}
        )
    raise InputError(
        f"boxes are a {type(boxes).__name__}; pass a file, or a mapping from picture to lists of four numbers"
    )
