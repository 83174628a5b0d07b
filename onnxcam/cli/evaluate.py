"""`onnxcam evaluate`: judge methods by numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import click

from onnxcam import image
from onnxcam.cli import options, terminal
from onnxcam.cli.errors import ExitCode
from onnxcam.cli.explain import open_explainer
from onnxcam.cli.progress import Bar
from onnxcam.cli.truth import check_truth, true_classes, truth_option
from onnxcam.cli.versions import versions
from onnxcam.errors import OutputError
from onnxcam.explain import pictures

EPILOG = """\
\b
Examples:
  onnxcam evaluate model.onnx photos/
  onnxcam evaluate model.onnx photos/ --method gradcam --method layercam --method randomcam --report report.html
  onnxcam evaluate model.onnx photos/ --truth by-folder --labels labels.txt --limit 100 -o out
  onnxcam evaluate model.onnx photos/ --boxes boxes.csv --metric pointing_game --metric energy_in_box
  onnxcam evaluate model.onnx photos/ --json > evaluation.json
"""


@click.command("evaluate", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.argument("named", nargs=-1, metavar="PICTURES...")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="Method to judge; repeat for several.  [default: gradcam, its closest relatives, and two poor ones to beat]",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Metric to judge by, or all; repeat for several.  [default: drop, increase, insertion, deletion, ROAD, ADCC, "
    "redrawn weights, and with --boxes pointing and energy]",
)
@click.option(
    "--boxes",
    metavar="FILE",
    help="Where the objects are: JSON {picture: [[x0, y0, x1, y1], ...]} or CSV with picture,x0,y0,x1,y1[,label].",
)
@truth_option
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use at most N pictures, sampled at random.")
@options.layer_option("Target layer; several are fused into their mean.  [default: the model's own]")
@options.labels_option
@options.preprocess_option
@options.input_size_option
@options.range_option
@options.bands_option
@options.readout_options
@click.option("--csv", "csv_file", metavar="FILE", help="Write each picture's numbers as CSV.")
@click.option("--report", metavar="FILE", help="Write an HTML page with tables, curves and pictures.")
@click.option(
    "-o", "--output", metavar="DIR", help="Write evaluation.json, evaluation.csv and report.html into this folder."
)
@click.option(
    "--show", type=click.IntRange(min=0), default=12, show_default=True, metavar="N", help="Pictures in the HTML page."
)
@options.provider_option
@options.fallback_option
@options.seed_option
@options.json_option
def evaluate(
    model: str,
    named: tuple[str, ...],
    methods: tuple[str, ...],
    metrics: tuple[str, ...],
    boxes: str | None,
    truth: str | None,
    limit: int | None,
    layers: tuple[str, ...],
    labels: str | None,
    preprocess: str | None,
    input_size: list[int] | None,
    value_range: list[float] | None,
    bands: list[int] | None,
    scores: str | None,
    kind: str | None,
    csv_file: str | None,
    report: str | None,
    output: str | None,
    show: int,
    provider: str,
    allow_fallback: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Judge methods by numbers.

    Runs every method on the same PICTURES with MODEL, and measures by several metrics how far its maps can be trusted:
    how much of the prediction remains when only the important part of the picture is shown, how fast it drops when that
    part is removed, and whether the map depends on what the model has learned. The map explained is that of each
    picture's class: with --truth its own, otherwise the model's top-1.

    The table has a line per method and marks the best of each metric. "Which method to trust" in the documentation
    says what the numbers mean and how many pictures they need.

    Exit status: 0 done, 1 a picture cannot be read (the rest are judged) or a file cannot be written, 2 wrong usage or
    unknown method, metric, layer or class, 3 unusable model, 4 no usable runtime or execution provider.
    """
    from onnxcam.evaluation import boxes as box_files
    from onnxcam.evaluation import report as reports
    from onnxcam.evaluation.judge import evaluate as judge
    from onnxcam.evaluation.metrics import select

    if not named:
        raise click.UsageError("no PICTURES were given: name files, folders or globs.")
    check_truth(truth, named)
    box_table = None if boxes is None else box_files.read(boxes)
    select(metrics or None, boxes=box_table is not None)
    folder = None if output is None else Path(output)
    collection = pictures.collect(list(named), folder or Path(".onnxcam-none"))
    if not collection.items:
        raise collection.failures[0][1]
    explainer = open_explainer(
        model,
        layers,
        labels,
        preprocess,
        provider=provider,
        allow_fallback=allow_fallback,
        input_size=input_size,
        value_range=value_range,
        bands=bands,
        sources=[item.source for item in collection.items],
        scores=scores,
        kind=kind,
    )
    items = collection.items
    paths = [item.source for item in items if isinstance(item.source, Path)]
    classes = true_classes(truth, named, paths, explainer.labels, explainer.classes)
    if limit is not None and len(items) > limit:
        order = sorted(random.Random(seed).sample(range(len(items)), limit))
        items = [items[k] for k in order]
        classes = None if classes is None else [classes[k] for k in order]
    targets = _targets(output, csv_file, report)
    for path in targets.values():
        _writable(path)
    terminal.warn(explainer.warnings)
    with Bar() as bar:
        evaluation = judge(
            explainer,
            [item.source for item in items],
            methods=list(dict.fromkeys(methods)) or None,
            metrics=metrics or None,
            targets=classes,
            boxes=box_table,
            layer=None if not layers else layers[0] if len(layers) == 1 else list(dict.fromkeys(layers)),
            names=[item.name for item in items],
            seed=seed,
            examples=show if "report" in targets else 0,
            progress=bar.to,
        )
    failed = [str(error) for _, error in (*collection.failures, *evaluation.failures)]
    for text in failed:
        terminal.echo(f"Error: {text}", err=True)
    record = {"model": model, "seed": seed, "providers": explainer.providers, "versions": versions(), "failed": failed}
    record |= evaluation.to_dict()
    if "json" in targets:
        text = json.dumps(options.finite(record), ensure_ascii=False, indent=2) + "\n"
        image.write_bytes(targets["json"], text.encode(errors="backslashreplace"))
    if "csv" in targets:
        image.write_bytes(targets["csv"], evaluation.to_csv().encode(errors="backslashreplace"))
    if "report" in targets:
        notes = [f"{name} {number}" for name, number in versions().items()]
        page = reports.render(evaluation, title=f"{Path(model).name}: methods compared", notes=[", ".join(notes)])
        image.write_bytes(targets["report"], page.encode(errors="backslashreplace"))
    if as_json:
        options.print_json(record)
    else:
        terminal.echo_lines(reports.lines(evaluation))
    if failed:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _targets(output: str | None, csv_file: str | None, report: str | None) -> dict[str, Path]:
    """Where each kind of result goes."""
    targets = {}
    if output is not None:
        folder = Path(output)
        targets = {
            "json": folder / "evaluation.json",
            "csv": folder / "evaluation.csv",
            "report": folder / "report.html",
        }
    if csv_file is not None:
        targets["csv"] = Path(csv_file)
    if report is not None:
        targets["report"] = Path(report)
    return targets


def _writable(path: Path) -> None:
    """Fail before the work rather than after it.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder {str(path.parent)!r} cannot be made ({error.strerror}); choose another"
        ) from error
    if path.is_dir():
        raise OutputError(f"{str(path)!r} is a folder; name a file")
    probe = path.with_name(f".{path.name}.writable")
    image.write_bytes(probe, b"")
    probe.unlink(missing_ok=True)
