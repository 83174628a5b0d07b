"""VJP rules: normalization."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcam.autodiff.registry import Cotangents, Node, vjp
from onnxcam.graph.builder import Builder


@vjp("BatchNormalization")
def batch_normalization(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY·s·r with r = 1/√(var + ε); ds = Σ dY·(X - mean)·r, dB = Σ dY, dmean = -s·r·dB, dvar = -s·r²/2·ds."""
    if node.attr("training_mode", 0):
        raise node.refuse("it is in training mode; export the model for inference")
    x, scale, _, mean, variance = node.inputs
    rank = node.rank(x)
    others = [0, *range(2, rank)]

    def along_channels(value: str) -> str:
        return op.Reshape(value, [-1] + [1] * (rank - 2)) if rank > 2 else value

    # from constants alone: folds at load
    inverse = op.Reciprocal(op.Sqrt(op.Add(variance, node.attr("epsilon", 1e-5))))
    factor = op.Mul(scale, inverse)
    dx = op.Mul(dy, along_channels(factor)) if node.wants(0) else None
    db = op.ReduceSum(dy, others, keepdims=0) if node.wants(2) or node.wants(3) else None
    ds = None
    if node.wants(1) or node.wants(4):
        centred = op.Sub(x, along_channels(mean))
        ds = op.Mul(op.ReduceSum(op.Mul(dy, centred), others, keepdims=0), inverse)
    dmean = op.Neg(op.Mul(db, factor)) if db and node.wants(3) else None
    dvariance = op.Mul(op.Mul(ds, op.Mul(factor, inverse)), -0.5) if ds and node.wants(4) else None
    return [dx, ds, db, dmean, dvariance]


@vjp("LayerNormalization", multiple=True)
def layer_normalization(op: Builder, node: Node, dys: Sequence[str | None]) -> Cotangents:
    """dX = r·(g - mean g - z·mean(g·z)) with g = dY·s and z = (X - mean X)·r; ds = Σ dY·z, dB = Σ dY.

    Where the mean and r are read too, dX also has dmean/n - r²·z·dr/n.
    """
    dy, dmean, dinverse = [*dys, None, None][:3]
    x, scale = node.inputs[:2]
    rank = node.rank(x)
    axis = node.attr("axis", -1) % rank
    axes = range(axis, rank)
    parts: list[str] = []
    ds = db = None
    if (dy and (node.wants(0) or node.wants(1))) or (dinverse and node.wants(0)):
        z, inverse = _standardized(op, x, axis, op.vector(*(op.size(x, a) for a in axes)), node.attr("epsilon", 1e-5))
        if dy and node.wants(0):
            parts.append(_through(op, op.Mul(dy, scale), z, inverse, axes))
        if dinverse and node.wants(0):
            steep = op.Div(op.Mul(op.cast(dinverse), op.Mul(inverse, inverse)), op.count(x, axes))
            parts.append(op.Neg(op.Mul(steep, z)))
        if dy and node.wants(1):
            ds = op.sum_to(op.Mul(dy, z), node.output, scale)
    if dmean and node.wants(0):
        parts.append(op.Expand(op.Div(op.cast(dmean), op.count(x, axes)), op.shape(x)))
    if dy and node.wants(2):
        db = op.sum_to(dy, node.output, node.inputs[2])
    dx = None if not parts else parts[0] if len(parts) == 1 else op.Sum(*parts)
    return [dx, ds, db]


