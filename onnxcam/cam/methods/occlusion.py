"""Attributions of the input by what the model says when parts of the picture are hidden: no gradient is needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcam.cam.buffer import Buffer
from onnxcam.cam.methods.attributions import broadcast, whole
from onnxcam.cam.registry import attribution
from onnxcam.cam.resize import linear
from onnxcam.cam.view import View
from onnxcam.errors import MethodError
from onnxcam.targets.objectives import probable


@attribution("occlusion", gradient=False, long=True)
def occlusion(view: View, window: Any = None, stride: Any = None, baseline: Any = 0.0) -> np.ndarray:
    """mean of F(x) - F(x without the window) over the windows that hide a value.
    https://arxiv.org/abs/1311.2901 (section 4.2).

    Windows as captum's: shifted by the stride, the last one cut off at the border; over all channels at once unless
    three sizes are given.

    Arguments:
        window: height and width of what is hidden, one number for both, or (channels, height, width); None for an
            eighth of the picture's sides.
        stride: by how much it is shifted, in the same forms; at most the window. None for half of the window.
        baseline: what is put in its place, in the units of the model's input: a number, one per channel, or an array
            `[C, H, W]` or `[N, C, H, W]`.
    """
    picture = view.input
    x = picture.activations
    sides = x.shape[1:]
    size = _sizes("window", window, sides, [max(1, side // 8) for side in sides[1:]])
    step = _sizes("stride", stride, sides, [max(1, side // 2) for side in size[1:]], channels=size[0])
    for length, shift, side in zip(size, step, sides, strict=True):
        if length > side or (shift > length and length < side):
            raise MethodError(
                f"window {list(size)} and stride {list(step)} of a picture {list(sides)}; expected a window within the "
                "picture and a stride of at most the window"
            )
    hidden = broadcast("baseline", baseline, x)
    counts = [-(-(side - length) // shift) + 1 for side, length, shift in zip(sides, size, step, strict=True)]
    places = int(np.prod(counts))
    rows = len(x)

    def window_of(place: int) -> tuple[slice, slice, slice]:
        starts = [int(at) * shift for at, shift in zip(np.unravel_index(place, counts), step, strict=True)]
        channels, down, across = (
            slice(start, min(start + length, side)) for start, length, side in zip(starts, size, sides, strict=True)
        )
        return channels, down, across

    def make(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        place, row = np.divmod(np.arange(first, last), rows)
        changed = x[row]
        for one, at, of in zip(changed, place.tolist(), row.tolist(), strict=True):
            where = window_of(at)
            one[where] = hidden[of][where]
        return changed, row

    values = picture.occluded([window_of(place) for place in range(places)], hidden)
    if values is None:
        values = picture.values(places * rows, make).reshape(places, rows)
    lost = view.value() - values
    total, covers = np.zeros(x.shape), np.zeros(sides)
    for place, by_row in enumerate(lost):
        where = window_of(place)
        covers[where] += 1
        total[(slice(None), *where)] += by_row[:, None, None, None]
    return np.asarray(total / covers, np.float32)


@attribution("rise", gradient=False, long=True)
def rise(view: View, masks: int = 1000, cells: int = 7, keep: float = 0.5, baseline: Any = 0.0) -> np.ndarray:
    """sum_i p(x * M_i) M_i / (masks keep), M_i random masks.  https://arxiv.org/abs/1806.07421 (eq. 6).

    A mask is a grid of cells, each kept with probability `keep`, enlarged bilinearly by one cell more than the picture
    and cropped at random (section 3.2). As in the paper a class is weighed by its probability, not by its logit: with a
    logit, which has no zero, its mean would multiply the noise of the masks. An objective other than a class's logit (a
    contrast, weights) is taken as it is. Every picture of a batch gets the same masks. A pixel's number is shared
    equally by its channels.

    Arguments:
        masks: how many; the paper takes 4,000 to 8,000, and noise falls with their square root.
        cells: of the grid, along each side.
        keep: the probability that a cell is kept.
        baseline: what a masked pixel fades to, in the units of the model's input, as in `occlusion`.
    """
    masks, cells = whole("masks", masks, 1), whole("cells", cells, 1)
    if not 0 < keep < 1:
        raise MethodError(f"keep={keep!r}; expected a probability between 0 and 1")
    picture = view.input.under(probable(view.objective, view.readout))
    x = picture.activations
    rows, (height, width) = len(x), view.shape
    hidden = broadcast("baseline", baseline, x)
    cell = (-(-height // cells), -(-width // cells))
    grids = view.rng.random((masks, cells, cells)) < keep
    shifts = view.rng.integers(0, cell, size=(masks, 2))
    down, across = linear(cells, (cells + 1) * cell[0]), linear(cells, (cells + 1) * cell[1])

    visible, faded = x - hidden, bool(hidden.any())
    buffer, mask = Buffer(x.shape[1:]), np.empty((height, width), np.float32)

    def band(index: int) -> np.ndarray:
        """Mask `index` before its cells are enlarged downwards, float32 `[cells, width]`."""
        left = shifts[index, 1]
        return np.asarray(grids[index].astype(np.float32) @ across[left : left + width].T)

    def make(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        index, row = np.divmod(np.arange(first, last), rows)
        points, enlarged = buffer.rows(last - first), -1
        for point, i, r in zip(points, index.tolist(), row.tolist(), strict=True):
            if i != enlarged:
                np.matmul(down[shifts[i, 0] : shifts[i, 0] + height], band(i), out=mask)
                enlarged = i
            np.multiply(visible[r], mask, out=point)
            if faded:
                point += hidden[r]
        return points, row

    values = picture.values(masks * rows, make).reshape(masks, rows)
    # enlarging downwards is linear, and the same for all masks of one shift: it may follow their sum
    bands: dict[int, np.ndarray] = {}
    for index, top in enumerate(shifts[:, 0].tolist()):
        summed = bands.setdefault(top, np.zeros((rows, cells, width)))
        summed += values[index, :, None, None] * band(index)
    total = np.zeros((rows, height, width))
    for top, summed in bands.items():
        total += down[top : top + height].astype(np.float64) @ summed
    channels = x.shape[1]
    means = (total / (masks * keep * channels)).astype(np.float32)[:, None]
    return np.repeat(means, channels, axis=1)


def _sizes(
    name: str, value: Any, sides: tuple[int, ...], usual: list[int], channels: int | None = None
) -> tuple[int, int, int]:
    """(channels, height, width) of a window or a stride."""
    deep = channels or sides[0]
    lengths = usual if value is None else [value, value] if isinstance(value, (int, np.integer)) else list(value)
    if len(lengths) == 2:
        lengths = [deep, *lengths]
    if len(lengths) != 3:
        raise MethodError(f"{name}={value!r}; expected a number, (height, width) or (channels, height, width)")
    return whole(name, lengths[0], 1), whole(name, lengths[1], 1), whole(name, lengths[2], 1)
