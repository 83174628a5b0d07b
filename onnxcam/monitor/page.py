"""The report as one HTML page: style, charts and pictures inside, no script, no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.html import chart
from onnxcam.html.page import figure, foot, page, picture
from onnxcam.monitor.accounting import REASONS
from onnxcam.monitor.drift import DRIFT, OK, Assessment, Statistic, Verdict
from onnxcam.monitor.report import ClassSummary, Report
from onnxcam.monitor.table import Record

CLASSES = 12
_MOST_BYTES = 4 << 20  # of a picture put into the page
# a shape and a word for each verdict: colour is the third sign only
_VERDICTS = {OK: ("●", "ok", "No drift"), DRIFT: ("▲", "drift", "Drift")}
_UNKNOWN = ("○", "unknown", "Not enough data")
_NAMES = {
    "confidence": "confidence",
    "margin": "margin to the second class",
    "entropy": "entropy of the prediction",
    "attention.y": "attention, height (0 is the top)",
    "attention.x": "attention, side (0 is the left)",
    "attention.spread": "attention, spread",
    "attention.entropy": "attention, evenness",
    "attention.gini": "attention, concentration",
    "attention.half_area": "attention, area of half its energy",
    "attention.border": "attention on the border",
    "attention.peaks": "attention, number of peaks",
    "attention.region": "attention in the reference region",
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
) -> str:
    """The page.

    Arguments:
        report: what the records say.
        folder: where the pictures are that records name.
        assessment: drift verdicts, where there is a baseline.
        counters: what the monitors counted.
        title: heading; the most frequent model's name by default.
        notes: sentences for the foot of the page.
    """
    heading = title or f"{report.models.most_common(1)[0][0] if report.models else 'Monitor'}: what it was unsure of"
    body = [
        _head(report, heading, assessment),
        _tiles(report, counters or {}),
        _why(report),
        _drift(assessment),
        _classes(report),
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
        moved = [_name(s.name) for s in verdict.statistics if s.drifted]
        more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
        return f"In the newest {verdict.records:,} records these moved: {', '.join(moved[:3])}{more}."
    if verdict.verdict == OK:
        return f"The newest {verdict.records:,} records are like the baseline."
    return f"{verdict.records:,} records since the baseline; a verdict needs 500."


def _tiles(report: Report, counters: Mapping[str, Any]) -> str:
    dropped = sum(counters.get("dropped", {}).values())
    tiles = [
        (f"{report.count:,}", "explanations kept"),
        (f"{report.low_count:,}", "of them below the condition"),
        (f"{100 * report.low_rate:.1f} %", "of predictions low-confidence, estimated"),
    ]
    if counters.get("processes"):
        tiles += [
            (f"{counters.get('seen', 0):,}", "predictions seen"),
            (f"{dropped:,}", "dropped unexplained"),
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
        f"<tr><td>{'met the condition' if reason == 'condition' else 'always-on sample'}</td>"
        f'<td><code>{escape(when)}</code></td><td class="number">{count:,}</td></tr>'
        for (reason, when), count in report.reasons.most_common()
    )
    kept = chart.bars(
        points.begin,
        points.seconds,
        [("condition", "solid", points.low.astype(float)), ("sample", "hatch", points.confident.astype(float))],
        "Records over time",
    )
    rate = chart.bars(points.begin, points.seconds, [("rate", "solid", points.rate * 100)], "Low-confidence rate", " %")
    figures = (
        figure(f"Confidence, {step}", chart.bands(points.begin, points.confidence, points.seconds)),
        figure(f"Low-confidence rate, {step}", rate),
        figure(f"Explanations kept, {step}", kept),
    )
    return (
        "<h2>How many, and why</h2>"
        f'<div class="charts">{"".join(figures)}</div>'
        "<p>Confidence and rate are of the traffic: each record weighs one over the probability with which it was "
        "kept.</p>"
        f'<div class="wide"><table><tr><th>kept because it</th><th>condition</th><th class="number">records</th></tr>'
        f"{rows}</table></div>"
    )


def _drift(assessment: Assessment | None) -> str:
    if assessment is None:
        return "<h2>Drift</h2><p>No baseline was given: <code>--baseline baseline.json</code>.</p>"
    latest = assessment.latest
    parts = [
        "<h2>Drift</h2><p>Each window of records against the baseline. A window in which nothing changed is called "
        f"drift with probability {100 * latest.false_alarms:g} %, whatever is compared.</p>"
    ]
    if len(assessment.windows) > 1:
        rows = "".join(_window(verdict) for verdict in assessment.windows[-30:])
        parts.append(
            '<div class="wide"><table><tr><th>window</th><th class="number">records</th><th>verdict</th>'
            f'<th class="number">largest score</th></tr>{rows}</table></div>'
        )
    if latest.statistics and latest.threshold is not None:
        shown = [s for k, s in enumerate(latest.statistics) if s.drifted or k < 8][:16]
        rows = "".join(_statistic(s, latest.threshold) for s in shown)
        parts.append(
            "<p>The newest window, what moved most first. The upright line is where drift begins.</p>"
            '<div class="wide"><table><tr><th>what</th><th>baseline → window</th><th class="number">score</th><th></th>'
            f"</tr>{rows}</table></div>"
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
    name = statistic.name
    distance = statistic.distance or 0.0
    if name in ("low_confidence", "zero_maps"):
        said = f"{100 * (statistic.baseline or 0):.1f} % → {100 * (statistic.window or 0):.1f} %"
    elif name in ("classes", "map") or name.startswith("map/"):
        said = f"{100 * distance:.0f} % of it lies elsewhere"
    else:
        said = f"{_figures(statistic.baseline)} → {_figures(statistic.window)} ({distance:.2f} σ)"
    score = "too few" if statistic.score is None else f"{statistic.score:.1f}"
    part = min(1.0, max(0.0, (statistic.score or 0.0) / (3 * threshold)))
    kind = "score over" if statistic.drifted else "score"
    mark = "▲ " if statistic.drifted else ""
    return (
        f'<tr><td>{mark}{escape(_name(name))}</td><td>{said}</td><td class="number">{score}</td>'
        f'<td class="bar"><div class="{kind}"><i style="width:{100 * part:.1f}%"></i><em></em></div></td></tr>'
    )


def _classes(report: Report) -> str:
    shown = [seen for seen in report.classes if seen.map is not None][:CLASSES]
    if report.overall is not None and len(shown) > 1:
        shown.insert(0, report.overall)
    if not shown:
        return ""
    compared = any(seen.normal is not None for seen in shown)
    text = (
        "Mean map of the records of each explained class, dark where the energy lies, a ring on its peak. "
        "The change has + where there is more than in the baseline and - where there is less."
        if compared
        else "Mean map of the records of each explained class, dark where the energy lies, a ring on its peak."
    )
    cards = "".join(_class(seen) for seen in shown)
    return f'<h2>Where it looked, class by class</h2><p>{text}</p><div class="cards classes">{cards}</div>'


def _class(seen: ClassSummary) -> str:
    assert seen.map is not None
    cells = [("now", chart.heat(seen.map, f"{seen.label}: mean map"))]
    said = f"{seen.count:,} records, {seen.low:,} low-confidence"
    if seen.normal is not None and seen.moved is not None:
        scale = max(float(np.abs(seen.map - seen.normal).max()), 0.25 * float(seen.normal.max()))
        cells = [
            ("baseline", chart.heat(seen.normal, f"{seen.label}: baseline")),
            *cells,
            ("change", chart.change(seen.map, seen.normal, f"{seen.label}: change", scale)),
        ]
        said += f"; {100 * seen.moved:.0f} % of the attention lies elsewhere"
    maps = "".join(f'<div><span class="label">{name}</span>{drawn}</div>' for name, drawn in cells)
    return (
        f'<div class="card"><div class="maps">{maps}</div><h3>{escape(seen.label)}</h3>'
        f'<div class="label">{said}</div></div>'
    )


def _uncertain(report: Report, folder: Path) -> str:
    if not report.uncertain:
        return ""
    cards = "".join(_card(record, folder) for record in report.uncertain)
    return (
        "<h2>The most uncertain</h2><p>The least sure first, each picture once. Bars are probabilities.</p>"
        f'<div class="cards">{cards}</div>'
    )


def _card(record: Record, folder: Path) -> str:
    prediction = record["prediction"]
    pictures = "".join(_pictures(record, folder))
    guesses = "".join(
        f'<div class="guess"><span>{escape(str(guess["label"]))}</span><span>{_percent(guess["probability"])}</span>'
        f'<div class="meter"><i style="width:{100 * (guess["probability"] or 0):.1f}%"></i></div></div>'
        for guess in prediction["top"][:3]
    )
    drift = record.get("drift") or {}
    unusual = drift.get("rank") is not None and drift["rank"] >= 0.99
    said = "<div>▲ looks where almost none of the baseline did</div>" if unusual else ""
    request = f"<br>request {escape(str(record['request']))}" if record.get("request") else ""
    return (
        f'<div class="card"><div class="pictures">{pictures}</div>'
        f"<h3>{escape(str((prediction.get('target') or {}).get('label')))}</h3>{guesses}"
        f'<div class="label">{said}</div><div class="id">{_when(record["ts"])}{request}<br>{escape(record["id"])}</div>'
        "</div>"
    )


def _pictures(record: Record, folder: Path) -> Iterator[str]:
    """Input and overlay where they were kept, else the heatmap, else the small map of the record."""
    names = {entry["kind"]: str(entry["name"]) for entry in record.get("files") or () if "name" in entry}
    drawn = 0
    for kind in ("input", "overlay") if "overlay" in names else ("heatmap",):
        data = _read(folder, names[kind]) if kind in names else None
        if data is not None:
            drawn += 1
            yield picture(data, kind)
    held = record.get("map")
    if not drawn and held:
        values = np.asarray(held["values"], float).reshape(held["shape"])
        yield f"<div>{chart.heat(values, 'map')}</div>"


def _read(folder: Path, name: str) -> bytes | None:
    """A picture that a record names: only PNG, only from inside the folder, only of a size that a page can bear."""
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or path.stat().st_size > _MOST_BYTES:
            return None
        data = path.read_bytes()
    except (OSError, ValueError):
        return None
    return data if data.startswith(b"\x89PNG\r\n\x1a\n") else None


def _drops(counters: Mapping[str, Any]) -> str:
    if not counters.get("processes"):
        return "<h2>Drops</h2><p>The monitors left no counters here.</p>"
    dropped = {reason: int(count) for reason, count in counters.get("dropped", {}).items() if count}
    seen = int(counters.get("seen", 0))
    rows = [
        ("confident", "above the condition and not in the always-on sample", counters.get("confident", 0)),
        ("explained", "explained and written", counters.get("explained", 0)),
        *(
            (f"dropped: {reason}", REASONS.get(reason, ""), count)
            for reason, count in sorted(dropped.items(), key=lambda entry: -entry[1])
        ),
        ("failed", "could not be explained or written", counters.get("failed", 0)),
        ("waiting", "queued or in hand", counters.get("queued", 0) + counters.get("running", 0)),
    ]
    cells = "".join(
        f'<tr><td>{escape(name)}</td><td class="soft">{escape(text)}</td><td class="number">{count:,}</td>'
        f'<td class="number">{_percent(count / seen if seen else None)}</td></tr>'
        for name, text, count in rows
    )
    return (
        f"<h2>Drops</h2><p>Where each of the {seen:,} predictions seen went, over {counters['processes']} processes "
        "since each began.</p>"
        '<div class="wide"><table><tr><th>rows</th><th></th><th class="number">count</th><th class="number">part</th>'
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


def _percent(part: float | None) -> str:
    return "?" if part is None else f"{100 * part:.1f} %"


def _figures(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"
