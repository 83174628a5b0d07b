"""`onnxcam check`: check a model's gradients against finite differences, or its preprocessing."""

from __future__ import annotations

import random
from pathlib import Path

import click

from onnxcam import runtime
from onnxcam.cli import options, terminal
from onnxcam.cli.errors import ExitCode
from onnxcam.cli.report import show
from onnxcam.cli.truth import true_classes, truth_option
from onnxcam.errors import LayerError
from onnxcam.explain import pictures
from onnxcam.targets import labels as label_files

EPILOG = """\
\b
Examples:
  onnxcam check model.onnx
  onnxcam check model.onnx --provider cuda --samples 16 --json
  onnxcam check model.onnx --pictures photos/
  onnxcam check model.onnx --pictures photos/ --truth by-folder --labels labels.txt
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
@truth_option
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
@options.task_options
@options.provider_option
@options.fallback_option
@options.seed_option
@options.json_option
def check(
    model: str,
    samples: int,
    all_layers: bool,
    folder: str | None,
    truth: str | None,
    limit: int,
    labels: str | None,
    preprocess: str | None,
    input_size: list[int] | None,
    scores: str | None,
    kind: str | None,
    task: str | None,
    boxes_output: str | None,
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
    own) is tried on the same pictures instead. Where the true classes are given (--truth), accuracy and
    likelihood decide; otherwise how much the predictions say about the pictures, which needs pictures of several
    kinds. What does not show clearly is called undecided.

    Exit status: 0 nothing failed, 1 a picture cannot be read, 2 wrong usage, 3 a check failed (with --truth:
    another preprocessing is clearly better than the one in use) or the model is unusable, 4 no usable runtime or
    provider.
    """
    if folder is not None:
        _compare(
            model,
            folder,
            truth,
            limit,
            labels,
            preprocess,
            input_size,
            scores,
            kind,
            task,
            boxes_output,
            provider,
            allow_fallback,
            seed,
            as_json,
        )
        return
    if truth is not None or labels is not None or preprocess is not None:
        raise click.UsageError("--truth, --labels and --preprocess go with --pictures DIR.")
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
            task=task,
            boxes_output=boxes_output,
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
    truth: str | None,
    limit: int,
    labels_file: str | None,
    preprocess: str | None,
    input_size: list[int] | None,
    scores: str | None,
    kind: str | None,
    task: str | None,
    boxes_output: str | None,
    provider: str,
    allow_fallback: bool,
    seed: int,
    as_json: bool,
) -> None:
    from onnxcam.diagnose.preprocessing import compare
    from onnxcam.explain.explainer import Explainer

    collected = pictures.collect([folder], Path(folder) / ".none")
    if not collected.items:
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
            task=task,
            boxes_output=boxes_output,
            providers=runtime.parse_provider(provider),
            allow_fallback=allow_fallback,
        )
    except LayerError as error:
        raise options.not_explainable(error, ()) from error
    if names is not None:
        label_files.check_count(names, explainer.classes, f"labels file {labels_file!r}")
        explainer.labels = names
    classes = true_classes(truth, [folder], paths, explainer.labels, explainer.classes)
    order = range(len(paths))
    if len(paths) > limit:
        order = sorted(random.Random(seed).sample(order, limit))  # type: ignore[assignment]
    comparison = compare(explainer, [paths[k] for k in order], None if classes is None else [classes[k] for k in order])
    failed = [str(failure) for _, failure in (*collected.failures, *comparison.failures)]
    for text in failed:
        terminal.echo(f"Error: {text}", err=True)
    about = {"model": model, "folder": folder, "seed": seed, "failed": failed}
    show(comparison, as_json, about, f"{model!r}: {comparison.summary}")
    if failed:
        raise click.exceptions.Exit(ExitCode.FAILED)
