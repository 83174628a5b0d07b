"""`augment`: names, order, targets, kinds of scores, refusals; gradients against PyTorch's autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcam
from onnxcam.errors import LabelsError, LayerError, MethodError, ModelError, TargetError
from tests.support import models
from tests.support import torch_models as twin
from tests.support.batches import batch, distance
from tests.support.explainable import EPS, augment, conv_head, gradcam, manifest_of, outputs, softmax, with_output
from tests.support.runtime import run, session

# ---- outputs, order, numbers


def test_outputs_in_the_fixed_order_and_equal_to_the_original() -> None:
    source = with_output(models.tiny_cnn(ending="Softmax"), "relu1", ["N", 8, 32, 32], first=True)
    x = batch()
    explainable = augment(source)
    assert outputs(explainable) == ["relu1", "probabilities", "logits", "activations", "gradients", "heatmap"]
    before, after = run(source, input=x), run(explainable, input=x)
    for name, value in before.items():
        assert distance(after[name], value) <= EPS
    assert after["heatmap"].dtype == np.float32 and after["heatmap"].shape == (3, 16, 16)
    assert after["gradients"].shape == after["activations"].shape == (3, 16, 16, 16)


@pytest.mark.torch
@pytest.mark.parametrize("pool", ["GlobalAveragePool", "ReduceMean", "Flatten"])
@pytest.mark.parametrize("layer", ["relu2", "relu1"])
def test_gradients_against_autograd(pool: str, layer: str) -> None:
    source = models.tiny_cnn(size=(24, 32), pool=pool)
    x, target = batch(3, (3, 24, 32)), np.array([0, 4, 2])
    actual = run(augment(source, [layer]), input=x, target=target)
    logits, activations, gradients = twin.gradients(source, x, target, layer)
    for name, want in (("logits", logits), ("activations", activations), ("gradients", gradients)):
        assert distance(actual[name], want) <= EPS, name


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
    explainable = augment(source)
    assert explainable.opset_import[0].version == max(18, kwargs.get("opset", 18))
    assert manifest_of(explainable)["source"]["opset"] == kwargs.get("opset", 18)
    entry = manifest_of(explainable)["input"]
    assert entry["layout"] == ("NHWC" if kwargs.get("nhwc") else "NCHW")
    assert entry["shape"][0] == kwargs.get("batch", "N")
    actual = run(explainable, input=x, target=target)
    planes = x.transpose(0, 3, 1, 2) if kwargs.get("nhwc") else x
    logits, activations, gradients = twin.gradients(source, planes, target)
    assert distance(actual["logits"], logits) <= EPS
    assert distance(actual["activations"], activations) <= EPS
    assert distance(actual["gradients"], gradients) <= EPS
    assert distance(actual["heatmap"], gradcam(activations, gradients)) <= 1e-4


# ---- the target


def test_optional_target_takes_nothing_one_or_one_per_row() -> None:
    source = models.tiny_cnn(seed=2)
    x = batch(4)
    explainable = augment(source)
    opened = session(explainable)
    assert [i.name for i in opened.get_inputs()] == ["input"]
    (target,) = opened.get_overridable_initializers()
    rows = opened.get_inputs()[0].shape[0]
    assert (target.name, target.type) == ("target", "tensor(int64)")
    assert isinstance(target.shape[0], str) and target.shape[0] != rows
    alone = run(explainable, input=x)
    top = alone["logits"].argmax(axis=1)
    assert len(set(top)) > 1  # else the rows could not be told apart
    for targets in (np.array([-1]), np.full(4, -1), np.full(4, -7), top):
        again = run(explainable, input=x, target=targets.astype(np.int64))
        assert np.array_equal(again["gradients"], alone["gradients"])
    one, four = run(explainable, input=x, target=np.array([2])), run(explainable, input=x, target=np.full(4, 2))
    assert np.array_equal(one["gradients"], four["gradients"])
    mixed = run(explainable, input=x, target=np.array([2, -1, 2, -1]))
    assert np.array_equal(mixed["gradients"][0], one["gradients"][0])
    assert np.array_equal(mixed["gradients"][1], alone["gradients"][1])
    assert not np.array_equal(one["gradients"], alone["gradients"])


def test_required_target() -> None:
    explainable = augment(models.tiny_cnn(), target="required")
    assert [i.name for i in session(explainable).get_inputs()] == ["input", "target"]
    assert session(explainable).get_overridable_initializers() == []
    assert manifest_of(explainable)["target"] == {"name": "target", "mode": "required"}
    free = augment(models.tiny_cnn())
    for target in ([1], [3, -1, 0]):
        targets = np.array(target, np.int64)
        a, b = run(explainable, input=batch(), target=targets), run(free, input=batch(), target=targets)
        assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("target", [3, np.int64(3), "dog", "DOG", "hound"])
def test_constant_target(target: Any) -> None:
    labels = ["cat", "bird", "fish", "dog, hound", "frog"]
    explainable = augment(models.tiny_cnn(), target=target, labels=labels)
    assert [i.name for i in explainable.graph.input] == ["input"]
    assert manifest_of(explainable)["target"] == {"name": "target", "mode": "constant", "class": 3}
    free = run(augment(models.tiny_cnn()), input=batch(), target=np.array([3]))
    fixed = run(explainable, input=batch())
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
    explainable = augment(source)
    actual = run(explainable, input=x)
    assert np.array_equal(actual["logits"][:, 1], actual["logits"][:, 3])
    assert (actual["logits"][:, 1] == actual["logits"].max(axis=1)).all()
    first, second = (run(explainable, input=x, target=np.array([k]))["gradients"] for k in (1, 3))
    assert np.array_equal(actual["gradients"], first)
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
    explainable = augment(source)
    assert outputs(explainable) == ["probabilities", "logits", "activations", "gradients", "heatmap"]
    assert manifest_of(explainable)["scores"] == {
        "name": "logits",
        "kind": kind,
        "classes": 5,
        "probabilities": probabilities,
    }
    x, target = batch(), np.array([4, 0, 1])
    actual = run(explainable, input=x, target=target)
    logits, _, gradients = twin.gradients(source, x, target)
    assert distance(actual["logits"], logits) <= EPS
    assert distance(actual["gradients"], gradients) <= EPS
    ended = {"Softmax": softmax(logits), "LogSoftmax": np.log(softmax(logits)), "Sigmoid": 1 / (1 + np.exp(-logits))}
    assert distance(actual["probabilities"], ended[ending]) <= EPS


@pytest.mark.torch
@pytest.mark.parametrize("ending", [None, "Softmax"])
def test_scores_of_four_dimensions(ending: str | None) -> None:
    source = conv_head(ending)
    explainable = augment(source)
    assert outputs(explainable) == ["out", "logits", "activations", "gradients", "heatmap"]
    scores = {"name": "logits", "kind": "logits", "classes": 4, "probabilities": None if ending is None else "out"}
    assert manifest_of(explainable)["scores"] == scores
    plain = models.tiny_cnn(classes=4)
    x, target = batch(), np.array([1, 3, 0])
    actual = run(explainable, input=x, target=target)
    logits, _, gradients = twin.gradients(plain, x, target)
    assert actual["logits"].shape == (3, 4)
    assert distance(actual["logits"], logits) <= EPS
    assert distance(actual["gradients"], gradients) <= EPS


@pytest.mark.torch
@pytest.mark.parametrize("ending", [None, "Sigmoid"])
def test_binary_logit(ending: str | None) -> None:
    source = models.tiny_cnn(classes=1, ending=ending, seed=4)
    x = batch(6)
    explainable = augment(source)
    probabilities = "probabilities" if ending else None
    entry = manifest_of(explainable)["scores"]
    warnings = entry.pop("warnings", [])
    assert entry == {"name": "logits", "kind": "binary_logit", "classes": 2, "probabilities": probabilities}
    assert ["--kind regression" in warning for warning in warnings] == ([] if ending else [True])
    target = np.array([0, 1, 0, 1, 1, 0])
    logits, _, gradients = twin.gradients(source, x, np.zeros(6, np.int64), sign=np.where(target == 1, 1.0, -1.0))
    actual = run(explainable, input=x, target=target)
    assert actual["logits"].shape == (6, 1)
    assert distance(actual["gradients"], gradients) <= EPS
    alone = run(explainable, input=x)
    top = (logits[:, 0] > 0).astype(np.int64)
    assert set(top) == {0, 1}
    assert np.array_equal(alone["gradients"], run(explainable, input=x, target=top)["gradients"])


# ---- several layers and methods, names


def test_several_layers_have_suffixes() -> None:
    explainable = augment(models.tiny_cnn(), ["relu1", "relu2"])
    assert outputs(explainable)[1:] == [
        "activations/relu1", "gradients/relu1", "heatmap/relu1", "activations/relu2", "gradients/relu2", "heatmap/relu2"
    ]  # fmt: skip
    x = batch()
    actual = run(explainable, input=x)
    for layer in ("relu1", "relu2"):
        alone = run(augment(models.tiny_cnn(), [layer]), input=x)
        for name in ("activations", "gradients", "heatmap"):
            assert distance(actual[f"{name}/{layer}"], alone[name]) <= EPS


def test_several_methods_have_suffixes() -> None:
    explainable = augment(models.tiny_cnn(), methods=("gradcam", "hirescam"))
    assert outputs(explainable)[1:] == ["activations", "gradients", "heatmap/gradcam", "heatmap/hirescam"]
    assert manifest_of(explainable)["layers"][0]["heatmaps"] == {
        "gradcam": "heatmap/gradcam",
        "hirescam": "heatmap/hirescam",
    }
    both = augment(models.tiny_cnn(), ["relu1", "relu2"], ("gradcam", "hirescam"))
    assert "heatmap/relu1/hirescam" in outputs(both) and "heatmap/relu2/gradcam" in outputs(both)


def test_a_node_names_its_first_output() -> None:
    explainable = augment(models.tiny_cnn(), "last_relu")
    assert (manifest_of(explainable)["layers"][0]["name"], manifest_of(explainable)["layers"][0]["value"]) == (
        "last_relu",
        "relu2",
    )
    assert np.array_equal(
        run(explainable, input=batch())["heatmap"], run(augment(models.tiny_cnn()), input=batch())["heatmap"]
    )


def test_heatmap_alone() -> None:
    explainable = augment(models.tiny_cnn(), outputs="heatmap")
    assert outputs(explainable) == ["logits", "heatmap"]
    entry = manifest_of(explainable)["layers"][0]
    assert (entry["activations"], entry["gradients"], entry["heatmaps"]) == (None, None, {"gradcam": "heatmap"})
    full = run(augment(models.tiny_cnn()), input=batch())
    assert np.array_equal(run(explainable, input=batch())["heatmap"], full["heatmap"])


def renamed(names: dict[str, str], **kwargs: Any) -> onnx.ModelProto:
    from onnxcam.graph import edit

    model = models.tiny_cnn(**kwargs)
    edit.rename(model, names)
    return model


def test_internal_values_make_way_for_the_fixed_names() -> None:
    names = {"conv1": "activations", "conv2": "target", "logits": "gradients", "relu2": "heatmap", "relu1": "logits"}
    source = renamed(names, ending="Softmax")
    explainable = augment(source, ["heatmap"])
    assert outputs(explainable) == ["probabilities", "logits", "activations", "gradients", "heatmap"]
    assert manifest_of(explainable)["layers"][0]["name"] == "heatmap"
    plain = augment(models.tiny_cnn(ending="Softmax"))
    a, b = run(explainable, input=batch(), target=np.array([1])), run(plain, input=batch(), target=np.array([1]))
    assert all(distance(a[name], b[name]) <= EPS for name in b)
    again = augment(explainable, methods=("hirescam",))
    assert manifest_of(again)["layers"][0]["name"] == "heatmap"


@pytest.mark.parametrize("name", ["activations", "gradients", "heatmap", "target"])
@pytest.mark.parametrize("old", ["logits", "input"])
def test_a_public_name_is_never_taken(name: str, old: str) -> None:
    source, plain = renamed({old: name}), augment(models.tiny_cnn())
    explainable = augment(source)
    entry = manifest_of(explainable)
    mine = entry["target"]["name"] if name == "target" else entry["layers"][0].get(name) or "onnxcam.heatmap"
    assert mine == f"onnxcam.{name}" and name in [v.name for v in (*explainable.graph.input, *explainable.graph.output)]
    feeds = {entry["input"]["name"]: batch(), entry["target"]["name"]: np.array([1])}
    a, b = run(explainable, feeds), run(plain, input=batch(), target=np.array([1]))
    layer = entry["layers"][0]
    for key, value in {**layer["heatmaps"], "a": layer["activations"], "g": layer["gradients"]}.items():
        usual = {"a": "activations", "g": "gradients", "gradcam": "heatmap"}[key]
        assert distance(a[value], b[usual]) <= EPS
    again = augment(explainable, methods=("hirescam",))
    assert manifest_of(again)["target"]["name"] == entry["target"]["name"]


def test_probabilities_called_logits_are_explained_under_another_name() -> None:
    explainable = augment(renamed({"logits": "inner", "probabilities": "logits"}, ending="Softmax"))
    entry = manifest_of(explainable)["scores"]
    assert entry == {"name": "onnxcam.logits", "kind": "logits", "classes": 5, "probabilities": "logits"}
    values = run(explainable, input=batch(), target=np.array([1]))
    plain = run(augment(models.tiny_cnn(ending="Softmax")), input=batch(), target=np.array([1]))
    assert distance(values["onnxcam.logits"], plain["logits"]) <= EPS
    assert distance(values["logits"], plain["probabilities"]) <= EPS


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
