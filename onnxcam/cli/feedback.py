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
    "--fail-on", type=click.Choice(["coverage"]), help="Exit with status 5 if the coverage has left its band."
)
@options.json_option
def feedback(folder: Path, path: Path | None, labels: str | None, fail_on: str | None, as_json: bool) -> None:
    """Store true classes of predictions, and test the coverage of their sets.

    FILE.csv has a line `id,truth` for each prediction: the id of its record or request, and the index of its class (its
    name with --labels). Without FILE.csv the feedback that is there is tested. Needs records of a calibrated file
    (`onnxcam calibrate`). The test may be repeated as often as you like: the probability that it ever says that the
    coverage has left its band while nothing has changed is 1 %.
    """
    import time

    from onnxcam.monitor import counters, reading
    from onnxcam.monitor import feedback as feedbacks

    reading.segments(folder)  # raises InputError unless it is a monitor's folder
    stored = 0
    if path is not None:
        stored = feedbacks.append(folder, feedbacks.read_table(path, _labels(labels)), time.time())
    scan, outcomes = reading.Scan(), feedbacks.Outcomes(feedbacks.read(folder))
    for record in reading.records(folder, None, scan):
        outcomes.add(record)
    coverage, notes = outcomes.coverage(counters.total(folder))
    notes = [*scan.notes(), *notes]
    result: dict[str, Any] = {"stored": stored, **outcomes.describe(coverage), "notes": notes}
    if as_json:
        options.print_json(result)
    else:
        if path is not None:
            terminal.echo(f"stored     {stored:,} true classes")
        for line in outcomes.lines(coverage):
            terminal.echo(line)
        print_notes(notes)
    if fail_on and coverage is not None and coverage.alarm is not None:
        raise click.exceptions.Exit(ExitCode.CONDITION)


def _labels(path: str | None) -> list[str] | None:
    if path is None:
        return None
    from onnxcam.targets import labels

    return labels.read(path)
