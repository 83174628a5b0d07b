"""`onnxcam monitor baseline`: make a baseline of records, or merge baselines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from onnxcam.cli import options, terminal
from onnxcam.cli.monitor import print_notes, span_options
from onnxcam.errors import InputError


@click.command(
    "baseline",
    context_settings=options.CONTEXT,
    epilog="""\
\b
Examples:
  onnxcam monitor baseline /var/log/cam -o baseline.json
  onnxcam monitor baseline /var/log/cam -o baseline.json --since 2026-11-01 --until 2026-11-15
  onnxcam monitor baseline host1.json host2.json host3.json -o baseline.json
  onnxcam monitor baseline table.parquet --when "confidence < 0.6" -o baseline.json
""",
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The file to write."
)
@span_options
@click.option(
    "--rows",
    type=click.IntRange(500, 20000),
    help="Records stored in FILE, drawn at random.  [default: 4000, or as many as the baselines that are merged]",
)
@click.option(
    "--part",
    is_flag=True,
    help="Write a baseline of fewer than 500 records too, which is of use for merging alone.",
)
@click.option(
    "--when",
    metavar="CONDITION",
    help="Of a table: the condition of the monitor that will be compared with it.  [default: that of the table]",
)
@options.seed_option
@options.json_option
def baseline(
    sources: tuple[Path, ...],
    output: Path,
    since: datetime | None,
    until: datetime | None,
    rows: int | None,
    part: bool,
    when: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Make a baseline of normal records.

    The baseline is a random sample of the records of a normal period: take whole days or weeks, so that it includes
    daily and weekly variation. Only records of the most frequent model, condition, method and layer are used; at least
    500 are needed. The file contains numbers and small maps, no pictures.

    SOURCE is a monitor's folder, a baseline, or a table of `onnxcam batch` in which every row is explained. Several are
    merged: the result is the same as of all their records at once, whatever the order. Which records are stored
    depends on their ids (of rows: their paths) and --seed alone. A table has to be made as the monitor explains: of the
    predicted class, and with its layer, method, preprocessing and scores.
    """
    from onnxcam.files import write_bytes
    from onnxcam.monitor import baseline as baselines

    fewest = 1 if part else baselines.FEWEST
    many = len(sources) > 1 or sources[0].is_file()
    documents, notes = _documents(sources, since, until, rows, when, seed, 1 if many else fewest)
    if many:
        document, more = baselines.merge(documents, rows=rows, fewest=fewest)
        notes += more
    else:
        document = documents[0]
    data = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    write_bytes(output, data)
    stored = baselines.parse(document, baselines.identify(data), fewest=fewest)
    notes = list(dict.fromkeys(notes))
    classes = [stored.label(index) for index in stored.classes]
    result = {
        "output": str(output),
        "identity": stored.identity,
        "records": stored.records,
        "rows": len(stored.rows),
        "since": stored.since,
        "until": stored.until,
        "classes": classes,
        "notes": notes,
    }
    if as_json:
        options.print_json(result)
        return
    terminal.echo(
        f"{output}: {stored.records:,} records from {stored.since} to {stored.until}, {len(stored.rows):,} stored"
    )
    terminal.echo(f"classes with a mean map: {', '.join(classes) or 'none, all classes are compared together'}")
    print_notes(notes)


