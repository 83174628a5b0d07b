"""JSON documents: those that others wrote are checked before memory is allocated, and one way to write them."""

from __future__ import annotations

import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcam.files import FileError

LARGEST = 16 << 20  # bytes of inflated data
MEMORY = 48 << 20  # bytes that a document may take once it is parsed
DEEPEST = 64  # levels of lists and objects
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.S)
_TEXTS = re.compile(rb'(?:[^"]*+"[^"\\]*+(?:\\.[^"\\]*+)*+"){1,2000}', re.S)
_BRACKETS = b"[]{}"
_OTHERS = bytes(set(range(256)) - set(_BRACKETS))
# what CPython allocates at most for what follows each of them: an object, a key and its value, an item
_BYTES = {b"{": 240, b":": 160, b"[": 80, b",": 80}
_LONGEST = 1 << 16  # characters of a line
_CHUNK = 1 << 18


class DocumentError(ValueError):
    """A document is not read; the message is a clause about it, for the sentence of whoever reads it."""


def parse_json(
    data: bytes | str,
    *,
    memory: int = MEMORY,
    deepest: int = DEEPEST,
    pairs: Callable[[Sequence[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Parse JSON whose numbers are finite, and its whole numbers of 64 bits.

    Arguments:
        memory: bytes that the parsed document may take, by an estimate from above.
        deepest: levels of lists and objects.
        pairs: makes an object of its pairs, as `object_pairs_hook` of `json.loads`.

    Raises:
        DocumentError: not such a document.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    check_json(raw, memory=memory, deepest=deepest)
    try:
        return json.loads(
            raw, object_pairs_hook=pairs, parse_float=to_finite, parse_int=_integer, parse_constant=refuse_constant
        )
    except DocumentError:
        raise
    except UnicodeDecodeError as error:
        raise DocumentError(f"is not UTF-8 text (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"is not JSON ({error})") from error


def render(record: Any) -> bytes:
    """Write a record as JSON for people: indented UTF-8, numbers that are not finite as null, as JSON has no NaN.

    Halves of surrogate pairs, as in file names that are no UTF-8, are escaped.
    """
    text = json.dumps(finite(record), ensure_ascii=False, indent=2) + "\n"
    return text.encode(errors="backslashreplace")


def finite(value: Any) -> Any:
    """The value with numbers that are not finite replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_json(data: bytes, *, memory: int = MEMORY, deepest: int = DEEPEST) -> None:
    """Check what a JSON document takes and how deep it is, without parsing it.

    Raises:
        DocumentError: more than `memory` bytes by an estimate from above, or more than `deepest` levels.
    """
    if _size(data, _marks(data)) > memory:
        # marks inside texts cost nothing: count again without the texts
        size = _size(data, sum(map(_marks, _without_texts(data)), Counter()))
        if size > memory:
            raise DocumentError(f"would take up to {size >> 20:,} MiB of memory; at most {memory >> 20:,} are allowed")
    if _depth([data]) > deepest and (depth := _depth(_without_texts(data))) > deepest:
        raise DocumentError(f"is nested {depth:,} levels deep; at most {deepest} are read")


def inflate(data: bytes, largest: int = LARGEST) -> bytes:
    """Decompress zlib data of at most `largest` bytes.

    Raises:
        DocumentError: it is larger, damaged or incomplete.
    """
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(data, largest + 1)
    except zlib.error as error:
        raise DocumentError(f"has damaged compressed data ({error})") from error
    if len(inflated) > largest:
        raise DocumentError(f"has compressed data of more than the {largest:,} bytes that are expected")
    if not stream.eof:
        raise DocumentError("has compressed data that ends early")
    return inflated


def _without_texts(data: bytes) -> Iterator[bytes]:
    """Yield a document in pieces without its texts, so that removing them takes little memory."""
    place = 0
    while (texts := _TEXTS.match(data, place)) is not None:
        yield _TEXT.sub(b"", texts[0])
        place = texts.end()
    yield data[place:]


def _marks(data: bytes) -> Counter[bytes]:
    return Counter({mark: data.count(mark) for mark in _BYTES})


def _size(data: bytes, marks: Mapping[bytes, int]) -> int:
    """Return an upper bound of the bytes that parsing takes: of the decoded text, its strings and all objects."""
    width = 1 if data.isascii() and b"\\u" not in data else 4
    return len(data) * (1 + 2 * width) + sum(marks[mark] * cost for mark, cost in _BYTES.items())


def _depth(pieces: Iterable[bytes]) -> int:
    deepest = level = 0
    for piece in pieces:
        brackets = np.frombuffer(piece.translate(None, _OTHERS), np.uint8)
        for begin in range(0, len(brackets), _CHUNK):
            # bit 2 tells "]" and "}" from "[" and "{"
            levels = level + np.cumsum(1 - (brackets[begin : begin + _CHUNK] & 4) // 2.0)
            deepest, level = max(deepest, int(levels.max())), int(levels[-1])
    return deepest


def to_finite(text: str) -> float:
    """Parse a JSON number (`parse_float` of `json`).

    Raises:
        DocumentError: it is not finite, as 1e999.
    """
    value = float(text)
    if not math.isfinite(value):
        raise DocumentError(f"has a number that is not finite ({_short(text)})")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
        raise DocumentError(f"has a whole number of more than 64 bits ({_short(text)})")
    return int(text)


def refuse_constant(text: str) -> float:
    """Refuse NaN and the infinities, which are not JSON (`parse_constant` of `json`).

    Raises:
        DocumentError: always.
    """
    raise DocumentError(f"has a number that is not finite ({text})")


def _short(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:27]}..."


def lines_of(data: bytes) -> Iterator[str]:
    """The lines of a UTF-8 text with their ends, one by one: as a whole it would take up to four bytes a character.

    Raises:
        FileError: a line has more than 65,536 characters.
        UnicodeDecodeError: it is not UTF-8.
    """
    for number, line in enumerate(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=""), 1):
        if len(line) > _LONGEST:
            raise FileError(f"has more than {_LONGEST:,} characters in line {number}; is it another file?")
        yield line
