"""`onnxcam evaluate`: judge methods by numbers."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcam import files
from onnxcam.cli import options, terminal
from onnxcam.cli.errors import ExitCode
from onnxcam.cli.opening import open_explainer
from onnxcam.cli.progress import Bar
from onnxcam.cli.truth import check_truth, true_classes, truth_option
from onnxcam.cli.versions import versions
from onnxcam.documents import render
from onnxcam.errors import OutputError
from onnxcam.explain import pictures

if TYPE_CHECKING:
    from onnxcam.evaluation.evaluation import Evaluation

_EVERY = 10.0  # seconds between two writings of what is complete
_TABLE = 60.0  # seconds between two tables of what is complete on standard error

EPILOG = """\
\b
Examples:
  onnxcam evaluate model.onnx photos/
  onnxcam evaluate model.onnx photos/ --method gradcam --method layercam --method randomcam --report report.html
  onnxcam evaluate model.onnx photos/ --truth by-folder --labels labels.txt --limit 100 -o out
  onnxcam evaluate model.onnx photos/ --boxes boxes.csv --metric pointing_game --metric energy_in_box
  onnxcam evaluate detector.onnx street/ --boxes boxes.csv --metric own_box --metric insertion --metric drise
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
@click.option(
    "--masks",
    type=click.IntRange(min=1),
    metavar="N",
    help="Masks of the metric drise, each a run of the model.  [default: 1000]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0.0, 1.0),
    default=0.02,
    show_default=True,
    metavar="X",
    help="Error of the means of insertion, deletion and ROAD that may come of leaving out points of their curves, if "
    "these are smooth (the ± printed holds for any), from 32 pictures on; 0 computes every point.",
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
@options.task_options
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
@options.rows_option
@options.seed_option
@options.json_option
def evaluate(
    model: str,
    named: tuple[str, ...],
    methods: tuple[str, ...],
    metrics: tuple[str, ...],
    boxes: str | None,
    masks: int | None,
    tolerance: float,
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
    task: str | None,
    boxes_output: str | None,
    csv_file: str | None,
    report: str | None,
    output: str | None,
    show: int,
    provider: str,
    allow_fallback: bool,
    rows: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Judge methods by numbers.

    Runs every method on the same PICTURES with MODEL, and measures by several metrics how far its maps can be trusted:
    how much of the prediction remains when only the important part of the picture is shown, how fast it drops when that
    part is removed, and whether the map depends on what the model has learned. The map explained is that of each
    picture's class: with --truth its own, otherwise the model's top-1.

    Of a detector or a model of segmentation the maps are those of objects: with --boxes of each box that is drawn (of a
    detector, if it reports that object too), otherwise of those that the detector reports, or of a segmentation's
    largest class. What is measured as the picture changes is the score of the box, or the mean probability in it.

    The table has a line per method and marks the best of each metric. "Which method to trust" in the documentation
    says what the numbers mean and how many pictures they need.

    Of 32 pictures and more some points of the curves of insertion, deletion and ROAD are left out, so that the table
    takes half of the time or less. ± behind a mean is a bound, with 95 % certainty, on how far it is from that of all
    points, whatever the model. As many are left out as keep it below --tolerance for smooth curves; of others it is
    larger, as printed.

    While it runs, the table so far is printed on standard error every minute, and the numbers of the pictures that are
    done stand in evaluation.partial.csv next to the table. When it is interrupted (Ctrl-C, SIGTERM), the results are
    those of the pictures that are done, and say so.

    Exit status: 0 done, 1 a picture cannot be read (the rest are judged) or a file cannot be written, 2 wrong usage or
    unknown method, metric, layer or class, 3 unusable model, 4 no usable runtime or execution provider, 130
    interrupted.
    """
    from onnxcam.evaluation import boxes as box_files
    from onnxcam.evaluation import report as reports
    from onnxcam.evaluation.judge import evaluate as judge
    from onnxcam.evaluation.metrics import find

    if not named:
        raise click.UsageError("no PICTURES were given: name files, folders or globs.")
    check_truth(truth, named)
    box_table = None if boxes is None else box_files.read(boxes)
    for metric in metrics:
        if metric != "all":
            find(metric)
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
        rows=rows,
        task=task,
        boxes_output=boxes_output,
        sleeping=True,
    )
    items = collection.items
    paths = [item.source for item in items if isinstance(item.source, Path)]
    classes = true_classes(truth, named, paths, explainer.labels, explainer.classes)
    if limit is not None and len(items) > limit:
        order = sorted(random.Random(seed).sample(range(len(items)), limit))
        items = [items[k] for k in order]
        classes = None if classes is None else [classes[k] for k in order]
    results = Results(output, csv_file, report)
    if as_json and results.piped:
        raise click.UsageError("--json and a result file both name standard output; name another file.")
    results.check()
    terminal.warn(explainer.warnings)
    interrupted = False
    with Bar("judged") as bar:
        try:
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
                examples=show if results.report is not None else 0,
                progress=bar.to,
                partial=lambda so_far: results.keep(so_far, bar, len(items)),
                tolerance=tolerance,
                **({} if masks is None else {"masks": masks}),
            )
        except KeyboardInterrupt:
            if results.evaluation is None or not results.complete:
                raise
            evaluation, interrupted = results.evaluation, True
            evaluation.drop_after(results.complete)
    failed = [str(error) for _, error in (*collection.failures, *evaluation.failures)]
    for text in failed:
        terminal.echo(f"Error: {text}", err=True)
    record = {"model": model, "seed": seed, "providers": explainer.providers, "versions": versions(), "failed": failed}
    if interrupted:
        record |= {"interrupted": True, "left": len(items) - evaluation.pictures - len(evaluation.failures)}
    record |= evaluation.to_dict()
    results.write(evaluation, record, f"{Path(model).name}: methods compared")
    if as_json:
        options.print_json(record)
    else:
        terminal.echo_lines(reports.lines(evaluation), err=results.piped)
    if interrupted:
        terminal.echo(
            f"The numbers are those of {evaluation.pictures} of {len(items)} pictures; another run judges all of "
            "them anew.",
            err=True,
        )
        raise KeyboardInterrupt
    if failed:
        raise click.exceptions.Exit(ExitCode.FAILED)


class Results:
    """The files of an evaluation: what is complete is written every few seconds while it runs.

    Attributes:
        json, csv, report: where each kind goes, None where it is not wanted.
        evaluation: the one that runs.
        complete: the number of pictures in it whose numbers are complete.
    """

    def __init__(self, output: str | None, csv_file: str | None, report: str | None) -> None:
        folder = None if output is None else Path(output)
        self.json = None if folder is None else folder / "evaluation.json"
        self.csv = Path(csv_file) if csv_file is not None else None if folder is None else folder / "evaluation.csv"
        self.report = Path(report) if report is not None else None if folder is None else folder / "report.html"
        self.evaluation: Evaluation | None = None
        self.complete = 0
        self._written = self._printed = time.monotonic()

    @property
    def _paths(self) -> list[Path]:
        return [path for path in (self.json, self.csv, self.report) if path is not None]

    @property
    def piped(self) -> bool:
        """Whether one of the files is standard output, where nothing else may be printed then."""
        return any(map(files.is_standard_output, self._paths))

    @property
    def partial(self) -> Path | None:
        """The table of what is complete, next to the table that is written at the end."""
        if self.csv is None or not files.is_replaced(self.csv):
            return None
        return self.csv.with_name(f"{self.csv.stem}.partial{self.csv.suffix}")

    def check(self) -> None:
        """Fail before the work rather than after it.

        Raises:
            OutputError: a file cannot be written.
        """
        for path in self._paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(
                    f"the folder {str(path.parent)!r} cannot be made ({error.strerror}); choose another"
                ) from error
            if path.is_dir():
                raise OutputError(f"{str(path)!r} is a folder; name a file")
            files.check_writable(path)

    def keep(self, evaluation: Evaluation, bar: Bar, total: int) -> None:
        """Note that the numbers of some more pictures are complete, write them and print their table if it is time."""
        from onnxcam.evaluation import report as reports

        self.evaluation, self.complete = evaluation, len(evaluation.places)
        if evaluation.pictures < total and time.monotonic() - self._printed >= _TABLE:
            bar.note([f"After {evaluation.pictures} of {total} pictures:", *reports.lines(evaluation)])
            self._printed = time.monotonic()
        partial = self.partial
        if partial is not None and time.monotonic() - self._written >= _EVERY:
            files.write_bytes(partial, evaluation.to_csv().encode(errors="backslashreplace"))
            self._written = time.monotonic()

    def write(self, evaluation: Evaluation, record: dict[str, Any], title: str) -> None:
        """Write the files, all of them or none; the partial table goes.

        Raises:
            OutputError: one cannot be written.
        """
        from onnxcam.evaluation import report as reports

        with files.FileSet() as together:
            if self.json is not None:
                together.write(self.json, [render(record)])
            if self.csv is not None:
                together.write(self.csv, [evaluation.to_csv().encode(errors="backslashreplace")])
            if self.report is not None:
                notes = [f"{name} {number}" for name, number in versions().items()]
                page = reports.render(evaluation, title=title, notes=[", ".join(notes)])
                together.write(self.report, [page.encode(errors="backslashreplace")])
        if self.partial is not None:
            self.partial.unlink(missing_ok=True)
