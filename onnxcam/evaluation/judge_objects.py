"""Judge methods on the objects of pictures, see `onnxcam.evaluation.objects`; called by `judge.evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxcam.errors import InputError, MethodError
from onnxcam.evaluation import boxes as box_files
from onnxcam.evaluation import objects
from onnxcam.evaluation.evaluation import Evaluation, Example
from onnxcam.evaluation.metrics import select
from onnxcam.evaluation.reading import drawn, read_pictures, small
from onnxcam.explain.explainer import Explainer
from onnxcam.targets.tasks import Detect


def evaluate_objects(
    explainer: Explainer,
    pictures: Sequence[Any],
    *,
    methods: Sequence[str],
    metrics: Sequence[str] | None,
    targets: Sequence[Any] | None,
    boxes: Any,
    layer: Any,
    names: Sequence[str] | None,
    seed: int,
    examples: int,
    progress: Callable[[int, int], None] | None,
    partial: Callable[[Evaluation], None] | None,
    missed: bool = False,
    **options: Any,
) -> Evaluation:
    """Judge methods on objects; arguments and errors as of `judge.evaluate`.

    Arguments:
        missed: explain drawn objects that the detector does not report too, see `objects.things`.

    Raises:
        InputError: there are targets: every object is explained.
    """
    if targets is not None:
        raise InputError(
            "a class per picture was given, and this model explains objects: name their boxes instead (--boxes)"
        )
    box_table = None if boxes is None else box_files.checked(boxes)
    located = box_table is not None or isinstance(explainer.terms.readout.task, Detect)
    selected = select(metrics, boxes=located, objects=True)
    of_methods = list(dict.fromkeys(methods))
    if not of_methods or not selected:
        raise MethodError("nothing to judge: name at least one method and one metric")
    for option in options:
        if not any(option in metric.options for metric in selected):
            raise InputError(f"none of these metrics has an option {option!r}")
    tally, done = objects.Tally(), 0
    evaluation = Evaluation.empty(explainer, of_methods, selected, 0, box_table is not None, 0)

    def tell() -> None:
        if progress is not None:
            progress(done, len(pictures))

    for read in read_pictures(explainer, pictures, names, evaluation.failures):
        for place, name in enumerate(read.names):
            tensor, geometry = read.batch[place : place + 1], read.geometry[place]
            row = explainer.batch_scores(tensor)[0]
            of_picture = None if box_table is None else box_table.of(name)
            subjects = objects.things(explainer, row, geometry, of_picture, tally, missed=missed)
            if subjects:
                first = evaluation.grow(len(subjects))
                places = list(range(first, first + len(subjects)))
                question = objects.question_of(explainer, subjects, of_methods, layer, seed)
                evaluation.add_pictures(
                    places,
                    [name] * len(subjects),
                    np.array([thing.index for thing in subjects]),
                    np.array([thing.score for thing in subjects]),
                    np.array([thing.index if thing.detail.get("detected", True) else -1 for thing in subjects]),
                )
                evaluation.details += [thing.detail for thing in subjects]
                maps = objects.judge_picture(
                    explainer, question, tensor, geometry, subjects, places, selected, options, evaluation, tell
                )
                for index in range(min(len(subjects), examples - len(evaluation.examples))):
                    maps_of_object = {
                        method: drawn(geometry.to_picture(of_method[index]), read.pixels[place], None)
                        for method, of_method in zip(of_methods, maps, strict=True)
                    }
                    evaluation.examples.append(Example(places[index], small(read.pixels[place]), maps_of_object))
            done += 1
            tell()
            evaluation.objects = {"drawn": tally.drawn, "detected": tally.detected, "pictures": tally.pictures}
            if partial is not None:
                partial(evaluation)
    if not tally.pictures:
        first_failure = f": {evaluation.failures[0][1]}" if evaluation.failures else ""
        raise InputError(f"none of the {len(pictures)} pictures can be read{first_failure}")
    if not evaluation.places:
        missing = (
            "no box that was given is of an object that the model reports" if box_table is not None else "no object"
        )
        raise InputError(f"nothing to judge on {tally.pictures} pictures: {missing}")
    return evaluation
