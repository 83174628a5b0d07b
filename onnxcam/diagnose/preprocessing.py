"""Which preprocessing a model prefers: every plausible one is tried on the same pictures.

With labels, a picture's score is the log-likelihood of its label. Without, it is how much the prediction says about the
picture, KL(p_i || mean p) in nats: high where the model is confident and predicts different classes for different
pictures, zero where a saturated model predicts the same for all. That needs pictures of several kinds. A preference
counts as decided only where its mean over pictures exceeds 2.5 standard errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from onnxcam import image
from onnxcam.diagnose.candidates import Candidate, candidates
from onnxcam.diagnose.report import Finding, Report, Status
from onnxcam.errors import InputError, PictureError
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.warnings import SATURATED
from onnxcam.image.panel import percentage

AXES = {"values": "values", "color": "colour", "resize": "resizing"}
FEWEST = 8  # pictures; with fewer nothing is decided
ERRORS = 2.5  # standard errors that a decided preference exceeds
SMALLEST = 0.02  # nats that a decided preference exceeds
UNLIKELY = 1e-6  # probabilities are clipped here, so that one picture does not outweigh all others
_CHUNK = 8


@dataclass(frozen=True, eq=False)
class Result:
    """What a model predicts with one preprocessing; means over pictures, entropy and information in nats.

    Attributes:
        probability: of the best class.
        entropy: of the prediction.
        information: what the prediction says about each picture, KL(p_i || mean p).
        saturated: the share of pictures whose best class has a probability of 1 within 1e-6.
        accuracy, likelihood: with labels, the share predicted correctly, and the mean log-likelihood.
        scores: what the preprocessing is ranked by, per picture.
    """

    candidate: Candidate
    probability: float
    entropy: float
    information: float
    saturated: float
    accuracy: float | None
    likelihood: float | None
    scores: np.ndarray

    @property
    def overconfident(self) -> bool:
        """Whether most predictions are saturated, as they are for values far outside the model's range."""
        return self.saturated > 0.5

    def to_dict(self) -> dict[str, Any]:
        """Return the figures ready for JSON."""
        return {
            "name": self.candidate.name,
            "preset": self.candidate.preset,
            "recorded": self.candidate.recorded,
            "accuracy": self.accuracy,
            "log_likelihood": self.likelihood,
            "probability": self.probability,
            "entropy": self.entropy,
            "information": self.information,
            "saturated": self.saturated,
            "preprocess": self.candidate.preprocess.to_dict(),
        }

    def row(self) -> list[str]:
        """Return the cells of the table."""
        name = self.candidate.name + (" (in use)" if self.candidate.recorded else "")
        name += " (sure of everything)" if self.overconfident else ""
        row = [name, percentage(self.probability), f"{self.entropy:.2f}", f"{self.information:.2f}"]
        if self.accuracy is not None and self.likelihood is not None:
            row += [percentage(self.accuracy), f"{self.likelihood:.2f}"]
        return row


@dataclass(frozen=True)
class Verdict:
    """Whether one choice is preferred to its best rival, by `margin` ± `error` nats per picture.

    `beaten` are all rivals that it clearly beats.
    """

    axis: str
    best: str
    rival: str
    margin: float
    error: float
    decided: bool
    beaten: tuple[str, ...] = ()

    def finding(self) -> Finding:
        """Return the verdict as a finding: `ok` if it is decided."""
        detail = f"{self.best} before {self.rival} by {self.margin:.2f} ± {self.error:.2f} nats a picture"
        figures = {"margin": self.margin, "error": self.error}
        return Finding(AXES[self.axis], "ok" if self.decided else "unsure", detail, figures)


