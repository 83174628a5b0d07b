"""The operations of small nets, twice: emitting ONNX nodes, and computing with torch, in the same order of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper


class Onnx:
    """Operations that emit nodes."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def weight(self, *shape: int, scale: float | None = None) -> str:
        return self.constant(draw(self.rng, shape, scale))

    def emit(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"v{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, f"n{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, x: str, w: str, b: str, stride: int = 1) -> str:
        size = next(t.dims[2] for t in self.initializers if t.name == w)
        return str(self.emit("Conv", x, w, b, strides=[stride] * 2, pads=[size // 2] * 4))

    def relu(self, x: str) -> str:
        return str(self.emit("Relu", x))

    def sigmoid(self, x: str) -> str:
        return str(self.emit("Sigmoid", x))

    def exp(self, x: str) -> str:
        return str(self.emit("Exp", x))

    def softmax(self, x: str, axis: int) -> str:
        return str(self.emit("Softmax", x, axis=axis))

    def reshape(self, x: str, *shape: int) -> str:
        return str(self.emit("Reshape", x, self.constant(shape, np.int64)))

    def transpose(self, x: str, *perm: int) -> str:
        return str(self.emit("Transpose", x, perm=list(perm)))

    def concat(self, values: Sequence[str], axis: int) -> str:
        return str(self.emit("Concat", *values, axis=axis))

    def cut(self, x: str, axis: int, start: int, stop: int) -> str:
        bounds = [self.constant([number], np.int64) for number in (start, stop, axis)]
        return str(self.emit("Slice", x, *bounds))

    def add(self, a: str, b: Any) -> str:
        return str(self.emit("Add", a, self.operand(b)))

    def sub(self, a: str, b: Any) -> str:
        return str(self.emit("Sub", a, self.operand(b)))

    def mul(self, a: str, b: Any) -> str:
        return str(self.emit("Mul", a, self.operand(b)))

    def div(self, a: str, b: Any) -> str:
        return str(self.emit("Div", a, self.operand(b)))

    def matmul(self, a: str, b: str) -> str:
        return str(self.emit("MatMul", a, b))

    def operand(self, b: Any) -> str:
        return b if isinstance(b, str) else self.constant(b)

    def mean(self, x: str) -> str:
        return str(self.emit("ReduceMean", x, self.constant([2, 3], np.int64), keepdims=0))

    def norm(self, x: str) -> str:
        return str(self.emit("ReduceL2", x, self.constant([1], np.int64), keepdims=1))

    def maximum(self, x: str, axis: int) -> str:
        return str(self.emit("ReduceMax", x, self.constant([axis], np.int64), keepdims=0))

    def resize(self, x: str, factor: int) -> str:
        scales = self.constant([1, 1, factor, factor])
        return str(self.emit("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel"))

    def argmax(self, x: str, axis: int, keepdims: int = 0) -> str:
        return str(self.emit("ArgMax", x, axis=axis, keepdims=keepdims))

    def cast(self, x: str, to: str) -> str:
        return str(self.emit("Cast", x, to=getattr(TensorProto, to.upper())))

    def greater(self, x: str, limit: float) -> str:
        return str(self.emit("Greater", x, self.constant(limit)))

    def topk(self, x: str, count: int) -> tuple[str, str]:
        """The highest `count` of `[N, M]` and their indices."""
        values, indices = self.emit("TopK", x, self.constant([count], np.int64), outputs=2, axis=1)
        return values, indices

    def take(self, x: str, indices: str) -> str:
        """`[N, Q, C]` of `[N, M, C]` at indices `[N, Q]`."""
        return str(self.emit("GatherND", x, self.unsqueeze(indices, -1), batch_dims=1))

    def unsqueeze(self, x: str, axis: int) -> str:
        return str(self.emit("Unsqueeze", x, self.constant([axis], np.int64)))

    def squeeze(self, x: str, axis: int) -> str:
        return str(self.emit("Squeeze", x, self.constant([axis], np.int64)))

    def nms(self, boxes: str, scores: str, lowest: float) -> tuple[str, str]:
        """Classes and candidates `[D]` of what an NMS leaves of boxes `[1, M, 4]` with scores `[1, K, M]`."""
        limits = self.constant([20], np.int64), self.constant([0.5]), self.constant([lowest])
        selected = str(self.emit("NonMaxSuppression", boxes, scores, *limits))
        classes, candidates = (self.squeeze(self.cut(selected, 1, k, k + 1), 1) for k in (1, 2))
        return classes, candidates

    def rows(self, x: str, indices: str) -> str:
        """`[D, C]` of `[M, C]`."""
        return str(self.emit("Gather", x, indices, axis=0))


class Torch:
    """The same operations, computed."""

    def __init__(self, seed: int, indices: Sequence[Any] = ()) -> None:
        import torch

        self.torch = torch
        self.rng = np.random.default_rng(seed)
        self.indices = list(indices)  # of operations that choose, as constants of the picture

    def constant(self, array: Any, dtype: Any = np.float64) -> Any:
        return self.torch.from_numpy(np.array(array, dtype))

    def weight(self, *shape: int, scale: float | None = None) -> Any:
        return self.constant(draw(self.rng, shape, scale).astype(np.float64))

    def conv(self, x: Any, w: Any, b: Any, stride: int = 1) -> Any:
        return self.torch.nn.functional.conv2d(x, w, b, stride, w.shape[2] // 2)

    def relu(self, x: Any) -> Any:
        return x.relu()

    def sigmoid(self, x: Any) -> Any:
        return x.sigmoid()

    def exp(self, x: Any) -> Any:
        return x.exp()

    def softmax(self, x: Any, axis: int) -> Any:
        return x.softmax(axis)

    def reshape(self, x: Any, *shape: int) -> Any:
        return x.reshape([x.shape[k] if size == 0 else size for k, size in enumerate(shape)])

    def transpose(self, x: Any, *perm: int) -> Any:
        return x.permute(perm)

    def concat(self, values: Sequence[Any], axis: int) -> Any:
        return self.torch.cat(list(values), axis)

    def cut(self, x: Any, axis: int, start: int, stop: int) -> Any:
        return x.narrow(axis, start, min(stop, x.shape[axis]) - start)

    def add(self, a: Any, b: Any) -> Any:
        return a + self.operand(b)

    def sub(self, a: Any, b: Any) -> Any:
        return a - self.operand(b)

    def mul(self, a: Any, b: Any) -> Any:
        return a * self.operand(b)

    def div(self, a: Any, b: Any) -> Any:
        return a / self.operand(b)

    def matmul(self, a: Any, b: Any) -> Any:
        return a @ b

    def operand(self, b: Any) -> Any:
        return b if isinstance(b, self.torch.Tensor) else self.constant(b)

    def mean(self, x: Any) -> Any:
        return x.mean((2, 3))

    def norm(self, x: Any) -> Any:
        return x.norm(dim=1, keepdim=True)

    def maximum(self, x: Any, axis: int) -> Any:
        return x.amax(axis)

    def resize(self, x: Any, factor: int) -> Any:
        return self.torch.nn.functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    def argmax(self, x: Any, axis: int, keepdims: int = 0) -> Any:
        return x.argmax(axis, keepdim=bool(keepdims))

    def cast(self, x: Any, to: str) -> Any:
        return x.to(getattr(self.torch, {"float": "float64"}.get(to, to)))

    def greater(self, x: Any, limit: float) -> Any:
        return x > limit

    def topk(self, x: Any, count: int) -> tuple[Any, Any]:
        values, indices = x.topk(count, dim=1)
        return values, indices

    def take(self, x: Any, indices: Any) -> Any:
        return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))

    def unsqueeze(self, x: Any, axis: int) -> Any:
        return x.unsqueeze(axis)

    def squeeze(self, x: Any, axis: int) -> Any:
        return x.squeeze(axis)

    def nms(self, boxes: Any, scores: Any, lowest: float) -> tuple[Any, Any]:
        classes, candidates = self.indices
        return self.constant(classes, np.int64), self.constant(candidates, np.int64)

    def rows(self, x: Any, indices: Any) -> Any:
        return x[indices]


def draw(rng: np.random.Generator, shape: tuple[int, ...], scale: float | None) -> np.ndarray:
    """Weights that keep the size of what comes in, or of a deviation of `scale`."""
    fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
    return (rng.standard_normal(shape) * (np.sqrt(2.0 / fan_in) if scale is None else scale)).astype(np.float32)
