"""What makes a preprocessing doubtful: sentences, few and well founded, as a false alarm costs more than a miss.

A picture prepared wrongly gives a map as neat as any other. What can be known without labels is little: what the file
itself says, what the graph does to the picture first, and predictions that tell nothing. `onnxcam check --pictures`
compares preprocessings by their predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcam.image import Preprocess
from onnxcam.network import manifest

# a normalisation made for its input has a deviation between these parts of the input's range: pictures have 0.1 to 0.3,
# a division by the whole range counts as 1
NARROWEST, WIDEST = 0.06, 2.0
SPEECHLESS = 2.0  # times 1 / classes: the median probability of the best class that says nothing
FEWEST_CLASSES = 10  # below, twice 1 / classes is no small probability
SATURATED = 1 - 1e-6
FEWEST_PICTURES = 5
_ADVICE = "`onnxcam check MODEL --pictures DIR` compares preprocessings"


def about_input(entry: dict[str, Any], preprocess: Preprocess, given: bool) -> list[str]:
    """Doubts about a preprocessing that are known before a picture is seen.

    Arguments:
        entry: the manifest's `input`.
        preprocess: what is used.
        given: whether it comes from the caller rather than from the file.
    """
    found = []
    recorded = entry.get("preprocess")
    if given and recorded:
        said = Preprocess.from_dict(recorded)
        if not same_values(said, preprocess):
            found.append(
                f"the model's own preprocessing ({describe(said)}) is overridden by another ({describe(preprocess)}): "
                "unless the file is known to be wrong, leave it out"
            )
    own = entry.get("normalization")
    if own is not None and _misfit(np.asarray(own["mean"]), np.asarray(own["std"]), preprocess):
        mean, std = (", ".join(f"{number:.3g}" for number in own[key]) for key in ("mean", "std"))
        found.append(
            f"the model itself begins with (x - [{mean}]) / [{std}], which does not fit an input of "
            f"{describe(preprocess)}: it may be scaled twice or not at all; {_advice(own)}"
        )
    return found


def about_size(entry: dict[str, Any]) -> list[str]:
    """Doubts about the size that a model's pictures were fixed to, from the manifest's `input`."""
    if entry.get("size") == manifest.ASSUMED:
        rows, columns = (entry["shape"][axis] for axis in ((2, 3) if entry["layout"] == "NCHW" else (1, 2)))
        return [
            f"the model leaves the picture's size open, and its layers of tokens need one: {rows} x {columns} was "
            "taken; name the size it was trained on with `onnxcam export --input-size` (input_size=), or a "
            "preprocessing that makes it"
        ]
    if entry.get("size") == manifest.UNKNOWN:
        return [
            "the model has attention and leaves the picture's size open, and which sizes it admits could not be told: "
            "layers of tokens cannot be explained, and the default layer may be an early one; name the size with "
            "`onnxcam export --input-size` (input_size=)"
        ]
    return []


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


def _misfit(mean: np.ndarray, std: np.ndarray, preprocess: Preprocess) -> bool:
    low, high = preprocess.range
    if mean.size not in (1, low.size):
        return False
    width = high - low
    beside = np.all((mean < low - 0.5 * width) | (mean > high + 0.5 * width))
    # a deviation of 1 is no division: the mean alone tells
    part = std / width
    scaled = not np.allclose(std, 1.0)
    return bool(beside or (scaled and (np.all(part < NARROWEST) or np.all(part > WIDEST))))


def _advice(own: dict[str, list[float]]) -> str:
    size = float(np.mean(own["std"]) + abs(np.mean(own["mean"])))
    if size > 20:
        return f"it expects pixels from 0 to 255 (raw); {_ADVICE}"
    return f"it expects small numbers (0..1); {_ADVICE}"


def about_run(best: Sequence[tuple[int, float | None]], classes: int) -> list[str]:
    """Doubts that the predictions of a run give rise to.

    Arguments:
        best: class and probability of the first prediction of each picture.
        classes: number of classes.
    """
    known = [(index, probability) for index, probability in best if probability is not None]
    if not known:
        return []
    numbers = np.sort([probability for _, probability in known])
    # np.median loads masked arrays, which takes longer than a small model's run
    median = float(numbers[(len(numbers) - 1) // 2] + numbers[len(numbers) // 2]) / 2
    if classes >= FEWEST_CLASSES and median <= SPEECHLESS / classes:
        return [
            f"the predictions say next to nothing: the best class has a median probability of {median:.2g}, and "
            f"{1 / classes:.2g} is what guessing gives; is the preprocessing the model's? {_ADVICE}"
        ]
    alike = len({index for index, _ in known}) == 1
    if alike and len(known) >= FEWEST_PICTURES and numbers.min() >= SATURATED:
        return [
            f"all {len(known)} pictures are class {known[0][0]} with a probability of 1: unless they are much alike, "
            f"the input is out of the model's range; {_ADVICE}"
        ]
    return []
