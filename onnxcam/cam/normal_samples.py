"""Normal noise of a seed, which is the same for every picture: drawing 25 samples takes as long as nine forward passes
of MobileNetV2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_MOST = 16 << 20  # bytes


class _Entry(NamedTuple):
    key: tuple[str, tuple[int, ...]]
    samples: tuple[np.ndarray, ...]
    after: Any  # the state of the generator behind them


_latest: _Entry | None = None  # replaced whole, so that threads need no lock


class NormalSamples:
    """Samples of a standard normal distribution, float32, as a generator draws them one after another.

    The first ones of the seed and shape used last, at most 16 MiB, are kept for the next picture.

    Arguments:
        rng: nobody else draws from it.
        shape: of a sample.
    """

    def __init__(self, rng: np.random.Generator, shape: Sequence[int]) -> None:
        state = rng.bit_generator.state
        key = repr(state), tuple(shape)
        latest = _latest
        self._entry = latest if latest is not None and latest.key == key else _Entry(key, (), state)
        self._rng, self._shape = rng, key[1]
        self._drawn, self._index = np.empty(0, np.float32), -1  # the last sample that was drawn, and which one it is

    def sample(self, index: int) -> np.ndarray:
        """Sample `index`, read-only; at best they are asked for in order."""
        samples = self._entry.samples
        if index < len(samples):
            return samples[index]
        if not len(samples) <= self._index <= index:
            self._rng.bit_generator.state, self._index = self._entry.after, len(samples) - 1
        while self._index < index:
            self._draw()
        return self._drawn

    def _draw(self) -> None:
        global _latest
        self._drawn, self._index = self._rng.standard_normal(self._shape, dtype=np.float32), self._index + 1
        self._drawn.flags.writeable = False
        key, samples, _ = self._entry
        if self._index == len(samples) and (len(samples) + 1) * self._drawn.nbytes <= _MOST:
            self._entry = _latest = _Entry(key, (*samples, self._drawn), self._rng.bit_generator.state)
