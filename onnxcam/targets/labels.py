"""Class names from files of the usual formats."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxcam import files
from onnxcam.errors import LabelsError
from onnxcam.files import FileError
from onnxcam.targets.label_order import look_like_indices, name_in, ordered

_LARGEST = 4 << 20  # bytes: 21,000 classes with synonyms take one million
_MOST = 150_000  # lines
_BOMS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"", "utf-8-sig"))
# "0 Cat", "0: Cat", "0 - Cat", "0) Cat", "[0] Cat"; and "Cat 0", "Cat: 0"
_NUMBERED = re.compile(r"\[?(\d{1,9})(?:\s*[:,;=|)\]]\s*|\.\s+|\s+-\s+|\s+)(\S.*)")
_NUMBER_LAST = re.compile(r"(\S.*?)(?:\s*[:,;=|]\s*|\s+)(\d{1,9})")
_PART_OF_NAMES = "; where the numbers are part of the names, give a JSON list"
_MOSTLY = 0.8  # the share of numbered lines from which one without a number is a mistake
_TOO_LONG = re.compile(r"[^\r\n]{65537}")
_LABEL_MAP_ITEM = re.compile(r"\bitem\s*\{([^{}]*)\}")
# a Hugging Face configuration in which nobody named the classes
_PLACEHOLDER = re.compile(r"LABEL_\d+")
_CONFIG = "config.json"
_WORDNET = re.compile(r"n\d{8}\s+(\S.*)")


def read(path: str | os.PathLike[str], classes: int | None = None) -> list[str]:
    """Class names in the order of the classes.

    One name per line; `0 Cat` or `Cat 0` lines; a JSON list, of names or of objects with id and name (COCO's
    `categories`); a JSON object `{index: name}` (also Keras' `{index: [id, name]}`, the `id2label` of a Hugging Face
    config.json and timm's `label_names`) or `{name: index}` (Keras' `class_indices`); the same as a Python literal; CSV
    with a header; the `names` of a data.yaml. UTF-8, or UTF-16 with a mark.

    Arguments:
        path: the file.
        classes: how many classes the model has, if that is to be checked.

    Raises:
        LabelsError: the file cannot be read, an index is missing or occurs twice, or the number is another one.
    """
    path = Path(path)
    text = _text(path)
    try:
        names = _parse(text, path.suffix.lower())
    except LabelsError as error:
        raise LabelsError(f"labels file {str(path)!r}: {error}") from error
    if classes is not None:
        check_count(names, classes, f"labels file {str(path)!r}")
    return names


def from_configuration(spec: Any) -> list[str] | None:
    """Return the class names in the configuration that a preprocessing `hf:` or `timm:` refers to, None if it has none.

    Arguments:
        spec: the preprocessing, such as `hf:FOLDER` or `hf:FILE`, in whose folder a config.json may lie.
    """
    kind, _, place = os.fspath(spec).partition(":") if isinstance(spec, (str, os.PathLike)) else ("", "", "")
    if kind not in ("hf", "timm") or not place:
        return None
    path = Path(place) / _CONFIG if Path(place).is_dir() else Path(place).with_name(_CONFIG)
    try:
        names = read(path)
    except LabelsError:
        return None  # it is a configuration, and need not name classes
    return None if all(_PLACEHOLDER.fullmatch(name) for name in names) else names


def check_count(names: Sequence[str], classes: int, where: str) -> None:
    """Refuse a number of names that is not the number of classes.

    Raises:
        LabelsError: another number.
    """
    if len(names) == classes:
        return
    hint = "give one per class, in the order of the model's outputs"
    if len(names) == classes + 1:
        hint = (
            f"the first is {names[0]!r} and the last {names[-1]!r}: is one of them not a class, such as a background?"
        )
    elif len(names) == classes - 1:
        hint = "does the model have a background class in front? then name it in the file too"
    raise LabelsError(f"{where} has {len(names)} names, the model {classes} classes; {hint}")


def _text(path: Path) -> str:
    try:
        data = files.read_bytes(path, _LARGEST)
    except FileError as error:
        raise LabelsError(f"labels file {str(path)!r} {error}") from error
    encoding = next(name for mark, name in _BOMS if data.startswith(mark))
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise LabelsError(
            f"labels file {str(path)!r} is not UTF-8 text (line {line}); save it as UTF-8, or is it another file?"
        ) from error
    if not text.strip() or "\0" in text:
        what = "is empty" if not text.strip() else "is not a text file"
        raise LabelsError(f"labels file {str(path)!r} {what}; expected one class name per line, JSON or CSV")
    return text


def parse(text: str) -> list[str]:
    """Class names in a text without a file, such as a value of a model's metadata, in any form that `read` takes.

    Raises:
        LabelsError: it holds no class names, or an index is missing or occurs twice.
    """
    if not text.strip():
        raise LabelsError("it is empty")
    return _parse(text, "")


def _parse(text: str, suffix: str) -> list[str]:
    # imported here: an explanation without a labels file needs none of them
    from onnxcam.targets import label_structure, label_yaml

    if text.count("\n") + text.count("\r") > 2 * _MOST:
        raise LabelsError(f"it has more than {_MOST:,} lines; give one name per class")
    start = text.lstrip()
    if suffix in (".yaml", ".yml") or label_yaml.is_yaml(text):
        return label_yaml.names_in(text)
    if suffix in (".json", ".jsonl") or start[0] in "[{" or start.startswith("OrderedDict("):
        try:
            structure = label_structure.parse(text)
        except ValueError as error:
            if suffix in (".json", ".jsonl") or start[0] == "{":
                raise LabelsError(f"it {error}; mend it, or give one name per line in a .txt") from error
        else:
            return label_structure.names_in(structure)
    if start[:5].lower() in ("<?xml", "<!doc", "<html"):
        raise LabelsError("it is an XML or HTML page; was a download page saved instead of the file?")
    if _TOO_LONG.search(text):
        raise LabelsError("it has a line of more than 65,536 characters; give one name per line")
    items = _LABEL_MAP_ITEM.findall(text)
    if items and not _LABEL_MAP_ITEM.sub("", text).strip():
        return _from_label_map(items)
    # not str.splitlines, which also splits at a form feed or U+2028 within a name
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    while not lines[-1]:
        lines.pop()
    if len(lines) > _MOST:
        raise LabelsError(f"it has {len(lines):,} lines, more than {_MOST:,}; give one name per class")
    table = _from_table(text, suffix)
    return _from_lines(lines) if table is None else table


def _from_table(text: str, suffix: str) -> list[str] | None:
    import csv

    from onnxcam.targets import label_table

    try:
        return label_table.names_in(text, suffix)
    except csv.Error as error:
        raise LabelsError(f"it is not a table ({error}); is it another file?") from error


def _from_lines(lines: Sequence[str]) -> list[str]:
    blank = next((number for number, line in enumerate(lines, start=1) if not line), None)
    if blank is not None:
        raise LabelsError(f"line {blank} is blank, so every class after it would be off by one; name that class")
    words = [_WORDNET.fullmatch(line) for line in lines]
    if all(words):
        lines = [match[1] for match in words if match is not None]
    first = [(int(match[1]), match[2]) for line in lines if (match := _NUMBERED.fullmatch(line))]
    if len(first) == len(lines):
        return ordered(first, _PART_OF_NAMES)
    last = [(int(match[2]), match[1]) for line in lines if (match := _NUMBER_LAST.fullmatch(line))]
    # "class 1", "class 2" are names; "cat 1", "dog 0" are numbered
    distinct = len({name for _, name in last}) == len(last)
    if len(last) == len(lines) and distinct and look_like_indices([number for number, _ in last]):
        return ordered(last, _PART_OF_NAMES)
    for pairs, pattern in ((first, _NUMBERED), (last if distinct else [], _NUMBER_LAST)):
        if len(pairs) > 1 and len(pairs) >= _MOSTLY * len(lines) and look_like_indices([number for number, _ in pairs]):
            place = next(number for number, line in enumerate(lines, start=1) if not pattern.fullmatch(line))
            raise LabelsError(
                f"line {place} ({lines[place - 1][:40]!r}) has no number, and the others have; number each class once"
                + _PART_OF_NAMES
            )
    return list(lines)


def _from_label_map(items: Sequence[str]) -> list[str]:
    """Names from a label map of TensorFlow's Object Detection API, `item { id: 1 name: 'cat' }`."""
    pairs = []
    for place, item in enumerate(items):
        index = re.search(r"\bid\s*:\s*(\d{1,9})\b", item)
        name = re.search(r"\bdisplay_name\s*:\s*([\"'])(.*?)\1", item) or re.search(
            r"\bname\s*:\s*([\"'])(.*?)\1", item
        )
        if index is None or name is None:
            raise LabelsError(f"item {place} of its label map has no id or no name; give a JSON list of names")
        pairs.append((int(index[1]), name_in(name[2], f"item {place}")))
    return ordered(
        pairs, ", and a label map counts from 1: give a JSON list, with a background where the model has one"
    )
