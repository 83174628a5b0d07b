"""`check` accuses wrong gradients, planted in the file and in the rules, and never right ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam.autodiff import registry
from onnxcam.diagnose.gradients import ModelReport, check
from onnxcam.errors import ModelError
from tests.support import models

CPU = ["CPUExecutionProvider"]


def verdicts(report: ModelReport, start: str = "gradients at") -> list[str]:
    return [finding.status for finding in report.findings if finding.name.startswith(start)]


def branching(size: int = 24) -> onnx.ModelProto:
    """From `relu1` on: Conv, BatchNormalization, SiLU, residual Add, Concat, MaxPool, AveragePool, pooling, Gemm."""
    model = models.tiny_cnn(size=size, width=6, seed=5)
    rng = np.random.default_rng(5)
    weights = {
        "k": rng.normal(size=(6, 6, 3, 3)) * 0.25,
        "g": rng.uniform(0.6, 1.6, 6),
        "be": rng.normal(size=6) * 0.2,
        "mu": rng.normal(size=6) * 0.2,
        "va": rng.uniform(0.5, 2.0, 6),
    }
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())
    nodes = [
        helper.make_node("Conv", ["relu1", "k"], ["u"], name="u", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["u", "g", "be", "mu", "va"], ["n"], name="n"),
        helper.make_node("Sigmoid", ["n"], ["s"], name="s"),
        # not n itself: a SiLU is differentiated as one, and here each path is wanted apart
        helper.make_node("Identity", ["n"], ["direct"], name="direct"),
        helper.make_node("Mul", ["direct", "s"], ["silu"], name="silu"),
        helper.make_node("Add", ["silu", "relu1"], ["sum"], name="sum"),
        helper.make_node("MaxPool", ["sum"], ["mp"], name="mp", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("AveragePool", ["sum"], ["ap"], name="ap", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Concat", ["mp", "ap"], ["both"], name="both", axis=1),
    ]
    nodes_left = [node for node in model.graph.node if node.name not in ("last", "last_relu")]
    next(node for node in nodes_left if node.name == "pool").input[0] = "both"
    at = [node.name for node in nodes_left].index("pool")
    del model.graph.node[:]
    model.graph.node.extend([*nodes_left[:at], *nodes, *nodes_left[at:]])
    return model


# ---- right ones


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"ending": "Softmax"},
        {"ending": "Sigmoid"},
        {"ending": "Sigmoid", "classes": 1},
        {"pool": "Flatten"},
        {"batch": 2},
        {"nhwc": True},
        {"opset": 13},
    ],
    ids=str,
)
def test_right_models_pass(kwargs: dict[str, Any]) -> None:
    model = onnxcam.augment(models.tiny_cnn(**kwargs), ["relu1", "relu2"])
    report = check(model, providers=CPU)
    assert report.passed and verdicts(report) == ["ok", "ok"], report.lines()


@pytest.mark.parametrize("target", ["optional", "required", 2])
def test_right_files_of_every_target_mode_pass(target: Any) -> None:
    report = check(onnxcam.augment(branching(), target=target), providers=CPU)
    assert report.passed and verdicts(report) == ["ok"], report.lines()


def test_a_plain_model_and_one_without_gradients_are_checked_too() -> None:
    for source in (models.tiny_cnn(), onnxcam.augment(models.tiny_cnn(), outputs="heatmap")):
        report = check(source, providers=CPU)
        assert report.passed and verdicts(report) == ["ok"]
        assert any("in memory" in line for line in report.lines())
    record = report.to_dict()
    assert record["passed"] and record["model"] == "tiny" and len(record["findings"]) == len(report.lines())


@pytest.mark.sample(2)
@pytest.mark.parametrize("seed", range(20))
def test_right_gradients_are_never_accused(seed: int) -> None:
    for source in (models.tiny_cnn(size=16, seed=seed), branching(16)):
        report = check(onnxcam.augment(source, ["relu1"]), providers=CPU, seed=seed, samples=2, directions=6)
        assert report.passed and verdicts(report) == ["ok"], report.lines()


# ---- wrong ones, planted in the file


def edited(edit: Callable[[Callable[..., str], str], str], layer: str = "relu1") -> onnx.ModelProto:
    """An explainable model whose output `gradients` is `edit(emit, right)`."""
    model = onnxcam.augment(branching(), [layer])
    last = next(node for node in model.graph.node if "gradients" in node.output)
    last.output[0] = "right"
    count = 0

    def emit(op_type: str, *inputs: str | np.ndarray, **attrs: Any) -> str:
        nonlocal count
        names = []
        for value in inputs:
            if isinstance(value, np.ndarray):
                count += 1
                model.graph.initializer.append(numpy_helper.from_array(value, f"planted{count}"))
                names.append(f"planted{count}")
            else:
                names.append(value)
        count += 1
        model.graph.node.append(helper.make_node(op_type, names, [f"wrong{count}"], name=f"wrong{count}", **attrs))
        return f"wrong{count}"

    result = edit(emit, "right")
    model.graph.node.append(helper.make_node("Identity", [result], ["gradients"], name="planted"))
    return model


def f32(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def keep(axis: int, every: int = 2) -> np.ndarray:
    """1 and 0 along one axis of [N, 6, 24, 24]."""
    shape = [1, 1, 1, 1]
    shape[axis] = {1: 6, 2: 24, 3: 24}[axis]
    mask = np.zeros(shape[axis], np.float32)
    mask[::every] = 1
    return mask.reshape(shape)


EDITS: dict[str, Callable[[Callable[..., str], str], str]] = {
    "sign": lambda op, g: op("Neg", g),
    "10 % too large": lambda op, g: op("Mul", g, f32(1.1)),
    "10 % too small": lambda op, g: op("Mul", g, f32(0.9)),
    "twice": lambda op, g: op("Add", g, g),
    "half of the channels zero": lambda op, g: op("Mul", g, keep(1)),
    "one channel in three left": lambda op, g: op("Mul", g, keep(1, 3)),
    "every other row zero": lambda op, g: op("Mul", g, keep(2)),
    "every other column zero": lambda op, g: op("Mul", g, keep(3)),
    "channels shifted by one": lambda op, g: op("Gather", g, np.array([5, 0, 1, 2, 3, 4]), axis=1),
    "upside down": lambda op, g: op("Gather", g, np.arange(23, -1, -1), axis=2),
    "mirrored": lambda op, g: op("Gather", g, np.arange(23, -1, -1), axis=3),
    "height and width swapped": lambda op, g: op("Transpose", g, perm=[0, 1, 3, 2]),
    "one pixel aside": lambda op, g: op("Gather", g, np.roll(np.arange(24), 1), axis=3),
    "pictures reversed": lambda op, g: op("Slice", g, np.array([-1]), np.array([-1000]), np.array([0]), np.array([-1])),
    "magnitudes": lambda op, g: op("Abs", g),
    "positive part": lambda op, g: op("Relu", g),
    "mean over positions": lambda op, g: op(
        "Expand", op("ReduceMean", g, np.array([2, 3]), keepdims=1), op("Shape", g)
    ),
    "mean over channels": lambda op, g: op("Expand", op("ReduceMean", g, np.array([1]), keepdims=1), op("Shape", g)),
    "times the activations": lambda op, g: op("Mul", g, "relu1"),
    "where the activations are positive": lambda op, g: op(
        "Mul", g, op("Cast", op("Greater", "relu1", f32(0.3)), to=onnx.TensorProto.FLOAT)
    ),
    "a constant added": lambda op, g: op("Add", g, f32(0.002)),
    "signs alone": lambda op, g: op("Mul", op("Sign", g), f32(0.01)),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", EDITS)
def test_a_wrong_gradient_in_the_file_is_found(name: str) -> None:
    report = check(edited(EDITS[name]), providers=CPU)
    assert not report.passed and verdicts(report) == ["failed"], report.lines()


# ---- wrong ones, planted in the rules

Change = Callable[[Any, Any, Any, Sequence[Any]], Sequence[Any]]


def plant(monkeypatch: pytest.MonkeyPatch, op_type: str, change: Change) -> list[int]:
    """Make a rule wrong: `change(op, node, dy, right)` is what it returns instead. Counts its uses."""
    calls: list[int] = []

    def wrong(entry: registry.Entry) -> registry.Entry:
        def rule(op: Any, node: Any, dy: Any) -> Any:
            calls.append(1)
            return change(op, node, dy, entry.rule(op, node, dy))

        return dataclasses.replace(entry, rule=rule)

    rules = [(low, high, wrong(entry)) for low, high, entry in registry._rules[op_type]]
    monkeypatch.setitem(registry._rules, op_type, rules)
    return calls


def scaled(factor: float) -> Change:
    return lambda op, node, dy, right: [None if dx is None else op.Mul(dx, factor) for dx in right]


def flipped_kernel(op: Any, node: Any, dy: Any, right: Sequence[Any]) -> Sequence[Any]:
    """A correlation with the kernel as it is, where the transpose needs it turned round and its channels swapped."""
    return [op.Conv(dy, node.inputs[1], pads=[1] * 4), *right[1:]]


def straight_through(op: Any, node: Any, dy: Any, right: Sequence[Any]) -> Sequence[Any]:
    return [dy]


def everywhere(op: Any, node: Any, dy: Any, right: Sequence[Any]) -> Sequence[Any]:
    return [op.Resize(dy, None, f32(1, 1, 2, 2), mode="nearest")]


RULES: dict[str, tuple[str, Change]] = {
    "Conv without the turned kernel": ("Conv", flipped_kernel),
    "Conv 10 % too large": ("Conv", scaled(1.1)),
    "Conv of the wrong sign": ("Conv", scaled(-1.0)),
    "BatchNormalization without its scale": ("BatchNormalization", straight_through),
    "Sigmoid straight through": ("Sigmoid", straight_through),
    "Mul without the path through the gate": ("Mul", lambda op, node, dy, right: [right[0], None]),
    "Mul without the direct path": ("Mul", lambda op, node, dy, right: [None, right[1]]),
    "Mul with its inputs swapped": ("Mul", lambda op, node, dy, right: [right[1], right[0]]),
    "Add without the shortcut": ("Add", lambda op, node, dy, right: [right[0], None]),
    "Add without the branch": ("Add", lambda op, node, dy, right: [None, right[1]]),
    "MaxPool to every element": ("MaxPool", everywhere),
    "AveragePool undivided": ("AveragePool", scaled(4.0)),
    "AveragePool dropped": ("AveragePool", lambda op, node, dy, right: [None]),
    "Concat with its parts swapped": ("Concat", lambda op, node, dy, right: [right[1], right[0]]),
    "GlobalAveragePool undivided": ("GlobalAveragePool", scaled(144.0)),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", RULES)
def test_a_wrong_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op_type, change = RULES[name]
    calls = plant(monkeypatch, op_type, change)
    model = onnxcam.augment(branching(), ["relu1"])
    assert calls
    report = check(model, providers=CPU)
    assert not report.passed and verdicts(report) == ["failed"], report.lines()


def test_a_relu_that_passes_everything_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plant(monkeypatch, "Relu", straight_through) == []
    report = check(onnxcam.augment(models.tiny_cnn(), ["relu1"]), providers=CPU)
    assert verdicts(report) == ["failed"], report.lines()


# ---- what else it says


def test_scores_that_changed_are_found() -> None:
    model = onnxcam.augment(models.tiny_cnn(ending="Softmax"))
    node = next(node for node in model.graph.node if "logits" in node.output)
    node.op_type = "Neg"
    assert not check(model, providers=CPU).passed


def test_a_negative_target_that_means_another_class_is_found() -> None:
    model = onnxcam.augment(models.tiny_cnn())
    node = next(node for node in model.graph.node if node.op_type == "ArgMax")
    node.op_type = "ArgMin"
    report = check(model, providers=CPU)
    assert verdicts(report) == ["ok"] and verdicts(report, "target") == ["failed"] and not report.passed
    assert verdicts(check(onnxcam.augment(models.tiny_cnn(), target=1), providers=CPU), "target") == []


def test_gradients_of_another_shape_are_found() -> None:
    flat = edited(lambda op, g: op("ReduceMean", g, np.array([2]), keepdims=1))
    with pytest.raises(
        onnxcam.OnnxcamError, match=r"manifest says that the gradients .* \['N', 6, 24, 24\], the graph has"
    ):
        check(flat, providers=CPU)

    def axis(op: Callable[..., str], g: str) -> str:
        """2, in a way that depends on the picture as far as shape inference knows."""
        nothing = op(
            "Cast", op("Greater", op("Abs", op("ReduceSum", g)), np.array(3e38, np.float32)), to=TensorProto.INT64
        )
        return op("Add", op("Reshape", nothing, np.array([1])), np.array([2]))

    report = check(edited(lambda op, g: op("ReduceMean", g, axis(op, g), keepdims=1)), providers=CPU)
    assert verdicts(report) == ["failed"], report.lines()
    assert any("their shape is [4, 6, 1, 24], that of the layer [4, 6, 24, 24]" in line for line in report.lines())


def test_maps_in_which_all_but_nothing_cancels_accuse_nobody() -> None:
    """Behind an instance normalisation the mean of a channel's gradient is rounding, and so is the map made of it."""
    source = models.tiny_cnn()
    node = next(node for node in source.graph.node if node.name == "last_relu")
    node.CopyFrom(helper.make_node("InstanceNormalization", ["conv2", "one", "b2"], ["relu2"], name="last_relu"))
    source.graph.initializer.append(numpy_helper.from_array(np.ones(16, np.float32), "one"))
    pool = next(node for node in source.graph.node if node.name == "pool")
    pool.CopyFrom(helper.make_node("GlobalMaxPool", ["relu2"], ["pooled"], name="pool"))
    report = check(onnxcam.augment(source, ["conv2"]), providers=CPU)
    assert report.passed and verdicts(report, "heatmaps") == ["ok"], report.lines()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda entries: entries["input"].update(shape=["N", 3, 32, 64]), "says that the input 'input' is"),
        (lambda entries: entries["input"].update(shape=[1 << 40, 3, 32, 32]), "too large to be fed"),
        (lambda entries: entries["input"].update(name="picture"), "the graph has no such input"),
        (
            lambda entries: entries["layers"][0].update(gradients="grads"),
            "names 'grads', which the graph does not output",
        ),
        (lambda entries: entries["scores"].update(name="scores"), "names 'scores', which"),
        (lambda entries: entries["layers"][0].update(value="gone"), "names 'gone', which the graph does not have"),
    ],
)
def test_a_manifest_of_another_graph_is_refused(edit: Callable[[Any], None], words: str) -> None:
    from onnxcam.network import manifest

    model = onnxcam.augment(models.tiny_cnn())
    entries = manifest.read(model)
    edit(entries)
    manifest.write(model, entries)
    with pytest.raises(ModelError, match=words):
        check(model, providers=CPU)
    if "does not have" not in words:
        with pytest.raises(ModelError, match=words):
            onnxcam.Explainer(model, providers=CPU)


