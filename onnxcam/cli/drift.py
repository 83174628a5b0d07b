"""`onnxcam monitor baseline`, `drift` and `report`: what is normal, whether it still is, and a page about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcam.cli import options
from onnxcam.cli.errors import ExitCode
from onnxcam.cli.monitor import folder_argument, span_options
from onnxcam.errors import InputError, SettingError

if TYPE_CHECKING:
    from onnxcam.monitor.drift import Assessment, Verdict

_MARKS = {"ok": ("ok", "green"), "drift": ("drift", "red"), "not enough data": ("not enough data", "yellow")}
_SHOWN = 5  # statistics told about a window


class Window(click.ParamType):
    """So many records, or so long."""

    name = "window"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | timedelta:
        from onnxcam.monitor.baseline import FEWEST
        from onnxcam.monitor.units import parse_seconds

        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        if value.isdecimal():
            if int(value) < FEWEST:
                self.fail(f"{value} records are too few; expected at least {FEWEST}, or a time such as 1d", param, ctx)
            return int(value)
        try:
            return timedelta(seconds=parse_seconds(value))
        except (SettingError, OverflowError):
            self.fail(f"{value!r} is neither a number of records nor a time such as 6h or 1d", param, ctx)


def window_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--window`."""
    return click.option(
        "--window",
        type=Window(),
        default="1000",
        show_default=True,
        metavar="N|TIME",
        help="Records in a window, at least 500, or its length, as 1d.",
    )(command)


