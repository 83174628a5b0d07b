"""Compare two models on the same pictures."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.diagnose.shift import null as nulls
from onnxcam.diagnose.shift import regions as region_files
from onnxcam.diagnose.shift import verdict as verdicts
from onnxcam.diagnose.shift.augmentation import augment
from onnxcam.diagnose.shift.distance import STATISTIC, distances, empty, shares
from onnxcam.diagnose.shift.gathering import Gathering, tiles
from onnxcam.diagnose.shift.inputs import SAME, apart, describe_inputs
from onnxcam.diagnose.shift.objects import look
from onnxcam.diagnose.shift.pairing import check_task, open_pair, open_seeds
from onnxcam.diagnose.shift.result import PictureShift, Prediction, Preparation, Shift
from onnxcam.diagnose.shift.side import OWN_LAYER, Side, SideRun, on_common_plane
from onnxcam.errors import InputError, PictureError, SettingError
from onnxcam.explain.question import SEED

_CHUNK = 8  # pictures per run, as of `Explainer`
_EMPTY = 0.5  # of the maps may have no energy for a verdict
_COPY = 1e-5  # mean distance of two models that are one training: rounding of other forms of one file
_SCORE = 1e-3  # and the largest difference of their probabilities
_EXAMPLES = 4  # pictures from which a difference of preparation is described
OLD, TRUTH = "old", "truth"


def compare(
    old: Any,
    new: Any,
    pictures: Sequence[Any],
    *,
    null: Any = None,
    regions: Any = None,
    truth: Sequence[int | None] | None = None,
    layer: str | None = None,
    new_layer: str | None = None,
    method: str = "hirescam",
    target: Any = None,
    names: Sequence[str] | None = None,
    seed: int = SEED,
    progress: Callable[[int, int], None] | None = None,
) -> Shift:
    """Compare two models on the same pictures: which predictions flipped, and where the attention moved.

    Both explain the same class of each picture, OLD's top-1 or the true class, by the same gradient. Of detectors the
    boxes of both are matched, and those that both report explained; of segmentations the class with most cells in OLD
    is, over these cells (`onnxcam.diagnose.shift.objects`). Each prepares pictures as its own file says. A map counts
    as a distribution of energy over the picture, and the distance of two is how far it moves, in parts of the picture's
    side (`onnxcam.diagnose.shift.distance`).

    Arguments:
        old, new: an `Explainer`, or what it opens: two classifiers, detectors, segmentations, embeddings or
            regressions, explainable or not, float or quantized, NCHW or NHWC.
        pictures: what `Explainer.explain` takes. Those that cannot be read are left out and listed.
        null: what a verdict on the attention is given against: `seeds:FILE,...` (`Seeds`), at least five other
            trainings of OLD, or `augment:M` (`Augment`), M small changes of each picture under OLD. Where the pictures
            show that none can be given (maps without energy, copies of one training), `Shift.undecided` says why.
        regions: where maps should lie: a file or a folder of masks (`onnxcam.diagnose.shift.regions.read`), or a
            mapping from picture to boxes.
        truth: the true class of each picture, None where it is not known; the maps explain it then.
        layer: target layer in both models; each one's last target layer if None.
        new_layer: target layer in NEW, where it has another name there.
        method: name of the CAM method.
        target: of embeddings the `Similarity` to a picture or vector, of several values the `Value` that is explained;
            None of other models.
        names: names of the pictures; their own if None.
        seed: fixes whatever is random.
        progress: called with (done, total) pictures; an exception it raises ends the comparison.

    Raises:
        SettingError: the models do not do the same, or do not have the same classes; truth of others than classifiers,
            regions of detectors; a null that does not exist, or
            that is too small for a verdict; regions that cannot be read.
        InputError: no picture, none that can be read, not one truth or name per picture, or a truth that is no class.
        ModelError: one of them is not usable, or gives scores or maps that are not finite.
        LayerError, MethodError: as their names say.
    """
    pictures = list(pictures)
    if not pictures:
        raise InputError("no pictures were given; a comparison needs at least one")
    for what, values in (("truth", truth), ("names", names)):
        if values is not None and len(values) != len(pictures):
            raise InputError(f"{what} has {len(values)} entries for {len(pictures)} pictures; give one for each")
    chance = nulls.checked(null)
    places_of = None if regions is None else region_files.checked(regions)
    if isinstance(chance, nulls.Seeds):
        verdicts.require_seeds(len(chance.models))
    elif chance is not None:
        verdicts.require_pictures(len(pictures), chance.count)
    pair, notes = open_pair(old, new, layer, new_layer, method, target)
    check_task(pair[0].explainer.terms.readout.task_name, truth, regions)
    _check_truth(truth, pair[0].explainer.classes)
    alone = pair[0].explainer.terms.readout.task is not None
    sides = [*pair]
    if isinstance(chance, nulls.Seeds):
        others, doubts = open_seeds(pair[0], chance.models)
        sides += others
        notes += doubts
    result: list[PictureShift] = []
    judged: list[PictureShift] = []  # those with maps in all models
    failures: list[tuple[str, Any]] = []
    apart: list[np.ndarray] = []  # of OLD's maps from those of NEW, and from each of the null's
    inputs = _Inputs(*pair)
    outside: Counter[str] = Counter()  # by region the pictures beside which it lies
    covered: Counter[str] = Counter()  # and those of which it covers every pixel
    pairs = np.zeros((len(sides), len(sides)))  # of models, sums over the pictures
    gathering = Gathering(len(sides))
    gaps = np.zeros_like(pairs)  # of their probabilities, the largest
    for places, prepared in _prepared(sides, pictures, names, failures):
        classes = None if truth is None else [truth[place] for place in places]
        inputs.add(prepared)
        if alone:
            one = look(sides, [part.item for part in prepared], chance, (seed, places[0]))
            name = prepared[0].names[0]
            result.append(one.picture(name, pictures[places[0]]))
            if places_of is not None and one.runs:
                result[-1].regions = _regions(places_of.of(name), one.runs, 0, outside, covered)
            if one.apart is not None:
                apart.append(one.apart[:, None])
                judged.append(result[-1])
            if one.pairs is not None and one.tiles is not None:
                pairs += one.pairs
                gathering.add(one.tiles[:, None])
            gaps = np.maximum(gaps, one.gaps)
            if progress is not None:
                progress(places[-1] + 1, len(pictures))
            continue
        runs = _run(sides, prepared, classes)
        planes = [shares(maps) for maps in on_common_plane(runs)]
        rows = np.stack([distances(planes[0], plane) for plane in planes[1:]])
        if isinstance(chance, nulls.Augment):
            rows = np.concatenate([rows, _augmented(pair[0], prepared[0], runs[0], places, chance.count, seed)])
        apart.append(rows)
        if isinstance(chance, nulls.Seeds):
            pairs += _of_pairs(planes, rows)
            gathering.add(np.stack([tiles(plane) for plane in planes]))
            gaps = np.maximum(gaps, _score_gaps(runs))
        blank = [empty(plane) for plane in planes[:2]]
        for row, place in enumerate(places):
            name = prepared[0].names[row]
            result.append(
                PictureShift(
                    name,
                    pictures[place],
                    int(runs[0].targets[row]),
                    _prediction(sides[0], runs[0], row),
                    _prediction(sides[1], runs[1], row),
                    float(rows[0, row]),
                    (bool(blank[0][row]), bool(blank[1][row])),
                    None if classes is None else classes[row],
                    {} if places_of is None else _regions(places_of.of(name), runs[:2], row, outside, covered),
                )
            )
        judged += result[-len(places) :]
        if progress is not None:
            progress(places[-1] + 1, len(pictures))
    if not result:
        raise InputError(f"none of the {len(pictures)} pictures can be read: {failures[0][1]}")
    if places_of is not None and not any(picture.regions for picture in result):
        raise InputError(
            f"none of the {len(result)} pictures has a region; the regions are of {places_of.names}: check the names"
        )
    verdict: verdicts.Verdict | None = None
    undecided = ""
    if chance is not None:
        try:
            _require_energy(judged, pair)
            verdict, each, copies = _judge(chance, np.concatenate(apart, axis=1), pairs, gathering, gaps, sides)
            notes += copies
        except SettingError as error:
            undecided = str(error)
        else:
            for picture, p in zip(judged, each.tolist(), strict=True):
                picture.p = p
    notes += inputs.copies() + _left_out(result, outside, covered)
    return Shift(
        sides[0].explainer,
        sides[1].explainer,
        result,
        (sides[0].layer_name, sides[1].layer_name),
        method,
        OLD if truth is None else TRUTH,
        STATISTIC,
        seed,
        failures,
        notes,
        verdict=verdict,
        preparation=inputs.result(),
        undecided=undecided,
        layers_named=(sides[0].layer_name != OWN_LAYER, sides[1].layer_name != OWN_LAYER),
    )


def _check_truth(truth: Sequence[int | None] | None, classes: int) -> None:
    """Refuse true classes that are none.

    Raises:
        InputError: something else than None or an index.
    """
    for place, index in enumerate(truth or ()):
        integer = isinstance(index, (int, np.integer)) and not isinstance(index, bool)
        if index is not None and not (integer and 0 <= index < classes):
            raise InputError(
                f"truth[{place}] is {index!r}; expected the index of a class, an integer from 0 to {classes - 1}, or "
                "None where it is not known"
            )


def _require_energy(pictures: Sequence[PictureShift], pair: Sequence[Side]) -> None:
    """Refuse a verdict without maps, or on maps most of which are empty: two of them are equal, whatever the models
    look at.

    Raises:
        SettingError: there is no picture with a map, or the maps of OLD, or those of NEW, are empty for more than half.
    """
    if not pictures:
        raise SettingError(
            "no verdict on the attention can be given: on no picture is there a box, or a cell of a class, that all "
            "models report"
        )
    counts = [sum(picture.empty[which] for picture in pictures) for which in (0, 1)]
    if max(counts) > len(pictures) * _EMPTY:
        layers = " and ".join(dict.fromkeys(repr(side.layer) for side in pair))
        raise SettingError(
            f"no verdict on the attention can be given: of {len(pictures)} pictures the map of {counts[0]} has no "
            f"energy in OLD, and of {counts[1]} in NEW (layer {layers}, method {pair[0].method}), and a verdict needs "
            "maps of at least half of them; name another layer or method (--layer, --method)"
        )


def _judge(
    chance: nulls.Null,
    apart: np.ndarray,
    pairs: np.ndarray,
    gathering: Gathering,
    gaps: np.ndarray,
    sides: Sequence[Side],
) -> tuple[verdicts.Verdict, np.ndarray, list[str]]:
    """The verdict, a p-value per picture, and sentences about trainings that are none.

    Arguments:
        apart: distances of OLD's maps, first from NEW's, `[1 + null, pictures]`.
        pairs: sums of the distances of all pairs of models.
        gathering: of their maps.
        gaps: the largest difference of their probabilities.
        sides: the models.

    Raises:
        SettingError: as of the tests.
    """
    if isinstance(chance, nulls.Augment):
        return *verdicts.judge_augmentation(apart[0], apart[1:]), []
    means = pairs / apart.shape[1]
    places, notes = [0, 1], []
    for place in range(2, len(sides)):
        same = [sides[other].name for other in places if means[place, other] <= _COPY and gaps[place, other] <= _SCORE]
        if same:
            notes.append(
                f"{sides[place].name} is left out of the null: its maps and scores are those of {same[0]}, so it is no "
                "other training"
            )
        else:
            places.append(place)
    try:
        verdicts.require_seeds(len(places) - 2)
    except SettingError as error:
        raise SettingError("; ".join([str(error), *notes])) from error
    verdict = verdicts.judge_retraining(means[np.ix_(places, places)], gathering.strengths(places))
    rows = apart[[place - 1 for place in places[1:]]]
    return verdict, (1 + (rows[1:] >= rows[0]).sum(axis=0)) / len(rows), notes


def _left_out(pictures: Sequence[PictureShift], outside: Counter[str], covered: Counter[str]) -> list[str]:
    """Sentences about what the numbers of regions do not hold: pictures beside them, within them, without energy."""
    notes = [
        f"{name or 'the region'} lies outside of {count} pictures, which are left out of it; boxes are in pixels of "
        "the upright picture"
        for name, count in outside.items()
    ]
    notes += [
        f"{name or 'the region'} covers every pixel of {count} pictures, so that all energy of any map lies inside it "
        "there; every pixel of a mask above 0 is inside"
        for name, count in covered.items()
        if count
    ]
    empty: dict[str, list[int]] = {}
    for picture in pictures:
        for name, (old, new) in picture.regions.items():
            counts = empty.setdefault(name, [0, 0])
            counts[0] += old is None
            counts[1] += old is not None and new is None
    for name, (old_empty, new_empty) in empty.items():
        if old_empty:
            notes.append(f"{old_empty} pictures are left out of {name or 'the regions'}: OLD's map has no energy")
        if new_empty:
            notes.append(
                f"on {new_empty} pictures NEW's map has no energy; it counts as none inside {name or 'the regions'}"
            )
    count = sum(picture.truth is not None for picture in pictures)
    if 0 < count < len(pictures):
        notes.append(
            f"the true class is known of {count} of {len(pictures)} pictures, and accuracy is that of these; by class, "
            "the others count where OLD puts them"
        )
    return notes


def _of_pairs(planes: Sequence[np.ndarray], first: np.ndarray) -> np.ndarray:
    """Distances of all pairs of models, summed over some pictures; `first` are those from the first, `[k, N]`."""
    sums = np.zeros((len(planes), len(planes)))
    sums[0, 1:] = first.sum(axis=1)
    for one in range(1, len(planes)):
        for other in range(one + 1, len(planes)):
            sums[one, other] = distances(planes[one], planes[other]).sum()
    return sums + sums.T


def _score_gaps(runs: Sequence[SideRun]) -> np.ndarray:
    """The largest difference of probabilities of each pair of models, `[models, models]`."""
    scores = np.stack([run.probabilities for run in runs])
    return np.stack([np.abs(scores - one).max(axis=(1, 2)) for one in scores])


def _augmented(
    side: Side, prepared: _Prepared, run: SideRun, places: Sequence[int], count: int, seed: int
) -> np.ndarray:
    """How far OLD's maps of slightly changed pictures are from its map of each, `[count, N]`."""
    entry, preprocess = side.explainer.manifest["input"], side.explainer.preprocess
    columns = []
    for row, (place, tensor) in enumerate(zip(places, prepared.tensors, strict=True)):
        copies = augment(tensor, entry, preprocess, count, (seed, place))
        maps = [
            side.run(
                part,
                [prepared.geometry[row]] * len(part),
                [f"{prepared.names[row]}, slightly changed"] * len(part),
                [int(run.targets[row])] * len(part),
            ).maps
            for part in (copies[start : start + _CHUNK] for start in range(0, count, _CHUNK))
        ]
        columns.append(distances(shares(run.maps[row : row + 1]), shares(np.concatenate(maps))))
    return np.stack(columns, axis=1)


