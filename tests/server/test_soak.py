"""Ten minutes of everything at once: memory flat, no descriptor lost, every answer fits."""

from __future__ import annotations

import pytest

from tests.server.soak import GROWTH, soak


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [5, pytest.param(600, marks=pytest.mark.soak)])
def test_a_server_under_everything_at_once(seconds: int) -> None:
    figures = soak(seconds)
    print(figures)
    assert figures["faults"] == [] and figures["tracebacks"] == 0
    assert (figures["descriptors"], figures["threads"], figures["code"]) == (0, 0, 0)
    assert seconds < 60 or figures["growth"] < GROWTH, "caches fill in the first seconds"
    assert figures["outcomes"]["good 200"] > seconds and figures["outcomes"]["left"] > seconds
