"""Gradients of element-wise operators; at kinks and ties they must agree with torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import onnxcam
from onnxcam.errors import ModelError, UnsupportedOperator
from tests.autodiff.harness import build, check, covers, distinct, gradients, normal
from tests.support.examples import examples

FREE = ("static", "batch", "all")
F = torch.nn.functional


def positive(*shape: int, seed: int = 0) -> np.ndarray:
    return np.abs(distinct(*shape, seed=seed))


def at(body: str, *values: Any, opset: int = 20, constants: dict[str, np.ndarray] | None = None) -> list[list[float]]:
    """The gradients of the inputs a, b, ... at given points, for a cotangent of ones."""
    feeds = {name: np.asarray(v, dtype=np.float32) for name, v in zip("abcd", values, strict=False)}
    model = build(body, feeds, constants, opset=opset)
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    return [g.tolist() for g in gradients(model, feeds, np.ones(shape, np.float32), list(feeds))]


def torch_at(f: Callable[..., torch.Tensor], *values: Any) -> list[list[float]]:
    tensors = [torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in values]
    return [g.tolist() for g in torch.autograd.grad(f(*tensors).sum(), tensors)]


SMOOTH: dict[str, tuple[str, np.ndarray]] = {
    "Relu": ("", distinct(2, 3, 4)),
    "Sigmoid": ("", 2 * normal(2, 3, 4)),
    "HardSwish": ("", 3 * distinct(3, 3, 7)),
    "Mish": ("", 3 * normal(3, 3, 4)),
    "Tanh": ("", normal(2, 3, 4)),
    "Erf": ("", normal(2, 3, 4)),
    "Softplus": ("", 3 * normal(2, 3, 4)),
    "Softsign": ("", 3 * distinct(2, 3, 4)),
    "Sqrt": ("", positive(2, 3, 4)),
    "Exp": ("", normal(2, 3, 4)),
    "Log": ("", positive(2, 3, 4)),
    "Neg": ("", normal(2, 3, 4)),
    "Abs": ("", distinct(2, 3, 4)),
    "Reciprocal": ("", 0.5 + positive(2, 3, 4)),
    "Sin": ("", 3 * normal(2, 3, 4)),
    "Cos": ("", 3 * normal(2, 3, 4)),
    "Identity": ("", normal(2, 3, 4)),
    "Dropout": ("", normal(2, 3, 4)),
    "Gelu": ("", 2 * normal(2, 3, 4)),
    "Tan": ("", 0.4 * normal(2, 3, 4)),
    "Asin": ("", np.tanh(distinct(2, 3, 4))),
    "Acos": ("", np.tanh(distinct(2, 3, 4))),
    "Atan": ("", 2 * normal(2, 3, 4)),
    "Sinh": ("", normal(2, 3, 4)),
    "Cosh": ("", normal(2, 3, 4)),
    "Atanh": ("", np.tanh(distinct(2, 3, 4))),
    "Asinh": ("", 2 * normal(2, 3, 4)),
    "Acosh": ("", 1.1 + np.abs(distinct(2, 3, 4))),
    "Shrink": ("<lambd=0.7, bias=0.3>", distinct(2, 3, 4)),
}
REFERENCES: dict[str, Callable[..., Any]] = {
    "Mish": lambda x: F.mish(x),
    "Erf": lambda x: torch.erf(x),  # in float32 in onnx's evaluator
    "Gelu": lambda x: F.gelu(x),
    "Dropout": lambda x: x,
}


def _smooth(op_type: str) -> None:
    attributes, x = SMOOTH[op_type]
    check(f"y = {op_type}{attributes}(x)", {"x": x}, opset=20, free=FREE, reference=REFERENCES.get(op_type))


CASES = {op_type: covers(op_type)(functools.partial(_smooth, op_type)) for op_type in SMOOTH}


@pytest.mark.parametrize("op_type", CASES)
def test_unary(op_type: str) -> None:
    CASES[op_type]()


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_unary_in_other_opsets(opset: int) -> None:
    for op_type in SMOOTH.keys() - {"Gelu", "Dropout", "Asin", "Acos", "Atanh", "Acosh"}:
        x = positive(2, 3) + 0.5
        check(f"y = {op_type}(x)", {"x": x}, opset=opset, free=("batch",), reference=REFERENCES.get(op_type))


@covers("Swish")
@pytest.mark.parametrize("attribute", ["", "<alpha=0.5>", "<alpha=-1.7>"])
def test_swish(attribute: str) -> None:
    check(f"y = Swish{attribute}(x)", {"x": 2 * normal(2, 3, 4)}, opset=24, free=FREE)


@covers("Gelu")
def test_gelu_by_tanh() -> None:
    x = 2 * normal(3, 9)
    check('y = Gelu<approximate="tanh">(x)', {"x": x}, opset=20, reference=lambda x: F.gelu(x, approximate="tanh"))


SATURATED = [-1e4, -88.0, -20.0, 0.0, 20.0, 88.0, 1e4]


@pytest.mark.parametrize(
    ("body", "f"),
    [
        ("y = Gelu(a)", F.gelu),
        ('y = Gelu<approximate="tanh">(a)', functools.partial(F.gelu, approximate="tanh")),
        ("y = Mish(a)", F.mish),
        ("y = Softplus(a)", functools.partial(F.softplus, threshold=1000)),
        ("y = Softsign(a)", F.softsign),
        ("y = HardSwish(a)", F.hardswish),
        ("y = Elu(a)", F.elu),
        ("y = Elu<alpha=2.0>(a)", functools.partial(F.elu, alpha=2.0)),
        ("y = Selu(a)", F.selu),
        ("y = Celu<alpha=0.5>(a)", functools.partial(F.celu, alpha=0.5)),
        ("y = Sigmoid(a)", torch.sigmoid),
        ("y = Tanh(a)", torch.tanh),
        ("y = Erf(a)", torch.erf),
    ],
)
def test_saturated(body: str, f: Callable[..., torch.Tensor]) -> None:
    [actual], [expected] = at(body, SATURATED), torch_at(f, SATURATED)
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("body", "f", "points"),
    [
        ("y = Relu(a)", F.relu, [-1, 0, 1]),
        ("y = LeakyRelu<alpha=0.3>(a)", functools.partial(F.leaky_relu, negative_slope=0.3), [-1, 0, 1]),
        ("y = ThresholdedRelu<alpha=1.0>(a)", lambda x: F.threshold(x, 1.0, 0.0), [0, 1, 2]),
        ("y = Clip(a, lo, hi)", lambda x: F.hardtanh(x, 0.0, 6.0), [-1, 0, 3, 6, 7]),
        ("y = HardSigmoid<alpha=0.16666667, beta=0.5>(a)", F.hardsigmoid, [-4, -3, 0, 3, 4]),
        ("y = HardSwish(a)", F.hardswish, [-4, -3, 0, 3, 4]),
        ("y = Elu(a)", F.elu, [-1, 0, 1]),
        ("y = Elu<alpha=0.7>(a)", functools.partial(F.elu, alpha=0.7), [-1, 0, 1]),
        ("y = Abs(a)", torch.abs, [-1, 0, 1]),
    ],
)
def test_kinks_as_in_torch(body: str, f: Callable[..., torch.Tensor], points: list[float]) -> None:
    constants = {"lo": np.float32(0), "hi": np.float32(6)} if "lo" in body else None
    np.testing.assert_allclose(at(body, points, constants=constants), torch_at(f, points), rtol=1e-5, atol=1e-7)


SCALES = st.sampled_from([-0.7, 0.0, 0.01, 0.4, 1.0, 1.7])


@covers("LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid")
@examples(50)
@given(alpha=SCALES, beta=st.sampled_from([0.3, 0.5, 1.2]))
def test_activations_with_attributes(alpha: float, beta: float) -> None:
    x = distinct(3, 11) * 1.37
    check(f"y = LeakyRelu<alpha={alpha}>(x)", {"x": x})
    check(f"y = Elu<alpha={alpha}>(x)", {"x": x}, reference=lambda x: torch.where(x > 0, x, alpha * torch.expm1(x)))
    check(
        f"y = Selu<alpha={alpha}, gamma={beta}>(x)",
        {"x": x},
        reference=lambda x: beta * torch.where(x > 0, x, alpha * torch.expm1(x)),
    )
    check(f"y = Celu<alpha={beta}>(x)", {"x": x}, reference=lambda x: F.celu(x, beta))
    check(f"y = ThresholdedRelu<alpha={alpha + 0.01}>(x)", {"x": x})
    check(
        f"y = HardSigmoid<alpha={abs(alpha) + 0.13}, beta={beta}>(x)",
        {"x": x},
        reference=lambda x: torch.clip((abs(alpha) + 0.13) * x + beta, 0, 1),
    )


def test_default_attributes() -> None:
    for body in ("LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid"):
        check(f"y = {body}(x)", {"x": distinct(3, 11) * 1.37})


def test_prelu_at_zero_as_in_torch() -> None:
    actual = at("y = PRelu(a, b)", [[-1.0, 0.0, 1.0]], [0.25])
    assert actual == torch_at(F.prelu, [[-1.0, 0.0, 1.0]], [0.25])


@covers("PRelu")
@pytest.mark.parametrize("slope", [(1,), (3, 1, 1), (4,), (2, 3, 4, 4), (1, 3, 1, 1)])
def test_prelu(slope: tuple[int, ...]) -> None:
    check(
        "y = PRelu(x, slope)",
        {"x": distinct(2, 3, 4, 4)},
        {"slope": normal(*slope)},
        wrt=["x", "slope"],
        free=("static", "batch", "rank"),
    )
    for name in ("x", "slope"):
        check("y = PRelu(x, slope)", {"x": distinct(2, 3, 4, 4)}, {"slope": normal(*slope)}, wrt=[name])


@covers("Clip")
@examples(60)
@given(
    bounds=st.sampled_from(["x, lo, hi", "x, lo", 'x, "", hi', "x"]),
    low=st.sampled_from([-0.51, 0.01, 3.0e38]),
    dynamic=st.booleans(),
)
def test_clip(bounds: str, low: float, dynamic: bool) -> None:
    low = low if low < 1 else float(np.finfo(np.float32).min)
    constants = {k: v for k, v in {"lo": np.float32(low), "hi": np.float32(0.73)}.items() if k in bounds}
    body = "y = Clip(" + bounds.replace('""', "") + ")"
    arrays = {k: np.asarray(v) for k, v in constants.items()}
    x = distinct(3, 7)
    if dynamic:
        check(body, {"x": x, **arrays}, free=FREE)
        for name in ("x", *arrays):
            check(body, {"x": x, **arrays}, wrt=[name], free=("static",))
    else:
        check(body, {"x": x}, arrays, free=FREE)


def test_clip_bounds_as_in_torch() -> None:
    """Also where they cross: all is max then."""
    x = [-2.0, -0.5, 0.5, 2.0]
    for low, high in ((-1.0, 1.0), (1.0, -1.0)):
        actual = at("y = Clip(a, b, c)", x, low, high)
        assert actual == torch_at(torch.clip, x, low, high)
    for low, high in ((-0.5, 0.5), (0.5, 0.5), (0.5, -0.5)):  # X at a bound: torch's hardtanh passes it nothing
        assert at("y = Clip(a, b, c)", x, low, high)[1:] == torch_at(torch.clip, x, low, high)[1:]


def test_clip_without_bounds_costs_nothing() -> None:
    limits = np.finfo(np.float32)
    model = build("y = Clip(x, lo, hi)", {"x": normal(2)}, {"lo": limits.min, "hi": limits.max})
    assert [n.op_type for n in onnxcam.gradient(model, of="y", wrt=["x"]).graph.node] == ["Clip", "Identity"]


@st.composite
def broadcast(draw: st.DrawFn, count: int = 2) -> list[tuple[int, ...]]:
    """Shapes that broadcast together."""
    full = draw(st.lists(st.integers(1, 3), min_size=0, max_size=4))
    shapes = []
    for _ in range(count):
        dims = [d if draw(st.booleans()) else 1 for d in full]
        shapes.append(tuple(dims[draw(st.integers(0, len(dims))) :]))
    return shapes


def both(op_type: str, a: np.ndarray, b: np.ndarray, **options: Any) -> None:
    check(f"y = {op_type}(a, b)", {"a": a, "b": b}, free=FREE, **options)
    check(f"y = {op_type}(b, a)", {"a": a}, {"b": b}, wrt=["a", "b"], free=("static", "rank"), **options)
    for name in ("a", "b"):  # nothing is computed for the other
        check(f"y = {op_type}(a, b)", {"a": a, "b": b}, wrt=[name], free=("batch",), **options)


@covers("Add", "Sub", "Mul", "Div")
@examples(50)
@given(broadcast())
def test_arithmetic(shapes: list[tuple[int, ...]]) -> None:
    a, b = positive(*shapes[0]) + 0.5, positive(*shapes[1], seed=1) + 0.7
    for op_type in ("Add", "Sub", "Mul", "Div"):
        both(op_type, a, b)


@covers("Mod")
@examples(50)
@given(broadcast(), st.sampled_from([1.0, -1.0]))
def test_mod(shapes: list[tuple[int, ...]], sign: float) -> None:
    a, b = 7.3 * distinct(*shapes[0]), 0.613 + positive(*shapes[1])
    check("y = Mod<fmod=1>(a, b)", {"a": a, "b": sign * b}, free=FREE)
    check("y = Mod<fmod=1>(a, b)", {"a": a, "b": sign * b}, wrt=["a"], free=("batch",))


@covers("Pow")
@examples(50)
@given(broadcast())
def test_power(shapes: list[tuple[int, ...]]) -> None:
    a, b = positive(*shapes[0]) + 0.5, distinct(*shapes[1], seed=1)
    both("Pow", a, np.abs(b))
    check("y = Pow(a, b)", {"a": a}, {"b": b}, wrt=["a", "b"], free=FREE)


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("exponent", [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
def test_power_of_a_constant(exponent: float, integer: bool) -> None:
    if integer and exponent % 1:
        return
    b = np.asarray(exponent, dtype=np.int64 if integer else np.float32)
    x = distinct(2, 5) if exponent % 1 == 0 else positive(2, 5)
    check("y = Pow(x, b)", {"x": x + np.sign(x)}, {"b": b}, wrt=["x"], free=("static", "all"))
    check("y = Pow(x, b)", {"x": x + np.sign(x), "b": b}, wrt=["x"], free=("static", "all"))


def test_power_at_zero_as_in_torch() -> None:
    a, b = [0.0, 0.0, 0.0, 2.0], [0.0, 1.0, 2.0, 3.0]
    np.testing.assert_allclose(at("y = Pow(a, b)", a, b), torch_at(torch.pow, a, b), rtol=1e-6)
    for exponent in (0.0, 1.0, 2.0, 3.0):
        [actual] = at("y = Pow(a, p)", [0.0, 2.0], constants={"p": np.float32(exponent)})
        assert actual == torch_at(lambda x, e=exponent: x**e, [0.0, 2.0])[0]


@pytest.mark.parametrize("exponent", [2.0, 0.5, -1.0])
def test_common_powers_need_no_pow(exponent: float) -> None:
    model = build("y = Pow(x, b)", {"x": normal(2)}, {"b": np.float32(exponent)})
    assert [n.op_type for n in onnxcam.gradient(model, of="y", wrt=["x"]).graph.node].count("Pow") == 1


def fold(op_type: str, /, **xs: torch.Tensor) -> torch.Tensor:
    """What onnx's evaluator does not do right: n-ary operators with broadcasting."""
    folds = {"Sum": torch.add, "Mean": torch.add, "Max": torch.maximum, "Min": torch.minimum}
    y = functools.reduce(folds[op_type], xs.values())
    return y / len(xs) if op_type == "Mean" else y


