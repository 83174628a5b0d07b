"""Every command and option says what it is for."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator

import click
import pytest

from onnxcam import cli
from tests.cli.conftest import Run

CONTEXT = click.Context(cli.main)


def commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command by its words, those inside groups too."""
    for name in group.list_commands(CONTEXT):
        command = group.get_command(CONTEXT, name)
        assert command is not None
        yield before + name, command
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")


COMMANDS = dict(commands(cli.main))


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_and_options_are_described(run: Run, name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts[0]} has no help"
            assert option.help.strip().endswith((".", "]")), f"{name} {option.opts[0]}: {option.help}"
    result = run(*name.split(), "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: main {name} ") or result.out.startswith(f"Usage: onnxcam {name} ")


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not isinstance(command, click.Group)])
def test_help_has_examples_that_parse(name: str) -> None:
    command = COMMANDS[name]
    assert command.epilog
    lines = [line.strip() for line in command.epilog.splitlines() if f"onnxcam {name} " in line]
    assert lines
    for line in lines:
        words = shlex.split(line.partition(f"onnxcam {name} ")[2])
        command.make_context(name, list(itertools.takewhile(lambda word: word not in ("|", ">"), words)))


@pytest.mark.parametrize("name", COMMANDS)
def test_json_everywhere(name: str) -> None:
    command = COMMANDS[name]
    assert isinstance(command, click.Group) or any("--json" in option.opts for option in command.params), (
        f"{name} has no --json"
    )
