"""Every way a command can end, as the shell sees it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from onnxcam import cli, errors
from onnxcam.cli import errors as edge
from onnxcam.cli.group import CommandGroup, PackageGroup

COMMANDS = cli.main.places  # type: ignore[attr-defined]
CODES = {
    "OnnxcamError": 1,
    "PictureError": 1,
    "InputError": 1,
    "OutputError": 1,
    "RecordError": 1,
    "TargetError": 2,
    "TargetAbsent": 2,
    "LabelsError": 2,
    "LayerError": 2,
    "MethodError": 2,
    "PreprocessError": 2,
    "SettingError": 2,
    "ModelError": 3,
    "TrustError": 3,
    "VerificationError": 3,
    "UnsupportedOperator": 3,
    "RuntimeUnavailable": 4,
    "DependencyError": 4,
    "SerializationError": 1,
}


def group_raising(error: BaseException | None) -> click.Group:
    """A group like `onnxcam`, whose command `act` prints `before` and raises."""

    @click.group(cls=CommandGroup, places={"act": ("tests.cli.test_exit_codes:act", "Act.")})
    def main() -> None: ...

    global act

    @click.command()
    @click.option("--count", type=int)
    def act(count: int | None) -> None:
        click.echo("before")
        if error is not None:
            raise error

    return main


def outcome(error: BaseException | None, *arguments: str, debug: str = "") -> tuple[int, str, str]:
    result = CliRunner().invoke(group_raising(error), ["act", *arguments], env={"ONNXCAM_DEBUG": debug})
    return result.exit_code, result.stdout, result.stderr


def tree(kind: type[errors.OnnxcamError]) -> set[type[errors.OnnxcamError]]:
    return {kind}.union(*map(tree, kind.__subclasses__()))


def test_every_error_class_has_the_code_promised() -> None:
    declared = {kind for kind in tree(errors.OnnxcamError) if kind.__module__ == "onnxcam.errors"}
    assert {kind.__name__: int(edge.exit_code(kind(""))) for kind in declared} == CODES


@pytest.mark.parametrize("name", CODES)
def test_error_is_one_sentence_and_a_code(name: str) -> None:
    code, out, err = outcome(getattr(errors, name)("got 1 of 2: do this"))
    assert (code, out, err) == (CODES[name], "before\n", "Error: got 1 of 2: do this\n")


def test_success() -> None:
    assert outcome(None) == (0, "before\n", "")


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--count", "many"], ["extra"]])
def test_usage(arguments: list[str]) -> None:
    code, _, err = outcome(None, *arguments)
    assert code == 2
    assert "Traceback" not in err and arguments[-1] in err


def test_unexpected_error_asks_for_a_report() -> None:
    code, _, err = outcome(KeyError("a\nb"))
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "KeyError" in err and "ONNXCAM_DEBUG=1" in err and "Traceback" not in err


@pytest.mark.parametrize("error", [errors.TargetError("no class"), KeyError("k")])
def test_debug_adds_the_traceback_and_keeps_the_code(error: Exception) -> None:
    plain, debug = outcome(error), outcome(error, debug="1")
    assert debug[0] == plain[0]
    assert "Traceback" in debug[2] and debug[2].endswith(plain[2])


def test_interrupted() -> None:
    assert outcome(KeyboardInterrupt()) == (130, "before\n", "Interrupted.\n")
    assert outcome(click.Abort())[0] == 130


def test_library_that_cannot_be_imported_leads_to_doctor() -> None:
    code, _, err = outcome(ImportError("No module named 'onnxruntime'", name="onnxruntime"))
    assert code == 4
    assert "onnxruntime" in err and "onnxcam doctor" in err


def test_own_import_error_is_unexpected() -> None:
    code, _, err = outcome(ImportError("cannot import name 'x' from 'onnxcam.cam'", name="onnxcam.cam"))
    assert code == 1 and "report" in err


def test_file_system_error_names_the_file() -> None:
    code, _, err = outcome(PermissionError(13, "Permission denied", "/root/out"))
    assert (code, err) == (1, "Error: Permission denied: /root/out\n")


def test_unknown_command_lists_those_there_are() -> None:
    result = CliRunner().invoke(cli.main, ["exprot"])
    assert result.exit_code == 2
    assert all(name in result.stderr for name in COMMANDS)


def test_help_imports_no_command() -> None:
    script = (
        "import sys, json, click\nfrom click.testing import CliRunner\nimport onnxcam.cli as cli\nresult = "
        "CliRunner().invoke(cli.main, ['--help'])\nown = sorted(name for name in sys.modules if "
        "name.startswith('onnxcam.'))\nprint(json.dumps([result.exit_code, result.stdout, own]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    code, text, modules = json.loads(done.stdout)
    assert code == 0
    assert all(name in text for name in COMMANDS)
    edges = [f"onnxcam.cli.{name}" for name in ("errors", "group", "signals", "terminal")]
    assert modules == ["onnxcam.cli", *edges, "onnxcam.errors", "onnxcam.files"]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_there_with_the_summary_shown(name: str) -> None:
    assert importlib.util.find_spec(COMMANDS[name][0].partition(":")[0]) is not None
    command = cli.main.get_command(click.Context(cli.main), name)
    assert command is not None and command.name == name
    assert command.get_short_help_str(limit=200).rstrip(".") + "." == COMMANDS[name][1]


def test_every_module_with_a_command_of_its_name_is_one() -> None:
    modules = [path.stem for path in Path(cli.__file__).parent.glob("*.py") if path.stem != "__init__"]
    defining = {name for name in modules if re.search(rf'^@click\.(command|group)\("{name}"', source_of(name), re.M)}
    assert set(COMMANDS) == defining - {"drift"}, "`onnxcam monitor drift` is a command of the group `monitor`"


def source_of(name: str) -> str:
    return (Path(cli.__file__).parent / f"{name}.py").read_text("utf-8")


@pytest.mark.parametrize("name", ["errors", "options", "drift", "versions", "__init__", "../demo", "demo.demo", ""])
def test_other_modules_are_no_commands(name: str) -> None:
    assert cli.main.get_command(click.Context(cli.main), name) is None


def test_a_module_that_breaks_is_not_an_unknown_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "breaking"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "act.py").write_text('"""`onnxcam act`: act."""\nimport absent_module\n')
    (package / "works.py").write_text(
        '"""`onnxcam works`: work hard,\nor not. More."""\nimport click\n@click.command()\ndef works(): ...\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    group = PackageGroup(package="breaking")
    assert dict(group.places) == {"works": ("breaking.works:works", "Work hard, or not.")} | {
        "act": ("breaking.act:act", "Act.")
    }
    assert group.get_command(click.Context(group), "works") is not None
    with pytest.raises(ModuleNotFoundError, match="absent_module"):
        group.get_command(click.Context(group), "act")


def command_line(code: str) -> list[str]:
    """A process whose `onnxcam doctor` runs `code` in place of what it does."""
    return [
        sys.executable,
        "-c",
        "import sys, types, click\ndef body():\n"
        + "".join(f"    {line}\n" for line in code.splitlines())
        + "module = types.ModuleType('onnxcam.cli.doctor', '`onnxcam doctor`: act.')\nmodule.doctor = "
        "click.Command('doctor', callback=body)\nsys.modules['onnxcam.cli.doctor'] = module\nfrom onnxcam.cli import "
        "main\nmain(['doctor'])\n",
    ]


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes end otherwise on Windows")
def test_interrupt_signal() -> None:
    with subprocess.Popen(
        command_line(
            # a process in the background inherits an interrupt that is ignored
            "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "print('ready', flush=True)\ntime.sleep(60)"
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes end otherwise on Windows")
def test_reader_that_leaves_is_met_with_silence() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "for line in range(100_000):\n    print('x' * 100)"
    done = subprocess.run(command_line(code), stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 1


def test_character_the_terminal_lacks_is_escaped() -> None:
    done = subprocess.run(
        command_line("print('caf\\u00e9')"),
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "caf\\xe9\n")


@pytest.mark.parametrize(
    "start", [["-m", "onnxcam"], ["-c", "from onnxcam.cli import main; main(prog_name='onnxcam')"]]
)
def test_module_is_the_same_command(start: list[str]) -> None:
    done = subprocess.run([sys.executable, *start, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("onnxcam ")
