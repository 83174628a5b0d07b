"""onnxcam: which pixels made a deployed image classifier say that, from the ONNX file alone."""

from __future__ import annotations

# Nothing is imported here, not even `typing` (6 ms with `onnxcam.errors`): the command takes care of Ctrl-C once this
# package is there, and until then Python prints a traceback. Type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from onnxcam.autodiff.gradient import gradient as gradient
    from onnxcam.errors import OnnxcamError as OnnxcamError
    from onnxcam.explain.calibrate import calibrate as calibrate
    from onnxcam.explain.explainer import Explainer as Explainer
    from onnxcam.explain.explanation import Explanation as Explanation
    from onnxcam.monitor.hook import Monitor as Monitor
    from onnxcam.network.explainable import augment as augment
    from onnxcam.network.network import list_layers as layers
    from onnxcam.network.probe.probe import probe as probe
    from onnxcam.targets.objectives import Contrast as Contrast
    from onnxcam.targets.objectives import Probability as Probability
    from onnxcam.targets.objectives import Weights as Weights

__version__ = "0.1.0"

# resolved on first use, so that `import onnxcam` loads neither onnx nor onnxruntime nor cv2
_LAZY = {
    "OnnxcamError": "onnxcam.errors",
    "augment": "onnxcam.network.explainable",
    "layers": "onnxcam.network.network:list_layers",
    "probe": "onnxcam.network.probe.probe",
    "calibrate": "onnxcam.explain.calibrate",
    "gradient": "onnxcam.autodiff.gradient",
    "Explainer": "onnxcam.explain.explainer",
    "Explanation": "onnxcam.explain.explanation",
    "Monitor": "onnxcam.monitor.hook",
    "Contrast": "onnxcam.targets.objectives",
    "Probability": "onnxcam.targets.objectives",
    "Weights": "onnxcam.targets.objectives",
}

__all__ = [
    "Contrast",
    "Explainer",
    "Explanation",
    "Monitor",
    "OnnxcamError",
    "Probability",
    "Weights",
    "__version__",
    "augment",
    "calibrate",
    "gradient",
    "layers",
    "probe",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        module, _, attribute = _LAZY[name].partition(":")
        value = getattr(import_module(module), attribute or name)
    else:
        raise AttributeError(f"module 'onnxcam' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
