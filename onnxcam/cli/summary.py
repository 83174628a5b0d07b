"""The run of `onnxcam explain` over its pictures: what it prints, and its summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcam.cli.progress import Progress
from onnxcam.cli.versions import versions
from onnxcam.errors import TargetAbsent
from onnxcam.explain import pictures
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.folder import Outcome, explain_all, sentence
from onnxcam.explain.question import Question
from onnxcam.explain.saving import FILES, Drawing
from onnxcam.explain.warnings import prediction_warnings
from onnxcam.image.panel import percentage
from onnxcam.targets.tasks import DETECT

if TYPE_CHECKING:
    from onnxcam.explain.gallery import Gallery

SUMMARY = "analysis_summary.json"
_MOST_BOXES = 20  # of a picture in the table; its explanation.json has all
_MOST_CLASSES = 100  # of a picture in the summary; its explanation.json has all


def describe(model: str, explainer: Explainer, question: Question, style: Drawing, digest: str) -> dict[str, Any]:
    """The model, the options and the versions of a run, for the summary."""
    manifest = explainer.manifest
    return {
        "model": {
            "path": model,
            "sha256": digest,
            "source": manifest.get("source"),
            "classes": explainer.classes,
            "scores": manifest["scores"]["kind"],
        },
        "options": {
            **question.describe(),
            "preprocess": None if explainer.preprocess is None else explainer.preprocess.to_dict(),
            "alpha": style.alpha,
            "colormap": style.colormap,
            "files": [name for name in FILES if name in style.files],
            "format": style.format,
        },
        "providers": explainer.providers,
        "versions": versions(),
    }


class Run:
    """One run over all pictures: prints its results and collects the entries of the summary."""

    def __init__(
        self,
        folder: Path,
        collected: pictures.Collection,
        quiet: bool,
        truth: Mapping[str, int] | None = None,
        page: Gallery | None = None,
    ) -> None:
        self._folder = folder
        self._collected = collected
        self._quiet = quiet
        self._truth = truth
        self._page = page
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._entries: list[dict[str, Any]] = []
        self._run_warnings: set[str] = set()
        self._reported: set[pictures.Item] = set()
        self.require_printed: Callable[[], None] = lambda: None  # raises where a result could not be printed

    def explain(self, explainer: Explainer, question: Question, style: Drawing) -> None:
        items = self._collected.items
        self._run_warnings = set(explainer.warnings)  # about the run, not about a picture
        with Progress(len(items)) as progress:
            for name, error in self._collected.failures:
                progress.note(f"Error: {error}")
                self._entries.append(_entry(name, None, None, None, str(error)))

            def late(outcome: Outcome) -> None:
                self._report(outcome, progress)

            judge = None
            if self._page is not None:
                from onnxcam.explain.gallery import Judge

                judge = Judge(explainer, question, self._truth or {}, style)
            for outcome in explain_all(explainer, items, question, self._folder, style, progress.step, late, judge):
                self._report(outcome, progress)
                progress.advance()
        self.require_printed = progress.finish

    def summary(
        self, about: dict[str, Any], duration: float, interrupted: bool, explainer: Explainer
    ) -> dict[str, Any]:
        total = len(self._collected.items) + len(self._collected.failures)
        failed = sum(entry["error"] is not None for entry in self._entries)
        absent = sum("absent" in entry for entry in self._entries)
        explained = len(self._entries) - failed - absent
        counts = {"found": total, "explained": explained, "failed": failed}
        if explainer.terms.readout.task is not None:
            counts["absent"] = absent
        if interrupted:
            counts["left"] = total - len(self._entries)
        best = [(e["index"], e["confidence"]) for e in self._entries if e["error"] is None and "absent" not in e]
        return about | {
            "started": self._started,
            "duration_s": round(duration, 3),
            "counts": counts | self._judged(),
            "warnings": [*explainer.warnings, *prediction_warnings(best, explainer.classes)],
            "pictures": self._entries,
        }

    def _judged(self) -> dict[str, int]:
        """How many predictions were right, and wrong, where the true class is known."""
        if self._truth is None:
            return {}
        right = [entry["index"] == entry["truth"] for entry in self._entries if entry.get("truth") is not None]
        return {"right": sum(right), "wrong": len(right) - sum(right)}

    def write_page(self) -> None:
        """Write the page of what was explained.

        Raises:
            OutputError: it cannot be written.
        """
        if self._page is not None:
            from onnxcam.explain.gallery import PAGE

            with self._page as page:
                page.write(self._folder / PAGE, [", ".join(f"{name} {one}" for name, one in versions().items())])

    def _report(self, outcome: Outcome, progress: Progress) -> None:
        if outcome.item in self._reported:  # before it was interrupted
            return
        self._reported.add(outcome.item)
        name, record = outcome.item.name, outcome.record
        if record is None:
            text = sentence(outcome)
            # one of several pictures without a box is as it should be; of a single one there is no result
            absent = isinstance(outcome.error, TargetAbsent) and len(self._collected.items) > 1
            progress.note(f"{'Warning' if absent else 'Error'}: {text}")
            entry = _entry(name, outcome.item.folder.as_posix(), None, None, None if absent else text)
            self._entries.append(entry | ({"absent": str(outcome.error)} if absent else {}))
            return
        entry = _entry(name, outcome.item.folder.as_posix(), record, outcome.files, None)
        if self._truth is not None:
            entry["truth"] = self._truth.get(name)
        self._entries.append(entry)
        if self._page is not None and outcome.card is not None:
            whole = ("methods", "layers", "panel", "overlay", "explanation")
            self._page.add(outcome.card, next((entry["files"][key] for key in whole if key in entry["files"]), None))
        for warning in record["warnings"]:
            if warning in self._run_warnings:
                continue
            progress.note(f"Warning: {name!r}: {warning}")
        for entry in record["methods"][1:]:
            for warning in entry["warnings"]:
                progress.note(f"Warning: {name!r}: {entry['method']}: {warning}")
        if not self._quiet:
            progress.result(table(name, self._folder / outcome.item.folder, record))


def table(name: str, folder: Path, record: dict[str, Any]) -> list[str]:
    """A picture's predictions as a table of text, line by line."""
    lines = [f"{name} -> {folder}"]
    if record.get("task") == DETECT:
        return lines + boxes(record)
    explained = {entry["index"] for entry in record["maps"]}
    best = {row["index"] for row in record["predictions"]}
    rows = [*record["predictions"], *(entry for entry in record["maps"] if entry["index"] not in best)]
    for row in rows:
        mark = "*" if row["index"] in explained else " "
        number = row.get("value")
        if number is not None:
            share = f"{number:.5g}"
        else:
            share = "?" if row["probability"] is None else percentage(row["probability"])
        lines.append(f"  {mark} {share:>8}  {row['index']:>5}  {row['label']}")
    return lines


