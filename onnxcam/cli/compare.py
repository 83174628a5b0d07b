"""`onnxcam compare`: compare two models, what they predict and where they look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcam.cli import options, question_options, terminal
from onnxcam.cli.errors import ExitCode
from onnxcam.cli.opening import open_explainer
from onnxcam.cli.progress import Bar
from onnxcam.cli.shift_reports import Reports, report_options
from onnxcam.cli.truth import check_truth, known_classes, truth_option
from onnxcam.cli.versions import versions
from onnxcam.errors import PreprocessError
from onnxcam.explain import pictures
from onnxcam.image import arrays
from onnxcam.targets import scalars

if TYPE_CHECKING:
    from onnxcam.diagnose.shift.result import Shift
    from onnxcam.explain.explainer import Explainer

EPILOG = """\
\b
Examples:
  onnxcam compare old.onnx new.onnx photos/
  onnxcam compare old.onnx new.onnx photos/ --truth by-folder --json > shift.json
  onnxcam compare old.onnx int8.onnx photos/ --null augment:8 --fail-on attention --fail-on 'predictions > 1%'
  onnxcam compare old.onnx new.onnx photos/ --null seeds:seed1.onnx,seed2.onnx,seed3.onnx,seed4.onnx,seed5.onnx
  onnxcam compare old.onnx new.onnx photos/ --regions boxes.csv --fail-on 'region > 10%'
  onnxcam compare detector.onnx int8.onnx photos/ --null augment:8 --fail-on 'predictions > 5%' --report page.html
