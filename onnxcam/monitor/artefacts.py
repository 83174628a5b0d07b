"""Picture files next to the records: each is complete, synced and under its final name before a record names it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from onnxcam.errors import OutputError
from onnxcam.folders import sync_folder

FOLDER = "files"
PART = ".part"  # the suffix of a file that is not yet complete
NAME = r"files/[0-9]{8}/[0-9]{2}/[0-9a-f-]{36}-[a-z_]+\.png"
_KIND = re.compile(r"[a-z_]+")


def write(root: Path, record: Mapping[str, Any], files: Mapping[str, bytes], sync: bool = True) -> list[dict[str, Any]]:
    """Write the pictures of one record under `root`, all of them or none.

    Each is written under a temporary name in its folder, synced, and renamed to
    `files/<YYYYMMDD>/<HH>/<id>-<kind>.png`, the hour being that of the record's `ts`.

    Returns:
        for each file `{"kind", "name", "sha256", "bytes"}`, as the record names it.

    Raises:
        OutputError: one could not be written; none is left behind.
    """
    if not files:
        return []
    day, hour = re.sub(r"[^0-9T]", "", record["ts"])[:11].split("T")
    folder = root / FOLDER / day / hour
    entries: list[dict[str, Any]] = []
    touched: list[Path] = []
    try:
        new_names_in = _make_folder(folder, root)
        for kind, data in files.items():
            if not _KIND.fullmatch(kind):
                raise OutputError(f"{kind!r} cannot be part of a file's name; expected lower-case letters")
            final = folder / f"{record['id']}-{kind}.png"
            part = folder / f".{final.name}{PART}"
            touched += [part, final]
            try:
                _write(part, data, sync)
            except FileNotFoundError:  # retention has just removed the empty folder
                new_names_in += _make_folder(folder, root)
                _write(part, data, sync)
            part.replace(final)
            name = final.relative_to(root).as_posix()
            entries.append({"kind": kind, "name": name, "sha256": sha256(data).hexdigest(), "bytes": len(data)})
        if sync:
            for changed in [folder, *new_names_in]:
                sync_folder(changed)
    except BaseException as error:
        remove(touched)
        if isinstance(error, OSError):
            raise OutputError(
                f"a picture could not be written to {str(folder)!r}: {error.strerror or error}; see that the disk is "
                "writable and has space"
            ) from error
        raise
    return entries


def remove(paths: list[Path]) -> None:
    """Delete files, ignoring those that are missing or cannot be deleted."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _make_folder(folder: Path, root: Path) -> list[Path]:
    """Create the folder and its parents; returns the folders that got a new entry."""
    missing = [path for path in (folder, *folder.parents) if path.is_relative_to(root) and not path.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    return [path.parent for path in missing]


def _write(path: Path, data: bytes, sync: bool) -> None:
    # a file of the same name can only be left over from an earlier attempt at the same record
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o644)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
        if sync:
            os.fsync(handle)
    finally:
        os.close(handle)
