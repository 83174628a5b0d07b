"""`onnxcam monitor drift` and `report`: compare records with a baseline, write a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcam.cli import options, terminal
from onnxcam.cli.errors import ExitCode
from onnxcam.cli.monitor import folder_argument, print_notes, span_options
from onnxcam.errors import InputError, SettingError

if TYPE_CHECKING:
    from onnxcam.monitor.drift import Assessment, Statistic, Verdict

_MARKS = {"ok": ("ok", "green"), "drift": ("drift", "red"), "not enough data": ("not enough data", "yellow")}
_LISTED = 5  # statistics printed of a window


class Window(click.ParamType):
    """A number of records, or a duration."""

    name = "window"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | timedelta:
        from onnxcam.monitor.baseline import FEWEST
        from onnxcam.monitor.units import parse_seconds

        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        if value.isdecimal() and len(value) < 16:
            if int(value) < FEWEST:
                self.fail(
                    f"{value} records are too few; expected at least {FEWEST}, or a duration such as 1d", param, ctx
                )
            return int(value)
        try:
            return timedelta(seconds=parse_seconds(value))
        except (SettingError, OverflowError):
            self.fail(f"{value!r} is neither a number of records nor a duration such as 6h or 1d", param, ctx)


def window_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--window`."""
    return click.option(
        "--window",
        type=Window(),
        default="1000",
        show_default=True,
        metavar="N|TIME",
        help="Records per window, at least 500, or its duration, as 1d.",
    )(command)


