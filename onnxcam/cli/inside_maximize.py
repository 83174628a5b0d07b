"""`onnxcam inside maximize`: make the picture that a channel or a class responds to most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcam.cli import inside_options, options, terminal
from onnxcam.cli.errors import ExitCode, sentence_and_code
from onnxcam.cli.progress import Bar
from onnxcam.errors import OnnxcamError
from onnxcam.explain import pictures as picture_names
from onnxcam.targets.classes import by_text

if TYPE_CHECKING:
    from onnxcam.inside.maximization import Maximized, Settings
    from onnxcam.inside.scalar import Scalar
    from onnxcam.inside.subject import Subject

REPORT = "maximize.json"

EPILOG = """\
\b
Examples:
  onnxcam inside maximize model.onnx -o out --class tabby
  onnxcam inside maximize model.onnx -o out --layer block3_conv3 --channel 7 --channel 12 --pictures photos/
  onnxcam inside maximize model.onnx -o out --class tabby --contrast 'tiger cat' --start cat.jpg
  onnxcam inside maximize model.onnx --class tabby --as-onnx ascent.onnx
"""


def _whole(text: str, flag: str) -> int:
    if not text.strip().isdecimal() or len(text) > 9:
        raise click.UsageError(f"{flag} {text!r}: expected an index, counted from 0.")
    return int(text)


@click.command("maximize", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", metavar="DIR", help="Folder for the results; it is made if need be.")
@click.option("--layer", metavar="NAME", help="Layer of the channels.  [default: the model's own]")
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="K",
    help="Channel of the layer, counted from 0; repeatable. 3+7: both at once.",
)
@click.option("--place", metavar="ROW,COLUMN", help="A place on the channel's map instead of its mean.")
@click.option(
    "--class", "--target", "classes", multiple=True, metavar="CLASS", help="Class, index or label; repeatable."
)
@click.option("--contrast", metavar="K|CLASS", help="Channel or class whose value is subtracted.")
@click.option("--steps", type=click.IntRange(min=1), default=256, show_default=True, help="Steps of the ascent.")
@click.option("--start", default="noise", show_default=True, metavar="noise|PICTURE", help="What it begins with.")
@click.option(
    "--parametrization",
    type=click.Choice(["fourier", "cosine", "pixels"]),
    help="What is changed: the picture's spectrum, the same as cosines, or its pixels.  [default: fourier; cosine with "
    "--as-onnx]",
)
@click.option("--learning-rate", type=float, default=0.1, show_default=True, metavar="R", help="Of Adam.")
@click.option(
    "--jitter",
    type=click.IntRange(min=0),
    metavar="N",
    help="Shift the picture at each step by up to N pixels.  [default: 1/28 of its shorter side]",
)
@click.option("--scale", type=float, default=0.0, metavar="S", help="Change its size at each step: 0.1 for 0.9 to 1.1.")
@click.option("--rotation", type=float, default=0.0, metavar="A", help="Turn it at each step by up to A degrees.")
@click.option("--l2", type=float, default=0.0, metavar="W", help="Weight of the mean squared distance from grey.")
@click.option("--tv", type=float, default=0.0, metavar="W", help="Weight of the mean total variation.")
@click.option(
    "--pictures",
    "named",
    multiple=True,
    metavar="DIR",
    help="Real pictures to compare with, a folder, a file or a glob; repeatable.",
)
@click.option(
    "--as-onnx", "file", metavar="F.onnx", help="Write the ascent itself as a model, whose Loop runs in any runtime."
)
@inside_options.model_options
@options.seed_option
@options.json_option
def maximize(
    model: str,
    output: str | None,
    layer: str | None,
    channels: tuple[str, ...],
    place: str | None,
    classes: tuple[str, ...],
    contrast: str | None,
    steps: int,
    start: str,
    parametrization: str | None,
    learning_rate: float,
    jitter: int | None,
    scale: float,
    rotation: float,
    l2: float,
    tv: float,
    named: tuple[str, ...],
    file: str | None,
    opening: dict[str, Any],
    seed: int,
    as_json: bool,
) -> None:
    """Make the picture that a channel or a class responds to most.

    Gradient ascent on MODEL from noise or from a picture, for each --channel of the --layer or each --class. Each
    picture is written as it is fed to the model, but for scale, mean and standard deviation:
    maximize_LAYER_CHANNEL.png or maximize_CLASS.png; its value is verified by the plain model. With --pictures the real
    pictures with the highest values stand beside it, with the part that the neuron sees (maximize_..._real.png), and a
    warning says where the made picture takes another path through the network than real ones. Ctrl-C keeps the best so
    far. maximize.json holds every number.

    Exit status: 0 all made, 1 some could not be, or a real picture cannot be read, 2 wrong usage or unknown class,
    layer or channel, 3 unusable model, 4 no usable runtime or execution provider, 130 interrupted.
    """
    from onnxcam.inside import maximization
    from onnxcam.inside.subject import Subject

    if output is None and file is None:
        raise click.UsageError("no output was named: -o DIR for pictures, or --as-onnx F.onnx for a model.")
    if bool(channels) == bool(classes):
        raise click.UsageError("name what to maximise: --channel K of a --layer, or --class C, and not both.")
    if classes and (layer is not None or place is not None):
        raise click.UsageError("--layer and --place belong to --channel; a --class has neither.")
    where = None if place is None else [_whole(part, "--place") for part in place.split(",")]
    collected = picture_names.collect(list(named), Path(output or ".")) if named else None
    if collected is not None and collected.failures:
        raise collected.failures[0][1]
    if collected is not None and not collected.items:
        raise click.UsageError("--pictures names a folder without pictures.")
    explainer = inside_options.opened(model, opening)
    for item in () if collected is None else collected.items:
        if isinstance(item.source, Path) and not item.source.exists():
            explainer.preparation.read(item.source)  # raises, and names the folder that it was looked for in
    subject = Subject(explainer, opening["input_size"])
    settings = maximization.Settings.of(
        subject.size,
        steps=steps,
        parametrization=parametrization or ("cosine" if file is not None else "fourier"),
        learning_rate=learning_rate,
        jitter=jitter,
        scale=scale,
        rotation=rotation,
        l2=l2,
        tv=tv,
        seed=seed,
    )
    scalars = list(_scalars(subject, layer, channels, where, classes, contrast))
    record: dict[str, Any] = {"model": model, "results": [], "failures": []}
    if file is not None:
        record["file"] = _write_file(file, subject, scalars, settings, as_json)
    if output is None:
        if as_json:
            options.print_json(record)
        return
    folder = inside_options.folder_of(output)
    sources = None if collected is None else [item.source for item in collected.items]
    failure: OnnxcamError | None = None
    interrupted = unreadable = False
    for scalar, stem in zip(scalars, _stems(scalars), strict=True):
        try:
            with Bar() as bar:
                result = maximization.climb(
                    subject, scalar, subject.ascent(scalar), settings, start=start, pictures=sources, progress=bar.to
                )
        except OnnxcamError as error:
            failure = error
            record["failures"].append({"title": scalar.title, "error": str(error)})
            if len(scalars) > 1:
                terminal.echo(f"Error: {error}", err=True)
            continue
        files = result.save(folder, stem)
        record["results"].append(result.describe() | {"files": files})
        if not as_json:
            terminal.echo(_line(result, folder / files["picture"]))
        for warning in result.warnings:
            terminal.echo(f"Warning: {warning}", err=True)
        unreadable = unreadable or bool(result.comparison is not None and result.comparison.failures)
        interrupted = result.interrupted
        if interrupted:
            break
    inside_options.write_json(folder / REPORT, record)
    if as_json:
        options.print_json(record)
    if interrupted:
        terminal.echo("Interrupted.", err=True)
        raise click.exceptions.Exit(ExitCode.INTERRUPTED)
    if failure is not None:
        if len(scalars) == 1:
            raise failure
        code = sentence_and_code(failure)[1] if not record["results"] else ExitCode.FAILED
        raise click.exceptions.Exit(code)
    if unreadable:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _scalars(
    subject: Subject,
    layer: str | None,
    channels: Sequence[str],
    place: Sequence[int] | None,
    classes: Sequence[str],
    contrast: str | None,
) -> Iterator[Scalar]:
    """What each flag names, all checked before any work is done."""
    from onnxcam.inside.maximization import scalar_of

    labels = subject.explainer.labels
    for text in classes:
        other = None if contrast is None else by_text(contrast, labels)
        yield scalar_of(subject, None, None, None, by_text(text, labels), other)
    for text in channels:
        indices = [_whole(part, "--channel") for part in text.split("+")]
        other = None if contrast is None else _whole(contrast, "--contrast")
        yield scalar_of(subject, layer, indices if len(indices) > 1 else indices[0], place, None, other)


def _stems(scalars: Sequence[Scalar]) -> list[str]:
    """A file stem for each, distinct without case: labels may share their letters."""
    stems: list[str] = []
    for scalar in scalars:
        stem = f"maximize_{scalar.stem}"
        while stem.casefold() in (other.casefold() for other in stems):
            stem = f"{stem}_{'_'.join(map(str, scalar.channels))}"
        stems.append(stem)
    return stems


def _write_file(
    file: str, subject: Subject, scalars: Sequence[Scalar], settings: Settings, quiet: bool
) -> dict[str, Any]:
    """Write the ascent as a model."""
    from onnxcam.graph.load import save
    from onnxcam.inside.loop_file import loop_model

    if len(scalars) > 1:
        raise click.UsageError("--as-onnx writes one ascent: name one channel or one class.")
    model = loop_model(subject, scalars[0], settings)
    save(model, file)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    jitter = settings.transformation.jitter
    if not quiet:
        terminal.echo(
            f"{scalars[0].title}: {settings.steps} steps ({settings.parametrization}) -> {file}; feed start, float32 "
            f"{shape}, normal random numbers times 0.3, and jitter, "
            f"int64 [{settings.steps}, 2], whole numbers from {-jitter} to {jitter}"
        )
    return {"path": file, "objective": scalars[0].describe(), "settings": settings.describe()}


def _line(result: Maximized, path: Path) -> str:
    """The one answer."""
    through = result.verified_through_preprocessing
    parts = [f"plain model {result.verified:.5g}", f"with its resizing and cropping {through:.5g}"]
    if result.natural is not None and result.comparison is not None:
        count = result.comparison.count
        best = f"{result.natural.value:.5g} ({result.natural.name})"
        parts.append(f"best of {count} real picture{'s' * (count > 1)} {best}")
    reached = f"{result.reached:.5g} after {len(result.history)} steps"
    return f"{result.scalar.title}: {reached}; {', '.join(parts)} -> {path}"
