"""Class names from files of the usual formats."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onnxcam.errors import LabelsError, listing

_LARGEST = 8 << 20  # read as a table of two columns, 0.7 GiB
_LARGEST_LITERAL = 1 << 20  # Python's parser takes hundreds of bytes for one
_BOMS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"", "utf-8-sig"))
# headers of CSV columns; those in both are the index where their values are numbers and another column has the names
_INDEX_HEADERS = {"index", "idx", "id", "class_id", "class_index", "class_idx", "classid", "label_id", "label_index"}
_EITHER_HEADERS = {"class", "label", "target"}
_NAME_HEADERS = {"name", "labels", "classes", "class_name", "classname", "label_name", "display_name", "category"}
_NUMBERED = re.compile(r"(\d{1,9})(?:\s*[:,;]\s*|\s+)(\S.*)")
_NESTED = ("id2label", "label_names", "class_indices")
# a Hugging Face configuration in which nobody named the classes
_PLACEHOLDER = re.compile(r"LABEL_\d+")
_CONFIG = "config.json"
_WORDNET = re.compile(r"n\d{8}\s+(\S.*)")


def read(path: str | os.PathLike[str], classes: int | None = None) -> list[str]:
    """Class names in the order of the classes.

    One name per line; `0 Cat` lines; a JSON list; a JSON object `{index: name}` (also Keras' `{index: [id, name]}`, the
    `id2label` of a Hugging Face config.json and timm's `label_names`) or `{name: index}` (Keras' `class_indices`); CSV
    with a header. UTF-8, or UTF-16 with a mark.

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
    except csv.Error as error:
        raise LabelsError(f"labels file {str(path)!r} is not a table ({error}); is it another file?") from error
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
        if path.is_dir():
            raise LabelsError(f"labels file {str(path)!r} is a folder; give the file in it")
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise LabelsError(f"labels file {str(path)!r} cannot be read ({error.strerror}); check its name") from error
    if len(data) > _LARGEST:
        raise LabelsError(f"labels file {str(path)!r} is larger than {_LARGEST >> 20} MiB; is it another file?")
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


def _parse(text: str, suffix: str) -> list[str]:
    if suffix == ".json" or text.lstrip()[0] in "[{":
        try:
            structure = _structure(text)
        except ValueError as error:
            if suffix == ".json":
                raise LabelsError(f"it is not JSON ({error}); mend it, or give one name per line in a .txt") from error
        else:
            return _from_structure(structure)
    lines = [line.strip() for line in text.splitlines()]
    while not lines[-1]:
        lines.pop()
    table = _from_table(text, suffix)
    if table is not None:
        return table
    blank = next((number for number, line in enumerate(lines, start=1) if not line), None)
    if blank is not None:
        raise LabelsError(f"line {blank} is blank, so every class after it would be off by one; name that class")
    for pattern in (_NUMBERED, _WORDNET):
        matches = [pattern.fullmatch(line) for line in lines]
        complete = [match for match in matches if match is not None]
        if len(complete) == len(lines) and pattern is _NUMBERED:
            pairs = [(int(match[1]), match[2]) for match in complete]
            return _ordered(pairs, "; where the numbers are part of the names, give a JSON list")
        if len(complete) == len(lines):
            return [match[1] for match in complete]
    return lines


class _Pairs(list[tuple[Any, Any]]):
    """A JSON object with its repeated keys: two classes may share a name."""


def _structure(text: str) -> Any:
    """The structure in JSON, or in a Python literal, as a widely copied ImageNet file is one.

    Raises:
        ValueError: the text is neither.
    """
    try:
        return json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        reason = str(error)
    if len(text) > _LARGEST_LITERAL:
        raise ValueError(reason)
    try:
        literal = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(reason) from None
    return _Pairs(literal.items()) if isinstance(literal, dict) else literal


