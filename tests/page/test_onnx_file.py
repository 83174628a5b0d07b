"""The page's JavaScript reads and changes ONNX files: manifest, and an optional target that becomes an input."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam.explain.warnings import model_warnings
from onnxcam.network import manifest as manifests
from tests.support import wrong_gradients
from tests.support.javascript import Node, array
from tests.support.runtime import run


def opened(node: Node, *models: bytes) -> list[dict[str, Any]]:
    return node.run([{"action": "open", "file": base64.b64encode(data).decode()} for data in models])


@pytest.fixture(scope="module")
def optional() -> onnx.ModelProto:
    return onnxcam.augment(wrong_gradients.build("plain"), labels=[f"class {i}" for i in range(6)], probe=False)


def test_an_optional_target_becomes_an_input(node: Node, optional: onnx.ModelProto) -> None:
    (result,) = opened(node, optional.SerializeToString())
    assert result["targets"] == "any" and result["manifest"]["target"]["mode"] == "required"
    changed = onnx.load_from_string(array(result["model"]).tobytes())
    onnx.checker.check_model(changed)
    assert "target" in [value.name for value in changed.graph.input]
    assert "target" not in [value.name for value in changed.graph.initializer]
    assert manifests.read(changed) == result["manifest"]
    # nothing else has changed
    want = copy.deepcopy(optional)
    del want.graph.initializer[[value.name for value in want.graph.initializer].index("target")]
    manifests.write(want, result["manifest"])
    assert changed == want
    feeds = {
        "input": np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32),
        "target": np.array([4, -1]),
    }
    for mine, theirs in zip(run(changed, feeds).values(), run(optional, feeds).values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_files_that_need_no_change(node: Node) -> None:
    source = wrong_gradients.build("plain")
    required = onnxcam.augment(source, target="required", probe=False).SerializeToString()
    constant = onnxcam.augment(source, target=2, probe=False).SerializeToString()
    results = opened(node, required, constant)
    assert [result["targets"] for result in results] == ["any", "class"]
    assert [array(result["model"]).tobytes() for result in results] == [required, constant]


def test_a_target_that_a_tool_has_folded_leaves_the_best_class(node: Node, optional: onnx.ModelProto) -> None:
    folded = copy.deepcopy(optional)
    del folded.graph.input[[value.name for value in folded.graph.input].index("target")]
    (result,) = opened(node, folded.SerializeToString())
    assert result["targets"] == "top-1"


def broken(optional: onnx.ModelProto) -> dict[str, tuple[str, bytes]]:
    """Files that cannot be taken, by name, with what is said of them."""
    whole = optional.SerializeToString()

    def with_manifest(change: Any) -> bytes:
        model = copy.deepcopy(optional)
        manifest = json.loads(json.dumps(manifests.read(model)))
        change(manifest)
        manifests.write(model, manifest)
        return model.SerializeToString()

    def external() -> bytes:
        model = copy.deepcopy(optional)
        model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
        return model.SerializeToString()

    def with_text(text: str) -> bytes:
        model = copy.deepcopy(optional)
        del model.metadata_props[:]
        model.metadata_props.add(key="onnxcam", value=text)
        return model.SerializeToString()

    plain = wrong_gradients.build("plain")
    return {
        "empty": ("no graph", b""),
        "a picture": ("not a whole ONNX file", b"\x89PNG\r\n\x1a\n" + bytes(range(200))),
        "text": ("ONNX file", b"hello, this is no model at all"),
        "cut off": ("not a whole ONNX file", whole[: len(whole) // 2]),
        "a number without end": ("not a whole ONNX file", b"\x3a" + b"\xff" * 30),
        "a length beyond": ("not a whole ONNX file", b"\x3a\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(20)),
        "not explainable": ("not explainable", (plain if isinstance(plain, bytes) else plain.SerializeToString())),
        "two graphs": ("two graphs", whole + b"\x3a\x00"),
        "weights elsewhere": ("another file", external()),
        "no JSON": ("not JSON", with_text("{")),
        "deep": ("levels", with_text("[" * 1000 + "]" * 1000)),
        "a list": ("no format", with_text("[]")),
        "newer": ("newer", with_manifest(lambda m: m.update(format=2))),
        "no layers": ("layers", with_manifest(lambda m: m.update(layers=[]))),
        "layers of text": ("layers", with_manifest(lambda m: m.update(layers="abc"))),
        "an unknown kind": ("scores.kind", with_manifest(lambda m: m["scores"].update(kind="votes"))),
        "labels": ("labels", with_manifest(lambda m: m.update(labels=["a"]))),
        "an output that is not there": (
            "does not have",
            with_manifest(lambda m: m["layers"][0].update(heatmaps={"gradcam": "x"})),
        ),
    }


def test_what_is_no_explainable_file_is_refused_in_a_sentence(node: Node, optional: onnx.ModelProto) -> None:
    files = broken(optional)
    results = opened(node, *(data for _, data in files.values()))
    for (name, (message, _)), result in zip(files.items(), results, strict=True):
        assert result.get("kind") == "FileError" and message in result["error"], (name, result)


def test_damaged_bytes_never_throw_anything_else(node: Node, optional: onnx.ModelProto) -> None:
    whole = bytearray(optional.SerializeToString())
    rng = np.random.default_rng(0)
    damaged = []
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 3):
            data[at] = int(rng.integers(0, 256))
        damaged.append(bytes(data[: int(rng.integers(len(data) // 2, len(data)))] if rng.random() < 0.3 else data))
    results = opened(node, *damaged)
    assert {result.get("kind", "opened") for result in results} <= {"opened", "FileError"}
    assert sum("error" in result for result in results) > 20


def test_doubts_are_python_s_sentences(node: Node, optional: onnx.ModelProto) -> None:
    base = manifests.read(optional)
    assert base is not None
    changes: list[dict[str, Any]] = [
        {},
        {"input": {**base["input"], "size": "assumed"}},
        {"input": {**base["input"], "size": "unknown"}},
        {"scores": {**base["scores"], "warnings": ["the scores are doubtful"]}},
        {"measured": {"rows": "coupled", "deterministic": False}},
        *({"layers": [{**base["layers"][0], **entry}]} for entry in (
            {"beside": ["b", "c"]},
            {"beside": []},
            {"beside": ["b"], "window": {"height": [4, 28], "width": [32, 0.5], "transposed": True}},
            {"beside": [], "place": {"verdict": "none", "correlation": 0.1, "reason": "it is constant"}},
            {"place": {"verdict": "mirrored", "correlation": 0.9}},
            {"place": {"verdict": "mirrored", "correlation": 0.9, "drawn": True}},
            {"place": {"verdict": "shifted", "correlation": 0.9, "reason": "by 3 cells"}},
        )),
    ]  # fmt: skip
    listed = [{**base, **change} for change in changes]
    name = base["layers"][0]["name"]
    results = node.run([{"action": "doubts", "manifest": one, "layer": name} for one in listed])
    expected = [model_warnings(one, [name], skipped=False) for one in listed]
    assert results == expected
    assert sum(map(len, expected)) >= 9
