"""Tables of explanations: a folder of Parquet files, parts of a run by `onnxcam batch` or whatever an engine wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.documents import DocumentError, parse_json
from onnxcam.errors import InputError, listing, nearest
from onnxcam.fleet.columns import columns, import_pyarrow

FORMAT = 1
KEY = "onnxcam"  # of the metadata in each part
SUMMARY = "_summary.json"
ENDING = ".parquet"
ROWS = 1024  # of a batch that is read
_FILES = 100_000  # of a table
_METADATA = 64 << 20  # bytes of a part's footer
_GROUP = 2 << 30  # bytes that a row group takes once it is decompressed


@dataclass(frozen=True)
class Counts:
    """How many rows there are, how many of them failed and how many were explained, and how many were right."""

    rows: int = 0
    failed: int = 0
    explained: int = 0
    right: int = 0
    wrong: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in asdict(self)))


@dataclass(frozen=True)
class Part:
    """One part of a table of `onnxcam batch`, as its metadata has it.

    Attributes:
        part: its number, from 0.
        first: the number of its first row in the table.
        counts: of its rows.
        root: the folder that `path` is relative to.
        model: SHA-256 of the model file.
        settings: all that the rows depend on.
        started: when the run began, UTC.
        onnxcam: version.
    """

    part: int
    first: int
    counts: Counts
    root: str
    model: str
    settings: dict[str, Any] = field(repr=False)
    started: str
    onnxcam: str

    def to_json(self) -> str:
        """The value in the metadata."""
        return json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, data: bytes) -> Part:
        """The part of a value in the metadata.

        Raises:
            ValueError, KeyError, TypeError: not such a value.
        """
        document = parse_json(data)
        if document.pop("format") != FORMAT:
            raise ValueError("of another format")
        counts = Counts(**document.pop("counts"))
        part = cls(counts=counts, **document)
        numbers = (part.part, part.first, *asdict(counts).values())
        texts = (part.root, part.model, part.started, part.onnxcam)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("numbers that are none")
        if not all(isinstance(text, str) for text in texts) or not isinstance(part.settings, dict):
            raise ValueError("texts that are none")
        return part


def part_name(number: int) -> str:
    """The name of a part's file."""
    return f"part-{number:06d}{ENDING}"


def schema(*, overlay: bool = False, truth: bool = False) -> Any:
    """The columns of a table by `onnxcam batch`, a `pyarrow.Schema`: `path`, the true class, and those of `Explain`."""
    from onnxcam.fleet.columns import arrow_schema

    pyarrow = import_pyarrow()
    fields = [pyarrow.field("path", pyarrow.string(), nullable=False)]
    if truth:
        fields += [
            pyarrow.field("truth", pyarrow.int64()),
            pyarrow.field("truth_label", pyarrow.string()),
            pyarrow.field("right", pyarrow.bool_()),
        ]
    return pyarrow.schema([*fields, *arrow_schema(overlay=overlay)])


def is_table(path: Path) -> bool:
    """Whether a path is a Parquet file, or a folder with one."""
    if path.is_dir():
        return any(path.glob(f"*{ENDING}"))
    return path.suffix == ENDING and path.exists()


def files_of(folder: Path) -> list[Path]:
    """The files of a table, in the order of their names.

    Raises:
        InputError: there are none, or too many.
    """
    paths = [folder] if not folder.is_dir() else sorted(p for p in folder.glob(f"*{ENDING}") if p.name[0] not in "._")
    if not paths or len(paths) > _FILES:
        raise InputError(f"{str(folder)!r} has {len(paths):,} Parquet files (*{ENDING}), expected 1 to {_FILES:,}")
    return paths


def names_of(table: Path) -> list[str]:
    """The columns of a table's first file; raises as `read`."""
    with _opened(files_of(table)[0]) as file:
        return list(file.schema_arrow.names)


def metadata(path: Path) -> Part | None:
    """The metadata of a part; None of a file that `onnxcam batch` did not write.

    Raises:
        InputError: not a Parquet file, or damaged.
    """
    with _opened(path) as file:
        values = file.metadata.metadata or {}
        if KEY.encode() not in values:
            return None
        try:
            part = Part.from_json(values[KEY.encode()])
        except (ValueError, KeyError, TypeError, DocumentError) as error:
            raise InputError(f"the metadata {KEY!r} of {str(path)!r} is not of this release ({error})") from error
        if part.counts.rows != file.metadata.num_rows:
            raise InputError(
                f"{str(path)!r} has {file.metadata.num_rows:,} rows, and says {part.counts.rows:,}: it is damaged"
            )
        return part


def read(table: str | Path, names: Sequence[str] | None = None, *, rows: int = ROWS) -> Iterator[dict[str, np.ndarray]]:
    """Read a table a few rows at a time, in order.

    Arguments:
        table: a folder of Parquet files, or one file.
        names: the columns to read; None for all.
        rows: in a batch, at most.

    Returns:
        batches: an array `[n]` by column, as `Explain` gives them: lists are arrays in an object array, and null is -1
        (whole numbers), NaN, False or None.

    Raises:
        InputError: not a table, no such column, or a damaged file. DependencyError: pyarrow is not installed.
    """
    pyarrow = import_pyarrow()
    for path in files_of(Path(table)):
        with _opened(path) as file:
            available = file.schema_arrow.names
            missing = [name for name in names or () if name not in available]
            if missing:
                raise InputError(
                    f"{str(path)!r} has no column {missing[0]!r}; it has {listing(nearest(missing[0], available, 8))}"
                )
            for group in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(group).total_byte_size
                if size > _GROUP:
                    raise InputError(
                        f"{str(path)!r} has a row group of {size >> 20:,} MiB, at most {_GROUP >> 20:,} are read; "
                        "write it with smaller ones"
                    )
            try:
                for batch in file.iter_batches(rows, columns=None if names is None else list(names)):
                    yield {name: to_numpy(batch.column(name), name) for name in batch.schema.names}
            except (pyarrow.ArrowException, OSError) as error:
                raise InputError(f"{str(path)!r} is damaged ({_one_line(error)}); write it again") from error


def to_numpy(column: Any, name: str) -> np.ndarray:
    """An Arrow column as an array, see `read`."""
    pyarrow = import_pyarrow()
    kind = next((one.kind for one in columns(overlay=True) if one.name == name), None)
    if pyarrow.types.is_boolean(column.type):
        return np.asarray(column.fill_null(False).to_numpy(zero_copy_only=False), bool)
    if pyarrow.types.is_integer(column.type):
        return np.asarray(column.fill_null(-1).to_numpy(zero_copy_only=False))
    if pyarrow.types.is_floating(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type):
        item = None if kind is None else kind.item
        array = np.empty(len(column), object)
        for row, value in enumerate(column):
            array[row] = None if not value.is_valid else np.asarray(value.values.to_numpy(zero_copy_only=False), item)
        return array
    return np.asarray(column.to_numpy(zero_copy_only=False), object)


def _opened(path: Path) -> Any:
    """An open Parquet file.

    Raises:
        InputError: it cannot be opened.
    """
    pyarrow = import_pyarrow()
    from pyarrow import parquet

    try:
        if not path.is_file():
            raise InputError(f"{str(path)!r} is not a file; give a Parquet file, or a folder of them")
        return parquet.ParquetFile(path, thrift_string_size_limit=_METADATA, thrift_container_size_limit=_METADATA)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{str(path)!r} is not a Parquet file ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200]
