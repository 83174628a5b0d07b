"""Gradients of the normalization operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import onnxcam
from onnxcam.errors import UnsupportedOperator
from tests.autodiff.harness import build, check, covers, gradients, normal
from tests.support.runtime import run

SHAPES = ("static", "batch", "spatial", "all")


def positive(*shape: int) -> np.ndarray:
    return np.asarray(np.abs(normal(*shape)) + np.float32(0.5))


@covers("BatchNormalization")
def test_batch_normalization() -> None:
    for shape in ((3, 4), (2, 3, 4), (2, 3, 2, 4), (1, 2, 2, 2, 3)):
        channels = shape[1]
        check(
            "y = BatchNormalization<epsilon=0.1>(x, s, b, m, v)",
            {"x": normal(*shape)},
            {
                "s": normal(channels, seed=1),
                "b": normal(channels, seed=2),
                "m": normal(channels, seed=3),
                "v": positive(channels),
            },
            wrt=["x", "s", "b", "m", "v"],
            free=(*SHAPES, "rank"),
            reference=lambda x, s, b, m, v: torch.nn.functional.batch_norm(x, m, v, s, b, eps=0.1),
        )


def test_batch_normalization_in_training_is_refused() -> None:
    body = "y, m2, v2 = BatchNormalization<training_mode=1>(x, s, b, m, v)"
    ones = np.ones(2, np.float32)
    model = build(body, {"x": normal(2, 2, 3, 3)}, {"s": ones, "b": ones, "m": ones, "v": ones})
    with pytest.raises(UnsupportedOperator, match="training mode"):
        onnxcam.gradient(model, of="y", wrt=["x"])


def layer_norm(x: torch.Tensor, s: torch.Tensor, b: torch.Tensor | float = 0.0, axis: int = -1) -> torch.Tensor:
    axes = tuple(range(axis % x.ndim, x.ndim))
    return (x - x.mean(axes, keepdim=True)) / (x.var(axes, correction=0, keepdim=True) + 0.1).sqrt() * s + b


@covers("LayerNormalization")
@pytest.mark.parametrize("axis", [-1, -2, 1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_normalization(axis: int, bias: bool) -> None:
    shape = (2, 3, 4)
    constants = {"s": normal(*shape[axis:], seed=1)} | ({"b": normal(*shape[axis:], seed=2)} if bias else {})
    check(
        f"y = LayerNormalization<axis={axis}, epsilon=0.1>({', '.join(['x', *constants])})",
        {"x": normal(*shape)},
        constants,
        wrt=["x", *constants],
        free=(*SHAPES, "rank"),
        reference=lambda **tensors: layer_norm(**tensors, axis=axis),
    )


@pytest.mark.parametrize("of", ["m", "r", "y"])
def test_layer_normalization_whose_mean_and_deviation_are_read(of: str) -> None:
    body = "z, m, r = LayerNormalization<axis=1, epsilon=0.1>(x, s) y = Sum(z, m, r)"

    def reference(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2), keepdim=True)
        inverse = 1 / torch.sqrt(((x - mean) ** 2).mean((1, 2), keepdim=True) + 0.1)
        return {"m": mean, "r": inverse, "y": (x - mean) * inverse * s + mean + inverse}[of]

    check(body, {"x": normal(2, 3, 4)}, {"s": normal(3, 4, seed=1)}, of=of, reference=reference)


def test_layer_normalization_passes_its_own_epsilon_on() -> None:
    """The default 1e-5 matters where the variance is as small."""
    check(
        "y = LayerNormalization(x, s)",
        {"x": normal(3, 4) * np.float32(0.003)},
        {"s": normal(4)},
        wrt=["x"],
        reference=lambda x, s: torch.nn.functional.layer_norm(x, (4,), s, eps=1e-5),
        tolerance=1e-4,
    )


def rms_norm(x: torch.Tensor, s: torch.Tensor, axis: int) -> torch.Tensor:
    return x / (x.square().mean(tuple(range(axis % x.ndim, x.ndim)), keepdim=True) + 0.1).sqrt() * s


@covers("RMSNormalization")
@pytest.mark.parametrize("axis", [-1, 1])
def test_rms_normalization(axis: int) -> None:
    check(
        f"y = RMSNormalization<axis={axis}, epsilon=0.1>(x, s)",
        {"x": normal(2, 3, 4)},
        {"s": normal(*(2, 3, 4)[axis:])},
        wrt=["x", "s"],
        opset=23,
        free=SHAPES,
        reference=lambda x, s: rms_norm(x, s, axis),
    )


@covers("InstanceNormalization")
def test_instance_normalization() -> None:
    for shape in ((2, 3, 4), (2, 2, 3, 3), (1, 2, 2, 2, 3)):
        check(
            "y = InstanceNormalization<epsilon=0.1>(x, s, b)",
            {"x": normal(*shape)},
            {"s": normal(shape[1], seed=1), "b": normal(shape[1], seed=2)},
            wrt=["x", "s", "b"],
            free=SHAPES,
            reference=lambda x, s, b: torch.nn.functional.instance_norm(x, weight=s, bias=b, eps=0.1),
        )


@covers("GroupNormalization")
@pytest.mark.parametrize("opset", [21, 22])
@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 6, 2, 2)])
def test_group_normalization(opset: int, shape: tuple[int, ...]) -> None:
    check(
        "y = GroupNormalization<num_groups=2, epsilon=0.1>(x, s, b)",
        {"x": normal(*shape)},
        {"s": normal(shape[1], seed=1), "b": normal(shape[1], seed=2)},
        wrt=["x", "s", "b"],
        opset=opset,
        free=("static", "batch", "spatial"),
        reference=lambda x, s, b: torch.nn.functional.group_norm(x, 2, s, b, eps=0.1),
    )


@covers("MeanVarianceNormalization")
@pytest.mark.parametrize("axes", [[0, 2, 3], [1, 3]])
def test_mean_variance_normalization(axes: list[int]) -> None:
    check(
        f"y = MeanVarianceNormalization<axes=[{', '.join(map(str, axes))}]>(x)",
        {"x": normal(2, 3, 3, 2)},
        free=SHAPES,
        reference=lambda x: (x - x.mean(axes, keepdim=True)) / x.std(axes, correction=0, keepdim=True),
    )


def test_mean_variance_normalization_over_the_default_axes() -> None:
    """Apart from `check`: onnx 1.23's full checker trips over the node's default."""
    feeds = {"x": normal(2, 3, 3, 2), "cotangent.y": normal(2, 3, 3, 2, seed=1)}
    explicit, default = (
        run(onnxcam.gradient(build(f"y = {node}(x)", {"x": feeds["x"]}), "y", ["x"]), feeds)["grad.x"]
        for node in ("MeanVarianceNormalization<axes=[0, 2, 3]>", "MeanVarianceNormalization")
    )
    np.testing.assert_array_equal(explicit, default)


@covers("LpNormalization")
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_lp_normalization(p: int, axis: int) -> None:
    check(
        f"y = LpNormalization<p={p}, axis={axis}>(x)",
        {"x": normal(2, 3, 4)},
        free=SHAPES,
        reference=lambda x: torch.nn.functional.normalize(x, p, axis),
    )


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization_of_zeros_passes_nothing_back(p: int) -> None:
    x = np.zeros((2, 3), np.float32)
    [dx] = gradients(build(f"y = LpNormalization<p={p}>(x)", {"x": x}), {"x": x}, np.ones_like(x), ["x"])
    np.testing.assert_array_equal(dx, x)


def local_response(size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def reference(x: torch.Tensor) -> torch.Tensor:
        channels = range(x.shape[1])
        windows = [[j for j in channels if c - (size - 1) // 2 <= j <= c + size // 2] for c in channels]
        sums = torch.stack([x[:, js].square().sum(1) for js in windows], 1)
        return x / (2 + 0.5 / size * sums) ** 0.7

    return reference


@covers("LRN")
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", [(2, 6, 2, 3), (1, 4, 2, 2)])
def test_lrn(size: int, shape: tuple[int, ...]) -> None:
    check(
        f"y = LRN<size={size}, alpha=0.5, beta=0.7, bias=2.0>(x)",
        {"x": normal(*shape)},
        free=SHAPES,
        reference=local_response(size),
    )


@pytest.mark.parametrize("size", [2, 4])
def test_lrn_of_even_sizes(size: int) -> None:
    """ONNX Runtime's CPU kernel takes odd sizes only: the emitted part runs by itself, given the node's output."""
    x, cotangent = normal(1, 6, 2, 2), normal(1, 6, 2, 2, seed=1)
    leaf = torch.from_numpy(x).double().requires_grad_()
    y = local_response(size)(leaf)
    y.backward(torch.from_numpy(cotangent).double())
    model = onnxcam.gradient(build(f"y = LRN<size={size}, alpha=0.5, beta=0.7, bias=2.0>(x)", {"x": x}), "y", ["x"])
    assert model.graph.node.pop(0).op_type == "LRN"
    model.graph.input.append(model.graph.output.pop(0))
    feeds = {"x": x, "y": y.detach().float().numpy(), "cotangent.y": cotangent}
    dx = run(model, feeds)["grad.x"]
    assert leaf.grad is not None
    np.testing.assert_allclose(dx, leaf.grad.numpy(), atol=1e-6)
