"""Warnings about a picture's preprocessing, its predictions and its maps.

Few and well founded, as a false alarm costs more than a miss: a picture prepared wrongly gives a map as neat as any
other, and without labels the evidence is the manifest, the first nodes of the graph, and uninformative predictions.
`onnxcam check --pictures` compares preprocessings by their predictions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from onnxcam.errors import listing
from onnxcam.image import Preprocess
from onnxcam.network import manifest
from onnxcam.network.layout import Layout, window_of

# a normalisation that fits its input has a deviation between these parts of its range: pictures have 0.1 to 0.3,
# a division by the whole range counts as 1
NARROWEST, WIDEST = 0.06, 2.0
UNINFORMATIVE = 2.0  # times 1 / classes: the median probability of the best class at which predictions say nothing
FEWEST_CLASSES = 10  # below, twice 1 / classes is not a small probability
SATURATED = 1 - 1e-6
FEWEST_PICTURES = 5
_MOST = 5  # classes whose maps are warned of one by one
# beginnings of the reasons for a map that is zero everywhere
NO_EVIDENCE = "no evidence"
EVEN, OUTSIDE = "the map is the same everywhere", "the map lies outside the visible part of the picture"
_ADVICE = "`onnxcam check MODEL --pictures DIR` compares preprocessings"


def preprocessing_warnings(entry: dict[str, Any], preprocess: Preprocess, override: bool) -> list[str]:
    """Warnings about a preprocessing that need no picture.

    Arguments:
        entry: the manifest's `input`.
        preprocess: the preprocessing in use.
        override: whether it comes from the caller rather than from the file.
    """
    sentences = []
    if override and entry.get("preprocess"):
        recorded = Preprocess.from_dict(entry["preprocess"])
        if not same_values(recorded, preprocess):
            sentences.append(
                f"the model's own preprocessing ({describe(recorded)}) is overridden by another "
                f"({describe(preprocess)}): unless the file is known to be wrong, leave it out"
            )
    first = entry.get("normalization")
    if first is not None and _misfit(np.asarray(first["mean"]), np.asarray(first["std"]), preprocess):
        mean, std = (", ".join(f"{number:.3g}" for number in first[key]) for key in ("mean", "std"))
        sentences.append(
            f"the model itself begins with (x - [{mean}]) / [{std}], which does not fit an input of "
            f"{describe(preprocess)}: it may be scaled twice or not at all; {_advice(first)}"
        )
    return sentences


def input_size_warnings(entry: dict[str, Any]) -> list[str]:
    """Warnings about an input size that was assumed, from the manifest's `input`."""
    if entry.get("size") == manifest.ASSUMED:
        rows, columns = Layout.of(entry).size(entry["shape"])
        return [
            f"the model leaves the picture's size open, and its layers of tokens need one: {rows} x {columns} was "
            "assumed; name the size it was trained on with --input-size (input_size=), or a preprocessing that makes it"
        ]
    if entry.get("size") == manifest.UNKNOWN:
        return [
            "the model has attention and leaves the picture's size open, and the sizes that it admits could not be "
            "determined: layers of tokens cannot be explained, and the default layer may be an early one; name the "
            "size with --input-size (input_size=)"
        ]
    return []


def measured_warnings(entries: manifest.Manifest, *, skipped: bool) -> list[str]:
    """Warnings about what was measured of the model, or that nothing was.

    Arguments:
        entries: the manifest.
        skipped: whether the measurement was left out by request.
    """
    if skipped:
        return [
            "facts about this plain model were not measured (probe=False): the kind of its scores, and where its layer "
            "lies on the picture, are as its graph suggests"
        ]
    return manifest.measured_warnings(entries)


def model_warnings(entries: manifest.Manifest, layers: Collection[str], *, skipped: bool) -> list[str]:
    """Warnings about a model that need neither a preprocessing nor a picture.

    Arguments:
        entries: the manifest.
        layers: names of those in use.
        skipped: whether the measurement was left out by request.
    """
    return [
        *input_size_warnings(entries["input"]),
        *entries["scores"].get("warnings", ()),
        *layer_warnings(entries["layers"], layers),
        *measured_warnings(entries, skipped=skipped),
    ]


def layer_warnings(entries: Sequence[dict[str, Any]], names: Collection[str] | None = None) -> list[str]:
    """Warnings about default layers through which only a part of what the scores are computed from passes.

    Arguments:
        entries: the manifest's `layers`.
        names: of the layers in use; all if None.
    """
    sentences = []
    for entry in entries:
        others = entry.get("beside")
        if others is None or (names is not None and entry["name"] not in names):
            continue
        if not others and (entry.get("place") or {}).get("verdict") == "none":
            continue  # which is said of it, and why
        window = window_of(entry)
        sees = "" if window is None else f", which sees {window.words()} of the model's input"
        around = f"{listing(others)} too" if others else "paths around it"
        which = f"one of {len(others) + 1} parallel parts" if others else "a part"
        sentences.append(
            f"the map shows {which} of the model alone, layer {entry['name']!r}{sees}: the scores are computed from "
            f"{around}; explain another part with `--layer` (layers=)"
        )
    return sentences


