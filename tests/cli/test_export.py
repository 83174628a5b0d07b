"""`onnxcam export`: what is written, what is printed, and what is refused without writing anything."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcam.cli.export import CODE, ONNX, kind_of, parse_size
from onnxcam.errors import ModelError
from onnxcam.graph import load
from onnxcam.network import manifest
from tests.cli.conftest import LABELS, RAW, Run
from tests.graph import transformers
from tests.support import models, runtime


def read(path: Path) -> Any:
    header = manifest.read(onnx.load(path))
    assert header is not None
    return header


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(LABELS))
    return path


def test_plain_onnx_becomes_explainable(run: Run, plain: Path, names: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(RAW))
    out = tmp_path / "out.onnx"
    result = run("export", plain, "-o", out, "--labels", names, "--preprocess", spec)
    assert (result.code, result.err) == (0, "")
    assert all(word in result.out for word in ("relu2", "heatmap", "5 classes", "'cat'", "optional"))
    header = read(out)
    assert header["labels"] == LABELS
    assert header["input"]["preprocess"] == {
        "color": "RGB", "scale": 1 / 255, "mean": [0.0] * 3, "std": [1.0] * 3, "crop": None,
        "resize": {
            "mode": "stretch", "size": [32, 32], "interpolation": "bilinear", "antialias": True, "pad_value": 0.0,
        },
    }  # fmt: skip
    batch = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    before, after = (runtime.run(file, batch)["logits"] for file in (plain, out))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_options_reach_the_file(run: Run, plain: Path, names: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = run(
        "export", plain, "-o", out, "--layer", "relu1", "--last-conv", "last", "--method", "gradcam", "--method",
        "hirescam", "--target", "hen", "--labels", names, "--outputs", "heatmap", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    document = result.json()["manifest"]
    assert document == read(out)
    assert [layer["name"] for layer in document["layers"]] == ["relu1", "last"]
    assert list(document["layers"][0]["heatmaps"]) == ["gradcam", "hirescam"]
    assert document["target"] == {"name": "target", "mode": "constant", "class": 3}
    assert result.json()["outputs"] == [o.name for o in onnx.load(out).graph.output]
    assert result.json()["bytes"] == out.stat().st_size
    assert "--preprocess" in result.err


@pytest.mark.parametrize("mode", ["optional", "required", "4"])
def test_target_modes(run: Run, plain: Path, tmp_path: Path, mode: str) -> None:
    assert run("export", plain, "-o", tmp_path / "out.onnx", "--target", mode).code == 0
    expected = {"mode": "constant", "class": 4} if mode == "4" else {"mode": mode}
    assert read(tmp_path / "out.onnx")["target"] == {"name": "target"} | expected


def test_an_explainable_file_is_exported_anew(run: Run, ready: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert run("export", ready, "-o", out, "--layer", "relu1", "--target", "crane").code == 2
    assert not out.exists()
    assert run("export", ready, "-o", out, "--layer", "relu1", "--target", "tiger").code == 0
    header = read(out)
    assert header["labels"] == LABELS and header["input"]["preprocess"]
    assert header["target"]["class"] == 1 and [layer["name"] for layer in header["layers"]] == ["relu1"]


@pytest.mark.slow
def test_a_gate(run: Run, ready: Path, tmp_path: Path) -> None:
    out, again, free = (tmp_path / name for name in ("out.onnx", "again.onnx", "free.onnx"))
    condition = "confidence < 0.6 or label == 'tiger'"
    result = run("export", ready, "-o", out, "--gate", condition)
    assert result.code == 0, result.err
    assert f"gate     {condition}" in result.out and "heatmap, fired" in result.out
    assert read(out)["gate"] == {"condition": condition, "output": "fired"}
    assert run("export", out, "-o", again, "--layer", "relu1", "--json").json()["outputs"][-1] == "fired"
    assert read(again)["gate"]["condition"] == condition
    assert run("export", again, "-o", free, "--gate", "").code == 0
    assert "gate" not in read(free) and [o.name for o in onnx.load(free).graph.output][-1] == "heatmap"
    listed = run("layers", out)
    assert f"gate {condition}: maps where fired holds, else zero" in listed.out
    assert run("layers", out, "--json").json()["explainable"]["gate"] == read(out)["gate"]
    checked = run("check", out)
    assert checked.code == 0 and f"gate: {condition}" in checked.out


@pytest.mark.parametrize("condition", ["confidence < 60", "confidence", "label == 'wolf'", "doubt > 0.5"])
def test_a_gate_that_cannot_be_is_a_usage_error(run: Run, ready: Path, tmp_path: Path, condition: str) -> None:
    assert run("export", ready, "-o", tmp_path / "out.onnx", "--gate", condition).code == 2
    assert not (tmp_path / "out.onnx").exists()


def test_a_failed_proof_writes_nothing(run: Run, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxcam.diagnose.gradients as check

    report = check.ModelReport("tiny", findings=[check.Finding("gradients at relu2", "failed", "off by 3.0e-01")])
    monkeypatch.setattr(check, "check", lambda model, **options: report)
    out = tmp_path / "out.onnx"
    result = run("export", plain, "-o", out)
    assert result.code == 3
    assert "gradients at relu2" in result.sentence and "3.0e-01" in result.sentence
    assert list(tmp_path.iterdir()) == []
    assert run("export", plain, "-o", out, "--no-verify").code == 0


def test_source_and_folders_are_never_overwritten(run: Run, plain: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(plain.read_bytes())
    (tmp_path / "link.onnx").symlink_to(copy)
    for out in (copy, tmp_path / "link.onnx", tmp_path / "." / "copy.onnx"):
        assert run("export", copy, "-o", out).code == 2
    assert copy.read_bytes() == plain.read_bytes()
    assert run("export", plain, "-o", tmp_path).code == 1
    result = run("export", plain, "-o", tmp_path / "none" / "out.onnx")
    assert result.code == 1 and "none" in result.sentence
    assert not (tmp_path / "none").exists()


def test_a_write_that_fails_leaves_the_old_file(run: Run, plain: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        result = run("export", plain, "-o", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.code == 1 and "File too large" in result.err.splitlines()[-1]
    assert out.read_bytes() == b"old" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("option", "value"), [("--weights", "w.pt"), ("--import", "x.py"), ("--input-size", "3x32x32"), ("--opset", "20")]
)
def test_options_of_frameworks_are_refused_for_onnx(
    run: Run, plain: Path, tmp_path: Path, option: str, value: str
) -> None:
    result = run("export", plain, "-o", tmp_path / "out.onnx", option, value)
    assert result.code == 2 and option in result.err


def test_scores_are_named_where_there_are_several(run: Run, tmp_path: Path) -> None:
    model = models.tiny_cnn()
    model.graph.node.append(onnx.helper.make_node("Neg", ["logits"], ["other"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, ["N", 5]))
    load.save(model, tmp_path / "two.onnx")
    result = run("export", tmp_path / "two.onnx", "-o", tmp_path / "out.onnx")
    assert result.code == 3 and "--scores" in result.sentence
    assert run("export", tmp_path / "two.onnx", "-o", tmp_path / "out.onnx", "--scores", "other").code == 0
    assert read(tmp_path / "out.onnx")["scores"]["name"] == "other"


def test_kinds_of_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("m.keras", "m.h5", "m.pt2", "m.pth", "m.onnx", "m.pb"):
        Path(name).touch()
    expected = {
        "m.keras": "Keras", "m.h5": "Keras", "keras:vgg16": "Keras", "m.pt2": "PyTorch", "m.pth": "PyTorch",
        "timm:resnet18.a1_in1k": "PyTorch", "torchvision:resnet50": "PyTorch", "package.module:build": CODE,
        "m.onnx": ONNX, "m.pb": ONNX, "gone.onnx": ONNX,
    }  # fmt: skip
    assert {source: kind_of(source) for source in expected} == expected
    with pytest.raises(ModelError, match=r"gone\.keras"):
        kind_of("gone.keras")


@pytest.mark.parametrize(
    ("text", "size"),
    [(None, None), ("224", [224, 224]), ("240x320", [240, 320]), ("1,28,28", [1, 28, 28]), ("[8, 3, 4, 5]", [3, 4, 5])],
)
def test_input_sizes(text: str | None, size: list[int] | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "0", "224x", "-5", "1,2,3,4,5"])
def test_bad_input_sizes(run: Run, tmp_path: Path, text: str) -> None:
    result = run("export", "package.module:build", "-o", tmp_path / "out.onnx", f"--input-size={text}")
    assert result.code == 2 and "--input-size" in result.err


def test_torch_sources_get_everything(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keywords: dict[str, Any] = {}

    def loading(source: str, **options: Any) -> Any:
        keywords["load"] = (source, options)
        info = types.SimpleNamespace(name="net", labels=["a", "b", "c", "d", "e"], preprocess=RAW)
        return types.SimpleNamespace(framework="network", shape=["N", 3, 32, 32], info=info)

    def exporting(framework: Any, path: str, **options: Any) -> Any:
        assert framework == "network"
        keywords["export"] = options
        return onnx_export(path)

    def onnx_export(path: str) -> Any:
        import onnxcam

        explainable = onnxcam.augment(models.tiny_cnn())
        load.save(explainable, path)
        return manifest.read(explainable)

    module = types.ModuleType("onnxcam.exporters.pytorch")
    vars(module).update(load=loading)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("onnxcam.exporters.export.export", exporting)
    result = run(
        "export", "torchvision:net", "-o", tmp_path / "out.onnx", "--weights", "none", "--layer", "layer4",
        "--input-size", "64", "--opset", "19", "--no-verify", "--target", "b", "--trust-model", "--import", "x.py",
    )  # fmt: skip
    assert result.code == 0, result.err
    options = {"weights": "none", "trust": True, "import_file": "x.py", "input_size": [64, 64]}
    assert keywords["load"] == ("torchvision:net", options)
    assert callable(keywords["export"].pop("on_warning"))
    assert keywords["export"] == {
        "layers": ["layer4"], "labels": ["a", "b", "c", "d", "e"], "preprocess": RAW, "methods": None,
        "target": "b", "opset": 19, "verify": False, "scores": None, "outputs": "all", "gate": None,
        "grid": None, "prefix_tokens": None, "kind": None, "portable": False, "pixels": False,
        "task": None, "boxes_output": None, "origin": {"name": "net"},
    }  # fmt: skip
    task = ("--task", "detect", "--boxes-output", "b")
    assert run("export", "torchvision:net", "-o", tmp_path / "task.onnx", *task).code == 0
    assert (keywords["export"]["task"], keywords["export"]["boxes_output"]) == ("detect", "b")
    assert run("export", "torchvision:net", "-o", tmp_path / "out.onnx", "--preprocess", "caffe").code == 0
    assert keywords["export"]["preprocess"]["color"] == "BGR"
    assert keywords["export"]["preprocess"]["resize"]["size"] == [32, 32]


def test_a_missing_framework_is_one_clear_sentence(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    result = run("export", "keras:vgg16", "-o", tmp_path / "out.onnx")
    assert result.code == 4 and "onnxcam[keras]" in result.sentence
    assert list(tmp_path.iterdir()) == []


def test_a_saved_model_folder_is_told_what_to_become(run: Run, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"x")
    result = run("export", tmp_path / "saved", "-o", tmp_path / "out.onnx")
    assert result.code == 3 and ".keras" in result.sentence and "tf2onnx" in result.sentence


@pytest.mark.slow
@pytest.mark.keras
@pytest.mark.usefixtures("few_collections")
def test_a_keras_model_named_by_its_code(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("tf2onnx")
    out = tmp_path / "out.onnx"
    result = run("export", "tests.exporters.keras_nets:make", "-o", out, "--layer", "conv2", "--preprocess", "0..1")
    assert result.code == 0, result.err
    assert "GradientTape" in result.out and read(out)["layers"][0]["name"] == "conv2"
    assert run("export", "os:getcwd", "-o", out).code == 3


@pytest.mark.torch
@pytest.mark.slow
def test_a_module_named_by_its_code(run: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, "
        "3), nn.ReLU(),\n                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))\n"
    )
    monkeypatch.chdir(tmp_path)
    result = run(
        "export", "mynet:build", "-o", "net.onnx", "--layer", "3", "--input-size", "32", "--preprocess", "0..1"
    )
    assert result.code == 0, result.err
    assert "torch autograd" in result.out
    assert run("explain", "net.onnx", photo, "-o", "out").code == 0


@pytest.mark.slow
def test_a_transformer_and_what_its_graph_does_not_tell(run: Run, tmp_path: Path) -> None:
    plain, out = tmp_path / "vit.onnx", tmp_path / "out.onnx"
    load.save(transformers.vit(), plain)
    assert run("export", plain, "-o", out).code == 0
    (entry,) = read(out)["layers"]
    assert (entry["name"], entry["grid"], entry["prefix_tokens"]) == ("n2", [4, 6], 1)
    assert run("export", plain, "-o", out, "--grid", "3x8").code == 0
    assert (read(out)["layers"][0]["grid"], read(out)["layers"][0]["prefix_tokens"]) == ([3, 8], 1)

    load.save(transformers.lost(15), plain)
    refused = run("export", plain, "-o", out)
    assert refused.code == 3 and "--grid ROWSxCOLUMNS --prefix COUNT" in refused.sentence
    refused = run("export", plain, "-o", out, "--grid", "4x4")
    assert refused.code == 2 and "15 tokens, but a grid of 4 x 4 and 0 prefix tokens make 16" in refused.sentence
    assert run("export", plain, "-o", out, "--grid", "2x7", "--prefix", "1").code == 0
    assert (read(out)["layers"][0]["grid"], read(out)["layers"][0]["prefix_tokens"]) == ([2, 7], 1)
    for wrong in ("7", "0x7", "2x7x1", "axb"):
        result = run("export", plain, "-o", out, "--grid", wrong)
        assert result.code == 2 and f"--grid '{wrong}': expected rows x columns" in result.err


def test_names_in_the_metadata_are_stored_or_said(run: Run, tmp_path: Path) -> None:
    """As Ultralytics writes them; a class called 9 is not the class of index 9."""
    for names, words in (
        ("{0: '9', 1: '8', 2: '7', 3: '6', 4: '5'}", ""),
        ("{0: 'a', 1: 'b'}", "2 names for 5 classes"),
    ):
        net = models.tiny_cnn()
        onnx.helper.set_model_props(net, {"names": names, "task": "classify"})
        load.save(net, tmp_path / "named.onnx")
        result = run("export", tmp_path / "named.onnx", "-o", tmp_path / "out.onnx", "--no-verify")
        assert result.code == 0 and words in result.err and (words == "") == ("metadata" not in result.err)
        assert read(tmp_path / "out.onnx")["labels"] == (None if words else ["9", "8", "7", "6", "5"])
        if not words:
            bound = run("export", tmp_path / "named.onnx", "-o", tmp_path / "out.onnx", "--no-verify", "--target", "9")
            assert bound.code == 0 and read(tmp_path / "out.onnx")["target"]["class"] == 0
