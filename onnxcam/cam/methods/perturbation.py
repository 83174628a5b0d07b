"""Maps from what the model says when a layer, or the picture through it, is partly taken away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcam.cam.buffer import Buffer
from onnxcam.cam.registry import layer_method
from onnxcam.cam.view import View
from onnxcam.errors import MethodError

# a channel that varies by less than this part of its largest value is constant but for rounding
_CONSTANT = 1e-6
# masks [m, H, W] and the number of the sample [m] -> changed masks
Alter = Callable[[np.ndarray, np.ndarray], np.ndarray]


@layer_method("ablationcam", gradient=False, summed=True, divides=True)
def ablationcam(view: View, channels: int = 0) -> np.ndarray:
    """sum_c w * A, w = (y - y without channel c) / y.  https://openaccess.thecvf.com/content_WACV_2020/papers/Desai_Ablation-CAM_Visual_Explanations_for_Deep_Convolutional_Network_via_Gradient-free_WACV_2020_paper.pdf (eq. 3).

    Only the graph behind the layer runs again; where that is affine, taking a channel away changes y by sum_S dA * A,
    and one pass back says it for all of them. `channels`: how many to take away, those of most energy; 0 for all.
    """  # noqa: E501
    a, y = view.activations, view.value()
    if view.affine and view.objective.linear and not channels:
        drop = (view.gradients.astype(np.float64) * a).sum(axis=(2, 3))
    else:
        order = strongest(a, channels)
        rows, count = order.shape

        def make(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            row, place = np.divmod(np.arange(start, stop), count)
            changed = a[row]
            changed[np.arange(stop - start), order[row, place]] = 0
            return changed, row

        without = view.without_channels(order)
        if without is None:
            without = view.values(rows * count, make).reshape(rows, count)
        drop = np.zeros(a.shape[:2])
        np.put_along_axis(drop, order, y[:, None] - without, axis=1)
    weights = drop / np.where(y == 0, 1.0, y)[:, None]
    return np.asarray(weights[:, :, None, None] * a, np.float32)


@layer_method("reciprocam", gradient=False)
def reciprocam(view: View) -> np.ndarray:
    """At each place the score when the layer is kept there alone, minus the lowest of these.

    https://arxiv.org/abs/2209.14074; its authors' code brings the map to 0..1 by minimum and maximum. One run of the
    graph behind the layer per place; where that is affine, one pass back says it for all of them.
    """
    a = view.activations
    rows, _, height, width = a.shape
    if view.affine and view.objective.linear:
        contributions = (view.gradients.astype(np.float64) * a).sum(axis=1)
        return _above_lowest(contributions)
    size = height * width

    def make(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        row, place = np.divmod(np.arange(start, stop), size)
        y, x = np.divmod(place, width)
        changed = np.zeros((stop - start, *a.shape[1:]), np.float32)
        changed[np.arange(stop - start), :, y, x] = a[row, :, y, x]
        return changed, row

    alone = view.places_alone()
    alone = view.values(rows * size, make) if alone is None else alone
    return _above_lowest(alone.reshape(rows, height, width))


def _above_lowest(maps: np.ndarray) -> np.ndarray:
    return np.asarray(maps - maps.min(axis=(1, 2), keepdims=True), np.float32)


@layer_method("scorecam", gradient=False, long=True, summed=True)
def scorecam(view: View, channels: int = 0) -> np.ndarray:
    """sum_c w * A, w = softmax over c of the score of the picture seen through channel c.

    https://arxiv.org/abs/1910.01279. A channel is a mask once it is enlarged to the picture and brought to 0..1; of
    one that is the same everywhere the mask is 0. The whole model runs once per channel. `channels`: how many to look
    through, those of most energy; 0 for all.
    """
    return _masked(view, channels, lambda masks, _: masks, 1)


@layer_method("sscam", gradient=False, long=True, summed=True)
def sscam(view: View, channels: int = 0, samples: int = 10, stdev: float = 0.2) -> np.ndarray:
    """As scorecam, the score a mean over `samples` masks with normal noise on them.  https://arxiv.org/abs/2006.14255.

    `stdev`: of the noise, of masks of 0..1.
    """
    positive(samples=samples, stdev=stdev)

    def noisy(masks: np.ndarray, _: np.ndarray) -> np.ndarray:
        return masks + view.rng.normal(0.0, stdev, masks.shape).astype(np.float32)

    return _masked(view, channels, noisy, samples)


@layer_method("iscam", gradient=False, long=True, summed=True)
def iscam(view: View, channels: int = 0, samples: int = 10) -> np.ndarray:
    """As scorecam, the score a mean over masks of growing strength, i / samples for i = 1 .. samples.

    https://arxiv.org/abs/2010.03023
    """
    positive(samples=samples)

    def weaker(masks: np.ndarray, number: np.ndarray) -> np.ndarray:
        return masks * ((number + 1) / samples).astype(np.float32)[:, None, None]

    return _masked(view, channels, weaker, samples)


def _masked(view: View, channels: int, alter: Alter, samples: int) -> np.ndarray:
    """Terms weighted by the scores of masked pictures."""
    a, pictures, shape = view.activations, view.input.activations, view.shape
    order = strongest(a, channels)
    rows, count = order.shape
    varying = np.ptp(a, axis=(2, 3)) > _CONSTANT * np.abs(a).max(axis=(2, 3))
    channel_maps, spans = a, ((0.0, float(shape[0])), (0.0, float(shape[1])))
    if view.window is not None:
        channel_maps = a.swapaxes(2, 3) if view.window.transposed else a
        spans = view.window.height, view.window.width
    buffer = Buffer(pictures.shape[1:])
    down, across = (_within(channel_maps.shape[axis], spans[axis - 2], shape[axis - 2]) for axis in (2, 3))

    def make(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        which, number = np.divmod(np.arange(start, stop), samples)
        row, place = np.divmod(which, count)
        masks = down @ channel_maps[row, order[row, place]] @ across.T
        low, high = masks.min(axis=(1, 2), keepdims=True), masks.max(axis=(1, 2), keepdims=True)
        masks -= low  # in place: pages that the system has to give anew take longer than what is computed in them
        # the 1e-8 of pytorch-grad-cam, less where activations are small
        span = high - low
        masks /= np.maximum(span + np.minimum(np.float32(1e-8), np.float32(1e-6) * span), np.finfo(np.float32).tiny)
        masks[~varying[row, order[row, place]]] = 0  # enlarging left rounding noise of it
        altered = alter(masks, number)
        seen_through = buffer.rows(stop - start)
        for one, mask, of in zip(seen_through, altered, row, strict=True):
            np.multiply(pictures[of], mask, out=one)
        return seen_through, row

    scores = view.input.values(rows * count * samples, make).reshape(rows, count, samples).mean(axis=2)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    terms = np.zeros_like(a)
    place = np.arange(rows)[:, None]
    terms[place, order] = weights[:, :, None, None] * a[place, order]
    return terms


def strongest(a: np.ndarray, channels: int) -> np.ndarray:
    """The channels of most energy (sum over places of their squares about the mean), int64 `[N, channels]`; 0 for all.

    Raises:
        MethodError: not a number of channels.
    """
    rows, count = a.shape[:2]
    if isinstance(channels, bool) or not isinstance(channels, (int, np.integer)) or not 0 <= channels <= count:
        raise MethodError(f"channels={channels!r}; expected 1 to {count}, the channels of the layer, or 0 for all")
    if channels in (0, count):
        return np.broadcast_to(np.arange(count), (rows, count))
    energy = a.var(axis=(2, 3))
    return np.argsort(-energy, axis=1, kind="stable")[:, :channels]


def _within(small: int, span: tuple[float, float], large: int) -> np.ndarray:
    """The matrix `[large, small]` of `enlarging` onto a span of an axis, mirrored where it stops before it starts."""
    first, last = sorted(round(end) for end in span)
    matrix = enlarging(small, max(last - first, 1))
    matrix = matrix if span[0] < span[1] else matrix[::-1]
    whole = np.zeros((large, small), np.float32)
    start, stop = max(first, 0), min(first + len(matrix), large)
    if start < stop:
        whole[start:stop] = matrix[start - first : stop - first]
    return whole


def enlarging(small: int, large: int) -> np.ndarray:
    """The bilinear matrix `[large, small]` with corners on corners, as these methods' authors enlarge channels."""
    at = np.linspace(0.0, small - 1.0, large) if large > 1 else np.zeros(1)
    low = np.minimum(at.astype(np.int64), max(small - 2, 0))
    part = (at - low).astype(np.float32)
    matrix = np.zeros((large, small), np.float32)
    matrix[np.arange(large), low] += 1 - part
    matrix[np.arange(large), np.minimum(low + 1, small - 1)] += part
    return matrix


def positive(**options: float) -> None:
    """Refuse options that must be above zero.

    Raises:
        MethodError: one that is not.
    """
    for name, value in options.items():
        if not value > 0:
            raise MethodError(f"{name}={value!r}; expected a number above 0")