@covers("Sum", "Mean", "Max", "Min")
@examples(50)
@given(broadcast(3), st.integers(1, 3))
def test_variadic(shapes: list[tuple[int, ...]], count: int) -> None:
    feeds = {n: distinct(*s, seed=k) + k * 0.0313 for k, (n, s) in enumerate(zip("abc", shapes[:count], strict=False))}
    for op_type in ("Sum", "Mean", "Max", "Min"):
        body = f"y = {op_type}({', '.join(feeds)})"
        reference = functools.partial(fold, op_type)
        check(body, feeds, free=FREE, reference=reference)
        if count > 1:
            check(body, feeds, wrt=["b"], free=FREE, reference=reference)


@pytest.mark.parametrize(("op_type", "f"), [("Max", torch.maximum), ("Min", torch.minimum)])
def test_ties_as_in_torch(op_type: str, f: Callable[..., torch.Tensor]) -> None:
    a, b = [0.0, 1.0, 2.0, -1.0], [0.0, 2.0, 1.0, -1.0]
    assert at(f"y = {op_type}(a, b)", a, b) == torch_at(f, a, b)
    assert at(f"y = {op_type}(a, b, c, d)", 1, 1, 1, 1) == [0.25] * 4


@covers("Where")
@examples(50)
@given(broadcast(3))
def test_where(shapes: list[tuple[int, ...]]) -> None:
    condition = normal(*shapes[2]) > 0
    check("y = Where(c, a, b)", {"a": normal(*shapes[0]), "b": normal(*shapes[1], seed=1), "c": condition}, free=FREE)
    check(
        "y = Where(c, a, b)",
        {"a": normal(*shapes[0])},
        {"b": normal(*shapes[1], seed=1), "c": condition},
        wrt=["b"],
        free=FREE,
    )