def _documents(
    sources: Sequence[Path],
    since: datetime | None,
    until: datetime | None,
    rows: int | None,
    when: str | None,
    seed: int,
    fewest: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The baseline of each source, and sentences about what was skipped.

    Raises:
        UsageError: a source is named twice, or an option is not for it.
        InputError: a source cannot be read, or has too few records.
    """
    from onnxcam.fleet import tables
    from onnxcam.monitor import baseline as baselines
    from onnxcam.monitor import reading

    documents: list[dict[str, Any]] = []
    notes: list[str] = []
    names: dict[str, Path] = {}
    for source in sources:
        identity = str(source.absolute())
        more: list[str] = []
        table = tables.is_table(source)
        if (since is not None or until is not None) and (table or source.is_file()):
            what = "a table" if table else "a baseline"
            raise click.UsageError(
                f"--since and --until select records of a monitor, and {str(source)!r} is {what}; leave them out."
            )
        if when is not None and not table:
            raise click.UsageError(f"--when is for tables, and {str(source)!r} is none; records have their condition.")
        limits: dict[str, Any] = {"rows": rows or baselines.ROWS, "seed": seed, "fewest": fewest}
        if table:
            document, more = _of_table(source, when, limits)
        elif source.is_file():
            document, identity = baselines.read(source)
        else:
            scan = reading.Scan()
            document, more = baselines.build(reading.records(source, reading.Query(since, until), scan), **limits)
            more = [*scan.notes(), *more]
        if identity in names:
            raise click.UsageError(f"{str(names[identity])!r} and {str(source)!r} are the same; name it once.")
        names[identity] = source
        notes += more
        documents.append(document)
    return documents, notes


def _of_table(source: Path, when: str | None, limits: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The baseline of a table, and sentences about what was skipped.

    Raises:
        InputError: it cannot be read, has rows that are not explained, or too few.
    """
    from onnxcam.fleet import tables
    from onnxcam.fleet.run import about_table
    from onnxcam.monitor import baseline as baselines
    from onnxcam.monitor.tabulated import ALWAYS, COLUMNS, MORE, Table
    from onnxcam.targets.tasks import DETECT, DETECTION, SEGMENT, SEGMENTATION

    notes: list[str] = []
    about = about_table(source)
    if about.window:
        raise InputError(
            f"the layer of {str(source)!r} covers a part of the model's input only, and a table does not say which; "
            "make the baseline from a monitor's records"
        )
    _check_question(source, about.settings)
    if about.missing:
        notes.append(f"{about.missing} rows are missing in {str(source)!r}: the run was stopped, go on with --resume")
    present = tables.names_of(source)
    names = [name for name in MORE if name in present]
    task = {DETECTION: DETECT, SEGMENTATION: SEGMENT}.get(str(about.settings.get("kind")))
    table = Table(
        tables.read(source, [*names, *COLUMNS]),
        root=about.root,
        moment=about.started,
        when=when,
        written=about.when or ALWAYS,
        name=about.model,
        labels=about.labels,
        task=task,
        own_layer=task == DETECT and about.settings.get("layer") is None,
    )
    document, more = baselines.build(table, **limits)
    if table.failed:
        notes.append(f"{table.failed} rows with an error were skipped")
    if table.others and task is None:
        notes.append(
            f"{table.others} rows explain another class than the predicted one, which a monitor does only if its file "
            "is bound to a class"
        )
    return document, [*notes, *more]


def _check_question(source: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a table whose maps are not what a monitor records: they would look like drift.

    Arguments:
        settings: that it was made with; empty where it is from elsewhere.

    Raises:
        InputError: it was made for a class, a contrast or probabilities, smoothed, or with options of the method.
    """
    from onnxcam.cam import registry

    odd = []
    if settings.get("target") is not None:
        odd.append(f"another target than the predicted class ({json.dumps(settings['target'], ensure_ascii=False)})")
    if settings.get("smooth"):
        odd.append(f"smoothing ({', '.join(map(str, settings['smooth']))})")
    options_of = settings.get("option")
    for name, values in (options_of if isinstance(options_of, dict) else {}).items():
        if name in registry.methods():
            usual = json.loads(json.dumps(registry.find(name).options))
            odd += [f"option {key}={value!r}" for key, value in values.items() if value != usual.get(key)]
    if odd:
        raise InputError(
            f"{str(source)!r} was made with {' and '.join(odd)}, and a monitor explains the predicted class with the "
            "method's own options; make the table without --target, --contrast, --probability, --smooth and --option"
        )