def rate_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--false-alarms`."""
    return click.option(
        "--false-alarms",
        type=click.FloatRange(0.002, 0.5),
        default=0.01,
        show_default=True,
        metavar="RATE",
        help="Probability that a window without any change is reported as drift.",
    )(command)


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
    help="The baseline, from `onnxcam monitor baseline`.",
)
@window_option
@rate_option
@span_options
@click.option(
    "--fail-on",
    type=click.Choice(["drift", "no-data"]),
    multiple=True,
    help="Exit with 5 if this is the verdict on the newest window; repeatable.",
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
    """Compare the newest records with a baseline.

    Records newer than the baseline (all, if it is of a table; or those since --since) are divided into windows, the
    last of which ends at the newest record. Each window is compared with the baseline: confidence, low-confidence rate,
    classes, statistics of the maps, and the mean map of each frequent class; records are weighted by the inverse of
    their sampling probability. The
    verdict is ok, drift, or not enough data (fewer than 500 records). Thresholds are bootstrapped from the baseline, so
    that a window without any change is reported as drift at the declared rate, over all statistics together.

    Exit status: 0 done, 1 no records or no baseline can be read, 2 wrong usage, 5 a --fail-on condition holds.
    """
    assessment, notes = assess_folder(folder, path, window, false_alarms, since, until, seed)
    latest = assessment.latest
    if as_json:
        options.print_json(
            {"verdict": latest.verdict, "windows": [w.to_dict() for w in assessment.windows], "notes": notes}
        )
    else:
        for verdict in assessment.windows:
            _print_verdict(verdict, whole=verdict is latest)
        print_notes(notes)
    if latest.verdict in [{"drift": "drift", "no-data": "not enough data"}[name] for name in fail_on]:
        ctx.exit(ExitCode.CONDITION)


def assess_folder(
    folder: Path,
    path: Path,
    window: int | timedelta,
    false_alarms: float,
    since: datetime | None,
    until: datetime | None,
    seed: int,
) -> tuple[Assessment, list[str]]:
    """Compare a folder's records with the baseline in a file; returns the assessment and notes.

    Raises:
        InputError: not a monitor's folder, or not a baseline.
    """
    from onnxcam.monitor import baseline as baselines
    from onnxcam.monitor import counters, reading
    from onnxcam.monitor import drift as drifts

    normal = baselines.load(path)
    scan = reading.Scan()
    replicates = max(drifts.REPLICATES, int(10 / false_alarms))
    detector = drifts.Detector(normal, false_alarms=false_alarms, replicates=replicates, seed=seed)
    # the rows of a table have one time, when it was made, which says nothing about which records they were made for
    after = None if since is not None or normal.since == normal.until else normal.until
    older = 0

    def later(record: Mapping[str, Any]) -> bool:
        nonlocal older
        left_out = after is not None and record["ts"] <= after
        older += left_out
        return not left_out

    query = reading.Query(since, until, matches=later)
    assessment = drifts.assess(reading.records(folder, query, scan), detector, window)
    notes = [*scan.notes(), *assessment.notes, *counters.notes(counters.total(folder))]
    if older and assessment.latest.verdict == "not enough data":
        notes.append(
            f"{older:,} records are left out, as they are not newer than the baseline ({normal.until}); give --since "
            "to compare them too"
        )
    return assessment, notes


def _print_verdict(verdict: Verdict, *, whole: bool) -> None:
    text, colour = _MARKS[verdict.verdict]
    span = f"{verdict.since} to {verdict.until}" if verdict.since else "no records"
    score = "" if verdict.score is None else f"; score {verdict.score:.1f}, drift from {verdict.threshold:.1f}"
    terminal.echo(terminal.Colored(text, colour), f": {verdict.records:,} records, {span}{score}")
    listed = (verdict.statistics if whole else verdict.drifted)[:_LISTED]
    for statistic in listed:
        terminal.echo("  " + sentence(statistic))
    more = len(verdict.drifted) - len(listed)
    if more > 0:
        terminal.echo(f"  and {more} more")


def sentence(statistic: Statistic) -> str:
    """Format a statistic as one line."""
    from onnxcam.monitor.drift import format_number, format_percent

    score = "too few rows" if statistic.score is None else f"score {statistic.score:5.1f}"
    distance = "" if statistic.distance is None else f"{statistic.distance:.3f}"
    if statistic.kind == "share":
        change = f"{distance} of it lies elsewhere"
    elif statistic.kind == "rate":
        change = f"{format_percent(statistic.baseline)} -> {format_percent(statistic.window)}"
    else:
        change = f"{format_number(statistic.baseline)} -> {format_number(statistic.window)}, {distance} deviations"
    return f"{'!' if statistic.drifted else ' '} {statistic.name:<24} {score:<12}  {change}"


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
    help="The baseline, for the drift verdicts and the changes of mean maps.",
)
@window_option
@rate_option
@span_options
@click.option(
    "--top",
    type=click.IntRange(0, 200),
    default=12,
    show_default=True,
    help="How many of the most uncertain predictions to show.",
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
    """Write a report as one HTML page.

    It shows how many predictions were explained and why, confidence over time, the most uncertain predictions with
    their maps, the mean map of each class compared with the baseline, drift verdicts, and what was dropped. The page
    needs no other file and no network.
    """
    from onnxcam.files import write_bytes
    from onnxcam.monitor import baseline as baselines
    from onnxcam.monitor import counters, feedback, page, reading
    from onnxcam.monitor.report import Report

    scan = reading.Scan()
    normal = None if path is None else baselines.load(path)
    outcomes = feedback.Outcomes(feedback.read(folder))
    matching = outcomes.watch(reading.records(folder, reading.Query(since, until), scan))
    summary = Report.of(matching, normal, top=top)
    if not summary.count:
        raise InputError("no records of that time; a report needs at least one")
    notes = scan.notes()
    assessment = None
    if path is not None:
        assessment, more = assess_folder(folder, path, window, false_alarms, since, until, seed)
        notes = list(dict.fromkeys([*notes, *more]))
    totals = counters.total(folder)
    coverage, doubts = outcomes.coverage(totals) if outcomes.truths.by_id else (None, [])
    notes += doubts
    sentences = outcomes.lines(coverage) if outcomes.truths.by_id else []
    text = page.render(summary, folder, assessment, totals, title=title, notes=notes, feedback=sentences)
    encoded = text.encode(errors="backslashreplace")  # half a surrogate pair in a label
    write_bytes(output, encoded)
    result = {
        "output": str(output),
        "bytes": len(encoded),
        "records": summary.count,
        "verdict": None if assessment is None else assessment.latest.verdict,
        "feedback": outcomes.describe(coverage) if outcomes.truths.by_id else None,
        "notes": notes,
    }
    if as_json:
        options.print_json(result)
    else:
        terminal.echo(f"{output}: {summary.count:,} records, {result['bytes']:,} bytes")
        print_notes(notes)
