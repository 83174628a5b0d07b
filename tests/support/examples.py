"""How many cases a property is tested on: all in `make test`, a fixed sample where slow tests are left out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings

# tests/conftest.py sets it for `-m "not slow"`
SAMPLE = "ONNXCAM_SAMPLE_OF_EXAMPLES"
_SHARE, _LEAST = 10, 5


def examples(count: int, **options: Any) -> settings:
    """Draw `count` examples, the same ones at every run; of a sample a tenth, and five at least."""
    drawn = min(count, max(count // _SHARE, _LEAST)) if SAMPLE in os.environ else count
    return settings(derandomize=True, max_examples=drawn, deadline=None, database=None, **options)


def rest_slow(cases: Iterable[Any], fast: int = 1) -> list[Any]:
    """Mark all parameters but the first `fast` ones as slow: together they take long, and a few of them say a lot."""
    listed = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=pytest.mark.slow if k >= fast else ()) for k, case in enumerate(listed)]
