"""The question about a batch or a folder of pictures: which methods, layers and classes, and how maps are made one.

A `Question` is built and checked once, against the `Terms` of a model, and passed on as it is: from keywords by
`Question.of`, from texts (a command line, a form) or JSON values by `Question.parse`. It is the only place that knows
which class `target=None` means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxcam import image
from onnxcam.cam.methods import GRAPH, Method, find
from onnxcam.cam.registry import default_method
from onnxcam.errors import InputError, TargetError
from onnxcam.explain import target_texts
from onnxcam.explain.maps import AUGMENT, EIGEN, FUSIONS, INPUT_SIZE, LAYER_SIZE, SMOOTHINGS, check_size, smoothings
from onnxcam.explain.texts import Spelling, keyword, parse_options, truth
from onnxcam.targets import objectives, scalars
from onnxcam.targets.classes import TOP1, check_count, listed, refuse_masked
from onnxcam.targets.difference import Difference
from onnxcam.targets.objectives import Contrast, Objective, Probability
from onnxcam.targets.readout import Readout
from onnxcam.targets.resolution import check, resolve
from onnxcam.targets.scalars import Placement, Several

if TYPE_CHECKING:
    from onnxcam.network.calibration.record import Calibration

SEED = 1234
# the keys that `Question.parse` reads
KEYS = (
    *target_texts.KEYS,
    *("top", "method", "option", "layer"),
    *("side_by_side", "normalize", "fusion", "smooth", "seed"),
)


_MORE_THAN_CLASSES = (*objectives.SPECIAL, *scalars.SCALARS, Difference, Several)


class Terms(NamedTuple):
    """The model that a question is about.

    Attributes:
        readout: the meaning of its scores.
        labels: class names by index, or None.
        layers: its target layers; the last one is the default.
        bound_class: the class that its file is bound to, or None.
        calibration: of a calibrated file, or None.
    """

    readout: Readout
    labels: Sequence[str] | None
    layers: Sequence[str]
    bound_class: int | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True, eq=False)
class Question:
    """A question about N pictures. Made by `Question.of` or `Question.parse`, which check it.

    Attributes:
        terms: the model.
        targets: one for all pictures, or one per picture: None (the bound class, else the top-1), an index, -1 (the
            top-1), a `Contrast`, a `Probability` or `Weights`, a scalar of another task, or `Several` of them; classes
            are indices.
        methods, layers: in order, at least one each.
        several_methods, several_layers: whether a list was given, so that a list is the answer.
        layer_named: whether the layer was named; a box has a default layer of its own.
        top: explain this many of the best classes of each picture instead of `targets`.
        normalize, fusion, smooth, size: as in `Explainer.attribute`.
        side_by_side: whether to explain each layer alone too.
        seed: of methods that draw random numbers.
        options: of the methods; each takes those that it has.
    """

    terms: Terms
    targets: tuple[Any, ...]
    methods: tuple[Method, ...]
    layers: tuple[str, ...]
    several_methods: bool = False
    several_layers: bool = False
    layer_named: bool = True
    top: int | None = None
    normalize: str = "minmax"
    fusion: str = "mean"
    smooth: frozenset[str] = frozenset()
    size: str | tuple[int, int] = INPUT_SIZE
    side_by_side: bool = False
    seed: int = SEED
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        terms: Terms,
        *,
        rows: int | None = None,
        target: Any = None,
        method: Any = None,
        layer: Any = None,
        top: int | None = None,
        normalize: str = "minmax",
        fusion: str = "mean",
        smooth: Any = (),
        size: Any = INPUT_SIZE,
        side_by_side: bool = False,
        seed: int = SEED,
        options: Mapping[str, Any] | None = None,
        spell: Spelling = keyword,
    ) -> Question:
        """The question that these keywords ask, those of `Explainer.explain` and `Explainer.attribute`.

        Arguments:
            terms: the model.
            rows: number of pictures, if `target` may be a list with one per picture.
            method, layer: a name or a list of names; methods also as `Method`; None for the model's usual ones.
            spell: how messages spell a parameter.

        Raises:
            TargetError: no such class, a list of another length, or `top` out of range or along with a target.
            MethodError: no such method, or an option that none of the methods has.
            InputError: anything else that cannot be used.
        """
        if top is not None and target is not None:
            raise target_texts.top_excludes("target", spell)
        several_methods, methods = _several(default_method(terms.readout) if method is None else method)
        if side_by_side and layer is None:
            layer = list(terms.layers)
        layer_named = layer is not None
        several_layers, layers = _several(terms.layers[-1] if layer is None else layer)
        if not layers or not all(isinstance(name, str) for name in layers):
            raise InputError(
                f"{spell('layer', layer)}; expected a layer's name, a list of names, or None for the last layer"
            )
        if not methods or not all(isinstance(name, (str, Method)) for name in methods):
            empty = " (an empty list asks for no map at all)" if several_methods and not methods else ""
            raise InputError(f"{spell('method', method)}; expected a method's name, or a list of names{empty}")
        question = cls(
            terms,
            _targets(target, rows, terms),
            tuple(find(name) for name in methods),
            tuple(layers),
            several_methods,
            several_layers,
            layer_named,
            top,
            normalize,
            fusion,
            smoothings(smooth),
            check_size(size),
            side_by_side,
            seed,
            options or {},
        )
        question._check(spell)
        return question

    @classmethod
    def parse(
        cls, values: Mapping[str, Any], terms: Terms, *, rows: int | None = None, spell: Spelling = keyword
    ) -> Question:
        """The question that texts or JSON values ask, under the names in `KEYS`. None stands for a missing value.

        Arguments:
            values: `target` (an index or a label), `contrast` (what to compare it with: a class, or `runner-up`),
                `probability`, or what else is explained (see `onnxcam.explain.target_texts`), `top`, `method`, `layer`,
                `option` (`KEY=VALUE`, a list of these, or a mapping),
                `side_by_side`, `normalize`, `fusion`, `smooth`, `seed`. `method`, `layer` and `smooth` are a name or a
                list, in which a single name is not a list; numbers and truth values may be texts.
            terms, rows, spell: as in `of`.

        Raises:
            TargetError, MethodError, InputError: as in `of`; an unknown key, or a value that cannot be read.
        """
        probability, methods, options = cls.check_values(values, terms.labels, spell)
        text = {key: value for key, value in values.items() if value is not None}
        return cls.of(
            terms,
            rows=rows,
            target=target_texts.target_of(text, probability, terms.labels),
            method=_single(methods if "method" in text else []),
            layer=_single(_names(text.get("layer"), "layer", spell)),
            top=_whole(text["top"], "top", spell) if "top" in text else None,
            normalize=text.get("normalize", "minmax"),
            fusion=text.get("fusion", "mean"),
            smooth=_names(text.get("smooth"), "smooth", spell),
            side_by_side=truth(text.get("side_by_side", False), spell("side_by_side")),
            seed=_whole(text.get("seed", SEED), "seed", spell),
            options=options,
            spell=spell,
        )

    @staticmethod
    def check_values(
        values: Mapping[str, Any], labels: Sequence[str] | None = None, spell: Spelling = keyword
    ) -> tuple[bool, list[Method], dict[str, Any]]:
        """Refuse values of `parse` that no model can be asked, before one is opened.

        Arguments:
            values, spell: as in `parse`.
            labels: class names, where they are known without the model.

        Returns:
            whether probabilities are explained, the methods, and their options.

        Raises:
            TargetError, MethodError, InputError: as in `parse`.
        """
        text = {key: value for key, value in values.items() if value is not None}
        unknown = [key for key in text if key not in KEYS]
        if unknown:
            raise InputError(f"a question has no {spell(unknown[0])}; it has {', '.join(map(spell, KEYS))}")
        probability = target_texts.check(text, labels, spell)
        methods = [find(name) for name in _names(text.get("method"), "method", spell) or ["gradcam"]]
        return probability, methods, parse_options(text.get("option", ()), methods, spell)

    def _check(self, spell: Spelling) -> None:
        for name, value, choices in (
            ("normalize", self.normalize, image.NORMALIZATIONS),
            ("fusion", self.fusion, FUSIONS),
        ):
            if value not in choices:
                raise InputError(f"{spell(name, value)}; expected one of {', '.join(choices)}")
        if self.top is not None:
            self.terms.readout.check_count(self.top, spell("top", self.top))
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)) or self.seed < 0:
            raise InputError(f"{spell('seed', self.seed)}; expected a whole number from 0")
        if self.side_by_side and len(self.layers) < 2:
            raise InputError(
                f"{spell('side_by_side')} needs two layers or more, and there is only layer {self.layers[0]!r}: "
                f"name more with {spell('layer')} (`onnxcam layers` lists them)"
            )
        if self.augment and (self.side_by_side or self.top is not None):
            raise InputError(
                f"{spell('smooth', AUGMENT)} makes one map of one class, of all layers: leave out {spell('top')} and "
                f"{spell('side_by_side')}"
            )
        if self.augment and self.size == LAYER_SIZE:
            raise InputError(
                f"{spell('smooth', AUGMENT)} averages maps of the input's size; pass size=(height, width) instead"
            )
        for name in self.options:
            if not any(name in method.options for method in self.methods):
                self.methods[0].check([name])

    @property
    def layer(self) -> str | list[str]:
        """The name of the layer, or a list of names where one was given."""
        return list(self.layers) if self.several_layers else self.layers[0]

    @property
    def eigen(self) -> bool:
        """Whether maps are first principal components instead of sums over channels."""
        return EIGEN in self.smooth

    @property
    def augment(self) -> bool:
        """Whether maps are means over altered copies of the batch."""
        return AUGMENT in self.smooth

    @property
    def of_classes(self) -> bool:
        """Whether every target is the score of one class."""
        if self.top is not None or self.terms.readout.task is not None:
            return False
        return not any(isinstance(target, _MORE_THAN_CLASSES) for target in self.targets)

    @property
    def plain(self) -> bool:
        """Whether one graph method without options explains one class per picture: what a file computes itself."""
        single = len(self.methods) == 1 and self.methods[0].kind == GRAPH
        return single and not self.options and not self.smooth and self.of_classes

    @property
    def alone(self) -> bool:
        """Whether each picture needs a run of its own, so that random numbers do not depend on the others."""
        return bool(self.smooth) or any(method.kind != GRAPH for method in self.methods)

    @cached_property
    def layers_read(self) -> tuple[str, ...]:
        """The layers, if any of the methods reads one."""
        return self.layers if any(method.layered for method in self.methods) else ()

    @property
    def input_gradient(self) -> str | None:
        """The rules of the one gradient at the input from which all maps are computed, None if they need more."""
        rules = {method.single for method in self.methods}
        return rules.pop() if len(rules) == 1 and not self.smooth and self.of_classes else None

    @cached_property
    def component(self) -> bool | None:
        """Whether the layer is multiplied by the gradient of a class, where its first component is all that maps are
        computed from; None if they need more."""
        (method, *others), task = self.methods, self.terms.readout.task
        if (
            others
            or not method.component
            or len(self.layers) > 1
            or self.smooth
            or self.options
            or self.top is not None
        ):
            return None
        return None if task is not None or (method.gradient and not self.of_classes) else method.gradient

    @property
    def default_class(self) -> int:
        """The class that a target of None means: the bound class, else -1, each row's top-1."""
        return TOP1 if self.terms.bound_class is None else self.terms.bound_class

    def classes(self, rows: int) -> np.ndarray:
        """The class of each of N rows, -1 for the row's top-1, int64 `[N]`; only if `of_classes`."""
        default = self.default_class
        indices = [default if target is None else target for target in self.targets]
        return np.asarray(indices * rows if len(indices) == 1 else indices, np.int64)

    def objective(self, scores: np.ndarray, placements: Sequence[Placement] = ()) -> Objective:
        """The objective of N rows, from their scores `[N, K]`.

        Arguments:
            placements: of each row how its picture lies on the model's input; one serves all.
        """
        target = list(self.targets) if len(self.targets) > 1 else self.targets[0]
        terms = self.terms
        return resolve(target, scores, terms.readout, terms.labels, self.default_class, placements)

    def explained(self, classes: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The class explained of each row, int64 `[N]`: as `classes`, with the row's top-1 for a negative one.

        Raises:
            TargetError: the model masks it, with a score of -inf.
        """
        readout = self.terms.readout
        explained = readout.fill_top1(classes, scores)
        refuse_masked(explained, readout.per_class(scores), self.terms.labels)
        return explained

    def check_scores(self, classes: np.ndarray, scores: np.ndarray) -> None:
        """Refuse what `explained` refuses."""
        if np.fmin.reduce(scores, axis=None) == -np.inf:  # NaN are passed over
            self.explained(classes, scores)

    def best(self, scores: np.ndarray) -> np.ndarray:
        """The `top` best classes of each row, int64 `[N, top]`.

        Raises:
            TargetError: fewer have a score, because the model masks the others.
        """
        readout, count = self.terms.readout, self.top or 1
        scored = int((~np.isneginf(readout.per_class(scores))).sum(axis=1).min(initial=readout.size))
        if count > scored:
            raise TargetError(
                f"top={count}; {scored} of the {readout.size} classes have a score: the model masks the others (-inf)"
            )
        return readout.best(scores, count)

    def check_rows(self, rows: int) -> None:
        """Refuse another number of pictures than of targets; one target is for all.

        Raises:
            TargetError: another number.
        """
        if len(self.targets) != 1:
            check_count(len(self.targets), rows)

    def of_rows(self, start: int, stop: int) -> Question:
        """The question about some of the pictures."""
        return self if len(self.targets) == 1 else replace(self, targets=self.targets[start:stop])

    @property
    def lacks_target(self) -> bool:
        """Whether a file bound to one class is asked about another, or about the top-1."""
        bound = self.terms.bound_class
        return bound is not None and any(_class_of(target) not in (None, bound) for target in self.targets)

    def probe(self, methods: Sequence[Method]) -> Question:
        """The question about one picture by some of the methods, and about the class alone: to see if it works."""
        return self.about(_class_of(self.targets[0]), methods)

    def about(self, target: int | None, methods: Sequence[Method]) -> Question:
        """The question about one class by some of the methods, all else alike."""
        options = {key: value for key, value in self.options.items() if any(key in m.options for m in methods)}
        return replace(self, targets=(target,), methods=tuple(methods), options=options, top=None, side_by_side=False)

    def about_layers(self, layers: tuple[str, ...]) -> Question:
        """The question about the same targets at other layers."""
        return self if layers == self.layers else replace(self, layers=layers)

    def options_of(self, method: Method) -> dict[str, Any]:
        """The options that a method has."""
        return {key: value for key, value in self.options.items() if key in method.options}

    def describe(self) -> dict[str, Any]:
        """The question ready for JSON, under the names of `options` in `analysis_summary.json`."""
        targets = [_describe(target) for target in self.targets]
        return {
            "target": targets[0] if len(targets) == 1 else targets,
            "top": self.top,
            "method": self.methods[0].name,
            "methods": {method.name: {**method.options, **self.options_of(method)} for method in self.methods},
            "layer": self.layer,
            "normalize": self.normalize,
            "fusion": self.fusion,
            "smooth": [name for name in SMOOTHINGS if name in self.smooth],
            "seed": self.seed,
        }


def _several(value: Any) -> tuple[bool, list[Any]]:
    """Whether a value is a list, and its items."""
    return (True, list(value)) if isinstance(value, (list, tuple)) else (False, [value])


def _single(names: list[Any]) -> Any:
    """None for no names, a single one itself, or the list."""
    return names[0] if len(names) == 1 else names or None


def _names(value: Any, name: str, spell: Spelling) -> list[Any]:
    """The names that a text, a list or None stands for, each once, in order."""
    items = [] if value is None else _several(value)[1]
    if not all(isinstance(item, (str, Method)) for item in items):
        raise InputError(f"{spell(name, value)}; expected a name or a list of names")
    return list(dict.fromkeys(items))


def _targets(target: Any, rows: int | None, terms: Terms) -> tuple[Any, ...]:
    """Targets by index: one for all rows, or one per row."""
    if isinstance(target, Several) or not listed(target):
        return (check(target, terms.readout, terms.labels),)
    check_count(len(target), len(target) if rows is None else rows)
    nested = [Several(item) if isinstance(item, (list, tuple)) else item for item in target]
    return tuple(check(item, terms.readout, terms.labels) for item in nested)


def _whole(value: Any, name: str, spell: Spelling) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    try:
        return int(str(value))
    except ValueError:
        raise InputError(f"{spell(name, value)}; expected a whole number") from None


def _describe(target: Any) -> Any:
    """A target ready for JSON."""
    if isinstance(target, Contrast):
        return {"kind": objectives.CONTRAST, "target": target.target, "other": target.other}
    if isinstance(target, Probability):
        return {"kind": objectives.PROBABILITY, "target": target.target}
    if isinstance(target, objectives.Weights):
        return {"kind": objectives.WEIGHTS, "weights": [float(weight) for weight in target.weights]}
    return scalars.describe(target)


def _class_of(target: Any) -> int | None:
    """The class that a target is mainly about, None if it names none."""
    item = getattr(target, "target", target)
    return None if isinstance(item, objectives.Weights) else item
