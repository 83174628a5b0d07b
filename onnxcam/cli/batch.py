"""`onnxcam batch`: predict and explain any number of pictures into a table of Parquet files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcam import runtime
from onnxcam.cam.methods import Method, find
from onnxcam.cam.registry import USUAL, default_method
from onnxcam.cli import options, question_options, terminal
from onnxcam.cli.errors import about
from onnxcam.cli.progress import Progress
from onnxcam.cli.question import MethodName, ask, check_early
from onnxcam.cli.truth import BY_FOLDER, check_truth, lookup, table_bytes, truth_option
from onnxcam.cli.versions import versions
from onnxcam.errors import LayerError, PictureError
from onnxcam.explain.pictures import STDIN
from onnxcam.explain.preparation import takes_all
from onnxcam.fleet import listing
from onnxcam.fleet.columns import import_pyarrow
from onnxcam.fleet.engines import ENGINES, LOCAL, PICTURE
from onnxcam.targets import labels as label_files
from onnxcam.targets.tasks import DETECTION

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer
    from onnxcam.fleet import Explain
    from onnxcam.fleet.run import Run

_NAMED = 100  # failures in the summary

EPILOG = """\
\b
Examples:
  onnxcam batch model.onnx photos/ -o table.parquet
  onnxcam batch model.onnx photos/ -o table.parquet --when "confidence < 0.6" --truth by-folder
  onnxcam batch model.onnx photos/ -o table.parquet --resume
  onnxcam batch model.onnx photos/ -o table.parquet --engine ray --json
  find photos -name '*.jpg' -print0 | onnxcam batch model.onnx --files-from - -o table.parquet
