"""Planted dead channels are found, and no picture contradicts a bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import inside
from onnxcam.errors import LayerError, PictureError
from onnxcam.graph.normalize import prepare
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.inside import dead_channels
from onnxcam.inside.intervals import Bounds, Interval
from tests.cli.conftest import RAW, Run
from tests.inside import nets
from tests.inside.nets import conv, node, normal
from tests.support import models
from tests.support.batches import picture

LITE0 = Path(__file__).parents[2] / "models" / "efficientnet_lite0.onnx"
PLANTED = {"b1": [0, 5], "b2": [3, 7, 15]}


def planted(**options: Any) -> onnx.ModelProto:
    """A tiny CNN of whose channels some are pushed below 0 for pictures of 0 to 1, not of 0 to 255."""
    model = models.tiny_cnn(**options)
    for tensor in model.graph.initializer:
        if tensor.name in PLANTED:
            bias = onnx.numpy_helper.to_array(tensor).copy()
            bias[PLANTED[tensor.name]] = -100
            tensor.CopyFrom(onnx.numpy_helper.from_array(bias, tensor.name))
    return model


def opened(model: onnx.ModelProto, preprocess: Any = RAW) -> onnxcam.Explainer:
    return onnxcam.Explainer(model, preprocess=preprocess, probe=False, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("nhwc", [False, True])
def test_planted_dead_channels_are_all_proven(nhwc: bool) -> None:
    first, second = inside.dead(opened(planted(nhwc=nhwc)), [picture(seed=k) for k in range(3)])
    for one, name in ((first, "b1"), (second, "b2")):
        assert one.n == 3 and set(PLANTED[name]) <= set(one.observed)
        assert list(one.proven) == PLANTED[name] and one.bounded


def test_what_some_picture_can_revive_is_not_proven() -> None:
    weights, bias = np.ones((2, 3, 1, 1), np.float32), np.array([-2.9, -3.1], np.float32)
    nodes = [conv("input", "w", "conv", bias="b"), node("Relu", ["conv"], "last")]
    explainer = opened(nets.classifier(nodes, width=2, w=weights, b=bias))
    black, white = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    (dark,) = inside.dead(explainer, [black], "last")
    (light,) = inside.dead(explainer, [black, white], "last")
    assert (dark.observed, dark.proven, dark.n) == ((0, 1), (1,), 1)
    assert (light.observed, light.proven, light.n) == ((1,), (1,), 2)


def test_nothing_is_proven_where_the_range_is_not_known() -> None:
    tensor = normal(1, 3, 32, 32)
    every = inside.dead(opened(planted(), None), [tensor])
    assert [set(one.proven) for one in every] == [set(), set()]
    assert not every[0].bounded and set(PLANTED["b1"]) <= set(every[0].observed)


def test_tensors_outside_the_range_widen_it() -> None:
    tensor = np.full((1, 3, 32, 32), 1000.0, np.float32)
    weights, bias = np.ones((1, 3, 1, 1), np.float32), np.array([-5.0], np.float32)
    nodes = [conv("input", "w", "conv", bias="b"), node("Relu", ["conv"], "last")]
    explainer = opened(nets.classifier(nodes, width=1, w=weights, b=bias))
    (alive,) = inside.dead(explainer, [tensor], "last")
    assert (alive.observed, alive.proven) == ((), ())


def test_a_proven_channel_stays_dead_in_its_worst_picture() -> None:
    """The bound of a first convolution is reached by the picture of the signs of its weights."""
    weights = normal(4, 3, 3, 3)
    reach = np.maximum(weights, 0).sum(axis=(1, 2, 3))
    for excess, provable in ((1e-3, True), (-1e-3, False)):
        bias = (-reach - excess).astype(np.float32)
        nodes = [conv("input", "w", "conv", bias="b"), node("Relu", ["conv"], "last")]
        model = nets.classifier(nodes, (4, 3), width=4, w=weights, b=bias)
        explainer = opened(model, RAW | {"resize": None})
        worst = np.zeros((4, 4, 3, 3), np.uint8)
        worst[:, :3] = np.where(weights > 0, 255, 0).transpose(0, 2, 3, 1)
        (one,) = inside.dead(explainer, list(worst), "last")
        assert one.observed == one.proven == ((0, 1, 2, 3) if provable else ())


OPERATORS: dict[str, tuple[Sequence[onnx.NodeProto], dict[str, np.ndarray]]] = {
    "activations": (
        [
            node("LeakyRelu", ["c"], "a0", alpha=0.2), node("Elu", ["a0"], "a1"), node("Selu", ["a1"], "a2"),
            node("Sigmoid", ["a2"], "a3"), node("Mul", ["a2", "a3"], "a4"), node("HardSigmoid", ["a4"], "a5"),
            node("HardSwish", ["a4"], "a6"), node("Softplus", ["a6"], "a7"), node("Tanh", ["a7"], "a8"),
            node("Clip", ["a4", "low", "high"], "a9"), node("PRelu", ["a9", "slope"], "a10"),
            node("Add", ["a8", "a10"], "a11"), node("Sub", ["a11", "a5"], "a12"), node("Mish", ["a12"], "a13"),
            node("Erf", ["a13"], "a14"), node("Abs", ["a14"], "a15"), node("Exp", ["a14"], "a16"),
            node("Div", ["a15", "a16"], "a17"), node("Max", ["a17", "a12"], "a18"), node("Neg", ["a18"], "last"),
        ],
        {"low": np.float32(-1).reshape(()), "high": np.float32(2).reshape(()), "slope": normal(6, 1, 1)},
    ),
    "pools": (
        [
            node("MaxPool", ["c"], "p0", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("AveragePool", ["p0"], "p1", kernel_shape=[2, 2], strides=[2, 2]),
            node("AveragePool", ["p1"], "p2", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
            node("GlobalAveragePool", ["p2"], "p3"), node("Mul", ["p2", "p3"], "p4"),
            node("ReduceMean", ["p4", "axes"], "p5"), node("ReduceMax", ["p4", "axes"], "p6"),
            node("Add", ["p5", "p6"], "p7"), node("Mul", ["p4", "p7"], "last"),
        ],
        {"axes": np.array([1], np.int64)},
    ),
    "normalisations": (
        [
            node("BatchNormalization", ["c", "s", "b", "m", "v"], "n0"),
            node("InstanceNormalization", ["n0", "s", "b"], "n1"),
            node("Transpose", ["n1"], "n2", perm=[0, 2, 3, 1]), node("LayerNormalization", ["n2", "s", "b"], "n3"),
            node("MatMul", ["n3", "square"], "n4"), node("Softmax", ["n4"], "n5"), node("Mul", ["n4", "n5"], "n6"),
            node("Transpose", ["n6"], "last", perm=[0, 3, 1, 2]),
        ],
        {"s": normal(6, seed=1), "b": normal(6, seed=2), "m": normal(6, seed=3), "v": np.abs(normal(6, seed=4)) + 0.1,
         "square": normal(6, 6, seed=5)},
    ),
    "moves": (
        [
            node("Pad", ["c", "pads", "value"], "m0"), node("Slice", ["m0", "begin", "end", "axes"], "m1"),
            onnx.helper.make_node("Split", ["m1"], ["m2", "m2b"], "m2/node", axis=1, num_outputs=2),
            node("Concat", ["m2b", "m1", "m2"], "m3", axis=1),
            node("SpaceToDepth", ["m3"], "m4", blocksize=2), node("DepthToSpace", ["m4"], "m5", blocksize=2),
            node("Resize", ["m5", "", "scales"], "m6", mode="linear"),
            node("Reshape", ["m6", "shape"], "m7"), node("Transpose", ["m7"], "m8", perm=[0, 2, 1]),
            node("Add", ["m8", "places"], "m9"), node("MatMul", ["m9", "nine"], "m10"),
            node("Transpose", ["m10"], "m11", perm=[0, 2, 1]), node("Reshape", ["m11", "back"], "last"),
        ],
        {"pads": np.array([0, 0, 1, 0, 0, 0, 1, 2], np.int64), "value": np.float32(3).reshape(()),
         "begin": np.array([1], np.int64), "end": np.array([9], np.int64), "axes": np.array([2], np.int64),
         "scales": np.array([1, 1, 2, 1.5], np.float32), "shape": np.array([0, 9, 384], np.int64),
         "places": normal(1, 384, 9), "nine": normal(9, 6), "back": np.array([0, 6, 16, 24], np.int64)},
    ),
    "transposed": (
        [
            conv("c", "grouped", "t0", group=2, pads=[1, 1, 1, 1], dilations=[1, 1]),
            conv("t0", "up", "t1", op="ConvTranspose", strides=[2, 2], group=3), node("Relu", ["t1"], "t2"),
            conv("t2", "depth", "last", group=6, strides=[2, 2]),
        ],
        {"grouped": normal(6, 3, 3, 3), "up": normal(6, 2, 3, 3), "depth": normal(6, 1, 3, 3)},
    ),
    "quantised": (
        [
            node("QuantizeLinear", ["c", "scale", "zero"], "q0"),
            node("DequantizeLinear", ["q0", "scale", "zero"], "q1"),
            node("DequantizeLinear", ["stored", "scales"], "q2", axis=0), conv("q1", "q2", "q3"),
            node("Relu", ["q3"], "last"),
        ],
        {"scale": np.float32(0.05).reshape(()), "zero": np.uint8(120).reshape(()),
         "stored": np.random.default_rng(0).integers(-127, 127, (6, 6, 1, 1), np.int8),
         "scales": np.full(6, 0.01, np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_every_value_lies_within_its_bounds(name: str) -> None:
    nodes, weights = OPERATORS[name]
    body = [conv("input", "w", "c", bias="bias"), *nodes]
    model = nets.classifier(body, (8, 10), width=6, w=normal(6, 3, 1, 1), bias=normal(6, seed=9), **weights)
    graph = prepare(model)
    names = [output for one in graph.nodes for output in one.output if output and not graph.is_constant(output)]
    shapes = StaticShapes(graph, {"input": (4, 3, 8, 10)})
    low, high = np.array([-1.0, 0, -3]).reshape(1, 3, 1, 1), np.array([2.0, 0.5, 4]).reshape(1, 3, 1, 1)
    bounds = Bounds(graph, shapes, ("input", Interval.of(low, high)), names)
    rng = np.random.default_rng(0)
    for _ in range(10):
        batch = rng.uniform(low, high, (4, 3, 8, 10))
        batch[2:] = np.where(rng.random((2, 3, 8, 10)) < 0.5, low, high)
        computed = nets.values(graph.model, batch.astype(np.float32), names)
        for value, array in computed.items():
            interval = bounds.interval(value)
            assert (array >= interval.low).all() and (array <= interval.high).all(), (
                value,
                graph.producer[value].op_type,
            )
    bounded = [value for value in names if np.isfinite(bounds.interval(value).high).all()]
    assert set(bounded) == set(names), "an operator of these lost its bounds"


def test_unknown_operators_are_unbounded_and_what_follows_is_not_proven() -> None:
    nodes = [conv("input", "w", "c"), node("LRN", ["c"], "odd", size=3), node("Relu", ["odd"], "last")]
    (one,) = inside.dead(opened(nets.classifier(nodes, width=6, w=normal(6, 3, 1, 1))), [picture()], "last")
    assert one.proven == () and not one.bounded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "layers"), [(8, (1, 5, 9)), pytest.param(10_000, (1, 5, 9, 13, 19, 27, 31), marks=pytest.mark.soak)]
)
def test_no_random_picture_contradicts_a_proof(count: int, layers: tuple[int, ...]) -> None:
    """EfficientNet-Lite0 has dead channels of its own, some of them provably so."""
    explainer = onnxcam.Explainer(str(LITE0), providers=["CPUExecutionProvider"])
    names = [f"hardtanh_{k}" for k in layers]
    assert explainer.preprocess is not None
    low, high = (end.reshape(1, -1, 1, 1) for end in explainer.preprocess.range)
    upper = dead_channels.upper_bounds(explainer, names, (1, 3, 224, 224))
    proven = {name: np.flatnonzero(upper[name] <= 0) for name in names}
    assert sum(map(len, proven.values())) >= 7
    rng = np.random.default_rng(0)
    for number in range(0, count, 4):
        kind = number // 4 % 4
        cells = (224, 224) if kind < 2 else (7, 7) if kind == 2 else (28, 28)
        levels = rng.integers(0, 256, (4, 3, *cells)) if kind != 1 else rng.integers(0, 2, (4, 3, *cells)) * 255
        shares = np.kron(levels / 255, np.ones((1, 1, 224 // cells[0], 224 // cells[1])))
        tensor = (low + (high - low) * shares).astype(np.float32)
        for name, (_, highest) in dead_channels._ends(explainer, tensor, names).items():
            assert (highest <= upper[name]).all(), name
            assert (highest[proven[name]] <= 0).all(), name


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_no_random_picture_revives_a_planted_channel(count: int) -> None:
    explainer = opened(planted())
    rng = np.random.default_rng(0)
    upper = dead_channels.upper_bounds(explainer, ["relu1", "relu2"], (1, 3, 32, 32))
    for start in range(0, count, 500):
        batch = rng.random((500, 3, 32, 32), np.float32)
        batch = np.rint(batch) if start % 1_000 else batch
        for (name, (_, highest)), biases in zip(
            dead_channels._ends(explainer, batch, ["relu1", "relu2"]).items(), PLANTED.values(), strict=True
        ):
            assert np.flatnonzero(upper[name] <= 0).tolist() == biases
            assert (highest <= upper[name]).all() and (highest[biases] <= 0).all()


def test_bad_questions_are_one_sentence(run: Run, tmp_path: Path, plain: Path) -> None:
    with pytest.raises(PictureError, match="no pictures"):
        inside.dead(opened(planted()), [])
    with pytest.raises(LayerError, match="nearest"):
        inside.dead(opened(planted()), [picture()], "relu7")
    (tmp_path / "empty").mkdir()
    assert "no pictures in it" in run("inside", "dead", plain, tmp_path / "empty", "--preprocess", "0..1").sentence


def test_the_command_tells_observed_from_proven(run: Run, tmp_path: Path) -> None:
    onnx.save(onnxcam.augment(planted(), preprocess=RAW, probe=False), tmp_path / "model.onnx")
    onnxcam.image.write_png(tmp_path / "cat.png", picture())
    result = run("inside", "dead", tmp_path / "model.onnx", tmp_path / "cat.png")
    assert result.code == 0, result.err
    assert "on 1 picture;" in result.out and "[0]" in result.out and "[15]" in result.out
    record = run("inside", "dead", tmp_path / "model.onnx", tmp_path / "cat.png", "--json").json()
    assert [layer["proven"] for layer in record["layers"]] == list(PLANTED.values()) and record["n"] == 1
