"""Attributions by hiding parts of the picture: against captum, and against the paper's formula written out."""

from __future__ import annotations

import itertools
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from onnxcam.errors import MethodError
from onnxcam.explain.explainer import Explainer
from onnxcam.targets.objectives import Contrast, Probability
from tests.cam import net
from tests.cam.net import parity

CPU = ["CPUExecutionProvider"]
TOLERANCE = 1e-3
TARGET = [4, 0, 2]


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(net.model(), layers=[net.LAYER], providers=CPU)


def x() -> torch.Tensor:
    return torch.from_numpy(net.pictures())


WINDOWS: dict[str, tuple[Any, Any, tuple[int, ...], tuple[int, ...]]] = {
    "fits": ((5, 7), (5, 7), (3, 5, 7), (3, 5, 7)),
    "overlaps, cut off at the border": ((6, 9), (4, 5), (3, 6, 9), (3, 4, 5)),
    "one number": (8, 3, (3, 8, 8), (3, 3, 3)),
    "usual": (None, None, (3, 2, 3), (3, 1, 1)),
    "a channel at a time": ((1, 10, 10), (1, 5, 5), (1, 10, 10), (1, 5, 5)),
    "the whole picture": (net.SIZE, 9, (3, *net.SIZE), (3, 9, 9)),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", WINDOWS)
def test_occlusion_equals_captum(explainer: Explainer, case: str) -> None:
    window, stride, shape, strides = WINDOWS[case]
    want = captum.attr.Occlusion(net.module()).attribute(
        x(), sliding_window_shapes=shape, strides=strides, target=torch.tensor(TARGET)
    )
    attribution = explainer.attribution(net.pictures(), TARGET, "occlusion", window=window, stride=stride)
    assert parity(attribution, want) <= TOLERANCE
    as_map = explainer.attribute(net.pictures(), TARGET, "occlusion", normalize="none", window=window, stride=stride)
    assert parity(as_map, want.abs().sum(dim=1)) <= TOLERANCE


def test_occlusion_by_another_baseline(explainer: Explainer) -> None:
    baseline = torch.from_numpy(net.pictures(3, seed=9))
    want = captum.attr.Occlusion(net.module()).attribute(
        x(), sliding_window_shapes=(3, 6, 6), strides=(3, 4, 4), baselines=baseline, target=torch.tensor(TARGET)
    )
    options: dict[str, Any] = {"window": 6, "stride": 4}
    attribution = explainer.attribution(net.pictures(), TARGET, "occlusion", baseline=baseline.numpy(), **options)
    assert parity(attribution, want) <= TOLERANCE


@pytest.mark.parametrize("target", [Contrast(4, 1), Probability(2)])
def test_occlusion_of_other_objectives(explainer: Explainer, target: Any) -> None:
    def score(pictures: torch.Tensor) -> torch.Tensor:
        scores = net.module()(pictures)
        return scores[:, 4] - scores[:, 1] if isinstance(target, Contrast) else scores.softmax(dim=1)[:, 2]

    want = captum.attr.Occlusion(score).attribute(x(), sliding_window_shapes=(3, 6, 6), strides=(3, 4, 4))
    attribution = explainer.attribution(net.pictures(), target, "occlusion", window=6, stride=4)
    assert parity(attribution, want) <= TOLERANCE


def by_the_paper(score: Any, masks: int, cells: int, keep: float, seed: int) -> torch.Tensor:
    """RISE: equation 6 with section 3.2's masks, drawn from the same generator; `[N, H, W]`."""
    rng = np.random.default_rng(seed)
    height, width = net.SIZE
    cell = -(-height // cells), -(-width // cells)
    grids = rng.random((masks, cells, cells)) < keep
    shifts = rng.integers(0, cell, size=(masks, 2))
    total = torch.zeros(3, height, width)
    large = [(cells + 1) * side for side in cell]
    for grid, (top, left) in zip(grids, shifts, strict=True):
        small = torch.from_numpy(grid.astype(np.float32))[None, None]
        mask = F.interpolate(small, size=large, mode="bilinear", align_corners=False)[0, 0]
        mask = mask[top : top + height, left : left + width]
        with torch.no_grad():
            total += score(net.module()(x() * mask))[:, None, None] * mask
    return total / (masks * keep)


@pytest.mark.parametrize("cells", [3, 7])
def test_rise_equals_the_paper_s_formula(explainer: Explainer, cells: int) -> None:
    def probability(scores: torch.Tensor) -> torch.Tensor:
        return scores.softmax(dim=1)[torch.arange(3), TARGET]

    want = by_the_paper(probability, 40, cells, 0.4, 5)
    options: dict[str, Any] = {"masks": 40, "cells": cells, "keep": 0.4}
    maps = explainer.attribute(net.pictures(), TARGET, "rise", normalize="none", seed=5, **options)
    assert parity(maps, want) <= TOLERANCE
    signed = explainer.attribution(net.pictures(), TARGET, "rise", seed=5, **options)
    assert parity(signed.sum(axis=1), want) <= TOLERANCE
    named = explainer.attribution(net.pictures(), [Probability(k) for k in TARGET], "rise", seed=5, **options)
    assert np.array_equal(signed, named)


def test_rise_takes_other_objectives_as_they_are(explainer: Explainer) -> None:
    want = by_the_paper(lambda scores: scores[:, 4] - scores[:, 1], 30, 4, 0.5, 3)
    attribution = explainer.attribution(net.pictures(), Contrast(4, 1), "rise", seed=3, masks=30, cells=4)
    assert parity(attribution.sum(axis=1), want) <= TOLERANCE


def test_hidden_pictures_keep_what_is_not_hidden(explainer: Explainer) -> None:
    """A window over all of the picture leaves the baseline's score."""
    attribution = explainer.attribution(net.pictures(), TARGET, "occlusion", window=net.SIZE, stride=1)
    with torch.no_grad():
        lost = (net.module()(x()) - net.module()(x() * 0))[torch.arange(3), TARGET].numpy()
    assert np.allclose(attribution, lost[:, None, None, None] * np.ones_like(attribution), rtol=1e-4)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("occlusion", {"window": 40}, r"window \[3, 40, 40\] .* expected a window within the picture"),
    ("occlusion", {"window": 4, "stride": 5}, "a stride of at most the window"),
    ("occlusion", {"window": 0}, "window=0; expected a whole number of at least 1"),
    ("occlusion", {"window": (1, 2, 3, 4)}, r"expected a number, \(height, width\) or"),
    ("rise", {"keep": 1.0}, "keep=1.0; expected a probability between 0 and 1"),
    ("rise", {"masks": 0}, "masks=0; expected a whole number of at least 1"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG)
def test_wrong_options_are_refused(explainer: Explainer, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        explainer.attribution(net.pictures(), TARGET, name, **options)


def test_two_seeds_two_maps(explainer: Explainer) -> None:
    one, again, other = (
        explainer.attribution(net.pictures(), TARGET, "rise", seed=seed, masks=20) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, again)
    assert parity(one, other) > 0.01


def test_windows_cover_every_value() -> None:
    """Every pixel is hidden at least once for any window and stride that are allowed."""
    for side, window in itertools.product((7, 12), (1, 3, 7)):
        for shift in range(1, window + 1):
            count = -(-(side - window) // shift) + 1
            covered = {at for k in range(count) for at in range(k * shift, min(side, k * shift + window))}
            assert covered == set(range(side))
