"""Every command and option says what it is for."""

from __future__ import annotations

import click
import pytest

from onnxcam import cli
from tests.cli.conftest import Run

CONTEXT = click.Context(cli.main)
COMMANDS = {name: cli.main.get_command(CONTEXT, name) for name in cli.main.list_commands(CONTEXT)}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_and_options_are_described(run: Run, name: str) -> None:
    command = COMMANDS[name]
    assert command is not None and command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts[0]} has no help"
            assert option.help.strip().endswith((".", "]")), f"{name} {option.opts[0]}: {option.help}"
    result = run(name, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: main {name} ") or result.out.startswith(f"Usage: onnxcam {name} ")


@pytest.mark.parametrize("name", ["explain", "export", "layers", "check"])
def test_help_has_examples_that_parse(name: str) -> None:
    command = COMMANDS[name]
    assert command is not None and command.epilog
    lines = [line.strip() for line in command.epilog.splitlines() if f"onnxcam {name} " in line]
    assert lines
    for line in lines:
        words = line.partition(f"onnxcam {name} ")[2].split(" | ")[0].split(" > ")[0].replace("'", "").split()
        command.make_context(name, words)


@pytest.mark.parametrize("name", COMMANDS)
def test_json_everywhere(name: str) -> None:
    command = COMMANDS[name]
    assert command is not None
    assert any("--json" in option.opts for option in command.params), f"{name} has no --json"
