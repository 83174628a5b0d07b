"""`--truth`: where the true classes of pictures stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxcam.errors import LabelsError
from onnxcam.files import FileError, read_bytes

if TYPE_CHECKING:
    from onnxcam.fleet.listing import Listing

BY_FOLDER = "by-folder"
_LARGEST = 8 << 20  # bytes of a table
F = TypeVar("F", bound=Callable[..., Any])


def truth_option(command: F) -> F:
    """Add `--truth` and its short form `--by-folder`."""
    command = click.option(
        "--by-folder", "truth", flag_value=BY_FOLDER, default=None, help=f"The same as --truth {BY_FOLDER}."
    )(command)
    return click.option(
        "--truth",
        metavar=f"{BY_FOLDER}|FILE.csv",
        help="True classes: each picture's folder is its class (a label or an index), or a table `picture,class`.",
    )(command)


def check_truth(truth: str | None, named: Sequence[str]) -> None:
    """Refuse folders as classes where there is not one folder with a folder per class.

    Raises:
        UsageError: several names, or a file.
    """
    if truth == BY_FOLDER and (len(named) != 1 or not Path(named[0]).is_dir()):
        raise click.UsageError(f"--truth {BY_FOLDER} takes one folder, with a folder per class in it.")


def known_classes(
    truth: str | None, named: Sequence[str], paths: Sequence[Path], labels: Sequence[str] | None, classes: int
) -> list[int | None]:
    """The true class of each picture as `true_classes`, but None for one that is not in the table.

    Raises:
        LabelsError: as for `true_classes`; none of the pictures is in the table, or a row fits several.
    """
    from onnxcam.targets.truth import Table

    if truth is None or truth == BY_FOLDER:
        indices: list[int | None] = [None] * len(paths)
        indices[:] = true_classes(truth, named, paths, labels, classes) or indices
        return indices
    table = Table(truth, labels, classes)
    count, missing = table.count_missing(paths)
    if count and missing == count:
        table.find_all(paths)  # which says what is missing
    return [table.find(path) for path in paths]


def true_classes(
    truth: str | None, named: Sequence[str], paths: Sequence[Path], labels: Sequence[str] | None, classes: int
) -> list[int] | None:
    """The true class of each picture, None where nobody gives it.

    Arguments:
        truth: what `--truth` says.
        named: the folder that was named, for classes by folder.
        paths: of the pictures.
        labels: class names, by index.
        classes: number of classes.

    Raises:
        LabelsError: a picture has no class, a folder or the table names none of the model, or a row fits several.
    """
    if truth is None:
        return None
    from onnxcam.targets.truth import Table, by_folder

    if truth == BY_FOLDER:
        return by_folder(paths, Path(named[0]), labels, classes)
    return Table(truth, labels, classes).find_all(paths)


def lookup(
    truth: str, listing: Listing, labels: Sequence[str] | None, classes: int
) -> tuple[Callable[[str], int], int]:
    """The true class of each of any number of pictures, from its path; -1 for one that is not in the table.

    The second value is the number of those that are not.

    Arguments:
        truth: what `--truth` says.
        listing: of the pictures; its root has a folder per class, for classes by folder.
        labels, classes: as of `true_classes`.

    Raises:
        LabelsError: as of `known_classes`.
    """
    from onnxcam.targets.truth import Table, by_folder

    if truth == BY_FOLDER:
        start = len(Path(listing.root).parts)
        folders: dict[str, Path] = {}
        for path in listing.paths():
            parts = Path(path).parts
            folders.setdefault(parts[start] if len(parts) > start + 1 else path, Path(path))
        indices = by_folder(list(folders.values()), Path(listing.root), labels, classes)
        by_name = dict(zip(folders, indices, strict=True))
        return lambda path: by_name.get(Path(path).parts[start], -1), 0
    table = Table(truth, labels, classes)
    count, missing = table.count_missing(Path(path) for path in listing.paths())
    if missing == count:
        table.find_all([Path(path) for path in islice(listing.paths(), 100)])  # which says what is missing

    def find(path: str) -> int:
        index = table.find(Path(path))
        return -1 if index is None else index

    return find, missing


def table_bytes(truth: str) -> bytes:
    """The content of a table of classes.

    Raises:
        LabelsError: it cannot be read.
    """
    try:
        return read_bytes(truth, _LARGEST)
    except FileError as error:
        raise LabelsError(
            f"the table of classes {truth!r} {error}; give a CSV file `picture,class`, or 'by-folder' for classes by "
            "folder"
        ) from error