def test_the_same_value_twice() -> None:
    for op_type in ("Add", "Sub", "Mul", "Div", "Max"):
        check(f"y = {op_type}(x, x)", {"x": positive(2, 3)}, free=FREE)


@covers("Cast")
def test_cast_there_and_back() -> None:
    model = build("h = Cast<to=11>(x) d = Mul(h, h) y = Cast<to=1>(d)", {"x": normal(2, 3)})
    derived = onnxcam.gradient(model, of="y", wrt=["h", "x"])
    kinds = {o.name: o.type.tensor_type.elem_type for o in derived.graph.output}
    assert kinds["grad.h"] == onnx.TensorProto.DOUBLE
    assert kinds["grad.x"] == onnx.TensorProto.FLOAT
    check("h = Cast<to=11>(x) d = Mul(h, h) y = Cast<to=1>(d)", {"x": normal(2, 3)}, free=FREE)


@covers("CastLike")
def test_cast_like() -> None:
    like = np.zeros(1, dtype=np.float64)
    check("h = CastLike(x, w) d = Exp(h) y = Cast<to=1>(d)", {"x": normal(2, 3)}, {"w": like}, free=FREE)


def test_half_precision() -> None:
    nodes = "h = Cast<to=10>(x) s = Sigmoid(h) c = Clip(s, lo) e = Elu<alpha=0.5>(c) y = Cast<to=1>(e)"
    x = normal(2, 3)
    model = build(nodes, {"x": x}, {"lo": np.float16(0.1)})
    [gradient] = gradients(model, {"x": x}, np.ones((2, 3), np.float32), ["x"])
    s = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(gradient, s * (1 - s) * (s > 0.1), rtol=1e-2)


