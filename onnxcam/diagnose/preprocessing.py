"""Which preprocessing a model prefers: every plausible one is tried on the same pictures.

With labels, a picture's score is the log-likelihood of its label. Without, it is how much the prediction says about the
picture, KL(p_i || mean p) in nats: high where the model is sure and says different things of different pictures, zero
where a saturated model says the same of all. That needs pictures of several kinds. A preference counts as decided only
where it shows over and over: its mean over pictures exceeds 2.5 standard errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from onnxcam import image
from onnxcam.errors import InputError, PictureError, PreprocessError
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.warnings import SATURATED, same_values
from onnxcam.image.presets import IMAGENET_MEAN, IMAGENET_STD

AXES = ("values", "color", "resize")
FEWEST = 8  # pictures; with fewer nothing is called decided
ERRORS = 2.5  # standard errors that a decided preference exceeds
SMALLEST = 0.02  # nats that a decided preference exceeds
UNLIKELY = 1e-6  # log-likelihoods stop here, so that one picture does not outweigh all others
_CHUNK = 8
_OPEN_SIZE = (224, 224)
_CAFFE_MEAN = (123.68, 116.779, 103.939)
# scale, mean and deviation for RGB
_VALUES: dict[str, tuple[float, Any, Any]] = {
    "imagenet": (1 / 255, IMAGENET_MEAN, IMAGENET_STD),
    "caffe": (1.0, _CAFFE_MEAN, (1.0,) * 3),
    "0..1": (1 / 255, 0.0, 1.0),
    "-1..1": (1 / 127.5, 1.0, 1.0),
    "raw": (1.0, 0.0, 1.0),
}
_PRESETS = {
    ("imagenet", "RGB", "crop"): "imagenet",
    ("imagenet", "RGB", "stretch"): "torch",
    ("caffe", "BGR", "stretch"): "caffe",
    **{(name, color, "stretch"): name for name in ("0..1", "-1..1", "raw") for color in ("RGB", "L")},
}


@dataclass(frozen=True)
class Candidate:
    """A preprocessing to try, by its three choices; `recorded` is the one in use:
    the caller's, or the file's own."""

    values: str
    color: str
    resize: str
    preprocess: image.Preprocess
    recorded: bool = False

    @property
    def name(self) -> str:
        """What it is called: `-1..1 RGB crop`."""
        return f"{self.values} {self.color} {self.resize}"

    @property
    def preset(self) -> str | None:
        """The name that `--preprocess` knows it by, if there is one."""
        return _PRESETS.get((self.values, self.color, self.resize))


@dataclass(frozen=True, eq=False)
class Result:
    """How a model does with one preprocessing; means over pictures, entropy and information in nats.

    Attributes:
        probability, entropy: of the prediction: its best class, and how undecided it is.
        information: how much it says about each picture, KL(p_i || mean p).
        saturated: the part of the pictures whose best class has a probability of 1 within 1e-6.
        accuracy, likelihood: with labels, the part predicted right, and the mean log-likelihood.
        scores: what it is ranked by, per picture.
    """

    candidate: Candidate
    probability: float
    entropy: float
    information: float
    saturated: float
    accuracy: float | None
    likelihood: float | None
    scores: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """Whether one choice is preferred to its best rival: by `margin` nats a picture, give or take `error`.

    `beaten` are all rivals that it clearly beats.
    """

    axis: str
    best: str
    rival: str
    margin: float
    error: float
    decided: bool
    beaten: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Every preprocessing that was tried, best first.

    Attributes:
        pictures: how many took part.
        failures: place and error of those that could not be read.
        labelled: whether the pictures came with labels.
        alike: without labels, whether the pictures are too much alike for the predictions to tell anything.
        verdicts: for each choice, whether the best one beats the best of the others.
        recorded: the same for the best against the preprocessing in use, None where there is none.
    """

    pictures: int
    failures: list[tuple[int, PictureError]]
    labelled: bool
    alike: bool
    results: list[Result]
    verdicts: list[Verdict]
    recorded: Verdict | None

    @property
    def best(self) -> Candidate:
        """The candidate preferred."""
        return self.results[0].candidate

    @property
    def passed(self) -> bool:
        """False where labels prove another preprocessing better than the one in use."""
        return not (self.labelled and self.recorded is not None and self.recorded.decided)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "pictures": self.pictures,
            "labelled": self.labelled,
            "alike": self.alike,
            "passed": self.passed,
            "preferred": {"name": self.best.name, "preset": self.best.preset, "recorded": self.best.recorded},
            "verdicts": [vars(verdict) for verdict in self.verdicts],
            "recorded": None if self.recorded is None else vars(self.recorded),
            "preprocessings": [
                {
                    "name": held.candidate.name,
                    "preset": held.candidate.preset,
                    "recorded": held.candidate.recorded,
                    "accuracy": held.accuracy,
                    "log_likelihood": held.likelihood,
                    "probability": held.probability,
                    "entropy": held.entropy,
                    "information": held.information,
                    "saturated": held.saturated,
                    "preprocess": held.candidate.preprocess.to_dict(),
                }
                for held in self.results
            ],
        }


