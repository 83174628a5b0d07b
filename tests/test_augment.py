"""`augment`: names, order, targets and score kinds; gradients against PyTorch's autograd, maps against formulas."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam.errors import LabelsError, LayerError, MethodError, ModelError, PreprocessError, TargetError
from onnxcam.graph import manifest
from onnxcam.graph.halve import store_float16
from tests import models, twin
from tests.torchvision_stub import import_torchvision

EPS = 1e-5


def batch(rows: int = 3, size: Sequence[int] = (32, 32), channels: int = 3, seed: int = 0) -> np.ndarray:
    """Noise, each row with colours of its own so that the rows' best classes differ."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, channels, *size)) + 3 * rng.normal(size=(rows, channels, 1, 1))).astype(np.float32)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, **feeds: Any) -> dict[str, np.ndarray]:
    opened = session(model)
    names = [o.name for o in opened.get_outputs()]
    return dict(zip(names, opened.run(names, feeds), strict=True))


def outputs(model: onnx.ModelProto) -> list[str]:
    return [o.name for o in model.graph.output]


def held(model: onnx.ModelProto) -> dict[str, Any]:
    found = manifest.read(model)
    assert found is not None
    return found


def augment(source: Any, *args: Any, **kwargs: Any) -> onnx.ModelProto:
    """`onnxcam.augment`, every result of which has to be valid ONNX of the standard domain."""
    made = onnxcam.augment(source, *args, **kwargs)
    onnx.checker.check_model(made, full_check=True)
    assert {node.domain for node in made.graph.node} <= {"", "ai.onnx"}
    assert [o.domain for o in made.opset_import] == [""]
    read = {name for node in made.graph.node for name in node.input} | set(outputs(made))
    assert {name for node in made.graph.node for name in node.output if name} <= read
    assert {t.name for t in made.graph.initializer} <= read
    return made


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The parity metric: the largest ‖a−b‖ / ‖b‖ over rows."""
    assert a.shape == b.shape
    a, b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    return float((np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-12)).max())


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def with_output(model: onnx.ModelProto, name: str, shape: Sequence[int | str], first: bool = False) -> onnx.ModelProto:
    made = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    model.graph.output.insert(0 if first else len(model.graph.output), made)
    return model


def conv_head(ending: str | None = None, output: str = "out") -> onnx.ModelProto:
    """Scores of shape [N, 4, 1, 1]: a 1×1 convolution after the pooling, as SqueezeNet's and DenseNet's."""
    model = models.tiny_cnn(classes=4)
    graph = model.graph
    del graph.node[-2:]
    kernel = twin.weights(model)["w3"].T[..., None, None].copy()
    graph.initializer.append(numpy_helper.from_array(kernel, "w4"))
    for name in ("w3",):
        graph.initializer.remove(next(t for t in graph.initializer if t.name == name))
    graph.node.append(helper.make_node("Conv", ["pooled", "w4", "b3"], [output if ending is None else "deep"]))
    if ending is not None:
        graph.node.append(helper.make_node(ending, ["deep"], [output], axis=1))
    del graph.output[:]
    return with_output(model, output, ["N", 4, 1, 1])


# ---- outputs, order, numbers


def test_outputs_in_the_fixed_order_and_equal_to_the_original() -> None:
    source = with_output(models.tiny_cnn(ending="Softmax"), "relu1", ["N", 8, 32, 32], first=True)
    x = batch()
    made = augment(source)
    assert outputs(made) == ["relu1", "probabilities", "logits", "activations", "gradients", "heatmap"]
    before, after = run(source, input=x), run(made, input=x)
    for name, value in before.items():
        assert distance(after[name], value) <= EPS
    assert after["heatmap"].dtype == np.float32 and after["heatmap"].shape == (3, 16, 16)
    assert after["gradients"].shape == after["activations"].shape == (3, 16, 16, 16)


@pytest.mark.torch
@pytest.mark.parametrize("pool", ["GlobalAveragePool", "ReduceMean", "Flatten"])
@pytest.mark.parametrize("layer", ["relu2", "relu1"])
def test_gradients_against_autograd(pool: str, layer: str) -> None:
    source = models.tiny_cnn(size=(24, 32), pool=pool)
    x, target = batch(3, (24, 32)), np.array([0, 4, 2])
    got = run(augment(source, [layer]), input=x, target=target)
    logits, activations, gradients = twin.gradients(source, x, target, layer)
    for name, want in (("logits", logits), ("activations", activations), ("gradients", gradients)):
        assert distance(got[name], want) <= EPS, name


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kwargs", "shape"),
    [
        ({"batch": 2}, (2, 3, 32, 32)),
        ({"size": None}, (3, 3, 20, 36)),
        ({"nhwc": True}, (3, 32, 32, 3)),
        ({"nhwc": True, "size": None}, (1, 18, 26, 3)),
        ({"channels": 1}, (4, 1, 32, 32)),
        ({"opset": 13}, (2, 3, 32, 32)),
        ({"opset": 21}, (2, 3, 32, 32)),
    ],
    ids=["fixed batch", "free size", "NHWC", "NHWC free size", "grey", "opset 13", "opset 21"],
)
def test_forms_of_input(kwargs: dict[str, Any], shape: tuple[int, ...]) -> None:
    source = models.tiny_cnn(**kwargs)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    target = np.arange(len(x), dtype=np.int64) % 5
    made = augment(source)
    assert made.opset_import[0].version == max(18, kwargs.get("opset", 18))
    assert held(made)["source"]["opset"] == kwargs.get("opset", 18)
    entry = held(made)["input"]
    assert entry["layout"] == ("NHWC" if kwargs.get("nhwc") else "NCHW")
    assert entry["shape"][0] == kwargs.get("batch", "N")
    got = run(made, input=x, target=target)
    planes = x.transpose(0, 3, 1, 2) if kwargs.get("nhwc") else x
    logits, activations, gradients = twin.gradients(source, planes, target)
    assert distance(got["logits"], logits) <= EPS
    assert distance(got["activations"], activations) <= EPS
    assert distance(got["gradients"], gradients) <= EPS
    assert distance(got["heatmap"], gradcam(activations, gradients)) <= 1e-4


# ---- the target


def test_optional_target_takes_nothing_one_or_one_per_row() -> None:
    source = models.tiny_cnn(seed=2)
    x = batch(4)
    made = augment(source)
    opened = session(made)
    assert [i.name for i in opened.get_inputs()] == ["input"]
    (target,) = opened.get_overridable_initializers()
    rows = opened.get_inputs()[0].shape[0]
    assert (target.name, target.type) == ("target", "tensor(int64)")
    assert isinstance(target.shape[0], str) and target.shape[0] != rows
    alone = run(made, input=x)
    top = alone["logits"].argmax(axis=1)
    assert len(set(top)) > 1  # else the rows could not be told apart
    for fed in (np.array([-1]), np.full(4, -1), np.full(4, -7), top):
        again = run(made, input=x, target=fed.astype(np.int64))
        assert np.array_equal(again["gradients"], alone["gradients"])
    one, four = run(made, input=x, target=np.array([2])), run(made, input=x, target=np.full(4, 2))
    assert np.array_equal(one["gradients"], four["gradients"])
    mixed = run(made, input=x, target=np.array([2, -1, 2, -1]))
    assert np.array_equal(mixed["gradients"][0], one["gradients"][0])
    assert np.array_equal(mixed["gradients"][1], alone["gradients"][1])
    assert not np.array_equal(one["gradients"], alone["gradients"])


def test_required_target() -> None:
    made = augment(models.tiny_cnn(), target="required")
    assert [i.name for i in session(made).get_inputs()] == ["input", "target"]
    assert session(made).get_overridable_initializers() == []
    assert held(made)["target"] == {"name": "target", "mode": "required"}
    free = augment(models.tiny_cnn())
    for target in ([1], [3, -1, 0]):
        fed = np.array(target, np.int64)
        a, b = run(made, input=batch(), target=fed), run(free, input=batch(), target=fed)
        assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("target", [3, np.int64(3), "dog", "DOG", "hound"])
def test_constant_target(target: Any) -> None:
    labels = ["cat", "bird", "fish", "dog, hound", "frog"]
    made = augment(models.tiny_cnn(), target=target, labels=labels)
    assert [i.name for i in made.graph.input] == ["input"]
    assert held(made)["target"] == {"name": "target", "mode": "constant", "class": 3}
    free = run(augment(models.tiny_cnn()), input=batch(), target=np.array([3]))
    fixed = run(made, input=batch())
    assert np.array_equal(fixed["gradients"], free["gradients"])
    assert np.array_equal(fixed["heatmap"], free["heatmap"])


@pytest.mark.parametrize(
    ("target", "says"), [(5, "0 to 4"), (-1, "optional"), (-2, "0 to 4"), ("dog", "no labels"), (1.5, "index")]
)
def test_no_such_constant_target(target: Any, says: str) -> None:
    with pytest.raises(TargetError, match=says):
        onnxcam.augment(models.tiny_cnn(), target=target)


def test_the_lowest_index_wins_a_tie() -> None:
    source = models.tiny_cnn()
    for name in ("w3", "b3"):
        tensor = next(t for t in source.graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor).copy()
        value[..., 1], value[..., 3] = 0.0, -0.0
        value[..., [0, 2, 4]] = -np.abs(value[..., [0, 2, 4]])
        tensor.CopyFrom(numpy_helper.from_array(value, name))
    # the features of the two best classes cancel out in the scores, but not in the gradient
    weights = next(t for t in source.graph.initializer if t.name == "w3")
    value = numpy_helper.to_array(weights).copy()
    value[0, 1], value[1, 1], value[0, 3], value[1, 3] = 1.0, 0.0, 0.0, 1.0
    weights.CopyFrom(numpy_helper.from_array(value, "w3"))
    for name in ("w2", "b2"):  # channels 0 and 1 are the same
        tensor = next(t for t in source.graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor).copy()
        value[1] = value[0]
        tensor.CopyFrom(numpy_helper.from_array(value, name))
    x = batch()
    made = augment(source)
    got = run(made, input=x)
    assert np.array_equal(got["logits"][:, 1], got["logits"][:, 3])
    assert (got["logits"][:, 1] == got["logits"].max(axis=1)).all()
    first, second = (run(made, input=x, target=np.array([k]))["gradients"] for k in (1, 3))
    assert np.array_equal(got["gradients"], first)
    assert not np.array_equal(first, second)


# ---- kinds of scores


@pytest.mark.torch
@pytest.mark.parametrize(
    ("ending", "probabilities", "kind"),
    [
        ("Softmax", "probabilities", "logits"),
        ("LogSoftmax", None, "logits"),
        ("Sigmoid", "probabilities", "multilabel"),
    ],
)
@pytest.mark.parametrize("both", [False, True])
def test_the_ending_is_stepped_over(ending: str, probabilities: str | None, kind: str, both: bool) -> None:
    source = models.tiny_cnn(ending=ending)
    if both:
        with_output(source, "logits", ["N", 5])
    made = augment(source)
    assert outputs(made) == ["probabilities", "logits", "activations", "gradients", "heatmap"]
    assert held(made)["scores"] == {"name": "logits", "kind": kind, "classes": 5, "probabilities": probabilities}
    x, target = batch(), np.array([4, 0, 1])
    got = run(made, input=x, target=target)
    logits, _, gradients = twin.gradients(source, x, target)
    assert distance(got["logits"], logits) <= EPS
    assert distance(got["gradients"], gradients) <= EPS
    ended = {"Softmax": softmax(logits), "LogSoftmax": np.log(softmax(logits)), "Sigmoid": 1 / (1 + np.exp(-logits))}
    assert distance(got["probabilities"], ended[ending]) <= EPS


@pytest.mark.torch
@pytest.mark.parametrize("ending", [None, "Softmax"])
def test_scores_of_four_dimensions(ending: str | None) -> None:
    source = conv_head(ending)
    made = augment(source)
    assert outputs(made) == ["out", "logits", "activations", "gradients", "heatmap"]
    scores = {"name": "logits", "kind": "logits", "classes": 4, "probabilities": None if ending is None else "out"}
    assert held(made)["scores"] == scores
    plain = models.tiny_cnn(classes=4)
    x, target = batch(), np.array([1, 3, 0])
    got = run(made, input=x, target=target)
    logits, _, gradients = twin.gradients(plain, x, target)
    assert got["logits"].shape == (3, 4)
    assert distance(got["logits"], logits) <= EPS
    assert distance(got["gradients"], gradients) <= EPS


@pytest.mark.torch
@pytest.mark.parametrize("ending", [None, "Sigmoid"])
def test_binary_logit(ending: str | None) -> None:
    source = models.tiny_cnn(classes=1, ending=ending, seed=4)
    x = batch(6)
    made = augment(source)
    probabilities = "probabilities" if ending else None
    assert held(made)["scores"] == {
        "name": "logits", "kind": "binary_logit", "classes": 2, "probabilities": probabilities
    }  # fmt: skip
    target = np.array([0, 1, 0, 1, 1, 0])
    logits, _, gradients = twin.gradients(source, x, np.zeros(6, np.int64), sign=np.where(target == 1, 1.0, -1.0))
    got = run(made, input=x, target=target)
    assert got["logits"].shape == (6, 1)
    assert distance(got["gradients"], gradients) <= EPS
    alone = run(made, input=x)
    top = (logits[:, 0] > 0).astype(np.int64)
    assert set(top) == {0, 1}
    assert np.array_equal(alone["gradients"], run(made, input=x, target=top)["gradients"])


# ---- several layers and methods, names


def test_several_layers_have_suffixes() -> None:
    made = augment(models.tiny_cnn(), ["relu1", "relu2"])
    assert outputs(made)[1:] == [
        "activations/relu1", "gradients/relu1", "heatmap/relu1", "activations/relu2", "gradients/relu2", "heatmap/relu2"
    ]  # fmt: skip
    x = batch()
    got = run(made, input=x)
    for layer in ("relu1", "relu2"):
        alone = run(augment(models.tiny_cnn(), [layer]), input=x)
        for name in ("activations", "gradients", "heatmap"):
            assert distance(got[f"{name}/{layer}"], alone[name]) <= EPS


def test_several_methods_have_suffixes() -> None:
    made = augment(models.tiny_cnn(), methods=("gradcam", "hirescam"))
    assert outputs(made)[1:] == ["activations", "gradients", "heatmap/gradcam", "heatmap/hirescam"]
    assert held(made)["layers"][0]["heatmaps"] == {"gradcam": "heatmap/gradcam", "hirescam": "heatmap/hirescam"}
    both = augment(models.tiny_cnn(), ["relu1", "relu2"], ("gradcam", "hirescam"))
    assert "heatmap/relu1/hirescam" in outputs(both) and "heatmap/relu2/gradcam" in outputs(both)


def test_a_node_names_its_first_output() -> None:
    made = augment(models.tiny_cnn(), "last_relu")
    assert (held(made)["layers"][0]["name"], held(made)["layers"][0]["value"]) == ("last_relu", "relu2")
    assert np.array_equal(
        run(made, input=batch())["heatmap"], run(augment(models.tiny_cnn()), input=batch())["heatmap"]
    )


def test_heatmap_alone() -> None:
    made = augment(models.tiny_cnn(), outputs="heatmap")
    assert outputs(made) == ["logits", "heatmap"]
    entry = held(made)["layers"][0]
    assert (entry["activations"], entry["gradients"], entry["heatmaps"]) == (None, None, {"gradcam": "heatmap"})
    full = run(augment(models.tiny_cnn()), input=batch())
    assert np.array_equal(run(made, input=batch())["heatmap"], full["heatmap"])


def renamed(names: dict[str, str], **kwargs: Any) -> onnx.ModelProto:
    from onnxcam.graph import edit

    model = models.tiny_cnn(**kwargs)
    edit.rename(model, names)
    return model


def test_internal_values_make_way_for_the_fixed_names() -> None:
    names = {"conv1": "activations", "conv2": "target", "logits": "gradients", "relu2": "heatmap", "relu1": "logits"}
    source = renamed(names, ending="Softmax")
    made = augment(source, ["heatmap"])
    assert outputs(made) == ["probabilities", "logits", "activations", "gradients", "heatmap"]
    assert held(made)["layers"][0]["name"] == "heatmap"
    plain = augment(models.tiny_cnn(ending="Softmax"))
    a, b = run(made, input=batch(), target=np.array([1])), run(plain, input=batch(), target=np.array([1]))
    assert all(distance(a[name], b[name]) <= EPS for name in b)
    again = augment(made, methods=("hirescam",))
    assert held(again)["layers"][0]["name"] == "heatmap"


@pytest.mark.parametrize("name", ["activations", "gradients", "heatmap", "target"])
def test_a_public_name_is_never_taken(name: str) -> None:
    for old in ("logits", "input"):
        with pytest.raises(ModelError, match=f"{name!r}"):
            onnxcam.augment(renamed({old: name}))


def test_probabilities_called_logits_clash() -> None:
    with pytest.raises(ModelError, match="'logits'"):
        onnxcam.augment(renamed({"logits": "inner", "probabilities": "logits"}, ending="Softmax"))


# ---- the manifest


def test_manifest_is_complete() -> None:
    labels = [f"class {k}" for k in range(5)]
    preprocess = {"color": "RGB", "scale": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3}
    preprocess |= {"resize": {"mode": "stretch", "size": [24, 32]}}
    source = models.tiny_cnn(ending="Softmax", size=(24, 32))
    made = augment(source, labels=labels, preprocess=preprocess)
    import hashlib

    found = json.loads(next(p.value for p in made.metadata_props if p.key == "onnxcam"))
    assert found == {
        "format": 1,
        "requires": {"onnxruntime": found["requires"]["onnxruntime"], "opset": 18, "ir": 8},
        "input": {
            "name": "input", "layout": "NCHW", "dtype": "float32", "shape": ["N", 3, 24, 32], "preprocess": preprocess
        },
        "scores": {"name": "logits", "kind": "logits", "classes": 5, "probabilities": "probabilities"},
        "target": {"name": "target", "mode": "optional"},
        "layers": [
            {
                "name": "relu2", "activations": "activations", "gradients": "gradients", "layout": "NCHW",
                "shape": ["N", 16, 12, 16], "grid": [12, 16], "prefix_tokens": 0, "heatmaps": {"gradcam": "heatmap"},
                "value": "relu2",
            }
        ],
        "labels": labels,
        "source": {
            "framework": "onnx", "name": "tiny", "opset": 18, "outputs": ["probabilities"],
            "sha256": hashlib.sha256(source.SerializeToString(deterministic=True)).hexdigest(),
        },
        "parity": None,
    }  # fmt: skip
    assert found["requires"]["onnxruntime"].count(".") == 2
    assert (made.opset_import[0].version, made.ir_version) == (18, 8)


def test_source_is_named_after_the_file(tmp_path: Any) -> None:
    import hashlib

    path = tmp_path / "squirrel.onnx"
    onnx.save(models.tiny_cnn(), path)
    for source, name in ((path, "squirrel"), (str(path), "squirrel"), (path.read_bytes(), "model")):
        found = held(augment(source))["source"]
        assert (found["name"], found["sha256"]) == (name, hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_source_is_left_alone_and_foreign_metadata_kept() -> None:
    source = models.tiny_cnn()
    source.metadata_props.add(key="author", value="somebody")
    source.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    before = source.SerializeToString(deterministic=True)
    made = augment(source)
    assert source.SerializeToString(deterministic=True) == before
    assert (made.metadata_props[0].key, made.metadata_props[0].value) == ("author", "somebody")
    assert {p.key for p in augment(made).metadata_props} == {"author", "onnxcam"}


# ---- augmenting again


@pytest.mark.parametrize("ending", [None, "Softmax", "Sigmoid"])
@pytest.mark.parametrize("target", ["optional", "required", 2])
def test_augmenting_again_equals_augmenting_the_original(ending: str | None, target: Any) -> None:
    source = models.tiny_cnn(ending=ending)
    labels = list("abcde")
    first = augment(source, ["relu1"], ("hirescam",), target, labels=labels, preprocess={"color": "RGB"})
    again = augment(first, ["relu2"], ("gradcam", "hirescam"))
    straight = augment(
        source, ["relu2"], ("gradcam", "hirescam"), labels=labels, preprocess={"color": "RGB"},
    )  # fmt: skip
    assert held(again) == held(straight)
    assert [i.name for i in again.graph.input] == [i.name for i in straight.graph.input]
    assert len(again.graph.node) == len(straight.graph.node)
    a, b = run(again, input=batch(), target=np.array([1])), run(straight, input=batch(), target=np.array([1]))
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in b)
    kept = augment(first, methods=("hirescam",))
    assert [e["name"] for e in held(kept)["layers"]] == ["relu1"]


@pytest.mark.parametrize("ending", ["Sigmoid", "Softmax"])
def test_augmenting_again_keeps_what_both_outputs_say(ending: str) -> None:
    source = with_output(models.tiny_cnn(ending=ending), "logits", ["N", 5])
    first = augment(source)
    assert held(augment(first))["scores"] == held(first)["scores"]
    asked = augment(source, scores="logits")
    assert held(asked)["scores"] == held(first)["scores"]


def test_augmenting_again_explains_the_same_of_several_scores() -> None:
    source = two_heads()
    with pytest.raises(ModelError, match=r"several outputs .*scores="):
        onnxcam.augment(source)
    for asked in ("second", "second_logits"):
        first = augment(source, scores=asked)
        assert held(first)["scores"]["probabilities"] == "second"
        again = augment(first, methods=("hirescam", "gradcam"))
        assert held(again)["scores"] == held(first)["scores"]
        a, b = run(first, input=batch()), run(again, input=batch())
        assert np.array_equal(a["logits"], b["logits"])
        assert np.array_equal(a["gradients"], b["gradients"])
    assert [layer.name for layer in onnxcam.layers(first)] == ["relu1", "relu2"]


def two_heads() -> onnx.ModelProto:
    model = models.tiny_cnn(ending="Softmax")
    w = np.random.default_rng(5).normal(size=(16, 7)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(w, "w_second"))
    model.graph.node.append(helper.make_node("MatMul", ["flat", "w_second"], ["second_logits"]))
    model.graph.node.append(helper.make_node("Softmax", ["second_logits"], ["second"]))
    return with_output(model, "second", ["N", 7])


def test_weights_stored_as_float16() -> None:
    source = models.tiny_cnn(width=16)
    small = store_float16(source)
    assert any(t.data_type == TensorProto.FLOAT16 for t in small.graph.initializer)
    made = augment(small)
    assert any(t.data_type == TensorProto.FLOAT16 for t in made.graph.initializer)
    a, b = run(made, input=batch(), target=np.array([1])), run(augment(source), input=batch(), target=np.array([1]))
    assert distance(a["gradients"], b["gradients"]) <= 2e-3
    plain = run(small, input=batch())
    assert distance(a["logits"], plain["logits"]) <= EPS


def test_an_old_softmax_with_its_logits_as_an_output() -> None:
    source = with_output(models.tiny_cnn(ending="Softmax", opset=11), "logits", ["N", 5])
    made = augment(source)
    assert held(made)["scores"] == {
        "name": "logits", "kind": "logits", "classes": 5, "probabilities": "probabilities"
    }  # fmt: skip
    assert outputs(made)[:3] == ["probabilities", "logits", "activations"]


# ---- refusals


@pytest.mark.parametrize(
    ("make", "kwargs", "error", "says"),
    [
        (models.tiny_cnn, {"labels": ["a", "b"]}, LabelsError, "got 2 labels .* 5 classes"),
        (models.tiny_cnn, {"layers": ["relu3"]}, LayerError, "relu3.*nearest.*relu2"),
        (models.tiny_cnn, {"layers": ["logits"]}, LayerError, r"\[N, 5\]"),
        (models.tiny_cnn, {"layers": []}, LayerError, "empty"),
        (models.tiny_cnn, {"layers": ["relu2", "relu2"]}, LayerError, "twice"),
        (models.tiny_cnn, {"methods": ("gradcan",)}, MethodError, "gradcam"),
        (models.tiny_cnn, {"outputs": "some"}, ModelError, "'all' or 'heatmap'"),
        (models.tiny_cnn, {"scores": "relu2"}, ModelError, "class scores"),
        (models.tiny_cnn, {"scores": "nowhere"}, ModelError, "nowhere"),
        (models.two_inputs, {}, ModelError, "2 inputs"),
        (models.tabular, {}, ModelError, r"\[N, 10\]; expected a batch of pictures"),
        (models.mlp, {}, LayerError, "no spatial layer"),
    ],
)  # fmt: skip
def test_refusals(make: Any, kwargs: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        onnxcam.augment(make(), **kwargs)


def test_a_segmentation_model_is_no_classifier() -> None:
    source = models.tiny_cnn()
    del source.graph.output[:]
    with_output(source, "relu2", ["N", 16, 16, 16])
    with pytest.raises(ModelError, match=r"not an image classifier.*'relu2' \[N, 16, 16, 16\]"):
        onnxcam.augment(source)


# ---- maps against formulas and against pytorch-grad-cam


def gradcam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    return np.maximum(np.einsum("nc,nchw->nhw", g.mean(axis=(2, 3)), a), 0)


def hirescam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    return np.maximum((g * a).sum(axis=1), 0)


@pytest.mark.torch
@pytest.mark.parametrize("pool", ["GlobalAveragePool", "Flatten"])
def test_maps_against_their_formulas(pool: str) -> None:
    source = models.tiny_cnn(size=(24, 32), pool=pool)
    x, target = batch(4, (24, 32)), np.array([0, 1, 2, 3])
    made = augment(source, ["relu2"], ("gradcam", "hirescam"))
    got = run(made, input=x, target=target)
    _, a, g = twin.gradients(source, x, target)
    assert np.abs(got["heatmap/gradcam"] - gradcam(a, g)).max() <= 1e-5 * np.abs(gradcam(a, g)).max()
    assert np.abs(got["heatmap/hirescam"] - hirescam(a, g)).max() <= 1e-5 * np.abs(hirescam(a, g)).max()
    same = np.allclose(got["heatmap/gradcam"], got["heatmap/hirescam"], rtol=1e-4, atol=1e-6)
    assert same == (pool == "GlobalAveragePool")  # with a pooled linear head the two methods are one


def test_conservation_behind_pooling_and_a_linear_layer() -> None:
    source = models.tiny_cnn(size=(24, 32))
    x, target = batch(4, (24, 32)), np.array([0, 1, 2, 3])
    got = run(augment(source), input=x, target=target)
    total = (got["activations"].astype(np.float64) * got["gradients"]).sum(axis=(1, 2, 3))
    assert np.allclose(total, got["logits"][np.arange(4), target] - twin.weights(source)["b3"][target], atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
@pytest.mark.parametrize("layers", [["relu2"], ["relu1"], ["relu1", "relu2"]])
@pytest.mark.parametrize("pool", ["GlobalAveragePool", "Flatten"])
def test_maps_against_pytorch_grad_cam(method: str, layers: list[str], pool: str) -> None:
    import_torchvision()
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("pytorch_grad_cam")
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    source = models.tiny_cnn(size=(40, 56), pool=pool)
    x, target = batch(3, (40, 56)), [4, 0, 2]
    module = twin.build(source)
    theirs = {"gradcam": package.GradCAM, "hirescam": package.HiResCAM}[method]
    with theirs(model=module, target_layers=[getattr(module, name) for name in layers]) as cam:
        want = cam(input_tensor=torch.from_numpy(x), targets=[ClassifierOutputTarget(t) for t in target])
    explainer = onnxcam.Explainer(source, layers=layers, methods=(method,), providers=["CPUExecutionProvider"])
    got = explainer.attribute(x, target, method, layer=layers)
    assert got.shape == want.shape == (3, 40, 56)
    assert np.abs(got - want).max() <= 1e-4
    assert want.max(axis=(1, 2)).min() > 0.5  # maps with something in them


@pytest.mark.parametrize("spec", ["0..1", {"scale": 1 / 255}])
def test_preprocessing_is_spelled_out(spec: object) -> None:
    """A preset, or an entry that leaves the resize to the model's input, means the same to any client."""
    made = augment(models.tiny_cnn(size=(24, 32)), preprocess=spec)
    held = manifest.read(made)
    assert held is not None
    entry = held["input"]["preprocess"]
    assert entry["scale"] == pytest.approx(1 / 255)
    assert (entry["resize"]["mode"], entry["resize"]["size"]) == ("stretch", [24, 32])


def test_preprocessing_that_does_not_fit_is_refused() -> None:
    with pytest.raises(PreprocessError, match="channels"):
        augment(models.tiny_cnn(), preprocess={"color": "L"})
