"""A sample of `benchmarks/random_exports.py`: right random networks are not refused."""

from __future__ import annotations

import pytest

from benchmarks.random_exports import refused


@pytest.mark.slow
def test_right_random_networks_pass_their_check() -> None:
    assert refused(11, 7) == []
