"""What the coverage matrix takes for rounding noise, and what it does not."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.judgement import judge

BATCH = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
CLASSES = np.array([0, 1, 2])


def network(kinks: int, flips: Any = None, scale: float = 1.0) -> Any:
    """A function whose gradient jumps at `kinks` places of each picture; a chance of its own decides on which side."""
    drawn = np.random.default_rng(flips)

    def ask(batch: Any, _: Any) -> list[Any]:
        gradient = np.ones_like(batch) * scale
        if flips is not None:
            gradient[:, :kinks] += 0.2 * drawn.integers(0, 2, (len(batch), kinks))
        return [batch, batch, gradient]

    return ask


def judged(file: Any, framework: Any, exact: Any) -> tuple[Any, bool]:
    return judge(file(BATCH, CLASSES), framework(BATCH, CLASSES), BATCH, CLASSES, file, framework, exact)


def test_equal_numbers_pass_at_once() -> None:
    figures, passed = judged(network(0), network(0), None)
    assert passed
    assert figures["gradients"] == {"error": 0.0, "floor": None, "beside": None}


def test_one_kink_passes_at_a_place_where_both_fall_on_one_side() -> None:
    figures, passed = judged(network(1, flips=1), network(0), network(0))
    assert passed
    assert figures["gradients"]["error"] > 1e-3
    assert figures["gradients"]["beside"] == 0.0


def test_many_kinks_pass_by_the_median_floor() -> None:
    # the framework's own floor is 0 at the picture, by luck, and as large as the error everywhere else
    framework = network(30, flips=2)
    first = network(0)
    requests: list[int] = []

    def lucky(batch: Any, classes: Any) -> Any:
        requests.append(1)
        return (first if len(requests) == 1 else framework)(batch, classes)

    figures, passed = judged(network(30, flips=3), lucky, network(0))
    assert passed
    assert figures["gradients"]["floor"] == 0.0
    assert figures["gradients"]["median_error"] > 1e-2 and figures["gradients"]["median_floor"] > 1e-2


def test_a_wrong_gradient_fails_however_often_it_is_asked() -> None:
    figures, passed = judged(network(0, scale=1.01), network(0), network(0))
    assert not passed
    assert abs(figures["gradients"]["beside"] - 0.01) < 1e-6


def test_a_gradient_wrong_by_more_than_the_noise_fails() -> None:
    _, passed = judged(network(30, flips=4, scale=1.5), network(30, flips=5), network(0))
    assert not passed