@dataclass(frozen=True)
class Comparison(Report):
    """The preprocessings compared, best first. The last finding judges the one in use.

    Attributes:
        pictures: the number of pictures that were read.
        failures: place and error of those that could not be read.
        labelled: whether the pictures came with labels.
        alike: without labels, whether the pictures are too similar for the predictions to tell anything.
        verdicts: for each choice, whether the best value beats the best of the others.
        recorded: the same for the best preprocessing against the one in use; None where there is none.
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
        """The preferred candidate."""
        return self.results[0].candidate

    @property
    def undecided(self) -> bool:
        """Whether none of the choices shows clearly."""
        return self.alike or not any(verdict.decided for verdict in self.verdicts)

    @property
    def summary(self) -> str:
        """The result in one sentence."""
        return self.findings[-1].detail

    def lines(self) -> list[str]:
        """Return a table, best first, and a line for each finding."""
        ranked = "labels from the folders" if self.labelled else "no labels"
        head = ["preprocessing", "top-1", "entropy", "information"]
        head += ["accuracy", "log-likelihood"] if self.labelled else []
        rows = [head, *(result.row() for result in self.results)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        *choices, judgement = self.findings
        decisions = [("decided" if choice.status == "ok" else "undecided", choice) for choice in choices]
        return [
            f"{self.pictures} pictures ({ranked}), {len(self.results)} preprocessings, best first",
            *("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows),
            "",
            *(f"{decision:>9}  {choice.name}: {choice.detail}" for decision, choice in decisions),
            f"{'undecided' if self.undecided else judgement.status:>9}  {judgement.detail}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the report ready for JSON."""
        return {
            "pictures": self.pictures,
            "labelled": self.labelled,
            "alike": self.alike,
            "passed": self.passed,
            "undecided": self.undecided,
            "preferred": {"name": self.best.name, "preset": self.best.preset, "recorded": self.best.recorded},
            "verdicts": [vars(verdict) for verdict in self.verdicts],
            "recorded": None if self.recorded is None else vars(self.recorded),
            "preprocessings": [result.to_dict() for result in self.results],
        }


def compare(explainer: Explainer, pictures: Sequence[Any], targets: Sequence[int] | None = None) -> Comparison:
    """Try every plausible preprocessing on the same pictures.

    Arguments:
        explainer: the model; its own preprocessing, if it has one, is among the candidates.
        pictures: anything that `onnxcam.image.load` reads. Those that cannot be read are skipped and listed.
        targets: the class of each picture, if known.

    Raises:
        InputError: not one target per picture, or no picture can be read.
        SettingError: the model's score is a quantity.
    """
    explainer.terms.readout.require_probabilities(
        "comparing preprocessings", advice="compare its values on pictures of which you know them"
    )
    if targets is not None and len(targets) != len(pictures):
        raise InputError(f"got {len(targets)} targets for {len(pictures)} pictures; give one for each")
    choices = candidates(explainer)
    failures: list[tuple[int, PictureError]] = []
    predictions: list[list[np.ndarray]] = [[] for _ in choices]
    places: list[int] = []
    for chunk_places, chunk in _read(pictures, failures):
        places += chunk_places
        for parts, batches in zip(predictions, _batches(explainer, choices, chunk), strict=True):
            parts += [explainer.predict(batch) for batch in batches]
    if not places:
        raise InputError(
            f"none of the {len(pictures)} pictures can be read" + (f": {failures[0][1]}" if failures else "")
        )
    truth = None if targets is None else np.asarray([targets[place] for place in places])
    results = [
        _result(candidate, np.concatenate(parts), truth) for candidate, parts in zip(choices, predictions, strict=True)
    ]
    alike = truth is None and _alike(results, explainer.classes)
    results.sort(key=lambda result: _rank(result, alike), reverse=True)
    verdicts = [verdict for axis in AXES if (verdict := _choice(axis, results, alike)) is not None]
    in_use = next((result for result in results if result.candidate.recorded), None)
    recorded = None
    if in_use is not None:
        names = (results[0].candidate.name, in_use.candidate.name)
        recorded = _verdict("recorded", names, results[0], in_use, alike)
    return Comparison(
        len(places),
        failures,
        truth is not None,
        alike,
        results,
        verdicts,
        recorded,
        findings=[*(verdict.finding() for verdict in verdicts), _judgement(results, verdicts, recorded, alike)],
    )


def _choice(axis: str, results: Sequence[Result], alike: bool) -> Verdict | None:
    """Judge one choice: the best preprocessing against the best one for each other value of the choice."""
    best = results[0]
    value = getattr(best.candidate, axis)
    rivals: dict[str, Result] = {}
    for result in results:
        rivals.setdefault(getattr(result.candidate, axis), result)
    del rivals[value]
    each = [_verdict(axis, (value, name), best, rival, alike) for name, rival in rivals.items()]
    if not each:
        return None
    return replace(each[0], beaten=tuple(verdict.rival for verdict in each if verdict.decided))


