"""What every command runs in."""

from __future__ import annotations

import gc

import pytest

from onnxcam.cli import terminal
from tests.cli.conftest import Run


@pytest.mark.parametrize("before", [(700, 10, 10), (50_000, 10, 10), (0, 10, 10)])
def test_garbage_is_collected_rarely_during_a_command_and_as_before_after_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, before: tuple[int, int, int]
) -> None:
    during = []
    flush = terminal.flush
    monkeypatch.setattr(terminal, "flush", lambda: (during.append(gc.get_threshold()), flush()))
    outer = gc.get_threshold()
    gc.set_threshold(*before)
    try:
        run("methods")
        after = gc.get_threshold()
    finally:
        gc.set_threshold(*outer)
    assert during and {one[0] for one in during} == {max(before[0], 10_000) if before[0] else 0}
    assert after == before