def boxes(record: dict[str, Any]) -> list[str]:
    """The boxes of a detector, those explained marked: `* box 3: dog 87.0 % at 120, 80 to 300, 260`."""
    explained = {entry["box"]["index"]: entry for entry in record["maps"] if entry.get("box")}
    reported = record["boxes"][:_MOST_BOXES]
    indices = {box["index"] for box in reported}
    rows = [*reported, *(entry["box"] for index, entry in explained.items() if index not in indices)]
    lines = []
    for box in rows:
        entry = explained.get(box["index"])
        edges = ["?" if edge is None else f"{edge:.0f}" for edge in box["box"]]
        share = "?" if box["score"] is None else percentage(box["score"])
        layer = f", {_part(entry)}explained at {entry['layer']}" if entry is not None else ""
        place = f"at {', '.join(edges[:2])} to {', '.join(edges[2:])}"
        lines.append(f"  {'*' if entry else ' '} box {box['index']}: {box['label']} {share} {place}{layer}")
    more = len(record["boxes"]) - len(reported)
    return lines + ([f"    and {more} more"] if more > 0 else []) or ["    no box"]


def _part(entry: dict[str, Any]) -> str:
    """Which number of a box is explained, where that is not its score alone."""
    scalar = entry.get("scalar") or {}
    minus = scalar.get("minus")
    part = ((minus[0] if minus else scalar).get("box") or {}).get("part")
    less = (minus[1].get("box") or {}).get("index") if minus else None
    return "".join([f"{part} " if part else "", f"minus that of box {less} " if less is not None else ""])


def _entry(
    name: str, folder: str | None, record: dict[str, Any] | None, files: dict[str, str] | None, error: str | None
) -> dict[str, Any]:
    best = _best(record) if record is not None else None
    prefix = "" if folder in (None, "", ".") else f"{folder}/"
    return {
        "name": name,
        "prediction": best and best["label"],
        "index": best and best["index"],
        "confidence": best and best["probability"],
        "predictions": record and record["predictions"],
        "target": record and record["target"],
        "objective": record and record["objective"],
        "top": record and (record["maps"][:_MOST_CLASSES] if len(record["maps"]) > 1 else None),
        "layer": record and record["layer"],
        "method": record and record["method"],
        "attention": record and record["maps"][0]["attention"],
        "layers": record and (record["layers"] or None),
        "methods": record and (record["methods"] or None),
        "files": {key: prefix + file for key, file in (files or {}).items()},
        "warnings": record["warnings"] if record is not None else [],
        "error": error,
    } | ({} if record is None or record.get("task") is None else {"task": record["task"], "boxes": record["boxes"]})


def _best(record: dict[str, Any]) -> dict[str, Any]:
    """What the model says first of a picture; of an embedding, which says nothing, what was explained."""
    predictions = record["predictions"]
    best: dict[str, Any] = predictions[0] if predictions else record["target"]
    return best
