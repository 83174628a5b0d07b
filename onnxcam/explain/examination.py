"""A batch whose head has run: any class, method and layer of it costs the tail alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam import image
from onnxcam.cam.methods import GRAPH, INPUT
from onnxcam.errors import InputError, MethodError
from onnxcam.explain import box_layers, cells
from onnxcam.explain.components import first_component_of
from onnxcam.explain.features import HeadRun
from onnxcam.explain.maps import INPUT_SIZE, LAYER_SIZE, fuse, map_size, visible_parts, windows_of
from onnxcam.explain.question import Question, Terms
from onnxcam.explain.view import LayerView, view
from onnxcam.network.manifest import Manifest
from onnxcam.network.names import INPUT as WHOLE
from onnxcam.targets.objectives import Logit, Objective, PerRow, logit
from onnxcam.targets.scalars import Placement

if TYPE_CHECKING:
    from onnxcam.graph.window import Window

_PORTION = 64  # classes of one run
_LARGEST = 512 << 20  # bytes of maps of several classes
# of test-time augmentation: each also mirrored
_FACTORS = (0.9, 1.0, 1.1)

# layers to expose and a batch -> its head run
RunHead = Callable[[Sequence[str], np.ndarray], HeadRun]
# layers -> the parts of the model's input that they cover
Windows = Callable[[Sequence[str]], Sequence["Window | None"]]


class Examination:
    """The result of `Explainer.examine`: one run of the head, and any number of questions about it.

    Not made by users; serves one thread.

    Attributes:
        scores: logits `[N, K]`.
        readout: the meaning of the scores.
    """

    def __init__(
        self,
        run_head: RunHead,
        batch: np.ndarray,
        layers: Sequence[str],
        terms: Terms,
        windows: Windows,
        placements: Sequence[Placement] = (),
        manifest: Manifest | None = None,
    ) -> None:
        self._run_head = run_head
        self._manifest = manifest  # of a model each of whose boxes is explained at a layer of its own, else None
        self._windows = windows
        self._batch = batch
        self._layers = list(layers)
        self._terms = terms
        self._features = run_head(self._layers, batch)
        self.scores = self._features.scores
        # as the caller has it: of a network the number of a detector's classes may be unknown
        self.readout = self._features.batch.readout if terms.readout.task is None else terms.readout
        self.placements = placements or ([] if terms.readout.task is None else [self._whole()])

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float32 `[N, classes]`."""
        return self.readout.probabilities(self.scores)

    def question(self, **keywords: Any) -> Question:
        """A question about this batch, keywords as in `Question.of`."""
        return Question.of(self._terms, rows=len(self._batch), **keywords)

    def objective(self, target: Any = None) -> Objective:
        """The objective that a target means for these rows, see `onnxcam.targets.objectives`."""
        return self._objective(self.question(target=target))

    def _objective(self, question: Question) -> Objective:
        return question.objective(self.scores, self.placements)

    def _whole(self) -> image.Geometry:
        """The placement of a picture that is the model's input."""
        return image.Geometry(self.input_size, self.input_size, (0, 0), self.input_size)

    def attribute(
        self,
        target: Any = None,
        method: Any = None,
        layer: Any = None,
        normalize: str = "minmax",
        size: Any = "input",
        *,
        fusion: str = "mean",
        smooth: Any = (),
        **options: Any,
    ) -> Any:
        """Maps as `Explainer.attribute` gives them; a list of methods gives a list, in order."""
        question = self.question(
            target=target,
            method=method,
            layer=layer,
            normalize=normalize,
            size=size,
            fusion=fusion,
            smooth=smooth,
            options=options,
        )
        if self._by_level(question):
            fused = join_rows([row.fused(one, objective) for row, one, objective in self._rows(question)], question)
        else:
            fused = self.fused(question)
        return fused if question.several_methods else fused[0]

    def _by_level(self, question: Question) -> bool:
        """Whether each row's box is explained at the level from which its scores are computed."""
        return self._manifest is not None and not question.layer_named

    def _rows(self, question: Question) -> Iterator[tuple[Examination, Question, Objective]]:
        """Each row, the question about it at the layer of its own box, and the box as an objective."""
        assert self._manifest is not None
        for row in range(len(self._batch)):
            part, one = self.of_rows(np.array([row])), question.of_rows(row, row + 1)
            objective = part._objective(one)
            layers = box_layers.choose(self._manifest, one.layers, part, objective)
            yield part, one.about_layers(layers), objective

    def attribution(
        self, target: Any = None, method: Any = "saliency", layer: Any = None, **options: Any
    ) -> np.ndarray:
        """The signed attribution of every input value, float32 `[N, C, H, W]`.

        Raises:
            MethodError: the method's map is not an attribution of the input.
        """
        return self.attribution_of(self.question(target=target, method=method, layer=layer, options=options))

    def attribution_of(self, question: Question) -> np.ndarray:
        """See `attribution`."""
        (method,) = question.methods
        if method.kind != INPUT:
            raise MethodError(
                f"method {method.name!r} gives a map of a layer, not one number per input value; use attribute()"
            )
        if method.layered and self._by_level(question):
            rows = [part._attribution(one, objective) for part, one, objective in self._rows(question)]
            return np.concatenate(rows)
        return self._attribution(question, self._objective(question))

    def _attribution(self, question: Question, objective: Objective) -> np.ndarray:
        """The attribution by the question's only method at its layer."""
        (method,) = question.methods
        features = self._with_layers(question.layers_read)
        layer_view = view(features, question.layers[0] if method.layered else WHOLE, objective)
        return np.asarray(method.function(layer_view, **question.options), np.float32)

    def fused(self, question: Question, objective: Objective | None = None) -> list[np.ndarray]:
        """Per method the map in which those of the layers are fused, float32 `[N, H, W]` of the question's size.

        Arguments:
            objective: None for that of the question.
        """
        objective = self._objective(question) if objective is None else objective
        if question.augment:
            means = self.augmented(question, objective)
            if question.size == INPUT_SIZE:
                return means
            return [image.resize_map(mean, map_size(question.size, (0, 0), [mean])) for mean in means]
        input_size = self.input_size
        windows = self._windows(question.layers)
        return [
            fuse(
                maps,
                question.normalize,
                map_size(question.size, input_size, maps),
                question.fusion,
                windows=windows_of(method, windows, question.size),
                input_size=input_size,
            )
            for method, maps in zip(question.methods, self.maps(question, objective), strict=True)
        ]

    def explained(self, question: Question) -> tuple[np.ndarray, list[list[np.ndarray]], Objective | None]:
        """The classes explained `[N, k]`, and per method and layer their maps `[N, k, h, w]`, after ReLU.

        Returns:
            these, and the objective, which is None where the best classes of each row are explained.
        """
        if question.top is not None:
            classes = question.best(self.scores)
            return classes, self.class_maps(question, classes), None
        objective = self._objective(question)
        if question.augment:
            by_method = [[mean[:, None]] for mean in self.augmented(question, objective)]
        else:
            by_method = [[one[:, None] for one in maps] for maps in self.maps(question, objective)]
        return objective.classes[:, None], by_method, objective

    def several(self, question: Question, objectives: Sequence[Objective]) -> list[list[np.ndarray]]:
        """Per method and layer the maps `[1, k, h, w]`, after ReLU, of several objectives of the only row."""
        if question.augment:
            by_objective = [self.augmented(question, objective) for objective in objectives]
            return [[np.stack(maps, axis=1)] for maps in zip(*by_objective, strict=True)]
        features, count = self._with_layers(question.layers_read), len(objectives)
        if not question.eigen and not question.options:
            nearby = cells.several(features, question.layers_read, question.methods, objectives)
            if nearby is not None:
                return nearby
        repeated = None if count == 1 else features.repeat(count, question.layers_read)
        if repeated is not None:
            by_method = _maps(repeated, question, PerRow(list(objectives)))
            return [[maps[None] for maps in by_layer] for by_layer in by_method]
        runs = [_maps(features, question, objective) for objective in objectives]
        return [
            [np.stack([run[place][at] for run in runs], axis=1) for at in range(len(by_layer))]
            for place, by_layer in enumerate(runs[0])
        ]

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        return self._features.batch.sessions.cut(WHOLE).layout.size(self._batch.shape)

    def in_graph_order(self, layers: Sequence[str]) -> list[str]:
        """Names of layers in the order in which the network computes them."""
        sessions = self._features.batch.sessions
        place = sessions.network.graph.position
        return sorted(layers, key=lambda name: place.get(sessions.cut(name).layer.value, -1))

    def of_rows(self, rows: np.ndarray) -> Examination:
        """The examination of some of the rows, by their indices: the head is not run again."""
        part = copy(self)
        part._layers = list(self._layers)
        part._batch, part._features = self._batch[rows], self._features.of_rows(rows, self._layers)
        part.scores, part.probabilities = part._features.scores, self.probabilities[rows]
        if len(self.placements) > 1:
            part.placements = [self.placements[int(row)] for row in rows]
        return part

    def visible(self, question: Question, geometry: image.Geometry) -> list[list[image.Rectangle] | None]:
        """Per method the parts of a picture that its fused map covers, see `onnxcam.explain.maps.visible_parts`."""
        windows = self._windows(question.layers)
        return [
            visible_parts(geometry, windows_of(method, windows), mirrored=question.augment)
            for method in question.methods
        ]

    def view(self, layer: str, objective: Objective) -> LayerView:
        """One of the layers under an objective, see `onnxcam.cam.view.View`."""
        return view(self._with_layers([layer]), layer, objective)

    def maps(self, question: Question, objective: Objective) -> list[list[np.ndarray]]:
        """Per method and layer the maps `[N, h, w]` after ReLU; those of graph methods share one pass back."""
        if len(self._batch) == 1 and self._terms.readout.task is not None:  # of cells around a box, where that will do
            return [[maps[:, 0] for maps in by_layer] for by_layer in self.several(question, [objective])]
        if self._has_component(question, objective):
            return [[np.maximum(first_component_of(self._features), 0)]]
        return _maps(self._with_layers(question.layers_read), question, objective)

    def _has_component(self, question: Question, objective: Objective) -> bool:
        """Whether the head run has what the question's only map is computed from."""
        component = self._features.component
        if component is None or (question.layers[0], question.component) != component[:2]:
            return False
        of_class = isinstance(objective, Logit) and np.array_equal(objective.classes, component.classes)
        return of_class or not component.gradient

    def class_maps(self, question: Question, classes: np.ndarray) -> list[list[np.ndarray]]:
        """Per method and layer the maps `[N, k, h, w]` of several classes `[N, k]` of each row, after ReLU.

        Raises:
            InputError: the maps of so many classes take more than 512 MiB.
        """
        count = classes.shape[1]
        by_portion: list[list[list[np.ndarray]]] = []
        for start in range(0, count, _PORTION):
            maps = self._class_maps(question, classes[:, start : start + _PORTION])
            by_portion.append(maps)
            size = sum(one.nbytes for by_layer in by_portion[0] for one in by_layer) * count // min(_PORTION, count)
            if start == 0 and size > _LARGEST:
                raise InputError(
                    f"the maps of {count:,} classes take {size >> 20:,} MiB at this layer, more than "
                    f"{_LARGEST >> 20} MiB; ask for fewer classes (top), or for a layer with a smaller map"
                )
        if len(by_portion) == 1:
            return by_portion[0]
        return [
            [np.concatenate([portion[place][at] for portion in by_portion], axis=1) for at in range(len(by_layer))]
            for place, by_layer in enumerate(by_portion[0])
        ]

    def _class_maps(self, question: Question, classes: np.ndarray) -> list[list[np.ndarray]]:
        """See `class_maps`, of classes that one run takes."""
        rows, count = classes.shape
        features = self._with_layers(question.layers_read)
        methods, layers = question.methods, question.layers
        if not question.eigen and not question.options and all(method.kind == GRAPH for method in methods):
            objective, distinct = logit(classes[:, 0], self.readout), list(dict.fromkeys(methods))
            runs = [view(features, name, objective).class_maps(classes, distinct) for name in layers]
            if all(run is not None for run in runs):
                by_layer = [dict(zip(distinct, run or [], strict=True)) for run in runs]
                return [[np.maximum(maps[method], 0) for maps in by_layer] for method in methods]
        repeated = features.repeat(count, question.layers_read)
        if repeated is None:
            by_class = [self.maps(question, logit(classes[:, k], self.readout)) for k in range(count)]
            return [
                [np.stack([maps[place][at] for maps in by_class], axis=1) for at in range(len(layers))]
                for place in range(len(methods))
            ]
        by_method = _maps(repeated, question, logit(classes.reshape(-1), self.readout))
        return [[maps.reshape(rows, count, *maps.shape[1:]) for maps in by_layer] for by_layer in by_method]

    def augmented(self, question: Question, objective: Objective) -> list[np.ndarray]:
        """Per method the mean of the maps of six altered batches: 0.9, 1 and 1.1 times the tensor, also mirrored.

        As pytorch-grad-cam's `aug_smooth`: each map is normalised and of the input's size before the mean is taken.

        Returns:
            float32 `[N, H, W]` each.

        Raises:
            InputError: the model takes integers, which cannot be scaled.
        """
        axis = self._features.batch.sessions.cut(WHOLE).layout.width
        if not np.issubdtype(self._batch.dtype, np.floating):
            raise InputError(f"smooth='augment' scales the tensor, and this model takes {self._batch.dtype}")
        total = [np.zeros(1, np.float32)] * len(question.methods)
        windows = self._windows(question.layers)
        for mirrored in (False, True):
            batch = np.flip(self._batch, axis) if mirrored else self._batch
            for factor in _FACTORS:
                scaled = np.ascontiguousarray(batch * self._batch.dtype.type(factor))
                features = self._run_head(question.layers_read, scaled)
                size = view(features, WHOLE, objective).shape
                for place, maps in enumerate(_maps(features, question, objective)):
                    through = windows_of(question.methods[place], windows)
                    fused = fuse(maps, question.normalize, size, question.fusion, windows=through, input_size=size)
                    total[place] = total[place] + (fused[:, :, ::-1] if mirrored else fused)
        return [np.asarray(maps / (2 * len(_FACTORS)), np.float32) for maps in total]

    def _with_layers(self, layers: Sequence[str]) -> HeadRun:
        """The head run that exposes these layers: a second one where the first did not."""
        lacking = [name for name in layers if name not in self._layers]
        if lacking:
            self._layers += lacking
            self._features = self._run_head(self._layers, self._batch)
        return self._features


