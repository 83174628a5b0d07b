"""What every framework's export has in common, shown with one that is ONNX and NumPy."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from onnxcam.cli import main
from onnxcam.errors import InputError, LayerError, OutputError, SettingError, VerificationError
from onnxcam.exporters import frameworks, parity, scores
from onnxcam.exporters.export import Classifier, Framework, Loaded, export
from onnxcam.exporters.source import Info
from onnxcam.graph.layers import Layer
from onnxcam.network import manifest
from onnxcam.network.manifest import Manifest
from tests.exporters.linear import Reference, linear


class Toy:
    """A network of one layer, called `conv`: everything that a further framework has to implement."""

    autograd = "NumPy"

    def __init__(self, fault: float = 0.0) -> None:
        self.fault = fault
        self.training = True
        self.calls: list[str] = []

    @contextmanager
    def inference(self) -> Iterator[None]:
        self.training = False
        try:
            yield
        finally:
            self.training = True

    def example(self, preprocess: Any) -> tuple[np.ndarray, Any]:
        self.calls.append("example")
        return np.random.default_rng(0).standard_normal((2, 2, 4, 4)).astype(np.float32), preprocess

    def capture(
        self,
        layers: Sequence[Any] | None,
        scores_name: str | None,
        opset: int | None,
        task: str | None,
        boxes_output: str | None = None,
    ) -> Classifier:
        assert task is None and boxes_output is None
        assert not self.training
        self.calls.append("capture")
        place = scores.position(["logits"], [(2, 3)], [True], 2, scores_name)
        if layers not in (None, ["conv"]):
            raise LayerError(f"the toy has one layer, 'conv'; got {layers}")
        targets = None if layers is None else [Layer("conv", "y", shape=("N", 2, 4, 4))]
        return Classifier(linear(4), ["logits"][place], targets)

    def default_name(self, explainable: onnx.ModelProto, manifest: Manifest) -> str:
        self.calls.append("default_name")
        assert manifest["layers"][0]["name"] == "y"
        return "conv"

    def oracle(self, manifest: Manifest) -> parity.Oracle:
        self.calls.append("oracle")
        assert not self.training
        return lambda batch, double: Reference(batch, self.fault)

    def source(self, classifier: Classifier) -> dict[str, Any]:
        return {"framework": "toy", "name": "toy", "opset": classifier.opset, "sha256": "0" * 64}


def exported(toy: Framework, **options: Any) -> tuple[onnx.ModelProto, Manifest]:
    model = export(toy, None, **options)
    assert isinstance(model, onnx.ModelProto)
    record = manifest.read(model)
    assert record is not None
    return model, record


def test_a_framework_of_six_methods_is_exported_and_compared(tmp_path: Path) -> None:
    toy = Toy()
    record = export(toy, tmp_path / "toy.onnx", layers=["conv"], labels=["a", "b", "c"], origin={"name": "mine"})
    assert record == manifest.read(onnx.load(tmp_path / "toy.onnx"))
    assert isinstance(record, dict)
    assert record["source"] == {
        "framework": "toy", "name": "mine", "opset": 20, "sha256": "0" * 64, "outputs": ["logits"], "scores": "logits"
    }  # fmt: skip
    assert record["parity"]["against"] == "NumPy" and record["parity"]["samples"] == 4
    assert max(record["parity"][quantity] for quantity in parity.QUANTITIES) < 1e-6
    assert toy.calls == ["example", "capture", "oracle"] and toy.training


def test_the_default_layer_is_named_by_the_framework_in_every_form_of_the_file() -> None:
    toy = Toy()
    _, record = exported(toy)
    assert record["layers"][0]["name"] == "conv" and record["layers"][0]["value"] == "y"
    assert toy.calls == ["example", "capture", "default_name", "oracle"]
    model, other = exported(Toy(), outputs="heatmap", gate="confidence < 0.6")
    assert [output.name for output in model.graph.output] == ["logits", "heatmap", "fired"]
    assert other["layers"][0]["name"] == "conv" and other["parity"] == record["parity"]
    _, unverified = exported(Toy(), verify=False)
    assert unverified["parity"] is None


def test_wrong_gradients_leave_no_file_and_the_model_restored(tmp_path: Path) -> None:
    toy = Toy(fault=0.02)
    with pytest.raises(VerificationError, match=r"the gradients of 'conv' differ from NumPy by 0\.0196"):
        export(toy, tmp_path / "toy.onnx")
    assert list(tmp_path.iterdir()) == [] and toy.training
    assert isinstance(export(toy, tmp_path / "toy.onnx", verify=False), dict)


def test_arguments_are_checked_before_the_model_is_touched(tmp_path: Path) -> None:
    toy = Toy()
    with pytest.raises(OutputError, match="no folder"):
        export(toy, tmp_path / "none" / "toy.onnx")
    with pytest.raises(InputError, match="verify"):
        export(toy, None, verify="yes")  # type: ignore[arg-type]
    with pytest.raises(SettingError):
        export(toy, None, gate="doubt > 1")
    with pytest.raises(LayerError, match="empty"):
        export(toy, None, layers=())
    assert toy.calls == []
    for layers in ("conv", {"conv"}, iter(["conv"]), {"conv": 1}.keys()):
        assert exported(Toy(), layers=layers, verify=False)[1]["layers"][0]["name"] == "conv"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *(str(argument) for argument in arguments)])


def test_a_further_framework_is_one_module_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("onnxcam.exporters.toy")

    def load(source: str, **options: Any) -> Loaded:
        assert options.pop("model", None) is None or source == "toys:Toy"
        assert options == {"weights": None, "trust": False, "import_file": None, "input_size": None}
        return Loaded(Toy(), Info(source.partition(":")[2], ["a", "b", "c"]), ["N", 2, 4, 4])

    vars(module).update(load=load)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = frameworks.Entry(
        "toy", zoos=("toy",), suffixes=(".toy",), classes=(f"{Toy.__module__.partition('.')[0]}.Toy",)
    )
    monkeypatch.setitem(frameworks.FRAMEWORKS, "Toy", entry)

    result = run("toy:small", "-o", tmp_path / "a.onnx", "--target", "b")
    assert result.exit_code == 0 and "off NumPy on 4 samples" in result.stdout
    record = manifest.read(onnx.load(tmp_path / "a.onnx"))
    assert record is not None and record["source"]["name"] == "small" and record["target"]["class"] == 1

    toys = types.ModuleType("toys")
    vars(toys).update(Toy=Toy)
    monkeypatch.setitem(sys.modules, "toys", toys)
    assert run("toys:Toy", "-o", tmp_path / "b.onnx").exit_code == 0
    missing = run("gone.toy", "-o", tmp_path / "c.onnx")
    assert missing.exit_code == 3 and "expected a Toy model" in missing.stderr
    assert "toy:NAME" in run("gone", "-o", tmp_path / "c.onnx").stderr
