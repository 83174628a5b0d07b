"""Small classifiers with the heads that people attach, each with what its outputs mean.

Every model is a convolution, a mean and one or two linear layers (`z` and `z2`, `[N, K]`; `b`, `[N, 1]`) with a head as
ONNX text. What its outputs mean is said as a function of the file's own outputs, computed by plain onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

Outputs = dict[str, Any]
Reading = Callable[[Outputs], np.ndarray]

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Recipe:
    """A head.

    Attributes:
        body: nodes, from `z`, `z2`, `b`, `f` (the last map, `[N, 6, h, w]`) to the outputs; `K` is the number of
            classes, `M` the map's mean.
        outputs: their declarations.
        kinds: what its scores may be called.
        probabilities: `[N, K]` from the file's own outputs (`[N, columns]` of a single probability is completed); NaN
            where the file does not say. None for a head that must be refused.
        loose: how far the probabilities may be off: a step of 8 bits, or a float16.
        warned: whether a warning has to be given.
    """

    body: str
    outputs: str
    kinds: tuple[str, ...]
    probabilities: Reading | None
    loose: float = 2e-6
    warned: bool = False


def softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values.astype(np.float64) - values.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def sigmoid(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-values.astype(np.float64))))


def by_rank(outputs: Outputs, values: str = "v", indices: str = "i", count: int = 0) -> np.ndarray:
    """Values at the classes that they are of; NaN for the classes that are not among them."""
    v, i = outputs[values], outputs[indices]
    table = np.full((len(v), count or int(i.max()) + 1), np.nan)
    np.put_along_axis(table, i, v, axis=1)
    return table


def y(outputs: Outputs) -> np.ndarray:
    return np.asarray(outputs["y"])


def flat(outputs: Outputs) -> np.ndarray:
    return np.asarray(outputs["y"]).reshape(len(outputs["y"]), -1)


def of_maps(outputs: Outputs, key: str = "m") -> np.ndarray:
    """What a ZipMap gives."""
    return np.array([list(row.values()) for row in outputs[key]])


L, P, B, M = ("logits",), ("probabilities",), ("binary_logit",), ("multilabel",)
LP = ("logits", "probabilities")
TABLE, COLUMN = "float[N,K] y", "float[N,1] y"
QDQ = "q = QuantizeLinear(s, step, zero) y = DequantizeLinear(q, step, zero)"

RECIPES: dict[str, Recipe] = {
    "logits": Recipe("y = Identity(z)", TABLE, L, lambda o: softmax(y(o))),
    "logits with another bias": Recipe("y = Add(z, row)", TABLE, L, lambda o: softmax(y(o))),
    "logits with a temperature": Recipe("y = Div(z, t)", TABLE, L, lambda o: softmax(y(o))),
    "logits averaged": Recipe("a = Add(z, z2) y = Mul(a, half)", TABLE, L, lambda o: softmax(y(o))),
    "logits averaged by Mean": Recipe("y = Mean(z, z2)", TABLE, L, lambda o: softmax(y(o))),
    "logits clipped": Recipe("y = Clip(z, minus, plus)", TABLE, L, lambda o: softmax(y(o))),
    "logits through tanh": Recipe("y = Tanh(z)", TABLE, L, lambda o: softmax(y(o))),
    "logits after Relu": Recipe("y = Relu(z)", TABLE, L, lambda o: softmax(y(o))),
    "logits in 8 bits": Recipe("s = Identity(z) " + QDQ, TABLE, L, lambda o: softmax(y(o))),
    "logits [N,K,1,1]": Recipe("y = Unsqueeze(z, a23)", "float[N,K,1,1] y", L, lambda o: softmax(flat(o))),
    "logits [N,1,K]": Recipe("y = Unsqueeze(z, a1)", "float[N,1,K] y", L, lambda o: softmax(flat(o))),
    "logits [K,N]": Recipe("y = Transpose<perm=[1,0]>(z)", "float[K,N] y", L, lambda o: softmax(y(o).T)),
    "logits in double": Recipe("y = Cast<to=11>(z)", "double[N,K] y", L, lambda o: softmax(y(o))),
    "softmax": Recipe("y = Softmax(z)", TABLE, L, y),
    "softmax of axis 1": Recipe("y = Softmax<axis=1>(z)", TABLE, L, y),
    "softmax with a temperature": Recipe("a = Div(z, t) y = Softmax(a)", TABLE, L, y),
    "softmax beside its logits": Recipe("l = Identity(z) y = Softmax(z)", f"float[N,K] l, {TABLE}", L, y),
    "softmax called logits": Recipe("logits = Softmax(z)", "float[N,K] logits", L, lambda o: o["logits"]),
    "softmax twice": Recipe("a = Softmax(z) y = Softmax(a)", TABLE, L, y),
    "softmax, dropout": Recipe("a = Softmax(z) y = Dropout(a)", TABLE, L, y),
    "softmax of doubles": Recipe("a = Cast<to=11>(z) s = Softmax(a) y = Cast<to=1>(s)", TABLE, L, y),
    "softmax in float16": Recipe("s = Softmax(z) y = Cast<to=10>(s)", "float16[N,K] y", L, y, 1e-3),
    "softmax [N,K,1,1]": Recipe("u = Unsqueeze(z, a23) y = Softmax<axis=1>(u)", "float[N,K,1,1] y", L, flat),
    "softmax [N,1,K]": Recipe("u = Unsqueeze(z, a1) y = Softmax(u)", "float[N,1,K] y", L, flat),
    "softmax [N,1,1,K], clipped": Recipe(
        "u = Unsqueeze(z, a12) s = Softmax(u) y = Clip(s, tiny, one)", "float[N,1,1,K] y", L, flat
    ),
    "softmax [K,N]": Recipe("s = Softmax(z) y = Transpose<perm=[1,0]>(s)", "float[K,N] y", L, lambda o: y(o).T),
    "softmax between transposes": Recipe(
        "a = Transpose<perm=[1,0]>(z) s = Softmax<axis=0>(a) y = Transpose<perm=[1,0]>(s)", TABLE, L, y
    ),
    "softmax, clip": Recipe("s = Softmax(z) y = Clip(s, tiny, one)", TABLE, L, y),
    "softmax, temperature, clip": Recipe("a = Div(z, t) s = Softmax(a) y = Clip(s, tiny, nearly)", TABLE, L, y),
    "softmax, wide clip": Recipe("s = Softmax(z) y = Clip(s, low, high)", TABLE, L, None, warned=True),
    "softmax, max and min": Recipe("s = Softmax(z) a = Max(s, tiny) y = Min(a, one)", TABLE, L, y),
    "softmax in 8 bits": Recipe("s = Softmax(z) " + QDQ, TABLE, L, y, 4e-3),
    "softmax in steps of a hundredth": Recipe(
        "s = Softmax(z) a = Mul(s, hundred) r = Round(a) y = Div(r, hundred)", TABLE, L, y, 5.1e-3
    ),
    "softmax as uint8": Recipe(
        "s = Softmax(z) y = QuantizeLinear(s, step, zero)", "uint8[N,K] y", L, lambda o: y(o) / 255.0, 4e-3
    ),
    "softmax as int8": Recipe(
        "s = Softmax(z) y = QuantizeLinear(s, step, lowest)", "int8[N,K] y", L, lambda o: (y(o) + 128.0) / 255, 4e-3
    ),
    "softmax in percent": Recipe("s = Softmax(z) y = Mul(s, hundred)", TABLE, L, lambda o: y(o) / 100.0),
    "softmax from -1 to 1": Recipe(
        "s = Softmax(z) a = Mul(s, two) y = Sub(a, one)", TABLE, L, lambda o: (y(o) + 1) / 2, warned=True
    ),
    "softmax turned around": Recipe("s = Softmax(z) y = Neg(s)", TABLE, (), None),
    "log-softmax, other priors": Recipe("l = LogSoftmax(z) y = Add(l, row)", TABLE, L, lambda o: softmax(y(o))),
    "softmax by hand": Recipe(
        "m = ReduceMax<keepdims=1>(z, a1) d = Sub(z, m) e = Exp(d) n = ReduceSum<keepdims=1>(e, a1) y = Div(e, n)",
        TABLE, L, y,
    ),
    "softmax by hand, unshifted": Recipe("e = Exp(z) n = ReduceSum<keepdims=1>(e, a1) y = Div(e, n)", TABLE, L, y),
    "softmax by hand, reciprocal": Recipe(
        "e = Exp(z) n = ReduceSum<keepdims=1>(e, a1) r = Reciprocal(n) y = Mul(e, r)", TABLE, L, y
    ),
    "exp of log-softmax": Recipe("l = LogSoftmax(z) y = Exp(l)", TABLE, L, y),
    "log-softmax": Recipe("y = LogSoftmax(z)", TABLE, L, lambda o: np.exp(y(o))),
    "log of softmax": Recipe("s = Softmax(z) y = Log(s)", TABLE, L, lambda o: np.exp(y(o))),
    "log-softmax, clip": Recipe("l = LogSoftmax(z) y = Clip(l, far, none)", TABLE, L, lambda o: np.exp(y(o))),
    "negative log-softmax": Recipe("l = LogSoftmax(z) y = Neg(l)", TABLE, (), None),
    "label smoothing": Recipe("s = Softmax(z) a = Mul(s, nine) y = Add(a, rest)", TABLE, P, y),
    "probabilities to the second power": Recipe(
        "s = Softmax(z) a = Mul(s, s) n = ReduceSum<keepdims=1>(a, a1) y = Div(a, n)", TABLE, LP, y
    ),
    "classes in another order": Recipe("s = Softmax(z) y = Gather<axis=1>(s, order)", TABLE, LP, y),
    "vote of two": Recipe("s = Softmax(z) u = Softmax(z2) a = Add(s, u) y = Div(a, two)", TABLE, P, y),
    "vote by Mean": Recipe("s = Softmax(z) u = Softmax(z2) y = Mean(s, u)", TABLE, P, y),
    "vote by ReduceMean": Recipe(
        "s = Softmax(z) u = Softmax(z2) s1 = Unsqueeze(s, a0) u1 = Unsqueeze(u, a0) j = Concat<axis=0>(s1, u1) "
        "y = ReduceMean<keepdims=0>(j, a0)",
        TABLE, P, y,
    ),
    "vote with weights": Recipe(
        "s = Softmax(z) u = Softmax(z2) a = Mul(s, nine) d = Mul(u, tenth) y = Add(a, d)", TABLE, P, y
    ),
    "vote in percent": Recipe(
        "s = Softmax(z) u = Softmax(z2) a = Add(s, u) y = Mul(a, fifty)", TABLE, P, lambda o: y(o) / 100.0
    ),
    "vote in 8 bits": Recipe("p = Softmax(z) u = Softmax(z2) s = Mean(p, u) " + QDQ, TABLE, P, y, 4e-3),
    "vote in float16": Recipe(
        "s = Softmax(z) u = Softmax(z2) a = Mean(s, u) y = Cast<to=10>(a)", "float16[N,K] y", P, y, 1e-3
    ),
    "vote by MatMul": Recipe(
        "s = Softmax(z) u = Softmax(z2) j = Concat<axis=1>(s, u) y = MatMul(j, pairs)", TABLE, P, y
    ),
    "vote, clip": Recipe("p = Softmax(z) u = Softmax(z2) s = Mean(p, u) y = Clip(s, tiny, one)", TABLE, P, y),
    "vote [K,N]": Recipe(
        "p = Softmax(z) u = Softmax(z2) s = Mean(p, u) y = Transpose<perm=[1,0]>(s)", "float[K,N] y", P,
        lambda o: y(o).T,
    ),
    "vote, topk": Recipe(
        "s = Softmax(z) u = Softmax(z2) a = Mean(s, u) v, i = TopK(a, k)", "float[N,K] v, int64[N,K] i", P, by_rank
    ),
    "log of a vote": Recipe(
        "s = Softmax(z) u = Softmax(z2) a = Mean(s, u) y = Log(a)", TABLE, LP, lambda o: np.exp(y(o))
    ),
    "product of two": Recipe(
        "s = Softmax(z) u = Softmax(z2) a = Mul(s, u) n = ReduceSum<keepdims=1>(a, a1) y = Div(a, n)", TABLE, P, y
    ),
    "mean over places": Recipe(
        "g = Conv(f, wp) s = Softmax<axis=1>(g) y = ReduceMean<keepdims=0>(s, a23)", TABLE, P, y
    ),
    "one against the rest": Recipe(
        "s = Sigmoid(z) n = ReduceSum<keepdims=1>(s, a1) y = Div(s, n)", TABLE, P, y
    ),
    "topk of a softmax": Recipe("s = Softmax(z) v, i = TopK(s, k)", "float[N,K] v, int64[N,K] i", L, by_rank),
    "topk of the best": Recipe(
        "s = Softmax(z) v, i = TopK(s, fewer)", "float[N,F] v, int64[N,F] i", L, lambda o: by_rank(o, count=99)
    ),
    "topk of logits": Recipe(
        "v, i = TopK(z, k)", "float[N,K] v, int64[N,K] i", L, lambda o: softmax(by_rank(o))
    ),
    "topk, softmax": Recipe("a, i = TopK(z, k) v = Softmax(a)", "float[N,K] v, int64[N,K] i", (), None),
    "topk, clip": Recipe(
        "s = Softmax(z) a, i = TopK(s, k) v = Clip(a, tiny, one)", "float[N,K] v, int64[N,K] i", L, by_rank
    ),
    "sorted from the lowest": Recipe(
        "s = Softmax(z) v, i = TopK<largest=0>(s, k)", "float[N,K] v, int64[N,K] i", L, by_rank
    ),
    "topk, values and indices side by side": Recipe(
        "s = Softmax(z) v, i = TopK(s, k) fi = Cast<to=1>(i) y = Concat<axis=1>(v, fi)", "float[N,Z] y", (), None
    ),
    "sorted without a way back": Recipe(
        "s = Softmax(z) a, i = TopK(s, k) v = Sqrt(a)", "float[N,K] v", (), None
    ),
    "index of the best": Recipe("s = Softmax(z) y = ArgMax<axis=1,keepdims=0>(s)", "int64[N] y", L, None),
    "best and its index": Recipe(
        "s = Softmax(z) y = ArgMax<axis=1,keepdims=0>(s) p = ReduceMax<keepdims=0>(s, a1)",
        "int64[N] y, float[N] p", L, lambda o: by_rank({"v": o["p"][:, None], "i": o["y"][:, None]}, count=99),
    ),
    "sigmoid": Recipe("y = Sigmoid(z)", TABLE, M, y),
    "sigmoid by hand": Recipe("n = Neg(z) e = Exp(n) a = Add(e, one) y = Reciprocal(a)", TABLE, M, y),
    "sigmoid by tanh": Recipe("a = Mul(z, half) h = Tanh(a) d = Add(h, one) y = Mul(d, half)", TABLE, M, y),
    "sigmoid, clip": Recipe("s = Sigmoid(z) y = Clip(s, tiny, one)", TABLE, M, y),
    "sigmoid in 8 bits": Recipe("s = Sigmoid(z) " + QDQ, TABLE, M, y, 4e-3),
    "sigmoid in percent": Recipe("s = Sigmoid(z) y = Mul(s, hundred)", TABLE, M, lambda o: y(o) / 100.0),
    "sigmoid minus a threshold": Recipe("s = Sigmoid(z) y = Sub(s, low)", TABLE, M, lambda o: y(o) + 0.1, warned=True),
    "sigmoid by thresholds": Recipe("s = Sigmoid(z) y = Div(s, cut)", TABLE, M, None, warned=True),
    "sigmoid with thresholds": Recipe(
        "s = Sigmoid(z) less = Less(s, cut) c2 = Add(cut, cut) a = Div(s, c2) r = Sub(one, s) o = Sub(one, cut) "
        "o2 = Add(o, o) q = Div(r, o2) h = Sub(one, q) y = Where(less, a, h)",
        TABLE, M, y,
    ),
    "sigmoids averaged": Recipe("s = Sigmoid(z) u = Sigmoid(z2) y = Mean(s, u)", TABLE, M, y),
    "sigmoids averaged, in percent": Recipe(
        "s = Sigmoid(z) u = Sigmoid(z2) a = Mean(s, u) y = Mul(a, hundred)", TABLE, M, lambda o: y(o) / 100.0
    ),
    "softmax times 255": Recipe("s = Softmax(z) y = Mul(s, bytes)", TABLE, L, lambda o: y(o) / 255.0),
    "softmax times 255, as bytes": Recipe(
        "s = Softmax(z) m = Mul(s, bytes) y = Cast<to=2>(m)", "uint8[N,K] y", L, lambda o: y(o) / 255.0, 4e-3
    ),
    "vote times 255": Recipe(
        "s = Softmax(z) u = Softmax(z2) a = Mean(s, u) y = Mul(a, bytes)", TABLE, P, lambda o: y(o) / 255.0
    ),
    "vote in whole percent": Recipe(
        "s = Softmax(z) u = Softmax(z2) a = Mean(s, u) m = Mul(a, hundred) y = Cast<to=2>(m)", "uint8[N,K] y", P,
        lambda o: y(o) / 100.0, 1e-2,
    ),
    "one against the rest, in percent": Recipe(
        "s = Sigmoid(z) n = ReduceSum<keepdims=1>(s, a1) d = Div(s, n) y = Mul(d, hundred)", TABLE, P,
        lambda o: y(o) / 100.0,
    ),
    "small ones zeroed, in percent": Recipe(
        "s = Softmax(z) less = Less(s, low) d = Where(less, nought, s) y = Mul(d, hundred)", TABLE, (), None
    ),
    "sigmoid times 255": Recipe("s = Sigmoid(z) y = Mul(s, bytes)", TABLE, M, lambda o: y(o) / 255.0),
    "sigmoids averaged, times 255": Recipe(
        "s = Sigmoid(z) u = Sigmoid(z2) a = Mean(s, u) y = Mul(a, bytes)", TABLE, M, lambda o: y(o) / 255.0
    ),
    "sigmoids averaged, as uint8": Recipe(
        "s = Sigmoid(z) u = Sigmoid(z2) a = Mean(s, u) y = QuantizeLinear(a, step, zero)", "uint8[N,K] y", M,
        lambda o: y(o) / 255.0, 4e-3,
    ),
    "sigmoids added": Recipe(
        "s = Sigmoid(z) u = Sigmoid(z2) y = Add(s, u)", TABLE, M, lambda o: y(o) / 2.0, warned=True
    ),
    "sigmoid times 10": Recipe("s = Sigmoid(z) y = Mul(s, ten)", TABLE, M, lambda o: y(o) / 10.0, warned=True),
    "log-sigmoid": Recipe("s = Sigmoid(z) y = Log(s)", TABLE, M, lambda o: np.exp(y(o))),
    "log-sigmoid by softplus": Recipe("n = Neg(z) s = Softplus(n) y = Neg(s)", TABLE, M, lambda o: np.exp(y(o))),
    "log of sigmoids averaged": Recipe(
        "s = Sigmoid(z) u = Sigmoid(z2) a = Mean(s, u) y = Log(a)", TABLE, M, lambda o: np.exp(y(o))
    ),
    "binary log-sigmoid": Recipe("s = Sigmoid(b) y = Log(s)", COLUMN, B, lambda o: np.exp(y(o))),
    "binary vote in percent": Recipe(
        "s = Sigmoid(b) u = Sigmoid(b2) a = Mean(s, u) y = Mul(a, hundred)", COLUMN, B, lambda o: y(o) / 100.0,
        warned=True,
    ),
    "hard sigmoid": Recipe("y = HardSigmoid(z)", TABLE, M, y),
    "binary sigmoid": Recipe("y = Sigmoid(b)", COLUMN, B, y),
    "binary sigmoid [N]": Recipe("s = Sigmoid(b) y = Squeeze(s, a1)", "float[N] y", B, flat),
    "binary sigmoid, clip": Recipe("s = Sigmoid(b) y = Clip(s, tiny, one)", COLUMN, B, y),
    "binary sigmoid in percent": Recipe(
        "s = Sigmoid(b) y = Mul(s, hundred)", COLUMN, B, lambda o: y(o) / 100.0, warned=True
    ),
    "binary vote": Recipe("s = Sigmoid(b) u = Sigmoid(b2) y = Mean(s, u)", COLUMN, B, y),
    "binary logit": Recipe("y = Neg(b)", COLUMN, B, lambda o: sigmoid(y(o)), warned=True),
    "binary logit [N]": Recipe("y = Squeeze(b, a1)", "float[N] y", B, lambda o: sigmoid(flat(o)), warned=True),
    "second of two": Recipe("d = Concat<axis=1>(b, b2) s = Softmax(d) y = Slice(s, a1, a2, a1)", COLUMN, B, y),
    "both of two": Recipe("s = Sigmoid(b) r = Sub(one, s) y = Concat<axis=1>(r, s)", "float[N,2] y", LP, y),
    "two groups": Recipe(
        "d = Concat<axis=1>(b, b2) s = Softmax(z) u = Softmax(d) y = Concat<axis=1>(s, u)", "float[N,S] y", (), None
    ),
    "without the background": Recipe("s = Softmax(z) y = Slice(s, a1, big, a1)", "float[N,F] y", (), None),
    "small ones zeroed": Recipe("s = Softmax(z) less = Less(s, low) y = Where(less, nought, s)", TABLE, (), None),
}  # fmt: skip

# K, batch, seed
VARIANTS = ((3, "N", 0), (7, "N", 1), (5, 1, 2), (12, 4, 3))


@dataclass(frozen=True)
class Head:
    """A model with one of the heads."""

    name: str
    recipe: Recipe
    model: onnx.ModelProto
    classes: int
    batch: str | int


def heads() -> Iterator[Head]:
    """Every head with 3 and 7 classes, and with 5 and 12 and a fixed batch of 1 and 4."""
    for name, recipe in RECIPES.items():
        for classes, batch, seed in VARIANTS:
            yield Head(f"{name}, {classes}", recipe, build(recipe, classes, batch, seed), classes, batch)


def build(recipe: Recipe, classes: int = 5, batch: str | int = "N", seed: int = 0) -> onnx.ModelProto:
    """One head on a small network: input `x`, float `[batch, 3, 12, 12]`."""
    sizes = {"N": batch, "K": classes, "F": classes - 1, "S": classes + 2, "Z": 2 * classes}
    outputs = recipe.outputs
    for letter, size in sizes.items():
        outputs = outputs.replace(f"[{letter},", f"[{size},").replace(f",{letter},", f",{size},")
        outputs = outputs.replace(f",{letter}]", f",{size}]").replace(f"[{letter}]", f"[{size}]")
    trunk = (
        (
            "c = Conv<pads=[1,1,1,1],strides=[2,2]>(x, w) f = Relu(c) p = ReduceMean<keepdims=0>(f, a23) "
            "z = Gemm(p, wz, bz) z2 = Gemm(p, wz2) b = Gemm(p, wb, bb) b2 = Gemm(p, wb2)"
        )
        .replace(" p ", " pooled ")
        .replace("(p,", "(pooled,")
    )
    signature = f"g (float[{batch},3,12,12] x) => ({outputs})"
    text = f'<ir_version: 8, opset_import: ["" : 18]> {signature} {{ {trunk} {recipe.body} }}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    floats = {
        "w": rng.normal(size=(6, 3, 3, 3)) / 3,
        "wp": rng.normal(size=(classes, 6, 1, 1)) * 2,
        "wz": rng.normal(size=(6, classes)) * 4,
        "bz": rng.normal(size=classes),
        "wz2": rng.normal(size=(6, classes)) * 4,
        "wb": rng.normal(size=(6, 1)) * 4,
        "bb": rng.normal(size=1),
        "wb2": rng.normal(size=(6, 1)) * 4,
        "row": rng.normal(size=classes),
        "cut": rng.uniform(0.2, 0.8, size=classes),
        "pairs": np.concatenate([np.eye(classes), np.eye(classes)]) / 2,
        "rest": np.full(classes, 0.1 / classes),
        "t": 1.7, "half": 0.5, "two": 2, "nine": 0.9, "tenth": 0.1, "fifty": 50, "hundred": 100, "one": 1, "nought": 0,
        "tiny": 1e-7, "nearly": 1 - 1e-6, "low": 0.1, "high": 0.8, "minus": -9, "plus": 9, "far": -80, "none": 0,
        "step": 1 / 255, "bytes": 255, "ten": 10,
    }  # fmt: skip
    if recipe.body.startswith("s = Identity(z)"):
        floats["step"] = 0.05
    integers = {
        "a0": [0], "a1": [1], "a2": [2], "a12": [1, 2], "a23": [2, 3], "k": [classes], "fewer": [classes - 1],
        "order": rng.permutation(classes), "big": [classes],
    }  # fmt: skip
    tensors = {name: np.asarray(value, np.float32) for name, value in floats.items()}
    tensors |= {name: np.asarray(value, np.int64) for name, value in integers.items()}
    tensors |= {"zero": np.asarray(128 if floats["step"] == 0.05 else 0, np.uint8), "lowest": np.asarray(-128, np.int8)}
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in tensors.items() if name in read)
    return model
