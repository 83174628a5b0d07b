"""Findings about the outputs of an explainable file: scores, target, heatmaps, gate."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcam import image, runtime
from onnxcam.diagnose.report import Finding
from onnxcam.diagnose.subject import Subject, distance, distances, norms
from onnxcam.network.calibration.record import of_manifest
from onnxcam.network.layout import Layout
from onnxcam.network.manifest import SHARED
from onnxcam.network.split import head_of
from onnxcam.targets import conditions
from onnxcam.targets.detections import best_classes
from onnxcam.targets.regions import largest
from onnxcam.targets.tasks import Detect, Segment

TOLERANCE_MAPS = 1e-3
TOLERANCE_GATE = 1e-6
# rounding error of the sum of a few thousand terms of either sign, in units of the precision's epsilon
_MAP_ROUNDING = 30.0
# largest distance to the plain model's scores; exposing layers makes a float16 model round at other places
_SAME_SCORES = {"float32": 1e-5, "float16": 3e-3}
# multiples of what the runtime's optimisation changes in a quantized model's scores
_AS_OPTIMIZED = 3.0


def predictions(subject: Subject) -> Finding:
    """Compare the scores with those of the plain model at several batch sizes, and with those of a second run."""
    head = subject.open_session(head_of(subject.graph, subject.manifest))
    name = subject.scores
    sizes = [len(subject.batch)] if subject.fixed_batch else sorted({1, len(subject.batch)})
    worst, repeatable = 0.0, True
    for size in sizes:
        part = subject.batch[:size]
        outputs = [o.name for o in subject.file.get_outputs()]
        first, second = (runtime.run(subject.file, outputs, subject.top_1(part)) for _ in range(2))
        repeatable &= all(_equal(first[key], second[key]) for key in outputs)
        plain = runtime.run(head, [name], subject.feeds(part))[name]
        worst = max(worst, distance(first[name], plain))
        if not np.isfinite(subject.readout.per_class(first[name])).any(axis=1).all() or np.isnan(first[name]).any():
            return Finding("predictions", "failed", "the scores are not finite on noise pictures")
    twice = "two runs are bitwise equal" if repeatable else "two runs differ in the last bits"
    allowed = _SAME_SCORES[subject.precision]
    if worst > allowed:  # a quantized model whose layers are outputs is optimised, and so rounded, at other places
        allowed = max(allowed, _AS_OPTIMIZED * (subject.optimization or 0.0))
    return Finding(
        "predictions",
        "ok" if worst <= allowed else "failed",
        f"within {worst:.1e} of the plain model; {twice}",
        {"scores": worst},
    )


def optimization(subject: Subject) -> list[Finding]:
    """Say how far a quantized model's scores depend on how the runtime optimises it; nothing where they do not."""
    far = subject.optimization
    if far is None or far <= _SAME_SCORES[subject.precision]:
        return []
    detail = (
        f"the plain model's scores differ by {far:.1e} from those ONNX Runtime computes without optimisation: it "
        "rounds a quantized model at other places once its operators are joined; neither is wrong"
    )
    return [Finding("optimisation", "note", detail, {"scores": far})]


def _equal(first: Any, second: Any) -> bool:
    """Whether two outputs are equal: tensors of numbers or strings, or the list of maps that ZipMap makes."""
    if isinstance(first, np.ndarray) and first.dtype.kind == "f":
        return np.array_equal(first, second, equal_nan=True)
    return np.array_equal(first, second) if isinstance(first, np.ndarray) else bool(first == second)


