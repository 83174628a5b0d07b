"""The picture a Keras model takes: its size and type, what it means, and an example of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcam.errors import ModelError
from onnxcam.exporters import parity
from onnxcam.exporters.keras_module import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    Call,
    Watched,
    layout_of_picture,
    tensors,
)
from onnxcam.graph.shape_inference import describe
from onnxcam.network.layout import Layout

DEFAULT_SIDE = 224
# layers that move or crop a picture and leave its numbers as they are
_GEOMETRY = {"InputLayer", "Resizing", "CenterCrop", "ZeroPadding2D", "Cropping2D", "Permute", "Reshape"}

log = logging.getLogger(__name__)


def shape_and_type(watched: Watched, size: int | Sequence[int] | None) -> tuple[tuple[int, int, int], np.dtype, Layout]:
    """The shape of a picture, its dtype, and which axes are channels, height and width.

    Arguments:
        watched: a Keras model.
        size: n, (h, w) or (c, h, w), where the model leaves it open.

    Raises:
        ModelError: several inputs, no picture, or a size that contradicts the model's.
    """
    declared, dtype = _declared(watched.root)
    sides = [size, size] if isinstance(size, int) else list(size or ())
    if len(sides) == 3:
        sides = [*sides[1:], sides[0]]
    elif len(sides) not in (0, 2):
        raise ModelError(f"got {sides} as the input size; expected n, (h, w) or (c, h, w)")
    if declared is None:
        if not sides:
            raise ModelError(
                "the model was never built, so the size of its pictures is unknown; call it once on a picture batch, "
                "or give the size (input_size=, --input-size)"
            )
        declared = (None, None, None)
    if len(declared) != 3:
        raise ModelError(
            f"the model's input is {describe(('N', *declared))}; expected a batch of pictures [N, H, W, C]"
        )
    layout = layout_of_picture(watched, declared)
    if layout is CHANNELS_FIRST:
        declared = (*declared[1:], declared[0])
    height, width, channels = declared
    if sides and any(fixed is not None and fixed != side for fixed, side in zip(declared, sides, strict=False)):
        raise ModelError(f"got the input size {sides}, but the model takes {[height, width, channels]}")
    if not sides and (height is None or width is None):
        log.warning("the model leaves the size of its pictures open; assuming %d × %d", DEFAULT_SIDE, DEFAULT_SIDE)
        sides = [DEFAULT_SIDE, DEFAULT_SIDE]
    height, width = (sides[0], sides[1]) if sides else (height, width)
    channels = channels or (sides[2] if len(sides) == 3 else 3)
    assert height is not None and width is not None
    shape = int(height), int(width), int(channels)
    return (shape if layout is not CHANNELS_FIRST else (shape[2], *shape[:2])), dtype, layout


def _declared(model: Any) -> tuple[tuple[int | None, ...] | None, np.dtype]:
    """The dimensions the model declares for its one input, without the batch; None where it declares nothing."""
    try:
        inputs = tensors(model.inputs) if getattr(model, "inputs", None) is not None else []
    except (AttributeError, ValueError):
        inputs = []
    if len(inputs) > 1:
        names = ", ".join(f"{getattr(i, 'name', '?')!r} {['N', *i.shape[1:]]}" for i in inputs)
        raise ModelError(f"the model has {len(inputs)} inputs ({names}); expected exactly one, a batch of pictures")
    if inputs:
        floating = "float" in str(inputs[0].dtype)
        kind = None if floating else np.dtype(getattr(inputs[0].dtype, "name", inputs[0].dtype))
        return tuple(inputs[0].shape[1:]), kind or np.dtype(np.float32)
    config = model.get_build_config() if getattr(model, "built", False) and hasattr(model, "get_build_config") else None
    shape = (config or {}).get("input_shape") or next(iter(((config or {}).get("shapes_dict") or {}).values()), None)
    if shape is None or not all(side is None or isinstance(side, int) for side in shape):
        return None, np.dtype(np.float32)
    return tuple(shape[1:]), np.dtype(np.float32)


def example(
    shape: tuple[int, int, int], dtype: np.dtype, spec: Mapping[str, Any] | None, layout: Layout = CHANNELS_LAST
) -> np.ndarray:
    """Two seeded noise pictures `[2, *shape]`: prepared as `spec` says, standard normal without it."""
    generator = np.random.default_rng(parity.SEED)
    if spec is None and np.issubdtype(dtype, np.floating):
        return generator.standard_normal((2, *shape)).astype(dtype)
    spec = spec or {}
    pixels = generator.integers(0, 256, (2, *shape)).astype(np.float64)
    if layout is CHANNELS_FIRST:
        pixels = pixels.transpose(0, 2, 3, 1)
    prepared = np.asarray((pixels * spec.get("scale", 1.0) - spec.get("mean", 0.0)) / spec.get("std", 1.0))
    return (prepared.transpose(0, 3, 1, 2) if layout is CHANNELS_FIRST else prepared).astype(dtype)


def scaling(watched: Watched, calls: Sequence[Call]) -> str | None:
    """`raw` or `0..1` where the model scales such pixels itself before anything else, None where it does not.

    Both Rescaling(1/255) and a Normalization whose mean is above 1 are made for pixels of 0 to 255.
    """
    for call in calls:
        kind = type(call.layer).__name__
        if not call.leaf or kind in _GEOMETRY or kind.startswith(("Random", "Dropout", "GaussianNoise")):
            continue
        if kind == "Rescaling":
            scale = float(np.max(np.asarray(call.layer.scale)))
            return "raw" if scale <= 0.05 else "0..1" if scale <= 4 else None
        if kind == "Normalization":
            mean = float(np.max(np.abs(np.asarray(call.layer.mean))))
            return "raw" if mean > 1 else "0..1" if mean > 0 else None
        break
    operations = getattr(watched.root, "operations", [])
    for operation in operations:
        kind = type(operation).__name__
        if kind in ("TrueDivide", "Divide", "Multiply") and not hasattr(operation, "get_weights"):
            return "raw"  # x / 127.5 - 1 and the like in a functional model, as preprocess_input writes it
        if kind not in _GEOMETRY and not kind.startswith("Random"):
            break
    return None
