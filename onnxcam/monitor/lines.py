"""Lines of segments: read forwards or backwards in bounded memory, each of them a record or counted as damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from onnxcam.documents import check_json, refuse_constant, to_finite
from onnxcam.monitor.schema import SCHEMA, Record, is_record
from onnxcam.monitor.segments import final_name, open_regular

LONGEST = 1 << 20  # bytes of a line; one that is longer is not a record
_PLAIN = 1 << 14  # bytes of a line, and its brackets, up to which it needs no check before it is parsed
_BRACKETS = 60
_MEMORY = 16 << 20
_SHORT, _CHUNK = 1 << 13, 1 << 16
_decode = json.JSONDecoder(parse_float=to_finite, parse_constant=refuse_constant).decode


@dataclass
class Scan:
    """Counts of a pass over a folder.

    Attributes:
        segments: files read.
        records: complete records of a supported schema, matching or not.
        torn: incomplete last lines, of a process that was killed or is writing.
        damaged: complete lines that are not records.
        newer: records of a schema that this release does not support.
        irregular: entries with the name of a segment that are not regular files.
        unreadable: segments that cannot be opened.
        removed: records that others removed between two readings.
    """

    segments: int = 0
    records: int = 0
    torn: int = 0
    damaged: int = 0
    newer: int = 0
    irregular: int = 0
    unreadable: int = 0
    removed: int = 0

    def notes(self) -> list[str]:
        """Return sentences about what was skipped; an incomplete last line is normal."""
        notes = []
        if self.damaged:
            notes.append(f"{self.damaged} lines are not records and were skipped")
        if self.newer:
            notes.append(f"{self.newer} records are of a newer schema than {SCHEMA} and were skipped: upgrade onnxcam")
        if self.irregular:
            notes.append(f"{self.irregular} segments are not regular files and were skipped")
        if self.unreadable:
            notes.append(f"{self.unreadable} segments cannot be read and were skipped; see that you may read them")
        if self.removed:
            notes.append(f"{self.removed} records were removed while they were being sorted")
        return notes


def parse(line: bytes, scan: Scan) -> Record | None:
    """Parse a line of at most LONGEST bytes; None for one that is not a record, which is counted.

    Whatever is returned has every member of the schema, of its type and in its range.
    """
    try:
        if len(line) > _PLAIN or line.count(b"[") + line.count(b"{") > _BRACKETS:
            check_json(line, memory=_MEMORY)
        record: Any = _decode(line.decode())
    except (ValueError, RecursionError):
        record = None
    if is_record(record):
        scan.records += 1
        return record  # type: ignore[no-any-return]
    schema = record.get("schema") if isinstance(record, dict) else None
    if type(schema) is int and schema > SCHEMA:
        scan.newer += 1
    else:
        scan.damaged += 1
    return None


def open_segment(path: Path, scan: Scan) -> BinaryIO | None:
    """Open a segment, under its final name if it was closed since it was listed.

    None for one that was removed, and for what is not a regular file or cannot be opened, which is counted.
    """
    for name in (path, final_name(path)):
        try:
            file = open_regular(name)
        except FileNotFoundError:
            continue
        except OSError:  # another user's, or a link that leads in a circle
            scan.unreadable += 1
            return None
        scan.irregular += file is None
        return file
    return None


def forwards(file: BinaryIO, scan: Scan) -> Iterator[tuple[int, bytes]]:
    """Yield the complete lines from the file's position on, each with its offset; a longer one is damaged."""
    offset = file.tell()
    while line := file.readline(LONGEST + 1):
        size = len(line)
        while line[-1:] != b"\n" and (line := file.readline(_CHUNK)):
            size += len(line)
        if not line:
            scan.torn += 1
            return
        if size > LONGEST:
            scan.damaged += 1
        else:
            yield offset, line
        offset += size


def backwards(file: BinaryIO, scan: Scan) -> Iterator[tuple[int, bytes]]:
    """Yield the complete lines from the end of the file to its beginning, each with its offset."""
    place = file.seek(0, os.SEEK_END)
    step, rest, final, dropping = _SHORT, b"", True, False
    while place:
        step = min(step, place)
        place -= step
        file.seek(place)
        data = file.read(step)
        if len(data) < step:
            return  # truncated by others meanwhile
        pieces = (data + rest).split(b"\n")
        end = place + len(data) + len(rest)
        for piece in pieces[:0:-1]:
            end -= len(piece)
            if final:
                scan.torn += bool(piece) or dropping
            elif dropping or len(piece) >= LONGEST:
                scan.damaged += 1
            else:
                yield end, piece + b"\n"
            final = dropping = False
            end -= 1
        rest = b"" if dropping or len(pieces[0]) >= LONGEST else pieces[0]
        dropping = dropping or len(pieces[0]) >= LONGEST
        step = _CHUNK
    if final:
        scan.torn += bool(rest) or dropping
    elif dropping:
        scan.damaged += 1
    else:
        yield 0, rest + b"\n"
