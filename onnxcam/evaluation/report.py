"""An evaluation for people: lines for the terminal, and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from onnxcam.evaluation.evaluation import Evaluation, Example
from onnxcam.evaluation.registry import Metric
from onnxcam.evaluation.sampling import CONFIDENCE
from onnxcam.html import chart
from onnxcam.html.page import figure, foot, page, picture
from onnxcam.image.opencv import import_cv2

_CURVES = {
    "insertion": ("Insertion: probability as pixels are shown, most important first", "nothing shown", "all shown"),
    "deletion": ("Deletion: probability as pixels are taken away, most important first", "all there", "nothing left"),
}
_QUALITY = 88


def lines(evaluation: Evaluation) -> list[str]:
    """A table: a line per method, the best of each metric marked with *."""
    head = ["method", *(f"{metric.title} {metric.arrow}" for metric in evaluation.metrics)]
    best = {metric.name: evaluation.best(metric.name) for metric in evaluation.metrics}
    rows = [head]
    for method in evaluation.methods:
        cells = [
            number(evaluation.mean(method, metric.name))
            + within(evaluation.bound(method, metric.name))
            + ("*" if method in best[metric.name] else " ")
            for metric in evaluation.metrics
        ]
        rows.append([method, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    runs = f"{sum(evaluation.passes[name] for name in ('pictures', 'changed', 'explained')):,} forward passes"
    estimated = [line for line in (estimate(evaluation),) if line]
    head_line = f"{about(evaluation)}; ↑ more is better, ↓ less is better, * the best mean; {runs}"
    return [head_line, *table, *estimated]


def within(bound: float) -> str:
    """A bound on the error, rounded up; nothing where there is none."""
    if not bound:
        return ""
    text = f"±{np.ceil(bound * 1e3) / 1e3:.3f}" if bound < 1 else "±1"
    return text.replace("±0.", "±.")


def estimate(evaluation: Evaluation) -> str:
    """A sentence on the metrics whose curves have points that were left out; empty where none was."""
    entries = evaluation.estimated
    parts = [
        "{} from {computed} of {points} points of each curve".format(metric.title, **entries[metric.name])
        for metric in evaluation.metrics
        if metric.name in entries
    ]
    if not parts:
        return ""
    return (
        f"{', '.join(parts)}: with {CONFIDENCE:.0%} certainty each mean is within its ± of that of all points "
        "(--tolerance 0 computes them)"
    )


def about(evaluation: Evaluation) -> str:
    """Say how many pictures were judged, and which classes explained."""
    count = len(evaluation.places)
    if evaluation.objects is not None:
        return _about_objects(count, evaluation.objects)
    classes = "labelled" if evaluation.labelled else "the model's top-1 explained"
    right = "" if evaluation.accuracy is None else f", {100 * evaluation.accuracy:.0f} % of them predicted correctly"
    return f"{count} picture{'s' if count != 1 else ''} ({classes}{right})"


def _about_objects(count: int, objects: Mapping[str, int]) -> str:
    pictures = objects["pictures"]
    where = f"{count} object{'s' * (count != 1)} of {pictures} picture{'s' * (pictures != 1)}"
    if not objects["drawn"]:
        return f"{where} (as the model reports them)"
    return f"{where} ({objects['drawn']} labelled, {objects['detected']} of them detected)"


def number(value: float) -> str:
    """Three decimals, or more where there would be nothing to see."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def render(evaluation: Evaluation, *, title: str = "Methods compared", notes: Sequence[str] = ()) -> str:
    """Render the page.

    Arguments:
        evaluation: with `examples` if pictures are to be shown.
        title: heading.
        notes: sentences for the foot of the page.
    """
    heading = f'<h1>{escape(title)}</h1><p class="soft">{escape(about(evaluation))}'
    heading += f"; maps at {escape(', '.join(evaluation.layers))}</p>" if evaluation.layers else "</p>"
    body = [
        heading,
        _table(evaluation),
        _lines(evaluation),
        _cascade(evaluation),
        _pictures(evaluation),
        _formulas(evaluation.metrics),
        foot(notes),
    ]
    return page(title, body)


