"""Nothing from a file controls the terminal, and whatever becomes of the standard streams, files are written."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest

from onnxcam import cli, image
from onnxcam.errors import escaped
from tests.cli.calls import BIDI, C1, CR, ESC, EVERY, HALF, HOSTILE, OSC, arguments
from tests.cli.conftest import Run, noise, tree
from tests.monitor import synthetic
from tests.support import models

pytestmark = pytest.mark.usefixtures("servers_that_end")
# what a terminal acts on: control characters but for line ends, C1 and controls of direction
CONTROLS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
FORGED = re.compile("^forged", re.MULTILINE)


def test_there_is_a_call_of_every_command(workshop: Path, tmp_path: Path) -> None:
    for command in EVERY:
        assert arguments(command, workshop, tmp_path)


@pytest.mark.sample(9)
@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("command", EVERY)
def test_no_command_prints_control_characters(
    run: Run, workshop: Path, tmp_path: Path, command: str, form: str
) -> None:
    if command == "monitor drift":
        assert run(*arguments("monitor baseline", workshop, tmp_path)).code == 0
    result = run(*arguments(command, workshop, tmp_path), *(["--json"] if form == "json" else []))
    assert result.code in (0, 1, 4), result.err
    assert not CONTROLS.search(result.out + result.err), [result.out, result.err]
    if form == "text":
        assert not FORGED.search(result.out + result.err)
    elif command in ("monitor tail", "monitor query"):
        assert next(json.loads(line)["request"] for line in result.out.splitlines()) == HOSTILE
    else:
        assert json.loads(result.out) is not None


def test_labels_in_json_are_what_they_are(run: Run, workshop: Path, tmp_path: Path) -> None:
    result = run(*arguments("explain", workshop, tmp_path), "--json")
    labels = {entry["label"] for one in result.json()["pictures"] for entry in one["predictions"] or ()}
    assert labels == set(json.loads((workshop / "labels.json").read_text()))
    assert run(*arguments("layers", workshop, tmp_path), "--json").json()["layers"][1]["name"] == f"relu{HOSTILE}"


@pytest.mark.parametrize("text", [ESC, OSC, CR, C1, BIDI, HALF, "a\nforged"])
@pytest.mark.parametrize(
    "call",
    [
        ["{}"],
        ["layers", "{}"],
        ["layers", "m", "--{}"],
        ["explain", "{}", "p.png", "-o", "{}"],
        ["explain", "m", "p.png", "-o", "o", "--method", "{}"],
        ["explain", "m", "p.png", "-o", "o", "--top", "{}"],
        ["export", "{}", "-o", "o"],
        ["export", "{}:b", "-o", "o"],
        ["check", "m", "--provider", "{}"],
        ["monitor", "{}"],
        ["monitor", "tail", "{}"],
        ["monitor", "query", "m", "--where", "{}"],
        ["monitor", "prune", "m", "--max-age", "{}"],
        ["methods", "{}"],
    ],
    ids=" ".join,
)
def test_errors_do_not_either(run: Run, call: list[str], text: str) -> None:
    result = run(*(part.format(text) for part in call))
    assert result.code not in (0, 130)
    assert not CONTROLS.search(result.out + result.err) and not FORGED.search(result.err)


def on_a_terminal(*call: str, cwd: Path) -> tuple[int, bytes]:
    """Run `onnxcam` with standard output and error on a pseudo-terminal; its exit status and all it wrote."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "onnxcam", *call]
    environment = os.environ | {"PYTHONUTF8": "1"}
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, cwd=cwd, env=environment)
    os.close(follower)
    written = bytearray()
    try:
        while piece := os.read(leader, 1 << 16):
            written += piece
    except OSError:  # the last writer has left
        pass
    os.close(leader)
    return process.wait(60), bytes(written)


@pytest.mark.slow
def test_a_real_terminal_gets_our_own_controls_alone(workshop: Path, tmp_path: Path) -> None:
    code, written = on_a_terminal(*arguments("explain", workshop, tmp_path), cwd=tmp_path)
    text = written.decode().replace("\r\n", "\n").replace("\r\x1b[2K", "")
    assert code == 1 and "2 of 3 explained" in text and b"\x1b[2K[###" in written  # the bar was drawn
    assert not CONTROLS.search(text), text


