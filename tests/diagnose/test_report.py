"""Findings and reports: what passes, as text and as JSON, and the exit status of the command that shows them."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from onnxcam.cli.errors import ExitCode
from onnxcam.cli.report import show
from onnxcam.diagnose.cost import Bench
from onnxcam.diagnose.gradients import ModelReport
from onnxcam.diagnose.installation import Installation
from onnxcam.diagnose.preprocessing import Comparison
from onnxcam.diagnose.report import Finding, Report, Status


@pytest.mark.parametrize("kind", [ModelReport, Comparison, Installation, Bench])
def test_every_diagnosis_is_a_report(kind: type) -> None:
    assert issubclass(kind, Report)


@pytest.mark.parametrize(("status", "passed"), [("ok", True), ("note", True), ("unsure", True), ("failed", False)])
def test_only_a_failed_finding_fails(status: Status, passed: bool) -> None:
    report = Report(findings=[Finding("a", "ok", "fine"), Finding("b", status, "text", {"x": 1.0})])
    assert report.passed is passed and report.failed == ([] if passed else ["b"])
    assert report.lines() == ["    ok  a: fine", f"{status:>6}  b: text"]
    assert report.to_dict()["findings"][1] == {"name": "b", "status": status, "detail": "text", "figures": {"x": 1.0}}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("status", ["ok", "failed"])
def test_shown_with_an_exit_status(status: Status, as_json: bool) -> None:
    @click.command()
    def command() -> None:
        show(Report(findings=[Finding("a", status, "text")]), as_json, {"seed": 3}, "it failed", ExitCode.RUNTIME)

    result = CliRunner().invoke(command, [])
    assert result.exit_code == (ExitCode.RUNTIME if status == "failed" else 0)
    assert result.stderr == ("Error: it failed\n" if status == "failed" else "")
    if as_json:
        document = json.loads(result.stdout)
        assert document["seed"] == 3 and document["passed"] is (status == "ok")
    else:
        assert result.stdout == f"{status:>6}  a: text\n"


def test_statuses_are_colored_on_a_terminal() -> None:
    @click.command()
    def command() -> None:
        show(Report(findings=[Finding("a", "failed", "text"), Finding("b", "note", "text")]), False)

    first, second = CliRunner().invoke(command, [], color=True).stdout.splitlines()
    assert click.unstyle(first) == "failed  a: text" != first
    assert second == "  note  b: text"
