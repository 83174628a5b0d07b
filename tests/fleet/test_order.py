"""Rows that an engine gives in any order, cut anew, twice or not at all; and the listing that says which there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from onnxcam.errors import InputError, OutputError, PictureError
from onnxcam.explain import pictures
from onnxcam.explain.sorted_names import SortedNames
from onnxcam.fleet import engines, job, listing, tables
from onnxcam.fleet.columns import columns, to_arrow
from onnxcam.fleet.listing import Listing, Scan
from onnxcam.fleet.run import Run, Terms
from tests.fleet import table
from tests.support.examples import examples


class Answers:
    """In place of `Explain`: each picture's answer is the number in its name, odd ones have failed."""

    overlay = False

    def explain(self, paths: Any) -> Iterator[dict[str, Any]]:
        for path in paths:
            number = int(Path(path).stem.rpartition("-")[2])
            row: dict[str, Any] = dict.fromkeys(column.name for column in columns())
            error = "odd" if number % 2 else ""
            yield row | {
                "prediction": -1 if error else number,
                "label": None if error else str(number),
                "fired": not error,
                "method": None if error else "gradcam",
                "map": None if error else np.full(4, number, np.float32),
                "warnings": "",
                "error": error,
                "onnxcam": "1",
                "onnxruntime": "2",
                "model": "ab",
                "rows": 1,
            }

    def table(self, batch: dict[str, list[Any]]) -> Any:
        """The table of an engine, types as some engines change them."""
        rows = list(self.explain(batch[engines.PICTURE]))
        added = {column.name: to_arrow(rows, column, column.name) for column in columns()}
        added["label"] = added["label"].cast(pyarrow.large_string())
        added["map"] = added["map"].cast(pyarrow.large_list(pyarrow.float32()))
        return pyarrow.table({engines.ROW: batch[engines.ROW], **added})


def new_run(folder: Path, count: int, per_part: int, complete: set[int] = frozenset()) -> Run:  # type: ignore[assignment]
    folder.mkdir(exist_ok=True)
    odd = "half-\udcff-"  # no UTF-8
    names = [f"/p/{odd if number % 17 == 5 else ''}x-{number}.png" for number in range(count)]
    (folder / listing.NAME).write_bytes(b"".join(listing.pieces(names)))
    run = Run(folder, Terms("ab", {}, per_part), Listing(folder, "/p", count), Scan([], folder), "2026-11-30T00:00:00Z")
    for number in complete & set(range(run.number)):
        run.parts[number] = run.describe(number, tables.Counts())
    return run


