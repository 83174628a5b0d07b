"""Two models that can be compared: the same classes, and layers that lie on the picture alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from onnxcam import image
from onnxcam.diagnose.shift.side import Side, rows_of
from onnxcam.errors import LayerError, SettingError, listing
from onnxcam.explain.explainer import Explainer
from onnxcam.targets.tasks import DETECT, EMBED, REGRESS, SEGMENT, Embed, Values

INHERITED = "NEW does not say how pictures become tensors: they are prepared as for OLD; check that this is meant"
# what a caller says of a model's input and outputs
_TERMS = ("preprocess", "input_size", "value_range", "bands", "scores", "kind", "task", "boxes_output")
_NAMES = {
    None: "a classifier", DETECT: "a detector", SEGMENT: "a segmentation", EMBED: "an embedding",
    REGRESS: "a regression",
}  # fmt: skip


def open_pair(
    old: Any, new: Any, layer: str | None, new_layer: str | None, method: str, target: Any = None
) -> tuple[tuple[Side, Side], list[str]]:
    """Open both models and match their layers; return them with sentences about what is doubtful.

    Arguments:
        old, new, layer, new_layer, method, target: as of `compare`.

    Raises:
        SettingError: the models do not do the same, or do not have the same classes; a target that is not of them.
        ModelError, LayerError, MethodError: as their names say.
    """
    layers = (layer, new_layer if new_layer is not None else layer)
    first, second = (
        source if isinstance(source, Explainer) else _open(source, None if name is None else [name])
        for source, name in zip((old, new), layers, strict=True)
    )
    notes = []
    if second.preprocess is None and first.preprocess is not None and not isinstance(new, Explainer):
        second = _open(new, None if layers[1] is None else [layers[1]], preprocess=first.preprocess)
        notes.append(INHERITED)
    explainers = first, second
    notes += compare_classes(first, second)
    check_target(first, target)
    sides = [
        Side(explainer, explainer.layers[-1] if name is None else name, method, what, name is not None, target)
        for explainer, name, what in zip(explainers, layers, ("OLD", "NEW"), strict=True)
    ]
    for side in sides:
        if side.explainer.terms.readout.task is not None:
            _ = side.subject_question  # refused before any picture is read
        entry: dict[str, Any] = next((e for e in side.explainer.manifest["layers"] if e["name"] == side.layer), {})
        verdict = (entry.get("place") or {}).get("verdict")
        if verdict == "none":
            notes.append(
                f"the map of layer {side.layer!r} in {side.name} does not lie on the picture, so its distances say "
                "little"
            )
    one, two = first.preprocess, second.preprocess
    if one != two and one is not None and two is not None:
        notes.append(f"OLD and NEW prepare pictures differently: {_differences(one, two)}; check that this is meant")
    return (sides[0], sides[1]), notes


def _differences(old: image.Preprocess, new: image.Preprocess) -> str:
    """The settings in which two preprocessings differ, with both values."""
    names = [field.name for field in fields(old) if field.compare]
    pairs = ((name, getattr(old, name), getattr(new, name)) for name in names)
    return ", ".join(f"{name} {a} in OLD and {b} in NEW" for name, a, b in pairs if a != b)


def open_seeds(old: Side, models: Sequence[Any]) -> tuple[list[Side], list[str]]:
    """Open other trainings of OLD; return them with sentences about what is doubtful.

    What the caller says of OLD's pictures and scores holds for them too. Beyond that each prepares pictures as its file
    says, or as OLD does where it does not.

    Raises:
        SettingError: one has other classes, or not OLD's layer.
        ModelError, MethodError: as their names say.
    """
    sides = []
    for number, source in enumerate(models, 1):
        what = str(source) if isinstance(source, (str, os.PathLike)) else f"training {number} of the null"
        explainer = source
        if not isinstance(source, Explainer):
            try:
                explainer = open_like(old.explainer, source, [old.layer])
            except LayerError as error:
                raise SettingError(f"{what} is no other training of OLD: {error}") from error
        compare_classes(old.explainer, explainer, what)
        if old.explainer is explainer:
            raise SettingError(f"{what} is OLD itself; name other trainings of it")
        sides.append(Side(explainer, old.layer, old.method, what, old.layer_named, old.target))
    others = [side.name for side in sides if side.explainer.preparation[1:] != old.explainer.preparation[1:]]
    notes = []
    if others:
        notes.append(
            f"{len(others)} of {len(sides)} other trainings prepare pictures differently from OLD "
            f"({listing(others, 3)}), so that the null holds more than chance; state one preprocessing for all of them "
            "(--preprocess)"
        )
    return sides, notes


def open_like(other: Explainer, source: Any, layers: Sequence[str] | None) -> Explainer:
    """Open a model as a caller opened `other`; where neither says how pictures become tensors, as `other`'s file."""
    terms = {name: other.settings[name] for name in _TERMS if other.settings[name] is not None}
    if "value_range" in terms:
        terms["preprocess"] = other.preprocess  # a range alone says nothing of a file that does not say the rest
    explainer = _open(source, layers, providers=other.providers, **terms)
    if explainer.preprocess is None and other.preprocess is not None:
        terms["preprocess"] = other.preprocess
        explainer = _open(source, layers, providers=other.providers, **terms)
    return explainer


