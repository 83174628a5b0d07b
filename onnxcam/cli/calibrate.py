"""`onnxcam calibrate`: write calibrated probabilities and prediction sets into a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcam import files, image, runtime
from onnxcam.cli import options, terminal
from onnxcam.cli.errors import ExitCode
from onnxcam.cli.export import check_output
from onnxcam.cli.opening import open_explainer
from onnxcam.cli.progress import Bar
from onnxcam.cli.truth import check_truth, truth_option
from onnxcam.cli.versions import versions
from onnxcam.errors import OutputError
from onnxcam.explain import pictures

if TYPE_CHECKING:
    from onnxcam.diagnose.calibration_report import Report

EPILOG = """\
\b
Examples:
  onnxcam calibrate model.cam.onnx photos/ --truth by-folder -o calibrated.onnx
  onnxcam calibrate model.cam.onnx photos/ --truth classes.csv -o calibrated.onnx --alpha 0.05 --score raps
  onnxcam calibrate model.cam.onnx photos/ --truth by-folder -o calibrated.onnx --max-risk 1% --report report/
  onnxcam calibrate classifier.onnx photos/ --truth by-folder -o calibrated.onnx --preprocess imagenet --labels l.txt
"""
CHOOSE = "choose"
REPORT = ("calibration.png", "calibration.json", "calibration.html")  # the files of --report


class Share(click.ParamType):
    """A share, as a number or in percent."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        try:
            share = float(text.rstrip("% ")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 < share < 1:
            self.fail(f"{text!r} is no share between 0 and 1, such as 1% or 0.01", param, ctx)
        return share


@click.command("calibrate", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.argument("named", nargs=-1, metavar="PICTURES...")
@truth_option
@click.option("-o", "--output", required=True, metavar="OUT.onnx", help="The file to write.")
@click.option(
    "--alpha",
    type=Share(),
    default="0.1",
    show_default=True,
    metavar="SHARE",
    help="Share of pictures whose set may miss the true class.",
)
@click.option(
    "--score",
    type=click.Choice(["lac", "aps", "raps"]),
    default="lac",
    show_default=True,
    help="How classes enter a set: lac by their own probability (the smallest sets on average), aps and raps from the "
    "best one down (sets that adapt to the picture; raps with a penalty on large ones).",
)
@click.option(
    "--lambda",
    "penalty",
    type=float,
    metavar="NUMBER",
    help="Penalty of raps for each rank beyond --k.  [default: chosen on a part of the pictures]",
)
@click.option(
    "--k", type=int, metavar="N", help="Ranks without a penalty.  [default: chosen on a part of the pictures]"
)
@click.option(
    "--set-temperature",
    default="1",
    show_default=True,
    metavar=f"NUMBER|{CHOOSE}",
    help="Temperature of the probabilities that sets are made from; the one of the probabilities themselves is fitted.",
)
@click.option(
    "--never-empty", is_flag=True, help="Put the best class into every set; an empty set counts as unsure otherwise."
)
@click.option(
    "--split",
    type=Share(),
    default="0.2",
    show_default=True,
    metavar="SHARE",
    help="Share of the pictures on which --lambda, --k and --set-temperature are chosen where they are not given.",
)
@click.option(
    "--max-risk",
    type=Share(),
    metavar="SHARE",
    help="Find the confidence at or above which at most this share of predictions is wrong, such as 1%, for the "
    "condition 'risk > 1%'.",
)
@click.option(
    "--confidence",
    type=Share(),
    default="95%",
    show_default=True,
    metavar="SHARE",
    help="The probability with which --max-risk holds, over draws of the PICTURES.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write calibration.png, calibration.json and calibration.html: reliability before and after, and risk over "
    "coverage.",
)
@options.layer_option("Target layer of a plain MODEL, which is made explainable.  [default: its default layer]")
@options.labels_option
@options.preprocess_option
@options.input_size_option
@options.range_option
@options.bands_option
@options.readout_options
@options.provider_option
@options.fallback_option
@options.seed_option
@options.json_option
def calibrate(
    model: str,
    named: tuple[str, ...],
    truth: str | None,
    output: str,
    alpha: float,
    score: str,
    penalty: float | None,
    k: int | None,
    set_temperature: str,
    never_empty: bool,
    split: float,
    max_risk: float | None,
    confidence: float,
    report: Path | None,
    layers: tuple[str, ...],
    labels: str | None,
    preprocess: str | None,
    input_size: list[int] | None,
    value_range: list[float] | None,
    bands: list[int] | None,
    scores: str | None,
    kind: str | None,
    provider: str,
    allow_fallback: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Write calibrated probabilities and prediction sets into a file.

    PICTURES are labelled (--truth) and were not trained on. From them come a temperature, which makes the probabilities
    as likely as one number can, and a quantile, which makes sets of classes: a set contains the true class for a share
    1 - alpha of pictures that are drawn as these were. Both become ordinary nodes of OUT.onnx, outputs `calibrated` and
    `prediction_set`, so that every runtime and language has them; what else MODEL has stays as it is. The coverage is
    printed with its interval: it depends on which pictures were at hand.

    Exit status: 0 written, 1 a picture cannot be read (the rest are used) or OUT.onnx cannot be written, 2 wrong usage,
    labels that do not fit, or too few pictures, 3 unusable model, 4 no usable runtime or execution provider, 130
    interrupted.
    """
    from onnxcam.diagnose.calibration_report import Report
    from onnxcam.explain import calibrate as calibrating
    from onnxcam.graph import load
    from onnxcam.network.calibration.fit import check_settings

    if not named:
        raise click.UsageError("no PICTURES were given: name files, folders or globs.")
    if truth is None:
        raise click.UsageError(
            "nothing says what the PICTURES show: give --truth by-folder, or --truth FILE.csv (`picture,class`)."
        )
    check_truth(truth, named)
    check_output(model, Path(output))
    if report is not None:
        make_ready(report)
    of_sets = _temperature(set_temperature)
    choices: dict[str, Any] = {
        "alpha": alpha, "score": score, "penalty": penalty, "k": k, "set_temperature": of_sets,
        "never_empty": never_empty, "split": split, "seed": seed,
        "max_risk": max_risk, "confidence": confidence,
    }  # fmt: skip
    collection = pictures.collect(list(named), Path(output))
    if not collection.items:
        raise collection.failures[0][1]
    explainer = open_explainer(
        model, layers, labels, preprocess, provider=provider, allow_fallback=allow_fallback, input_size=input_size,
        value_range=value_range, bands=bands, sources=[item.source for item in collection.items], scores=scores,
        kind=kind,
    )  # fmt: skip
    check_settings(explainer.terms.readout, alpha, score, penalty, k, of_sets, split)
    items = [item.source for item in collection.items]
    root = Path(named[0]) if len(named) == 1 else None
    classes = calibrating.true_classes(truth, items, root, explainer)
    terminal.warn(explainer.warnings)
    with Bar("scored") as bar:
        scored = calibrating.score_pictures(explainer, items, classes, bar.to)
    settings: dict[str, Any] = {
        "layers": list(dict.fromkeys(layers)) or None, "preprocess": preprocess, "input_size": input_size,
        "scores": scores, "kind": kind, "providers": runtime.parse_provider(provider),
    }  # fmt: skip
    doubts: list[str] = []
    written, calibration = calibrating.write(
        model, explainer, scored, on_warning=doubts.append, settings=settings, **choices
    )
    load.save(written, output)
    if report is not None:
        write_report(Report.of(scored.scores, scored.truth, explainer.terms.readout, calibration), report)
    piped = files.is_standard_output(output)
    terminal.warn([doubt for doubt in doubts if doubt not in explainer.warnings])
    failed = [str(error) for error in (*(error for _, error in collection.failures), *scored.failures)]
    for text in failed:
        terminal.echo(f"Error: {text}", err=True)
    entry = calibration.describe()
    if as_json:
        record = {"path": output, "model": model, "seed": seed, "providers": explainer.providers}
        options.print_json(
            record | {"versions": versions(), "failed": failed, "warnings": doubts, "calibration": entry}, err=piped
        )
    else:
        terminal.echo_lines(lines(output, entry), err=piped)
    if failed:
        raise click.exceptions.Exit(ExitCode.FAILED)


def make_ready(folder: Path) -> None:
    """Make the folder of a report before any work is done.

    Raises:
        OutputError: it cannot be made or written to, or a file of the report is a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        blocked = next((p for p in (folder, *folder.parents) if p.is_file()), None)
        reason = f"{str(blocked)!r} is a file" if blocked is not None else error.strerror
        raise OutputError(
            f"the folder {str(folder)!r} of the report cannot be made ({reason}); choose another with --report"
        ) from error
    for path in (folder / name for name in REPORT):
        if path.is_dir():
            raise OutputError(
                f"{str(path)!r} is a folder, in the way of the report; choose another folder with --report"
            )
        files.check_writable(path)


def write_report(report: Report, folder: Path) -> None:
    """Write the picture, the numbers and the page of a report into a folder, all or none."""
    pixels = report.picture()
    with files.FileSet() as written:
        contents = (image.encode_png(pixels), json.dumps(report.describe(), indent=2).encode(), report.page().encode())
        for name, content in zip(REPORT, contents, strict=True):
            written.write(folder / name, [content])


def _temperature(text: str) -> float | str:
    if text == CHOOSE:
        return CHOOSE
    try:
        return float(text)
    except ValueError as error:
        raise click.UsageError(f"--set-temperature {text!r}: expected a number such as 1.5, or {CHOOSE}.") from error


def lines(output: str, entry: dict[str, Any]) -> list[str]:
    """What was calibrated, in words.

    Arguments:
        entry: the manifest's `calibration`.
    """
    low, high = entry["coverage_interval"]
    before, after = entry["likelihood"]
    level, covered = f"{100 * entry['coverage_level']:g} %", f"{100 * (1 - entry['alpha']):g} %"
    rule = entry["score"] if entry["lambda"] is None else f"raps (lambda {entry['lambda']:g}, k {entry['k']})"
    rows = [
        f"{output}: sets of {rule} contain the true class of {covered} of pictures like these "
        f"({level} interval {100 * low:.1f} to {100 * high:.1f} %)",
        f"  temperature {entry['temperature']:.4g}: mean negative log-likelihood {before:.4g} -> {after:.4g} nats",
        f"  quantile {entry['quantile']:.6g} of {entry['n']:,} pictures; {entry['set_size']:.3g} classes a set, "
        f"{100 * entry['empty_sets']:.3g} % of the sets empty",
        f"  accuracy {100 * entry['accuracy']:.1f} % of {entry['pictures']:,} pictures",
    ]
    if entry["tuning_pictures"]:
        rows.append(f"  {entry['tuning_pictures']:,} of them chose what was left open, and are not in the quantile")
    if entry["set_temperature"] != 1:
        rows.append(f"  temperature of the sets {entry['set_temperature']:.4g}")
    risk = entry.get("risk")
    if risk:
        low, high = risk["coverage_interval"]
        here = f"{risk['errors']:,} of {risk['accepted']:,} wrong here"
        rows.append(
            f"  at {risk['by']} {risk['threshold']:.6g} or more at most {100 * risk['max']:g} % are wrong, with "
            f"{100 * risk['confidence']:g} % confidence: {100 * risk['coverage']:.1f} % of pictures are let through "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %), {here}"
        )
    names = entry["outputs"]
    rows.append(f"  outputs {names['calibrated']} float32 and {names['prediction_set']} bool, [N, classes]")
    return rows
