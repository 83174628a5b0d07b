"""A sample of `benchmarks/random_exports.py`: right random networks are not refused, wrong ones are."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from benchmarks.random_exports import checked, exported, refused
from onnxcam.errors import VerificationError
from tests.support import wrong_gradients


@pytest.mark.slow
def test_right_random_networks_pass_their_check() -> None:
    assert refused(11, 7) == []


@pytest.mark.soak
def test_more_right_and_wrong_networks() -> None:
    tally = checked(66, 8, planted=33)
    assert (tally.lines, tally.plants) == ([], 33)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(40, marks=pytest.mark.soak)])
def test_right_exports_of_pytorch_networks_are_not_refused_and_wrong_ones_are(count: int) -> None:
    pytest.importorskip("torch")
    tally = exported(count, 7, planted=count)
    assert (tally.lines, tally.plants) == ([], count)


@pytest.mark.torch
@pytest.mark.slow
def test_there_are_twenty_architectures() -> None:
    pytest.importorskip("torch")
    from benchmarks.small_torch_nets import NETWORKS, build, layers

    assert len(NETWORKS) == 20
    assert all(len(layers(build(name, 3))) >= 3 for name in NETWORKS)


@pytest.mark.torch
@pytest.mark.slow
def test_an_export_whose_negative_targets_mean_another_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.small_torch_nets import SIDE, build
    from onnxcam.exporters import parity, pytorch

    verify = parity.verify_on_samples

    def verify_wrong(model: onnx.ModelProto, *about: Any) -> Any:
        (wrong,) = [plant.model for plant in wrong_gradients.plants(model) if plant.node.endswith("ArgMax as ArgMin")]
        return verify(wrong, *about)

    monkeypatch.setattr(parity, "verify_on_samples", verify_wrong)
    with pytest.raises(VerificationError, match="negative target"):
        pytorch.export(build("resnet", 3), torch.randn(2, 3, SIDE, SIDE), None)
