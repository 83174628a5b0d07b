"""`onnxcam compare`: compare two models, what they predict and where they look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcam.cli import options, terminal
from onnxcam.cli.errors import ExitCode
from onnxcam.cli.opening import open_explainer
from onnxcam.cli.progress import Bar
from onnxcam.cli.shift_reports import Reports, report_options
from onnxcam.cli.truth import check_truth, known_classes, truth_option
from onnxcam.cli.versions import versions
from onnxcam.explain import pictures

if TYPE_CHECKING:
    from onnxcam.diagnose.shift.result import Shift

EPILOG = """\
\b
Examples:
  onnxcam compare old.onnx new.onnx photos/
  onnxcam compare old.onnx new.onnx photos/ --truth by-folder --json > shift.json
"""


@click.command("compare", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.argument("named", nargs=-1, metavar="PICTURES...")
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
@report_options
@options.provider_option
@options.fallback_option
@options.seed_option
@options.json_option
def compare(
    old: str,
    new: str,
    named: tuple[str, ...],
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

    OLD and NEW are classifiers of the same classes, explainable or not: a model and its successor, its quantized form,
    or its conversion. Both explain the same class of each of PICTURES, OLD's top-1 or with --truth the true one. Listed
    are first the pictures whose prediction stayed while the attention moved, then those whose prediction flipped.

    Exit status: 0 done, 1 a picture cannot be read (the rest are compared), 2 wrong usage, or two models that cannot be
    compared, 3 unusable model, 4 no usable runtime or execution provider, 130 interrupted.
    """
    from onnxcam.diagnose.shift.comparison import compare as shift_between

    if not named:
        raise click.UsageError("no PICTURES were given: name files, folders or globs.")
    check_truth(truth, named)
    reports = Reports(report, junit, markdown, show, by_depth)
    collection = pictures.collect(list(named), Path(".onnxcam-none"))
    if not collection.items:
        raise collection.failures[0][1]
    items = collection.items
    explainers = [
        open_explainer(
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
        )
        for path, name, spec in (
            (old, layer, preprocess),
            (new, layer if new_layer is None else new_layer, preprocess if new_preprocess is None else new_preprocess),
        )
    ]
    paths = [item.source for item in items if isinstance(item.source, Path)]
    classes = None if truth is None else known_classes(truth, named, paths, explainers[0].labels, explainers[0].classes)
    for explainer in explainers:
        terminal.warn(explainer.warnings)
    with Bar("compared") as bar:
        shift = shift_between(
            explainers[0],
            explainers[1],
            [item.source for item in items],
            truth=classes,
            layer=layer,
            new_layer=new_layer,
            method=method,
            names=[item.name for item in items],
            seed=seed,
            progress=bar.to,
        )
    shift = reports.blame(shift)
    failed = [str(error) for _, error in (*collection.failures, *shift.failures)]
    for text in failed:
        terminal.echo(f"Error: {text}", err=True)
    reports.write(shift, (), (old, new), failed)
    if as_json:
        about = {"old": old, "new": new, "providers": shift.new.providers, "versions": versions()}
        options.print_json(about | shift.to_dict() | {"failed": failed})
    else:
        _print(shift, reports.piped)
    if failed:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _print(shift: Shift, piped: bool) -> None:
    from onnxcam.diagnose.shift.text import lines

    terminal.echo_lines(lines(shift), err=piped)