def rate_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--false-alarms`."""
    return click.option(
        "--false-alarms",
        type=click.FloatRange(0.002, 0.5),
        default=0.01,
        show_default=True,
        metavar="RATE",
        help="How often a window in which nothing changed may be called drift.",
    )(command)


@click.command(
    "baseline",
    context_settings=options.CONTEXT,
    epilog="""\
\b
Examples:
  onnxcam monitor baseline /var/log/cam -o baseline.json
  onnxcam monitor baseline /var/log/cam -o baseline.json --since 2026-11-01 --until 2026-11-15
""",
)
@folder_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The file to write."
)
@span_options
@click.option(
    "--rows", type=click.IntRange(500, 20000), default=4000, show_default=True, help="Records kept in FILE, at random."
)
@options.seed_option
@options.json_option
def baseline(
    folder: Path,
    output: Path,
    since: datetime | None,
    until: datetime | None,
    rows: int,
    seed: int,
    as_json: bool,
) -> None:
    """Keep what is normal in one file.

    Draws from the records of a time in which all was well: take whole days or weeks, so that what changes by the hour
    is in it. Records of the most frequent model, condition, method and layer count; at least 500 are needed. The file
    holds numbers and small maps, no pictures.
    """
    from onnxcam.image import write_bytes
    from onnxcam.monitor import baseline as baselines
    from onnxcam.monitor import reading

    scan = reading.Scan()
    document, notes = baselines.build(reading.records(folder, reading.Query(since, until), scan), rows=rows, seed=seed)
    write_bytes(output, json.dumps(document, separators=(",", ":")).encode() + b"\n")
    held = baselines.load(output)
    notes = [*scan.notes(), *notes]
    classes = [held.label(index) for index in held.classes]
    told = {
        "output": str(output),
        "identity": held.identity,
        "records": held.records,
        "rows": len(held.rows),
        "since": held.since,
        "until": held.until,
        "classes": classes,
        "notes": notes,
    }
    if as_json:
        options.print_json(told)
        return
    click.echo(f"{output}: {held.records:,} records from {held.since} to {held.until}, {len(held.rows):,} kept")
    click.echo(f"mean maps of their own: {', '.join(classes) or 'none, all classes are compared as one'}")
    _notes(notes)


@click.command(
    "drift",
    context_settings=options.CONTEXT,
    epilog="""\
\b
Examples:
  onnxcam monitor drift /var/log/cam --baseline baseline.json
  onnxcam monitor drift /var/log/cam --baseline baseline.json --since 1d --fail-on drift
  onnxcam monitor drift /var/log/cam --baseline baseline.json --window 1d --json
""",
)
@folder_argument
@click.option(
    "--baseline",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="What is normal, from `onnxcam monitor baseline`.",
)
@window_option
@rate_option
@span_options
@click.option(
    "--fail-on",
    type=click.Choice(["drift", "no-data"]),
    multiple=True,
    help="Exit with 5 where the newest window says so; repeatable.",
)
@options.seed_option
@options.json_option
@click.pass_context
def drift(
    ctx: click.Context,
    folder: Path,
    path: Path,
    window: int | timedelta,
    false_alarms: float,
    since: datetime | None,
    until: datetime | None,
    fail_on: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Compare the newest records with what is normal.

    Records made after the baseline's last one (or since --since) are parted into windows, the last of which ends at
    the newest record. Each is compared with the baseline: confidence, low-confidence rate, classes, attention, and
    where the mean map of each frequent class lies; records weigh one over their sampling probability. The verdict is
    ok, drift, or not enough data (fewer than 500 records). Thresholds are bootstrapped from the baseline, so that a
    window in which nothing changed is called drift at the rate declared, whatever is compared.

    Exit status: 0 done, 1 no records or no baseline can be read, 2 wrong usage, 5 a --fail-on condition holds.
    """
    assessment, notes = judged(folder, path, window, false_alarms, since, until, seed)
    latest = assessment.latest
    if as_json:
        options.print_json(
            {"verdict": latest.verdict, "windows": [w.to_dict() for w in assessment.windows], "notes": notes}
        )
    else:
        for verdict in assessment.windows:
            _show(verdict, whole=verdict is latest)
        _notes(notes)
    if latest.verdict in [{"drift": "drift", "no-data": "not enough data"}[name] for name in fail_on]:
        ctx.exit(ExitCode.CONDITION)


def judged(
    folder: Path,
    path: Path,
    window: int | timedelta,
    false_alarms: float,
    since: datetime | None,
    until: datetime | None,
    seed: int,
) -> tuple[Assessment, list[str]]:
    """Verdicts on a folder's records, and notes.

    Raises:
        InputError: neither records nor a baseline.
    """
    from onnxcam.monitor import baseline as baselines
    from onnxcam.monitor import counters, reading
    from onnxcam.monitor import drift as drifts

    held = baselines.load(path)
    scan = reading.Scan()
    replicates = max(drifts.REPLICATES, int(10 / false_alarms))
    detector = drifts.Detector(held, false_alarms=false_alarms, replicates=replicates, seed=seed)
    after = None if since is not None else held.until
    query = reading.Query(since, until, matches=lambda record: after is None or record["ts"] > after)
    assessment = drifts.assess(reading.records(folder, query, scan), detector, window)
    return assessment, [*scan.notes(), *assessment.notes, *counters.notes(counters.total(folder))]


def _show(verdict: Verdict, *, whole: bool) -> None:
    text, colour = _MARKS[verdict.verdict]
    span = f"{verdict.since} to {verdict.until}" if verdict.since else "no records"
    score = "" if verdict.score is None else f"; score {verdict.score:.1f}, drift from {verdict.threshold:.1f}"
    click.echo(f"{click.style(text, fg=colour)}: {verdict.records:,} records, {span}{score}")
    shown = [s for s in verdict.statistics if s.drifted or whole][:_SHOWN]
    for statistic in shown:
        click.echo("  " + sentence(statistic))
    more = sum(s.drifted for s in verdict.statistics) - len(shown)
    if more > 0:
        click.echo(f"  and {more} more")


def sentence(statistic: Any) -> str:
    """A statistic on one line."""
    score = "too few rows" if statistic.score is None else f"score {statistic.score:5.1f}"
    distance = "" if statistic.distance is None else f"{statistic.distance:.3f}"
    if statistic.name in ("classes", "map") or statistic.name.startswith("map/"):
        said = f"{distance} of it lies elsewhere"
    elif statistic.name in ("low_confidence", "zero_maps"):
        said = f"{_percent(statistic.baseline)} -> {_percent(statistic.window)}"
    else:
        said = f"{_number(statistic.baseline)} -> {_number(statistic.window)}, {distance} deviations"
    return f"{'!' if statistic.drifted else ' '} {statistic.name:<24} {score:<12}  {said}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:.1f} %"


def _notes(notes: list[str]) -> None:
    for note in notes:
        click.echo(note, err=True)


@click.command(
    "report",
    context_settings=options.CONTEXT,
    epilog="""\
\b
Examples:
  onnxcam monitor report /var/log/cam -o report.html
  onnxcam monitor report /var/log/cam -o report.html --baseline baseline.json --since 7d
""",
)
@folder_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The page to write."
)
@click.option(
    "--baseline",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What is normal, for the drift verdicts and the differences of mean maps.",
)
@window_option
@rate_option
@span_options
@click.option(
    "--top", type=click.IntRange(0, 200), default=12, show_default=True, help="Most uncertain predictions shown."
)
@click.option("--title", metavar="TEXT", help="Heading of the page.  [default: the model's name]")
@options.seed_option
@options.json_option
def report(
    folder: Path,
    output: Path,
    path: Path | None,
    window: int | timedelta,
    false_alarms: float,
    since: datetime | None,
    until: datetime | None,
    top: int,
    title: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Write one HTML page about all of it.

    How many predictions were explained and why, confidence over time, the most uncertain ones with their maps, class
    by class where the model looked against the baseline, drift verdicts, and what was dropped. The page needs no other
    file and no network.
    """
    from onnxcam.image import write_bytes
    from onnxcam.monitor import baseline as baselines
    from onnxcam.monitor import counters, page, reading
    from onnxcam.monitor.report import Report

    scan = reading.Scan()
    held = None if path is None else baselines.load(path)
    found = Report.of(reading.records(folder, reading.Query(since, until), scan), held, top=top)
    if not found.count:
        raise InputError("no records of that time; a report needs one at least")
    notes = scan.notes()
    assessment = None
    if path is not None:
        assessment, more = judged(folder, path, window, false_alarms, since, until, seed)
        notes = list(dict.fromkeys([*notes, *more]))
    text = page.render(found, folder, assessment, counters.total(folder), title=title, notes=notes)
    write_bytes(output, text.encode())
    told = {
        "output": str(output),
        "bytes": len(text.encode()),
        "records": found.count,
        "verdict": None if assessment is None else assessment.latest.verdict,
        "notes": notes,
    }
    if as_json:
        options.print_json(told)
    else:
        click.echo(f"{output}: {found.count:,} records, {told['bytes']:,} bytes")
        _notes(notes)
