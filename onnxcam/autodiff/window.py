"""The geometry of sliding windows: output o sees input o·stride + t·dilation - begin for each tap t of the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxcam.autodiff.registry import Node
from onnxcam.graph.builder import Builder, Operand

LAST = 2**63 - 1  # "to the end" in a Slice


@dataclass(frozen=True)
class Window:
    """A window along one spatial axis; `begin` and `end` are None where SAME padding depends on a free dimension."""

    kernel: int
    stride: int
    dilation: int
    begin: int | None
    end: int | None

    @property
    def extent(self) -> int:
        """Input elements from the first tap to the last."""
        return self.dilation * (self.kernel - 1) + 1


def windows(op: Builder, node: Node, x: str, kernel: Sequence[int]) -> list[Window]:
    """The node's window along each spatial axis of `x`, from kernel, strides, dilations, pads and auto_pad."""
    rank = len(kernel)
    strides = node.attr("strides") or [1] * rank
    dilations = node.attr("dilations") or [1] * rank
    pads = node.attr("pads") or [0] * (2 * rank)
    mode = node.attr("auto_pad", "NOTSET")
    result = []
    for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        begin: int | None = pads[axis]
        end: int | None = pads[rank + axis]
        if mode == "VALID":
            begin = end = 0
        elif mode in ("SAME_UPPER", "SAME_LOWER"):
            extent, size = d * (k - 1) + 1, op.dim(x, axis + 2)
            total = extent - 1 if s == 1 else None if size is None else max(0, (-(-size // s) - 1) * s + extent - size)
            begin, end = (None, None) if total is None else halves(total, mode)
        result.append(Window(k, s, d, begin, end))
    return result


def halves(total: int, mode: str) -> tuple[int, int]:
    """Padding split in two; the odd element goes to the end for SAME_UPPER, to the beginning otherwise."""
    small, large = total // 2, total - total // 2
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def same_begin(op: Builder, node: Node, x: str, axis: int, window: Window) -> tuple[str, str]:
    """`begin` and `end` of SAME padding at run time: total = max(0, (out - 1)·stride + extent - in)."""
    reach = op.Add(op.Mul(op.Sub(op.size(node.output, axis), [1]), [window.stride]), [window.extent])
    total = op.Max(op.Sub(reach, op.size(x, axis)), [0])
    small = op.Div(total, [2])
    large = op.Sub(total, small)
    return (small, large) if node.attr("auto_pad") == "SAME_UPPER" else (large, small)


def crop(op: Builder, z: str, starts: Sequence[int | str], x: str, axes: Sequence[int]) -> str:
    """`z[start : start + size of x]` along each axis."""
    sizes = [op.dim(x, axis) for axis in axes]
    ends: list[int | str] = []
    for start, size, axis in zip(starts, sizes, axes, strict=True):
        if isinstance(start, int) and size is not None:
            ends.append(start + size)
        else:
            length = op.size(x, axis)
            ends.append(
                length if start == 0 else op.Add(op.operand([start] if isinstance(start, int) else start), length)
            )
    return op.Slice(z, op.vector(*starts), op.vector(*ends), list(axes))


def trim(op: Builder, dy: str, pads: Sequence[tuple[int, int]]) -> str:
    """Cut off what negative (begin, end) pads on the spatial axes ask for."""
    axes = [axis for axis, pair in enumerate(pads) if min(pair) < 0]
    if not axes:
        return dy
    starts: Operand = [max(0, -pads[axis][0]) for axis in axes]
    ends: Operand = [pads[axis][1] if pads[axis][1] < 0 else LAST for axis in axes]
    return op.Slice(dy, starts, ends, [axis + 2 for axis in axes])


def flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    """(begin, end) pairs in ONNX's order, all beginnings first, negative ones as 0."""
    return [max(0, b) for b, _ in pads] + [max(0, e) for _, e in pads]
