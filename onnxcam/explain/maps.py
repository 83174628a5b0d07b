"""From the maps of layers to one map: smoothing, normalisation, size, fusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam import image
from onnxcam.cam.registry import INPUT, Method
from onnxcam.errors import InputError, ModelError

if TYPE_CHECKING:
    from onnxcam.graph.window import Window

FUSIONS = ("mean", "max", "product")
EIGEN, AUGMENT = "eigen", "augment"
SMOOTHINGS = (EIGEN, AUGMENT)
INPUT_SIZE, LAYER_SIZE = "input", "layer"


def smoothings(smooth: Any) -> frozenset[str]:
    """The smoothings that `smooth=` names: `eigen`, `augment`, both in a sequence, or none.

    Raises:
        InputError: something else.
    """
    names = frozenset({smooth} if isinstance(smooth, str) else smooth or ())
    if not names <= {*SMOOTHINGS}:
        raise InputError(f"smooth={smooth!r}; expected '{EIGEN}', '{AUGMENT}', or both")
    return names


def fuse(
    maps: Sequence[np.ndarray],
    normalize: str,
    size: tuple[int, int],
    fusion: str = "mean",
    *,
    windows: Sequence[Window | None] = (),
    input_size: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """Fuse the maps of several layers into one, as pytorch-grad-cam does.

    Per layer: normalise, resize to `size`; then the mean over layers (or their maximum, or the geometric mean of their
    product), normalised again.

    Arguments:
        maps: per layer float32 `[N, h, w]`, after ReLU.
        normalize: `minmax`, `max` or `none`.
        size: height and width of the result.
        fusion: `mean`, `max` or `product`.
        windows: per layer the part of the model's input that its map covers, None for all of it; the result then covers
            the whole input, and is 0 where the map says nothing.
        input_size: height and width of the model's input, needed with windows.

    Returns:
        float32 `[N, H, W]`.

    Raises:
        InputError: no such normalisation or fusion. ModelError: a map is not finite.
    """
    if fusion not in FUSIONS:
        raise InputError(f"fusion={fusion!r}; expected one of {', '.join(FUSIONS)}")
    check_finite(maps)
    resized = [image.normalize(layer_map, normalize) for layer_map in maps]
    for place, window in enumerate(windows):
        if window is not None:
            resized[place] = window.place(resized[place], input_size, size)
    resized = [image.resize_map(layer_map, size) for layer_map in resized]
    if len(resized) == 1:  # at another size it is an array of its own; at the layer's it may be the map itself
        return image.normalize(resized[0], normalize, overwrite=resized[0].shape != maps[0].shape)
    stacked = np.stack(resized)
    if fusion == "product":
        joined = np.prod(np.maximum(stacked, 0), axis=0) ** (1.0 / len(resized))
    else:
        joined = stacked.max(axis=0) if fusion == "max" else stacked.mean(axis=0)
    return image.normalize(np.asarray(joined, np.float32), normalize)


def check_finite(maps: Sequence[np.ndarray]) -> None:
    """Refuse maps with a value that is not finite.

    Raises:
        ModelError: one has.
    """
    if not all(np.isfinite(layer_map).all() for layer_map in maps):
        raise ModelError(
            "the map is not finite: the model's activations or gradients overflow at this layer, or the picture's "
            "values do; check the model and its preprocessing, or try another layer or method"
        )


def windows_of(
    method: Method, windows: Sequence[Window | None], size: str | tuple[int, int] = INPUT_SIZE
) -> Sequence[Window | None]:
    """The windows through which a method's maps of layers are drawn.

    None for an attribution of the input, which covers all of it; nor for one layer's map at the layer's own size.
    """
    return () if method.kind == INPUT or (size == LAYER_SIZE and len(windows) == 1) else windows


def visible_parts(
    geometry: image.Geometry, windows: Sequence[Window | None], *, mirrored: bool = False
) -> list[image.Rectangle] | None:
    """The parts of a picture that a map covers, in its pixels; None for all of it.

    Arguments:
        geometry: how the picture was mapped to the model's input.
        windows: per layer the part of the input that its map covers; empty, or one of them None, for all of it.
        mirrored: whether the map is a mean that includes maps of the mirrored input.
    """
    some = [window for window in windows if window is not None]
    spans: list[tuple[Any, Any]] = [(window.height, window.width) for window in some]
    if not some or len(some) < len(windows):
        spans = [(None, None)]
    if mirrored:
        width = geometry.input_size[1]
        spans += [(rows, columns and (width - columns[0], width - columns[1])) for rows, columns in spans]
    parts = list(dict.fromkeys(geometry.visible(rows, columns) for rows, columns in spans))
    return [part for part in parts if part.area] if image.hidden(geometry.picture_size, parts) else None


def check_size(size: Any) -> str | tuple[int, int]:
    """The size that `size=` names: `input`, `layer`, or a height and width.

    Raises:
        InputError: something else.
    """
    if isinstance(size, str) and size in (INPUT_SIZE, LAYER_SIZE):
        return size
    pair = isinstance(size, (tuple, list)) and all(isinstance(side, (int, np.integer)) and side > 0 for side in size)
    if pair and len(size) == 2:
        return int(size[0]), int(size[1])
    raise InputError(f"size={size!r}; expected 'input', 'layer' or (height, width)")


def map_size(size: str | tuple[int, int], input_size: tuple[int, int], maps: Sequence[np.ndarray]) -> tuple[int, int]:
    """Height and width of a size as `check_size` gives it; `layer` is that of the last map."""
    if isinstance(size, tuple):
        return size
    return input_size if size == INPUT_SIZE else (maps[-1].shape[1], maps[-1].shape[2])
