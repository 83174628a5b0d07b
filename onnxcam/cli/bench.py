"""`onnxcam bench`: measure what explaining costs on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcam import runtime
from onnxcam.cam.methods import Method
from onnxcam.cli import options, question, terminal
from onnxcam.cli.errors import ExitCode
from onnxcam.cli.progress import Progress
from onnxcam.cli.report import show
from onnxcam.cli.versions import versions
from onnxcam.explain import pictures

EPILOG = """\
\b
Examples:
  onnxcam bench model.onnx
  onnxcam bench model.onnx photos/ --method gradcam --method ablationcam --batch 1 --batch 16
  onnxcam bench model.onnx --provider cuda --seconds 60 --json > bench.json
"""


@click.command("bench", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.argument("named", nargs=-1, metavar="[PICTURE...]")
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=question.MethodName(),
    metavar="NAME",
    help="Method to measure; repeatable.  [default: gradcam; of a detector layercam, of a segmentation hirescam]",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows per call; repeatable.  [default: 1 and 8, or the model's fixed batch size]",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Rounds through all calls."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.0),
    default=30.0,
    show_default=True,
    metavar="S",
    help="Approximate duration; a round that has begun is finished.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Threads of ONNX Runtime.  [default: its own choice]"
)
@click.option("--layer", metavar="NAME", help="Target layer.  [default: the model's own]")
@options.preprocess_option
@options.input_size_option
@options.readout_options
@options.task_options
@options.provider_option
@options.fallback_option
@options.seed_option
@options.json_option
def bench(
    model: str,
    named: tuple[str, ...],
    methods: tuple[Method, ...],
    batches: tuple[int, ...],
    rounds: int,
    seconds: float,
    threads: int | None,
    layer: str | None,
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
    """Measure what explaining costs on this machine.

    Compares calls with the plain forward pass of MODEL (an image classifier, detector or the like in ONNX form) in the
    same run: prediction through the explainer, an explainable file as it is, each method's map, and the maps of a
    classifier's five best classes. Input is random unless PICTUREs are named; those are also explained from file to
    map.

    Latency (p50, p99) is that of one call; ratio is its latency relative to the forward pass, median over rounds. Peak
    memory is that of the process so far. On a busy machine rely on the ratios alone.

    Exit status: 0 measured, 1 a picture cannot be read (the rest are measured), 2 wrong usage or unknown layer or
    method, 3 unusable model, 4 no usable runtime or execution provider.
    """
    from onnxcam.diagnose import cost

    inputs = pictures.collect(named, Path(model).parent / ".none") if named else pictures.Collection()
    if inputs.failures and not inputs.items:
        raise inputs.failures[0][1]
    with Progress(1) as progress:
        report = cost.bench(
            model,
            [method.name for method in dict.fromkeys(methods)],
            pictures=[item.source for item in inputs.items],
            batches=batches,
            rounds=rounds,
            seconds=seconds,
            layer=layer,
            preprocess=preprocess,
            input_size=input_size,
            scores=scores,
            kind=kind,
            task=task,
            boxes_output=boxes_output,
            providers=runtime.parse_provider(provider),
            threads=threads,
            allow_fallback=allow_fallback,
            seed=seed,
            progress=progress.step,
        )
    failed = [str(error) for error in (*(error for _, error in inputs.failures), *report.failures)]
    for text in failed:
        terminal.echo(f"Error: {text}", err=True)
    show(report, as_json, {"model": model, "versions": versions(), "failed": failed})
    if failed:
        raise click.exceptions.Exit(ExitCode.FAILED)