def _judgement(
    results: Sequence[Result], verdicts: Sequence[Verdict], recorded: Verdict | None, alike: bool
) -> Finding:
    """Judge the preprocessing in use: failed where labels prove another one better."""
    best = results[0].candidate
    title = "preprocessing"
    use = f"--preprocess {best.preset}" if best.preset else f"as a JSON file {json.dumps(best.preprocess.to_dict())}"
    if alike:
        detail = (
            "the pictures are too similar for the predictions to tell: with no preprocessing does the model predict "
            "different classes for them; give pictures of several kinds, or sorted by class with --truth by-folder"
        )
        return Finding(title, "unsure", detail)
    clear = [verdict for verdict in verdicts if verdict.decided]
    unclear = [AXES[verdict.axis] for verdict in verdicts if not verdict.decided]
    more = "give more pictures" + (
        ", or sorted by class with --truth by-folder" if results[0].likelihood is None else ""
    )
    reservation = f"; undecided: {', '.join(unclear)}" if unclear else ""
    if recorded is None and not clear:
        detail = f"no preprocessing is clearly better than the others: {more}, or ask who trained the model"
        return Finding(title, "unsure", detail)
    if recorded is None and unclear:
        choices = ", ".join(f"{AXES[verdict.axis]} {verdict.best}" for verdict in clear)
        return Finding(title, "note", f"the model prefers {choices}{reservation}; of these {best.name} is ahead: {use}")
    if recorded is None:
        return Finding(title, "note", f"the model prefers {best.name}: {use}")
    figures = {"margin": recorded.margin, "error": recorded.error}
    if best.recorded and clear:
        detail = f"the preprocessing in use, {best.name}, is the one preferred{reservation}"
        return Finding(title, "ok", detail, figures)
    if best.recorded:
        detail = f"the preprocessing in use, {best.name}, is ahead, but of no other clearly: {more}"
        return Finding(title, "ok", detail, figures)
    if not recorded.decided:
        return Finding(title, "ok", f"the preprocessing in use, {recorded.rival}, does as well as any", figures)
    status: Status = "unsure" if results[0].likelihood is None else "failed"
    detail = (
        f"{best.name} does better than {recorded.rival}, which is in use, by {recorded.margin:.2f} nats a picture: "
        + use
    )
    return Finding(title, status, detail, figures)


def _read(
    pictures: Sequence[Any], failures: list[tuple[int, PictureError]]
) -> Iterator[tuple[list[int], list[image.Picture]]]:
    """Read pictures a few at a time, with their places."""
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
    explainer: Explainer, candidates: Sequence[Candidate], pictures: Sequence[image.Picture]
) -> Iterable[list[np.ndarray]]:
    """Prepare the batches of these pictures for each candidate; candidates that resize alike share the resizing."""
    entry = explainer.manifest["input"]
    resized: dict[Any, list[image.Picture]] = {}
    for candidate in candidates:
        preprocess = candidate.preprocess
        plain: Literal["L", "RGB"] = "L" if preprocess.color == "L" else "RGB"
        key = (plain, preprocess.resize, preprocess.crop)
        if key not in resized:
            resizing = replace(preprocess, color=plain)
            resized[key] = [image.load(np.ascontiguousarray(resizing.transform(one)[0])) for one in pictures]
        values = replace(preprocess, resize=None, crop=None)
        tensors = [values.apply(one, layout=entry["layout"], dtype=entry["dtype"])[0] for one in resized[key]]
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
    """Whether with no preprocessing the model predicts different classes for different pictures."""
    most = np.log(min(len(results[0].scores), classes))
    return bool(max((r.information for r in results if not r.overconfident), default=0.0) < 0.5 * most)


def _rank(result: Result, alike: bool) -> tuple[float, ...]:
    if result.likelihood is not None:
        return (result.likelihood,)
    return (0.0 if result.overconfident else 1.0, -result.entropy if alike else result.information)


def _verdict(axis: str, names: tuple[str, str], best: Result, rival: Result, alike: bool) -> Verdict:
    differences = best.scores - rival.scores
    count = len(differences)
    margin = float(differences.mean())
    error = float(differences.std(ddof=1) / np.sqrt(count)) if count > 1 else float("inf")
    clear = count >= FEWEST and margin > SMALLEST and margin > ERRORS * error
    if best.likelihood is None:
        # without labels: the entropy must agree, and an overconfident rival may only be the same answer scaled up
        clear = clear and not alike and best.entropy < rival.entropy and not rival.overconfident
    return Verdict(axis, *names, margin, error, clear)
