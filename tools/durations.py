"""Say which share of a test run's time goes to tests that existed at an earlier commit.

    make test ARGS='--junitxml build/tests.xml'
    python -m tools.durations build/tests.xml --since 579ec6f [--longest 20]

A test existed if a function of its name did, in whichever file: tests move with what they test. So cases added to an
old test count as old. Times are those of set-up, call and tear-down together, summed over processes.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent


class Case(NamedTuple):
    """A test that ran: its module and function, with the class in front of a method, its parameters, its seconds."""

    module: str
    function: str
    parameters: str
    seconds: float


def cases(report: Path) -> list[Case]:
    """Every test of a JUnit report."""
    entries = []
    for element in ElementTree.parse(report).getroot().iter("testcase"):
        function, _, parameters = element.get("name", "").partition("[")
        seconds = float(element.get("time", "0"))
        entries.append(Case(element.get("classname", ""), function, parameters.removesuffix("]"), seconds))
    return entries


def functions(sources: Iterable[str]) -> set[str]:
    """The names of all tests in source files."""
    nodes = (node for source in sources for node in ast.walk(ast.parse(source)))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in nodes if isinstance(node, kinds) and node.name.startswith("test_")}


def sources_at(commit: str) -> list[str]:
    """The test files of a commit."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    names = git("ls-tree", "-r", "--name-only", commit, "tests").splitlines()
    return [git("show", f"{commit}:{name}") for name in names if name.endswith(".py")]


def report(entries: list[Case], before: set[str], longest: int) -> str:
    """The share of tests of these names in the time, and the tests that take longest."""
    old = [case for case in entries if case.function in before]
    total, share = sum(case.seconds for case in entries), sum(case.seconds for case in old)
    lines = [
        f"{len(entries):,} tests, {total:,.0f} s over all processes",
        f"{len(old):,} of functions that existed, {share:,.0f} s ({share / max(total, 1e-9):.1%})",
        f"{len(entries) - len(old):,} of later ones, {total - share:,.0f} s",
    ]
    for case in sorted(entries, key=lambda case: -case.seconds)[:longest]:
        mark = " " if case.function in before else "+"
        parameters = f"[{case.parameters}]" if case.parameters else ""
        lines.append(f"{case.seconds:8.2f} s {mark} {case.module}::{case.function}{parameters}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path, help="the JUnit file of a run")
    parser.add_argument("--since", required=True, metavar="COMMIT", help="the earlier commit")
    parser.add_argument("--longest", type=int, default=20, help="list so many tests, with + in front of later ones")
    arguments = parser.parse_args()
    print(report(cases(arguments.report), functions(sources_at(arguments.since)), arguments.longest))


if __name__ == "__main__":
    main()
