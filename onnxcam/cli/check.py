"""`onnxcam check`: the gradients of a model against finite differences, in the runtime itself."""

from __future__ import annotations

import click

from onnxcam import runtime
from onnxcam.cli import options
from onnxcam.cli.errors import ExitCode
from onnxcam.errors import LayerError

EPILOG = """\
\b
Examples:
  onnxcam check model.onnx
  onnxcam check model.onnx --provider cuda --samples 16 --json
"""


@click.command("check", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.option(
    "--samples",
    type=click.IntRange(1, 1024),
    default=4,
    show_default=True,
    metavar="N",
    help="Noise pictures the numbers are taken on.",
)
@options.provider_option
@options.fallback_option
@options.seed_option
@options.json_option
def check(model: str, samples: int, provider: str, allow_fallback: bool, seed: int, as_json: bool) -> None:
    """Check a model's gradients against finite differences.

    MODEL is an explainable model, or any image classifier in ONNX form, which is made explainable in memory first.
    Predictions are compared with the plain model, gradients with central differences of the scores, both in the
    runtime and on the execution provider that will serve them. Of what is found, each line says ok, failed, unsure
    (the differences are too noisy to tell) or note.

    Exit status: 0 nothing failed, 3 a check failed or the model is unusable, 4 no usable runtime or provider.
    """
    import onnxcam.check

    try:
        report = onnxcam.check.check(
            model,
            providers=runtime.parse_provider(provider),
            samples=samples,
            seed=seed,
            allow_fallback=allow_fallback,
        )
    except LayerError as error:
        raise options.not_explainable(error, ()) from error
    if as_json:
        options.print_json(report.to_dict() | {"path": model, "seed": seed})
    else:
        for line in report.lines():
            click.echo(line)
    if not report.passed:
        failed = [finding.name for finding in report.findings if finding.status == "failed"]
        click.echo(f"Error: {model!r} failed: {', '.join(failed)}", err=True)
        raise click.exceptions.Exit(ExitCode.MODEL)
