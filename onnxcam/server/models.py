"""The models that a server answers about: opened once, called from worker threads only."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnxcam import image
from onnxcam.errors import OnnxcamError, SettingError, listing
from onnxcam.explain.batch_maps import BatchMaps
from onnxcam.explain.conditional import fires, read_condition
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.explanation import name_of
from onnxcam.explain.features import Progress
from onnxcam.explain.preparation import Prepared
from onnxcam.explain.question import Question
from onnxcam.network.calibration.record import of_manifest
from onnxcam.runtime import options
from onnxcam.server.batching import Batcher
from onnxcam.server.refusals import Refusal
from onnxcam.targets.classes import best_classes
from onnxcam.targets.conditions import Condition

_QUESTIONS = 256  # in memory: most requests ask the same few
_ENDINGS = (".cam.onnx", ".onnx")


class Rows(NamedTuple):
    """The part of one request in a run of the model.

    Attributes:
        maps: by method, of all rows in the run.
        start, stop: those of the request.
    """

    maps: list[BatchMaps]
    start: int
    stop: int

    @property
    def probabilities(self) -> np.ndarray:
        """`[N, classes]` of the request."""
        return self.maps[0].probabilities[self.start : self.stop]

    @property
    def scores(self) -> np.ndarray:
        """`[N, K]` of the request."""
        return self.maps[0].scores[self.start : self.stop]


class Prediction(NamedTuple):
    """Predictions about N rows, and the maps of those that meet the condition.

    Attributes:
        probabilities: `[N, classes]`.
        scores: `[N, K]`.
        fired: bool `[N]`: which rows are explained.
        explained: of the rows that are, in order; None if none is.
    """

    probabilities: np.ndarray
    scores: np.ndarray
    fired: np.ndarray
    explained: Rows | None


class Model:
    """One model.

    Arguments:
        name: in routes and requests.
        explainer: of the model.
        when: which predictions are explained, if a request does not say.
        rows: the most rows of several requests in one run.
        places: runs side by side.
        at_once: whether the first answers may pay for a gradient that nobody asked for, while the graph of the scores
            alone is still being made.
    """

    def __init__(
        self, name: str, explainer: Explainer, when: str, rows: int = 1, places: int = 1, at_once: bool = False
    ) -> None:
        self.name = name
        self.explainer = explainer
        self.readout = explainer.terms.readout
        self.when = when
        self.calibration = of_manifest(explainer.manifest)
        self._conditions = lru_cache(64)(
            lambda text: read_condition(text, self.labels, explainer.classes, self.calibration)
        )
        self.condition(when)
        self._ask = lru_cache(_QUESTIONS)(self._parse)
        self._opening = threading.Lock()
        self._head_ready = not at_once
        self._places = threading.BoundedSemaphore(places)
        self.set_rows(rows, places)

    def set_rows(self, rows: int, places: int) -> None:
        """Set how many rows of several requests share a run, as far as the model allows it."""
        size = self.explainer.batch_size
        rows = 1 if self.task is not None else rows  # what is explained is settled picture by picture
        self.rows = rows if size is None else min(rows, size)
        self._scored: Batcher[np.ndarray, np.ndarray] = Batcher(self._score_together, places, self.rows)
        self._mapped: Batcher[tuple[Question, np.ndarray], Rows] = Batcher(self._map_together, places, self.rows)

    @property
    def labels(self) -> Sequence[str] | None:
        """Class names by index."""
        return self.explainer.labels

    @property
    def task(self) -> str | None:
        """What a model that is no classifier does, one of `onnxcam.targets.tasks.TASKS`; None of a classifier."""
        task = self.readout.task
        return None if task is None else task.name

    @property
    def version(self) -> str:
        """The version in routes that have one."""
        return "1"

    def question(self, values: Mapping[str, Any]) -> Question:
        """The question that a request asks about each picture, see `Question.parse`; equal ones are made once.

        Raises:
            TargetError, MethodError, LayerError, InputError: it cannot be asked.
        """
        key = tuple((name, *_key(value)) for name, value in sorted(values.items()))
        return self._ask(key) if all(len(part) == 3 for part in key) else self._checked(values)

    def _parse(self, key: tuple[tuple[Any, ...], ...]) -> Question:
        return self._checked({name: list(value) if kind is list else value for name, kind, value in key})

    def _checked(self, values: Mapping[str, Any]) -> Question:
        return Question.parse(values, self.explainer.terms, spell=spell)

    def condition(self, when: str) -> Condition | bool:
        """The condition that a text means: True for `always`, False for `never`.

        Raises:
            SettingError, TargetError: it cannot be read.
        """
        return self._conditions(when) if isinstance(when, str) else read_condition(when)

    def prepare(
        self, data: Any, max_pixels: int | None = image.MAX_PIXELS, header: image.Header | None = None
    ) -> Prepared:
        """Read a picture, as `onnxcam explain` does, and make it a batch of one row.

        Arguments:
            header: of the picture, where it is known.

        Raises:
            PreprocessError, PictureError: as their names say.
        """
        return self.explainer.preparation.prepare(data, header=header, max_pixels=max_pixels)

    def predict(
        self, question: Question | None, when: Condition | bool, batch: np.ndarray, progress: Progress | None = None
    ) -> Prediction:
        """Predict, and compute the maps of the rows that meet the condition.

        Arguments:
            question: about the rows; None where only predictions are asked for.
            when: as of `condition`.
            batch: tensor in the model's own layout and dtype.
            progress: of long methods.

        Raises:
            InputError: a batch of another shape or dtype. TargetError, MethodError, LayerError: as their names say.
        """
        if question is not None and when is True:
            rows = self.maps(question, batch, progress)
            return Prediction(rows.probabilities, rows.scores, np.ones(len(batch), bool), rows)
        scores = self.scores(batch)
        probabilities = self.readout.probabilities(scores)
        fired = np.zeros(len(batch), bool)
        if question is not None and not isinstance(when, bool):
            fired = fires(when, probabilities, self.readout, self.calibration, scores)
        if question is None or not fired.any():
            return Prediction(probabilities, scores, fired, None)
        if not fired.all():
            batch = batch[fired]
            if len(question.targets) > 1:
                targets = tuple(target for target, fires in zip(question.targets, fired, strict=True) if fires)
                question = replace(question, targets=targets)
        return Prediction(probabilities, scores, fired, self.maps(question, batch, progress))

    def scores(self, batch: np.ndarray) -> np.ndarray:
        """The model's scores `[N, K]`, at the cost of the plain model."""
        if not self._head_ready:
            scores = self.explainer.batch_maps(self.question({"method": self.explainer.methods[0]}), batch)[0].scores
            if self._opening.acquire(blocking=False):
                # no daemon: inside ONNX Runtime when the interpreter ends, it would abort the process
                threading.Thread(target=self._open_head, name="onnxcam-server-head", daemon=False).start()
            return scores
        if self.rows == 1:
            with self._places:
                return self.explainer.batch_scores(batch)
        return self._scored((batch.shape[1:], batch.dtype.str), batch)

    def maps(self, question: Question, batch: np.ndarray, progress: Progress | None = None) -> Rows:
        """Scores and maps of a batch."""
        question.check_rows(len(batch))
        together = self.rows > 1 and len(batch) < self.rows and not question.alone
        if not together or not (question.of_classes or question.top is not None):
            with self._places:
                return Rows(self.explainer.batch_maps(question, batch, progress), 0, len(batch))
        return self._mapped((_form(question), batch.shape[1:], batch.dtype.str), (question, batch))

    def _open_head(self) -> None:
        """Make the graph of the scores alone: it takes a second, in which the file itself answers."""
        with contextlib.suppress(OnnxcamError):  # then it goes on answering
            self.explainer.sessions.head(())
            self._head_ready = True

    def _score_together(self, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        scores = self.explainer.batch_scores(batches[0] if len(batches) == 1 else np.concatenate(batches))
        ends = np.cumsum([len(batch) for batch in batches])
        return np.split(scores, ends[:-1])

    def _map_together(self, items: Sequence[tuple[Question, np.ndarray]]) -> list[Rows]:
        if len(items) == 1:
            question, batch = items[0]
            return [Rows(self.explainer.batch_maps(question, batch), 0, len(batch))]
        targets = [
            target
            for question, batch in items
            for target in (question.targets * len(batch) if len(question.targets) == 1 else question.targets)
        ]
        joined = replace(items[0][0], targets=tuple(targets))
        if joined.top is not None:
            joined = items[0][0]
        maps = self.explainer.batch_maps(joined, np.concatenate([batch for _, batch in items]))
        rows, start = [], 0
        for _, batch in items:
            rows.append(Rows(maps, start, start + len(batch)))
            start += len(batch)
        return rows

    def top(
        self, probabilities: np.ndarray, count: int, predictions: Sequence[tuple[int, str, float]] = ()
    ) -> list[dict[str, Any]]:
        """The best classes of one row, as answers name them; of a regression its `value`, which is no confidence.

        Arguments:
            probabilities: `[classes]`.
            count: how many.
            predictions: the best of them, as an `Explanation` has them.
        """
        if self.readout.numeric:
            return [
                {"rank": k + 1, "class_name": name_of(k, self.labels), "class_index": k, "confidence": None}
                | {"value": float(value)}
                for k, value in enumerate(probabilities[:count])
            ]
        if count <= len(predictions):
            best = list(predictions[:count])
        else:
            indices = best_classes(probabilities, count).tolist()
            best = [(index, name_of(index, self.labels), float(probabilities[index])) for index in indices]
        return [
            {"rank": rank, "class_name": label, "class_index": index, "confidence": p}
            for rank, (index, label, p) in enumerate(best, start=1)
        ]

    def calibrated(self, scores: np.ndarray, count: int) -> dict[str, Any]:
        """What a calibrated file says of one row's scores, as answers name it; nothing of any other file.

        Arguments:
            scores: `[1, K]`.
            count: classes in `calibrated`.
        """
        if self.calibration is None:
            return {}
        p = self.calibration.probabilities(scores, self.readout)[0]
        inside = self.calibration.sets(scores, self.readout)[0]
        members = [int(index) for index in np.argsort(-p, kind="stable") if inside[index]]
        return {
            "calibrated": self.top(p, count),
            "prediction_set": [{"class_name": name_of(index, self.labels), "class_index": index} for index in members],
        }


class Models:
    """The models of a server, by name.

    Arguments:
        models: in the order in which they were given; the first one is the default.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self._models = {model.name: model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    @property
    def default(self) -> Model:
        """The model of requests that name none."""
        return next(iter(self._models.values()))

    def find(self, name: Any = None) -> Model:
        """The model of this name, the default for None.

        Raises:
            Refusal: 404, no such model.
        """
        if name is None:
            return self.default
        model = self._models.get(name) if isinstance(name, str) else None
        if model is None:
            raise Refusal(404, f"no model {str(name)[:100]!r}; there are {listing(self._models)}")
        return model

    def classifier(self, name: Any) -> Model:
        """The classifier of this name, for the protocols that have classes alone.

        Raises:
            Refusal: 404, no such model. 422, it is none.
        """
        model = self.find(name)
        if model.task is not None:
            raise Refusal(
                422,
                f"model {model.name!r} is no classifier (task {model.task!r}); POST the picture to "
                "/predict_with_gradcam, or serve the exported file itself, whose inputs say what is explained",
            )
        return model


def sources(models: Any) -> list[tuple[str, Any]]:
    """Names and paths or explainers of what `create_app` takes.

    Raises:
        SettingError: no model, two of one name, or something else.
    """
    if isinstance(models, Mapping):
        pairs = list(models.items())
    else:
        several = isinstance(models, (list, tuple))
        pairs = [_named(model) for model in (models if several else [models])]
    if not pairs:
        raise SettingError("no model to serve; give a path, or NAME=PATH")
    for name, source in pairs:
        if not isinstance(name, str) or not name or "/" in name or not name.isprintable():
            raise SettingError(f"{name!r} cannot be a model's name in a URL; use letters, digits and -._")
        if not isinstance(source, (str, os.PathLike, bytes, Explainer)):
            raise SettingError(f"a {type(source).__name__} is no model to serve; give a path or an Explainer")
    twice = [name for name in dict(pairs) if sum(name == other for other, _ in pairs) > 1]
    if twice:
        raise SettingError(f"two models are called {twice[0]!r}; name them apart: NAME=PATH")
    return pairs


def _named(model: Any) -> tuple[str, Any]:
    if isinstance(model, Explainer):
        return "model", model
    if isinstance(model, bytes):
        return "model", model
    if not isinstance(model, (str, os.PathLike)):
        return str(model), model
    text = os.fspath(model)
    name, separator, path = text.partition("=")
    if separator and not Path(text).exists():
        return name, path
    stem = Path(text).name
    ending = next((ending for ending in _ENDINGS if stem.endswith(ending)), "")
    return stem.removesuffix(ending) or stem, text


def open_models(models: Any, when: str, threads: int, opening: Mapping[str, Any] | None = None) -> Models:
    """Open every model.

    Arguments:
        models: as of `create_app`.
        when: as of `Settings`.
        threads: that call the models side by side; they share the cores.
        opening: further arguments of `Explainer`.

    Raises:
        ModelError, LayerError, PreprocessError, RuntimeUnavailable, SettingError: as their names say.
    """
    from onnxcam.explain.folder import cores

    opened = []
    for name, source in sources(models):
        explainer = source
        if not isinstance(source, Explainer):
            per_run = max(1, cores() // threads)
            shared = options.one_thread() if per_run == 1 else options.side_by_side(per_run)
            explainer = Explainer(source, session_options=shared, **(opening or {}))
        if explainer.preprocess is None:
            raise explainer.preparation.unknown()
        classifies = explainer.terms.readout.task is None
        at_once = explainer is not source and bool(explainer.methods) and classifies
        opened.append(Model(name, explainer, when, places=threads, at_once=at_once))
    return Models(opened)


def spell(name: str, *value: Any) -> str:
    """A parameter as it stands in a request: `"layer": "conv1"`; of unknown ones the name."""
    name = {"target": "class_name"}.get(name, name)
    return f'"{name}": {str(value[0])[:100]!r}' if value else f'"{name}"'


def _key(value: Any) -> tuple[Any, ...]:
    """Type and value of what may stand in a key; nothing for other values."""
    if type(value) is list and all(type(item) is str for item in value):
        return list, tuple(value)
    return (type(value), value) if type(value) in (str, int) else ()


def _form(question: Question) -> tuple[Any, ...]:
    """What two questions must share so that one run answers both: everything but the classes."""
    return (
        tuple(method.name for method in question.methods),
        question.layers,
        question.several_layers,
        question.top,
        question.normalize,
        question.fusion,
        question.size,
        question.side_by_side,
        tuple(sorted((key, repr(value)) for key, value in question.options.items())),
        question.of_classes,
    )
