"""Runs that are stopped, by whatever and wherever, and go on: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxcam import files
from onnxcam.fleet import job, tables
from tests.fleet import samples, table

COUNT, PER_PART = 60, 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table.folder_of(tmp_path_factory.mktemp("pictures"), COUNT, every=20)


def arguments(model: Path, pictures: Path, output: Path) -> list[str]:
    return [str(model), str(pictures), "-o", str(output), "--rows-per-part", str(PER_PART)]


@pytest.fixture(scope="module")
def whole(model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of a run that was never stopped."""
    output = tmp_path_factory.mktemp("whole") / "t"
    assert table.batch(*arguments(model, pictures, output)).exit_code == 1
    return output


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """The same table as far as the second part, with what a kill may leave."""
    output = tmp_path / "t"
    shutil.copytree(whole, output)
    (output / tables.SUMMARY).unlink()
    for path in tables.files_of(output)[2:]:
        path.unlink()
    (output / ".0123456789abcdef.part").write_bytes(b"half of a part")
    return output


def kill(command: list[str], output: Path, rng: random.Random) -> int:
    """Run a command, and kill it at a random moment; returns how many parts were complete by then."""
    before = len(list(output.glob("*.parquet")))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        target = before + rng.randrange(3)
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if output.exists() and len(list(output.glob("*.parquet"))) >= target:
                break
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
    return len(list(output.glob("*.parquet")))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(36, marks=pytest.mark.fleets)])
def test_killed_at_any_moment_it_goes_on(model: Path, pictures: Path, whole: Path, tmp_path: Path, kills: int) -> None:
    """SIGKILL again and again, a new table whenever one is complete; each part that is there is whole at all times."""
    rng = random.Random(20261130)
    number = completed = 0
    while number < kills or not completed:
        output = tmp_path / f"t{completed}"
        command = [sys.executable, "-m", "onnxcam", "batch", *arguments(model, pictures, output), "--resume"]
        if number < kills:
            kill(command, output, rng)
            number += 1
        else:
            assert subprocess.run(command, capture_output=True).returncode == 1
        for path in output.glob("*.parquet"):
            part = tables.metadata(path)
            assert part is not None and path.name == tables.part_name(part.part)
        if (output / tables.SUMMARY).exists():
            assert table.same(output, whole) and not table.leftovers(output)
            completed += 1
    print(f"{kills} kills, {completed} tables completed")