"""


@click.command("compare", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.argument("named", nargs=-1, metavar="PICTURES...")
@click.option(
    "--null",
    metavar="NULL",
    help="Give a verdict on the attention against seeds:FILE,... (at least five other trainings of OLD; globs, "
    "folders) or augment:M (M small changes of each picture, for the same training in another form).",
)
@click.option(
    "--regions",
    metavar="FILE",
    help="Where maps should lie: CSV with picture,x0,y0,x1,y1[,name], JSON, or a folder of masks.",
)
@click.option(
    "--fail-on",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Exit with 5 if it holds: attention (needs --null), preprocessing (NEW's file prepares pictures differently), "
    "predictions, 'predictions > 1%', accuracy (lost, needs --truth), 'region > 10%' (of the energy left it, needs "
    "--regions).  Repeatable.",
)
@truth_option
@click.option("--layer", "--last-conv", "layer", metavar="NAME", help="Target layer.  [default: each model's own]")
@click.option("--new-layer", metavar="NAME", help="Target layer in NEW, where it has another name there.")
@click.option("--method", default="hirescam", show_default=True, metavar="NAME", help="CAM method of the maps.")
@options.labels_option
@options.preprocess_option
@click.option("--new-preprocess", metavar="SPEC", help="The same for NEW alone.  [default: as --preprocess]")
@options.input_size_option
@options.range_option
@options.bands_option
@options.readout_options
@options.task_options
@question_options.like_option
@question_options.value_option
@report_options
@options.provider_option
@options.fallback_option
@options.seed_option
@options.json_option
def compare(
    old: str,
    new: str,
    named: tuple[str, ...],
    null: str | None,
    regions: str | None,
    conditions: tuple[str, ...],
    truth: str | None,
    layer: str | None,
    new_layer: str | None,
    method: str,
    labels: str | None,
    preprocess: str | None,
    new_preprocess: str | None,
    input_size: list[int] | None,
    value_range: list[float] | None,
    bands: list[int] | None,
    scores: str | None,
    kind: str | None,
    task: str | None,
    boxes_output: str | None,
    like: str | None,
    value: str | None,
    report: str | None,
    junit: str | None,
    markdown: str | None,
    show: int,
    by_depth: bool | None,
    provider: str,
    allow_fallback: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Compare two models, what they predict and where they look.

    OLD and NEW do the same, explainable or not: a model and its successor, its quantized form, or its conversion.
    Classifiers both explain the same class of each of PICTURES, OLD's top-1 or with --truth the true one. Of detectors
    the boxes are matched: lost, new and of another class are flips, and those that stayed are explained by both. Of
    segmentations the largest class of OLD is explained and all areas are compared; of embeddings --like, of several
    values --value says what is. Listed are first those whose prediction stayed while the attention moved, then those
    whose prediction flipped.

    The distance of two maps is how far their energy moves, in parts of the picture's side. Whether that is much only a
    null can tell: maps move with the seed of a training alone. Without --null the numbers are effect sizes.

    Exit status: 0 done, 1 a picture cannot be read (the rest are compared), 2 wrong usage, or two models that cannot be
    compared or a null that cannot give a verdict, 3 unusable model, 4 no usable runtime or execution provider, 5 a
    --fail-on condition holds, 130 interrupted.
    """
    from onnxcam.diagnose.shift import null as nulls
    from onnxcam.diagnose.shift.comparison import compare as shift_between
    from onnxcam.diagnose.shift.conditions import Condition
    from onnxcam.diagnose.shift.pairing import INHERITED, check_task, fix_rows
    from onnxcam.diagnose.shift.regions import read as read_regions
    from onnxcam.diagnose.shift.verdict import require_seeds

    if not named:
        raise click.UsageError("no PICTURES were given: name files, folders or globs.")
    check_truth(truth, named)
    reports = Reports(report, junit, markdown, show, by_depth)
    gate = [Condition.parse(part) for text in conditions for part in text.split(",")]
    for condition in gate:
        condition.require(null=null is not None, truth=truth is not None, regions=regions is not None)
    chance = nulls.checked(null)
    if isinstance(chance, nulls.Seeds):
        require_seeds(len(chance.models))
    places = None if regions is None else read_regions(regions)
    target = _target(like, value)
    collection = pictures.collect(list(named), Path(".onnxcam-none"))
    if not collection.items:
        raise collection.failures[0][1]
    items = collection.items
    seeds = chance.models if isinstance(chance, nulls.Seeds) else ()
    reports.check(
        {
            "OLD": (old,), "NEW": (new,), "another training": seeds, "a picture": [item.source for item in items],
            "the regions": () if places is None or regions is None else (regions, *places.files),
            "the truth": (truth,), "what it is compared with": (like,), "the labels": (labels,),
            "the preprocessing": (preprocess, new_preprocess),
        },
        as_json=as_json,
    )  # fmt: skip

    def explainer_of(path: str, name: str | None, spec: Any) -> Explainer:
        explainer = open_explainer(
            path,
            () if name is None else (name,),
            labels,
            spec,
            methods=(method,),
            provider=provider,
            allow_fallback=allow_fallback,
            input_size=input_size,
            value_range=value_range,
            bands=bands,
            sources=[item.source for item in items],
            scores=scores,
            kind=kind,
            task=task,
            boxes_output=boxes_output,
        )
        fix_rows(explainer)
        return explainer

    with reports.said_to_fail((old, new)):
        try:
            first = explainer_of(old, layer, preprocess)
        except PreprocessError as error:
            raise PreprocessError(f"OLD {old!r}: {error}") from error
        spec, notes = preprocess if new_preprocess is None else new_preprocess, []
        name = layer if new_layer is None else new_layer
        try:
            second = explainer_of(new, name, spec)
        except PreprocessError as error:
            if spec is not None or first.preprocess is None:
                raise PreprocessError(f"NEW {new!r}: {error} (--new-preprocess for NEW alone)") from error
            second = explainer_of(new, name, first.preprocess)
            notes.append(INHERITED)
        explainers = first, second
        classes = None
        if truth is not None:
            paths = [item.source for item in items if isinstance(item.source, Path)]
            check_task(first.terms.readout.task_name, truth, None)
            indices = iter(known_classes(truth, named, paths, first.labels, first.classes))
            classes = [
                next(indices) if isinstance(item.source, Path) else None for item in items
            ]  # standard input has none
        for explainer in explainers:
            terminal.warn(explainer.warnings)
        with Bar("compared") as bar:
            shift = shift_between(
                explainers[0],
                explainers[1],
                [item.source for item in items],
                null=chance,
                regions=places,
                truth=classes,
                layer=layer,
                new_layer=new_layer,
                method=method,
                target=target,
                names=[item.name for item in items],
                seed=seed,
                progress=bar.to,
            )
        shift.notes[:0] = notes
        shift = reports.blame(shift)
        failed = [str(error) for _, error in (*collection.failures, *shift.failures)]
        for text in failed:
            terminal.echo(f"Error: {text}", err=True)
        outcomes = [condition.decide(shift) for condition in gate]
        reports.write(shift, outcomes, (old, new), failed)
    reasons = [outcome.sentence for outcome in outcomes if outcome.failed]
    undecided = [outcome.sentence for outcome in outcomes if outcome.failed is None]
    undecided = list(dict.fromkeys([*undecided, *([shift.undecided] if shift.undecided else [])]))
    if as_json:
        about = {"old": old, "new": new, "providers": shift.new.providers, "versions": versions()}
        results = [
            {"name": one.name, "threshold": condition.threshold, "failed": one.failed, "sentence": one.sentence}
            for condition, one in zip(gate, outcomes, strict=True)
        ]
        options.print_json(about | shift.to_dict() | {"failed": failed, "conditions": reasons, "outcomes": results})
    else:
        _print(shift, reports.piped)
    for reason in reasons:
        terminal.echo(f"Failed: {reason}", err=True)
    for reason in undecided:
        terminal.echo(f"Error: {reason}", err=True)
    if reasons:
        raise click.exceptions.Exit(ExitCode.CONDITION)
    if undecided or failed:
        raise click.exceptions.Exit(ExitCode.USAGE if undecided else ExitCode.FAILED)


def _target(like: str | None, value: str | None) -> Any:
    """What a model of embeddings or several values explains.

    Raises:
        UsageError: both are named. TargetError, PictureError: one cannot be read.
    """
    if like is not None and value is not None:
        raise click.UsageError("--like and --value exclude each other: each names what is explained.")
    if value is not None:
        return scalars.value_of_text(value)
    if like is None:
        return None
    return scalars.Similarity(arrays.read_vector(like) if like.lower().endswith(".npy") else like)


def _print(shift: Shift, piped: bool) -> None:
    from onnxcam.diagnose.shift.text import lines

    terminal.echo_lines(lines(shift), err=piped)
