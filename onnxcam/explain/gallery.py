"""A gallery of explained pictures: one HTML page that shows what was right and what was wrong, and where it looked."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from onnxcam import image
from onnxcam.errors import OnnxcamError, OutputError
from onnxcam.explain.explanation import Explanation, name_of
from onnxcam.explain.saving import Drawing
from onnxcam.html.page import foot, picture, shell
from onnxcam.image.opencv import import_cv2
from onnxcam.image.panel import percentage

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer
    from onnxcam.explain.question import Question

PAGE = "index.html"
MOST = 5000  # pictures on a page: beyond, browsers take seconds to search it
_BEST = 3  # predictions of a picture
_SIDE = 192  # pixels of the longer side of a picture on the page
_QUALITY = 82
_SPOOL = 8 << 20  # bytes of the page in memory
RIGHT, WRONG, UNKNOWN = "right", "wrong", "unknown"
_SUBJECTS = {"detect": "box", "segment": "class in its region", "embed": "similarity", "regress": "value"}
_STATES = {RIGHT: "✓ right", WRONG: "✗ wrong", UNKNOWN: "? true class not given"}


@dataclass(frozen=True)
class Card:
    """What the page shows of a picture.

    Attributes:
        name: of the picture, as the user wrote it.
        predictions: index, label and probability, best first; the probability is None where it is not finite.
        truth: index and label of the true class, None if nobody gave it.
        maps: caption and encoded picture each, the picture itself first.
        warnings: sentences about the map.
        value: whether the predictions are values instead of probabilities.
        task: of a model that is no classifier, such as `detect`.
    """

    name: str
    predictions: Sequence[tuple[int, str, float | None]]
    truth: tuple[int, str] | None
    maps: Sequence[tuple[str, bytes]]
    warnings: Sequence[str] = ()
    value: bool = False
    task: str | None = None

    @property
    def state(self) -> str:
        """`right`, `wrong`, or `unknown` where the true class is."""
        if self.truth is None:
            return UNKNOWN
        return RIGHT if self.predictions[0][0] == self.truth[0] else WRONG


def card(
    explanation: Explanation,
    name: str,
    truth: int | None,
    labels: Sequence[str] | None,
    of_truth: Explanation | None = None,
    style: Drawing | None = None,
) -> Card:
    """Draw what the page shows of a picture.

    Arguments:
        explanation: of the picture.
        name: of the picture, as the user wrote it.
        truth: its true class, None if nobody gave it.
        labels: class names, by index.
        of_truth: the explanation of the true class, where `explanation` is of another.
        style: how maps are drawn.
    """
    style = style or Drawing()
    maps = [("picture", encode(explanation.picture))]
    for one, which in ((explanation, "predicted"), (of_truth, "true")):
        if one is None:
            continue
        kind = which if which == "true" else _kind(one)
        caption = one.title if one.task is not None else f"{kind}: {one.label}"
        maps.append((caption, encode(one.overlay(style.alpha, style.colormap))))
    numbers = [
        (index, label, float(number) if math.isfinite(number) else None)
        # an embedding says nothing of its own: what was explained stands in its place
        for index, label, number in explanation.predictions[:_BEST]
        or [(explanation.target, explanation.label, explanation.probability)]
    ]
    of_class = None if truth is None else (truth, name_of(truth, labels))
    warnings = [*explanation.warnings, *(of_truth.warnings if of_truth is not None else ())]
    return Card(name, numbers, of_class, maps, list(dict.fromkeys(warnings)), explanation.numeric, explanation.task)


def _kind(explanation: Explanation) -> str:
    """Whether the class explained is the one predicted."""
    first = explanation.predictions[0][0] if explanation.predictions else None
    return "predicted" if explanation.target == first else "chosen"


@dataclass(frozen=True, eq=False)
class Judge:
    """Makes the cards of explained pictures; where the true class is another than the explained one, with its map too.

    Attributes:
        explainer: of the pictures.
        question: that was asked about them; the first of its methods draws the true class's map.
        truth: true classes by the picture's name; those of others are unknown.
        style: how maps are drawn.
    """

    explainer: Explainer
    question: Question
    truth: Mapping[str, int]
    style: Drawing

    def card(self, name: str, read: image.Picture, explanation: Explanation) -> Card:
        """Make the card of a picture.

        Arguments:
            name: of the picture, as the user wrote it.
            read: the picture.
            explanation: of it.
        """
        truth, of_truth, failure = self.truth.get(name), None, []
        if truth is not None and truth != explanation.target:
            question = self.question.about(truth, self.question.methods[:1])
            try:
                (of_truth,) = self.explainer.answer(question, [read])
            except OnnxcamError as error:
                failure = [f"there is no map of the true class: {error}"]
        result = card(explanation, name, truth, self.explainer.labels, of_truth, self.style)
        return replace(result, warnings=[*result.warnings, *failure])


class Gallery:
    """The page, card by card: what was added is on disk, so that memory does not grow with the pictures.

    Arguments:
        heading: the page's title.
    """

    def __init__(self, heading: str) -> None:
        self._heading = heading
        self._cards = tempfile.SpooledTemporaryFile(_SPOOL)  # noqa: SIM115 - closed with the gallery
        self._confidences: dict[str, list[float]] = {RIGHT: [], WRONG: [], UNKNOWN: []}
        self._left_out = 0
        self._labels = False
        self._task: str | None = None
        self._value = False

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what is on disk."""
        self._cards.close()

    @property
    def count(self) -> int:
        """How many pictures were added."""
        return sum(map(len, self._confidences.values()))

    def add(self, one: Card, link: str | None = None) -> None:
        """Add a picture; beyond the 5,000th it is counted, not shown.

        Arguments:
            one: its card.
            link: path of its full explanation, relative to the page.
        """
        fits = self.count < MOST
        confidence = one.predictions[0][2]
        self._confidences[one.state].append(float("nan") if confidence is None else confidence)
        self._labels = self._labels or one.truth is not None
        self._task, self._value = one.task, one.value
        if fits:
            self._cards.write(_html(one, self.count - 1, link).encode("utf-8", "backslashreplace"))
        else:
            self._left_out += 1

    def write(self, path: Any, notes: Sequence[str] = ()) -> None:
        """Write the page, atomically.

        Arguments:
            path: of the page.
            notes: sentences for its foot.

        Raises:
            OutputError: it cannot be written.
        """
        image.write_pieces(path, self._pieces(notes))

    def _pieces(self, notes: Sequence[str]) -> Iterator[bytes]:
        head, tail = shell(self._heading, style="gallery.css", script="gallery.js")
        yield f"{head}{self._summary()}{self._tools()}".encode("utf-8", "backslashreplace")
        yield b'<ul class="cards gallery">'
        try:
            self._cards.seek(0)
            while piece := self._cards.read(1 << 20):
                yield piece
        except OSError as error:
            raise OutputError(f"the page's pictures could not be read back ({error.strerror})") from error
        yield b'</ul><p class="none" hidden>No picture is like that. Clear the search to see all.</p>'
        yield f"{foot(notes)}{tail}".encode("utf-8", "backslashreplace")

    def _summary(self) -> str:
        counts = {state: len(numbers) for state, numbers in self._confidences.items()}
        judged = counts[RIGHT] + counts[WRONG]
        tiles = [(str(self.count), "pictures")]
        if judged:
            tiles += [
                (f"{counts[RIGHT]} of {judged}", f"right ({percentage(counts[RIGHT] / judged)})"),
                (_mean(self._confidences[RIGHT]), "mean confidence where right"),
                (_mean(self._confidences[WRONG]), "mean confidence where wrong"),
            ]
        text = "".join(
            f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles
        )
        left = ""
        if self._left_out:
            left = (
                f"<p><b>{self._left_out} more pictures are not on this page</b>, which shows {MOST}: their files lie "
                "beside it, and analysis_summary.json lists them.</p>"
            )
        subject = _SUBJECTS.get(self._task or "", "value" if self._value else "class")
        legend = f"<p>Coloured where the picture speaks for the {subject}; hatched what the model never saw.</p>"
        return f'<h1>{escape(self._heading)}</h1><div class="tiles">{text}</div>{left}{legend}'

    def _tools(self) -> str:
        """The tools, which the script shows: without it they would do nothing."""
        states = truth = predicted = ""
        number, limits, orders = "Confidence", ' min="0" max="100"', ("least confident first", "most confident first")
        unit = " %"
        if self._value:
            number, limits, orders, unit = "Value", "", ("lowest value first", "highest value first"), ""
        else:
            predicted = '<label>Predicted class<select id="predicted"><option value="">any</option></select></label>'
        if self._labels:
            choices = [("", "all"), (RIGHT, "✓ right"), (WRONG, "✗ wrong")]
            if self._confidences[UNKNOWN]:
                choices.append((UNKNOWN, "? not given"))
            radios = "".join(
                f'<label><input type="radio" name="state" value="{value}"{"" if value else " checked"}>{text}</label>'
                for value, text in choices
            )
            states = f'<fieldset><legend>Prediction</legend><div class="choice">{radios}</div></fieldset>'
            truth = '<label>True class<select id="truth"><option value="">any</option></select></label>'
        return (
            f'<div class="tools" role="search" data-scale="{1 if self._value else 100}" hidden>'
            '<label>Search (press /)<input id="search" type="search" placeholder="file or class"></label>'
            f"{states}{truth}{predicted}"
            f'<label>{number} from{unit}<input id="low" type="number"{limits} step="any"></label>'
            f'<label>to{unit}<input id="high" type="number"{limits} step="any"></label>'
            f'<label>Order<select id="order"><option value="">as given</option><option value="low">{orders[0]}</option>'
            f'<option value="high">{orders[1]}</option></select></label>'
            '<button id="clear" type="button">Clear</button></div>'
            '<p class="count" role="status" hidden></p>'
        )


