"""JSON documents of others: bounded before anything is allocated."""

from __future__ import annotations

import json
import os
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from onnxcam.documents import DocumentError, inflate, parse_json

MIB = 1 << 20
LARGE = MIB


def peak(call: Callable[[], Any]) -> int:
    """Bytes that a call allocates at most at a time."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 10_000 + b"]" * 10_000, "at most 64 are read"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "at most 64 are read"),
        (b"[" * 10_000, "at most 64 are read"),
        (b'["' + b"[" * 100 + b'",' + b"[" * 64 + b"]" * 65, "at most 64 are read"),
        (b"[" + b"[]," * (LARGE // 3) + b"0]", "MiB of memory"),
        (b"[" + b'{"a":1},' * (LARGE // 8) + b"0]", "MiB of memory"),
        (b"[" + b"0.5," * (LARGE // 4) + b"0]", "MiB of memory"),
        (b'{"a":[1e999]}', "not finite"),
        (b"[Infinity]", "not finite"),
        (b"[NaN]", "not finite"),
        (b"[" + b"9" * 100_000 + b"]", "64 bits"),
        (b"[9223372036854775808]", "64 bits"),
        (b"[1,", "not JSON"),
        (b"", "not JSON"),
        (b"\x00\x01", "not JSON"),
        (b"\xff\xfe\xfd", "not UTF-8|not JSON"),
    ],
    ids=lambda value: str(value[:12]) if isinstance(value, bytes) else "",
)
def test_what_is_not_such_a_document_is_refused(data: bytes, message: str) -> None:
    def refused() -> None:
        with pytest.raises(DocumentError, match=message) as caught:
            parse_json(data, memory=4 * MIB)
        assert len(str(caught.value)) < 200

    assert peak(refused) < 6 * MIB, "refused before it is parsed"


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, -2.5, None, True, "x"], "b": {}},
        ["[[[[" * 50, "{" * 500, 'quotes " and \\', "毛😀"],
        9223372036854775807,
        -9223372036854775808,
        [[[[[[[["deep enough"]]]]]]]],
    ],
)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_documents_are_read_as_json_reads_them(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


def test_texts_full_of_brackets_cost_what_they_are() -> None:
    text = json.dumps(["{[,:" * (MIB // 2)])
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b"[]," * 35_000 + b"0]",
        b"[" + b'{"a":0},' * 11_000 + b"0]",
        b"{" + b",".join(b'"%x":0' % k for k in range(19_000)) + b"}",
        b"[" + b"0.5," * 60_000 + b"0]",
        b"[" + b'"ab",' * 60_000 + b"0]",
        '["😀{}"]'.format("a" * 600_000).encode(),
        b'["\\ud83d\\ude00' + b"a" * 600_000 + b'"]',
        b'["' + b"a" * 1600_000 + b'"]',
    ],
    ids=["lists", "objects", "keys", "numbers", "texts", "wide", "escaped", "narrow"],
)
def test_the_estimate_is_an_upper_bound(data: bytes) -> None:
    """Whatever is accepted takes no more than it may take."""
    assert peak(lambda: parse_json(data, memory=6 * MIB)) + len(data) <= 6 * MIB


def test_pairs_are_handed_over_as_they_are() -> None:
    assert parse_json('{"a": 1, "a": 2}', pairs=list) == [("a", 1), ("a", 2)]


def test_a_compressed_bomb_is_refused_before_it_is_inflated() -> None:
    bomb = zlib.compress(bytes(64 * MIB))

    def refused() -> None:
        with pytest.raises(DocumentError, match="more than the 1,048,576 bytes"):
            inflate(bomb, MIB)

    assert peak(refused) < 4 * MIB
    whole = os.urandom(1000)
    assert inflate(zlib.compress(whole), 1000) == whole
    with pytest.raises(DocumentError, match="ends early"):
        inflate(zlib.compress(whole)[:-20], 1000)
    with pytest.raises(DocumentError, match="damaged"):
        inflate(b"nothing of the kind", 1000)
