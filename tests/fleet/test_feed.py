"""The batches on their way through a query of Daft: none is lost when one fails, and few are in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from onnxcam.fleet.daft import Feed

pytest.importorskip("pyarrow")


def batches(*sizes: int) -> Iterator[dict[str, list[Any]]]:
    for number, size in enumerate(sizes):
        yield {"bytes": [bytes([number])] * size, "id": list(range(size))}


def numbers(table: Any) -> list[int]:
    return [value[0] for value in table.column("bytes").to_pylist()]


def test_batches_come_in_order_until_there_is_no_room() -> None:
    feed = Feed(batches(3, 2, 0, 4), most=5)
    schema, places = feed.schema(), set[int]()
    assert schema.names == ["bytes", "id", "onnxcam_batch", "onnxcam_row"]
    assert numbers(feed.following(places, schema)) == [0] * 3 and not feed.full
    assert numbers(feed.following(places, schema)) == [1] * 2 and feed.full
    feed.remove(0)
    assert not feed.full
    table = feed.following(places, schema)
    assert numbers(table) == [3] * 4 and table.column("onnxcam_row").to_pylist() == [0, 1, 2, 3]
    assert feed.following(places, schema) is None and places == {0, 1, 3} and feed.rows(3) == 4
    for place in (1, 3):
        feed.remove(place)
    assert feed.schema() is None and feed.error is None


def test_another_query_has_what_the_first_left() -> None:
    feed = Feed(batches(1, 1, 1), most=100)
    schema, first = feed.schema(), set[int]()
    for _ in range(2):
        feed.following(first, schema)
    feed.remove(1)
    second = set[int]()
    assert [numbers(feed.following(second, feed.schema())) for _ in range(2)] == [[0], [2]]
    assert feed.following(second, schema) is None


def test_a_query_has_one_schema() -> None:
    def some() -> Iterator[dict[str, list[Any]]]:
        yield {"bytes": [b"a"], "note": ["x"]}
        yield {"bytes": [b"b"], "note": [None]}
        yield {"bytes": [b"c"], "note": [7]}

    feed = Feed(some(), most=100)
    schema, places = feed.schema(), set[int]()
    assert feed.following(places, schema).column("note").to_pylist() == ["x"]
    assert feed.following(places, schema).schema == schema
    assert feed.following(places, schema) is None
    for place in list(places):
        feed.remove(place)
    other = feed.schema()
    assert other != schema and feed.following(set(), other).column("note").to_pylist() == [7]


def test_an_error_in_the_batches_comes_after_those_before_it() -> None:
    def some() -> Iterator[dict[str, list[Any]]]:
        yield from batches(2)
        raise ValueError("no more")

    feed = Feed(some(), most=100)
    schema, places = feed.schema(), set[int]()
    assert numbers(feed.following(places, schema)) == [0, 0] and feed.following(places, schema) is None
    assert isinstance(feed.error, ValueError)
    feed.remove(0)
    assert feed.schema() is None
