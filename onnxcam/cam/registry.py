"""The registry of methods: one decorated function per method, in one place.

    @cam_method("activationmap")
    def activationmap(op, a, da):
        '''mean_c A. ...'''
        return op.ReduceMean(a, [1], keepdims=0)

A *graph* method emits ONNX nodes: `a` and `da` are activations and gradients, float32 `[N, C, h, w]` whatever the
model's own layout is, and it returns the map before its ReLU, `[N, h, w]`. One definition serves exported files and
`onnxcam explain`.

    @layer_method("ablationcam")
    def ablationcam(view): ...

A *layer* method returns the same map as an array, from a `View`: activations, gradients, and what the model says when
the layer is changed.

    @cam_method("hirescam", summed=True)
    def hirescam(op, a, da):
        '''sum_c dA * A. ...'''
        return op.Mul(da, a)

Most maps are a sum over channels. A method of either kind registered with `summed=True` returns the terms
`[N, C, h, w]` and the registry adds them up; eigen smoothing takes their first principal
component instead.

    @attribution("saliency")
    def saliency(view): ...

An *input* method returns an attribution of the input's own size, signed, `[N, C, H, W]`; its map is the sum over
channels of the absolute values.

Keyword parameters with defaults are the method's options, shown on the command line and in the docs. A docstring is the
formula and the paper.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from onnxcam.errors import MethodError, listing, nearest
from onnxcam.targets.readout import Readout
from onnxcam.targets.tasks import Detect, Segment

GRAPH, LAYER, INPUT = "graph", "layer", "input"
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False)
class Method:
    """A registered method.

    Attributes:
        name: as in the literature, lower case.
        kind: `graph` (nodes from activations and gradients), `layer` (arrays from a view) or `input` (an attribution
            of the input).
        function: what was decorated; it returns the map even where what was decorated returns its terms.
        gradient: whether it needs gradients.
        long: whether it takes many runs of the whole model, so that progress is worth showing.
        layered: whether it reads the target layer; an attribution of the input seldom does.
        single: the rules (`plain` or `guided`) of the one gradient at the input that is all it needs: that one comes
            with the scores, in one run of the model.
        options: names and default values of its options.
        divides: whether it divides by the objective's value, so that a negative one reverses the map.
        component: whether it is `view.first_component` of the activations, or with `gradient` of their product with it:
            what it is computed from comes with the scores, in one run of the model.
        terms: of a map that is a sum over channels, what was decorated: it returns the terms `[N, C, h, w]`.
    """

    name: str
    kind: str
    function: Callable[..., Any] = field(repr=False)
    gradient: bool = True
    long: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    layered: bool = True
    single: str | None = None
    terms: Callable[..., Any] | None = field(default=None, repr=False)
    divides: bool = False
    component: bool = False

    def __reduce__(self) -> tuple[Callable[[str], Method], tuple[str]]:
        return find, (self.name,)  # copied and pickled by name: its function's own name is that of the `Method`

    @property
    def formula(self) -> str:
        """What it computes and where that comes from: the docstring's first paragraph and first link, on one line."""
        text = inspect.getdoc(self.function) or ""
        first = " ".join(text.split("\n\n")[0].split())
        link = re.search(r"https?://[^\s,;]+(?: \([^)]*\))?", text)
        return first if link is None or "://" in first else f"{first} {link[0]}"

    def check(self, options: Iterable[str]) -> None:
        """Refuse options that the method does not have.

        Raises:
            MethodError: the method has no such option.
        """
        for name in options:
            if name not in self.options:
                available = f"it has {listing(list(self.options))}" if self.options else "it has none"
                raise MethodError(f"method {self.name!r} has no option {name!r}; {available}")


_methods: dict[str, Method] = {}


def cam_method(name: str, *, gradient: bool = True, summed: bool = False) -> Callable[[F], F]:
    """Register a method made of graph nodes, `function(op, a, da) -> map`; `gradient` says whether it reads `da`."""
    return _registering(name, GRAPH, gradient, False, _add_nodes if summed else None)


def layer_method(
    name: str,
    *,
    gradient: bool = True,
    long: bool = False,
    summed: bool = False,
    divides: bool = False,
    component: bool = False,
) -> Callable[[F], F]:
    """Register a method that works on a layer, `function(view, **options) -> float32 [N, h, w]` before its ReLU."""
    adding = _add_arrays if summed else None
    return _registering(name, LAYER, gradient, long, adding, divides=divides, component=component)


def attribution(
    name: str, *, gradient: bool = True, long: bool = False, layered: bool = False, single: str | None = None
) -> Callable[[F], F]:
    """Register an attribution of the input, `function(view, **options) -> float32 [N, C, H, W]`, signed.

    Arguments:
        gradient, long, layered, single: as in `Method`. Unless it is layered, the view's layer is the picture itself.
    """
    return _registering(name, INPUT, gradient, long, None, layered, single)


def _registering(
    name: str,
    kind: str,
    gradient: bool,
    long: bool,
    adding: Callable[[Callable[..., Any]], Callable[..., Any]] | None,
    layered: bool = True,
    single: str | None = None,
    divides: bool = False,
    component: bool = False,
) -> Callable[[F], F]:
    def register(function: F) -> F:
        if name in _methods:
            raise ValueError(f"there already is a method {name!r}")
        defaults = {
            key: parameter.default
            for key, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not parameter.empty
        }
        whole = function if adding is None else adding(function)
        terms = None if adding is None else function
        _methods[name] = Method(name, kind, whole, gradient, long, defaults, layered, single, terms, divides, component)
        return function

    return register


def _add_nodes(terms: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(terms)
    def whole(op: Any, a: str, da: str) -> str:
        return str(op.ReduceSum(terms(op, a, da), [1], keepdims=0))

    return whole


def _add_arrays(terms: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(terms)
    def whole(view: Any, **options: Any) -> Any:
        return terms(view, **options).sum(axis=1)

    return whole


def methods(*kinds: str) -> list[str]:
    """Names of all methods, or of those of some kinds: by module, then in the order they stand there."""
    selected = [method for method in _methods.values() if not kinds or method.kind in kinds]
    return [method.name for method in sorted(selected, key=lambda method: method.function.__module__)]


def find(name: str | Method) -> Method:
    """A method by name; a `Method` as it is, so that a name is looked up once.

    Raises:
        MethodError: no such method.
    """
    if isinstance(name, Method):
        return name
    if name not in _methods:
        raise MethodError(f"no method {name!r}; there are {listing(nearest(name, _methods))}")
    return _methods[name]


def find_graph(name: str) -> Method:
    """A method that an exported file can contain.

    Raises:
        MethodError: no such method, or one that cannot be stored in a file.
    """
    method = find(name)
    if method.kind != GRAPH:
        raise MethodError(
            f"method {name!r} cannot be stored in an ONNX file (storable are {', '.join(methods(GRAPH))}); use it with "
            f"`onnxcam explain --method {name}` on any exported file"
        )
    return method


USUAL = "gradcam"  # where none is named and the model is a classifier


def default_method(readout: Readout) -> str:
    """The method where none is named: Grad-CAM; LayerCAM of the boxes of a detector, HiResCAM of a segmentation.

    The score of a box or a region has a gradient in a few cells alone. Grad-CAM weighs channels by its mean over all
    cells, so that its map shows where else the channel is active; these two weigh each cell by its own (measured in
    benchmarks/boxes.md).
    """
    if isinstance(readout.task, Detect):
        return "layercam"
    return "hirescam" if isinstance(readout.task, Segment) else USUAL
