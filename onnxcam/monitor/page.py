"""Renders the report as one HTML page with inline style, charts and pictures, without scripts or network access."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.html import chart
from onnxcam.html.page import figure, foot, page, picture
from onnxcam.monitor.accounting import REASONS
from onnxcam.monitor.drift import DRIFT, OK, Assessment, Statistic, Verdict, format_number, format_percent
from onnxcam.monitor.report import ClassSummary, Report
from onnxcam.monitor.schema import Record
from onnxcam.monitor.thumbnails import read, thumbnail

CLASSES = 12
FEWEST = 30  # records of a class with a card of its own
_LISTED = 500  # classes in the table
# pixels of the longer side, twice the size at which a wide page shows them, for dense screens
_SIDE, _SIDE_OF_TWO = 488, 240
# shape, style and word of each verdict: colour is never the only sign
_VERDICTS = {OK: ("●", "ok", "No drift"), DRIFT: ("▲", "drift", "Drift")}
_UNKNOWN = ("○", "unknown", "Not enough data")
_NAMES = {
    "confidence": "confidence",
    "margin": "margin to the second class",
    "entropy": "entropy of the prediction",
    "boxes": "number of boxes",
    "attention.y": "centroid of the map, vertical (0 is the top)",
    "attention.x": "centroid of the map, horizontal (0 is the left)",
    "attention.spread": "spread of the map",
    "attention.entropy": "entropy of the map",
    "attention.gini": "concentration of the map (Gini)",
    "attention.half_area": "area with half of the map's energy",
    "attention.border": "energy of the map at the border",
    "attention.peaks": "number of peaks of the map",
    "attention.region": "energy of the map in the reference region",
    "low_confidence": "low-confidence rate",
    "zero_maps": "maps that are zero everywhere",
    "classes": "predicted classes",
    "map": "mean map, all classes",
}


def render(
    report: Report,
    folder: str | Path,
    assessment: Assessment | None = None,
    counters: Mapping[str, Any] | None = None,
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
    feedback: Sequence[str] = (),
) -> str:
    """Render the page.

    Arguments:
        report: the data of the records.
        folder: the monitor's folder, with the pictures that records name.
        assessment: drift verdicts, if there is a baseline.
        counters: the monitors' counters.
        title: heading; the most frequent model's name by default.
        notes: sentences for the foot of the page.
        feedback: lines about predictions whose true class became known.
    """
    heading = title or f"{report.models.most_common(1)[0][0] if report.models else 'Monitor'}: uncertain predictions"
    body = [
        _head(report, heading, assessment),
        _tiles(report, counters or {}),
        _why(report),
        _drift(assessment),
        _feedback(feedback),
        _classes(report, assessment),
        _uncertain(report, Path(folder)),
        _drops(counters or {}),
        foot(notes),
    ]
    return page(heading, body)


def _head(report: Report, heading: str, assessment: Assessment | None) -> str:
    configuration = report.configurations.most_common(1)[0][0] if report.configurations else None
    about = f"{_when(report.first)} to {_when(report.last)} UTC"
    if configuration is not None:
        model = f", model {configuration.model[:12]}" if configuration.model else ""
        about += f"; {escape(str(configuration.method))} at {escape(str(configuration.layer))}{escape(model)}"
    text = f'<h1>{escape(heading)}</h1><p class="soft">{about}</p>'
    if assessment is None:
        return text
    verdict = assessment.latest
    shape, kind, word = _VERDICTS.get(verdict.verdict, _UNKNOWN)
    return (
        f'{text}<div class="verdict {kind}"><span class="shape" aria-hidden="true">{shape}</span>'
        f"<div><strong>{word}</strong><br>{escape(_summary(verdict))}</div></div>"
    )


def _summary(verdict: Verdict) -> str:
    if verdict.verdict == DRIFT:
        moved = [_name(statistic.name) for statistic in verdict.drifted]
        more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
        return f"In the newest {verdict.records:,} records these changed: {', '.join(moved[:3])}{more}."
    if verdict.verdict == OK:
        return f"The newest {verdict.records:,} records show no change against the baseline."
    return f"{verdict.records:,} records since the baseline; a verdict needs 500."


def _tiles(report: Report, counters: Mapping[str, Any]) -> str:
    dropped = sum(counters.get("dropped", {}).values())
    tiles = [
        (f"{report.count:,}", "explanations recorded"),
        (f"{report.low_count:,}", "of them met the condition"),
        (f"{100 * report.low_rate:.1f} %", "of predictions low-confidence, estimated"),
    ]
    if counters.get("processes"):
        tiles += [
            (f"{counters.get('seen', 0):,}", "predictions seen"),
            (f"{dropped:,}", "dropped without explanation"),
            (f"{counters.get('failed', 0):,}", "failed"),
        ]
    if report.zero_maps:
        tiles.append((f"{report.zero_maps:,}", "maps zero everywhere"))
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{text}</span></div>' for value, text in tiles)
    return f'<div class="tiles">{cells}</div>'


def _why(report: Report) -> str:
    points = report.points()
    step = _step(points.seconds)
    rows = "".join(
        f"<tr><td>{'met the condition' if reason == 'condition' else 'baseline sample'}</td>"
        f'<td><code>{escape(when)}</code></td><td class="number">{count:,}</td></tr>'
        for (reason, when), count in report.reasons.most_common()
    )
    counts = chart.bars(
        points.begin,
        points.seconds,
        [("condition", "solid", points.low.astype(float)), ("sample", "hatch", points.confident.astype(float))],
        "Records over time",
    )
    rate = chart.bars(points.begin, points.seconds, [("rate", "solid", points.rate * 100)], "Low-confidence rate", " %")
    figures = (
        figure(f"Confidence, {step}", chart.bands(points.begin, points.confidence, points.seconds)),
        figure(f"Low-confidence rate, {step}", rate),
        figure(f"Explanations recorded, {step}", counts),
    )
    return (
        "<h2>How many, and why</h2>"
        f'<div class="charts">{"".join(figures)}</div>'
        "<p>Confidence and rate are estimates for all predictions: each record is weighted by the inverse of its "
        "sampling probability.</p>"
        '<div class="wide"><table><tr><th>reason</th><th>condition</th><th class="number">records</th>'
        f"</tr>{rows}</table></div>"
    )


def _drift(assessment: Assessment | None) -> str:
    if assessment is None:
        return "<h2>Drift</h2><p>No baseline was given: <code>--baseline baseline.json</code>.</p>"
    latest = assessment.latest
    parts = [
        "<h2>Drift</h2><p>Each window of records is compared with the baseline. A window without any change is "
        f"reported as drift with probability {100 * latest.false_alarms:g} %, over all statistics together.</p>"
    ]
    if len(assessment.windows) > 1:
        rows = "".join(_window(verdict) for verdict in assessment.windows[-30:])
        parts.append(
            '<div class="wide"><table><tr><th>window</th><th class="number">records</th><th>verdict</th>'
            f'<th class="number">largest score</th></tr>{rows}</table></div>'
        )
    if latest.statistics and latest.threshold is not None:
        top = [s for k, s in enumerate(latest.statistics) if s.drifted or k < 8][:16]
        rows = "".join(_statistic(s, latest.threshold) for s in top)
        parts.append(
            "<p>The newest window, the largest score first. The vertical line is the threshold of drift.</p>"
            '<div class="wide"><table><tr><th>statistic</th><th>baseline → window</th><th class="number">score</th>'
            f"<th></th></tr>{rows}</table></div>"
        )
    return "".join(parts)


def _window(verdict: Verdict) -> str:
    shape, _, word = _VERDICTS.get(verdict.verdict, _UNKNOWN)
    span = f"{_when(verdict.since)} to {_when(verdict.until)}"
    score = "" if verdict.score is None else f"{verdict.score:.1f}"
    return (
        f'<tr><td>{span}</td><td class="number">{verdict.records:,}</td><td>{shape} {word.lower()}</td>'
        f'<td class="number">{score}</td></tr>'
    )


def _statistic(statistic: Statistic, threshold: float) -> str:
    distance = statistic.distance or 0.0
    if statistic.kind == "rate":
        change = f"{format_percent(statistic.baseline)} → {format_percent(statistic.window)}"
    elif statistic.kind == "share":
        change = f"{100 * distance:.0f} % lies elsewhere"
    else:
        change = f"{format_number(statistic.baseline)} → {format_number(statistic.window)} ({distance:.2f} σ)"
    score = "too few rows" if statistic.score is None else f"{statistic.score:.1f}"
    part = min(1.0, max(0.0, (statistic.score or 0.0) / (3 * threshold)))
    kind = "score over" if statistic.drifted else "score"
    mark = "▲ " if statistic.drifted else ""
    return (
        f'<tr><td>{mark}{escape(_name(statistic.name))}</td><td>{change}</td><td class="number">{score}</td>'
        f'<td class="bar"><div class="{kind}"><i style="width:{100 * part:.1f}%"></i><em></em></div></td></tr>'
    )


def _feedback(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    text = "".join(f"<p>{escape(' '.join(line.split()).removeprefix('feedback ').capitalize())}</p>" for line in lines)
    return f"<h2>True classes that became known</h2>{text}"


def _classes(report: Report, assessment: Assessment | None) -> str:
    enough = [summary for summary in report.classes if summary.map is not None and summary.count >= FEWEST]
    cards, few = enough[:CLASSES], [summary for summary in report.classes if summary not in enough[:CLASSES]]
    if report.overall is not None and len(report.classes) > 1:
        cards.insert(0, report.overall)
    heading = "<h2>Where it looked, class by class</h2>"
    if not report.classes:
        # all records are of the baseline's own time, or of another model, condition, method or layer
        return f"{heading}<p>No record to compare with the baseline.</p>" if assessment is not None else ""
    text = "Mean map of the records of each explained class, dark where the energy lies, a ring on its peak."
    if any(summary.normal is not None for summary in cards):
        text += (
            " Now is without the records of the baseline's own time. The change has + where there is more than in the "
            "baseline and - where there is less."
        )
    drawn = f'<p>{text}</p><div class="cards classes">{"".join(map(_class, cards))}</div>' if cards else ""
    return heading + drawn + _few(few)


def _few(summaries: Sequence[ClassSummary]) -> str:
    """Fold the classes without a card into one table."""
    if not summaries:
        return ""
    rows = "".join(
        f'<tr><td>{escape(summary.label)}</td><td class="number">{summary.count:,}</td>'
        f'<td class="number">{summary.low:,}</td><td class="number">{format_percent(summary.moved)}</td></tr>'
        for summary in summaries[:_LISTED]
    )
    more = len(summaries) - _LISTED
    rows += f'<tr><td colspan="4">and {more:,} more</td></tr>' if more > 0 else ""
    most = max(summary.count for summary in summaries)
    rarer = f"fewer than {FEWEST} records each" if most < FEWEST else f"at most {most:,} records each"
    name = "class" if len(summaries) == 1 else "classes"
    return (
        f"<details><summary>{len(summaries):,} {name} of {rarer}</summary>"
        '<div class="wide"><table><tr><th>class</th><th class="number">records</th><th class="number">low-confidence'
        f'</th><th class="number">energy elsewhere</th></tr>{rows}</table></div></details>'
    )


def _class(summary: ClassSummary) -> str:
    assert summary.map is not None
    cells = [("now", chart.heat(summary.map, f"{summary.label}: mean map"))]
    caption = f"{summary.count:,} records, {summary.low:,} low-confidence"
    if summary.normal is not None and summary.moved is not None:
        scale = max(float(np.abs(summary.map - summary.normal).max()), 0.25 * float(summary.normal.max()))
        cells = [
            ("baseline", chart.heat(summary.normal, f"{summary.label}: baseline")),
            *cells,
            ("change", chart.change(summary.map, summary.normal, f"{summary.label}: change", scale)),
        ]
        caption += f"; {100 * summary.moved:.0f} % of the energy lies elsewhere"
    maps = "".join(f'<div><span class="label">{name}</span>{drawn}</div>' for name, drawn in cells)
    return (
        f'<div class="card"><div class="maps">{maps}</div><h3>{escape(summary.label)}</h3>'
        f'<div class="label">{caption}</div></div>'
    )


def _uncertain(report: Report, folder: Path) -> str:
    if not report.uncertain:
        return ""
    cards = "".join(_card(record, folder) for record in report.uncertain)
    return (
        "<h2>The most uncertain</h2><p>Lowest confidence first, each picture once. Bars are probabilities. "
        "Hatched what the model never saw.</p>"
        f'<div class="cards">{cards}</div>'
    )


def _card(record: Record, folder: Path) -> str:
    prediction = record["prediction"]
    pictures = "".join(_pictures(record, folder))
    guesses = "".join(
        f'<div class="guess"><span>{escape(str(guess["label"]))}</span>'
        f"<span>{format_percent(guess['probability'])}</span>"
        f'<div class="meter"><i style="width:{100 * (guess["probability"] or 0):.1f}%"></i></div></div>'
        for guess in prediction["top"][:3]
    )
    drift = record.get("drift") or {}
    unusual = drift.get("rank") is not None and drift["rank"] >= 0.99
    warning = "<div>▲ map unlike almost all maps of the baseline</div>" if unusual else ""
    request = f"<br>request {escape(str(record['request']))}" if record.get("request") else ""
    return (
        f'<div class="card"><div class="pictures">{pictures}</div>'
        f"<h3>{escape(str((prediction.get('target') or {}).get('label')))}</h3>{guesses}"
        f'<div class="label">{warning}</div>'
        f'<div class="id">{_when(record["ts"])}{request}<br>{escape(record["id"])}</div>'
        "</div>"
    )


def _pictures(record: Record, folder: Path) -> Iterator[str]:
    """Yield input and overlay if they were stored, else the heatmap, else the small map of the record."""
    names = {entry["kind"]: str(entry["name"]) for entry in record.get("files") or () if "name" in entry}
    drawn = 0
    kinds = ("input", "overlay") if "overlay" in names else ("heatmap",)
    for kind in kinds:
        data = read(folder, names[kind]) if kind in names else None
        small = None if data is None else thumbnail(data, _SIDE_OF_TWO if kinds[1:] else _SIDE)
        if small is not None:
            drawn += 1
            yield picture(small, kind)
    cells = record.get("map")
    if not drawn and cells:
        values = np.asarray(cells["values"], float).reshape(cells["shape"])
        covered = cells.get("covered")
        title = "map" if covered is None else "map; framed: what the layer sees"
        yield f"<div>{chart.heat(values, title, covered)}</div>"


def _drops(counters: Mapping[str, Any]) -> str:
    if not counters.get("processes"):
        return "<h2>Drops</h2><p>There are no counters in the folder.</p>"
    dropped = {reason: int(count) for reason, count in counters.get("dropped", {}).items() if count}
    total = int(counters.get("seen", 0))
    rows = [
        ("confident", "did not meet the condition and not in the baseline sample", counters.get("confident", 0)),
        ("explained", "explained and written", counters.get("explained", 0)),
        *(
            (f"dropped: {reason}", REASONS.get(reason, ""), count)
            for reason, count in sorted(dropped.items(), key=lambda entry: -entry[1])
        ),
        ("failed", "could not be explained or written", counters.get("failed", 0)),
        ("waiting", "queued or being explained", counters.get("queued", 0) + counters.get("running", 0)),
    ]
    cells = "".join(
        f'<tr><td>{escape(name)}</td><td class="soft">{escape(text)}</td><td class="number">{count:,}</td>'
        f'<td class="number">{format_percent(count / total if total else None)}</td></tr>'
        for name, text, count in rows
    )
    return (
        f"<h2>Drops</h2><p>Outcome of each of the {total:,} predictions seen, over {counters['processes']} processes "
        "since their start.</p>"
        '<div class="wide"><table><tr><th>rows</th><th></th><th class="number">count</th><th class="number">share</th>'
        f"</tr>{cells}</table></div>"
    )


def _name(name: str) -> str:
    return f"mean map, {name[4:]}" if name.startswith("map/") else _NAMES.get(name, name)


def _step(seconds: int) -> str:
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds % size == 0:
            number = seconds // size
            return f"by {name}" if number == 1 else f"by {number} {name}s"
    return f"by {seconds} seconds"


def _when(ts: str | None) -> str:
    return escape((ts or "")[:16].replace("T", " "))