"""


@click.command("batch", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.argument("named", nargs=-1, metavar="PICTURES...")
@click.option(
    "-o", "--output", required=True, metavar="DIR", help="Folder for the table, by habit NAME.parquet; new or empty."
)
@question_options.files_from_option
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run that was stopped in DIR, or begin one. Settings must be the same.",
)
@click.option(
    "--when",
    default="always",
    show_default=True,
    metavar="CONDITION",
    help="Explain only such rows, as 'confidence < 0.6'; the others have predictions. Or always, never.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default=LOCAL,
    show_default=True,
    help="What runs it: this process, or Ray, Daft or Spark, which must be installed.",
)
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes of the engine.")
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Threads of each process.  [default: its cores]"
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows in each run of MODEL.  [default: as MODEL fixes them, else 1 on a processor and 16 on a GPU]",
)
@click.option(
    "--rows-per-part",
    type=click.IntRange(min=1, max=1_000_000),
    default=4096,
    show_default=True,
    help="Rows in a file of the table: what is lost at most when it is stopped.",
)
@question_options.target_option
@question_options.contrast_option
@question_options.probability_option
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes in the column `top`.")
@click.option(
    "--method",
    type=MethodName(),
    metavar="NAME",
    help="Method. `onnxcam methods` lists them.  [default: gradcam; of a detector layercam, of a segmentation "
    "hirescam]",
)
@question_options.settings_option
@options.layer_option("Target layer; several are fused (--fusion).  [default: the model's own]")
@question_options.fusion_option
@question_options.smooth_option
@options.labels_option
@options.preprocess_option
@options.input_size_option
@options.range_option
@options.bands_option
@options.readout_options
@options.task_options
@click.option("--overlay", is_flag=True, help="Add a column of overlays, PNG pictures of the size of each picture.")
@question_options.normalize_option
@question_options.alpha_option
@question_options.colormap_option
@truth_option
@options.provider_option
@options.fallback_option
@options.seed_option
@options.json_option
def batch(
    model: str,
    named: tuple[str, ...],
    output: str,
    files_from: str | None,
    resume: bool,
    when: str,
    engine: str,
    workers: int | None,
    threads: int | None,
    rows: int | None,
    rows_per_part: int,
    target: str | None,
    contrast: str | None,
    probability: bool,
    top_k: int,
    method: Method | None,
    settings: tuple[str, ...],
    layers: tuple[str, ...],
    fusion: str,
    smooth: tuple[str, ...],
    labels: str | None,
    preprocess: str | None,
    input_size: list[int] | None,
    value_range: list[float] | None,
    bands: list[int] | None,
    scores: str | None,
    kind: str | None,
    task: str | None,
    boxes_output: str | None,
    overlay: bool,
    normalize: str,
    alpha: float | None,
    colormap: str,
    truth: str | None,
    provider: str,
    allow_fallback: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Predict and explain any number of pictures into a table of Parquet files.

    A row per picture: its path, prediction, confidence, the statistics of its map, the map at the layer's own size,
    and its error if it failed. PICTURES are files, folders (with their subfolders), globs in quotes, or a list
    (--files-from). The table is a folder of Parquet files, in the order of the pictures; needs onnxcam[parquet].

    Each file is written whole, or it is not there. A run that is stopped, by whatever, goes on with --resume: no
    picture is lost, and none is there twice.

    Exit status: 0 all done, 1 some or all pictures failed, or the table cannot be written, 2 wrong usage or unknown
    class, layer or method, 3 unusable model, 4 no usable runtime or engine, or no pyarrow.
    """
    from onnxcam.fleet import Explain, run, tables

    start = time.monotonic()
    import_pyarrow()
    names = _names(named, files_from)
    flags: dict[str, Any] = {
        "target": target,
        "contrast": contrast,
        "probability": probability,
        "method": None if method is None else [method],
        "option": settings,
        "layer": layers,
        "normalize": normalize,
        "fusion": fusion,
        "smooth": smooth,
        "seed": seed,
    }
    check_early(labels, **flags | {"method": [method or find(USUAL)]})
    check_truth(truth, named if files_from is None else [])
    folder = Path(output)
    common: dict[str, Any] = {
        "when": when,
        "column": PICTURE,
        "rows": rows,
        "threads": threads,
        "top_k": top_k,
        "overlay": overlay,
        "alpha": alpha,
        "colormap": colormap,
        "labels": None if labels is None else label_files.read(labels),
        "preprocess": preprocess,
        "input_size": input_size,
        "value_range": None if value_range is None else (value_range[0], value_range[1]),
        "bands": bands,
        "scores": scores,
        "kind": kind,
        "task": task,
        "boxes_output": boxes_output,
        "providers": runtime.parse_provider(provider),
        "allow_fallback": allow_fallback,
        "layer": list(dict.fromkeys(layers)) or None,
    }
    if method is not None:
        common["method"] = method.name
    try:
        explainer = Explain(model, **common).explainer
    except LayerError as error:
        raise options.not_explainable(error, layers) from error
    if method is None and default_method(explainer.terms.readout) == USUAL:
        flags["method"] = [find(USUAL)]  # of which options may have been set
    question = ask(explainer.terms, **flags)
    if question.layer_named:  # else each box has its own
        common["layer"] = list(question.layers) if question.several_layers else question.layers[0]
    answering = {"normalize": normalize, "fusion": fusion, "smooth": smooth, "seed": seed, **question.options}
    explain = Explain(model, **common, target=question.targets[0], **answering)
    terms = run.Terms(explain.sha256, _settings(explain, truth), rows_per_part)
    if provider != "auto" and allow_fallback:
        terminal.echo(f"running on {explainer.providers[0]}", err=True)
    with run.Folder(folder) as place:
        _check_new(folder, resume)
        if resume and set(place.content()) - {listing.NAME}:
            job = run.resume(place, names(), terms)
        else:
            name = str((explainer.manifest.get("source") or {}).get("name") or Path(model).name)
            job = run.begin(place, names(), terms, name=name, labels=explainer.labels)
        try:
            _check_pictures(job, explainer)
            terminal.warn([*explainer.warnings, *job.notes])
            known_class, unknown = None, 0
            if truth is not None:
                known_class, unknown = lookup(truth, job.listing, explainer.labels, explainer.classes)
                _tell_unknown(job, truth, unknown)
            before = job.counts.rows
            _write(job, explain, engine, workers, known_class)
        except BaseException:
            _tell_stopped(job)
            place.withdraw(job)
            raise
        summary = _summary(job, explain, model, engine, before, time.monotonic() - start, unknown)
        job.finish(summary)
    counts = summary["counts"]
    if as_json:
        options.print_json(summary)
    else:
        speed = (counts["rows"] - before) / max(summary["duration_s"], 1e-3)
        terminal.echo(
            f"{folder}: {terminal.counted(counts['rows'], 'row')} in {terminal.counted(summary['parts'], 'part')}, "
            f"{counts['explained']:,} explained, "
            f"{counts['failed']:,} failed; {counts['rows'] - before:,} now, in {summary['duration_s']:.1f} s "
            f"({speed:.3g}/s) on {explainer.providers[0]}; see {tables.SUMMARY}"
        )
    if counts["failed"] or counts["left_out"]:
        raise click.exceptions.Exit(1)


def _names(named: tuple[str, ...], files_from: str | None) -> Callable[[], Iterator[str]]:
    """What makes an iterator over the names of pictures.

    Raises:
        UsageError: there are none, or standard input is a picture.
    """
    if STDIN in named:
        raise click.UsageError("a table is made of files: `onnxcam explain` takes a picture on standard input (-).")
    if not named and files_from is None:
        raise click.UsageError("no PICTURES were given: name files, folders, globs or --files-from LIST.")

    def names() -> Iterator[str]:
        yield from named
        if files_from is not None:
            yield from listing.read_list(files_from)

    return names


