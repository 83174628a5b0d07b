"""A sample of the coverage matrix (`make matrix` measures all of it): three architectures against torch autograd, two
against GradientTape."""

from __future__ import annotations

import pytest

from benchmarks import keras_matrix, torch_matrix
from benchmarks.architectures import KERAS, TORCH
from tests.exporters.conftest import few_collections  # noqa: F401 - a fixture
from tests.support.torchvision_stub import import_torchvision

pytestmark = pytest.mark.slow


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "middle", "last"),
    [
        ("resnet18", [128, 8, 8], [512, 2, 2]),
        ("mobilenet_v3_small", [40, 4, 4], [576, 2, 2]),
        pytest.param("densenet121", [512, 8, 8], [1024, 2, 2], marks=pytest.mark.soak),
    ],
)
def test_scores_activations_and_gradients_agree_with_autograd(name: str, middle: list[int], last: list[int]) -> None:
    import_torchvision()  # skips where it is not installed
    assert TORCH[name].size == 64

    rows = torch_matrix.measure(name)

    assert rows["middle"]["shape"] == ["N", *middle]
    assert rows["default"]["shape"] == ["N", *last]
    assert rows["middle"]["oracle"] == "hooks"
    for row in rows.values():
        assert row["passed"] and not row["refused"], row
        assert row["exporter"] == "torch.export"
        assert row["gated"] <= 1e-6
        assert row["figures"]["scores"]["error"] < 1e-4
        assert row["figures"]["activations"]["error"] < 1e-4


@pytest.mark.keras
@pytest.mark.usefixtures("few_collections")
@pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning")
@pytest.mark.parametrize(
    ("name", "middle", "last"),
    [
        ("mobilenetv2", [12, 12, 192], [3, 3, 1280]),
        pytest.param("efficientnetv2b0", [12, 12, 48], [3, 3, 1280], marks=pytest.mark.soak),
    ],
)
def test_keras_agrees_with_gradient_tape(name: str, middle: list[int], last: list[int]) -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("tf2onnx")
    rows = keras_matrix.measure(name)
    assert rows["middle"]["shape"] == ["N", *middle]
    assert rows["default"]["shape"] == ["N", *last]
    for row in rows.values():
        assert row["passed"] and not row["refused"], row
        assert row["figures"]["activations"]["error"] < 1e-4


@pytest.mark.torch
def test_every_architecture_of_the_matrix_exists() -> None:
    torchvision = import_torchvision()
    assert set(TORCH) == set(torchvision.models.list_models(module=torchvision.models))
    assert len(TORCH) == 80


@pytest.mark.keras
def test_every_model_of_keras_applications_is_in_the_matrix() -> None:
    import keras

    assert {entry.build for entry in KERAS.values()} == {name for name in dir(keras.applications) if name[0].isupper()}