def top_1_target(subject: Subject) -> Finding:
    """Compare the gradients for target -1 with those for each row's best class by its index."""
    gradients = [entry["gradients"] for entry in subject.manifest["layers"]]
    automatic = runtime.run(subject.ungated, [subject.scores, *gradients], subject.top_1(subject.batch))
    best = _first_choices(subject, automatic[subject.scores])
    explicit = runtime.run(subject.ungated, gradients, subject.feeds(subject.batch) | subject.target(best))
    rows = best == best[0] if subject.manifest["target"].get("rows") == SHARED else slice(None)
    worst = max(distance(automatic[name][rows], explicit[name][rows]) for name in gradients)
    figures = {"own": worst}
    if worst > TOLERANCE_GATE:
        detail = f"the gradients for target -1 differ from those for each row's best class by {worst:.1e}"
        return Finding("target", "failed", detail, figures)
    what = "box" if isinstance(subject.readout.task, Detect) else "class"
    return Finding("target", "ok", f"-1 means each row's best {what}", figures)


def _first_choices(subject: Subject, columns: np.ndarray) -> np.ndarray:
    """What -1 stands for in each row, int64 `[N]`."""
    task = subject.readout.task
    if isinstance(task, Detect):
        empty = not task.count(columns.shape[1])
        return np.array([-1 if empty else int(best_classes(task, row)[1].argmax()) for row in columns], np.int64)
    if isinstance(task, Segment):
        size = subject.input_size
        placement, labels = image.Geometry(size, size, (0, 0), size), subject.manifest.get("labels")
        return np.array([largest(task, row, placement, labels)[0] for row in columns], np.int64)
    return subject.readout.top1(columns)


def heatmaps(subject: Subject, entry: dict[str, Any]) -> Finding:
    """Compare one layer's activations with the layer's value, and its heatmaps with the methods' formulas."""
    title = f"heatmaps at {entry['name']}"
    names = list(entry["heatmaps"].values())
    if not names:
        return Finding(title, "note", "the file computes none")
    activations = entry["activations"]
    outputs = runtime.run(subject.ungated, [*names, activations, entry["gradients"]], subject.top_1(subject.batch))
    layer = subject.head_values([entry["value"]])[entry["value"]]
    if (error := distance(outputs[activations], layer)) > 1e-5:
        return Finding(title, "failed", f"{activations!r} differs from the layer's own value by {error:.1e}")
    rounding = _MAP_ROUNDING * float(np.finfo(subject.precision).eps)
    for name, (expected, magnitude) in _expected_maps(entry, outputs).items():
        allowed = TOLERANCE_MAPS + rounding * norms(magnitude) / np.maximum(norms(expected), 1e-12)
        errors = distances(outputs[name], expected)
        if (errors > allowed).any():
            detail = f"{name!r} differs from its formula on the file's activations and gradients by {errors.max():.1e}"
            return Finding(title, "failed", detail)
    maps = {name: outputs[name] for name in names}
    for name, values in maps.items():
        if not np.isfinite(values).all() or (values < 0).any():
            return Finding(title, "failed", f"{name!r} is negative or not finite on noise pictures")
        if entry.get("grid") and list(values.shape[1:]) != list(entry["grid"]):
            return Finding(title, "failed", f"{name!r} is {list(values.shape[1:])}, the manifest says {entry['grid']}")
    zero = sum(not values[row].any() for values in maps.values() for row in range(len(subject.batch)))
    rest = f"; {zero} of {len(maps) * len(subject.batch)} are zero everywhere" if zero else ""
    return Finding(title, "ok", f"{', '.join(entry['heatmaps'])} {list(next(iter(maps.values())).shape[1:])}{rest}")