def _from_structure(structure: Any) -> list[str]:
    if isinstance(structure, _Pairs):
        inner = next((value for key, value in structure if key in _NESTED and isinstance(value, (_Pairs, list))), None)
        if inner is not None and not isinstance(inner, _Pairs):
            return _from_structure(inner)
        pairs = structure if inner is None else inner
        if pairs and all(_is_index(key) for key, _ in pairs) and not all(type(value) is int for _, value in pairs):
            # Keras keeps [WordNet id, name]
            named = [(int(key), value[-1] if isinstance(value, list) and value else value) for key, value in pairs]
            return _ordered([(index, _name(value, f"class {index}")) for index, value in named])
        if pairs and all(type(value) is int for _, value in pairs):
            return _ordered([(value, str(key)) for key, value in pairs])
        raise LabelsError("its JSON object is neither {index: name} nor {name: index}; give one of these or a list")
    if isinstance(structure, (list, tuple)) and structure:
        return [_name(value, f"entry {position}") for position, value in enumerate(structure)]
    raise LabelsError("its JSON holds no class names; expected a list, {index: name} or {name: index}")


def _is_index(key: Any) -> bool:
    return type(key) is int or (isinstance(key, str) and _is_number(key))


def _is_number(text: str) -> bool:
    return text.strip().isdecimal() and len(text.strip()) < 10


def _name(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise LabelsError(f"{where} is {str(value)[:40]!r}, a {type(value).__name__}; expected a name")
    if not str(value).strip():
        raise LabelsError(f"{where} has no name; give it one")
    return str(value).strip()


def _ordered(pairs: Iterable[tuple[int, str]], hint: str = "") -> list[str]:
    """Names by index; the indices must be 0, 1, 2, ... in any order."""
    names: dict[int, str] = {}
    for index, name in pairs:
        if index in names:
            raise LabelsError(
                f"index {index} occurs twice ({names[index]!r} and {name!r}); number each class once{hint}"
            )
        names[index] = name
    missing = [index for index in range(len(names)) if index not in names]
    if missing:
        if set(names) == set(range(1, len(names) + 1)):
            raise LabelsError(f"its indices run from 1 to {len(names)}; classes are counted from 0{hint}")
        raise LabelsError(
            f"its {len(names)} indices have gaps: {listing(map(str, missing), 5)} missing, {min(names)} the smallest, "
            f"{max(names)} the largest; number the classes 0, 1, 2, ... without a gap{hint}"
        )
    return [names[index] for index in range(len(names))]


def _from_table(text: str, suffix: str) -> list[str] | None:
    """Names from CSV, None where the first line is not a header; a .csv or .tsv must have one."""
    first = text.lstrip().splitlines()[0]
    for delimiter in ",;\t":
        headers = [cell.strip().casefold().replace(" ", "_") for cell in next(csv.reader([first], delimiter=delimiter))]
        columns = [header in _INDEX_HEADERS | _EITHER_HEADERS | _NAME_HEADERS for header in headers]
        if (len(headers) > 1 and sum(columns) > 1) or (any(columns) and suffix in (".csv", ".tsv")):
            rows = [row for row in csv.reader(io.StringIO(text.strip(), newline=""), delimiter=delimiter) if any(row)]
            return _from_rows(headers, rows[1:])
    if suffix in (".csv", ".tsv"):
        raise LabelsError(
            f"its first line {first[:60]!r} is not a header with a column 'name' (and 'index'); add one, for example "
            "'index,name'"
        )
    return None


def _from_rows(headers: list[str], rows: list[list[str]]) -> list[str]:
    short = next((number for number, row in enumerate(rows, start=2) if len(row) < len(headers)), None)
    if short is not None or not rows:
        what = f"row {short} has fewer columns than the header" if rows else "it has a header and no rows"
        raise LabelsError(f"{what}; each row needs {len(headers)} columns, so quote names that contain the separator")
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(headers))]
    index = next(
        (c for c, header in enumerate(headers) if header in _INDEX_HEADERS and numeric[c]),
        next((c for c, header in enumerate(headers) if header in _EITHER_HEADERS and numeric[c]), None),
    )
    name = next(
        (c for c, header in enumerate(headers) if header in _NAME_HEADERS and c != index),
        next((c for c, header in enumerate(headers) if header in _EITHER_HEADERS and c != index), None),
    )
    if name is None and index is not None and headers[index] in _EITHER_HEADERS:
        name, index = index, None  # one column of numbers that are the names
    if name is None:
        raise LabelsError(f"its columns are {listing(headers)}; expected one called 'name' with the class names")
    names = [_name(row[name], f"row {number}") for number, row in enumerate(rows, start=2)]
    return names if index is None else _ordered([(int(row[index]), n) for row, n in zip(rows, names, strict=True)])
