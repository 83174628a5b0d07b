"""How many examples a property is tested on: all in `make test`, a fixed sample where slow tests are left out."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

# tests/conftest.py sets it for `-m "not slow"`
SAMPLE = "ONNXCAM_SAMPLE_OF_EXAMPLES"
_SHARE, _LEAST = 5, 12


def examples(count: int, **options: Any) -> settings:
    """Draw `count` examples, the same ones at every run; of a sample a fifth, and twelve at least."""
    drawn = min(count, max(count // _SHARE, _LEAST)) if SAMPLE in os.environ else count
    return settings(derandomize=True, max_examples=drawn, deadline=None, database=None, **options)
