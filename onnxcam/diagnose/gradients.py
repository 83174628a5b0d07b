"""`onnxcam check`: prove an explainable file in the runtime that will serve it.

Gradients are compared with central finite differences of the scores, along random directions at the target layer; the
outputs with the plain model, with the methods' formulas and with the condition of a gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from onnxcam import runtime
from onnxcam.autodiff.seed import unrounded
from onnxcam.autodiff.sweep import INTEGERS, path
from onnxcam.diagnose import contents, differences, facts, outputs, pixels, scalars
from onnxcam.diagnose.report import Finding, Report
from onnxcam.diagnose.subject import Subject, noise_pictures
from onnxcam.errors import InputError, ModelError, listing
from onnxcam.graph import edit, quantized
from onnxcam.graph.load import Source, load, serialize
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import Graph
from onnxcam.network import manifest
from onnxcam.network.agreement import Interface, Value, require_agreement
from onnxcam.network.cut import crossing
from onnxcam.network.network import prepare
from onnxcam.network.open_size import refusal
from onnxcam.network.opening import GRADIENTS, MANIFEST, open_model, read_source
from onnxcam.network.probe.probe import probe
from onnxcam.network.split import part_after
from onnxcam.targets.tasks import Embed, Values

_JUMPS = having(Trait.JUMPS)


@dataclass(frozen=True)
class ModelReport(Report):
    """The findings of `check` about one model."""

    model: str

    def to_dict(self) -> dict[str, Any]:
        """Return the report ready for JSON."""
        return {"model": self.model} | super().to_dict()


def check(
    source: Source,
    *,
    providers: Sequence[runtime.Provider] | None = None,
    samples: int = 4,
    directions: int = 8,
    seed: int = 1234,
    input_size: Sequence[int] | None = None,
    scores: str | None = None,
    kind: str | None = None,
    task: str | None = None,
    boxes_output: str | None = None,
    allow_fallback: bool = False,
    all_layers: bool = False,
    places: bool = True,
) -> ModelReport:
    """Prove a model: its gradients against finite differences, its predictions against the plain model.

    Arguments:
        source: an explainable model, or any classifier `.onnx`, which is augmented in memory first.
        providers: execution providers, as in `Explainer`.
        samples: noise pictures to run the model on.
        directions: random directions per picture, of each of the three kinds.
        seed: fixes pictures and directions.
        input_size: height and width of the picture, where the file leaves them open.
        all_layers: measure where every candidate for a target layer lies on the picture, see `onnxcam.probe`, not only
            those that the file exposes.
        places: whether a layer that lies elsewhere on the picture is a failure; else it is a note.
        scores, kind, task, boxes_output: as of `Explainer`.

    Returns:
        A report; `passed` is False where a number is wrong.

    Raises:
        ModelError: the file is not a usable classifier. RuntimeUnavailable: a provider is not in use.
    """
    findings: list[Finding] = []
    opened = open_model(
        source,
        raw=True,
        gated=True,
        input_size=input_size,
        scores=scores,
        kind=kind,
        task=task,
        boxes_output=boxes_output,
    )
    model, entries = load(opened.source), opened.manifest
    if MANIFEST in opened.added:
        findings.append(Finding("manifest", "note", "a plain ONNX file: augmented in memory, nothing is written"))
    if GRADIENTS in opened.added:
        findings.append(
            Finding("outputs", "note", "the file leaves gradients out: they are added in memory to be checked")
        )
    graph = prepare(model)
    interface = Interface.of_graph(graph)
    gate = {} if not entries.get("gate") else {entries["gate"]["output"]: Value("bool", None)}  # it is taken out
    require_agreement(entries, interface._replace(outputs={**interface.outputs, **gate}))
    missing = [str(entry.get("value")) for entry in entries["layers"] if entry.get("value") not in graph]
    if missing:
        raise ModelError(
            f"the manifest names {listing(missing)}, which the graph does not have; export the model again"
        )

    def open_session(part: onnx.ModelProto, options: Any = None) -> Any:
        options = options or runtime.options.proving()
        return runtime.open_session(serialize(part), providers, options, allow_fallback=allow_fallback)

    if (entries.get("measured") or {}).get("rows") == manifest.COUPLED:  # as they are explained: one by one
        samples, directions = 1, directions * samples
    rng = np.random.default_rng(seed)
    file = open_session(model)
    ungated = open_session(graph.model) if entries.get("gate") else file
    subject = Subject(graph, entries, open_session, file, ungated, noise_pictures(entries, samples, rng))
    try:
        findings += _findings(subject, directions, rng)
    except (InputError, ModelError) as error:
        raise refusal(error, entries["input"], subject.batch.shape) from error
    names = [entry[key] for entry in entries["layers"] for key in ("name", "value")]
    layers = probe(opened.source, all_layers=True).to_dict() if all_layers else entries
    if opened.origin is not None and (read_source(opened.origin)[1] or {}).get("pixels"):
        findings.append(pixels.preparation(load(opened.origin), subject, rng))
    findings += [*facts.of_file(entries), *facts.of_layers(layers, names if places else ())]
    name = str((entries.get("source") or {}).get("name") or "model")
    return ModelReport(name, findings=findings)


def _findings(subject: Subject, directions: int, rng: np.random.Generator) -> list[Finding]:
    """What the runs of the model show."""
    graph, entries = subject.graph, subject.manifest
    findings = [
        contents.file_format(graph, entries),
        *contents.rewrites(entries),
        *contents.training(graph),
        Finding("providers", "note", "runs on " + ", ".join(subject.file.get_providers())),
        contents.cuda_fallbacks(graph),
        contents.parity(entries),
        outputs.predictions(subject),
        *outputs.optimization(subject),
    ]
    if entries["target"]["mode"] != "constant" and not isinstance(subject.readout.task, (Embed, Values)):
        findings.append(outputs.top_1_target(subject))
    for entry in entries["layers"]:
        findings.append(at_layer(subject, entry, directions, rng))
        findings.append(outputs.heatmaps(subject, entry))
    if entries.get("gate"):
        findings.append(outputs.gate(subject))
    if entries.get("calibration"):
        findings.append(outputs.calibration(subject))
    return findings


def at_layer(subject: Subject, entry: dict[str, Any], directions: int, rng: np.random.Generator) -> Finding:
    """Compare the gradients at one layer with finite differences of the tail.

    Arguments:
        entry: the layer in the manifest.
        directions: random directions per picture, of each kind.
    """
    title = f"gradients at {entry['name']}"
    graph, value, scores = subject.graph, entry["value"], subject.scores
    backward = part_after(graph, subject.manifest, entry, outputs=[entry["gradients"]])
    forward = part_after(graph, subject.manifest, entry, outputs=[scores])
    between, values = path(graph, scores, [value])
    rounded = {name for name in values if graph.dtype(name) in INTEGERS}
    selecting: dict[str, str] = {}
    if rounded:
        _relax(graph, forward.model, scores, rounded)
        selecting = _freeze_selections(graph, forward.model, between, rounded)
    before = crossing(graph, subject.manifest["input"]["name"], value, selecting)
    cut = subject.head_values(list(dict.fromkeys((*backward.cut, *forward.cut, *before))))
    scorer = subject.open_session(forward.model)
    cut[value] = differences.off_kinks(cut[value], rng)
    frozen = _values(subject, {name: cut[name] for name in before}, selecting)
    columns = cut[scores]
    if subject.readout.task is not None:  # the file settles what is explained on the activations as they are now
        moved = {name: cut[name] for name in forward.cut} | frozen
        columns = runtime.run(scorer, [scores], moved)[scores]
    questions = _scalars(subject, entry, columns, rng)
    if questions is None:
        return Finding(title, "unsure", "the model reports no box on noise pictures: there is nothing to compare")
    feeds = {name: cut[name] for name in backward.cut} | questions.feeds
    session = subject.open_session(backward.model)
    gradient = runtime.run(session, [entry["gradients"]], feeds)[entry["gradients"]].astype(np.float64)
    a = cut[value].astype(np.float64)
    rows = len(a)
    if gradient.shape != a.shape:
        return Finding(title, "failed", f"their shape is {list(gradient.shape)}, that of the layer {list(a.shape)}")
    if rows != len(cut[scores]):
        detail = f"the layer has {rows} rows for {len(cut[scores])} pictures, as crops of a picture are: not compared"
        return Finding(title, "unsure", detail)
    if not np.isfinite(gradient).all():
        return Finding(title, "failed", "they are not finite on noise pictures")

    def score(activations: np.ndarray) -> np.ndarray:
        feeds = {name: cut[name] for name in forward.cut} | frozen
        feeds[value] = activations.reshape(a.shape).astype(cut[value].dtype)
        columns = runtime.run(scorer, [scores], feeds)[scores].astype(np.float64)
        return questions.value(columns)

    errors = differences.compare(
        score, a.reshape(rows, -1), gradient.reshape(rows, -1), directions, subject.precision, rng
    )
    jumps = {node.op_type for node in between if not graph.is_constant(node.input[0])} & _JUMPS
    finding = errors.finding(title, sorted(jumps))
    if not rounded:
        return finding
    return replace(
        finding, detail=f"{finding.detail}; quantization straight through: without rounding, with saturation"
    )


def _relax(graph: Graph, tail: onnx.ModelProto, scores: str, rounded: set[str]) -> None:
    """Take the rounding out of a quantized tail: its gradient is that of the identity there."""
    source = unrounded(graph, scores)
    last = {node.output[0] for node in graph.consumers.get(source, []) if source != scores}
    quantized.relax(tail, rounded, last & rounded)


def _freeze_selections(
    graph: Graph, tail: onnx.ModelProto, between: Sequence[onnx.NodeProto], rounded: set[str]
) -> dict[str, str]:
    """Let pools of a relaxed tail select the element that is the largest after rounding: rounded values tie often.

    Returns:
        the inputs that the tail got for it, by the value of the whole model that each takes.
    """
    after = graph.downstream(rounded)
    pools = [node for node in between if node.op_type == "MaxPool" and node.input[0] in after]
    types = {node.input[0]: graph.dtype(node.input[0]) for node in pools}
    return quantized.freeze_selections(tail, [node.output[0] for node in pools], types)


def _values(subject: Subject, cut: dict[str, np.ndarray], names: dict[str, str]) -> dict[str, np.ndarray]:
    """Compute values of the model from those of a cut before them; return them under other names."""
    if not names:
        return {}
    graph = subject.graph
    inputs, outputs = ([edit.info(n, graph.dtype(n), graph.shape(n)) for n in part] for part in (cut, names))
    session = subject.open_session(edit.extract(graph, inputs, outputs))
    return {names[name]: array for name, array in runtime.run(session, list(names), cut).items()}


def _scalars(
    subject: Subject, entry: dict[str, Any], columns: np.ndarray, rng: np.random.Generator
) -> scalars.Scalars | None:
    """What is explained of each row, and its number."""
    if subject.readout.task is not None:
        return scalars.draw(subject, columns, rng, entry)
    classes = _classes(subject, columns, rng)

    def of_class(y: np.ndarray) -> np.ndarray:
        return np.asarray(subject.readout.per_class(y)[np.arange(len(y)), classes])

    return scalars.Scalars(subject.target(classes), of_class)


def _classes(subject: Subject, scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a class for each row but the first, which gets its best; a file with a constant target has one class.

    No class comes twice while there are others: a mistake may concern some of them only.
    """
    size, best = subject.readout.size, int(subject.readout.top1(scores[:1])[0])
    masked = np.flatnonzero(np.isneginf(subject.readout.per_class(scores)).any(axis=0))  # their score has no slope
    others = np.setdiff1d(np.arange(size), [best, *masked])
    order = np.concatenate([[best], rng.permutation(others)]) if size > 1 else np.zeros(1)
    classes = np.resize(order, len(scores)).astype(np.int64)
    if "class" in subject.manifest["target"]:
        classes[:] = subject.manifest["target"]["class"]
    elif subject.manifest["target"].get("rows") == manifest.SHARED:
        classes[:] = classes[0]
    return classes