def test_commands_write_in_one_place() -> None:
    """Nothing but `terminal` prints; other modules hand it text."""
    for path in (Path(cli.__file__).parent).glob("*.py"):
        if path.name != "terminal.py":
            assert not re.search(
                r"click\.(s?echo|style)|\bprint\(|sys\.std(out|err)\.(write|flush)", path.read_text()
            ), path


def test_escaped_keeps_what_is_legible() -> None:
    legible = "tabby, Übergröße 猫 😀 नमस्ते क्‍ष می‌خواهم\xa0…"
    assert escaped(legible) == legible
    assert escaped(f"{ESC}{C1}\t\U000e0041{HALF}") == "\\u001b[31m\\u009b2J\\u0009\\udb40\\udc41\\ud83d"
    assert json.loads(escaped(json.dumps(HOSTILE, ensure_ascii=False))) == HOSTILE


def test_the_sinks_of_a_monitor_do_not_either(capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    from onnxcam.monitor import sinks
    from onnxcam.monitor.admission import SystemClock
    from onnxcam.monitor.error_log import ErrorLog

    record = synthetic.record(1, request=f"{HOSTILE}{C1}\x7f")
    caplog.set_level("INFO")
    for spec in ("stdout:", "logging:onnxcam.test"):
        sinks.open_sink(spec).write(record, {})
    ErrorLog(SystemClock()).report("sink", ValueError(f"cannot write {ESC}{C1}"))
    printed = capfd.readouterr().out
    logged = [entry.getMessage() for entry in caplog.records]
    assert json.loads(printed)["request"] == json.loads(logged[0])["request"] == record["request"]
    assert not CONTROLS.search(printed + "".join(logged))


class Full(io.RawIOBase):
    """A file on a full disk."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise OSError(28, "No space left on device")


@contextlib.contextmanager
def full_stdout() -> Iterator[None]:
    stream, sys.stdout = sys.stdout, io.TextIOWrapper(io.BufferedWriter(Full()), encoding="utf-8")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        sys.stdout = stream


@pytest.mark.sample(5)
@pytest.mark.parametrize("command", EVERY)
def test_every_command_says_that_its_results_are_lost(
    workshop: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = [arguments(command, workshop, tmp_path)]
    if command == "monitor drift":
        calls.insert(0, arguments("monitor baseline", workshop, tmp_path))
    for call in calls:
        with full_stdout(), pytest.raises(SystemExit) as end:
            cli.main(call, "onnxcam")
    errors = capsys.readouterr().err
    assert end.value.code == 1
    assert errors.count("standard output could not be written (No space left on device)") == 1 + (len(calls) > 1)
    assert "unexpected" not in errors and "Traceback" not in errors
    written = tree(tmp_path)
    if command == "explain":
        assert len([name for name in written if name.endswith("explanation.json")]) == 2
        assert "analysis_summary.json" in written
    elif command in ("export", "demo", "page", "monitor baseline", "monitor report"):
        assert written


def closed(*descriptors: int) -> Callable[[], None]:
    return lambda: [os.close(descriptor) for descriptor in descriptors] and None


STREAMS: dict[str, tuple[dict[str, Any], int, str]] = {
    "full stdout": ({"stdout": "/dev/full"}, 1, "No space left on device"),
    "closed stdout": ({"preexec_fn": closed(1)}, 1, "Bad file descriptor"),
    "full stderr": ({"stderr": "/dev/full"}, 0, ""),
    "closed stderr": ({"preexec_fn": closed(2)}, 0, ""),
    "closed stdin": ({"preexec_fn": closed(0)}, 0, ""),
    "all closed": ({"preexec_fn": closed(0, 1, 2)}, 1, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", STREAMS)
def test_files_are_written_whatever_the_streams_are(workshop: Path, tmp_path: Path, case: str) -> None:
    settings, code, reason = STREAMS[case]
    pictures = [str(path) for path in sorted((workshop / "pictures").iterdir()) if b"broken" not in os.fsencode(path)]
    with Path("/dev/full").open("w") as full:
        streams = {name: full if value == "/dev/full" else value for name, value in settings.items()}
        done = subprocess.run(
            [sys.executable, "-m", "onnxcam", "explain", str(workshop / "ready.onnx"), *pictures, "-o", str(tmp_path)],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | streams,
        )
    assert done.returncode == code
    assert reason in (done.stderr or b"").decode()
    assert "unexpected" not in (done.stderr or b"").decode()
    if code == 0 and "stdout" not in settings:
        assert b"->" in done.stdout
    files = tree(tmp_path)
    assert len([name for name in files if name.endswith("explanation.json")]) == 2
    assert not [name for name in files if name.endswith(".part")]
    for name in files:
        if name.endswith(".png"):  # nothing was printed into a file that got the number of a closed stream
            assert (tmp_path / name).read_bytes().endswith(b"IEND\xaeB`\x82")


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("call", "limit"),
    [
        ("--help", "full"),
        ("methods --json", "full"),
        ("--help", "closed"),
        ("--version", "closed"),
        ("layers -h", "closed"),
    ],
)
def test_help_and_version_too(call: str, limit: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "onnxcam", *call.split()],
            stdout=full if limit == "full" else None,
            stderr=subprocess.PIPE,
            preexec_fn=closed(1) if limit == "closed" else None,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: standard output could not be written (") and done.stderr.count(b"\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_limit_on_the_size_of_files(tmp_path: Path, unbuffered: str) -> None:
    script = f"ulimit -f 1; {sys.executable} -m onnxcam methods --json > {tmp_path}/out.json"
    # unbuffered, Python itself ignores that what was written was cut short
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", script], stderr=subprocess.PIPE, env=environment)
    assert done.returncode == 1 and b"(File too large)" in done.stderr and done.stderr.count(b"\n") == 1


def test_a_reader_that_leaves_ends_a_command_quietly(workshop: Path, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "onnxcam", *arguments("monitor query", workshop, tmp_path)[:-2]]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), errors) == (1, b"")


@pytest.mark.slow
@pytest.mark.parametrize("call", [["-"], ["--files-from", "-"]], ids=" ".join)
def test_closed_standard_input_is_a_sentence(workshop: Path, tmp_path: Path, call: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnxcam", "explain", str(workshop / "ready.onnx"), "-o", str(tmp_path), *call],
        capture_output=True,
        preexec_fn=closed(0),
    )
    assert done.returncode == 1 and b"cannot be read (Bad file descriptor)" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_python_warnings_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    from onnxcam.cli import methods

    def warn(method: object) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(f"an overflow{ESC}", RuntimeWarning, stacklevel=1)
        raise click.UsageError("end")

    monkeypatch.setattr(methods, "describe", warn)
    assert "Warning: an overflow\\u001b[31m\n" in run("methods").err


@pytest.mark.parametrize("offset", [-np.inf, np.inf, np.nan])
@pytest.mark.filterwarnings("default::RuntimeWarning")
def test_scores_that_are_not_finite_are_told_without_remarks_of_numpy(
    run: Run, workshop: Path, tmp_path: Path, offset: float
) -> None:
    model = models.tiny_cnn()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b3")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([0, offset, 0, 0, 0], np.float32), "b3"))
    onnx.save(model, tmp_path / "m.onnx")
    image.write_png(tmp_path / "p.png", noise(np.random.default_rng(3)))
    call = ["explain", tmp_path / "m.onnx", tmp_path / "p.png", "-o", tmp_path / "o", "--preprocess", "0..1"]
    result = run(*call, "--method", "scorecam", "--target", 0)
    assert "encountered in" not in result.err
    # a class that is masked by -inf leaves those that are not, and nothing to warn of
    assert ("Warning: scores that are not finite" in result.err) == (offset != -np.inf)
    assert result.code == (0 if offset == -np.inf else result.code)


ENDS = ["exit()", "import sys; sys.exit(0)", "raise SystemExit('done')", "raise BaseException('x')"]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("place", ["callable", "module", "import"])
def test_code_of_a_model_that_ends_the_program(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, end: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.exit", sys.exit)  # that of `site` closes standard input
    name = f"ends_{place}_{ENDS.index(end)}"
    body = f"def model():\n    {end}\n" if place == "callable" else f"{end}\nmodel = None\n"
    (tmp_path / f"{name}.py").write_text(body)
    if place == "import":
        result = run("export", "x:y", "-o", "o.onnx", "--trust-model", "--import", f"{name}.py")
    else:
        result = run("export", f"{name}:model", "-o", "o.onnx")
    assert result.code == (1 if "Base" in end else 3)
    assert name in result.sentence or "Base" in end
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.slow
def test_exit_of_python_is_no_model(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnxcam", "export", "builtins:exit", "-o", "o.onnx"], capture_output=True, cwd=tmp_path
    )
    assert done.returncode == 3 and done.stdout == b""
    assert done.stderr.startswith(b"Error: builtins:exit() ended the program (exit status 0); expected a model")