@vjp("RMSNormalization", since=23)
def rms_normalization(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = r·(g - z·mean(g·z)) with g = dY·s, z = X·r and r = 1/√(mean X² + ε); ds = Σ dY·z."""
    x, scale = node.inputs[:2]
    rank = node.rank(x)
    axes = list(range(node.attr("axis", -1) % rank, rank))
    squares = op.ReduceMean(op.Mul(x, x), axes, keepdims=1)
    inverse = op.Reciprocal(op.Sqrt(op.Add(squares, node.attr("epsilon", 1e-5))))
    z = op.Mul(x, inverse)
    dx = None
    if node.wants(0):
        g = op.Mul(dy, scale)
        dx = op.Mul(op.Sub(g, op.Mul(z, op.ReduceMean(op.Mul(g, z), axes, keepdims=1))), inverse)
    return [dx, op.sum_to(op.Mul(dy, z), node.output, scale) if node.wants(1) else None]


@vjp("InstanceNormalization")
def instance_normalization(op: Builder, node: Node, dy: str) -> Cotangents:
    """LayerNormalization of each channel by itself."""
    return _grouped(op, node, dy, [0, 0, -1])


@vjp("GroupNormalization", since=21)
def group_normalization(op: Builder, node: Node, dy: str) -> Cotangents:
    """LayerNormalization of each group of channels, with a scale and a bias per channel.

    Before opset 21 they were per group; onnx counts that form as deprecated and its checker refuses it.
    """
    return _grouped(op, node, dy, [0, node.attr("num_groups"), -1])


@vjp("MeanVarianceNormalization")
def mean_variance_normalization(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = (dY - mean dY - z·mean(dY·z))/(σ + ε) with z = (X - mean X)/σ, up to O(ε), ε = 1e-9."""
    x, axes = node.inputs[0], list(node.attr("axes") or [0, 2, 3])
    centred = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
    deviation = op.Sqrt(op.ReduceMean(op.Mul(centred, centred), axes, keepdims=1))
    inverse = op.Reciprocal(op.Add(deviation, 1e-9))
    return [_through(op, dy, node.output, inverse, axes)]


@vjp("LpNormalization")
def lp_normalization(op: Builder, node: Node, dy: str) -> Cotangents:
    """p = 2: dX = (dY - Y·Σ dY·Y)/n; p = 1: dX = (dY - sign(X)·Σ dY·Y)/n; 0 where the norm n is 0."""
    x, y, axes = node.inputs[0], node.output, [node.attr("axis", -1)]
    dot = op.ReduceSum(op.Mul(dy, y), axes, keepdims=1)
    if node.attr("p", 2) == 1:
        norm, direction = op.ReduceL1(x, axes, keepdims=1), op.Sign(x)
    else:
        norm, direction = op.ReduceL2(x, axes, keepdims=1), y
    zero = op.Equal(norm, 0.0)
    dx = op.Div(op.Sub(dy, op.Mul(direction, dot)), op.Add(norm, op.cast(zero)))
    return [op.mask(dx, op.Not(zero))]


@vjp("LRN")
def lrn(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY·s^-β - 2αβ/n·X·A(dY·Y/s) with s = k + α/n·window sum of X², A the sum over the windows that see X."""
    x, size = node.inputs[0], node.attr("size")
    alpha, beta, bias = node.attr("alpha", 1e-4), node.attr("beta", 0.75), node.attr("bias", 1.0)
    before, after = (size - 1) // 2, size // 2

    def windowed(value: str, begin: int, end: int) -> str:
        """Mean over windows of `size` channels, counting absent channels as 0."""
        rows = op.Unsqueeze(op.Reshape(value, [0, 0, -1]), [1])
        mean = op.AveragePool(rows, kernel_shape=[size, 1], pads=[begin, 0, end, 0], count_include_pad=1)
        return op.reshape_like(op.Squeeze(mean, [1]), x)

    s = op.Add(op.Mul(windowed(op.Mul(x, x), before, after), alpha), bias)
    inner = windowed(op.Div(op.Mul(dy, node.output), s), after, before)
    return [op.Sub(op.Mul(dy, op.Pow(s, -beta)), op.Mul(op.Mul(x, inner), 2.0 * alpha * beta))]


def _standardized(op: Builder, x: str, axis: int, sizes: str, epsilon: float) -> tuple[str, str]:
    """(X - mean)·r and r over the axes from `axis` on: LayerNormalization with scale 1, 0.8 × the time of six nodes."""
    z, _, inverse = op.call(
        "LayerNormalization", [x, op.filled(1.0, sizes)], outputs=3, axis=axis, epsilon=epsilon, stash_type=1
    )
    return z, op.cast(inverse)


def _through(op: Builder, g: str, z: str, inverse: str, axes: Sequence[int]) -> str:
    """r·(g - mean g - z·mean(g·z)): what standardizing passes back."""
    means = op.ReduceMean(g, list(axes), keepdims=1)
    along = op.Mul(z, op.ReduceMean(op.Mul(g, z), list(axes), keepdims=1))
    return op.Mul(op.Sub(op.Sub(g, means), along), inverse)


def _grouped(op: Builder, node: Node, dy: str, rows: Sequence[int]) -> Cotangents:
    """Standardization over the last axis of X reshaped to `rows`, then a scale and a bias per channel."""
    x, scale, _ = node.inputs
    channels = op.Reshape(dy, [0, 0, -1])
    dx = ds = None
    if node.wants(0) or node.wants(1):
        grouped = op.Reshape(x, rows)
        sizes = op.Slice(op.Shape(grouped), [2], [3])
        z, inverse = _standardized(op, grouped, 2, sizes, node.attr("epsilon", 1e-5))
        if node.wants(0):
            g = op.Reshape(op.reshape_like(op.Mul(channels, op.Unsqueeze(scale, [1])), x), rows)
            dx = op.reshape_like(_through(op, g, z, inverse, [2]), x)
        if node.wants(1):
            standardized = op.Reshape(op.reshape_like(z, x), [0, 0, -1])
            ds = op.ReduceSum(op.Mul(channels, standardized), [0, 2], keepdims=0)
    db = op.ReduceSum(channels, [0, 2], keepdims=0) if node.wants(2) else None
    return [dx, ds, db]
