"""`onnxcam explain`: explain what a model sees in pictures."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from onnxcam import image, runtime
from onnxcam.cam.methods import Method, find
from onnxcam.cam.registry import USUAL, default_method
from onnxcam.cli import options, question_options, terminal
from onnxcam.cli.background import Background
from onnxcam.cli.opening import open_explainer
from onnxcam.cli.question import MethodName, ask, check_early
from onnxcam.cli.summary import SUMMARY, Run, describe
from onnxcam.cli.truth import check_truth, known_classes, truth_option
from onnxcam.documents import render
from onnxcam.errors import InputError, OutputError, listing
from onnxcam.explain import pictures
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.question import Question
from onnxcam.explain.saving import FILES, FORMATS, Drawing, check_files
from onnxcam.graph.file import open_model
from onnxcam.image import arrays
from onnxcam.image.opencv import import_cv2
from onnxcam.image.text import Font
from onnxcam.targets.tasks import Embed

if TYPE_CHECKING:
    from onnxcam.explain.gallery import Gallery

EPILOG = """\
\b
Examples:
  onnxcam explain model.onnx cat.jpg -o out
  onnxcam explain model.onnx photos/ 'more/**/*.png' -o out --top 3
  onnxcam explain resnet50.onnx cat.jpg -o out --preprocess imagenet --labels labels.txt --target tabby
  onnxcam explain model.onnx cat.jpg -o out --target tabby --contrast 'tiger cat'
  onnxcam explain model.onnx cat.jpg -o out --method gradcam --method hirescam
  onnxcam explain detector.onnx street.jpg -o out --box 0 --box label:dog --box at:120,80
  onnxcam explain segmentation.onnx street.jpg -o out --target road --region 0,200,640,480
  onnxcam explain embedding.onnx cat.jpg -o out --like other.jpg
  onnxcam explain model.onnx photos/ -o out --files overlay,json --format jpeg
  find photos -name '*.jpg' -print0 | onnxcam explain model.onnx --files-from - -o out --json > out.json
