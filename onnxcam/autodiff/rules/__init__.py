"""VJP rules, one module per family of operators; importing this package registers them all."""

from onnxcam.autodiff.rules import (
    control,
    conv,
    elementwise,
    linear,
    norm,
    pool,
    quantize,
    reduce,
    resample,
    sample,
    shape,
)

__all__ = [
    "control",
    "conv",
    "elementwise",
    "linear",
    "norm",
    "pool",
    "quantize",
    "reduce",
    "resample",
    "sample",
    "shape",
]