def _table(evaluation: Evaluation) -> str:
    head = "".join(f'<th class="number">{escape(m.title)}<br>{_better(m)}</th>' for m in evaluation.metrics)
    best = {metric.name: evaluation.best(metric.name) for metric in evaluation.metrics}
    rows = []
    for method in evaluation.methods:
        cells = []
        for metric in evaluation.metrics:
            mean, error = evaluation.mean(method, metric.name), evaluation.error(method, metric.name)
            mark, kind = ("★ ", " best") if method in best[metric.name] else ("", "")
            give = f"<br><small>± {number(error)}</small>" if np.isfinite(error) else ""
            bound = evaluation.bound(method, metric.name)
            give += f"<br><small>all points: {within(bound)}</small>" if bound else ""
            named = escape(f"{metric.title} {metric.arrow}")
            cells.append(f'<td class="number{kind}" data-metric="{named}">{mark}{number(mean)}{give}</td>')
        rows.append(f"<tr><th>{escape(method)}</th>{''.join(cells)}</tr>")
    return (
        f'<h2>In numbers</h2><div class="wide"><table class="judged"><thead><tr><th>method</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody>"
        "</table></div><p>Means over the pictures with their standard errors. ★ marks the best mean of each column, ↑ "
        f"where more is better, ↓ where less is. {escape(_sentence(estimate(evaluation)))}</p>"
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _better(metric: Metric) -> str:
    return f'<span title="{metric.better} is better">{metric.arrow}</span>'


def _lines(evaluation: Evaluation) -> str:
    curves = evaluation.curves
    drawn = []
    for name, (caption, first, last) in _CURVES.items():
        rows = [curves[method][name] for method in evaluation.methods if name in curves.get(method, {})]
        if rows:
            top = max(0.1, min(1.0, float(np.ceil(10 * max(float(row.max()) for row in rows)) / 10)))
            drawn.append(figure(caption, chart.curves(rows, caption, (first, last), top)))
    if not drawn:
        return ""
    return f'<h2>Curves</h2>{_keys(evaluation.methods)}<div class="charts">{"".join(drawn)}</div>'


def _cascade(evaluation: Evaluation) -> str:
    stages: Mapping[str, Any] = evaluation.to_dict()["cascade"]["values"]
    name = next((n for values in stages.values() for n in values), None)
    if name is None or not evaluation.parts:
        return ""
    rows = [np.array([1.0, *stages[method][name]]) for method in evaluation.methods]
    caption = "Likeness to the map of the model with its weights redrawn, layer by layer from the scores down"
    last = f"{100 * evaluation.parts[-1]:.0f} % of the layers"
    parts = ", ".join(f"{100 * part:.0f} %" for part in evaluation.parts)
    return (
        f"<h2>Redrawn weights</h2><p>After {escape(parts)} of the layers. A map that stays as it was says nothing of "
        f"what the model has learned.</p>{_keys(evaluation.methods)}"
        f'<div class="charts one">{figure(caption, chart.curves(rows, caption, ("as trained", last)))}</div>'
    )


def _keys(methods: Sequence[str]) -> str:
    items = "".join(f"<li>{chart.key(place)}{escape(method)}</li>" for place, method in enumerate(methods))
    return f'<ul class="keys">{items}</ul>'


def _pictures(evaluation: Evaluation) -> str:
    if not evaluation.examples:
        return ""
    rows = "".join(_row(evaluation, example) for example in evaluation.examples)
    legend = "Bright where the map is high; hatched what the model never saw."
    return f'<h2>Side by side</h2><p>{legend}</p><div class="shown">{rows}</div>'


def _row(evaluation: Evaluation, example: Example) -> str:
    at = evaluation.places.index(example.place)
    index = evaluation.classes[at]
    names = evaluation.labels
    label = str(index) if names is None or index >= len(names) else names[index]
    missed = ", not the model's top-1" if evaluation.objects is None else ", not detected"
    wrong = "" if not evaluation.labelled or evaluation.right[at] else missed
    cells = [_cell(example.picture, "picture"), *(_cell(drawn, method) for method, drawn in example.maps.items())]
    return (
        f'<h3>{escape(label)}</h3><p class="soft">'
        f"{escape(evaluation.names[at])}, probability {evaluation.probabilities[at]:.3f}{wrong}</p>"
        f'<div class="row">{"".join(cells)}</div>'
    )


def _cell(pixels: np.ndarray, caption: str) -> str:
    cv2 = import_cv2()
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return f"<figure>{picture(data.tobytes(), caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def _formulas(metrics: Sequence[Metric]) -> str:
    items = "".join(f"<dt>{escape(m.title)} {m.arrow}</dt><dd>{escape(m.formula)}</dd>" for m in metrics)
    return f'<h2>What the numbers mean</h2><dl class="formulas">{items}</dl>'
