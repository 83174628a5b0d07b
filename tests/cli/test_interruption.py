"""SIGTERM, SIGHUP and Ctrl-C end a command alike: what is finished is kept and listed, nothing half-written stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcam.cli import progress
from onnxcam.cli.signals import interruptible
from onnxcam.evaluation import judge
from onnxcam.image import write_png
from tests.cli.conftest import Run, noise

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More pictures than are explained in a second or two."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(5)
    write_png(folder / "000.png", noise(rng, 900, 1200))
    for number in range(1, 400):
        os.link(folder / "000.png", folder / f"{number:03}.png")
    return folder


def start(*arguments: Any, ignored: bool = False) -> subprocess.Popen[str]:
    # ignored as `nohup` does, which may also run these tests
    action = "SIG_IGN" if ignored else "SIG_DFL"
    code = f"import signal; signal.signal(signal.SIGHUP, signal.{action}); from onnxcam.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path: Path, pattern: str, count: int = 1) -> None:
    end = time.monotonic() + 60
    while len(list(path.glob(pattern))) < count:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_explain_keeps_what_is_finished(ready: Path, photographs: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    process = start("explain", ready, photographs, "-o", out)
    wait_for(out, "*/explanation.json", 5)
    process.send_signal(number)
    process.send_signal(number if number != signal.SIGINT else signal.SIGTERM)  # impatient
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.splitlines()[-1] == "Interrupted." and "Traceback" not in err
    assert not [path for path in out.rglob("*") if path.name.endswith((".part", ".tmp"))]
    summary = json.loads((out / "analysis_summary.json").read_text())
    counts = summary["counts"]
    assert counts["found"] == 400 and counts["failed"] == 0
    assert 5 <= counts["explained"] < 400 and counts["left"] == 400 - counts["explained"]
    listed = {path for entry in summary["pictures"] for path in entry["files"].values()}
    assert len(summary["pictures"]) == counts["explained"]
    # every picture has all of its files and is listed, or has none
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        *listed,
        "analysis_summary.json",
    }


@pytest.mark.slow
def test_a_signal_that_is_ignored_stays_so(ready: Path, photographs: Path, tmp_path: Path) -> None:
    process = start("explain", ready, *sorted(photographs.iterdir())[:20], "-o", tmp_path / "out", ignored=True)
    wait_for(tmp_path / "out", "*/explanation.json")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.slow
def test_an_interrupted_evaluation_says_what_it_has(ready: Path, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "from onnxcam.cli import evaluate, main, progress\nevaluate._EVERY = progress.LINES = 0.2\nmain()"
    )  # fmt: skip
    arguments = ["evaluate", ready, photographs, "--method", "gradcam", "--metric", "average_drop", "-o", out]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(out, "evaluation.partial.csv")
    partial = (out / "evaluation.partial.csv").read_text().splitlines()
    process.send_signal(signal.SIGTERM)
    printed, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.splitlines()[-1] == "Interrupted."
    record = json.loads((out / "evaluation.json").read_text())
    done = record["pictures"]
    assert record["interrupted"] is True and record["left"] == 400 - done and 8 <= done < 400 and not done % 8
    rows = (out / "evaluation.csv").read_text().splitlines()
    assert len(rows) == done + 2 and all(row.count(",") == 5 and not row.endswith(",") for row in rows)
    assert rows[: len(partial) - 1] == partial[:-1], "rows do not change once they are written"
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.csv", "evaluation.json", "report.html"]
    assert f"{done} of 400 pictures" in err and "gradcam" in printed
    assert " % judged" in err, "a line now and then where there is no terminal"


def test_numbers_of_an_interrupted_evaluation_are_those_of_its_pictures(
    run: Run, ready: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures whose numbers are half done are left out, of the curves too."""
    rng = np.random.default_rng(3)
    for number in range(12):
        write_png(photos / f"more{number:02}.png", noise(rng, 32, 32))
    arguments = ["--method", "gradcam", "--metric", "insertion", "--metric", "average_drop", "--json"]
    names = sorted(path for path in photos.rglob("*.png") if "/." not in str(path))
    whole = run("evaluate", ready, *names[:8], *arguments).json()
    real, calls = judge._trial, []

    def interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(judge, "_trial", interrupted)
    result = run("evaluate", ready, *names, *arguments)
    assert result.code == 130
    part = result.json()
    assert part.pop("interrupted") is True and part.pop("left") == len(names) - 8
    assert {key: part[key] for key in ("methods", "curves", "each")} == {
        key: whole[key] for key in ("methods", "curves", "each")
    }


@pytest.mark.slow
def test_a_table_on_standard_output_is_alone_there(ready: Path, photo: Path) -> None:
    arguments = ["evaluate", ready, photo, "--method", "gradcam", "--metric", "average_drop", "--csv", "/dev/stdout"]
    process = start(*arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.splitlines()[0] == "picture,class,label,probability,method,average_drop" and len(out.splitlines()) == 3
    assert "average_drop" not in err and "gradcam" in err
    process = start(*arguments, "--json")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "standard output" in err


@pytest.mark.slow
def test_a_model_on_standard_output_is_alone_there(plain: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnxcam", "export", plain, "-o", "/dev/stdout", "--no-verify"], capture_output=True
    )
    assert done.returncode == 0
    onnx.checker.check_model(onnx.load_from_string(done.stdout))
    assert b"scores" in done.stderr
    os.mkfifo(tmp_path / "fifo")
    process = start("export", plain, "-o", tmp_path / "fifo", "--no-verify", "--json")
    onnx.checker.check_model(onnx.load_from_string((tmp_path / "fifo").read_bytes()))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and json.loads(out)["bytes"] is None and (tmp_path / "fifo").is_fifo()


# Ctrl-C while `module` is looked for, as the library takes it: passed on, or made an error of its own
INTERRUPTING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                import time; time.sleep(5)
            except KeyboardInterrupt:
                if {swallowed}:
                    raise ImportError("a library that was interrupted") from None
                raise
sys.meta_path.insert(0, Finder())
from onnxcam.__main__ import main
main()
"""


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("module", "swallowed"),
    [
        ("onnxcam.errors", False), ("click", False), ("onnxcam.cli", False), ("onnxcam.cli.explain", False),
        ("numpy", False), ("onnxruntime", True),
    ],
)  # fmt: skip
def test_an_interruption_of_imports_prints_no_traceback(
    ready: Path, tmp_path: Path, module: str, swallowed: bool
) -> None:
    code = INTERRUPTING.format(module=module, swallowed=swallowed)
    write_png(tmp_path / "a.png", noise(np.random.default_rng(0)))
    command = [sys.executable, "-c", code, "explain", ready, tmp_path / "a.png", "-o", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr.splitlines()[-1] == "Interrupted." and "Traceback" not in done.stderr


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress.Bar("judged") as bar:
        for done in range(11):
            bar.to(done, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["20 % judged, 2:00 left", "50 % judged, 1:00 left", "80 % judged, 0:22 left"]
