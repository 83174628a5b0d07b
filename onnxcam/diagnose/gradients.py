"""`onnxcam check`: proves an explainable file in the runtime it will serve in.

Gradients are compared with central finite differences of the scores along random directions at the target layer. Both
sides run in ONNX Runtime, in the model's own precision, so the step is chosen where two neighbouring steps agree best:
that choice never looks at the gradient under test, and how well they agree says how far the verdict can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from onnxcam import image, runtime
from onnxcam.autodiff.seed import unrounded
from onnxcam.autodiff.sweep import QUANTIZED, path
from onnxcam.errors import ModelError, listing
from onnxcam.graph import quantized
from onnxcam.graph.load import Source, load, serialize
from onnxcam.graph.view import Graph, attributes
from onnxcam.network import manifest
from onnxcam.network.explainable import augment
from onnxcam.network.manifest import Manifest
from onnxcam.network.network import prepare
from onnxcam.network.split import head_of, tail_of
from onnxcam.targets import conditions
from onnxcam.targets.readout import Readout

# perturbations relative to the size of the activations; a kink between two steps shows as their disagreement
STEPS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
TOLERANCE = 0.02
# the same where something between layer and scores jumps: a jump is in every difference across it, and in no gradient
TOLERANCE_JUMPS = 0.2
TOLERANCE_MAPS = 1e-3
TOLERANCE_GATE = 1e-6
# of the size of a normally distributed number, in standard deviations
_MEDIAN = 0.6745
# beyond this the finite differences disagree among themselves so much that they prove nothing
TRUSTED = 0.1
# of float32 (times its epsilon, and the more of float16): how far values are off by rounding alone
_ROUNDING = 2.5
# the same of what a map adds up, a few thousand terms of either sign
_MAP_ROUNDING = 30.0
# scores of the explainable and the plain model: where layers are exposed, a float16 model is rounded in other places
_SAME = {"float16": 3e-3}

_JUMPS = {"ThresholdedRelu", "Shrink", "Where"}
# operators without a CUDA kernel, at any opset or from one on (onnxruntime 1.31.1; #26065, #26393)
_NO_CUDA = {"MaxUnpool": 1, "Col2Im": 1, "MaxPool": 22, "InstanceNormalization": 22, "Dropout": 22}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `status` is `ok`, `failed`, `unsure` or `note`."""

    name: str
    status: str
    detail: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything `check` found."""

    model: str
    findings: list[Finding]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(finding.status != "failed" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"model": self.model, "passed": self.passed, "findings": [asdict(f) for f in self.findings]}

    def lines(self) -> list[str]:
        """One line per finding, for people."""
        return [f"{finding.status:>6}  {finding.name}: {finding.detail}" for finding in self.findings]


def check(
    source: Source,
    *,
    providers: Sequence[runtime.Provider] | None = None,
    samples: int = 4,
    directions: int = 8,
    seed: int = 1234,
    allow_fallback: bool = False,
) -> Report:
    """Prove a model: its gradients against finite differences, its predictions against the plain model.

    Arguments:
        source: an explainable model, or any classifier `.onnx`, which is augmented in memory first.
        providers: execution providers, as in `Explainer`.
        samples: pictures of noise the numbers are taken on.
        directions: random directions per picture, of each of the three kinds.
        seed: fixes pictures and directions.

    Returns:
        a `Report`; `passed` is False where a number is wrong.

    Raises:
        ModelError: the file is not a usable classifier. RuntimeUnavailable: a provider is not in use.
    """
    findings: list[Finding] = []
    model = load(source)
    held = manifest.read(model)
    if held is None:
        model = augment(source)
        held = manifest.read(model)
        findings.append(Finding("manifest", "note", "a plain ONNX file: augmented in memory, nothing is written"))
    assert held is not None  # augment always writes one
    if any(not entry["gradients"] for entry in held["layers"]):
        methods = tuple(dict.fromkeys(m for entry in held["layers"] for m in entry["heatmaps"]))
        model = augment(model, methods=methods)
        held = manifest.read(model) or held
        findings.append(
            Finding("outputs", "note", "the file leaves gradients out: they are added in memory to be checked")
        )
    graph = prepare(model)
    manifest.require_fit(held, graph.shape(held["input"]["name"]), {o.name for o in model.graph.output})
    gone = [str(entry.get("value")) for entry in held["layers"] if entry.get("value") not in graph]
    if gone:
        raise ModelError(f"the manifest names {listing(gone)}, which the graph does not have; export the model again")
    findings.append(_format(graph, held))
    findings.append(_fallbacks(graph))
    findings.append(_parity(held))

    def open_session(part: onnx.ModelProto) -> Any:
        return runtime.open_session(serialize(part), providers, allow_fallback=allow_fallback)

    rng = np.random.default_rng(seed)
    full = open_session(model)
    findings.insert(1, Finding("providers", "note", "runs on " + ", ".join(full.get_providers())))
    batch = _pictures(held, samples, rng)
    findings.append(_predictions(graph, held, open_session, full, batch))
    always = open_session(graph.model) if held.get("gate") else full
    if held["target"]["mode"] != "constant":
        findings.append(_own_class(held, always, batch))
    for entry in held["layers"]:
        findings.append(_gradients(graph, held, entry, open_session, batch, directions, rng))
        findings.append(_heatmaps(graph, held, entry, open_session, always, batch))
    if held.get("gate"):
        findings.append(_gate(held, full, always, batch))
    name = str((held.get("source") or {}).get("name") or "model")
    return Report(name, findings)


def _format(graph: Graph, held: Manifest) -> Finding:
    domains = sorted({node.domain for node in graph.nodes if node.domain not in ("", "ai.onnx")})
    requires = held.get("requires") or {}
    text = f"opset {graph.opset}, IR {graph.model.ir_version}, onnxruntime {requires.get('onnxruntime', '?')} or newer"
    if domains:
        return Finding("format", "note", f"{text}; uses operators of {', '.join(domains)}, which not every runtime has")
    return Finding("format", "ok", f"{text}; standard operators only")


def _fallbacks(graph: Graph) -> Finding:
    """Nodes that run on the CPU when the rest runs on CUDA."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        since = _NO_CUDA.get(node.op_type)
        lost = since is not None and graph.opset >= since
        if node.op_type == "ConvTranspose":
            held = attributes(node)
            pads = list(held.get("pads", []))
            lost = pads[: len(pads) // 2] != pads[len(pads) // 2 :] or held.get("auto_pad", "NOTSET") != "NOTSET"
        if lost:
            found[node.op_type] = found.get(node.op_type, 0) + 1
    if not found:
        return Finding("CUDA", "ok", "no operator is known to fall back to the CPU")
    named = ", ".join(f"{count} {op_type}" for op_type, count in sorted(found.items()))
    return Finding(
        "CUDA", "note", f"{named} would fall back to the CPU at opset {graph.opset}; export at opset 18 to 21"
    )


def _parity(held: Manifest) -> Finding:
    parity = held.get("parity")
    if not parity:
        return Finding(
            "parity", "note", "none recorded: the file was not exported from a framework with verification on"
        )
    figures = {key: float(parity[key]) for key in ("scores", "activations", "gradients") if key in parity}
    worst = ", ".join(f"{key} {value:.1e}" for key, value in figures.items())
    status = "ok" if all(value <= float(parity["tolerance"]) for value in figures.values()) else "failed"
    text = f"at export, against {parity['against']} on {parity['samples']} samples: {worst}"
    return Finding("parity", status, f"{text} (tolerance {parity['tolerance']:g})", figures)


def _pictures(held: Manifest, samples: int, rng: np.random.Generator) -> np.ndarray:
    """A batch of noise in the range the preprocessing gives, or standard normal where that is not known."""
    entry = held["input"]
    dims = [d if isinstance(d, int) else None for d in entry["shape"]]
    shape = [dims[0] or samples] + [d or 224 for d in dims[1:]]
    channels = 1 if entry["layout"] == "NCHW" else 3
    if dims[channels] is None:
        shape[channels] = 3
    if entry["dtype"] == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if not entry.get("preprocess"):
        return np.asarray(rng.normal(size=shape).astype(entry["dtype"]))
    preprocess = image.resolve(entry["preprocess"], entry["shape"], layout=entry["layout"])
    wide = [1, -1, 1, 1] if entry["layout"] == "NCHW" else [1, 1, 1, -1]
    mean, std = (np.asarray(held).reshape(wide) for held in (preprocess.mean, preprocess.std))
    return np.asarray(((rng.uniform(0.0, preprocess.scale * 255, shape) - mean) / std).astype(entry["dtype"]))


def _predictions(graph: Graph, held: Manifest, open_session: Any, full: Any, batch: np.ndarray) -> Finding:
    """The explainable model's scores against those of the head alone, at several batch sizes, and twice the same."""
    head = open_session(head_of(graph, held))
    name, feed = held["scores"]["name"], held["input"]["name"]
    sizes = [len(batch)] if isinstance(held["input"]["shape"][0], int) else sorted({1, len(batch)})
    worst, repeated = 0.0, True
    for size in sizes:
        part = batch[:size]
        feeds = {feed: part} | _target(held, np.full(size, -1, np.int64))
        outputs = [o.name for o in full.get_outputs()]
        got, again = runtime.run(full, outputs, feeds), runtime.run(full, outputs, feeds)
        repeated &= all(np.array_equal(got[key], again[key], equal_nan=True) for key in outputs)
        plain = runtime.run(head, [name], {feed: part})[name]
        worst = max(worst, _distance(got[name], plain))
        if not np.isfinite(got[name]).all():
            return Finding("predictions", "failed", "the scores are not finite on noise pictures")
    status = "ok" if worst <= _SAME.get(_precision(graph), 1e-5) else "failed"
    twice = "two runs are bitwise equal" if repeated else "two runs differ in the last bits"
    return Finding("predictions", status, f"within {worst:.1e} of the plain model; {twice}", {"scores": worst})


def _own_class(held: Manifest, always: Any, batch: np.ndarray) -> Finding:
    """Gradients for a negative target against those for each row's best class, named."""
    names = [entry["gradients"] for entry in held["layers"]]
    score = held["scores"]["name"]
    feeds = {held["input"]["name"]: batch}
    got = runtime.run(always, [score, *names], feeds | _target(held, np.full(len(batch), -1, np.int64)))
    best = Readout.from_manifest(held["scores"]).top1(got[score])
    named = runtime.run(always, names, feeds | _target(held, best))
    worst = max(_distance(got[name], named[name]) for name in names)
    if worst > TOLERANCE_GATE:
        return Finding(
            "target", "failed", f"a negative one is off each row's best class by {worst:.1e}", {"own": worst}
        )
    return Finding("target", "ok", "a negative one means each row's best class", {"own": worst})


def _gradients(
    graph: Graph,
    held: Manifest,
    entry: dict[str, Any],
    open_session: Any,
    batch: np.ndarray,
    directions: int,
    rng: np.random.Generator,
) -> Finding:
    """Gradients at one layer against finite differences of the tail."""
    title = f"gradients at {entry['name']}"
    value, score_name = entry["value"], held["scores"]["name"]
    tail = tail_of(graph, held, entry, outputs=[entry["gradients"]])
    forward = tail_of(graph, held, entry, outputs=[score_name])
    rounded = _rounded(graph, score_name, value)
    if rounded:
        source = unrounded(graph, score_name)
        ending = {node.output[0] for node in graph.consumers.get(source, []) if source != score_name}
        quantized.relax(forward.model, rounded, ending & rounded)
    passed = list(dict.fromkeys((*tail.cut, *forward.cut)))
    head = open_session(head_of(graph, held, passed))
    scorer = open_session(forward.model)
    cut = runtime.run(head, passed, {held["input"]["name"]: batch})
    cut[value] = _off_kinks(cut[value], rng)
    rows = len(batch)
    scores = runtime.run(head, [score_name], {held["input"]["name"]: batch})[score_name]
    readout = Readout.from_manifest(held["scores"])
    classes = np.asarray(rng.integers(0, readout.size, rows), np.int64)
    classes[0] = readout.top1(scores[:1])[0]
    if "class" in held["target"]:
        classes[:] = held["target"]["class"]
    fed = {name: cut[name] for name in tail.cut} | _target(held, classes)
    got = runtime.run(open_session(tail.model), [entry["gradients"]], fed)
    gradient = got[entry["gradients"]].astype(np.float64)
    fixed = {name: cut[name] for name in forward.cut}
    a = cut[value].astype(np.float64)
    flat_a, flat_g = a.reshape(rows, -1), gradient.reshape(rows, -1)
    if gradient.shape != a.shape:
        return Finding(title, "failed", f"their shape is {list(gradient.shape)}, that of the layer {list(a.shape)}")
    if not np.isfinite(flat_g).all():
        return Finding(title, "failed", "they are not finite on noise pictures")

    def score(moved: np.ndarray) -> np.ndarray:
        fed = fixed | {value: moved.reshape(a.shape).astype(cut[value].dtype)}
        got = runtime.run(scorer, [score_name], fed)[score_name].astype(np.float64)
        return np.asarray(readout.per_class(got)[np.arange(rows), classes])

    size_a = np.linalg.norm(flat_a, axis=1) + 1e-12
    size_g = np.linalg.norm(flat_g, axis=1) + 1e-30
    # how far rounding alone moves the scores: below it a difference of scores says nothing
    precision = _precision(graph)
    relative = _ROUNDING * float(np.finfo(precision).eps)
    shaken = [score(flat_a * (1 + relative * rng.uniform(-1, 1, flat_a.shape))) for _ in range(8)]
    rounding = np.std(shaken, axis=0) + np.spacing(np.abs(shaken[0]).astype(precision)).astype(np.float64)
    errors: dict[str, list[float]] = {}
    doubts: dict[str, list[float]] = {}
    spread_out = size_g / np.sqrt(flat_g.shape[1])
    for _ in range(directions):
        for kind, direction in _directions(flat_g, flat_a, rng):
            unit = direction / (np.linalg.norm(direction, axis=1, keepdims=True) + 1e-30)
            predicted = (flat_g * unit).sum(axis=1)
            slopes, noise = [], []
            for step in STEPS:
                h = step * size_a
                up, down = score(flat_a + h[:, None] * unit), score(flat_a - h[:, None] * unit)
                slopes.append((up - down) / (2 * h))
                noise.append(2 * rounding / h)
            taken, doubt = _settled(np.stack(slopes), np.stack(noise))
            scale = np.abs(predicted) + spread_out
            if kind == "anywhere":  # what a gradient gives there on the average: its error shows as it is
                weight = np.square(_weight(flat_a))
                scale = np.sqrt((np.square(flat_g) * weight).sum(axis=1) / weight.sum(axis=1)) * _MEDIAN + 1e-30
            errors.setdefault(kind, []).extend(np.abs(taken - predicted) / scale)
            doubts.setdefault(kind, []).extend(doubt / scale)
    between = path(graph, score_name, [value])[0]
    jumps = {node.op_type for node in between if not graph.is_constant(node.input[0])} & _JUMPS
    found = _verdict(title, errors, doubts, sorted(jumps))
    if not rounded:
        return found
    return replace(found, detail=f"{found.detail}; quantization straight through: without rounding, with saturation")


def _precision(graph: Graph) -> str:
    """The coarsest floating-point type that the model computes in."""
    kinds = {graph.dtype(name) for node in graph.nodes for name in node.output}
    return "float16" if onnx.TensorProto.FLOAT16 in kinds else "float32"


def _rounded(graph: Graph, scores: str, value: str) -> set[str]:
    """The quantized values between a layer and the scores: the gradient takes their rounding for the identity."""
    return {name for name in path(graph, scores, [value])[1] if graph.dtype(name) in QUANTIZED}


def _off_kinks(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Activations a little aside: behind a ReLU whole pooling windows are 0, where there is no derivative."""
    noise = rng.uniform(-0.1, 0.1, a.shape) * np.sqrt(np.mean(np.square(a, dtype=np.float64)))
    return np.asarray(a + noise, dtype=a.dtype)


def _directions(g: np.ndarray, a: np.ndarray, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """Where to look: along the gradient, along random halves of it, and anywhere (where a missing term shows)."""
    return [
        ("along", g * rng.uniform(0.5, 1.5, (len(g), 1))),
        ("halves", g * rng.integers(0, 2, g.shape)),
        ("anywhere", rng.normal(size=g.shape) * _weight(a)),
    ]


def _weight(a: np.ndarray) -> np.ndarray:
    """How far each activation is moved where all are."""
    return np.asarray(np.abs(a) + np.abs(a).mean(axis=1, keepdims=True))


def _settled(slopes: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per row the slope at the step that agrees best with its neighbour, and how well: both `[rows]`."""
    spread = np.abs(np.diff(slopes, axis=0)) + noise[1:]
    best = spread.argmin(axis=0)
    rows = np.arange(slopes.shape[1])
    return slopes[best, rows], spread[best, rows]


def _verdict(
    title: str, errors: dict[str, list[float]], doubts: dict[str, list[float]], jumps: Sequence[str]
) -> Finding:
    figures = {kind: float(np.median(held)) for kind, held in errors.items()}
    trust = {kind: float(np.median(held)) for kind, held in doubts.items()}
    worst = max(figures, key=lambda kind: figures[kind] - 3 * trust[kind])
    off = ", ".join(f"{kind} {value:.1e}" for kind, value in figures.items())
    text = f"off finite differences by {off} (median over {len(errors[worst])} directions of each kind"
    beyond = figures[worst] - 3 * trust[worst]
    if beyond > (TOLERANCE_JUMPS if jumps else TOLERANCE):
        return Finding(title, "failed", f"{text}; at most {TOLERANCE:g} is float32's own doing)", figures)
    if beyond > TOLERANCE:
        return Finding(title, "unsure", f"{text}; {listing(jumps)} jumps, and differences count the jumps)", figures)
    unsure = [kind for kind, value in trust.items() if value > TRUSTED]
    if unsure:
        return Finding(title, "unsure", f"{text}; finite differences are too noisy here to prove more)", figures)
    return Finding(title, "ok", f"{text})", figures)


def _maps(
    held: Manifest, entry: dict[str, Any], got: dict[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Heatmaps computed anew in NumPy from the file's own activations and gradients, where the formula is plain.

    With each comes what its terms add up to without their signs: a sum in which all but nothing cancels, as behind an
    instance normalisation, is made of their rounding.
    """
    a, g = (got[entry[key]].astype(np.float64) for key in ("activations", "gradients"))
    if entry["layout"] == "NTC":
        rows, prefix = len(a), entry["prefix_tokens"]
        a, g = (x[:, prefix:].transpose(0, 2, 1).reshape(rows, -1, *entry["grid"]) for x in (a, g))
    elif entry["layout"] == "NHWC":
        a, g = a.transpose(0, 3, 1, 2), g.transpose(0, 3, 1, 2)
    formulas = {
        "gradcam": lambda a, g: (g.mean(axis=(2, 3), keepdims=True) * a).sum(axis=1),
        "hirescam": lambda a, g: (g * a).sum(axis=1),
    }
    return {
        output: (np.maximum(formulas[name](a, g), 0.0), formulas[name](np.abs(a), np.abs(g)))
        for name, output in entry["heatmaps"].items()
        if name in formulas
    }


def _heatmaps(graph: Graph, held: Manifest, entry: dict[str, Any], open_session: Any, full: Any, batch: Any) -> Finding:
    """The outputs of one layer: activations are the layer's, heatmaps what activations and gradients make."""
    names = list(entry["heatmaps"].values())
    title = f"heatmaps at {entry['name']}"
    if not names:
        return Finding(title, "note", "the file computes none")
    feeds = {held["input"]["name"]: batch} | _target(held, np.full(len(batch), -1, np.int64))
    exposed = runtime.run(full, [*names, entry["activations"], entry["gradients"]], feeds)
    head = open_session(head_of(graph, held, [entry["value"]]))
    layer = runtime.run(head, [entry["value"]], {held["input"]["name"]: batch})[entry["value"]]
    if (off := _distance(exposed[entry["activations"]], layer)) > 1e-5:
        return Finding(title, "failed", f"{entry['activations']!r} is off the layer's own value by {off:.1e}")
    rounding = _MAP_ROUNDING * float(np.finfo(_precision(graph)).eps)
    for name, (value, terms) in _maps(held, entry, exposed).items():
        allowed = TOLERANCE_MAPS + rounding * _size(terms) / np.maximum(_size(value), 1e-12)
        distances = _distances(exposed[name], value)
        if (distances > allowed).any():
            told = f"{name!r} is off what activations and gradients make by {distances.max():.1e}"
            return Finding(title, "failed", told)
    got = {name: exposed[name] for name in names}
    for name, value in got.items():
        if not np.isfinite(value).all() or (value < 0).any():
            return Finding(title, "failed", f"{name!r} is negative or not finite on noise pictures")
        if entry.get("grid") and list(value.shape[1:]) != list(entry["grid"]):
            return Finding(title, "failed", f"{name!r} is {list(value.shape[1:])}, the manifest says {entry['grid']}")
    zero = sum(not value[row].any() for value in got.values() for row in range(len(batch)))
    rest = f"; {zero} of {len(got) * len(batch)} are zero everywhere" if zero else ""
    return Finding(title, "ok", f"{', '.join(entry['heatmaps'])} {list(next(iter(got.values())).shape[1:])}{rest}")


def _gate(held: Manifest, full: Any, always: Any, batch: np.ndarray) -> Finding:
    """A gated file against its condition and against itself without the gate, for the batch and for each row alone."""
    condition, fired = held["gate"]["condition"], held["gate"]["output"]
    readout, name = Readout.from_manifest(held["scores"]), held["scores"]["name"]
    tree = conditions.parse(condition, held.get("labels"), readout.size)
    names = [entry["gradients"] for entry in held["layers"]]
    names += [output for entry in held["layers"] for output in entry["heatmaps"].values()]
    rows = [] if isinstance(held["input"]["shape"][0], int) else [batch[row : row + 1] for row in range(len(batch))]
    worst, met_by = 0.0, 0
    for part in [batch, *rows]:
        feeds = {held["input"]["name"]: part} | _target(held, np.full(len(part), -1, np.int64))
        got = runtime.run(full, [name, fired, *names], feeds)
        found = conditions.quantities(
            conditions.probabilities(got[name], readout, "logits"), readout, conditions.names(tree)
        )
        met = conditions.evaluate(tree, found)
        if not np.array_equal(got[fired], met):
            told = f"{fired!r} says {got[fired].tolist()} where {condition!r} is {met.tolist()}"
            return Finding("gate", "failed", told)
        if part is batch:
            met_by = int(met.sum())
        if met.any():
            whole = runtime.run(always, names, feeds)
            worst = max(worst, *(_distance(got[output], whole[output]) for output in names))
        elif any(got[output].any() for output in names):
            return Finding("gate", "failed", f"the maps are not zero where {condition!r} does not hold")
    told = (
        f"{condition}: met by {met_by} of {len(batch)} noise pictures; maps within {worst:.1e} of those without a gate"
    )
    return Finding("gate", "ok" if worst <= TOLERANCE_GATE else "failed", told, {"maps": worst})


def _target(held: Manifest, classes: np.ndarray) -> dict[str, np.ndarray]:
    return {} if held["target"]["mode"] == "constant" else {held["target"]["name"]: classes}


def _size(a: np.ndarray) -> np.ndarray:
    """The norm of each row."""
    return np.asarray(np.linalg.norm(a.reshape(len(a), -1).astype(np.float64), axis=1))


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The parity metric of each row: |a - b| / max(|b|, 1e-12)."""
    return np.asarray(_size(a.astype(np.float64) - b) / np.maximum(_size(b), 1e-12))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest of them."""
    return float(_distances(a, b).max())
