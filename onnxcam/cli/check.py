"""`onnxcam check`: check a model's gradients against finite differences, or its preprocessing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import click

from onnxcam import runtime
from onnxcam.cli import options, terminal
from onnxcam.cli.errors import ExitCode
from onnxcam.cli.report import show
from onnxcam.errors import LabelsError, LayerError, TargetError, listing
from onnxcam.explain import pictures
from onnxcam.targets import classes as targets
from onnxcam.targets import labels as label_files

EPILOG = """\
\b
Examples:
  onnxcam check model.onnx
  onnxcam check model.onnx --provider cuda --samples 16 --json
  onnxcam check model.onnx --pictures photos/
  onnxcam check model.onnx --pictures photos/ --by-folder --labels labels.txt
"""


@click.command("check", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.option(
    "--samples",
    type=click.IntRange(1, 1024),
    default=4,
    show_default=True,
    metavar="N",
    help="Number of noise pictures to check the gradients on.",
)
@click.option(
    "--all-layers",
    is_flag=True,
    help="Measure where every candidate for a target layer lies on the picture, not the file's own alone.",
)
@click.option(
    "--pictures",
    "folder",
    metavar="DIR",
    help="Compare preprocessings on these pictures instead of checking gradients.",
)
@click.option("--by-folder", is_flag=True, help="Each picture's folder in DIR is its class: a label or an index.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    metavar="N",
    help="Use at most N pictures, sampled at random.",
)
@options.labels_option
@options.preprocess_option
@options.input_size_option
@options.readout_options
@options.provider_option
@options.fallback_option
@options.seed_option
@options.json_option
def check(
    model: str,
    samples: int,
    all_layers: bool,
    folder: str | None,
    by_folder: bool,
    limit: int,
    labels: str | None,
    preprocess: str | None,
    input_size: list[int] | None,
    scores: str | None,
    kind: str | None,
    provider: str,
    allow_fallback: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Check a model's gradients against finite differences, or its preprocessing.

    MODEL is an explainable model, or any image classifier in ONNX form, which is made explainable in memory first.
    Predictions are compared with the plain model, gradients with central differences of the scores, both in the
    runtime and on the execution provider that will serve them. Facts measured of the model follow: its scores, whether
    pictures of a batch affect each other, and where its layers lie on the picture. Of what is collected, each line says
    ok, failed, unsure (the differences are too noisy to tell) or note.

    With --pictures, every plausible preprocessing (value ranges, colour orders, stretched or cropped, the model's
    own) is tried on the same pictures instead. Where the folders tell the classes (--by-folder), accuracy and
    likelihood decide; otherwise how much the predictions say about the pictures, which needs pictures of several
    kinds. What does not show clearly is called undecided.

    Exit status: 0 nothing failed, 1 a picture cannot be read, 2 wrong usage, 3 a check failed (with --by-folder:
    another preprocessing is clearly better than the one in use) or the model is unusable, 4 no usable runtime or
    provider.
    """
    if folder is not None:
        _compare(
            model,
            folder,
            by_folder,
            limit,
            labels,
            preprocess,
            input_size,
            scores,
            kind,
            provider,
            allow_fallback,
            seed,
            as_json,
        )
        return
    if by_folder or labels is not None or preprocess is not None:
        raise click.UsageError("--by-folder, --labels and --preprocess go with --pictures DIR.")
    from onnxcam.diagnose import gradients

    try:
        report = gradients.check(
            model,
            providers=runtime.parse_provider(provider),
            samples=samples,
            seed=seed,
            input_size=input_size,
            scores=scores,
            kind=kind,
            allow_fallback=allow_fallback,
            all_layers=all_layers,
        )
    except LayerError as error:
        raise options.not_explainable(error, ()) from error
    about = {"path": model, "seed": seed}
    show(report, as_json, about, f"{model!r} failed: {', '.join(report.failed)}")


def _compare(
    model: str,
    folder: str,
    by_folder: bool,
    limit: int,
    labels_file: str | None,
    preprocess: str | None,
    input_size: list[int] | None,
    scores: str | None,
    kind: str | None,
    provider: str,
    allow_fallback: bool,
    seed: int,
    as_json: bool,
) -> None:
    from onnxcam.diagnose.preprocessing import compare
    from onnxcam.explain.explainer import Explainer

    collected = pictures.collect([folder], Path(folder) / ".none")
    if collected.failures:
        raise collected.failures[0][1]
    paths = [item.source for item in collected.items if isinstance(item.source, Path)]
    names = None if labels_file is None else label_files.read(labels_file)
    try:
        explainer = Explainer(
            model,
            preprocess=preprocess,
            input_size=input_size,
            scores=scores,
            kind=kind,
            providers=runtime.parse_provider(provider),
            allow_fallback=allow_fallback,
        )
    except LayerError as error:
        raise options.not_explainable(error, ()) from error
    if names is not None:
        label_files.check_count(names, explainer.classes, f"labels file {labels_file!r}")
        explainer.labels = names
    classes = by_class(paths, Path(folder), explainer.labels, explainer.classes) if by_folder else None
    order = range(len(paths))
    if len(paths) > limit:
        order = sorted(random.Random(seed).sample(order, limit))  # type: ignore[assignment]
    comparison = compare(explainer, [paths[k] for k in order], None if classes is None else [classes[k] for k in order])
    failed = [str(failure) for _, failure in comparison.failures]
    for text in failed:
        terminal.echo(f"Error: {text}", err=True)
    about = {"model": model, "folder": folder, "seed": seed, "failed": failed}
    show(comparison, as_json, about, f"{model!r}: {comparison.summary}")
    if comparison.failures:
        raise click.exceptions.Exit(ExitCode.FAILED)


def by_class(paths: Sequence[Path], root: Path, labels: Sequence[str] | None, classes: int) -> list[int]:
    """Read the class of each picture from its folder's name: an index, a label, or the rank among sorted folders.

    The rank is how Keras' and torchvision's folder readers number classes; it is used where there are no labels and as
    many folders as classes.

    Raises:
        LabelsError: a picture is not in a folder, or a folder does not name a class of the model.
    """
    relative = [path.relative_to(root) for path in paths]
    loose = [str(path) for path in relative if len(path.parts) < 2]
    if loose:
        raise LabelsError(
            f"{len(loose)} pictures lie in {str(root)!r} itself ({listing(loose, 3)}); with --by-folder each lies in "
            "the folder of its class"
        )
    folders = sorted({path.parts[0] for path in relative})
    numbers = {}
    wrong: list[str] = []
    for name in folders:
        for text in (name, name.replace("_", " ")):
            try:
                numbers[name] = int(targets.resolve(targets.by_text(text, labels), 1, classes, labels)[0])
                break
            except TargetError:
                continue
        if numbers.get(name, -1) < 0:
            wrong.append(name)
    if wrong and labels is None and len(folders) == classes:
        numbers = {name: number for number, name in enumerate(folders)}
    elif wrong:
        hint = "name them by label or index" if labels is not None else "give --labels, or name the folders by index"
        raise LabelsError(
            f"{listing(wrong, 5)} in {str(root)!r} name no class of the model ({classes} classes); {hint}"
        )
    return [numbers[path.parts[0]] for path in relative]
