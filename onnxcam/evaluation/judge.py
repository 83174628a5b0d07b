"""Judge methods by numbers: the same pictures, the same classes, every metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from onnxcam.cam import methods as cam
from onnxcam.errors import InputError, MethodError
from onnxcam.evaluation import boxes as box_files
from onnxcam.evaluation.evaluation import Evaluation, Example
from onnxcam.evaluation.judge_objects import evaluate_objects
from onnxcam.evaluation.metrics import Metric, select
from onnxcam.evaluation.metrics.randomization import STAGES, cascade
from onnxcam.evaluation.objects import is_of_objects
from onnxcam.evaluation.reading import Read, drawn, read_pictures, small
from onnxcam.evaluation.sampling import TOLERANCE, Sampling
from onnxcam.evaluation.trial import ROWS, Runs, Trial, predictor, to_input
from onnxcam.explain.examination import Examination
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.question import SEED, Question
from onnxcam.network.layout import Layout
from onnxcam.targets import classes as classes_of

# those of them that are registered: the common ones, and two that any other should beat
USUAL = ("gradcam", "gradcam++", "layercam", "hirescam", "eigencam", "activationmap", "randomcam")
_WAITING = 256 << 20  # bytes of maps that wait for the other methods or, with their pictures, for the next stage


@dataclass
class _Work:
    """The question whose answers are judged, the options of metrics, and the progress."""

    explainer: Explainer
    question: Question
    options: dict[str, Any]
    total: int
    progress: Callable[[int, int], None] | None
    sampling: Sampling
    passes: dict[str, int]
    done: int = 0

    @property
    def methods(self) -> list[str]:
        return [method.name for method in self.question.methods]

    @property
    def seed(self) -> int:
        return self.question.seed

    def examine(self, explainer: Explainer, batch: np.ndarray, *, changed: bool = False) -> Examination:
        """Run an explainer's head; long methods report here, so that they can be ended too."""
        self.passes["explained" if changed else "pictures"] += len(batch)
        return explainer.examine(batch, self.question.layer, seed=self.seed, progress=lambda done, total: self.tell())

    def tell(self) -> None:
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)

    def advance(self, count: int) -> None:
        self.done += count
        self.tell()


def usual() -> list[str]:
    """List the methods judged by default."""
    registered = cam.methods()
    return [name for name in USUAL if name in registered]


