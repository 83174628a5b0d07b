"""`onnxcam monitor`: reads what monitors wrote."""

from __future__ import annotations

import json
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxcam.cli import options
from onnxcam.cli.group import CommandGroup
from onnxcam.errors import InputError, OnnxcamError, SettingError

F = TypeVar("F", bound=Callable[..., Any])
Record = dict[str, Any]

COMMANDS = {
    "tail": ("onnxcam.cli.monitor:tail", "Print the newest records, and those to come."),
    "query": ("onnxcam.cli.monitor:query", "Print the records that match."),
    "stats": ("onnxcam.cli.monitor:stats", "Count what was seen, explained, kept and dropped."),
    "prune": ("onnxcam.cli.monitor:prune", "Remove the oldest records and what no record names."),
    "baseline": ("onnxcam.cli.drift:baseline", "Keep what is normal in one file."),
    "drift": ("onnxcam.cli.drift:drift", "Compare the newest records with what is normal."),
    "report": ("onnxcam.cli.drift:report", "Write one HTML page about all of it."),
    "schema": ("onnxcam.cli.monitor:schema", "Print the JSON Schema of a record."),
}


@click.group("monitor", cls=CommandGroup, places=COMMANDS, context_settings=options.CONTEXT)
def monitor() -> None:
    """Read what monitors wrote: records, drift, reports.

    DIR is the folder given to onnxcam.Monitor as its sink. It may be read while monitors write to it.
    """


class Moment(click.ParamType):
    """A time: so long ago, or ISO 8601."""

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
    """A condition in the grammar of `when`, as a test of records."""

    name = "condition"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from onnxcam.targets import conditions

        if not isinstance(value, str):
            return value
        try:
            condition = conditions.parse(value)
        except OnnxcamError as error:
            self.fail(str(error), param, ctx)
        return lambda record: holds(condition, record)


class Size(click.ParamType):
    """Bytes or seconds, as people write them."""

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
        command = click.option(f"--{name}", type=Moment(), metavar="TIME", help=f"{text} 6h and 7d are ago.")(command)
    return command


def query_options(command: F) -> F:
    """What restricts `tail` and `query`."""
    for option in reversed(
        (
            click.option(
                "--where",
                type=Where(),
                metavar="CONDITION",
                help="Only where this holds, for example 'confidence < 0.4 and label == \"tabby\"'.",
            ),
            click.option("--label", metavar="TEXT", help="Only classes whose name has this in it."),
            click.option("--class", "index", type=int, metavar="INDEX", help="Only this class."),
            click.option(
                "--reason", type=click.Choice(["condition", "baseline"]), help="Only what was kept for this reason."
            ),
            click.option("--model", metavar="NAME", help="Only this model: its name, or how its sha256 begins."),
            click.option("--request", metavar="ID", help="Only this request or trace."),
            click.option("--id", "identity", metavar="ID", help="Only records whose id begins so."),
        )
    ):
        command = option(command)
    return span_options(command)


lines_option = click.option("--json", "as_json", is_flag=True, help="Print the records themselves, one JSON a line.")


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
@click.option("-n", "--lines", "count", type=click.IntRange(0), default=10, show_default=True, help="How many.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until interrupted.")
@query_options
@lines_option
def tail(folder: Path, count: int, follow: bool, as_json: bool, **query: Any) -> None:
    """Print the newest records, and those to come.

    Oldest first, one line each: time, confidence, class, why it was kept, request, id.
    """
    from onnxcam.monitor import reading

    wanted, scan = _query(query), reading.Scan()
    coming = reading.follow(folder, wanted) if follow else iter(())
    _print(deque(reading.records(folder, wanted, scan), count or 1) if count else (), as_json)
    _note(scan.notes())
    _print(coming, as_json)


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
    type=click.Choice(["time", "confidence", "margin", "entropy", "map"]),
    default="time",
    show_default=True,
    help="Oldest, least sure, or furthest from the baseline's maps first.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many.")