def same_values(a: Preprocess, b: Preprocess) -> bool:
    """Whether two preprocessings make the same values of a pixel, within a hundredth of their range."""
    if a.color != b.color:
        return False
    (low, high), (low_b, high_b) = a.range, b.range
    width = np.maximum(high - low, high_b - low_b)
    return bool(np.all(np.abs(low - low_b) <= 0.01 * width) and np.all(np.abs(high - high_b) <= 0.01 * width))


def describe(preprocess: Preprocess) -> str:
    """Colours and range, for people: `RGB from -1 to 1`."""
    low, high = preprocess.range
    return f"{preprocess.color} from {low.min():.3g} to {high.max():.3g}"


def prediction_warnings(best: Sequence[tuple[int, float | None]], classes: int) -> list[str]:
    """Warnings that the predictions of a run give rise to.

    Arguments:
        best: class and probability of the first prediction of each picture.
        classes: number of classes.
    """
    finite = [(index, probability) for index, probability in best if probability is not None]
    if not finite:
        return []
    numbers = np.sort([probability for _, probability in finite])
    # np.median loads masked arrays, which takes longer than a small model's run
    median = float(numbers[(len(numbers) - 1) // 2] + numbers[len(numbers) // 2]) / 2
    if classes >= FEWEST_CLASSES and median <= UNINFORMATIVE / classes:
        return [
            f"the predictions say next to nothing: the best class has a median probability of {median:.2g}, and "
            f"{1 / classes:.2g} is what guessing gives; is the preprocessing the model's? {_ADVICE}"
        ]
    alike = len({index for index, _ in finite}) == 1
    if alike and len(finite) >= FEWEST_PICTURES and numbers.min() >= SATURATED:
        return [
            f"all {len(finite)} pictures are class {finite[0][0]} with a probability of 1: unless they are much alike, "
            f"the input is out of the model's range; {_ADVICE}"
        ]
    return []


def map_warnings(maps: Sequence[tuple[str, str | None]], scores: np.ndarray) -> list[str]:
    """Warnings about the maps of one picture.

    Arguments:
        maps: of each class its label, and the reason if its heatmap is zero everywhere (`Map.blank`).
        scores: of the picture, `[K]`.
    """
    sentences = []
    if not np.isfinite(scores[~np.isneginf(scores)]).all():
        sentences.append("the scores are not finite: the map means nothing; check the model and its preprocessing")
    empty = [(label, blank) for label, blank in maps if blank is not None]
    for label, blank in empty[:_MOST]:
        if blank.startswith(NO_EVIDENCE):
            _, _, why = blank.partition(": ")
            sentences.append(
                f"the map of {label!r} is zero everywhere: nothing at this layer speaks for it"
                f"{f' ({why})' if why else ''}; try another layer or method"
            )
        else:
            advice = "; normalize='max' keeps a map that is the same everywhere" if blank == EVEN else ""
            sentences.append(f"the map of {label!r} shows nothing: {blank.replace('the map', 'it', 1)}{advice}")
    if len(empty) > _MOST:
        sentences.append(f"the maps of {len(empty) - _MOST:,} more classes are zero everywhere or show nothing")
    return sentences


def reversed_warnings(method: str, values: Sequence[tuple[str, float]]) -> list[str]:
    """Warnings about a method that divides by the score, which reverses the map of a negative one.

    Arguments:
        method: its name.
        values: the label and the value of the objective of each map.
    """
    negative = [f"{label!r} ({value:.3g})" for label, value in values if value < 0]
    if not negative:
        return []
    which = f"score of {negative[0]} is" if len(negative) == 1 else f"scores of {', '.join(negative)} are"
    return [
        f"the {which} negative, and {method} divides by the score: the map shows what speaks against the class; "
        "explain a class with a positive score, or choose another method"
    ]


def _misfit(mean: np.ndarray, std: np.ndarray, preprocess: Preprocess) -> bool:
    low, high = preprocess.range
    if mean.size not in (1, low.size):
        return False
    width = high - low
    outside = np.all((mean < low - 0.5 * width) | (mean > high + 0.5 * width))
    # a deviation of 1 does not scale: only the mean counts
    part = std / width
    scaled = not np.allclose(std, 1.0)
    return bool(outside or (scaled and (np.all(part < NARROWEST) or np.all(part > WIDEST))))


def _advice(normalization: dict[str, list[float]]) -> str:
    size = float(np.mean(normalization["std"]) + abs(np.mean(normalization["mean"])))
    if size > 20:
        return f"it expects pixels from 0 to 255 (raw); {_ADVICE}"
    return f"it expects small numbers (0..1); {_ADVICE}"