def evaluate(
    explainer: Explainer,
    pictures: Sequence[Any],
    *,
    methods: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    targets: Sequence[Any] | None = None,
    boxes: Any = None,
    layer: Any = None,
    names: Sequence[str] | None = None,
    stages: int = STAGES,
    tolerance: float = TOLERANCE,
    seed: int = SEED,
    examples: int = 0,
    progress: Callable[[int, int], None] | None = None,
    partial: Callable[[Evaluation], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Judge methods on pictures.

    Arguments:
        explainer: the model; it must know how pictures become tensors.
        pictures: what `onnxcam.image.load` reads. Those that cannot be read are skipped and listed.
        methods: names of methods; `usual()` if None.
        metrics: names of metrics (`onnxcam.evaluation.metrics`), `all` for every one; the usual ones if None.
        targets: the class of each picture, index, label or -1 for its top-1; if None, the class that the file is bound
            to, else each one's top-1.
        boxes: where the objects are: a file (`onnxcam.evaluation.boxes.read`), or a mapping from picture to boxes.
        layer: as in `Explainer.attribute`.
        names: names of the pictures; their own if None.
        stages: of the randomisation cascade.
        tolerance: the error of the means of insertion, deletion and ROAD that leaving out points of their curves may
            cause, which the evaluation bounds with a confidence of 95 % (`Evaluation.bound`); 0 computes every point.
            Of fewer than 32 pictures, and of objects, every point is computed.
        seed: fixes whatever is random.
        examples: the number of pictures to show in the report, with every map.
        progress: called with (done, total); an exception it raises ends the evaluation.
        partial: called with the evaluation so far each time the numbers of some more pictures are complete, but for
            metrics that compare with redrawn weights, which follow for all pictures at once.
        options: of metrics, such as `steps=64`; each metric takes those that it has.

    Raises:
        InputError: not one target per picture, no picture can be read, an option that no metric has, or a tolerance
            outside of 0..1.
        MethodError: no such method or metric, or a metric that needs boxes where there are none.
        SettingError: the boxes file cannot be used, or the model's score is a quantity.
        TargetError: a target is not a class.
    """
    if not 0 <= tolerance <= 1:
        raise InputError(f"tolerance={tolerance}; expected a number from 0 (every point is computed) to 1")
    if is_of_objects(explainer):
        return evaluate_objects(
            explainer, pictures, methods=usual() if methods is None else methods, metrics=metrics, targets=targets,
            boxes=boxes, layer=layer, names=names, seed=seed, examples=examples, progress=progress, partial=partial,
            **options,
        )  # fmt: skip
    explainer.terms.readout.require_probabilities(
        "judging methods", advice="`onnxcam check` compares its gradients with finite differences"
    )
    box_table = None if boxes is None else box_files.checked(boxes)
    selected_metrics = select(metrics, boxes=box_table is not None)
    selected_methods = list(dict.fromkeys(usual() if methods is None else methods))
    if not selected_methods or not selected_metrics:
        raise MethodError("nothing to judge: name at least one method and one metric")
    if targets is not None and len(targets) != len(pictures):
        raise InputError(f"got {len(targets)} targets for {len(pictures)} pictures; give one for each")
    question = explainer.question(
        rows=len(pictures),
        target=None if targets is None else list(targets),
        method=selected_methods,
        layer=layer,
        seed=seed,
    )
    for option in options:
        if not any(option in metric.options for metric in selected_metrics):
            raise InputError(f"none of these metrics has an option {option!r}")
    all_classes = question.classes(len(pictures))
    plain = [metric for metric in selected_metrics if not metric.redrawn]
    compared = [metric for metric in selected_metrics if metric.redrawn]
    total = len(pictures) * len(selected_methods) * (len(plain) + stages * len(compared))
    evaluation = Evaluation.empty(
        explainer, selected_methods, selected_metrics, len(pictures), targets is not None, stages
    )
    sampling = Sampling(len(pictures), tolerance)
    work = _Work(explainer, question, options, total, progress, sampling, evaluation.passes)
    evaluation.layers = list(question.layers)
    waiting = _Waiting()
    for read in read_pictures(explainer, pictures, names, evaluation.failures):
        explained = _judge(work, read, all_classes, box_table, plain, evaluation, examples)
        if compared:
            waiting.add(explained)
        if partial is not None:
            partial(evaluation)
    if not evaluation.places:
        first = f": {evaluation.failures[0][1]}" if evaluation.failures else ""
        raise InputError(f"none of the {len(pictures)} pictures can be read{first}")
    if compared:
        _compare(work, pictures, names, all_classes, compared, evaluation, stages, waiting)
    return evaluation


def _judge(
    work: _Work,
    read: Read,
    all_classes: np.ndarray,
    boxes: box_files.Boxes | None,
    metrics: Sequence[Metric],
    evaluation: Evaluation,
    examples: int,
) -> _Explained:
    """Judge every method on some pictures; return their maps."""
    examination = work.examine(work.explainer, read.batch)
    classes, probabilities, maps = _maps(work, read, all_classes, examination)
    inside = [_inside(work.explainer, boxes, read, row, int(classes[row])) for row in range(len(classes))]
    whole = probabilities[np.arange(len(classes)), classes].astype(np.float64)
    common = _Common(Runs(work.explainer.sessions.rows or ROWS))
    evaluation.add_pictures(read.places, read.names, classes, whole, probabilities.argmax(axis=1))
    for place, method in enumerate(work.methods):
        trial = _trial(work, read, method, classes, whole, maps[place], inside, common)
        for metric in metrics:
            evaluation.record(method, metric.name, read.places, metric(trial, work.options))
            if metric.name in trial.samples:
                evaluation.record_sample(method, metric.name, read.places, trial.samples[metric.name])
            work.advance(len(classes))
        evaluation.add_curves(method, read.places, trial.curves)
    work.passes["changed"] += common.runs.count
    work.passes["shared"] += common.runs.repeated
    for row in range(len(classes)):
        if len(evaluation.examples) < examples:
            geometry = read.geometry[row]
            visible = examination.visible(work.question, geometry)
            examples_of = {
                method: drawn(geometry.to_picture(maps[place][row]), read.pixels[row], visible[place])
                for place, method in enumerate(work.methods)
            }
            evaluation.examples.append(Example(read.places[row], small(read.pixels[row]), examples_of))
    return _Explained(read, classes, probabilities, maps)


def _compare(
    work: _Work,
    pictures: Sequence[Any],
    names: Sequence[str] | None,
    all_classes: np.ndarray,
    metrics: Sequence[Metric],
    evaluation: Evaluation,
    stages: int,
    waiting: _Waiting,
) -> None:
    """Compare the maps with those of the cascade's models, one of which is in memory at a time."""
    for stage, (part, other) in enumerate(cascade(work.explainer, stages, work.seed)):
        evaluation.parts.append(part)
        for read, classes, probabilities, maps in waiting.every(work, pictures, names, all_classes):
            whole = probabilities[np.arange(len(classes)), classes].astype(np.float64)
            examination = work.examine(other, read.batch)
            with np.errstate(all="ignore"):  # a model with redrawn weights may overflow
                redrawn = examination.attribute(list(classes), work.methods, work.question.layer)
            for place, method in enumerate(work.methods):
                trial = _trial(work, read, method, classes, whole, maps[place], [], _Common())
                trial = trial.against(_finite(redrawn[place]))
                for metric in metrics:
                    evaluation.record_stage(method, metric.name, stage, read.places, metric(trial, work.options))
                    work.advance(len(classes))
    for method in work.methods:
        for metric in metrics:
            evaluation.average_stages(method, metric.name)


class _Explained(NamedTuple):
    """Pictures with what the model says of them, see `_maps`."""

    read: Read
    classes: np.ndarray
    probabilities: np.ndarray
    maps: list[np.ndarray]

    @property
    def size(self) -> int:
        """Bytes of the pictures and their maps."""
        return int(self.read.batch.nbytes + sum(one.nbytes for one in self.maps))


@dataclass
class _Waiting:
    """The first pictures of an evaluation with their maps, as many as fit in memory."""

    explained: list[_Explained] = field(default_factory=list)
    size: int = 0
    full: bool = False

    def add(self, one: _Explained) -> None:
        """Add the next pictures, unless they or earlier ones do not fit."""
        self.full = self.full or self.size + one.size > _WAITING
        if not self.full:
            self.explained.append(one._replace(read=replace(one.read, pixels=[])))
            self.size += one.size

    def every(
        self, work: _Work, pictures: Sequence[Any], names: Sequence[str] | None, all_classes: np.ndarray
    ) -> Iterator[_Explained]:
        """All pictures: these, and the others read and explained again."""
        yield from self.explained
        done = self.explained[-1].read.places[-1] + 1 if self.explained else 0
        for read in read_pictures(work.explainer, pictures[done:], None if names is None else names[done:], []):
            read = replace(read, places=[done + place for place in read.places])
            examination = work.examine(work.explainer, read.batch)
            yield _Explained(read, *_maps(work, read, all_classes, examination))


@dataclass
class _Common:
    """What the methods have in common on some pictures: changed pictures that were run, and those explained again.

    Attributes:
        runs: of the changed pictures.
        maps: by changed picture and method.
    """

    runs: Runs = field(default_factory=Runs)
    maps: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the maps that wait for their method."""
        return sum(maps.nbytes for maps in self.maps.values())


def _trial(
    work: _Work,
    read: Read,
    method: str,
    classes: np.ndarray,
    whole: np.ndarray,
    maps: np.ndarray,
    inside: Sequence[np.ndarray | None],
    common: _Common,
) -> Trial:
    entry = work.explainer.manifest["input"]

    def attribute(changed: np.ndarray, methods: Sequence[str]) -> list[np.ndarray]:
        examination = work.examine(work.explainer, to_input(changed, entry), changed=True)
        every = examination.attribute([int(index) for index in classes], list(methods), work.question.layer)
        return [_finite(one) for one in every]

    def explain_same(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        if (name, method) not in common.maps:
            left = work.methods[work.methods.index(method) :]
            methods = left if common.size + len(left) * maps.nbytes <= _WAITING else [method]
            common.maps.update(zip([(name, one) for one in methods], attribute(make(), methods), strict=True))
        else:
            work.passes["shared"] += len(classes)
        return common.maps.pop((name, method))

    return Trial(
        predict=predictor(work.explainer),
        explain=lambda changed: attribute(changed, [method])[0],
        explain_same=explain_same,
        pictures=np.ascontiguousarray(Layout.of(entry).to_canonical(read.batch), np.float32),
        maps=maps,
        classes=classes,
        whole=whole,
        places=read.places,
        seed=work.seed,
        boxes=inside,
        originals=_originals(read, maps) if any(one is not None for one in inside) else (),
        tell=work.tell,
        runs=common.runs,
        sampling=work.sampling,
    )


def _originals(read: Read, maps: np.ndarray) -> list[np.ndarray]:
    return [geometry.to_picture(heatmap) for geometry, heatmap in zip(read.geometry, maps, strict=True)]


def _maps(
    work: _Work, read: Read, all_classes: np.ndarray, examination: Examination
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The class of each picture, the probabilities `[N, K]`, and per method the maps `[N, H, W]` from 0 to 1."""
    probabilities = examination.probabilities
    targets = all_classes[read.places]
    classes = np.where(targets < 0, probabilities.argmax(axis=1), targets)
    return (
        classes,
        probabilities,
        [_finite(maps) for maps in examination.attribute([int(c) for c in classes], work.methods, work.question.layer)],
    )


def _finite(maps: np.ndarray) -> np.ndarray:
    """Set values that are not finite to zero: a model with redrawn weights may overflow."""
    return np.asarray(np.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0))


def _inside(
    explainer: Explainer, boxes: box_files.Boxes | None, read: Read, row: int, target: int
) -> np.ndarray | None:
    """Which pixels of the original picture lie in a box of the class explained."""
    if boxes is None:
        return None
    relevant = []
    for box in boxes.of(read.names[row]):
        label = box.label
        if isinstance(label, str) and label.isdigit() and label not in (explainer.labels or ()):
            label = int(label)
        if label is None or int(classes_of.resolve(label, 1, explainer.classes, explainer.labels)[0]) == target:
            relevant.append(box)
    return box_files.mask(relevant, read.geometry[row].picture_size)
