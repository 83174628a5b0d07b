"""A run over any number of pictures that can go on where it stopped: its listing, its settings and its parts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from onnxcam import __version__, files
from onnxcam.documents import DocumentError, parse_json
from onnxcam.errors import InputError, OutputError, SettingError
from onnxcam.files import FileError
from onnxcam.fleet import listing, tables
from onnxcam.fleet.listing import Listing, Scan
from onnxcam.fleet.tables import Counts, Part, part_name

if sys.platform != "win32":
    import fcntl

NAME = "_run.json"
FORMAT = 1
_LARGEST = 16 << 20  # bytes of NAME
_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.part")
_PART = re.compile(r"part-([0-9]{6,9})\.parquet")


@dataclass(frozen=True)
class Terms:
    """What the rows of a table depend on; a run that goes on has the same.

    Attributes:
        model: SHA-256 of the model file.
        settings: the question, the condition and all else, as JSON.
        rows_per_part: in each part but the last.
    """

    model: str
    settings: Mapping[str, Any]
    rows_per_part: int

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """What differs from the terms that a run was begun with, a clause each."""
        pairs = [
            ("model", before.get("model"), self.model),
            ("rows-per-part", before.get("rows_per_part"), self.rows_per_part),
        ]
        settings = before.get("settings")
        settings = settings if isinstance(settings, dict) else {}
        names = [*self.settings, *(name for name in settings if name not in self.settings)]
        now = json.loads(json.dumps(dict(self.settings)))
        pairs += [(name.replace("_", "-"), settings.get(name), now.get(name)) for name in names]
        return [
            f"{leaf} {one} instead of {other}"
            for name, old, new in pairs
            for leaf, a, b in _different(name, old, new)
            for one, other in [_brief(b, a)]
        ]


@dataclass
class Run:
    """A run whose folder is locked for this process, from `begin`.

    Attributes:
        folder: of the table.
        terms: of the rows.
        listing: of its pictures.
        scan: the search for them of this process.
        started: when it was begun first, UTC.
        parts: those on the disk, by number.
        fresh: whether it was begun by this process.
        notes: sentences about what is doubtful.
    """

    folder: Path
    terms: Terms
    listing: Listing
    scan: Scan
    started: str
    parts: dict[int, Part] = field(default_factory=dict)
    fresh: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def number(self) -> int:
        """The number of parts of the whole table."""
        return -(-self.listing.count // self.terms.rows_per_part)

    @property
    def counts(self) -> Counts:
        """The counts of the parts on the disk."""
        return sum((part.counts for part in list(self.parts.values())), Counts())

    def bounds(self, number: int) -> tuple[int, int]:
        """The first row of a part, and that after its last."""
        first = number * self.terms.rows_per_part
        return first, min(first + self.terms.rows_per_part, self.listing.count)

    def missing(self) -> list[int]:
        """The parts that are not on the disk yet."""
        return [number for number in range(self.number) if number not in self.parts]

    def rows(self) -> Iterator[tuple[int, str]]:
        """The number and the path of each row that is not on the disk yet, in order."""
        numbers = iter(self.missing())
        number = next(numbers, None)
        if number is None:
            return
        first, last = self.bounds(number)
        for row, path in enumerate(self.listing.paths(first), first):
            if row >= last:
                number = next(numbers, None)
                if number is None:
                    return
                first, last = self.bounds(number)
            if row >= first:
                yield row, path

    def describe(self, number: int, counts: Counts) -> Part:
        """The metadata of a part."""
        return Part(
            number,
            self.bounds(number)[0],
            counts,
            self.listing.root,
            self.terms.model,
            dict(self.terms.settings),
            self.started,
            __version__,
        )

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which says that the table is complete."""
        text = json.dumps(summary, ensure_ascii=False, indent=2) + "\n"
        files.write_pieces(self.folder / tables.SUMMARY, [text.encode(errors="backslashreplace")], sync=True)


