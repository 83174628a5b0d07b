"""A comparison as one HTML page: the verdict, pictures side by side, classes, regions, and blame by depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from html import escape

import numpy as np

from onnxcam.diagnose.shift.blame import Blame, percent
from onnxcam.diagnose.shift.junit import Condition
from onnxcam.diagnose.shift.layers import LayerDifference
from onnxcam.diagnose.shift.result import CLASS, LOST, NEW, SAME, Change, Prediction, Shift
from onnxcam.diagnose.shift.text import number, titles
from onnxcam.errors import OnnxcamError
from onnxcam.explain.explanation import Explanation, name_of
from onnxcam.explain.gallery import encode
from onnxcam.html import chart
from onnxcam.html.depths import Depth, depths
from onnxcam.html.page import foot, picture, shell
from onnxcam.image.opencv import import_cv2
from onnxcam.targets.tasks import DETECT, SEGMENT

LIMIT = 60  # pictures on the page, unless it is told otherwise
_CELLS = 10  # of the difference, along the longer side
_FULL = 0.5  # difference of two maps from 0 to 1 that is drawn in full colour
_CLASSES = 200
_LAYERS = 400
_SAME_CLASS = "the same class"
_EXPLAINED = {
    DETECT: "the same box", SEGMENT: "the largest class of the old model, over its cells there",
    "embed": "the same likeness", "regress": "the same value",
}  # fmt: skip
_STATES = {True: ("failed", "✗"), False: ("passed", "✓"), None: ("undecided", "?")}

Progress = Callable[[int, int], None]


def pieces(
    shift: Shift,
    conditions: Sequence[Condition] = (),
    *,
    title: str = "Two models compared",
    names: tuple[str, str] = ("old", "new"),
    limit: int = LIMIT,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Iterator[bytes]:
    """Render the page, piece by piece: no more than one picture of it is in memory.

    Arguments:
        shift: the comparison.
        conditions: that were to hold or not.
        title: its heading.
        names: of the two models, such as their files.
        limit: how many pictures are on it at most: half of them for those whose prediction flipped, as far as there are
            any, and first those whose attention moved most.
        notes: sentences for its foot.
        progress: called with (done, total) pictures.
    """
    head, tail = shell(title, style=("gallery.css", "shift.css"), script="gallery.js")
    yield _bytes(head + _summary(shift, conditions, title, names) + _regions(shift) + _blame(shift) + _classes(shift))
    pictures = chosen_pictures(shift, limit)
    yield _bytes(_tools(shift, pictures))
    yield b'<ul class="cards gallery shift">'
    for place, one in enumerate(pictures):
        yield _bytes(_card(shift, one, place))
        if progress is not None:
            progress(place + 1, len(pictures))
    yield b'</ul><p class="none" hidden>No picture is like that. Clear the search to see all.</p>'
    yield _bytes(foot([*notes, *shift.notes]) + tail)


def chosen_pictures(shift: Shift, limit: int) -> list[Change]:
    """The pictures, or boxes, on the page: those that stayed, then those that flipped, each by how far the attention
    moved.
    """
    stayed, flipped = shift.changes(flipped=False), shift.changes(flipped=True)
    half = max(limit - len(stayed), min(len(flipped), limit // 2))
    return [*stayed[: limit - min(half, len(flipped))], *flipped[:half]]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _summary(shift: Shift, conditions: Sequence[Condition], title: str, names: tuple[str, str]) -> str:
    tiles = [
        (f"{len(shift.pictures):,}", "pictures"),
        *_flips(shift),
        (f"{shift.distance:.1%}" if shift.mapped else "–", f"mean distance of the maps ({shift.statistic})"),
    ]
    if shift.accuracy is not None:
        tiles.append((f"{shift.accuracy[0]:.1%} → {shift.accuracy[1]:.1%}", "accuracy, old → new"))
    if shift.failures:
        tiles.append((f"{len(shift.failures):,}", "pictures could not be read"))
    text = "".join(f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles)
    items = []
    for condition in conditions:
        state, sign = _STATES[condition.failed]
        items.append(
            f'<li class="{state}"><b>{sign} {escape(condition.name)}: {state}</b><br>{escape(condition.sentence)}</li>'
        )
    verdict = getattr(shift, "verdict", None)
    if verdict is not None and not conditions:
        state, sign = _STATES[bool(verdict.moved)]
        items.append(f'<li class="{state}"><b>{sign} {escape(verdict.sentence)}</b></li>')
    listed = f'<ul class="conditions">{"".join(items)}</ul>' if items else ""
    about = f"{names[0]} → {names[1]}; maps of {shift.method} at {shift.layers[0]} and {shift.layers[1]}"
    return f'<h1>{escape(title)}</h1><p class="soft">{escape(about)}</p>{listed}<div class="tiles">{text}</div>'


def _flips(shift: Shift) -> list[tuple[str, str]]:
    """What the page says in large letters of the predictions."""
    flipped = shift.changes(flipped=True)
    if not shift.predicts_classes:
        label = shift.pictures[0].old.label
        gaps = [abs(one.new.probability - one.old.probability) for one in shift.pictures]
        return [(f"{sum(gaps) / len(gaps):.3g}", f"by which {label} changed, mean")]
    if shift.task != DETECT:
        return [(f"{len(flipped):,}", f"{titles(shift)[2]} flipped ({shift.flipped_share:.1%})")]
    counts = Counter(one.change for one in shift.objects)
    parts = ((SAME, "boxes of both"), (LOST, "boxes lost"), (NEW, "boxes new"), (CLASS, "boxes of another class"))
    return [(f"{counts[change]:,}", text) for change, text in parts]


def _regions(shift: Shift) -> str:
    rows = []
    for one in shift.regions:
        bars = "".join(
            f'<span class="bar {kind}" style="width:{100 * min(max(value, 0.0), 1.0):.1f}%"></span>'
            for kind, value in (("old", one.old), ("new", one.new))
        )
        rows.append(
            f"<tr><th>{escape(one.name or 'regions')}</th>"
            f'<td class="number">{one.old:.0%} → {one.new:.0%}</td><td class="bars">{bars}</td>'
            f'<td class="number">{one.pictures:,}</td></tr>'
        )
    if not rows:
        return ""
    head = '<th>region</th><th class="number">old → new</th><th>hatched: old</th><th class="number">pictures</th>'
    return (
        "<h2>Where the attention lies</h2>"
        "<p>Share of the map inside each region, mean over the pictures that have it.</p>"
        f'<div class="wide"><table class="regions"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _classes(shift: Shift) -> str:
    has_truth, has_areas = shift.accuracy is not None, shift.task == SEGMENT
    rows = []
    for one in shift.classes[:_CLASSES]:
        cells = [f"{one.pictures:,}", f"{one.flipped:,}", "–" if one.distance is None else f"{one.distance:.1%}"]
        if has_truth or has_areas:
            pair = one.areas if has_areas else one.accuracy
            cells.append("" if pair is None else f"{pair[0]:.1%} → {pair[1]:.1%}")
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        rows.append(f"<tr><th>{escape(one.label)}</th>{numbers}</tr>")
    if not rows:
        return ""
    left = len(shift.classes) - len(rows)
    more = f"<p>{left:,} more classes moved less.</p>" if left > 0 else ""
    which = "true class" if has_truth else "class that the old model predicts"
    last = ["accuracy, old → new"] * has_truth + ["area, old → new"] * has_areas
    names = ("boxes" if shift.task == DETECT else "pictures", "flipped", "moved", *last)
    head = "".join(f'<th class="number">{name}</th>' for name in names)
    table = f"<table><thead><tr><th>class</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    opened = " open" if len(rows) <= 12 else ""
    some = "1 class" if len(rows) == 1 else f"{len(rows):,} classes"
    return (
        f"<h2>By class</h2><p>By the {which}, the most moved first.</p>"
        f'<details{opened}><summary>{some}</summary><div class="wide">{table}</div></details>{more}'
    )


def _blame(shift: Shift) -> str:
    blame = shift.blame
    if not isinstance(blame, Blame):
        return ""
    text = f"<h2>Blame by depth</h2><p><b>{escape(blame.sentence)}</b></p>"
    text += "".join(f"<p>{escape(note)}</p>" for note in blame.notes)
    layers = blame.layers[:_LAYERS]
    if len(layers) < 2:
        return text
    drawn = [
        Depth(
            layer.name, layer.local_error, layer.error,
            layer.pair_expected if layer.pair_expected is not None else layer.weight_expected, bool(layer.part),
        )
        for layer in layers
    ]  # fmt: skip
    legend = "".join(
        f'<li><svg viewBox="0 0 26 12" class="depths" aria-hidden="true">{mark}</svg>{words}</li>'
        for mark, words in (
            ('<rect class="local" width="26" height="12"/>', "what the layer adds itself"),
            ('<rect class="blamed" width="26" height="12"/>', "▼ more than its precision gives"),
            ('<path class="total" d="M0 6H26"/>', "what has accumulated"),
            ('<path class="expected" d="M0 6H26"/>', "what the best grid of as many levels leaves"),
        )
    )
    left = len(blame.layers) - len(layers)
    more = f"<p>{left:,} more layers follow.</p>" if left > 0 else ""
    return (
        f"{text}<p>Relative distance of the two models' values, on {blame.pictures} pictures. A layer that is given "
        "the old model's values shows what it adds itself.</p>"
        f'<div class="wide">{depths(drawn, "Difference by depth")}</div><ul class="legend">{legend}</ul>'
        f"<details><summary>{len(layers):,} layers in numbers</summary>{_layer_table(layers)}</details>{more}"
    )


def _layer_table(layers: Sequence[LayerDifference]) -> str:
    names = (
        "adds itself",
        "accumulated",
        "pair",
        "pair expected",
        "weights",
        "weights expected",
        "changes the scores by",
    )
    head = "".join(f'<th class="number">{name}</th>' for name in names)
    rows = []
    for layer in layers:
        numbers = (
            layer.local_error, layer.error, layer.pair_error, layer.pair_expected, layer.weight_error,
            layer.weight_expected, layer.score_effect,
        )  # fmt: skip
        cells = "".join(f'<td class="number">{"" if value is None else percent(value)}</td>' for value in numbers)
        blamed = f"{layer.part}: {layer.node}" if layer.part else ""
        rows.append(
            f'<tr class="{"blamed" if layer.part else ""}"><th>{escape(layer.name)}</th>'
            f"<td>{escape(layer.operator)}</td>{cells}<td>{escape(blamed)}</td></tr>"
        )
    return (
        '<div class="wide"><table class="layers"><thead><tr><th>layer</th><th>operator</th>'
        f"{head}<th>to blame</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _tools(shift: Shift, pictures: Sequence[Change]) -> str:
    """The heading of the pictures, and the tools, which the script shows: without it they would do nothing."""
    choices = [("", "all"), ("stayed", "stayed but moved"), ("flipped", "flipped")]
    radios = "".join(
        f'<label><input type="radio" name="state" value="{value}"{"" if value else " checked"}>{text}</label>'
        for value, text in choices
    )
    truth = '<label>True class<select id="truth"><option value="">any</option></select></label>'
    what = "boxes" if shift.task == DETECT else "pictures"
    total = len(shift.objects) if shift.task == DETECT else len(shift.pictures)
    count = f"{len(pictures):,} of {total:,} {what} are shown"
    if len(pictures) < total:
        count += ": those whose attention moved most, of the ones that stayed and of the ones that flipped"
    explained = _EXPLAINED.get(shift.task or "", _SAME_CLASS)
    return (
        f"<h2>{what.capitalize()}</h2><p>{count}. Both maps explain {explained}. The "
        "third shows where the new map is more (+) or less (−) than the old one.</p>"
        '<div class="tools" role="search" hidden>'
        '<label>Search (press /)<input id="search" type="search" placeholder="file or class"></label>'
        f'<fieldset><legend>Prediction</legend><div class="choice">{radios}</div></fieldset>'
        f"{truth if shift.accuracy is not None else ''}"
        '<label>Old prediction<select id="predicted"><option value="">any</option></select></label>'
        '<label>Moved from %<input id="low" type="number" min="0" max="100" step="any"></label>'
        '<label>to %<input id="high" type="number" min="0" max="100" step="any"></label>'
        '<label>Order<select id="order"><option value="">as given</option>'
        '<option value="high">most moved first</option>'
        '<option value="low">least moved first</option></select></label>'
        '<button id="clear" type="button">Clear</button></div>'
        '<p class="count" role="status" hidden></p>'
    )


def _card(shift: Shift, change: Change, place: int) -> str:
    one = change.picture
    truth = "" if one.truth is None else name_of(one.truth, shift.labels)
    state = "flipped" if change.flipped else "stayed"
    labels = ["" if prediction is None else prediction.label for prediction in (change.old, change.new)]
    data = {
        "place": place,
        "state": state,
        "truth": truth,
        "predicted": labels[0],
        "confidence": "" if change.distance is None else f"{change.distance:.6g}",
        "text": " ".join([one.name, truth, *labels]).lower(),
    }
    attributes = " ".join(f'data-{key}="{escape(str(value))}"' for key, value in data.items())
    facts = [("old", _prediction(shift, change.old)), ("new", _prediction(shift, change.new))]
    if change.box is not None:
        facts += [("overlap", "–" if change.box.overlap is None else f"{change.box.overlap:.2f}")]
    elif shift.predicts_classes:
        facts += [("explained", name_of(one.target, shift.labels))]
    facts += [("true", truth)] if truth else []
    facts += [
        (name or "region", f"{_share(old)} → {_share(new)}") for name, (old, new) in list(one.regions.items())[:5]
    ]
    facts += [] if one.p is None else [("p", f"{one.p:.3g}")]
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts)
    try:
        figures, notes = _figures(*shift.explain_change(change), one.name)
    except OnnxcamError as error:
        figures, notes = "", [f"the maps could not be drawn: {error}"]
    warnings = "".join(f'<p class="note">⚠ {escape(sentence)}</p>' for sentence in notes)
    return (
        f'<li class="card {state}" {attributes} aria-label="{escape(one.name)}">'
        f'<div class="pictures">{figures}</div><h3>{escape(one.name)}</h3>'
        f'<span class="state">{_state(change)}</span>'
        f'<span class="moved">{"" if change.distance is None else f"moved by {change.distance:.1%}"}</span>'
        f"<dl>{listed}</dl>{warnings}</li>\n"
    )


def _state(change: Change) -> str:
    if change.box is not None and change.flipped:
        return {LOST: "− lost", NEW: "+ new"}.get(change.box.change, "⇄ another class")
    return "⇄ flipped" if change.flipped else "= stayed"


def _prediction(shift: Shift, prediction: Prediction | None) -> str:
    return "–" if prediction is None else f"{prediction.label} {number(shift, prediction, 1)}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _figures(old: Explanation | None, new: Explanation | None, name: str) -> tuple[str, list[str]]:
    """The overlays of both, and their difference; or the one that there is."""
    if old is None or new is None:
        pairs = [(text, one) for text, one in (("old", old), ("new", new)) if one is not None]
        figures = "".join(
            f"<figure>{picture(encode(one.overlay()), f'{text} map, {name}')}<figcaption>{text}</figcaption></figure>"
            for text, one in pairs
        )
        return figures, [sentence for _, one in pairs for sentence in one.warnings]
    cv2 = import_cv2()
    height, width = old.heatmap.shape
    scale = _CELLS / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [
        cv2.resize(np.nan_to_num(one.heatmap.astype(np.float32)), size, interpolation=cv2.INTER_AREA)
        for one in (old, new)
    ]
    drawn = chart.change(small[1], small[0], f"new map minus old map, {name}", _FULL)
    drawn = drawn.replace("<svg ", f'<svg style="aspect-ratio:{width}/{height}" ', 1)
    parts = [
        picture(encode(old.overlay()), f"old map, {name}"),
        picture(encode(new.overlay()), f"new map, {name}"),
        drawn,
    ]
    figures = "".join(
        f"<figure>{part}<figcaption>{caption}</figcaption></figure>"
        for part, caption in zip(parts, ("old", "new", "difference"), strict=True)
    )
    return figures, list(dict.fromkeys([*old.warnings, *new.warnings]))