def _check_new(folder: Path, resume: bool) -> None:
    """Refuse to write beside other files.

    Raises:
        UsageError: the folder has files, and the run is not to go on.
    """
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise click.UsageError(
            f"{str(folder)!r} is not empty: --resume goes on with the run that was stopped there; or choose another "
            "folder."
        )


def _check_pictures(job: Run, explainer: Explainer) -> None:
    """Refuse a run without pictures, or of pictures that nothing makes tensors of.

    Raises:
        PictureError, PreprocessError: as their names say.
    """
    scan = job.scan
    for sentence in scan.failures:
        terminal.echo(f"Error: {sentence}", err=True)
    if scan.failed > len(scan.failures):
        terminal.echo(f"Error: and {scan.failed - len(scan.failures):,} more", err=True)
    if not job.listing.count:
        raise PictureError("there are no pictures; name files, folders or globs with some")
    first = Path(next(iter(job.listing.paths())))
    if explainer.preprocess is None and not takes_all(explainer.preparation, [first]):
        raise explainer.preparation.unknown()


def _settings(explain: Explain, truth: str | None) -> dict[str, Any]:
    """All that the rows of the table depend on, but for the model, as JSON."""
    explainer, question = explain.explainer, explain.question.describe()
    names = explainer.labels
    digest = None if names is None else hashlib.sha256(json.dumps(names).encode()).hexdigest()
    entries = {entry["name"]: entry for entry in explainer.manifest["layers"]}
    windows = [entries.get(name, {}).get("window") for name in explain.question.layers]
    scores = explainer.manifest["scores"]
    drawing = {"alpha": explain.alpha, "colormap": explain.colormap, "bands": explainer.preparation.bands}
    return {
        "when": explain.when,
        **{name: question[name] for name in ("target", "method", "layer", "normalize", "fusion", "smooth", "seed")},
        **({"layer": None} if scores["kind"] == DETECTION and not explain.question.layer_named else {}),
        "option": question["methods"],
        "top-k": explain.top_k,
        "rows": explain.rows_per_run,
        "preprocess": None if explainer.preprocess is None else explainer.preprocess.to_dict(),
        "input-size": explainer.manifest["input"]["shape"],
        "scores": scores["name"],
        "kind": scores["kind"],
        "labels": digest,
        "overlay": drawing if explain.overlay else None,
        "truth": truth if truth in (None, BY_FOLDER) else hashlib.sha256(table_bytes(truth)).hexdigest(),
        "window": windows if any(windows) else None,
        "provider": explainer.providers[0],
    }


def _write(job: Run, explain: Explain, engine: str, workers: int | None, find: Callable[[str], int] | None) -> None:
    """Write the table, with progress on standard error; each picture that fails is named."""
    from onnxcam.fleet.job import write

    with Progress(job.listing.count, job.counts.rows, rate=True) as progress:

        def failed(path: str, error: str) -> None:
            progress.note(f"Error: {about(path, error)}")

        write(
            job,
            explain,
            engine=engine,
            workers=workers,
            truth=find,
            label=explain.explainer.label,
            failed=failed,
            done=progress.advance,
        )


def _tell_unknown(job: Run, truth: str, unknown: int) -> None:
    """Warn of pictures without a true class; the summary has it too."""
    if unknown:
        job.notes.append(
            f"{unknown:,} of {job.listing.count:,} pictures are not in the table of classes {truth!r}: they count "
            "neither as right nor as wrong"
        )
        terminal.warn(job.notes[-1:])


def _tell_stopped(job: Run) -> None:
    """Tell what is there of a table that is not complete."""
    if job.parts:
        terminal.echo(
            f"{job.counts.rows:,} of {job.listing.count:,} rows are in {len(job.parts):,} complete parts; the same "
            "command with --resume goes on",
            err=True,
        )


def _summary(
    job: Run, explain: Explain, model: str, engine: str, before: int, duration: float, unknown: int
) -> dict[str, Any]:
    """The summary of a complete run, for `_summary.json` and `--json`.

    Arguments:
        before: rows that an earlier process has written.
        unknown: pictures that the table of true classes does not have.
    """
    from onnxcam.fleet.job import failures

    counts = {**asdict(job.counts), "unknown": unknown}
    if job.terms.settings["truth"] is None:
        del counts["right"], counts["wrong"], counts["unknown"]
    return {
        "output": str(job.folder),
        "model": {"path": model, "sha256": explain.sha256, "classes": explain.explainer.classes},
        "options": {"rows_per_part": job.terms.rows_per_part, "engine": engine, **job.terms.settings},
        "root": job.listing.root,
        "started": job.started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "duration_s": round(duration, 3),
        "counts": {**counts, "left_out": job.scan.failed, "resumed": before},
        "parts": len(job.parts),
        "failures": [*failures(job, _NAMED)],
        "left_out": job.scan.failures[:_NAMED],
        "warnings": [*explain.explainer.warnings, *job.notes],
        "providers": explain.explainer.providers,
        "versions": versions(),
    }