def candidates(explainer: Explainer) -> list[Candidate]:
    """The preprocessings that fit the model's input, and the one in use.

    Raises:
        PreprocessError: the input takes neither one nor three channels.
    """
    entry = explainer.manifest["input"]
    recorded = explainer.preprocess
    dims = [d if isinstance(d, int) and d > 0 else None for d in entry["shape"]]
    channels, height, width = dims[1:] if entry["layout"] == "NCHW" else (dims[3], dims[1], dims[2])
    if channels is None:
        channels = 3 if recorded is None else recorded.channels
    if channels not in (1, 3):
        raise PreprocessError(f"the model takes {channels} channels, expected 1 or 3; prepare its input yourself")
    size = (height, width) if height is not None and width is not None else None
    if size is None:
        size = (recorded and recorded.output_size) or _OPEN_SIZE
    found = []
    for values in ("raw",) if entry["dtype"] == "uint8" else ("0..1", "-1..1", "raw") if channels == 1 else _VALUES:
        for color in ("L", "inverted") if channels == 1 else ("RGB", "BGR"):
            for resize in ("stretch", "crop"):
                found.append(Candidate(values, color, resize, _preprocess(values, color, resize, size)))
    return found if recorded is None else _with(found, recorded)


def _preprocess(values: str, color: str, resize: str, size: tuple[int, int]) -> image.Preprocess:
    scale, mean, std = _VALUES[values]
    if color == "inverted":
        scale, mean = -scale, mean - 255 * scale
    elif color == "BGR" and isinstance(mean, tuple):
        mean, std = mean[::-1], std[::-1]
    larger = [round(side * 256 / 224) for side in size]
    how: dict[str, Any] = {"resize": {"mode": "stretch", "size": list(size), "antialias": False}}
    if resize == "crop":
        how = {"resize": {"mode": "shortest", "size": larger[0] if size[0] == size[1] else larger}}
        how["crop"] = {"size": list(size)}
    color = "L" if color == "inverted" else color
    return image.Preprocess.from_dict({"color": color, "scale": scale, "mean": mean, "std": std, **how})


def _with(found: list[Candidate], recorded: image.Preprocess) -> list[Candidate]:
    """The recorded preprocessing takes the place of the one that is the same but for rounding, or comes in addition."""
    mode = None if recorded.resize is None else recorded.resize.mode
    resize = "crop" if recorded.crop is not None else mode or "as it is"
    for place, held in enumerate(found):
        if held.resize == resize and same_values(held.preprocess, recorded):
            found[place] = replace(held, preprocess=recorded, recorded=True)
            return found
    known = next((held for held in found if same_values(held.preprocess, recorded)), None)
    values, color = ("recorded", recorded.color) if known is None else (known.values, known.color)
    return [*found, Candidate(values, color, resize, recorded, recorded=True)]


def compare(explainer: Explainer, pictures: Sequence[Any], targets: Sequence[int] | None = None) -> Comparison:
    """Try every plausible preprocessing on the same pictures.

    Arguments:
        explainer: the model; what it says of its preprocessing is one of the candidates.
        pictures: what `onnxcam.image.load` reads. Those that cannot be read are left out and listed.
        targets: the class of each picture, where it is known.

    Raises:
        InputError: not one target per picture, or no picture that can be read.
    """
    if targets is not None and len(targets) != len(pictures):
        raise InputError(f"got {len(targets)} targets for {len(pictures)} pictures; give one for each")
    tried = candidates(explainer)
    failures: list[tuple[int, PictureError]] = []
    rows: list[list[np.ndarray]] = [[] for _ in tried]
    kept: list[int] = []
    for places, chunk in _read(pictures, failures):
        kept += places
        for found, batch in zip(rows, _batches(explainer, tried, chunk), strict=True):
            found += [explainer.predict(part) for part in batch]
    if not kept:
        raise InputError(
            f"none of the {len(pictures)} pictures can be read" + (f": {failures[0][1]}" if failures else "")
        )
    known = None if targets is None else np.asarray([targets[place] for place in kept])
    results = [_result(held, np.concatenate(found), known) for held, found in zip(tried, rows, strict=True)]
    classes = explainer.classes
    alike = known is None and _alike(results, classes)
    results.sort(key=lambda held: _rank(held, alike), reverse=True)
    best = results[0]
    verdicts = []
    for axis in AXES:
        mine = getattr(best.candidate, axis)
        rivals: dict[str, Result] = {}
        for held in results:
            rivals.setdefault(getattr(held.candidate, axis), held)
        del rivals[mine]
        each = [_verdict(axis, (mine, name), best, rival, alike, known is not None) for name, rival in rivals.items()]
        if each:
            verdicts.append(replace(each[0], beaten=tuple(held.rival for held in each if held.decided)))
    own = next((held for held in results if held.candidate.recorded), None)
    recorded = None
    if own is not None:
        names = (best.candidate.name, own.candidate.name)
        recorded = _verdict("recorded", names, best, own, alike, known is not None)
    return Comparison(len(kept), failures, known is not None, alike, results, verdicts, recorded)


