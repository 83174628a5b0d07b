"""A sample of the coverage matrix (`make matrix` measures all of it): three architectures against torch autograd."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")

from benchmarks import matrix

pytestmark = [pytest.mark.slow, pytest.mark.torch]


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("resnet18", "layer2", [128, 8, 8]),
        ("mobilenet_v3_small", None, [576, 2, 2]),
        ("densenet121", "features.denseblock2", [512, 8, 8]),
    ],
)
def test_scores_activations_and_gradients_agree_with_autograd(
    name: str, layer: str | None, shape: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(matrix.ARCHITECTURES[name], size=64)
    monkeypatch.setitem(matrix.ARCHITECTURES, name, small)

    row = matrix.measure(name, layer)

    assert row["passed"], row
    assert row["exporter"] == "torch.export"
    assert row["shape"] == ["N", *shape]
    assert row["oracle"] == "hooks"
    assert row["figures"]["scores"]["error"] < 1e-4
    assert row["figures"]["activations"]["error"] < 1e-4


def test_every_architecture_of_the_matrix_exists() -> None:
    from tests.torchvision_stub import import_torchvision

    known = import_torchvision().models.list_models()
    assert set(matrix.ARCHITECTURES) <= set(known)
    assert len(matrix.ARCHITECTURES) >= 30
