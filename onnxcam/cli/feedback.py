"""`onnxcam monitor feedback`: store true classes beside the records, and say whether the sets still cover them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcam.cli import options, terminal
from onnxcam.cli.errors import ExitCode
from onnxcam.cli.monitor import folder_argument, print_notes


@click.command(
    "feedback",
    context_settings=options.CONTEXT,
    epilog="""\
\b
Examples:
  onnxcam monitor feedback /var/log/cam truths.csv
  onnxcam monitor feedback /var/log/cam truths.csv --labels labels.txt
  onnxcam monitor feedback /var/log/cam --fail-on coverage
""",
)
@folder_argument
@click.argument("path", metavar="[FILE.csv]", type=click.Path(path_type=Path), required=False)
@options.labels_option
@click.option(
    "--fail-on",
    type=click.Choice(["coverage"]),
    help="Exit with status 5 if the coverage has left its band, with 2 if it cannot be tested.",
)
@options.json_option
def feedback(folder: Path, path: Path | None, labels: str | None, fail_on: str | None, as_json: bool) -> None:
    """Store true classes of predictions, and test the coverage of their sets.

    FILE.csv has a line `id,truth` for each prediction: the id of its record or request, and the index of its class (its
    name with --labels). Without FILE.csv the feedback that is there is tested. Needs records of a calibrated file
    (`onnxcam calibrate`). The test may be repeated as often as you like: the probability that it ever says that the
    coverage has left its band while nothing has changed is 1 %, where true classes come in about the order of the
    predictions.

    Exit status: 0 done, 1 no records or feedback that is none, 2 wrong usage, or with --fail-on a coverage that cannot
    be tested, 5 the --fail-on condition holds.
    """
    import time

    from onnxcam.monitor import counters, reading
    from onnxcam.monitor import feedback as feedbacks

    reading.segments(folder)  # raises InputError unless it is a monitor's folder
    pairs = [] if path is None else feedbacks.read_table(path, _labels(labels))
    stored = feedbacks.append(folder, pairs, time.time()) if pairs else 0
    scan, outcomes, largest = reading.Scan(), feedbacks.Outcomes(feedbacks.read(folder)), -1
    others = 0
    for record in reading.records(folder, None, scan):
        others += record["prediction"].get("task") is not None
        outcomes.add(record)
        largest = max([largest, *(entry["index"] for entry in record["prediction"]["top"])])
    totals = counters.total(folder)
    coverage, notes = outcomes.coverage(totals)
    notes = [*scan.notes(), *counters.notes(totals), *notes]
    if not outcomes.calibrated:
        notes.append(
            "the coverage cannot be told: no record has a prediction set; calibrate the file, `onnxcam calibrate`, and "
            "let the monitor use the result"
        )
    if others:
        notes.append(f"{others:,} records are of a detector or segmentation: true classes say nothing about them")
    beyond = [(identity, truth) for identity, truth in pairs if truth > largest] if labels is None else []
    if beyond:
        notes.append(
            f"{len(beyond):,} true classes are beyond the largest that records name ({largest}), such as "
            f"{beyond[0][1]} of {beyond[0][0][:60]!r}; give --labels to have classes checked"
        )
    result: dict[str, Any] = {"stored": stored, **outcomes.describe(coverage), "notes": notes}
    if as_json:
        options.print_json(result)
    else:
        if path is not None:
            terminal.echo(f"stored     {stored:,} true classes")
        for line in outcomes.lines(coverage):
            terminal.echo(line)
        if coverage is None:
            terminal.echo("           coverage: not tested")
        print_notes(notes)
    if fail_on and (coverage is None or coverage.alarm is not None):
        raise click.exceptions.Exit(ExitCode.USAGE if coverage is None else ExitCode.CONDITION)


def _labels(path: str | None) -> list[str] | None:
    if path is None:
        return None
    from onnxcam.targets import labels

    return labels.read(path)