"""


@click.command("explain", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.argument("named", nargs=-1, metavar="PICTURE...")
@click.option("-o", "folder_name", metavar="DIR", help="Folder for the results; it is made if need be.  [required]")
@click.option(
    "--output", metavar="DIR|NAME[INDEX]", help="The folder, as -o; beside -o, which of several values, as --value."
)
@question_options.files_from_option
@question_options.target_option
@click.option("--top", type=click.IntRange(min=1), metavar="K", help="Explain the K best classes of each picture.")
@question_options.contrast_option
@question_options.probability_option
@question_options.subject_options
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=MethodName(),
    metavar="NAME",
    help="Method; repeatable, for maps side by side in methods.png. `onnxcam methods` lists them.  [default: gradcam; "
    "of a detector layercam, of a segmentation hirescam]",
)
@question_options.settings_option
@options.layer_option("Target layer; several are fused (--fusion).  [default: the model's own]")
@question_options.fusion_option
@question_options.smooth_option
@click.option(
    "--side-by-side",
    is_flag=True,
    help="Also show several layers side by side: layers.png, and the files of each layer in layers/LAYER/.",
)
@options.labels_option
@options.preprocess_option
@options.input_size_option
@options.range_option
@options.bands_option
@options.readout_options
@options.task_options
@question_options.normalize_option
@question_options.alpha_option
@question_options.colormap_option
@click.option(
    "--files",
    "files",
    metavar="LIST",
    callback=lambda ctx, param, value: _files(value),
    help=f"Files to write for each picture, separated by commas: some of {', '.join(FILES)}; panel stands for "
    "methods and layers side by side too.  [default: all]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="png",
    show_default=True,
    help="Format of colour pictures, and the ending of their names; the grey map is always a PNG.",
)
@click.option(
    "--compress/--no-compress",
    default=None,
    help="Write smaller picture files, which takes longer.  [default: for a single picture]",
)
@truth_option
@click.option(
    "--page",
    is_flag=True,
    help="Also write DIR/index.html, a page of all pictures to search and filter; with --truth right against wrong.",
)
@click.option(
    "--activation-layers",
    metavar="A,B",
    help="Also write the feature maps of these layers, as `onnxcam inside features` does.",
)
@click.option(
    "--max-channels", type=click.IntRange(min=1), default=64, show_default=True, help="Channels shown of each of them."
)
@options.provider_option
@options.fallback_option
@options.rows_option
@options.seed_option
@options.json_option
def explain(
    model: str,
    named: tuple[str, ...],
    folder_name: str | None,
    output: str | None,
    files_from: str | None,
    target: str | None,
    top: int | None,
    contrast: str | None,
    probability: bool,
    boxes: tuple[str, ...],
    part: str | None,
    region: str | None,
    like: str | None,
    value: str | None,
    methods: tuple[Method, ...],
    settings: tuple[str, ...],
    layers: tuple[str, ...],
    fusion: str,
    smooth: tuple[str, ...],
    side_by_side: bool,
    labels: str | None,
    preprocess: str | None,
    input_size: list[int] | None,
    value_range: list[float] | None,
    bands: list[int] | None,
    scores: str | None,
    kind: str | None,
    task: str | None,
    boxes_output: str | None,
    normalize: str,
    alpha: float | None,
    colormap: str,
    files: frozenset[str] | None,
    form: str,
    compress: bool | None,
    truth: str | None,
    page: bool,
    activation_layers: str | None,
    max_channels: int,
    provider: str,
    allow_fallback: bool,
    rows: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Explain what a model sees in pictures.

    Shows which pixels of each PICTURE speak for the class that MODEL predicts, or for another. MODEL is an explainable
    model (from `onnxcam export`) or any image classifier in ONNX form; or a detector (--box), a segmentation
    (--region), an embedding (--like) or several values (--value). PICTURE is a file (an array,
    .npy, too), a folder (searched with its subfolders), a glob in quotes, or '-' for one encoded picture on standard
    input.

    One picture is written into DIR itself, several into DIR/NAME/: input.png, METHOD_grayscale.png,
    METHOD_heatmap.png, METHOD_overlay.png, panel.png and explanation.json (with several methods each one's files, and
    methods.png); DIR/analysis_summary.json is about all of them.
    The five best predictions of each go to standard output. A picture that fails is named and does not stop the rest.
    Of several pictures, one without such a box or region is named too, and is no failure.

    Exit status: 0 all explained, 1 some or all pictures failed, 2 wrong usage or unknown class, layer or method,
    3 unusable model, 4 no usable runtime or execution provider.
    """
    started = time.monotonic()
    named_methods = list(dict.fromkeys(methods))
    if folder_name is not None and output is not None:
        if value is not None:
            raise click.UsageError("--output beside -o and --value both name the value to explain; give one of them.")
        value = output
    folder_name = output if folder_name is None else folder_name
    if folder_name is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    names = list(named) if files_from is None else [*named, *pictures.read_list(files_from)]
    if files_from == pictures.STDIN and pictures.STDIN in named:
        raise click.UsageError("standard input is either a picture (-) or the list (--files-from -), not both.")
    if not names:
        raise click.UsageError("no PICTURE was given: name files, folders, globs, '-' or --files-from LIST.")
    flags: dict[str, Any] = {
        "target": target,
        "contrast": contrast,
        "probability": probability,
        "box": list(boxes) or None,
        "part": part,
        "region": region,
        "like": like,
        "output": value,
        "top": top,
        "method": named_methods or None,
        "option": settings,
        "layer": layers,
        "side_by_side": side_by_side,
        "normalize": normalize,
        "fusion": fusion,
        "smooth": smooth,
        "seed": seed,
    }
    sought = named_methods or [find(USUAL)]  # once: whether it is the model's default is known when it is open
    check_early(labels, **flags | {"method": sought})
    check_truth(truth, names)
    folder = Path(folder_name)
    collected = pictures.collect(names, folder)
    if not collected.items and len(collected.failures) == 1:
        raise collected.failures[0][1]
    many = len(collected.items) > 1
    digest = Background(_digest, model)
    runtime.import_onnxruntime()  # before the threads import it too: imports wait for each other, loading does not
    opening = Background(
        open_explainer,
        model,
        layers,
        labels,
        preprocess,
        sought,
        provider,
        allow_fallback,
        many,
        input_size=input_size,
        value_range=value_range,
        bands=bands,
        sources=[item.source for item in collected.items],
        scores=scores,
        kind=kind,
        rows=rows,
        task=task,
        boxes_output=boxes_output,
    )
    _warm(many, files is None or "panel" in files)
    explainer = opening.result()
    if named_methods or default_method(explainer.terms.readout) == USUAL:
        flags["method"] = sought
    question = ask(explainer.terms, **with_embeddings(explainer, flags))
    check(explainer, question)
    compressed = not many if compress is None else compress
    style = Drawing.of(alpha, colormap, compressed, files, form)
    if provider != "auto" and allow_fallback:
        terminal.echo(f"running on {explainer.providers[0]}", err=True)
    features = None if activation_layers is None else _features(explainer, activation_layers, max_channels)
    ready(folder)
    terminal.warn(explainer.warnings)
    classes = None if truth is None else _true_classes(truth, named, collected, explainer)
    gallery = _gallery(model) if page else None
    run = Run(folder, collected, as_json, classes, gallery)
    interrupted, unwritten = True, 0
    try:
        run.explain(explainer, question, style)
        unwritten = 0 if features is None else features(collected, folder)
        interrupted = False
    finally:
        try:
            about = describe(model, explainer, question, style, digest.result())
            summary = run.summary(about, time.monotonic() - started, interrupted, explainer)
            with contextlib.suppress(OSError):  # others may have removed it meanwhile
                folder.mkdir(parents=True, exist_ok=True)
            image.write_bytes(folder / SUMMARY, render(summary))
        finally:
            run.write_page()
    terminal.warn(summary["warnings"][len(explainer.warnings) :])
    if as_json:
        options.print_json(summary)
    counts = summary["counts"]
    if counts["found"] > 1:
        absent = f", {counts['absent']} without what was to be explained," if counts.get("absent") else ""
        terminal.echo(
            f"{counts['explained']} of {counts['found']} explained{absent} in {summary['duration_s']:.1f} s on "
            f"{explainer.providers[0]}; see {folder / SUMMARY}",
            err=True,
        )
    run.require_printed()
    if counts["failed"] or unwritten:
        raise click.exceptions.Exit(1)


