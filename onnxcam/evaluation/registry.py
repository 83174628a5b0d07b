"""The registry of metrics: one decorated function per metric.

    @metric("deletion", title="deletion", better="lower")
    def deletion(trial, *, steps=32):
        '''int_0^1 p_c(picture without its most important part q) dq. ...'''

A metric gets a `Trial` (some pictures and what a method says of them) and returns one number per picture, float64
`[N]`, NaN where it does not apply. Keyword parameters with defaults are its options. A docstring is the formula and the
paper.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from onnxcam.errors import MethodError, listing, nearest

if TYPE_CHECKING:
    from onnxcam.evaluation.trial import Trial

HIGHER, LOWER = "higher", "lower"
# families (modules of `onnxcam.evaluation.metrics`) in the order that tables show them; others follow as registered
FAMILIES = ("confidence", "causal", "road", "coherence", "location", "objects", "robustness", "randomization")
F = TypeVar("F", bound="Callable[..., np.ndarray]")


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    Attributes:
        name: lower case, as `--metric` takes it.
        title: what tables call it.
        better: `higher` or `lower`: where the better maps lie.
        function: the decorated function.
        boxes: whether it needs boxes around the objects.
        redrawn: whether it compares with the maps of a model whose weights were redrawn.
        usual: whether it is computed by default.
        objects: whether it judges objects, of a detector or a model of segmentation, and not classes.
        options: names and default values of its options.
    """

    name: str
    title: str
    better: str
    function: Callable[..., np.ndarray] = field(repr=False)
    boxes: bool = False
    redrawn: bool = False
    usual: bool = True
    objects: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return "↑" if self.better == HIGHER else "↓"

    @property
    def formula(self) -> str:
        """What it computes and where that comes from: the docstring's first paragraph, on one line."""
        return " ".join((inspect.getdoc(self.function) or "").split("\n\n")[0].split())

    def __call__(self, trial: Trial, options: dict[str, Any] | None = None) -> np.ndarray:
        """Compute the numbers of a trial; options that the metric does not have are ignored."""
        applicable = {key: value for key, value in (options or {}).items() if key in self.options}
        return np.asarray(self.function(trial, **applicable), np.float64)

    def best(self, values: Sequence[float]) -> float | None:
        """The best of some numbers, None where there is none."""
        finite = [value for value in values if np.isfinite(value)]
        return None if not finite else max(finite) if self.better == HIGHER else min(finite)


_metrics: dict[str, Metric] = {}


def metric(
    name: str,
    *,
    title: str,
    better: str,
    boxes: bool = False,
    redrawn: bool = False,
    usual: bool = True,
    objects: bool = False,
) -> Callable[[F], F]:
    """Register a metric, `function(trial, **options) -> float64 [N]`."""

    def register(function: F) -> F:
        if name in _metrics:
            raise ValueError(f"there already is a metric {name!r}")
        if better not in (HIGHER, LOWER):
            raise ValueError(f"better={better!r}; expected {HIGHER!r} or {LOWER!r}")
        options = {
            key: parameter.default
            for key, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        _metrics[name] = Metric(name, title, better, function, boxes, redrawn, usual, objects, options)
        return function

    return register


def metrics() -> list[str]:
    """Names of all metrics, in the order that tables show them: by family, then in the order they stand there."""
    return [metric.name for metric in _ordered()]


def _ordered() -> list[Metric]:
    places = {f"onnxcam.evaluation.metrics.{family}": place for place, family in enumerate(FAMILIES)}
    return sorted(_metrics.values(), key=lambda metric: places.get(metric.function.__module__, len(places)))


def find(name: str) -> Metric:
    """A metric by name.

    Raises:
        MethodError: no such metric.
    """
    if name not in _metrics:
        raise MethodError(f"no metric {name!r}; there are {listing(nearest(name, metrics()))}")
    return _metrics[name]


def select(names: Iterable[str] | None, *, boxes: bool, objects: bool = False) -> list[Metric]:
    """Select metrics by name, each once; None for the usual ones, `all` for every one that applies.

    Arguments:
        boxes: whether it is known where the objects are.
        objects: whether objects are judged, of a detector or a model of segmentation, instead of classes.

    Raises:
        MethodError: no such metric, or one that does not apply.
    """
    applicable = [
        metric
        for metric in _ordered()
        if (boxes or not metric.boxes) and (not metric.redrawn if objects else not metric.objects)
    ]
    if names is None:
        return [metric for metric in applicable if metric.usual]
    selected: dict[str, Metric] = {}
    for name in names:
        if name == "all":
            selected |= {metric.name: metric for metric in applicable}
            continue
        metric = find(name)
        if metric.objects and not objects:
            raise MethodError(
                f"metric {name!r} judges objects; this model is neither a detector nor one of segmentation"
            )
        if metric.redrawn and objects:
            raise MethodError(
                f"metric {name!r} compares with a model whose weights are redrawn, which has no such objects; leave it "
                "out, or judge a classifier"
            )
        if metric.boxes and not boxes:
            raise MethodError(f"metric {name!r} needs to know where the objects are; give boxes")
        selected[name] = metric
    return list(selected.values())
