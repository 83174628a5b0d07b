"""`onnxcam monitor`: read the records of monitors, detect drift, write reports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxcam.cli import options, terminal
from onnxcam.cli.group import CommandGroup
from onnxcam.errors import InputError, OnnxcamError, SettingError

if TYPE_CHECKING:
    from onnxcam.monitor.schema import Record

F = TypeVar("F", bound=Callable[..., Any])

COMMANDS = {
    "tail": ("onnxcam.cli.monitor:tail", "Print the newest records, and follow new ones."),
    "query": ("onnxcam.cli.monitor:query", "Print matching records."),
    "stats": ("onnxcam.cli.monitor:stats", "Count the rows seen, explained and dropped, and the records."),
    "prune": ("onnxcam.cli.monitor:prune", "Remove the oldest records, and unreferenced pictures."),
    "baseline": ("onnxcam.cli.baseline:baseline", "Make a baseline of normal records, or merge some."),
    "drift": ("onnxcam.cli.drift:drift", "Compare the newest records with a baseline."),
    "report": ("onnxcam.cli.drift:report", "Write a report as one HTML page."),
    "feedback": ("onnxcam.cli.feedback:feedback", "Store true classes, and test the coverage of prediction sets."),
    "schema": ("onnxcam.cli.monitor:schema", "Print the JSON Schema of a record."),
}


@click.group("monitor", cls=CommandGroup, places=COMMANDS, context_settings=options.CONTEXT)
def monitor() -> None:
    """Read the records of monitors, detect drift, write reports.

    DIR is the folder that is the sink of an onnxcam.Monitor. It can be read while monitors write to it.
    """


class Moment(click.ParamType):
    """A time: a duration ago, or ISO 8601."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from onnxcam.monitor.reading import moment

        if isinstance(value, datetime):
            return value
        try:
            return moment(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


class Where(click.ParamType):
    """A condition in the grammar of `when`, as a predicate of records."""

    name = "condition"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from onnxcam.targets import conditions

        if not isinstance(value, str):
            return value
        try:
            condition = conditions.parse(value)
        except OnnxcamError as error:
            self.fail(str(error), param, ctx)
        if conditions.tops(condition) or conditions.risks(condition):
            self.fail(
                "`top` and `risk` are thresholds of a calibration, which records do not hold; compare confidence, "
                "margin, entropy, calibrated or set, or take the newest with --sort confidence --limit N",
                param,
                ctx,
            )
        return lambda record: holds(condition, record)


class Size(click.ParamType):
    """Bytes or seconds with a unit."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from onnxcam.monitor.units import parse_bytes, parse_seconds

        try:
            return (parse_bytes if self.name == "bytes" else parse_seconds)(value)
        except SettingError as error:
            self.fail(str(error).partition("; ")[2], param, ctx)


def folder_argument(command: F) -> F:
    """DIR."""
    return click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))(command)


def span_options(command: F) -> F:
    """`--since` and `--until`."""
    for name, text in (("until", "Only records before this time."), ("since", "Only records from this time on.")):
        command = click.option(f"--{name}", type=Moment(), metavar="TIME", help=f"{text} 6h is six hours ago.")(command)
    return command


def query_options(command: F) -> F:
    """The options that select records, of `tail` and `query`."""
    for option in reversed(
        (
            click.option(
                "--where",
                type=Where(),
                metavar="CONDITION",
                help="Only records that meet this condition, for example 'confidence < 0.4 and label == \"tabby\"'.",
            ),
            click.option("--label", metavar="TEXT", help="Only classes whose name contains this."),
            click.option("--class", "index", type=int, metavar="INDEX", help="Only this class."),
            click.option(
                "--reason", type=click.Choice(["condition", "baseline"]), help="Only records made for this reason."
            ),
            click.option("--model", metavar="NAME", help="Only this model: its name, or a prefix of its sha256."),
            click.option("--request", metavar="ID", help="Only this request or trace."),
            click.option("--id", "identity", metavar="ID", help="Only records whose id starts with this."),
        )
    ):
        command = option(command)
    return span_options(command)


lines_option = click.option("--json", "as_json", is_flag=True, help="Print the records as JSON, one per line.")


@click.command(
    "tail",
    context_settings=options.CONTEXT,
    epilog="""\
\b
Examples:
  onnxcam monitor tail /var/log/cam
  onnxcam monitor tail /var/log/cam -n 0 --follow --label tabby
  onnxcam monitor tail /var/log/cam --json | jq .prediction.top
""",
)
@folder_argument
@click.option("-n", "--lines", "count", type=click.IntRange(0), default=10, show_default=True, help="How many records.")
@click.option("-f", "--follow", is_flag=True, help="Then print new records as they are written, until interrupted.")
@query_options
@lines_option
def tail(folder: Path, count: int, follow: bool, as_json: bool, **query: Any) -> None:
    """Print the newest records, and follow new ones.

    Oldest first, one line each: time, confidence, class, reason, request, id.
    """
    from onnxcam.monitor import reading

    selection, scan, new = _query(query), reading.Scan(), reading.Scan()
    following = reading.follow(folder, selection, new) if follow else iter(())
    _print(reading.last(folder, count, selection, scan), as_json)
    print_notes(scan.notes())
    for record in following:
        _print([record], as_json)
        if new.damaged or new.newer:  # once
            print_notes(new.notes())
            new = reading.Scan()


@click.command(
    "query",
    context_settings=options.CONTEXT,
    epilog="""\
\b
Examples:
  onnxcam monitor query /var/log/cam --since 1d --where 'confidence < 0.3'
  onnxcam monitor query /var/log/cam --sort confidence --limit 20
  onnxcam monitor query /var/log/cam --request 7f3a --json
""",
)
@folder_argument
@query_options
@click.option(
    "--sort",
    type=click.Choice(["time", "newest", "confidence", "margin", "entropy", "map"]),
    default="time",
    show_default=True,
    help="Order: oldest first, newest first, most uncertain first, or furthest from the baseline's maps first.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N records.")
@lines_option
def query(folder: Path, sort: str, limit: int | None, as_json: bool, **query: Any) -> None:
    """Print matching records.

    One line each: time, confidence, class, reason, request, id. Their number goes to standard error.
    """
    from itertools import islice

    from onnxcam.monitor import reading

    selection, scan = _query(query), reading.Scan()
    if sort == "time":
        matches = reading.records(folder, selection, scan)
    elif sort == "newest":
        matches = reading.newest(folder, selection, scan)
    else:
        matches = reading.ordered(folder, _order(sort), selection, scan, limit)
    printed = _print(islice(matches, limit), as_json)
    print_notes([f"{printed} records", *scan.notes()])


@click.command(
    "stats",
    context_settings=options.CONTEXT,
    epilog="""\
\b
Examples:
  onnxcam monitor stats /var/log/cam
  onnxcam monitor stats /var/log/cam --since 1d --json
""",
)
@folder_argument
@span_options
@options.json_option
def stats(folder: Path, since: datetime | None, until: datetime | None, as_json: bool) -> None:
    """Count the rows seen, explained and dropped, and the records.

    Counters are those of the monitors, summed over processes since the start of each; records are those in DIR.
    """
    from onnxcam.monitor import counters, feedback, reading

    scan, summary = reading.Scan(), _Summary()
    outcomes = feedback.Outcomes(feedback.read(folder))
    for record in reading.records(folder, reading.Query(since, until), scan):
        summary.add(record)
        outcomes.add(record)
    totals = counters.total(folder)
    coverage, doubts = outcomes.coverage(totals) if outcomes.truths.by_id else (None, [])
    notes = [*scan.notes(), *counters.notes(totals), *doubts]
    result = {"counters": totals, "records": summary.to_dict(), "segments": scan.segments, "notes": notes}
    if outcomes.truths.by_id:
        result["feedback"] = outcomes.describe(coverage)
    if as_json:
        options.print_json(result)
        return
    for line in _counter_lines(totals):
        terminal.echo(line)
    for line in summary.lines():
        terminal.echo(line)
    for line in outcomes.lines(coverage) if outcomes.truths.by_id else ():
        terminal.echo(line)
    print_notes(notes)


@click.command(
    "prune",
    context_settings=options.CONTEXT,
    epilog="""\
\b
Examples:
  onnxcam monitor prune /var/log/cam --max-age 30d
  onnxcam monitor prune /var/log/cam --max-bytes 2GiB --max-records 100000
""",
)
@folder_argument
@click.option("--max-bytes", type=Size("bytes"), metavar="SIZE", help="Retain at most this size, as 2GiB or 500MB.")
@click.option("--max-age", type=Size("seconds"), metavar="TIME", help="Remove older records, as 30d or 12h.")
@click.option("--max-records", type=click.IntRange(0), metavar="N", help="Retain at most N records.")
@options.json_option
def prune(folder: Path, max_bytes: int | None, max_age: float | None, max_records: int | None, as_json: bool) -> None:
    """Remove the oldest records, and unreferenced pictures.

    Closed segments are removed with their pictures, the oldest first, until DIR is within the limits; so are pictures
    older than an hour that no record names, which killed processes left behind. The segments that monitors are writing
    stay. With --max-age the counters of processes that ended longer ago and older feedback are removed too.
    """
    import time

    from onnxcam.monitor import counters, feedback, reading, segments
    from onnxcam.monitor.retention import Limits, Retention, remove_unreferenced

    reading.segments(folder)  # raises InputError unless it is a monitor's folder
    segments.recover(folder)
    retention = Retention(folder, Limits(max_bytes, max_age, max_records))
    removed = retention.enforce(time.time())
    pictures = remove_unreferenced(folder)
    if max_age is not None:
        counters.prune(folder, max_age)
        feedback.prune(folder, max_age, time.time())
    result = {
        "segments_removed": len(removed),
        "pictures_removed": pictures,
        "bytes": retention.bytes,
        "records": retention.records,
    }
    if as_json:
        options.print_json(result)
    else:
        terminal.echo(f"removed {len(removed)} segments, and {pictures} pictures that no record names")
        terminal.echo(f"left    {retention.records:,} records, {retention.bytes:,} bytes with their pictures")


@click.command(
    "schema",
    context_settings=options.CONTEXT,
    epilog="""\
\b
Examples:
  onnxcam monitor schema > record.schema.json
""",
)
@click.option("--json", "as_json", is_flag=True, help="No effect: the schema is JSON.")
def schema(as_json: bool) -> None:
    """Print the JSON Schema of a record."""
    from onnxcam.monitor.schema import schema as published

    options.print_json(published())


def holds(condition: Any, record: Record) -> bool:
    """Return whether a record meets a condition; a comparison with a quantity that the record lacks is false."""
    import numpy as np

    from onnxcam.targets import conditions

    match condition:
        case conditions.Comparison(conditions.LABEL, sign, value):
            top = record["prediction"]["top"]
            if not top:
                return False
            same = _same_label(str(top[0]["label"]), value) if isinstance(value, str) else top[0]["index"] == int(value)
            return bool(same == (sign == "=="))
        case conditions.Comparison(quantity, sign, value):
            number = record["prediction"].get("set_size" if quantity == conditions.SET else quantity)
            return number is not None and bool(
                conditions.compare(quantity, sign, np.array(number, np.float64), float(value))
            )
        case conditions.Not(inner):
            return not holds(inner, record)
        case conditions.AllOf(parts):
            return all(holds(part, record) for part in parts)
        case conditions.AnyOf(parts):
            return any(holds(part, record) for part in parts)
    raise TypeError(f"{condition!r} is not a condition")


def _same_label(label: str, name: str) -> bool:
    """Compare as for targets: the full label, or one of its comma-separated synonyms, ignoring case."""
    names = [label, *label.split(",")]
    return name.strip().casefold() in (synonym.strip().casefold() for synonym in names)


def _query(selection: dict[str, Any]) -> Any:
    from onnxcam.monitor.reading import Query

    return Query(**{("matches" if name == "where" else name): value for name, value in selection.items()})


def _order(sort: str) -> Callable[[Record], float]:
    def key(record: Record) -> float:
        value = (record.get("drift") or {}).get("map") if sort == "map" else record["prediction"].get(sort)
        value = float("inf") if value is None else float(value)
        # uncertain predictions have a low confidence and margin, but a high entropy and distance
        return -value if sort in ("entropy", "map") and value != float("inf") else value

    return key


def _print(records: Any, as_json: bool) -> int:
    printed = 0
    for record in records:
        terminal.echo(json.dumps(record, ensure_ascii=True) if as_json else line(record))
        printed += 1
    return printed


def line(record: Record) -> str:
    """Format a record as one line."""
    prediction, trigger = record["prediction"], record["trigger"]
    confidence = prediction.get("confidence")
    columns = [
        record["ts"][:19].replace("T", " "),
        "    ?" if confidence is None else f"{confidence:5.3f}",
        f"{(prediction.get('target') or {}).get('label') or '?'!s:<24.24}",
        f"{trigger.get('reason') or '?':9}",
        f"{record.get('request') or record.get('trace') or '-':<12}",
        record["id"],
    ]
    # labels and requests come from outside: control characters must not reach the terminal
    return "".join(c if c.isprintable() else "?" for c in "  ".join(columns))


def print_notes(notes: list[str]) -> None:
    """Print notes to standard error."""
    for note in notes:
        terminal.echo(note, err=True)


class _Summary:
    """Counts of records by reason and class, and the bytes of their pictures."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.classes: Counter[str] = Counter()
        self.pictures = self.bytes = self.zero = 0
        self.first = self.last = None

    def add(self, record: Record) -> None:
        self.reasons[str(record["trigger"].get("reason"))] += 1
        self.classes[str((record["prediction"].get("target") or {}).get("label"))] += 1
        self.pictures += len(record.get("files") or ())
        self.bytes += sum(int(entry.get("bytes") or 0) for entry in record.get("files") or ())
        self.zero += bool((record.get("attention") or {}).get("zero"))
        self.first, self.last = self.first or record["ts"], record["ts"]

    def to_dict(self) -> dict[str, Any]:
        return {
            "count": self.reasons.total(),
            "since": self.first,
            "until": self.last,
            "reasons": dict(self.reasons),
            "classes": dict(self.classes.most_common(20)),
            "zero_maps": self.zero,
            "pictures": self.pictures,
            "picture_bytes": self.bytes,
        }

    def lines(self) -> Iterator[str]:
        count = self.reasons.total()
        yield f"records    {count:,}" + (f" from {self.first} to {self.last}" if count else "")
        for reason, number in sorted(self.reasons.items()):
            yield f"           {number:,} for {reason}"
        if count:
            yield f"pictures   {self.pictures:,} files, {self.bytes:,} bytes"
            yield "classes    " + ", ".join(f"{label} {number:,}" for label, number in self.classes.most_common(5))


def _counter_lines(totals: dict[str, Any]) -> Iterator[str]:
    if not totals.get("processes"):
        yield "counters   none in this folder"
        return
    yield f"counters   of {totals['processes']} processes"
    for name in ("seen", "confident", "explained", "failed", "queued", "running"):
        yield f"{name:<10} {totals.get(name, 0):,}"
    dropped = {reason: number for reason, number in totals.get("dropped", {}).items() if number}
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in sorted(dropped.items()))
    yield f"dropped    {sum(dropped.values()):,}" + (f" ({reasons})" if reasons else "")
    if totals.get("lost"):
        yield f"lost       {totals['lost']:,} records, removed by others than retention"