@pytest.mark.slow
@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 300),
    st.integers(1, 90),
    st.sets(st.integers(0, 8)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 7, 200]),
)
def test_any_order_of_an_engine_gives_the_table_of_the_loop(
    tmp_path_factory: pytest.TempPathFactory, count: int, per_part: int, complete: set[int], seed: int, cut: int
) -> None:
    folder, explain = tmp_path_factory.mktemp("run"), Answers()
    rng = np.random.default_rng(seed)

    def engine(_: Any, batches: Any, *, workers: Any) -> Iterator[Any]:
        """Shuffled, cut anew, and some tasks run twice."""
        rows = [explain.table(batch) for batch in batches]
        if rows:
            whole = pyarrow.concat_tables(rows)
            order = rng.permutation(whole.num_rows)
            order = np.concatenate([order, order[: len(order) // 3]])
            for begin in range(0, len(order), cut):
                yield whole.take(order[begin : begin + cut])

    result = []
    for name in ("loop", "engine"):
        run = new_run(folder / name, count, per_part, complete)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engines, "import_module", lambda _: SimpleNamespace(run=engine))
            failed: list[tuple[str, str]] = []
            sentences = failed.append
            job.write(
                run,
                explain,  # type: ignore[arg-type]
                engine="local" if name == "loop" else "ray",
                failed=lambda path, error, sentences=sentences: sentences((path, error)),  # type: ignore[misc]
            )
        assert sorted(run.parts) == list(range(run.number)) and not run.missing()
        result.append((run, failed))
    assert result[0][1] == result[1][1], "the same failures in the same order"
    expected = [
        row
        for number in range(result[0][0].number)
        if number not in complete
        for row in range(*result[0][0].bounds(number))
    ]
    if not expected:
        return
    for run, _ in result:
        table_rows = table.rows(run.folder)
        assert table_rows["prediction"] == [-1 if row % 2 else row for row in expected]
        assert [int(path.rpartition("-")[2][:-4]) for path in table_rows["path"]] == expected
        assert {tables.metadata(path).counts.rows for path in tables.files_of(run.folder)} <= {
            per_part,
            count % per_part,
        }  # type: ignore[union-attr]
    assert table.same(folder / "loop", folder / "engine")


def test_a_row_that_an_engine_lost_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explain, run = Answers(), new_run(tmp_path / "t", 100, 20)

    def engine(_: Any, batches: Any, *, workers: Any) -> Iterator[Any]:
        for batch in batches:
            yield explain.table(batch).filter(pyarrow.compute.not_equal(pyarrow.array(batch[engines.ROW]), 50))

    monkeypatch.setattr(engines, "import_module", lambda _: SimpleNamespace(run=engine))
    with pytest.raises(OutputError, match=r"daft gave no row for '/p/x-50.png' \(row 50\); go on with --resume"):
        job.write(run, explain, engine="daft")  # type: ignore[arg-type]
    assert sorted(run.parts) == [0, 1] and len(table.leftovers(run.folder)) == 0
    job.write(run, explain, engine="local")  # type: ignore[arg-type]
    assert table.rows(run.folder)["prediction"] == [-1 if row % 2 else row for row in range(100)]


NAMES = st.lists(st.binary(min_size=1, max_size=40).filter(lambda name: not set(name) & {0, 47, 10, 13}), max_size=60)


@examples(60)
@given(NAMES)
def test_names_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, names: list[bytes]) -> None:
    folder = tmp_path_factory.getbasetemp()
    paths = [f"/root/{os.fsdecode(name)}" for name in names]
    (folder / listing.NAME).write_bytes(b"".join(listing.pieces(paths)))
    read_back = Listing(folder, "/root", len(paths))
    assert list(read_back.paths()) == paths
    assert list(read_back.paths(3, 5)) == paths[3:5] if len(paths) >= 5 else True
    for path in paths:
        read_back.relative(path).encode()
    listed = folder / "list"
    for separator in (b"\n", b"\r\n", b"\0"):
        listed.write_bytes(separator.join(map(os.fsencode, paths)) + separator)
        assert list(listing.read_list(str(listed))) == paths


@examples(40)
@given(NAMES)
def test_names_of_a_folder_are_in_order(names: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxcam.explain.sorted_names._CHUNK", 7)
        ordered = SortedNames()
        for number, name in enumerate(set(names)):
            ordered.add(os.fsdecode(name), number % 2 == 0)
        assert [os.fsencode(name) for name, _ in ordered] == sorted(set(names))


def test_a_scan_finds_what_explain_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/1.JPG", "a.npy", ".h/x.png", "b/.y.png", "c/z.webp", "c/m.npy", "out/o.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"")
    for named in (["."], ["b", "b/1.JPG", "c"], ["**/*.png", "a.npy"], ["none.png"], ["no*.png", "b"]):
        collected = pictures.collect(named, Path("out"))
        scan = Scan(named, Path("out"))
        paths = list(scan)
        distinct = list(dict.fromkeys(paths))
        assert distinct == [str(item.source.absolute()) for item in collected.items]  # type: ignore[union-attr]
        assert scan.failures == [str(error) for _, error in collected.failures] and scan.failed == len(scan.failures)
        assert all(path.startswith(f"{scan.root}/") for path in paths)
    (tmp_path / "long").write_bytes(b"x" * 70_000)
    with pytest.raises(PictureError, match="a line of more than 65,536 bytes"):
        list(listing.read_list("long"))


def test_a_listing_that_was_cut_is_told(tmp_path: Path) -> None:
    run = new_run(tmp_path / "t", 50, 10)
    run.listing.count = 51
    with pytest.raises(InputError, match="has 50 paths, expected 51"):
        list(run.rows())


@pytest.mark.fleets
def test_a_million_names_take_little_memory(tmp_path: Path) -> None:
    """Listing, resuming and walking through the rows of 1,000,000 names, simulated."""
    import resource

    run = new_run(tmp_path / "t", 2, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scan = Scan([], tmp_path)
    names = SortedNames()
    for number in range(1_000_000):
        names.add(f"picture-{number * 7919 % 1_000_003:09d}.jpg", True)

    def walked() -> Iterator[str]:
        for name, _ in names:
            path = f"/data/some/folder/{name}"
            scan._add(path)
            yield path

    from onnxcam.files import write_pieces

    write_pieces(run.folder / listing.NAME, listing.pieces(walked()))
    assert scan.count == 1_000_000 and not listing.repeats(scan)
    scan.several = True
    assert not listing.repeats(scan)
    assert listing.changes(run.folder, scan) == (0, 0)
    run.listing = Listing(run.folder, "/data", scan.count)
    assert sum(1 for _ in run.rows()) == 1_000_000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"1,000,000 names: {grown:.0f} MiB more, {(run.folder / listing.NAME).stat().st_size >> 20} MiB on the disk")
    assert grown < 160
