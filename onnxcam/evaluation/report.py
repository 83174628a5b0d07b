"""An evaluation for people: lines for the terminal, and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from onnxcam.evaluation.evaluation import Evaluation, Shown
from onnxcam.evaluation.registry import Metric
from onnxcam.html import chart
from onnxcam.html.page import figure, foot, page, picture
from onnxcam.image.opencv import import_cv2

_CURVES = {
    "insertion": ("Insertion: probability as pixels are shown, most important first", "nothing shown", "all shown"),
    "deletion": ("Deletion: probability as pixels are taken away, most important first", "all there", "nothing left"),
}
_QUALITY = 88


def lines(found: Evaluation) -> list[str]:
    """A table: a line per method, the best of each metric marked with *."""
    head = ["method", *(f"{metric.title} {metric.arrow}" for metric in found.metrics)]
    best = {metric.name: found.best(metric.name) for metric in found.metrics}
    rows = [head]
    for method in found.methods:
        cells = [
            number(found.mean(method, metric.name)) + ("*" if method in best[metric.name] else " ")
            for metric in found.metrics
        ]
        rows.append([method, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return [f"{about(found)}; ↑ more is better, ↓ less is better, * the best", *table]


def about(found: Evaluation) -> str:
    """What was judged on what."""
    count = len(found.places)
    classes = "labelled" if found.labelled else "the model's first choices explained"
    right = "" if found.accuracy is None else f", {100 * found.accuracy:.0f} % of them predicted right"
    return f"{count} picture{'s' if count != 1 else ''} ({classes}{right})"


def number(value: float) -> str:
    """Three decimals, or more where there would be nothing to see."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def render(found: Evaluation, *, title: str = "Methods compared", notes: Sequence[str] = ()) -> str:
    """The page.

    Arguments:
        found: the evaluation, with `shown` pictures where they are to be seen.
        title: heading.
        notes: sentences for the foot of the page.
    """
    said = f'<h1>{escape(title)}</h1><p class="soft">{escape(about(found))}'
    said += f"; maps at {escape(', '.join(found.layers))}</p>" if found.layers else "</p>"
    body = [
        said,
        _table(found),
        _lines(found),
        _cascade(found),
        _pictures(found),
        _formulas(found.metrics),
        foot(notes),
    ]
    return page(title, body)


def _table(found: Evaluation) -> str:
    head = "".join(f'<th class="number">{escape(m.title)}<br>{_better(m)}</th>' for m in found.metrics)
    best = {metric.name: found.best(metric.name) for metric in found.metrics}
    rows = []
    for method in found.methods:
        cells = []
        for metric in found.metrics:
            mean, error = found.mean(method, metric.name), found.error(method, metric.name)
            mark, kind = ("★ ", " best") if method in best[metric.name] else ("", "")
            give = f"<br><small>± {number(error)}</small>" if np.isfinite(error) else ""
            named = escape(f"{metric.title} {metric.arrow}")
            cells.append(f'<td class="number{kind}" data-metric="{named}">{mark}{number(mean)}{give}</td>')
        rows.append(f"<tr><th>{escape(method)}</th>{''.join(cells)}</tr>")
    return (
        f'<h2>In numbers</h2><div class="wide"><table class="judged"><thead><tr><th>method</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody>"
        "</table></div><p>Means over the pictures with their standard errors. ★ marks the best of each column, ↑ "
        "where more is better, ↓ where less is.</p>"
    )


def _better(metric: Metric) -> str:
    return f'<span title="{metric.better} is better">{metric.arrow}</span>'


def _lines(found: Evaluation) -> str:
    curves = found.curves
    drawn = []
    for name, (caption, first, last) in _CURVES.items():
        rows = [curves[method][name] for method in found.methods if name in curves.get(method, {})]
        if rows:
            top = max(0.1, min(1.0, float(np.ceil(10 * max(float(row.max()) for row in rows)) / 10)))
            drawn.append(figure(caption, chart.curves(rows, caption, (first, last), top)))
    if not drawn:
        return ""
    return f'<h2>Curves</h2>{_keys(found.methods)}<div class="charts">{"".join(drawn)}</div>'


def _cascade(found: Evaluation) -> str:
    held: Mapping[str, Any] = found.to_dict()["cascade"]["values"]
    name = next((n for values in held.values() for n in values), None)
    if name is None or not found.parts:
        return ""
    rows = [np.array([1.0, *held[method][name]]) for method in found.methods]
    caption = "Likeness to the map of the model with its weights redrawn, layer by layer from the scores down"
    last = f"{100 * found.parts[-1]:.0f} % of the layers"
    parts = ", ".join(f"{100 * part:.0f} %" for part in found.parts)
    return (
        f"<h2>Redrawn weights</h2><p>After {escape(parts)} of the layers. A map that stays as it was says nothing of "
        f"what the model has learned.</p>{_keys(found.methods)}"
        f'<div class="charts one">{figure(caption, chart.curves(rows, caption, ("as trained", last)))}</div>'
    )


def _keys(methods: Sequence[str]) -> str:
    items = "".join(f"<li>{chart.key(place)}{escape(method)}</li>" for place, method in enumerate(methods))
    return f'<ul class="keys">{items}</ul>'


def _pictures(found: Evaluation) -> str:
    if not found.shown:
        return ""
    rows = "".join(_row(found, shown) for shown in found.shown)
    return f'<h2>Side by side</h2><p>Bright where the map is high.</p><div class="shown">{rows}</div>'


def _row(found: Evaluation, shown: Shown) -> str:
    at = found.places.index(shown.place)
    index = found.classes[at]
    label = str(index) if found.labels is None else found.labels[index]
    wrong = "" if not found.labelled or found.right[at] else ", not the model's first choice"
    cells = [_cell(shown.picture, "picture"), *(_cell(drawn, method) for method, drawn in shown.maps.items())]
    return (
        f'<h3>{escape(label)}</h3><p class="soft">'
        f"{escape(found.names[at])}, probability {found.probabilities[at]:.3f}{wrong}</p>"
        f'<div class="row">{"".join(cells)}</div>'
    )


def _cell(pixels: np.ndarray, caption: str) -> str:
    cv2 = import_cv2()
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return f"<figure>{picture(data.tobytes(), caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def _formulas(metrics: Sequence[Metric]) -> str:
    items = "".join(f"<dt>{escape(m.title)} {m.arrow}</dt><dd>{escape(m.formula)}</dd>" for m in metrics)
    return f'<h2>What the numbers mean</h2><dl class="formulas">{items}</dl>'
