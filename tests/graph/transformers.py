"""Transformers as ONNX text: patches of 4 x 4 as tokens of 8 channels, single-head blocks, a head of 5 classes."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

# weights by what their names begin with; `whole` numbers are written where they are used
SHAPES: dict[str, tuple[int, ...]] = {
    "patch": (8, 3, 4, 4), "token": (1, 1, 8), "queries": (1, 9, 8), "w": (8, 8), "head": (8, 5), "deep": (8, 8, 3, 3),
    "fold": (8, 48), "place": (1, 16, 8), "seat": (1, 17, 8), "bench": (1, 24, 8), "hall": (1, 7744, 8),
    "plane": (1, 8, 4, 6), "kernel": (8, 3, 3, 3), "narrow": (8, 8, 1, 1)
}  # fmt: skip
PATCHES = "c = Conv<strides=[4,4]>(x, patch) flat = Reshape(c, [0,8,-1]) p = Transpose<perm=[0,2,1]>(flat)"
CLASS = "n = Shape<end=1>(x) some = Concat<axis=0>(n, [1], [8]) cls = Expand(token, some) t = Concat<axis=1>(cls, p)"
ATTENTION = (
    "n{1} = LayerNormalization({0}, g, g) q{1} = MatMul(n{1}, w1) k{1} = MatMul(n{1}, w2) v{1} = MatMul(n{1}, w3) "
    "kt{1} = Transpose<perm=[0,2,1]>(k{1}) l{1} = MatMul(q{1}, kt{1}) s{1} = Softmax<axis=-1>(l{1}) "
    "o{1} = MatMul(s{1}, v{1}) a{1} = Add({0}, o{1})"
)
MLP = "m{1} = LayerNormalization({0}, g, g) u{1} = MatMul(m{1}, w4) r{1} = Relu(u{1}) b{1} = Add({0}, r{1})"
FIRST = "z = Gather<axis=1>({0}, 0) logits = MatMul(z, head)"
MEAN = "z = ReduceMean<keepdims=0>({0}, [1]) logits = MatMul(z, head)"


def block(source: str, tag: str) -> str:
    return f"{ATTENTION.format(source, tag)} {MLP.format(f'a{tag}', tag)}"


def model(*body: str, picture: str = "N,3,16,16", seed: int = 0) -> onnx.ModelProto:
    """A network from ONNX text, `[1,2]` and the like standing for int64 constants; its weights are random."""
    text = " ".join(body)
    constants: dict[str, np.ndarray] = {}

    def whole(match: re.Match[str]) -> str:
        name = f"i_{len(constants)}"
        values = [int(part) for part in match[2].strip("[]").split(",")]
        constants[name] = np.asarray(values if match[2].startswith("[") else values[0], np.int64)
        return f"{match[1]}{name}"

    # attributes come between angle brackets, values after a comma or a parenthesis
    while (replaced := re.sub(r"([(,] ?)(\[[-0-9, ]+\]|-?\d+)(?=[,)])(?![^<]*>)", whole, text)) != text:
        text = replaced
    parsed = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[{picture}] x) => (float[N,5] logits) {{ {text} }}'
    )
    generator = np.random.default_rng(seed)
    outputs = {name for node in parsed.graph.node for name in node.output} | {"x"}
    for name in dict.fromkeys(name for node in parsed.graph.node for name in node.input if name not in outputs):
        if name in constants:
            value = constants[name]
        elif name == "g":
            value = np.linspace(0.5, 1.5, 8, dtype=np.float32)
        else:
            stem = next(stem for stem in sorted(SHAPES, key=len, reverse=True) if name.startswith(stem))
            value = generator.normal(size=SHAPES[stem]).astype(np.float32) / 2
        parsed.graph.initializer.append(numpy_helper.from_array(value, name))
    return parsed


def vit(picture: str = "N,3,16,24") -> onnx.ModelProto:
    """Two blocks, of which the class token is read: `n2` is the last value whose patches matter."""
    return model(PATCHES, CLASS, block("t", "1"), block("b1", "2"), FIRST.format("b2"), picture=picture)


def lost(count: int) -> onnx.ModelProto:
    """A block over `count` tokens whose positions nobody knows: each is a mix of all patches. Its output is `b1`."""
    SHAPES["mix"] = (16, count)
    mixed = "f = Transpose<perm=[0,2,1]>(p) k = MatMul(f, mix) y = Transpose<perm=[0,2,1]>(k)"
    flat = "flat = Reshape(x, [0,48,16]) down = MatMul(fold, flat) p = Transpose<perm=[0,2,1]>(down)"
    return model(flat, mixed, block("y", "1"), MEAN.format("b1"))
