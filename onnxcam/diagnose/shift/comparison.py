"""Compare two models on the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.diagnose.shift.distance import STATISTIC, distances, shares
from onnxcam.diagnose.shift.pairing import open_pair
from onnxcam.diagnose.shift.result import PictureShift, Prediction, Shift
from onnxcam.diagnose.shift.side import Side, SideRun, on_common_plane
from onnxcam.errors import InputError, PictureError
from onnxcam.explain.question import SEED

_CHUNK = 8  # pictures per run, as of `Explainer`
OLD, TRUTH = "old", "truth"


def compare(
    old: Any,
    new: Any,
    pictures: Sequence[Any],
    *,
    truth: Sequence[int | None] | None = None,
    layer: str | None = None,
    new_layer: str | None = None,
    method: str = "hirescam",
    names: Sequence[str] | None = None,
    seed: int = SEED,
    progress: Callable[[int, int], None] | None = None,
) -> Shift:
    """Compare two models on the same pictures: which predictions flipped, and where the attention moved.

    Both explain the same class of each picture, OLD's top-1 or the true class, by the same gradient. Each prepares
    pictures as its own file says. A map counts as a distribution of energy over the picture, and the distance of two is
    the part of it that lies elsewhere (`onnxcam.diagnose.shift.distance`).

    Arguments:
        old, new: an `Explainer`, or what it opens: an explainable model or any classifier, float or quantized, NCHW or
            NHWC.
        pictures: what `Explainer.explain` takes. Those that cannot be read are left out and listed.
        truth: the true class of each picture, None where it is not known; the maps explain it then.
        layer: target layer in both models; each one's last target layer if None.
        new_layer: target layer in NEW, where it has another name there.
        method: name of the CAM method.
        names: names of the pictures; their own if None.
        seed: fixes whatever is random.
        progress: called with (done, total) pictures; an exception it raises ends the comparison.

    Raises:
        SettingError: the models do not have the same classes, or are not classifiers.
        InputError: no picture, none that can be read, or not one truth or name per picture.
        ModelError, LayerError, MethodError: as their names say.
    """
    pictures = list(pictures)
    if not pictures:
        raise InputError("no pictures were given; a comparison needs at least one")
    for what, values in (("truth", truth), ("names", names)):
        if values is not None and len(values) != len(pictures):
            raise InputError(f"{what} has {len(values)} entries for {len(pictures)} pictures; give one for each")
    sides, notes = open_pair(old, new, layer, new_layer, method)
    result: list[PictureShift] = []
    failures: list[tuple[str, Any]] = []
    done = 0
    for places, prepared in _prepared(sides, pictures, names, failures):
        classes = None if truth is None else [truth[place] for place in places]
        runs = _run(sides, prepared, classes)
        planes = [shares(maps) for maps in on_common_plane(runs)]
        apart = distances(*planes)
        empty = [plane.sum(axis=1) == 0 for plane in planes]
        for row, place in enumerate(places):
            result.append(
                PictureShift(
                    prepared[0].names[row],
                    pictures[place],
                    int(runs[0].targets[row]),
                    _prediction(sides[0], runs[0], row),
                    _prediction(sides[1], runs[1], row),
                    float(apart[row]),
                    (bool(empty[0][row]), bool(empty[1][row])),
                    None if classes is None else classes[row],
                )
            )
        done = places[-1] + 1
        if progress is not None:
            progress(done, len(pictures))
    if not result:
        raise InputError(f"none of the {len(pictures)} pictures can be read: {failures[0][1]}")
    return Shift(
        sides[0].explainer,
        sides[1].explainer,
        result,
        (sides[0].layer, sides[1].layer),
        method,
        OLD if truth is None else TRUTH,
        STATISTIC,
        seed,
        failures,
        notes,
    )


class _Prepared:
    """Some pictures, ready for one model."""

    def __init__(self) -> None:
        self.tensors: list[np.ndarray] = []
        self.geometry: list[image.Geometry] = []
        self.names: list[str] = []

    @property
    def batch(self) -> np.ndarray:
        return np.concatenate(self.tensors)


def _prepared(
    sides: Sequence[Side], pictures: Sequence[Any], names: Sequence[str] | None, failures: list[tuple[str, Any]]
) -> Iterator[tuple[list[int], list[_Prepared]]]:
    """Read pictures a few at a time, each once, and prepare them for each model.

    A picture that one of the models cannot take is left out of all.
    """
    alike = [k and sides[0].prepares_like(side) for k, side in enumerate(sides)]
    rows = _CHUNK if all(side.fixed for side in sides) else 1
    places: list[int] = []
    prepared = [_Prepared() for _ in sides]
    for place, source in enumerate(pictures):
        name = None if names is None else names[place]
        try:
            picture, tensor, geometry = sides[0].explainer.prepare(source)
            parts = [(tensor, geometry)]
            for side, same in list(zip(sides, alike, strict=True))[1:]:
                parts.append(parts[0] if same else side.prepare(_shared(picture, side, sides[0], source)))
        except PictureError as error:
            failures.append((name or str(source)[:80], error))
            continue
        places.append(place)
        for one, (tensor, geometry) in zip(prepared, parts, strict=True):
            one.tensors.append(tensor)
            one.geometry.append(geometry)
            one.names.append(picture.name if name is None else name)
        if len(places) == rows:
            yield places, prepared
            places, prepared = [], [_Prepared() for _ in sides]
    if places:
        yield places, prepared


def _shared(picture: image.Picture, side: Side, first: Side, source: Any) -> Any:
    """The decoded picture where the other model reads it alike, else the source to read anew."""
    one, two = side.explainer.preprocess, first.explainer.preprocess
    alike = one is not None and two is not None and one.channels == two.channels and one.value_range == two.value_range
    return picture if alike and picture.tensor is None and side.explainer.preparation.bands is None else source


def _run(sides: Sequence[Side], prepared: Sequence[_Prepared], truth: Sequence[int | None] | None) -> list[SideRun]:
    """Run the models over some pictures: the first explains the true classes or its top-1, the others the same."""
    first = prepared[0]
    targets = None if truth is None else [-1 if index is None else index for index in truth]
    runs = [sides[0].run(first.batch, first.geometry, targets)]
    for side, one in zip(sides[1:], prepared[1:], strict=True):
        runs.append(side.run(one.batch, one.geometry, runs[0].targets.tolist()))
    return runs


def _prediction(side: Side, run: SideRun, row: int) -> Prediction:
    index = int(run.best[row])
    return Prediction(index, side.explainer.label(index), float(run.probabilities[row, index]))
