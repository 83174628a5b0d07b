"""One heatmap of a detector with a feature pyramid: for each row that of the level which its box is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcam.graph import edit
from onnxcam.graph.builder import Builder

FLOAT = 1  # onnx.TensorProto.FLOAT


def join(
    op: Builder, entries: Sequence[Mapping[str, Any]], gradients: Sequence[str], box: str, names: Mapping[str, str]
) -> dict[str, str]:
    """Emit the joined heatmaps and make them outputs; return their names by method.

    Maps are float32 `[N, h, w]` on the finest grid of all levels: those of coarser ones are enlarged (bilinear,
    half-pixel), and those of levels that the row's box is not computed from are left out.

    Arguments:
        entries, gradients: of each layer, its entry in the manifest, and d score / d layer.
        box: candidate of each row, int64 `[N, 1]`.
        names: of the outputs, by method.

    Returns:
        nothing where there are fewer than two levels, or a grid follows from the picture's size, which is open.
    """
    levels = [(entry, gradient) for entry, gradient in zip(entries, gradients, strict=True) if entry.get("level")]
    levels.sort(key=lambda level: op.graph.position.get(level[0]["value"], -1))
    grids = [entry.get("grid") for entry, _ in levels]
    sizes = [(grid[0], grid[1]) for grid in grids if grid is not None]
    if len(levels) < 2 or len(sizes) < len(levels):
        return {}
    op.dtype = FLOAT
    shares = [op.Unsqueeze(one, [2]) for one in _members(op, levels, box)]
    finest = max(sizes, key=lambda size: size[0] * size[1])
    outputs = {}
    for method, name in names.items():
        parts = []
        for (entry, _), size, share in zip(levels, sizes, shares, strict=True):
            heatmap = entry["heatmaps"][method]
            parts.append(op.Mul(heatmap if size == finest else _resized(op, heatmap, finest), share))
        outputs[method] = op.Sum(*parts, name=name)
        op.graph.model.graph.output.append(edit.info(name, FLOAT, ["N", *finest]))
    return outputs


def _resized(op: Builder, heatmap: str, size: tuple[int, int]) -> str:
    """A map `[N, h, w]` at another size, half-pixel and bilinear."""
    whole = op.Unsqueeze(heatmap, [1])
    sizes = op.Concat(op.Shape(whole, start=0, end=2), list(size), axis=0)
    options = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return op.Squeeze(op.Resize(whole, None, None, sizes, **options), [1])


def _members(op: Builder, levels: Sequence[tuple[Mapping[str, Any], str]], box: str) -> list[str]:
    """For each level whether a row's box is computed from it, float32 `[N, 1]`.

    Where the candidates of the levels are not known beforehand, the last level with a gradient is the one: a level may
    be computed from those before it.
    """
    if all(entry.get("candidates") for entry, _ in levels):
        masks = []
        for entry, _ in levels:
            parts = [op.And(op.GreaterOrEqual(box, int(a)), op.Less(box, int(b))) for a, b in entry["candidates"]]
            mask = parts[0]
            for part in parts[1:]:
                mask = op.Or(mask, part)
            masks.append(op.Cast(mask, to=FLOAT))
        return masks
    later: str | None = None
    reversed_masks = []
    zero = np.asarray(0, np.float32)
    for _, gradient in reversed(levels):
        flat = op.Flatten(op.Cast(gradient, to=FLOAT), axis=1)
        present = op.Greater(op.ReduceMax(op.Abs(flat), [1], keepdims=1), zero)
        mask = present if later is None else op.And(present, op.Not(later))
        later = present if later is None else op.Or(present, later)
        reversed_masks.append(op.Cast(mask, to=FLOAT))
    return reversed_masks[::-1]