def _html(one: Card, place: int, link: str | None) -> str:
    """A card as HTML."""
    best = one.predictions[0]
    truth = "" if one.truth is None else one.truth[1]
    words = " ".join([one.name, truth, *(label for _, label, _ in one.predictions)]).lower()
    data = {
        "place": place,
        "state": one.state,
        "truth": truth,
        "predicted": best[1],
        "confidence": "" if best[2] is None else f"{best[2]:.6g}",
        "text": words,
    }
    attributes = " ".join(f'data-{key}="{escape(str(value))}"' for key, value in data.items())
    figures = "".join(
        f"<figure>{picture(encoded, f'{caption}, {one.name}')}"
        f'<figcaption title="{escape(caption)}">{escape(caption)}</figcaption></figure>'
        for caption, encoded in one.maps
    )
    guesses = "".join(_guess(label, number, one.value) for _, label, number in one.predictions)
    state = f'<span class="state">{_STATES[one.state]}</span>' if one.truth is not None else ""
    true = f' <span class="label">true: {escape(truth)}</span>' if one.state == WRONG else ""
    notes = "".join(f'<p class="note">⚠ {escape(sentence)}</p>' for sentence in one.warnings)
    more = "" if link is None else f'<a href="{escape(quote(link))}">in full</a>'
    return (
        f'<li class="card {one.state}" {attributes} aria-label="{escape(one.name)}">'
        f'<div class="pictures">{figures}</div>'
        f"<h3>{escape(one.name)}</h3>{state}{true}{guesses}{notes}{more}</li>\n"
    )


def _guess(label: str, number: float | None, value: bool) -> str:
    if number is None or value:
        text = "?" if number is None else f"{number:.5g}"
        return f'<div class="guess"><span>{escape(label)}</span><span>{text}</span></div>'
    width = 100 * min(max(number, 0.0), 1.0)
    return (
        f'<div class="guess"><span title="{escape(label)}">{escape(label)}</span><span>{percentage(number)}</span>'
        f'<span class="meter"><i style="width:{width:.1f}%"></i></span></div>'
    )


def encode(pixels: np.ndarray) -> bytes:
    """Encode a picture for the page, as JPEG; small ones are enlarged without smoothing: their pixels are seen."""
    cv2 = import_cv2()
    height, width = pixels.shape[:2]
    scale = _SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise OutputError("a picture of the page could not be encoded")
    return bytes(data)


def _mean(numbers: Sequence[float]) -> str:
    finite = [number for number in numbers if math.isfinite(number)]
    return percentage(sum(finite) / len(finite)) if finite else "–"
