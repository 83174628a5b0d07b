"""Class names in tables with a header: CSV, with semicolons, or with tabs."""

from __future__ import annotations

import csv
import io

from onnxcam.errors import LabelsError, listing
from onnxcam.targets.label_order import is_number, look_like_indices, name_in, ordered

# headers of columns; those in both are the index where their values are numbers and another column has the names
_INDEX_HEADERS = {
    *("index", "idx", "id", "class_id", "class_index", "class_idx", "classid", "classindex", "label_id", "labelid"),
    *("label_index", "label_idx", "category_id", "target_id", "no", "number", "#", "code"),
}
_EITHER_HEADERS = {"class", "label", "target"}
_NAME_HEADERS = {"name", "labels", "classes", "class_name", "classname", "label_name", "display_name", "category"}
_SUFFIXES = (".csv", ".tsv")


def names_in(text: str, suffix: str) -> list[str] | None:
    """Names by index from a table, None where the first line is not a header; a .csv or .tsv must have one.

    Raises:
        LabelsError: a table that does not say which column holds the names, or in which order they are.
        csv.Error: not a table.
    """
    first = text.lstrip().splitlines()[0]
    for delimiter in ",;\t|":
        headers = [cell.strip().casefold().replace(" ", "_") for cell in next(csv.reader([first], delimiter=delimiter))]
        columns = [header in _INDEX_HEADERS | _EITHER_HEADERS | _NAME_HEADERS for header in headers]
        if not any(columns) or (len(headers) < 2 and suffix not in _SUFFIXES):
            continue
        rows = [row for row in csv.reader(io.StringIO(text.strip(), newline=""), delimiter=delimiter) if any(row)][1:]
        if suffix in _SUFFIXES or sum(columns) > 1 or _numbered(headers, rows):
            return _from_rows(headers, rows)
    if suffix in _SUFFIXES:
        raise LabelsError(
            f"its first line {first[:60]!r} is not a header with a column 'name' (and 'index'); add one, for example "
            "'index,name'"
        )
    return None


def _numbered(headers: list[str], rows: list[list[str]]) -> bool:
    """Whether a column called like an index holds numbers in every row."""
    return bool(rows) and any(
        header in _INDEX_HEADERS | _EITHER_HEADERS and all(len(row) > c and is_number(row[c]) for row in rows)
        for c, header in enumerate(headers)
    )


def _from_rows(headers: list[str], rows: list[list[str]]) -> list[str]:
    short = next((number for number, row in enumerate(rows, start=2) if len(row) < len(headers)), None)
    if short is not None or not rows:
        what = f"row {short} has fewer columns than the header" if rows else "it has a header and no rows"
        raise LabelsError(f"{what}; each row needs {len(headers)} columns, so quote names that contain the separator")
    numeric = [all(is_number(row[column]) for row in rows) for column in range(len(headers))]
    index = next(
        (c for c, header in enumerate(headers) if header in _INDEX_HEADERS and numeric[c]),
        next((c for c, header in enumerate(headers) if header in _EITHER_HEADERS and numeric[c]), None),
    )
    name = _name_column(headers, index)
    if name is None and index is not None and headers[index] in _EITHER_HEADERS and len(headers) == 1:
        name, index = index, None  # one column of numbers that are the names
    if name is None:
        raise LabelsError(f"its columns are {listing(headers)}; expected one called 'name' with the class names")
    names = [name_in(row[name], f"row {number}") for number, row in enumerate(rows, start=2)]
    if index is not None:
        return ordered((int(row[index]), n) for row, n in zip(rows, names, strict=True))
    for column, header in enumerate(headers):
        values = [int(row[column]) for row in rows] if numeric[column] and column != name else []
        if look_like_indices(values) and values != sorted(values):
            raise LabelsError(
                f"its column {header!r} numbers the rows in another order than the file's; call it 'index' if it "
                "numbers the classes, or take it out"
            )
    return names


def _name_column(headers: list[str], index: int | None) -> int | None:
    """The column that holds the names, by its header; next to an index also the only one that ends in `name`."""
    others = [column for column in range(len(headers)) if column != index]
    for names in (_NAME_HEADERS, _EITHER_HEADERS):
        column = next((column for column in others if headers[column] in names), None)
        if column is not None:
            return column
    ending = [column for column in others if headers[column].endswith("name")]
    return ending[0] if index is not None and len(ending) == 1 else None