def _maps(features: HeadRun, question: Question, objective: Objective) -> list[list[np.ndarray]]:
    """See `Examination.maps`."""
    views = [view(features, name, objective) for name in question.layers_read]
    if question.eigen:
        views = views or [view(features, WHOLE, objective)]  # whose methods then say why not
        return [[layer.smooth(method, question.options_of(method)) for layer in views] for method in question.methods]
    graph = list(dict.fromkeys(method for method in question.methods if method.kind == GRAPH))
    by_layer = [dict(zip(graph, layer.maps(graph), strict=True)) for layer in views] if graph else []
    by_method = []
    for method in question.methods:
        if method.kind == GRAPH:
            by_method.append([np.maximum(maps[method], 0) for maps in by_layer])
        elif method.layered:
            by_method.append([layer.explain(method, question.options_of(method)) for layer in views])
        else:
            whole = view(features, WHOLE, objective).explain(method, question.options_of(method))
            by_method.append([whole] * len(question.layers))
    return by_method


def join_rows(rows: Sequence[list[np.ndarray]], question: Question) -> list[np.ndarray]:
    """Per method the maps `[N, H, W]` of pictures that were explained one by one.

    Raises:
        InputError: the maps have different sizes.
    """
    if len({maps[0].shape for maps in rows}) > 1:
        what = f"size={LAYER_SIZE!r}: the rows are explained at layers of different sizes; name one layer"
        raise InputError(what if question.size == LAYER_SIZE else "the maps of the rows have different sizes")
    return [np.concatenate(maps) for maps in zip(*rows, strict=True)]
