"""Findings read from the file without running it: format, operators, recorded parity."""

from __future__ import annotations

from onnxcam.diagnose.report import Finding
from onnxcam.errors import listing
from onnxcam.graph.training import operators_in_training
from onnxcam.graph.view import Graph, attributes
from onnxcam.network.manifest import Manifest

# operators without a CUDA kernel, and the opset from which it is missing (onnxruntime 1.31.1; #26065, #26393)
_NO_CUDA = {"MaxUnpool": 1, "Col2Im": 1, "MaxPool": 22, "InstanceNormalization": 22, "Dropout": 22}


def file_format(graph: Graph, manifest: Manifest) -> Finding:
    """Report opset, IR version, the oldest runtime, and operators outside the ONNX standard."""
    domains = sorted({node.domain for node in graph.nodes if node.domain not in ("", "ai.onnx")})
    requires = manifest.get("requires") or {}
    text = f"opset {graph.opset}, IR {graph.model.ir_version}, onnxruntime {requires.get('onnxruntime', '?')} or newer"
    if domains:
        return Finding("format", "note", f"{text}; uses operators of {', '.join(domains)}, which not every runtime has")
    return Finding("format", "ok", f"{text}; standard operators only")


def cuda_fallbacks(graph: Graph) -> Finding:
    """Count the nodes that would run on the CPU when the rest runs on CUDA."""
    counts: dict[str, int] = {}
    for node in graph.nodes:
        since = _NO_CUDA.get(node.op_type)
        falls_back = since is not None and graph.opset >= since
        if node.op_type == "ConvTranspose":
            settings = attributes(node)
            pads = list(settings.get("pads", []))
            symmetric = pads[: len(pads) // 2] == pads[len(pads) // 2 :]
            falls_back = not symmetric or settings.get("auto_pad", "NOTSET") != "NOTSET"
        if falls_back:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    if not counts:
        return Finding("CUDA", "ok", "no operator is known to fall back to the CPU")
    listed = ", ".join(f"{count} {op_type}" for op_type, count in sorted(counts.items()))
    return Finding(
        "CUDA", "note", f"{listed} would fall back to the CPU at opset {graph.opset}; export at opset 18 to 21"
    )


def rewrites(manifest: Manifest) -> list[Finding]:
    """Report operators of the source that stand in the file as others; nothing where there are none."""
    sentences = manifest.get("rewrites") or []
    return [Finding("rewritten", "note", "; ".join(sentences))] if sentences else []


def training(graph: Graph) -> list[Finding]:
    """Fail a model with operators in training mode, wherever they stand; nothing where there are none."""
    names = operators_in_training(graph)
    if not names:
        return []
    detail = (
        f"{listing(names)} is in training mode: a picture's scores depend on the others in its batch, or on chance; "
        "export the model for inference (`model.eval()` in PyTorch)"
    )
    return [Finding("training mode", "failed", detail)]


def parity(manifest: Manifest) -> Finding:
    """Report the distance to the framework's own autograd, as measured at export."""
    entry = manifest.get("parity")
    if not entry:
        return Finding(
            "parity", "note", "none recorded: the file was not exported from a framework with verification on"
        )
    figures = {key: float(entry[key]) for key in ("scores", "activations", "gradients") if key in entry}
    within = all(value <= float(entry["tolerance"]) for value in figures.values())
    worst = ", ".join(f"{key} {value:.1e}" for key, value in figures.items())
    text = f"at export, against {entry['against']} on {entry['samples']} samples: {worst}"
    return Finding("parity", "ok" if within else "failed", f"{text} (tolerance {entry['tolerance']:g})", figures)