def _expected_maps(entry: dict[str, Any], outputs: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Compute heatmaps in NumPy from the file's activations and gradients, for methods with a simple formula.

    The second array is the same sum over absolute values. Where positive and negative terms nearly cancel, as after an
    instance normalisation, rounding is measured against it.
    """
    layout = Layout.of(entry)
    a, g = (layout.to_canonical(outputs[entry[key]].astype(np.float64)) for key in ("activations", "gradients"))
    formulas = {
        "gradcam": lambda a, g: (g.mean(axis=(2, 3), keepdims=True) * a).sum(axis=1),
        "hirescam": lambda a, g: (g * a).sum(axis=1),
    }
    return {
        output: (np.maximum(formulas[name](a, g), 0.0), formulas[name](np.abs(a), np.abs(g)))
        for name, output in entry["heatmaps"].items()
        if name in formulas
    }


def gate(subject: Subject) -> Finding:
    """Compare a gated file with its condition, and with itself without the gate: the batch and each row alone."""
    manifest = subject.manifest
    condition, fired = manifest["gate"]["condition"], manifest["gate"]["output"]
    maps = [entry["gradients"] for entry in manifest["layers"]]
    maps += [output for entry in manifest["layers"] for output in entry["heatmaps"].values()]
    rows = [] if subject.fixed_batch else [subject.batch[row : row + 1] for row in range(len(subject.batch))]
    worst, count = 0.0, 0
    for part in [subject.batch, *rows]:
        gated = runtime.run(subject.file, [subject.scores, fired, *maps], subject.top_1(part))
        expected = _condition(subject, gated[subject.scores])
        if not np.array_equal(gated[fired], expected):
            detail = f"{fired!r} is {gated[fired].tolist()} where {condition!r} is {expected.tolist()}"
            return Finding("gate", "failed", detail)
        if part is subject.batch:
            count = int(expected.sum())
        if expected.any():
            ungated = runtime.run(subject.ungated, maps, subject.top_1(part))
            worst = max(worst, *(distance(gated[name], ungated[name]) for name in maps))
        elif any(gated[name].any() for name in maps):
            return Finding("gate", "failed", f"the maps are not zero where {condition!r} does not hold")
    detail = (
        f"{condition}: true of {count} of {len(subject.batch)} noise pictures; maps within {worst:.1e} of those "
        "without a gate"
    )
    return Finding("gate", "ok" if worst <= TOLERANCE_GATE else "failed", detail, {"maps": worst})


def calibration(subject: Subject) -> Finding:
    """Compare a calibrated file with its manifest: the graph of its scores, its probabilities and its sets."""
    from onnxcam.network.calibration import conformal, nodes, record

    stale = nodes.changed(subject.graph.model, subject.manifest)
    if stale is not None:
        return Finding("calibration", "failed", stale)
    stored, readout = record.Calibration.from_manifest(subject.manifest["calibration"]), subject.readout
    values = runtime.run(subject.file, [subject.scores, *stored.outputs], subject.top_1(subject.batch))
    scores, p, inside = (values[name] for name in (subject.scores, *stored.outputs))
    difference = float(np.abs(p - stored.probabilities(scores, readout)).max())
    narrow, wide = (
        conformal.sets(scores, readout, stored.rule, stored.threshold, margin=margin)
        for margin in (-4 * record.MARGIN, 4 * record.MARGIN)
    )
    same = not ((inside < narrow).any() or (inside > wide).any())
    low, high = stored.coverage_interval
    detail = (
        f"sets of {stored.rule.score} at alpha {stored.alpha:g} from {stored.n:,} pictures, coverage {low:.3f} to "
        f"{high:.3f}; temperature {stored.temperature:.4g}; probabilities within {difference:.1e} of the "
        f"manifest's, sets {'as' if same else 'not as'} its quantile makes them"
    )
    return Finding("calibration", "ok" if same and difference <= 1e-5 else "failed", detail)


def _condition(subject: Subject, scores: np.ndarray) -> np.ndarray:
    """Evaluate the gate's condition on scores, per row."""
    readout = subject.readout
    tree = conditions.parse(subject.manifest["gate"]["condition"], subject.manifest.get("labels"), readout.size)
    calibration = of_manifest(subject.manifest)
    tree = conditions.bind(tree, calibration)
    probabilities = conditions.probabilities(scores, readout, "logits")
    quantities = conditions.quantities(probabilities, readout, conditions.names(tree), calibration, scores)
    return np.asarray(conditions.evaluate(tree, quantities))