def test_heatmaps_are_looked_at() -> None:
    model = onnxcam.augment(models.tiny_cnn())
    node = next(node for node in model.graph.node if "heatmap" in node.output)
    node.op_type = "Neg"
    report = check(model, providers=CPU)
    assert verdicts(report, "heatmaps") == ["failed"] and not report.passed


def test_parity_above_its_tolerance_fails() -> None:
    from onnxcam.network import manifest

    model = onnxcam.augment(models.tiny_cnn())
    entries = manifest.read(model)
    assert entries is not None
    for value, passed in ((1e-4, True), (1e-2, False)):
        entries["parity"] = {"against": "x", "samples": 4, "scores": 0.0, "gradients": value, "tolerance": 1e-3}
        manifest.write(model, entries)
        assert check(model, providers=CPU).passed is passed


def test_what_finite_differences_cannot_settle_is_unsure() -> None:
    model = models.tiny_cnn()
    weights = next(t for t in model.graph.initializer if t.name == "w3")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(1e-7), "w3"))
    bias = next(t for t in model.graph.initializer if t.name == "b3")
    bias.CopyFrom(numpy_helper.from_array(np.full(5, 100, np.float32), "b3"))
    report = check(onnxcam.augment(model), providers=CPU)
    assert verdicts(report) == ["unsure"] and report.passed, report.lines()