@pytest.mark.parametrize("signal_sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_signal_ends_it_with_130_and_whole_parts(
    model: Path, pictures: Path, whole: Path, tmp_path: Path, signal_sent: signal.Signals
) -> None:
    for number in range(5):  # on a busy machine the run may be at its end before the signal is sent
        output = tmp_path / f"t{number}"
        command = [sys.executable, "-m", "onnxcam", "batch", *arguments(model, pictures, output)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            while not list(output.glob("*.parquet")) and process.poll() is None:
                time.sleep(0.001)
            process.send_signal(signal_sent)
            _, printed = process.communicate()
        if process.returncode != 1:
            break
    assert process.returncode == 130, printed
    assert "Interrupted." in printed and "--resume goes on" in printed and "Traceback" not in printed
    assert not table.leftovers(output) and not (output / tables.SUMMARY).exists()
    assert table.batch(*arguments(model, pictures, output), "--resume").exit_code == 1
    assert table.same(output, whole)


@pytest.mark.slow
def test_leftovers_are_removed_and_what_is_there_stays(model: Path, pictures: Path, whole: Path, stopped: Path) -> None:
    times = [path.stat().st_mtime_ns for path in tables.files_of(stopped)]
    result = table.batch(*arguments(model, pictures, stopped), "--resume", "--json")
    assert result.exit_code == 1, result.stderr
    assert json.loads(result.stdout)["counts"]["resumed"] == 2 * PER_PART
    assert table.same(stopped, whole) and not table.leftovers(stopped)
    assert [path.stat().st_mtime_ns for path in tables.files_of(stopped)[:2]] == times, "complete parts are not touched"
    again = table.batch(*arguments(model, pictures, stopped), "--resume")
    assert again.exit_code == 1 and table.same(stopped, whole), "there is nothing left to do"


def test_a_part_that_was_removed_is_written_again(model: Path, pictures: Path, whole: Path, stopped: Path) -> None:
    tables.files_of(stopped)[0].unlink()
    assert table.batch(*arguments(model, pictures, stopped), "--resume").exit_code == 1
    assert table.same(stopped, whole)


def test_while_rows_are_missing_nothing_says_that_the_table_is_complete(
    model: Path, pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "t"
    shutil.copytree(whole, output)
    tables.files_of(output)[3].unlink()
    there = []

    def killed(*_: Any, **__: Any) -> None:
        there.append((output / tables.SUMMARY).exists())
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(job, "write", killed)
        assert table.batch(*arguments(model, pictures, output), "--resume").exit_code == 130
    assert there == [False] and not (output / tables.SUMMARY).exists()
    assert table.batch(*arguments(model, pictures, output), "--resume").exit_code == 1
    assert table.same(output, whole) and (output / tables.SUMMARY).exists()


def test_rows_that_failed_are_tried_again_where_their_parts_are_removed(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    """As docs/how-to/tables.md says."""
    now, output = tmp_path / "pictures", tmp_path / "t"
    shutil.copytree(pictures / "ant", now)
    whole, broken = sorted(now.iterdir())[0], sorted(now.iterdir())[5]
    broken.write_bytes(b"not a picture")
    assert table.batch(*arguments(model, now, output)).exit_code == 1
    failed = [bool(error) for error in table.rows(output, ["error"])["error"]]
    assert failed[5]
    broken.write_bytes(whole.read_bytes())
    assert table.batch(*arguments(model, now, output), "--resume").exit_code == 1
    assert [bool(error) for error in table.rows(output, ["error"])["error"]] == failed
    for path in output.glob("*.parquet"):
        part = tables.metadata(path)
        if part is not None and part.counts.failed:
            path.unlink()
    table.batch(*arguments(model, now, output), "--resume")
    assert [bool(error) for error in table.rows(output, ["error"])["error"]] == [*failed[:5], False, *failed[6:]]


def test_without_resume_a_table_is_not_touched(model: Path, pictures: Path, stopped: Path) -> None:
    before = sorted(stopped.iterdir())
    result = table.batch(*arguments(model, pictures, stopped))
    assert result.exit_code == 2 and "--resume" in result.stderr
    assert sorted(stopped.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (["--rows-per-part", "9"], "rows-per-part 9 instead of 8"),
        (["--when", "confidence < 0.5"], "when 'confidence < 0.5' instead of 'always'"),
        (["--target", "bee"], "target 1 instead of null"),
        (["--method", "hirescam"], "method 'hirescam' instead of 'gradcam'"),
        (["--overlay"], "overlay {"),
        (["--normalize", "max"], "normalize 'max' instead of 'minmax'"),
        (["--by-folder"], "truth 'by-folder' instead of null"),
        (["--preprocess", "raw"], "preprocess resize "),
        (["--rows", "2"], "rows 2 instead of 1"),
        (["MODEL"], "model '"),
        (["PICTURES"], "pictures below '"),
    ],
)
def test_other_settings_are_refused(
    model: Path, pictures: Path, stopped: Path, tmp_path: Path, change: list[str], messages: str
) -> None:
    call = arguments(model, pictures, stopped)
    if change == ["MODEL"]:
        from tests.support.models import tiny_cnn

        call[0] = str(tmp_path / "other.onnx")
        other = tiny_cnn(classes=5, size=32, seed=7)
        Path(call[0]).write_bytes(other.SerializeToString())
        change = ["--preprocess", "raw"]
    elif change == ["PICTURES"]:
        call[1] = str(pictures / "ant")
        change = []
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    result = table.batch(*call, *change, "--resume")
    assert result.exit_code == 2, result.stderr
    assert messages in result.stderr and "was begun with other settings" in result.stderr
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before, "nothing is touched"


def test_one_head_of_a_model_does_not_go_on_with_the_table_of_another(pictures: Path, tmp_path: Path) -> None:
    from onnx import helper

    from tests.support.models import tiny_cnn

    model = tiny_cnn(classes=5, size=32)
    model.graph.node.append(helper.make_node("Neg", [model.graph.output[0].name], ["reversed"]))
    model.graph.output.append(helper.make_tensor_value_info("reversed", 1, ["N", 5]))
    (tmp_path / "two.onnx").write_bytes(model.SerializeToString())
    first = model.graph.output[0].name

    def batch(name: str, *more: str) -> Any:
        call = [*arguments(tmp_path / "two.onnx", pictures / "ant", tmp_path / "t"), "--preprocess", "imagenet"]
        return table.batch(*call, "--scores", name, "--when", "never", *more)

    batch(first)
    tables.files_of(tmp_path / "t")[-1].unlink()
    result = batch("reversed", "--resume")
    assert result.exit_code == 2 and f"scores 'reversed' instead of {first!r}" in result.stderr


def test_terms_that_differ_are_named_where_they_differ() -> None:
    from onnxcam.fleet.run import Terms

    before = {"preprocess": {"mean": [0.1] * 40, "scale": 1.0, "resize": {"mode": "stretch", "size": [8, 8]}}}
    now = {"preprocess": {"mean": [0.1] * 39 + [0.2], "scale": 1.0, "resize": {"mode": "pad", "size": [8, 8]}}}
    differences = Terms("m", now, 8).differences({"model": "m", "rows_per_part": 8, "settings": before})
    assert len(differences) == 2 and differences[1] == "preprocess resize mode 'pad' instead of 'stretch'"
    new, old = differences[0].split(" instead of ")
    assert new.startswith("preprocess mean ...") and new.endswith("0.1, 0.2]") and old.endswith("0.1, 0.1]")


def test_pictures_that_came_and_went_are_told(model: Path, pictures: Path, tmp_path: Path) -> None:
    now = tmp_path / "pictures"
    shutil.copytree(pictures, now)
    output = tmp_path / "new"
    assert table.batch(*arguments(model, now, output)).exit_code == 1
    for path in [*tables.files_of(output)[1:], output / tables.SUMMARY]:
        path.unlink()
    last = sorted(now.rglob("*.png"))[-1]
    last.rename(last.with_name("zzz.png"))
    result = table.batch(*arguments(model, now, output), "--resume")
    assert "1 pictures were added, which are left out, and 1 removed" in result.stderr
    rows = table.rows(output, ["path", "error"])
    assert len(rows["path"]) == COUNT and "zzz" not in rows["path"][-1]
    assert "does not exist" in rows["error"][-1]


@pytest.mark.parametrize("name", ["_run.json", "_listing", "part-000001.parquet"])
@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"{}" * 50])
def test_damaged_files_of_a_run_are_one_sentence(
    model: Path, pictures: Path, stopped: Path, name: str, spoil: Callable[[bytes], bytes]
) -> None:
    (stopped / name).write_bytes(spoil((stopped / name).read_bytes()))
    result = table.batch(*arguments(model, pictures, stopped), "--resume")
    assert result.exit_code == 1 and result.stderr.count("Error: ") == 1, result.stderr
    assert str(stopped) in result.stderr and "Traceback" not in result.stderr


def test_a_part_of_another_run_is_refused(model: Path, pictures: Path, whole: Path, stopped: Path) -> None:
    shutil.copy(whole / "part-000005.parquet", stopped / "part-000002.parquet")
    result = table.batch(*arguments(model, pictures, stopped), "--resume")
    assert result.exit_code == 1 and "part-000002.parquet' is not a part of this run" in result.stderr


def test_an_interruption_while_the_pictures_are_listed_leaves_no_table(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = files.write_pieces

    def interrupted(path: Any, *rest: Any, **options: Any) -> int:
        if Path(path).name == "_run.json":
            raise KeyboardInterrupt
        return written(path, *rest, **options)

    monkeypatch.setattr(files, "write_pieces", interrupted)
    result = table.batch(*arguments(model, pictures, tmp_path / "t"))
    assert result.exit_code == 130 and not (tmp_path / "t").exists()


def test_an_error_before_the_first_part_leaves_no_table(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Iterator[Any]:
        raise MemoryError("none left")
        yield

    monkeypatch.setattr(job, "answers", fail)
    result = table.batch(*arguments(model, pictures, tmp_path / "t"))
    assert result.exit_code == 1 and not (tmp_path / "t").exists()
