"""What the PyTorch exporter refuses, and how it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from onnxcam.errors import InputError, LayerError, ModelError, OutputError  # noqa: E402
from onnxcam.exporters.pytorch import export  # noqa: E402
from onnxcam.network import manifest  # noqa: E402
from tests.exporters.torch_nets import Functional, InPlace, seeded  # noqa: E402
from tests.exporters.torch_numbers import picture  # noqa: E402

pytestmark = pytest.mark.torch
nn = torch.nn


# -- layers that cannot be --------------------------------------------------------------------------------------------


def nested() -> Any:
    class Unused(nn.Sequential):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(
                nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
                nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(4, 3),
            )
            self.spare = nn.Conv2d(1, 1, 1)

        def forward(self, x: Any) -> Any:
            for part in list(self)[:5]:
                x = part(x)
            return x

    return seeded(Unused())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("0.2", r"no module '0\.2'; the nearest are '0\.1'"),
        ("spare", "not called"),
        ("0#1", r"called 1 times; expected 0#0 to 0#0"),
        ("2", r"shape \[2, 4, 1, 1\].*expected a spatial map"),
        ("4", r"shape \[2, 3\].*expected a spatial map"),
        (3, "got a int as a layer"),
        (nn.ReLU(), "not a module of the model"),
    ],
)
def test_a_layer_that_cannot_be_is_refused_with_candidates(layer: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        export(nested(), picture(1, 3, 8, 8), None, layers=[layer])


@pytest.mark.slow
def test_part_of_a_name_is_enough_if_only_one_module_ends_with_it() -> None:
    class Outer(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Functional(), Functional()
            self.only = nn.ModuleDict({"deep": nn.Conv2d(3, 3, 1)})

        def forward(self, x: Any) -> Any:
            return self.a(self.only["deep"](x)) + self.b(x)

    net = seeded(Outer())
    with pytest.raises(LayerError, match=r"ambiguous; it could be 'a\.one', 'b\.one'"):
        export(net, picture(1, 3, 8, 8), None, layers=["one"])
    header = manifest.read(export(net, picture(1, 3, 8, 8), None, layers=["deep"]))
    assert header is not None
    assert header["layers"][0]["name"] == "only.deep"


def test_no_layers_at_all() -> None:
    with pytest.raises(LayerError, match="`layers` is empty"):
        export(nested(), picture(1, 3, 8, 8), None, layers=[])


@pytest.mark.slow
def test_a_detached_layer_cannot_be_verified() -> None:
    class Cut(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.side, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.conv(x).mean((2, 3)) + self.side(x).detach().mean((2, 3)))

    with pytest.raises(LayerError, match="do not depend on the target layer"):
        export(seeded(Cut()), picture(1, 3, 8, 8), None, layers=["side"])


# -- other refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((picture(1, 3, 8, 8), picture(1, 3, 8, 8)), "got 2 example inputs"),
        (picture(3, 8, 8), r"shape \[3, 8, 8\]"),
        (picture(0, 3, 8, 8), "expected a batch of pictures"),
        ("cat.jpg", "got a str"),
    ],
)
def test_example_inputs_that_are_no_batch_of_pictures(inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        export(seeded(InPlace()), inputs, None)


def test_a_model_that_does_not_run_on_the_example() -> None:
    with pytest.raises(ModelError, match=r"does not run on a float32 input of shape \[2, 1, 8, 8\]"):
        export(seeded(InPlace()), picture(1, 1, 8, 8), None)


def test_what_is_not_a_module() -> None:
    with pytest.raises(ModelError, match=r"got a dict; expected a torch\.nn\.Module"):
        export({}, picture(1, 3, 8, 8), None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_what_is_not_a_classifier() -> None:
    with pytest.raises(ModelError, match=r"not an image classifier.*\[N, 4, 6, 6\].*features"):
        export(seeded(nn.Sequential(nn.Conv2d(3, 4, 3))), picture(1, 3, 8, 8), None)


@pytest.mark.slow
def test_several_outputs_need_a_choice_unless_the_first_is_scores() -> None:
    class Two(nn.Module):  # type: ignore[misc]
        def __init__(self, order: list[int]) -> None:
            super().__init__()
            self.order, self.conv = order, nn.Conv2d(3, 4, 3)
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: Any) -> Any:
            y = self.conv(x)
            heads = [self.a(y.mean((2, 3))), self.b(y.mean((2, 3))), y]
            return tuple(heads[k] for k in self.order)

    for order, classes in (([0, 1], 3), ([1, 0], 2), ([2, 0], 3)):
        header = manifest.read(export(seeded(Two(order)), picture(1, 3, 8, 8), None))
        assert header is not None
        assert header["scores"]["classes"] == classes
    with pytest.raises(ModelError, match="several outputs could be class scores"):
        export(seeded(Two([2, 0, 1])), picture(1, 3, 8, 8), None)
    header = manifest.read(export(seeded(Two([2, 0, 1])), picture(1, 3, 8, 8), None, scores="output_2"))
    assert header is not None
    assert (header["scores"]["name"], header["scores"]["classes"]) == ("output_2", 2)


def test_a_folder_that_is_not_there_is_noticed_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        export(None, None, tmp_path / "no" / "m.onnx")  # type: ignore[arg-type]