@pytest.mark.slow
def test_seeds_fix_the_verdict() -> None:
    model = onnxcam.augment(models.tiny_cnn())
    a, b = (check(model, providers=CPU, seed=3).to_dict() for _ in range(2))
    assert a == b
    assert a != check(model, providers=CPU, seed=4).to_dict()


def test_a_gradient_that_is_zero_where_the_scores_do_change_is_found() -> None:
    report = check(edited(lambda op, g: op("Mul", g, f32(0))), providers=CPU)
    assert verdicts(report) == ["failed"], report.lines()


def test_a_value_that_only_the_scores_read_is_passed_on() -> None:
    """A branch is added behind the target layer: the scores need it, the gradient of a fixed class does not."""
    source = models.tiny_cnn()
    nodes = list(source.graph.node)
    pool = next(node for node in nodes if node.name == "pool")
    pool.input[0] = "joined"
    at = nodes.index(pool)
    source.graph.node.insert(at, helper.make_node("Sigmoid", ["conv2"], ["branch"]))
    source.graph.node.insert(at + 1, helper.make_node("Add", ["relu2", "branch"], ["joined"]))
    report = check(onnxcam.augment(source, ["relu2"], target=2), providers=CPU)
    assert verdicts(report) == ["ok"], report.lines()


def test_pooling_windows_that_are_all_zero_accuse_nobody() -> None:
    """Behind a ReLU most windows of a dim picture are 0 everywhere, where the maximum has no derivative."""
    source = models.tiny_cnn()
    for name in ("b1", "b2"):
        tensor = next(t for t in source.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) - np.float32(1), name))
    nodes = list(source.graph.node)
    pool = next(node for node in nodes if node.name == "pool")
    pool.input[0] = "largest"
    source.graph.node.insert(
        nodes.index(pool), helper.make_node("MaxPool", ["relu2"], ["largest"], kernel_shape=[2, 2], strides=[2, 2])
    )
    report = check(onnxcam.augment(source, ["relu2"]), providers=CPU)
    assert report.passed and verdicts(report) == ["ok"], report.lines()


def test_coupled_rows_are_checked_one_by_one() -> None:
    """Statistics over the batch behind the layer: in a batch of noise the gradient of a row is that of all scores."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N, 3, 12, 12] x) => (float[N, 4] y) {\n'
        "c = Conv(x, k) mean = ReduceMean(c, axes) d = Sub(c, mean) square = Mul(d, d) v = ReduceMean(square, axes)\n"
        "e = Add(v, small) s = Sqrt(e) n = Div(d, s) r = Relu(n) p = GlobalAveragePool(r) f = Flatten(p)\n"
        "y = MatMul(f, w) }"
    )
    rng = np.random.default_rng(0)
    arrays = {
        "k": rng.normal(size=(6, 3, 3, 3)).astype(np.float32) / 3,
        "w": rng.normal(size=(6, 4)).astype(np.float32),
        "small": np.float32([1e-5]),
        "axes": np.int64([0, 2, 3]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    report = check(model, providers=CPU)
    assert report.passed, report.lines()
    assert any(finding.name == "rows" and "depend on the others" in finding.detail for finding in report.findings)
