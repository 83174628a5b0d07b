"""Which axes of a tensor are rows, channels, height, width or tokens; kept free of onnx, as manifests are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from onnxcam.graph.builder import Builder
    from onnxcam.graph.layers import Layer
    from onnxcam.graph.window import Window

_FLOAT = 1  # onnx.TensorProto.FLOAT
_REST = np.iinfo(np.int64).max  # ends a Slice at the last element
T = TypeVar("T")


class Layout(NamedTuple):
    """The axes of a picture or of a layer.

    The *canonical* layout is `[N, C, h, w]`. Tokens that lie on a grid are a map too: `grid` gives its height and
    width, `prefix_tokens` how many tokens (class, distillation, registers) come before the patches. A map whose height
    and width share one axis, N(HW)C, is `NTC` without prefix tokens.

    Attributes:
        name: a letter per axis, as manifests have it: `NCHW`, `NHWC` or `NTC`.
        grid: height and width of the patches, `NTC` only.
        prefix_tokens: tokens before the patches, `NTC` only.
        window: the part of the model's input that a layer's grid covers; None for all of it.
    """

    name: str = "NCHW"
    grid: tuple[int, int] | None = None
    prefix_tokens: int = 0
    window: Window | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Layout:
        """The layout of a manifest's entry: its `input`, or one of its `layers`."""
        grid = entry.get("grid")
        return cls(
            entry["layout"],
            None if grid is None else (grid[0], grid[1]),
            entry.get("prefix_tokens") or 0,
            window_of(entry),
        )

    @classmethod
    def of_layer(cls, layer: Layer) -> Layout:
        """The layout of a resolved layer."""
        return cls(layer.layout or "NCHW", layer.grid, layer.prefix_tokens, layer.window)

    @property
    def tokens(self) -> bool:
        """Whether positions are tokens on one axis instead of rows and columns on two."""
        return "T" in self.name

    @property
    def channels(self) -> int:
        """The axis of channels."""
        return self.name.index("C")

    @property
    def height(self) -> int:
        """The axis of height."""
        return self.name.index("H")

    @property
    def width(self) -> int:
        """The axis of width."""
        return self.name.index("W")

    def size(self, shape: Sequence[T]) -> tuple[T, T]:
        """Height and width in a shape of this layout."""
        return shape[self.height], shape[self.width]

    def shape(self, rows: T, channels: T, height: T, width: T) -> tuple[T, ...]:
        """The shape of a batch of this layout."""
        dims = {"N": rows, "C": channels, "H": height, "W": width}
        return tuple(dims[axis] for axis in self.name)

    def to_canonical(self, value: np.ndarray) -> np.ndarray:
        """A tensor of this layout as `[N, C, h, w]`, without its prefix tokens; a view where NumPy gives one."""
        if self.tokens:
            patches = value[:, self.prefix_tokens :].transpose(0, 2, 1)
            return patches.reshape(*patches.shape[:2], *(self.grid or (0, 0)))
        return value if self.name == "NCHW" else value.transpose([self.name.index(axis) for axis in "NCHW"])

    def from_canonical(self, value: np.ndarray, prefix: np.ndarray | None = None) -> np.ndarray:
        """A tensor `[N, C, h, w]` in this layout.

        Arguments:
            prefix: the rows' prefix tokens, `[N, prefix_tokens, C]`, `NTC` only; the result has their element type.
        """
        if self.tokens:
            patches = value.reshape(*value.shape[:2], -1).transpose(0, 2, 1)
            return patches if prefix is None else np.concatenate([prefix, patches.astype(prefix.dtype)], axis=1)
        return value if self.name == "NCHW" else value.transpose(["NCHW".index(axis) for axis in self.name])

    def emit_canonical(self, op: Builder, value: str, kind: int) -> str:
        """Emit nodes that bring a value of this layout to float32 `[N, C, h, w]`; return that value.

        Arguments:
            kind: the `TensorProto` element type of the value.
        """
        if kind != _FLOAT:
            value = op.Cast(value, to=_FLOAT)
        if self.tokens:
            if self.prefix_tokens:
                value = op.Slice(value, [self.prefix_tokens], [_REST], [1])
            return op.Reshape(op.Transpose(value, perm=[0, 2, 1]), [0, 0, *(self.grid or (0, 0))])
        if self.name == "NCHW":
            return value
        return op.Transpose(value, perm=[self.name.index(axis) for axis in "NCHW"])


def window_of(entry: Mapping[str, Any]) -> Window | None:
    """The part of the model's input that a layer's grid covers, from the manifest's entry; None for all of it."""
    if entry.get("window") is None:
        return None
    from onnxcam.graph.window import Window  # most files have none

    return Window.of(entry["window"])


def crops_of(entry: Mapping[str, Any]) -> tuple[Window, ...] | None:
    """What each of a picture's rows covers of the model's input, from the manifest's entry of a layer with several rows
    for each picture; None where there is one, or that is not known."""
    if entry.get("crops") is None:
        return None
    from onnxcam.graph.window import Window

    return tuple(Window.of(window) for window in entry["crops"])
