"""The share of earlier tests in the time of a run."""

from __future__ import annotations

from pathlib import Path

from tools import durations

REPORT = """<?xml version="1.0"?>
<testsuites><testsuite name="pytest" tests="4">
<testcase classname="tests.a.test_b" name="test_old[1-x[0]]" time="1.5" />
<testcase classname="tests.a.test_b" name="test_old[2]" time="0.5"><failure message="no">no</failure></testcase>
<testcase classname="tests.a.test_b.TestGroup" name="test_kept" time="1.0" />
<testcase classname="tests.a.test_c" name="test_new" time="9.0" />
</testsuite></testsuites>
"""


def test_the_share_of_tests_that_existed(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(REPORT, "utf-8")
    entries = durations.cases(tmp_path / "tests.xml")
    assert entries[0] == durations.Case("tests.a.test_b", "test_old", "1-x[0]", 1.5)
    before = durations.functions(
        ["def test_old(): pass\ndef helper(): pass", "class T:\n  async def test_kept(): pass"]
    )
    assert before == {"test_old", "test_kept"}
    lines = durations.report(entries, before, 2).splitlines()
    assert lines[:3] == [
        "4 tests, 12 s over all processes",
        "3 of functions that existed, 3 s (25.0%)",
        "1 of later ones, 9 s",
    ]
    assert lines[3:] == ["    9.00 s + tests.a.test_c::test_new", "    1.50 s   tests.a.test_b::test_old[1-x[0]]"]