def _regions(
    regions: Sequence[region_files.Region],
    runs: Sequence[SideRun],
    row: int,
    outside: Counter[str],
    covered: Counter[str],
) -> dict[str, tuple[float | None, float | None]]:
    """By name the share of the map's energy inside each region, of OLD and of NEW; regions beside the picture, and
    those that cover all of it, are counted.
    """
    if not regions:
        return {}
    heatmaps = [run.heatmap(row) for run in runs]
    pairs = {}
    for name, mask in region_files.masks(regions, heatmaps[0].shape).items():
        old, new = (region_files.inside(heatmap, mask) for heatmap in heatmaps)
        pairs[name] = (old, new)
        covered[name] += bool(mask.all())
    outside.update({region.name for region in regions} - pairs.keys())
    return pairs


class _Prepared:
    """Some pictures, ready for one model."""

    def __init__(self) -> None:
        self.tensors: list[np.ndarray] = []
        self.geometry: list[image.Geometry] = []
        self.names: list[str] = []

    @property
    def batch(self) -> np.ndarray:
        return np.concatenate(self.tensors)

    @property
    def item(self) -> tuple[np.ndarray, image.Geometry, str]:
        """The only one."""
        return self.tensors[0], self.geometry[0], self.names[0]


class _Inputs:
    """Whether the prepared pictures of OLD and NEW are the same, and which of them are the same picture."""

    def __init__(self, old: Side, new: Side) -> None:
        self._explainers = old.explainer, new.explainer
        self._alike = new.prepares_like(old)
        self._distances: list[float] = []
        self._examples: list[tuple[np.ndarray, np.ndarray]] = []
        self._names: dict[bytes, str] = {}
        self._copies: list[tuple[str, str]] = []

    def add(self, prepared: Sequence[_Prepared]) -> None:
        """Look at some pictures."""
        for name, tensor in zip(prepared[0].names, prepared[0].tensors, strict=True):
            first = self._names.setdefault(hashlib.sha256(tensor.tobytes()).digest(), name)
            if first is not name:
                self._copies.append((name, first))
        if self._alike:
            return
        for row in zip(prepared[0].tensors, prepared[1].tensors, strict=True):
            self._distances.append(apart(*self._explainers, row))
            example = (self._examples or [row])[0]
            alike = all(a.shape == b.shape for a, b in zip(row, example, strict=True))
            if self._distances[-1] > SAME and len(self._examples) < _EXAMPLES and alike:
                self._examples.append(row)

    def copies(self) -> list[str]:
        """A sentence about pictures of equal pixels, none if there are none."""
        if not self._copies:
            return []
        name, first = self._copies[0]
        return [
            f"{len(self._copies)} pictures are copies of others, as {name!r} of {first!r}; a verdict takes pictures "
            "for independent and is too sure of itself then: compare each once"
        ]

    def result(self) -> Preparation:
        """What was measured."""
        sentence = describe_inputs(*self._explainers, self._examples) if self._examples else ""
        differing = sum(distance > SAME for distance in self._distances)
        return Preparation(differing, max(self._distances, default=0.0), sentence)


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
    runs = [sides[0].run(first.batch, first.geometry, first.names, targets)]
    for side, one in zip(sides[1:], prepared[1:], strict=True):
        runs.append(side.run(one.batch, one.geometry, one.names, runs[0].targets.tolist()))
    return runs


def _prediction(side: Side, run: SideRun, row: int) -> Prediction:
    index = int(run.best[row])
    return Prediction(index, side.explainer.label(index), float(run.probabilities[row, index]))
