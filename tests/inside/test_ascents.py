"""Ascents reach what plain ones in PyTorch do, and more than photographs do."""

from __future__ import annotations

import pytest

from benchmarks import ascents
from tests.support.torchvision_stub import import_torchvision

SAMPLE = "squeezenet1_1"


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == SAMPLE else pytest.mark.soak) for name in ascents.NETWORKS]
)
def test_a_network_is_climbed_as_by_a_plain_ascent_in_pytorch(name: str) -> None:
    import_torchvision()  # skips where it is not installed
    few = name == SAMPLE
    results = ascents.outcomes(name, 32 if few else 64, (1,) if few else ascents.SEEDS)
    assert len(results) >= 4
    for (what, parametrization), runs in results.items():
        for run in runs:
            assert run.theirs > run.start, "the plain ascent climbs"
            assert run.reached >= 0.95 * run.theirs, (what, parametrization, run)
            assert parametrization == "pixels" or run.rounding <= 0.01, (what, run)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("layer", ["conv1", "conv2", None])
def test_channels_and_classes_of_the_classroom_reach_more_than_crops_of_photographs(
    network: str, layer: str | None
) -> None:
    check(ascents.against_crops(network, layer, ascents.crops(500), steps=64), 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "crops", "channels", "steps"),
    [
        ("hardtanh_3", 40, 2, 32),
        pytest.param("hardtanh_3", 500, 10, 128, marks=pytest.mark.soak),
        pytest.param("_swish", 500, 10, 128, marks=pytest.mark.soak),
    ],
)
def test_channels_of_efficientnet_reach_more_than_crops_of_photographs(
    layer: str, crops: int, channels: int, steps: int
) -> None:
    results = ascents.against_crops("efficientnet_lite0", layer, ascents.crops(crops), channels=channels, steps=steps)
    check(results, channels)


def check(results: list[ascents.Channel], fewest: int) -> None:
    """Nine of ten are above every crop, and rounding changes none by more than 1 %."""
    assert len(results) >= fewest
    assert sum(one.verified > one.highest for one in results) >= 0.9 * len(results), results
    for one in results:
        assert one.verified == pytest.approx(one.reached, rel=0.01), one
