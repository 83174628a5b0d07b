"""The queries of Daft: every batch is in one of them, in order, and few are in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from onnxcam.fleet.daft import grouped

pytest.importorskip("pyarrow")


def batches(*sizes: int) -> Iterator[dict[str, list[Any]]]:
    for number, size in enumerate(sizes):
        yield {"bytes": [bytes([number]) * 10] * size, "id": list(range(size))}


def numbers(tables: list[Any]) -> list[int]:
    return [value[0] for table in tables for value in table.column("bytes").to_pylist()]


def test_batches_stand_in_order_in_queries_of_enough_rows() -> None:
    queries = list(grouped(batches(3, 2, 0, 4, 1, 5, 2), 5, 1 << 20))
    assert [numbers(tables) for tables in queries] == [[0] * 3 + [1] * 2, [3] * 4 + [4], [5] * 5, [6] * 2]
    assert [[table.num_rows for table in tables] for tables in queries] == [[3, 2], [4, 1], [5], [2]]


def test_few_bytes_are_in_a_query() -> None:
    sizes = [[table.num_rows for table in tables] for tables in grouped(batches(*[4] * 6), 10_000, 200)]
    assert sum(map(len, sizes)) == 6 and max(map(len, sizes)) <= 3


def test_batches_are_taken_when_their_query_begins() -> None:
    taken: list[int] = []

    def some() -> Iterator[dict[str, list[Any]]]:
        for number, batch in enumerate(batches(*[4] * 6)):
            taken.append(number)
            yield batch

    queries = grouped(some(), 8, 1 << 20)
    next(queries)
    assert taken == [0, 1]
    next(queries)
    assert taken == [0, 1, 2, 3]


def test_no_batches_and_batches_without_rows_give_no_query() -> None:
    assert list(grouped(iter(()), 5, 1 << 20)) == [] and list(grouped(batches(0, 0), 5, 1 << 20)) == []


def test_an_error_in_the_batches_comes_after_those_before_it() -> None:
    def some() -> Iterator[dict[str, list[Any]]]:
        yield from batches(2)
        raise ValueError("no more")

    queries = grouped(some(), 100, 1 << 20)
    assert numbers(next(queries)) == [0, 0]
    with pytest.raises(ValueError, match="no more"):
        next(queries)
