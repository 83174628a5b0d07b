"""What a network's layers, filters and neurons respond to, from its ONNX file.

Functions here have names that no module of the package has: importing a module would hide the function.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcam.inside.dead_channels import Dead as Dead
    from onnxcam.inside.dead_channels import dead as dead
    from onnxcam.inside.feature_maps import FeatureMaps as FeatureMaps
    from onnxcam.inside.feature_maps import features as features
    from onnxcam.inside.filter_weights import Filters as Filters
    from onnxcam.inside.filter_weights import filters as filters
    from onnxcam.inside.maximization import Maximized as Maximized
    from onnxcam.inside.maximization import maximize as maximize
    from onnxcam.inside.perturbation import Perturbation as Perturbation
    from onnxcam.inside.perturbation import perturb as perturb
    from onnxcam.inside.receptive_fields import Field as Field
    from onnxcam.inside.receptive_fields import effective as effective
    from onnxcam.inside.receptive_fields import fields as fields

# resolved on first use, so that a command imports what it needs alone
_LAZY = {
    "Dead": "onnxcam.inside.dead_channels",
    "FeatureMaps": "onnxcam.inside.feature_maps",
    "Field": "onnxcam.inside.receptive_fields",
    "Perturbation": "onnxcam.inside.perturbation",
    "Filters": "onnxcam.inside.filter_weights",
    "Maximized": "onnxcam.inside.maximization",
    "dead": "onnxcam.inside.dead_channels",
    "effective": "onnxcam.inside.receptive_fields",
    "features": "onnxcam.inside.feature_maps",
    "perturb": "onnxcam.inside.perturbation",
    "filters": "onnxcam.inside.filter_weights",
    "fields": "onnxcam.inside.receptive_fields",
    "maximize": "onnxcam.inside.maximization",
}

__all__ = [
    "Dead",
    "FeatureMaps",
    "Field",
    "Filters",
    "Maximized",
    "Perturbation",
    "dead",
    "effective",
    "features",
    "fields",
    "filters",
    "maximize",
    "perturb",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'onnxcam.inside' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