def _open(source: Any, layers: Sequence[str] | None, **terms: Any) -> Explainer:
    """Open a model, with rows per run that do not depend on a clock: two runs of a comparison give the same floats."""
    explainer = Explainer(source, layers=layers, **terms)
    fix_rows(explainer)
    return explainer


def fix_rows(explainer: Explainer) -> None:
    """Fix the rows per run of an explainer that was opened for a comparison, as `Side.run` does for its time alone."""
    explainer.sessions.rows = rows_of(explainer)


def compare_classes(old: Explainer, new: Explainer, what: str = "NEW") -> list[str]:
    """Refuse models that do something else, or of other classes; return a note where the labels of one are missing.

    Raises:
        SettingError: another task, another number of classes, or other labels.
    """
    tasks = [one.terms.readout.task_name for one in (old, new)]
    if tasks[0] != tasks[1]:
        raise SettingError(
            f"OLD is {_NAMES[tasks[0]]} and {what} {_NAMES[tasks[1]]}; only models that do the same can be compared "
            "(--task says what one does where that was not recognised)"
        )
    if tasks[0] in (EMBED, REGRESS):
        return []
    if old.classes != new.classes and old.classes and new.classes:  # some detectors do not tell
        raise SettingError(
            f"OLD has {old.classes} classes and {what} has {new.classes}; only models of the same classes can be "
            "compared"
        )
    if old.labels is None or new.labels is None:
        if old.labels is None and new.labels is None:
            return []
        lacking = "OLD" if old.labels is None else what
        return [f"{lacking} has no labels, so that its classes are the other's is taken on trust: check their order"]
    if len(old.labels) != len(new.labels):
        raise SettingError(
            f"OLD has {len(old.labels)} labels and {what} has {len(new.labels)}; only models of the same classes can "
            "be compared (labels= or --labels sets those of both)"
        )
    differing = [
        index for index, (a, b) in enumerate(zip(old.labels, new.labels, strict=True)) if _plain(a) != _plain(b)
    ]
    if differing:
        index = differing[0]
        order = sorted(map(_plain, old.labels)) == sorted(map(_plain, new.labels))
        reason = "the same labels in another order" if order else f"{len(differing)} other labels"
        raise SettingError(
            f"{what} has {reason}: class {index} is {old.labels[index]!r} in OLD and {new.labels[index]!r} in {what}; "
            "only models of the same classes in the same order can be compared (labels= or --labels sets those of both)"
        )
    return []


def check_target(explainer: Explainer, target: Any) -> None:
    """Refuse a target of a model that has one of its own on each picture, and none of one that has not.

    Raises:
        SettingError: the message says what to do.
    """
    task = explainer.terms.readout.task
    if isinstance(task, (Embed, Values)) and target is None:
        raise SettingError(
            "two embeddings are compared by their likeness to one picture, and none was named: name it (--like)"
            if isinstance(task, Embed)
            else f"the models return {task.size} values, and none was named: name the one that both explain (--value)"
        )
    if target is not None and not isinstance(task, (Embed, Values)):
        name = explainer.terms.readout.task_name
        what = {DETECT: "boxes", REGRESS: "value"}.get(name or "", "class")
        raise SettingError(
            f"OLD is {_NAMES[name]}, of which both models explain the same {what}; leave the target out (--like and "
            "--value are of embeddings and of several values)"
        )


def check_task(task: str | None, truth: Any, regions: Any) -> None:
    """Refuse what is of classifiers alone.

    Raises:
        SettingError: the true classes of pictures; or regions, where a picture has several maps.
    """
    if truth is not None and task is not None:
        raise SettingError(
            "the true class of a picture is of classifiers, and these models do something else: leave it out, and "
            "judge each with `onnxcam evaluate --boxes`"
        )
    if regions is not None and task == DETECT:
        raise SettingError(
            "regions are where the one map of a picture should lie, and a detector has one for each box: leave them "
            "out, and judge each model's maps with `onnxcam evaluate --boxes`"
        )


def _plain(label: str) -> str:
    return " ".join(label.split()).casefold()
