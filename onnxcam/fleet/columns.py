"""The columns that `Explain` adds to a batch: one table for NumPy, Arrow and Spark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from onnxcam.errors import DependencyError

Row = dict[str, Any]  # one row's values by column; what is missing is None


class Kind(NamedTuple):
    """A type of value in every system.

    Attributes:
        dtype: of the NumPy column; `object` for texts, bytes and lists.
        arrow: as `str(pyarrow.DataType)` spells it.
        spark: in Spark's DDL.
        missing: what stands in a NumPy column where Arrow and Spark have null.
        item: dtype of a list's NumPy arrays.
    """

    dtype: str
    arrow: str
    spark: str
    missing: Any
    item: str | None = None


INTEGER = Kind("int64", "int64", "BIGINT", -1)
NUMBER = Kind("float64", "double", "DOUBLE", np.nan)
FLAG = Kind("bool", "bool", "BOOLEAN", False)
TEXT = Kind("object", "string", "STRING", None)
BYTES = Kind("object", "binary", "BINARY", None)
INTEGERS = Kind("object", "list<element: int64>", "ARRAY<BIGINT>", None, "int64")
NUMBERS = Kind("object", "list<element: double>", "ARRAY<DOUBLE>", None, "float64")
MAP = Kind("object", "list<element: float>", "ARRAY<FLOAT>", None, "float32")


class Column(NamedTuple):
    """One column.

    Attributes:
        name: without the prefix that `Explain` may be told.
        kind: type of its values.
        meaning: in a sentence.
        always: whether every row has a value; else it is null where it does not apply.
    """

    name: str
    kind: Kind
    meaning: str
    always: bool = False


# the statistics of a map by column: the key in `Explanation.statistics`, and the place in a list
STATISTICS: Mapping[str, tuple[str, int | None]] = {
    "attention_zero": ("zero", None),
    "attention_y": ("centroid", 0),
    "attention_x": ("centroid", 1),
    "attention_spread": ("spread", None),
    "attention_entropy": ("entropy", None),
    "attention_gini": ("gini", None),
    "attention_half_area": ("half_area", None),
    "attention_border": ("border", None),
    "attention_peaks": ("peaks", None),
}
OVERLAY = "overlay"
_COLUMNS = (
    Column(
        "prediction",
        INTEGER,
        "index of the class with the highest probability; -1 with an error or without a box",
        True,
    ),
    Column("label", TEXT, "its name; its index as text without labels; null without a box"),
    Column("confidence", NUMBER, "its probability, or the best box's score; null of a regression"),
    Column("margin", NUMBER, "lead of the highest probability over the second; null of boxes and segmentations"),
    Column("entropy", NUMBER, "entropy of the probabilities, 0 (certain) to 1 (uniform); null likewise"),
    Column("calibrated", NUMBER, "the highest calibrated probability; null of a file without a calibration"),
    Column("prediction_set", INTEGERS, "indices of the classes in the prediction set, best first; null likewise"),
    Column("value", NUMBER, "the number that a regression predicts; null of a classifier"),
    Column("top", INTEGERS, "indices of the `top_k` best classes, best first"),
    Column("top_confidence", NUMBERS, "their probabilities"),
    Column("boxes", NUMBERS, "x0, y0, x1, y1 of each box that a detector reports, one after the other, best first"),
    Column("box_classes", INTEGERS, "indices of their classes"),
    Column("box_scores", NUMBERS, "their scores; these three are null of a model without boxes, empty without a box"),
    Column("fired", FLAG, "whether `when` holds, so that the row is explained", True),
    Column("target", INTEGER, "index of the class explained"),
    Column("target_label", TEXT, "its name"),
    Column("target_confidence", NUMBER, "its probability; null of a regression"),
    Column("method", TEXT, "name of the method"),
    Column("layer", TEXT, "name of the target layer; several are separated by commas"),
    Column("attention_zero", FLAG, "whether the map is zero everywhere; the other statistics are null then"),
    Column("attention_y", NUMBER, "centroid of the map's energy, 0 at the top to 1 at the bottom"),
    Column("attention_x", NUMBER, "centroid of the map's energy, 0 at the left to 1 at the right"),
    Column("attention_spread", NUMBER, "root mean square distance of the energy from the centroid"),
    Column("attention_entropy", NUMBER, "entropy of the energy's distribution, 0 (one cell) to 1 (even)"),
    Column("attention_gini", NUMBER, "inequality of the cells, 0 (even) to 1 (one cell)"),
    Column("attention_half_area", NUMBER, "smallest part of the picture that contains half of the energy"),
    Column("attention_border", NUMBER, "part of the energy in the outer tenth of the picture on each side"),
    Column("attention_peaks", INTEGER, "separate regions at or above half of the maximum"),
    Column("map", MAP, "the map at the layer's own size, row by row, as `Explainer.attribute(size='layer')` gives it"),
    Column("map_low", NUMBER, "lowest value of the map before it was normalized; null for several layers"),
    Column("map_high", NUMBER, "highest value of the map before it was normalized; null for several layers"),
    Column("map_height", INTEGER, "rows of the map"),
    Column("map_width", INTEGER, "columns of the map"),
    Column("map_box", NUMBERS, "x0, y0, x1, y1: the rectangle of the picture that the map covers, in its pixels"),
    Column(OVERLAY, BYTES, "PNG of the heatmap over the picture; the column is there with `overlay=True` only"),
    Column("width", INTEGER, "of the picture, upright, in pixels"),
    Column("height", INTEGER, "of the picture, upright, in pixels"),
    Column("warnings", TEXT, "sentences about anything doubtful, one a line; empty for none", True),
    Column("error", TEXT, "a sentence that says why the row has no prediction or no map; empty for none", True),
    Column("onnxcam", TEXT, "version of onnxcam", True),
    Column("onnxruntime", TEXT, "version of ONNX Runtime", True),
    Column("model", TEXT, "SHA-256 of the model file, its external weights included", True),
    Column("rows", INTEGER, "rows in each run of the model", True),
)


def columns(*, overlay: bool = False, prefix: str = "") -> list[Column]:
    """The columns that `Explain` adds, in order.

    Arguments:
        overlay, prefix: as of `Explain`.
    """
    return [column._replace(name=prefix + column.name) for column in _COLUMNS if overlay or column.name != OVERLAY]


def to_numpy(rows: Sequence[Row], column: Column, name: str) -> np.ndarray:
    """One column of rows as an array `[N]`, an object array of arrays for lists; a null is the kind's `missing`.

    The `missing` of lists is an empty array: where one block of a column has None among its arrays and another has not,
    Ray Data cannot join them.

    Arguments:
        name: under which the rows have it, without prefix.
    """
    kind = column.kind
    if kind.dtype != "object":
        values = [kind.missing if row[name] is None else row[name] for row in rows]
        return np.array(values, kind.dtype)
    array = np.empty(len(rows), object)
    empty = kind.missing if kind.item is None else np.zeros(0, kind.item)
    for place, row in enumerate(rows):
        array[place] = empty if row[name] is None else row[name]
    return array


def arrow_type(kind: Kind) -> Any:
    """A kind as a `pyarrow.DataType`."""
    pyarrow = import_pyarrow()
    simple = {"int64": pyarrow.int64, "double": pyarrow.float64, "float": pyarrow.float32, "bool": pyarrow.bool_}
    simple |= {"string": pyarrow.string, "binary": pyarrow.binary}
    if kind.item is None:
        return simple[kind.arrow]()
    item = kind.arrow.removeprefix("list<element: ").removesuffix(">")
    return pyarrow.list_(pyarrow.field("element", simple[item]()))


def to_arrow(rows: Sequence[Row], column: Column, name: str) -> Any:
    """One column of rows as a `pyarrow.Array`."""
    values = [row[name] for row in rows]
    if column.kind is TEXT:
        values = [None if value is None else to_text(value) for value in values]
    return import_pyarrow().array(values, arrow_type(column.kind))


def to_text(text: str) -> str:
    """A text as Arrow can have it: halves of surrogate pairs, as in file names that are no UTF-8, are escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def arrow_schema(*, overlay: bool = False, prefix: str = "") -> Any:
    """The columns as a `pyarrow.Schema`."""
    pyarrow = import_pyarrow()
    return pyarrow.schema(
        [
            pyarrow.field(column.name, arrow_type(column.kind), nullable=not column.always)
            for column in columns(overlay=overlay, prefix=prefix)
        ]
    )


def import_pyarrow() -> Any:
    """Import and return `pyarrow`.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise DependencyError(
            f"pyarrow cannot be imported ({error}), and Arrow tables need it: pip install 'onnxcam[parquet]'"
        ) from error
    return pyarrow