def _read(
    pictures: Sequence[Any], failures: list[tuple[int, PictureError]]
) -> Iterator[tuple[list[int], list[image.Picture]]]:
    """Pictures a few at a time, with their places."""
    places: list[int] = []
    chunk: list[image.Picture] = []
    for place, source in enumerate(pictures):
        try:
            chunk.append(image.load(source))
        except PictureError as error:
            failures.append((place, error))
            continue
        places.append(place)
        if len(chunk) == _CHUNK:
            yield places, chunk
            places, chunk = [], []
    if chunk:
        yield places, chunk


def _batches(
    explainer: Explainer, tried: Sequence[Candidate], pictures: Sequence[image.Picture]
) -> Iterable[list[np.ndarray]]:
    """Per candidate the batches of these pictures; each picture is resized once for all that resize it alike."""
    entry = explainer.manifest["input"]
    seen: dict[Any, list[image.Picture]] = {}
    for held in tried:
        preprocess = held.preprocess
        plain: Literal["L", "RGB"] = "L" if preprocess.color == "L" else "RGB"
        key = (plain, preprocess.resize, preprocess.crop)
        if key not in seen:
            resizing = replace(preprocess, color=plain)
            seen[key] = [image.load(np.ascontiguousarray(resizing.transform(one)[0])) for one in pictures]
        values = replace(preprocess, resize=None, crop=None)
        tensors = [values.apply(one, layout=entry["layout"], dtype=entry["dtype"])[0] for one in seen[key]]
        same = len({tensor.shape for tensor in tensors}) == 1
        yield [np.concatenate(tensors)] if same else tensors


def _result(candidate: Candidate, probabilities: np.ndarray, targets: np.ndarray | None) -> Result:
    p = probabilities.astype(np.float64)
    best = p.max(axis=1)
    shares = p / np.maximum(p.sum(axis=1, keepdims=True), 1e-12)
    logs = np.log(np.maximum(shares, 1e-12))
    mean = np.log(np.maximum(shares.mean(axis=0), 1e-12))
    entropy = -(shares * logs).sum(axis=1)
    information = (shares * (logs - mean)).sum(axis=1)
    accuracy = likelihood = None
    scores = information
    if targets is not None:
        scores = np.log(np.maximum(p[np.arange(len(p)), targets], UNLIKELY))
        accuracy, likelihood = float((p.argmax(axis=1) == targets).mean()), float(scores.mean())
    return Result(
        candidate,
        float(best.mean()),
        float(entropy.mean()),
        float(information.mean()),
        float((best >= SATURATED).mean()),
        accuracy,
        likelihood,
        np.nan_to_num(scores, nan=np.log(UNLIKELY)),
    )


def _alike(results: Sequence[Result], classes: int) -> bool:
    """Whether no preprocessing makes the model say different things of different pictures."""
    most = np.log(min(len(results[0].scores), classes))
    return bool(max((r.information for r in results if not _too_sure(r)), default=0.0) < 0.5 * most)


def _too_sure(result: Result) -> bool:
    """A model fed values far out of its range is sure of anything."""
    return result.saturated > 0.5


def _rank(result: Result, alike: bool) -> tuple[float, ...]:
    if result.likelihood is not None:
        return (result.likelihood,)
    return (0.0 if _too_sure(result) else 1.0, -result.entropy if alike else result.information)


def _verdict(axis: str, names: tuple[str, str], best: Result, rival: Result, alike: bool, labelled: bool) -> Verdict:
    differences = best.scores - rival.scores
    count = len(differences)
    margin = float(differences.mean())
    error = float(differences.std(ddof=1) / np.sqrt(count)) if count > 1 else float("inf")
    clear = count >= FEWEST and margin > SMALLEST and margin > ERRORS * error
    if not labelled:
        # sureness must agree, and a rival that is sure of everything may only be the same answer scaled up
        clear = clear and not alike and best.entropy < rival.entropy and not _too_sure(rival)
    return Verdict(axis, *names, margin, error, clear)
