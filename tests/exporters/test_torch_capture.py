"""How PyTorch modules are captured: the batch, opsets, the older exporter, exported programs."""

from __future__ import annotations

import logging
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from onnxcam.errors import ModelError  # noqa: E402
from onnxcam.exporters import torch_capture  # noqa: E402
from onnxcam.exporters.pytorch import export  # noqa: E402
from onnxcam.network import manifest  # noqa: E402
from tests.exporters.torch_nets import InPlace, Reused, seeded  # noqa: E402
from tests.exporters.torch_numbers import at, close, differentiate, picture  # noqa: E402
from tests.support.examples import rest_slow  # noqa: E402
from tests.support.runtime import run  # noqa: E402

pytestmark = pytest.mark.torch
nn = torch.nn


@pytest.mark.slow
@pytest.mark.parametrize("rows", rest_slow([1, 2, 5]))
def test_the_batch_is_free_whatever_the_examples_rows(rows: int) -> None:
    model = export(seeded(Reused()), (picture(rows, 3, 9, 9),), None, verify=False)
    header = manifest.read(model)
    assert header is not None
    assert header["parity"] is None
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    for count in (1, 3):
        assert all(array.shape[0] == count for array in run(model, picture(count, 3, 9, 9)).values())


@pytest.mark.slow
def test_clones_and_exposed_layers_leave_no_trace_in_the_graph() -> None:
    plain = export(seeded(InPlace()), picture(1, 3, 8, 8), None, layers=["relu"], verify=False)
    forward = [node.op_type for node in plain.graph.node if not node.name.startswith("onnxcam/")]
    assert forward == ["Conv", "Relu", "Conv", "Add", "Relu", "AveragePool", "Pow", "ReduceMean", "Gemm"]
    assert [o.name for o in plain.graph.output] == ["logits", "activations", "gradients", "heatmap"]


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "gelu"), rest_slow([(None, True), (18, False), (21, True)]))
def test_opsets(opset: int | None, gelu: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = export(seeded(net), picture(1, 3, 8, 8), None, opset=opset)
    assert [o.version for o in model.opset_import] == [opset or 20]
    assert any(node.op_type == "Gelu" for node in model.graph.node) is gelu
    header = manifest.read(model)
    assert header is not None
    assert header["layers"][0]["name"] == "1"
    assert header["source"]["opset"] == (opset or 20)


@pytest.mark.parametrize("opset", [17, 22])
def test_other_opsets_are_refused(opset: int) -> None:
    with pytest.raises(ModelError, match="expected 18 to 21"):
        export(seeded(InPlace()), picture(1, 3, 8, 8), None, opset=opset)


def test_the_older_exporter_steps_in_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("outer advice") from ValueError("cannot trace this")

    monkeypatch.setattr(torch_capture, "_by_torch_export", fail)
    net = seeded(InPlace()).eval()
    with caplog.at_level(logging.WARNING):
        model = export(net, picture(1, 3, 8, 8), None, layers=["bn", "relu#0", "relu"])
    assert "cannot trace this" in caplog.text
    header = manifest.read(model)
    assert header is not None
    assert header["source"]["exporter"] == "torchscript"
    assert "cannot trace this" in header["source"]["note"]
    batch, targets = picture(3, 3, 8, 8), [0, 1, 2]
    value, gradient, _ = differentiate(net, at(net.bn), batch, targets, lambda: net(batch))
    outputs = run(model, batch, target=targets)
    close(outputs["activations/bn"], value)
    close(outputs["gradients/bn"], gradient)


@pytest.mark.slow
def test_a_batch_that_cannot_be_free_is_refused_with_both_reasons() -> None:
    class Fixed(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Any) -> Any:
            y = self.conv(x).mean((2, 3))
            return self.head(torch.stack([y[0], y[1]]) if int(y.shape[0]) == 2 else y)

    with pytest.raises(ModelError, match=r"free batch size.*torch\.export.*torchscript"):
        export(seeded(Fixed()), picture(1, 3, 8, 8), None)


@pytest.mark.slow
def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    export(seeded(InPlace()), picture(1, 3, 8, 8), None)
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_an_exported_program_keeps_its_module_names_and_calls() -> None:
    net = seeded(Reused()).eval()
    with torch_capture.quiet():
        free = torch.export.export(net, (picture(2, 3, 9, 9),), dynamic_shapes=({0: torch.export.Dim("rows")},))
    model = export(free, picture(1, 3, 9, 9), None, layers=["stem", "block#0", "block"])
    batch, targets = picture(3, 3, 9, 9, seed=1), [1, 3, 0]
    outputs = run(model, batch, target=targets)
    for name, module, call in [("stem", net.stem, 0), ("block#0", net.block, 0), ("block", net.block, 2)]:
        value, gradient, _ = differentiate(net, at(module, call), batch, targets, lambda: net(batch))
        close(outputs[f"activations/{name}"], value)
        close(outputs[f"gradients/{name}"], gradient)


def test_a_program_exported_for_one_picture_is_refused() -> None:
    with torch_capture.quiet():
        fixed = torch.export.export(seeded(InPlace()).eval(), (picture(1, 3, 8, 8),))
    with pytest.raises(ModelError, match=r"takes exactly 1 picture.*dynamic_shapes"):
        export(fixed, picture(1, 3, 8, 8), None)