class Folder:
    """The folder of a table, made if need be, and locked: no two processes write one table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        self._new = False

    def __enter__(self) -> Folder:
        try:
            self._new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._handle = None if sys.platform == "win32" else os.open(self.path, os.O_RDONLY)
        except OSError as error:
            blocked = next((p for p in (self.path, *self.path.parents) if p.is_file()), None)
            reason = f"{str(blocked)!r} is a file" if blocked is not None else error.strerror
            raise OutputError(
                f"the folder {str(self.path)!r} cannot be made ({reason}); choose another with -o"
            ) from error
        if sys.platform != "win32" and self._handle is not None:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.__exit__(None, None, None)
                raise OutputError(
                    f"another process writes to {str(self.path)!r}; wait for it, or choose another folder"
                ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is None:
            return
        if error is not None and not (self.path / NAME).exists():
            with contextlib.suppress(OSError):
                (self.path / listing.NAME).unlink(missing_ok=True)
                if self._new:
                    self.path.rmdir()
        os.close(self._handle)
        self._handle = None

    def withdraw(self, run: Run) -> None:
        """Remove what a new run without any part has written, so that the folder is as it was."""
        if run.fresh and not run.parts:
            (self.path / NAME).unlink(missing_ok=True)

    def content(self) -> list[str]:
        """The names in it, without what an earlier process has left unfinished."""
        return [name for name in os.listdir(self.path) if not _LEFTOVER.fullmatch(name)]  # noqa: PTH208

    def clean(self) -> None:
        """Remove what an earlier process has left unfinished."""
        for name in os.listdir(self.path):  # noqa: PTH208
            if _LEFTOVER.fullmatch(name):
                with contextlib.suppress(OSError):
                    (self.path / name).unlink()


def begin(
    folder: Folder, named: Iterable[str], terms: Terms, *, name: str = "model", labels: list[str] | None = None
) -> Run:
    """Begin a run: list the pictures, and write down what it depends on.

    Arguments:
        name, labels: of the model and its classes, for those who read the table.

    Raises:
        PictureError: no picture. OutputError: the folder cannot be written.
    """
    folder.clean()
    started = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    scan = Scan(named, folder.path)
    files.write_pieces(folder.path / listing.NAME, listing.pieces(scan), sync=True)
    if listing.repeats(scan):
        count, distinct = 0, listing.without_repetitions(folder.path, scan)

        def counted() -> Iterator[str]:
            nonlocal count
            for path in distinct:
                count += 1
                yield path

        files.write_pieces(folder.path / listing.NAME, listing.pieces(counted()), sync=True)
        scan.count = count
    document = {
        "format": FORMAT,
        "model": terms.model,
        "settings": dict(terms.settings),
        "rows_per_part": terms.rows_per_part,
        "root": scan.root,
        "rows": scan.count,
        "listing": scan.digest,
        "started": started,
        "onnxcam": __version__,
        "name": name,
        "labels": labels,
    }
    files.write_pieces(folder.path / NAME, [(json.dumps(document, indent=1) + "\n").encode()], sync=True)
    return Run(folder.path, terms, Listing(folder.path, scan.root, scan.count), scan, started)


def resume(folder: Folder, named: Iterable[str], terms: Terms) -> Run:
    """Go on with a run that `begin` has begun; what was left unfinished is removed.

    Raises:
        SettingError: it was begun on other terms; the message says what differs.
        InputError: its files are damaged.
    """
    document = state(folder.path)
    differ = terms.differences(document)
    scan = Scan(named, folder.path)
    for _ in scan:
        pass
    notes = []
    if scan.digest != document["listing"]:
        added, removed = listing.changes(folder.path, scan)
        if scan.root != document["root"]:
            differ.append(f"pictures below {scan.root!r} instead of {document['root']!r}")
        elif added or removed:
            notes.append(
                f"since the run was begun {added:,} pictures were added, which are left out, and {removed:,} removed"
            )
    if differ:
        raise SettingError(
            f"{str(folder.path)!r} was begun with other settings: {'; '.join(differ)}. Repeat those, or write to "
            "another folder"
        )
    if document["onnxcam"] != __version__:
        notes.append(f"it was begun by onnxcam {document['onnxcam']}, and this is {__version__}")
    folder.clean()
    run = Run(
        folder.path,
        terms,
        Listing(folder.path, document["root"], document["rows"]),
        scan,
        document["started"],
        fresh=False,
        notes=notes,
    )
    run.parts = _parts(run)
    if run.missing():
        (folder.path / tables.SUMMARY).unlink(missing_ok=True)  # says that the table is complete
    return run


def state(folder: Path) -> dict[str, Any]:
    """What a run wrote down when it was begun.

    Raises:
        InputError: the folder has no run, or the file is damaged.
    """
    path = folder / NAME
    try:
        document = parse_json(files.read_bytes(path, _LARGEST))
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r:.20}, this release reads {FORMAT}")
        kinds: dict[str, type] = dict.fromkeys(("model", "name", "root", "listing", "started", "onnxcam"), str)
        for name, kind in {**kinds, "settings": dict, "rows": int, "rows_per_part": int}.items():
            if type(document[name]) is not kind:
                raise ValueError(f"{name} is {document[name]!r:.20}")
        labels = document["labels"]
        if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
            raise ValueError("labels are no texts")
        if document["rows"] < 0 or document["rows_per_part"] < 1:
            raise ValueError("a negative number of rows")
        return dict(document)
    except FileError as error:
        raise InputError(
            f"{str(folder)!r} is not the table of a run ({NAME} {error}); choose another folder"
        ) from error
    except (ValueError, KeyError, TypeError, DocumentError) as error:
        raise InputError(f"{str(path)!r} is damaged ({error}); write to another folder") from error


@dataclass(frozen=True)
class About:
    """What is known of a table beside its rows.

    Attributes:
        root: the folder that paths are relative to.
        started: when it was begun, or written by others, as `2026-11-25T14:07:00.123456Z`.
        when: the condition that it was made with.
        model: the model's name; labels: those of its classes, by index.
        missing: rows that are not there yet.
        window: whether the layer covers a part of the model's input only.
        settings: all that it was made with; empty where it is from elsewhere.
    """

    root: str
    started: str
    when: str | None
    model: str | None = None
    labels: list[str] | None = None
    missing: int = 0
    window: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def about_table(table: Path) -> About:
    """What is known of a table: from `onnxcam batch`, or from elsewhere.

    Raises:
        InputError: not a table, or its files are damaged.
    """
    paths = tables.files_of(table)
    part = tables.metadata(paths[0])
    if part is None:
        moment = datetime.fromtimestamp(min(path.stat().st_mtime for path in paths), UTC).replace(tzinfo=None)
        return About(str(table.absolute()), moment.isoformat(timespec="microseconds") + "Z", None)
    when = part.settings.get("when")
    about = About(part.root, part.started, when if isinstance(when, str) else None)
    about = replace(about, window=part.settings.get("window") is not None, settings=dict(part.settings))
    if not table.is_dir() or not (table / NAME).exists():
        return about
    document = state(table)
    rows = sum(one.counts.rows for path in paths if (one := tables.metadata(path)) is not None)
    return replace(about, model=document["name"], labels=document["labels"], missing=max(0, document["rows"] - rows))


def _parts(run: Run) -> dict[int, Part]:
    """The parts on the disk.

    Raises:
        InputError: one is damaged, or of another run.
    """
    parts = {}
    for name in sorted(os.listdir(run.folder)):  # noqa: PTH208
        match = _PART.fullmatch(name)
        if match is None:
            continue
        number = int(match[1])
        part = tables.metadata(run.folder / name)
        first, last = run.bounds(number)
        if (
            part is None
            or number >= run.number
            or (part.part, part.first, part.counts.rows) != (number, first, last - first)
            or (part.model, part.started, part.root) != (run.terms.model, run.started, run.listing.root)
            or name != part_name(number)
        ):
            raise InputError(f"{str(run.folder / name)!r} is not a part of this run; move it elsewhere")
        parts[number] = part
    return parts


def _different(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """The values that differ, of dictionaries each with the names that lead to it."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            yield from _different(f"{name} {key}", old.get(key), new.get(key))
    elif old != new:
        yield name, old, new


def _brief(*values: Any) -> list[str]:
    """Values that differ as texts of at most 80 characters, from where they begin to differ."""
    texts = [repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    pairs = enumerate(zip(*texts, strict=False))
    common = next((place for place, characters in pairs if len(set(characters)) > 1), min(map(len, texts)))
    start = max(0, common - 20) if common > 40 else 0
    texts = [f"...{text[start:]}" if start else text for text in texts]
    return [text if len(text) <= 80 else f"{text[:77]}..." for text in texts]
