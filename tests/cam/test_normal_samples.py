"""Noise that is kept for the next picture: the numbers of a generator that nothing is kept of."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcam.cam import normal_samples
from onnxcam.cam.normal_samples import NormalSamples


def direct(seed: int, shape: tuple[int, ...], count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(count)]


@pytest.mark.parametrize("kept", [0, 3 * 4 * 24, 1 << 20])
def test_samples_are_those_of_the_generator_in_any_order(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normal_samples, "_MOST", kept)
    monkeypatch.setattr(normal_samples, "_latest", None)
    expected = direct(7, (2, 3, 4), 9)
    for order in ([0, 1, 1, 2, 3, 4, 5], [0, 2, 5, 3, 4, 8, 1, 0], range(9)):  # a run that failed is made again
        samples = NormalSamples(np.random.default_rng(7), (2, 3, 4))
        for index in order:
            np.testing.assert_array_equal(samples.sample(index), expected[index])


def test_another_seed_or_shape_has_its_own_samples() -> None:
    for seed, shape in ((1, (3, 4)), (2, (3, 4)), (2, (4, 3)), (1, (3, 4))):
        np.testing.assert_array_equal(
            NormalSamples(np.random.default_rng(seed), shape).sample(1), direct(seed, shape, 2)[1]
        )


def test_at_most_so_many_bytes_are_kept_and_they_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normal_samples, "_MOST", 1000)
    first = NormalSamples(np.random.default_rng(3), (10, 10))
    values = [first.sample(index) for index in range(6)]
    latest = normal_samples._latest
    assert latest is not None and sum(sample.nbytes for sample in latest.samples) == 800
    again = NormalSamples(np.random.default_rng(3), (10, 10))
    assert again.sample(0) is values[0] and again.sample(1) is values[1] and again.sample(2) is not values[2]
    with pytest.raises(ValueError, match="read-only"):
        again.sample(0)[0, 0] = 1