@lines_option
def query(folder: Path, sort: str, limit: int | None, as_json: bool, **query: Any) -> None:
    """Print the records that match.

    One line each: time, confidence, class, why it was kept, request, id. How many there are goes to standard error.
    """
    import heapq
    from itertools import islice

    from onnxcam.monitor import reading

    scan = reading.Scan()
    found: Iterator[Record] = reading.records(folder, _query(query), scan)
    if sort != "time":
        found = iter(heapq.nsmallest(limit or sys.maxsize, found, key=_order(sort)))
    printed = _print(islice(found, limit), as_json)
    _note([f"{printed} records", *scan.notes()])


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
    """Count what was seen, explained, kept and dropped.

    Counters are the monitors' own, added up over processes, since each began; records are those kept in DIR.
    """
    from onnxcam.monitor import counters, reading

    scan, found = reading.Scan(), _Counted()
    for record in reading.records(folder, reading.Query(since, until), scan):
        found.add(record)
    counted = counters.total(folder)
    notes = [*scan.notes(), *counters.notes(counted)]
    told = {"counters": counted, "records": found.told(), "segments": scan.segments, "notes": notes}
    if as_json:
        options.print_json(told)
        return
    for line in _counter_lines(counted):
        click.echo(line)
    for line in found.lines():
        click.echo(line)
    _note(notes)


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
@click.option("--max-bytes", type=Size("bytes"), metavar="SIZE", help="Keep at most so much, as 2GiB or 500MB.")
@click.option("--max-age", type=Size("seconds"), metavar="TIME", help="Keep nothing older, as 30d or 12h.")
@click.option("--max-records", type=click.IntRange(0), metavar="N", help="Keep at most so many records.")
@options.json_option
def prune(folder: Path, max_bytes: int | None, max_age: float | None, max_records: int | None, as_json: bool) -> None:
    """Remove the oldest records and what no record names.

    Whole closed segments go, the oldest first, with the pictures they name, until DIR is within the bounds given; and
    pictures older than an hour that no record names, which processes left behind that were killed. What a monitor is
    writing stays. With --max-age the counters of processes that ended longer ago go too.
    """
    import time

    from onnxcam.monitor import counters, reading, segments
    from onnxcam.monitor.retention import Limits, Retention, remove_unreferenced

    reading.segments(folder)  # refuses a folder that is no monitor's
    segments.recover(folder)
    keeper = Retention(folder, Limits(max_bytes, max_age, max_records))
    removed = keeper.clear(time.time())
    swept = remove_unreferenced(folder)
    if max_age is not None:
        counters.prune(folder, max_age)
    told = {
        "segments_removed": len(removed),
        "pictures_removed": swept,
        "bytes": keeper.bytes,
        "records": keeper.records,
    }
    if as_json:
        options.print_json(told)
    else:
        click.echo(f"removed {len(removed)} segments, and {swept} pictures that no record names")
        click.echo(f"kept    {keeper.records:,} records, {keeper.bytes:,} bytes with their pictures")


@click.command(
    "schema",
    context_settings=options.CONTEXT,
    epilog="""\
\b
Examples:
  onnxcam monitor schema > record.schema.json
""",
)
@click.option("--json", "as_json", is_flag=True, help="The same: a schema is JSON.")
def schema(as_json: bool) -> None:
    """Print the JSON Schema of a record."""
    from onnxcam.monitor.schema import schema as published

    options.print_json(published())


def holds(condition: Any, record: Record) -> bool:
    """Whether a condition holds for a record; a quantity the record lacks makes it false."""
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
            held = record["prediction"].get(quantity)
            return held is not None and bool(conditions.OPERATORS[sign](np.array(held, np.float64), float(value)))
        case conditions.Not(inner):
            return not holds(inner, record)
        case conditions.AllOf(parts):
            return all(holds(part, record) for part in parts)
        case conditions.AnyOf(parts):
            return any(holds(part, record) for part in parts)
    raise TypeError(f"{condition!r} is no condition")


def _same_label(label: str, wanted: str) -> bool:
    """As targets are named: the whole label, or one of its comma-separated synonyms, case ignored."""
    names = [label, *label.split(",")]
    return wanted.strip().casefold() in (name.strip().casefold() for name in names)


def _query(given: dict[str, Any]) -> Any:
    from onnxcam.monitor.reading import Query

    return Query(**{("matches" if name == "where" else name): value for name, value in given.items()})


def _order(sort: str) -> Callable[[Record], float]:
    def least(record: Record) -> float:
        value = (record.get("drift") or {}).get("map") if sort == "map" else record["prediction"].get(sort)
        value = float("inf") if value is None else float(value)
        # what is least sure has a small confidence and margin, but a large entropy and distance
        return -value if sort in ("entropy", "map") and value != float("inf") else value

    return least


def _print(records: Any, as_json: bool) -> int:
    printed = 0
    for record in records:
        click.echo(json.dumps(record, ensure_ascii=True) if as_json else line(record))
        sys.stdout.flush()
        printed += 1
    return printed


def line(record: Record) -> str:
    """A record on one line."""
    prediction, trigger = record["prediction"], record["trigger"]
    confidence = prediction.get("confidence")
    named = [
        record["ts"][:19].replace("T", " "),
        "    ?" if confidence is None else f"{confidence:5.3f}",
        f"{(prediction.get('target') or {}).get('label') or '?'!s:<24.24}",
        f"{trigger.get('reason') or '?':9}",
        f"{record.get('request') or record.get('trace') or '-':<12}",
        record["id"],
    ]
    # labels and requests come from outside: they must not steer the terminal
    return "".join(c if c.isprintable() else "?" for c in "  ".join(named))


def _note(notes: list[str]) -> None:
    for note in notes:
        click.echo(note, err=True)


class _Counted:
    """Records by day, reason and class, and the bytes of their pictures."""

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

    def told(self) -> dict[str, Any]:
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


def _counter_lines(counted: dict[str, Any]) -> Iterator[str]:
    if not counted.get("processes"):
        yield "counters   none were written here"
        return
    yield f"counters   of {counted['processes']} processes"
    for name in ("seen", "confident", "explained", "failed", "queued", "running"):
        yield f"{name:<10} {counted.get(name, 0):,}"
    dropped = {reason: number for reason, number in counted.get("dropped", {}).items() if number}
    told = ", ".join(f"{reason} {number:,}" for reason, number in sorted(dropped.items()))
    yield f"dropped    {sum(dropped.values()):,}" + (f" ({told})" if told else "")
