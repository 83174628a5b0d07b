"""Ascents reach what plain ones in PyTorch do, and more than photographs do."""

from __future__ import annotations

import pytest

from benchmarks import ascents
from tests.support.torchvision_stub import import_torchvision


@pytest.mark.torch
@pytest.mark.keras
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_classroom_is_climbed_as_by_a_plain_ascent_in_pytorch(name: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("keras")
    results = ascents.outcomes(name, 64, (1, 2), ("fourier", "pixels"))
    assert len(results) == 4
    for (what, parametrization), runs in results.items():
        assert all(run.theirs > run.start + 0.5 for run in runs), "the plain ascent climbs"
        assert ascents.ratio(runs) >= 0.95, (what, parametrization, runs)
        assert all(run.rounding <= 0.01 for run in runs), (what, parametrization, runs)


@pytest.mark.torch
@pytest.mark.soak
@pytest.mark.parametrize("name", ascents.NETWORKS)
def test_a_network_is_climbed_as_by_a_plain_ascent_in_pytorch(name: str) -> None:
    import_torchvision()  # skips where it is not installed
    for (what, _), runs in ascents.outcomes(name).items():
        assert all(run.rounding <= 0.01 for run in runs), (what, runs)
        assert ascents.rise(runs) >= 0.5, (what, runs)  # over three seeds: random networks have many hills


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("layer", [ascents.FIRST_CONVOLUTION, "conv2", None], ids=str)
def test_channels_and_classes_of_the_classroom_reach_more_than_crops_of_photographs(
    network: str, layer: str | None
) -> None:
    check(ascents.against_crops(network, layer, ascents.crops(500)), 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "crops", "channels"),
    [
        ("hardtanh_3", 40, 2),
        pytest.param("hardtanh_3", 500, 10, marks=pytest.mark.soak),
        pytest.param("_swish", 500, 10, marks=pytest.mark.soak),
    ],
)
def test_channels_of_efficientnet_reach_more_than_crops_of_photographs(layer: str, crops: int, channels: int) -> None:
    results = ascents.against_crops("efficientnet_lite0", layer, ascents.crops(crops), channels=channels)
    check(results, channels)


def check(results: list[ascents.Channel], fewest: int) -> None:
    """Nine of ten are above every crop, and rounding changes none by more than 1 %."""
    assert len(results) >= fewest
    assert sum(one.verified > one.highest for one in results) >= 0.9 * len(results), results
    for one in results:
        assert one.verified == pytest.approx(one.reached, rel=0.01), one
