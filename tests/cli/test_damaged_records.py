"""One bad line never ends a command that reads records: it is skipped, counted as damaged and said once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.monitor import damage, synthetic

KINDS = damage.lines()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    synthetic.write(folder, [synthetic.record(n) for n in range(620)])
    return folder


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same records, with every kind of bad line between them, in two segments of two processes."""
    folder = tmp_path_factory.mktemp("spoiled")
    kinds = list(KINDS.values())
    for pid in (7, 8):
        data = b""
        for n in range(pid - 7, 620, 2):
            data += json.dumps(synthetic.record(n)).encode() + b"\n"
            if n // 2 < len(kinds):
                data += kinds[n // 2] + b"\n"
        path = synthetic.write(folder, [synthetic.record(pid - 7)], pid=pid)
        path.write_bytes(data)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("tail", "-n", 5),
        ("tail", "-n", 700, "--json"),
        ("query", "--json"),
        ("query", "--sort", "newest"),
        ("query", "--sort", "confidence"),
        ("query", "--sort", "map", "--limit", 3),
        ("query", "--where", 'label == "tabby" and margin < 0.2', "--label", "tab", "--class", 0, "--model", "tiny"),
        ("stats", "--json"),
        ("stats",),
        ("prune",),
        ("drift", "--window", 500),
        ("baseline", "-o", "FILE"),
        ("report", "-o", "FILE"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
def test_every_command_gives_what_it_gives_without_them(
    arguments: tuple[Any, ...], run: Run, clean: Path, spoiled: Path, tmp_path: Path
) -> None:
    command, *rest = arguments
    if command == "drift":
        assert run("monitor", "baseline", clean, "-o", tmp_path / "b.json").code == 0
        rest += ["--baseline", tmp_path / "b.json", "--since", "2026-11-01"]
    rest = [tmp_path / "out" if argument == "FILE" else argument for argument in rest]
    expected, result = (run("monitor", command, folder, *rest) for folder in (clean, spoiled))
    assert (expected.code, result.code) == (0, 0), result.err
    assert "unexpectedly" not in result.err
    if command == "stats" and "--json" in rest:
        one, other = expected.json(), result.json()
        assert one["records"] == other["records"]
        assert one["notes"] == [] and other["notes"] == [f"{2 * len(KINDS)} lines are not records and were skipped"]
    elif command == "report":
        assert expected.out.partition(",")[0] == result.out.partition(",")[0]
        assert (tmp_path / "out").read_text().count(f"{2 * len(KINDS)} lines are not records and were skipped") == 1
    elif command != "prune":
        assert result.out == expected.out
    if command != "prune" and not ("--json" in rest and command == "stats"):
        reached = command != "tail" or 700 in rest
        assert result.err.count(f"{2 * len(KINDS)} lines are not records and were skipped") == int(reached)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_and_folders_with_the_names_of_segments_are_skipped(tmp_path: Path, run: Run) -> None:
    path = synthetic.write(tmp_path, [synthetic.record(0)])
    os.mkfifo(path.with_name(path.name.replace("-7-", "-8-")))
    os.mkfifo(path.with_name(path.name.replace("-7-", "-9-") + ".open"))
    path.with_name(path.name.replace("-7-", "-10-")).mkdir()
    path.with_name(path.name.replace("-7-", "-11-")).symlink_to(tmp_path / "nowhere")
    for command in ("query", "tail", "stats", "prune"):
        result = run("monitor", command, tmp_path)
        assert result.code == 0, result.err
        assert command == "prune" or "3 segments are not regular files and were skipped" in result.err
    assert run("monitor", "query", tmp_path, "--json").json()["id"] == "000000000000"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("query", "DIR", "--since", "99999999d"), "is not a time"),
        (("query", "DIR", "--until", "0001-01-01T00:00+14:00"), "is not a time in the years"),
        (("tail", "DIR", "--since", "1" + "0" * 400 + "s"), "is not a time"),
        (("prune", "DIR", "--max-bytes", "9" * 400), "expected bytes"),
        (("prune", "DIR", "--max-age", "9" * 400 + "d"), "expected seconds"),
        (("drift", "DIR", "--baseline", "FILE", "--window", "9" * 5000), "neither a number of records nor a duration"),
        (("drift", "DIR", "--baseline", "FILE", "--window", "99999999999d"), "neither a number of records"),
    ],
)
def test_times_and_sizes_beyond_all_bounds_are_wrong_usage(
    arguments: tuple[str, ...], message: str, run: Run, clean: Path
) -> None:
    result = run("monitor", *(clean if argument == "DIR" else argument for argument in arguments))
    assert result.code == 2 and message in result.err and "unexpectedly" not in result.err


@pytest.mark.parametrize("command", ["query", "tail", "stats"])
def test_times_at_the_ends_of_the_calendar_are_times(command: str, run: Run, clean: Path) -> None:
    for since, until in (("0001-01-01", "9999-12-31T23:59:59.999999Z"), ("9999-12-31", "9999-12-31T23:59:59.999999")):
        result = run("monitor", command, clean, "--since", since, "--until", until)
        assert (result.code, result.err.count("unexpectedly")) == (0, 0), result.err