def test_no_gradient_through_integers() -> None:
    for nodes in ("h = Cast<to=7>(x) y = Cast<to=1>(h)", "y = Floor(x)", "y = Round(x)", "y = Sign(x)"):
        with pytest.raises(ModelError, match="does not reach"):
            onnxcam.gradient(build(nodes, {"x": normal(2, 3)}), of="y", wrt=["x"])
    check("h = Floor(x) y = Mul(x, h)", {"x": distinct(3, 5) + 0.02})


@pytest.mark.parametrize("training", ["constant", "input"])
def test_dropout_in_training_is_refused(training: str) -> None:
    flag = {"t": np.asarray(True)}
    body, x = "y = Dropout(x, ratio, t)", {"x": normal(2, 3)}
    ratio = {"ratio": np.float32(0.5)}
    model = build(body, x, ratio | flag) if training == "constant" else build(body, x | flag, ratio)
    with pytest.raises(UnsupportedOperator, match="training"):
        onnxcam.gradient(model, of="y", wrt=["x"])


@covers("Dropout")
def test_dropout_at_inference_passes_on() -> None:
    node = helper.make_node("Dropout", ["x", "ratio", "t"], ["y", "mask"])
    constants = {"ratio": np.asarray(0.5, np.float32), "t": np.asarray(False)}
    check([node], {"x": normal(2, 3)}, constants, wrt=["x"], free=FREE, reference=lambda x, **_: x)
