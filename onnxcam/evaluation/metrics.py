"""Every metric, registered by importing its module, in the order that tables show them."""

from onnxcam.evaluation import confidence, causal, road, coherence, location, robustness, randomization  # noqa: I001
from onnxcam.evaluation.registry import HIGHER, LOWER, Metric, chosen, find, metric, metrics

__all__ = [
    "HIGHER", "LOWER", "Metric", "causal", "chosen", "coherence", "confidence", "find", "location", "metric", "metrics",
    "randomization", "road", "robustness",
]  # fmt: skip