def with_embeddings(explainer: Explainer, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags with what an embedding is compared with, a picture or a stored vector, as the numbers of one.

    Raises:
        PictureError: it cannot be read, or is no vector.
    """
    if flags.get("like") is None:
        return flags
    names = [name for name in ("like", "contrast") if isinstance(flags.get(name), str)]
    return flags | {name: _embedding(explainer, flags[name]) for name in names}


def _embedding(explainer: Explainer, path: str) -> list[float]:
    """The numbers of a stored vector, or of the embedding of a picture; any of a model that is refused for it."""
    if not isinstance(explainer.terms.readout.task, Embed):
        return [1.0]
    if path.lower().endswith(".npy"):
        return [float(number) for number in arrays.read_vector(path)]
    _, tensor, _ = explainer.prepare(path)
    return [float(number) for number in explainer.batch_scores(tensor)[0]]


def _features(explainer: Explainer, names: str, max_channels: int) -> Callable[[pictures.Collection, Path], int]:
    """What writes the feature maps of layers beside each picture's explanation, and returns how many failed.

    Raises:
        LayerError: no such layer, or one that is neither a map nor tokens on a grid.
    """
    from onnxcam.cli import inside_features

    return inside_features.writer(explainer, names, max_channels)


def _true_classes(
    truth: str, named: Sequence[str], collected: pictures.Collection, explainer: Explainer
) -> dict[str, int]:
    """True classes by the picture's name, of those that have one."""
    paths = {item.name: item.source for item in collected.items if isinstance(item.source, Path)}
    indices = known_classes(truth, named, list(paths.values()), explainer.labels, explainer.classes)
    classes = {name: index for name, index in zip(paths, indices, strict=True) if index is not None}
    if len(classes) < len(collected.items):
        missing = [item.name for item in collected.items if item.name not in classes]
        terminal.warn(
            [f"{len(missing)} of {len(collected.items)} pictures have no class in {truth!r}: {listing(missing, 3)}"]
        )
    return classes


def _gallery(model: str) -> Gallery:
    from onnxcam.explain.gallery import Gallery

    return Gallery(f"Explained by {Path(model).name}")


def _files(names: str | None) -> frozenset[str] | None:
    """The files that `--files` names.

    Raises:
        UsageError: an unknown name.
    """
    try:
        return None if names is None else check_files(names)
    except InputError as error:
        raise click.UsageError(f"--{error}.") from None


def _digest(model: str) -> str:
    with open_model(Path(model)) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def _warm(many: bool, panel: bool) -> None:
    """Load the libraries that read and draw pictures, while the model is loaded."""
    with contextlib.suppress(Exception):  # an error is raised again where they are needed
        cv2 = import_cv2()
        if many:
            cv2.setNumThreads(1)  # pictures are drawn side by side on every core already
        elif panel:
            Font(19, 600).width("0")  # OpenCV loads its fonts once for each thread, and a single picture has this one


def ready(folder: Path) -> None:
    """Make the output folder and check that it can be written to, before any work is done.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        blocked = next((p for p in (folder, *folder.parents) if p.is_file()), None)
        reason = f"{str(blocked)!r} is a file" if blocked is not None else error.strerror
        raise OutputError(f"the folder {str(folder)!r} cannot be made ({reason}); choose another with -o") from error
    probe = folder / SUMMARY
    if probe.is_dir():
        raise OutputError(f"{str(probe)!r} is a folder, in the way of the summary; choose another output folder")
    image.write_bytes(folder / ".writable", b"")
    (folder / ".writable").unlink(missing_ok=True)


def check(explainer: Explainer, question: Question) -> None:
    """Find out on a grey picture whether what the file lacks can be added in memory, before a picture is read.

    Raises:
        TargetError, LayerError, MethodError: as their names say.
    """
    methods = {method.name for method in question.methods}
    beyond = not methods <= set(explainer.methods) or not set(question.layers) <= set(explainer.layers)
    if not beyond and not question.smooth and not question.lacks_target:
        return
    grey = _grey(explainer)
    quick = tuple(method for method in question.methods if not method.long)
    if quick and question.terms.readout.task is None:  # which box or region there is depends on the picture
        deque(explainer.answer(question.probe(quick), [grey]), maxlen=0)
    else:
        explainer.examine(explainer.prepare(grey)[1], list(question.layers))


def _grey(explainer: Explainer) -> Any:
    import numpy as np

    preprocess, entry = explainer.preprocess, explainer.manifest["input"]
    if preprocess is None:  # the pictures are the model's own input
        sides = [side if isinstance(side, int) else 224 for side in entry["shape"][1:]]
        return np.full((1, *sides), 0.5 if entry["dtype"].startswith("float") else 128, entry["dtype"])
    size = preprocess.output_size or (224, 224)
    values = np.full((*size, preprocess.channels), 128.0, np.float32) if preprocess.color == "bands" else None
    return image.Picture(np.full((*size, 3), 128, np.uint8), values=values)
