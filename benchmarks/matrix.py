"""The coverage matrix: parity with torch autograd over torchvision's architectures, written to docs/coverage.md.

    make matrix                      # measure what is missing or failed last time, then write the table
    make matrix ARGS='--fresh'       # measure everything anew
    make matrix ARGS='resnet18 vgg16'

Every architecture runs in a process of its own, one at a time, so that a crash costs one row. Rows are kept as JSON
under build/coverage until they are measured anew.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "build" / "coverage"
TABLE = ROOT / "docs" / "coverage.md"
sys.path.insert(0, str(ROOT))

TOLERANCE, SLACK = 1e-3, 3.0
SAMPLES = 4
LIMIT_S = 900
SEED = 1234
QUANTITIES = ("scores", "activations", "gradients")
PACKAGES = ("onnxcam", "onnxruntime", "onnx", "torch", "torchvision", "onnxscript")
Row = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One row of the matrix.

    Attributes:
        middle: the module explained besides the default layer.
        size: side of the input picture.
        options: further arguments of the constructor.
    """

    middle: str
    size: int = 96
    options: tuple[tuple[str, Any], ...] = ()


ARCHITECTURES: dict[str, Architecture] = {
    "alexnet": Architecture("features.6"),
    "convnext_tiny": Architecture("features.3"),
    "densenet121": Architecture("features.denseblock2"),
    "densenet161": Architecture("features.denseblock3", 64),
    "densenet169": Architecture("features.transition2", 64),
    "efficientnet_b0": Architecture("features.4"),
    "efficientnet_b2": Architecture("features.5", 64),
    "efficientnet_v2_s": Architecture("features.4", 64),
    "googlenet": Architecture("inception4b", options=(("aux_logits", False), ("init_weights", False))),
    "inception_v3": Architecture("Mixed_6c", 139, (("init_weights", False),)),
    "maxvit_t": Architecture("blocks.1", 224),
    "mnasnet0_5": Architecture("layers.10"),
    "mnasnet1_0": Architecture("layers.9"),
    "mobilenet_v2": Architecture("features.10"),
    "mobilenet_v3_large": Architecture("features.9"),
    "mobilenet_v3_small": Architecture("features.6"),
    "regnet_x_400mf": Architecture("trunk_output.block3"),
    "regnet_x_1_6gf": Architecture("trunk_output.block2", 64),
    "regnet_y_400mf": Architecture("trunk_output.block3"),
    "regnet_y_1_6gf": Architecture("trunk_output.block3.block3-4", 64),
    "resnet18": Architecture("layer2"),
    "resnet34": Architecture("layer3.2.bn1"),
    "resnet50": Architecture("layer3"),
    "resnet101": Architecture("layer3.10", 64),
    "resnext50_32x4d": Architecture("layer2"),
    "shufflenet_v2_x0_5": Architecture("stage3"),
    "shufflenet_v2_x1_0": Architecture("stage2"),
    "squeezenet1_0": Architecture("features.7"),
    "squeezenet1_1": Architecture("features.6"),
    "swin_t": Architecture("features.3"),
    "vgg11": Architecture("features.10", 64),
    "vgg13_bn": Architecture("features.16", 64),
    "vgg16": Architecture("features.16", 64),
    "vgg19_bn": Architecture("features.25", 64),
    "vit_b_32": Architecture("encoder.layers.encoder_layer_5", 128, (("image_size", 128),)),
    "wide_resnet50_2": Architecture("layer3", 64),
}


def build(name: str, seed: int = SEED) -> tuple[Any, Any]:
    """A torchvision model with seeded weights and batch-norm statistics that are neither trivial nor absurd.

    Running statistics are those of a random batch, each then off by up to 20 %, and the affine parameters are drawn
    around 1 and 0: so activations keep their size with depth, and no batch norm is the identity.

    Returns:
        the model in eval mode, and one random picture `[1, 3, size, size]`.
    """
    import torch
    from torch import nn

    from tests.torchvision_stub import import_torchvision

    entry = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = import_torchvision().models.get_model(name, weights=None, **dict(entry.options)).eval()
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.weight.uniform_(0.7, 1.3)
            norm.bias.uniform_(-0.2, 0.2)
            norm.momentum = None
            norm.train()
            norm.reset_running_stats()
        model(torch.randn(8, 3, entry.size, entry.size))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.25))
            norm.running_mean.add_(norm.running_var.sqrt() * torch.empty_like(norm.running_mean).uniform_(-0.2, 0.2))
    return model.eval(), torch.randn(1, 3, entry.size, entry.size)


def measure(name: str, layer: str | None) -> Row:
    """Export an architecture from a one-row example and compare a batch with torch autograd.

    The comparison is the matrix's own: plain forward hooks on the module that the layer is named after. Where no module
    returns the layer's value (a functional ReLU, say), the figures are those of the exporter's own verification.

    Arguments:
        layer: a module's name, None for the default layer.

    Returns:
        the row: layer, shape, one entry per quantity with `error` and, where measured, `floor`.
    """
    import numpy as np
    import torch
    from onnxcam.exporters import pytorch

    from onnxcam.errors import VerificationError
    from onnxcam.graph import manifest

    model, picture = build(name)
    layers = None if layer is None else [layer]
    began = time.perf_counter()
    refused = None
    try:
        explained = pytorch.export(model, picture, None, layers=layers)
    except VerificationError as error:
        refused = str(error)
        explained = pytorch.export(model, picture, None, layers=layers, verify=False)
    seconds = time.perf_counter() - began
    held = manifest.read(explained)
    assert held is not None
    entry = held["layers"][0]
    row: Row = {
        "layer": entry["name"],
        "shape": entry["shape"],
        "exporter": held["source"]["exporter"],
        "export_s": seconds,
        "refused": refused,
    }
    batch = torch.randn(SAMPLES, *picture.shape[1:], generator=torch.Generator().manual_seed(SEED))
    wanted = np.array([-1, -1, 7, 123])
    named = entry["name"] in dict(model.named_modules())
    row["oracle"] = "hooks" if named else "captured program"
    if not named:
        if refused is not None:
            raise VerificationError(refused)
        parity = held["parity"]
        row["figures"] = {q: {"error": parity[q]} for q in QUANTITIES}
        row["figures"]["gradients"]["floor"] = parity["tolerance"] / SLACK if parity["tolerance"] > TOLERANCE else None
    else:
        found = _run(explained, held, batch.numpy(), wanted)
        expected = _autograd(model, entry["name"], batch, wanted)
        exact = _autograd(model.double(), entry["name"], batch.double(), expected[3])
        row["figures"] = {}
        for place, quantity in enumerate(QUANTITIES):
            far, floor = _distance(found[place], expected[place]), _distance(expected[place], exact[place])
            worst = int((far / np.maximum(TOLERANCE, SLACK * floor)).argmax())
            row["figures"][quantity] = {"error": float(far[worst]), "floor": float(floor[worst])}
    row["passed"] = refused is None and all(
        figure["error"] <= max(TOLERANCE, SLACK * (figure.get("floor") or 0.0)) for figure in row["figures"].values()
    )
    return row


def _run(explained: Any, held: Any, batch: Any, targets: Any) -> list[Any]:
    """Scores, activations and gradients from the file alone, as any ONNX Runtime client would fetch them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(explained.SerializeToString(), options, providers=["CPUExecutionProvider"])
    entry = held["layers"][0]
    names = [held["scores"]["name"], entry["activations"], entry["gradients"]]
    found: list[Any] = session.run(names, {held["input"]["name"]: batch, held["target"]["name"]: targets})
    return found


def _autograd(model: Any, layer: str, batch: Any, targets: Any) -> tuple[Any, Any, Any, Any]:
    """Scores, the layer's value, d score[n, target[n]] / d value, and the targets with top-1 in place of negatives."""
    import numpy as np
    import torch

    kept: list[Any] = []

    def hook(_: Any, __: Any, output: Any) -> Any:
        kept.append(output.clone().requires_grad_() if not output.requires_grad else output.clone())
        return kept[-1].clone()

    handle = dict(model.named_modules())[layer].register_forward_hook(hook)
    try:
        scores = model(batch)
    finally:
        handle.remove()
    chosen = np.where(targets < 0, scores.detach().numpy().argmax(axis=1), targets)
    total = scores.gather(1, torch.as_tensor(chosen)[:, None]).sum()
    (gradient,) = torch.autograd.grad(total, kept[-1])
    return scores.detach().numpy(), kept[-1].detach().numpy(), gradient.numpy(), chosen


def _distance(a: Any, b: Any) -> Any:
    """Per sample |a - b| / max(|b|, 1e-12)."""
    import numpy as np

    if a.shape != b.shape:
        raise ValueError(f"shape {a.shape} where torch has {b.shape}")
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    far = np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-12)
    return np.where(np.isfinite(far), far, np.inf)


def measure_light(name: str) -> Row:
    """Augment one of the onnx package's light models, compare its predictions with the file as it came, check it."""
    import numpy as np

    from onnxcam.augmentation import augment
    from onnxcam.check import check
    from onnxcam.graph import manifest
    from onnxcam.runtime import open_session, run
    from tests.zoo import light

    plain = light(name)
    began = time.perf_counter()
    explained = augment(plain)
    seconds = time.perf_counter() - began
    held = manifest.read(explained)
    assert held is not None
    entry, picture = held["layers"][0], held["input"]
    shape = [dim if isinstance(dim, int) else 1 for dim in picture["shape"]]
    batch = np.random.default_rng(SEED).normal(size=shape).astype(np.float32)
    output = plain.graph.output[0].name
    cpu = ["CPUExecutionProvider"]
    before = run(open_session(plain.SerializeToString(), cpu), [output], {picture["name"]: batch})[output]
    after = run(open_session(explained.SerializeToString(), cpu), [output], {picture["name"]: batch})[output]
    far = float(_distance(after, before).max())
    report = check(explained, providers=cpu)
    gradients = next(finding for finding in report.findings if finding.name.startswith("gradients"))
    return {
        "opset": plain.opset_import[0].version,
        "layer": entry["name"],
        "shape": entry["shape"],
        "predictions": far,
        "gradients": gradients.status,
        "detail": gradients.detail,
        "differences": gradients.figures,
        "findings": [line for line, f in zip(report.lines(), report.findings, strict=True) if f.status == "failed"],
        "augment_s": seconds,
        "passed": report.passed and far <= 1e-5,
    }


def work(task: str) -> None:
    """Measure one row in this process and keep it."""
    began = time.perf_counter()
    kind, _, name = task.partition(":")
    row: Row
    try:
        if kind == "light":
            row = measure_light(name)
        else:
            row = measure(name, None if kind == "default" else ARCHITECTURES[name].middle)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        row = {"passed": False, "reason": f"{type(error).__name__}: {first}"}
    _keep(task, row | {"seconds": time.perf_counter() - began})


def _keep(task: str, row: Row) -> None:
    row |= {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "versions": _versions()}
    ROWS.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=ROWS, suffix=".part", delete=False, encoding="utf-8") as file:
        json.dump(row, file, indent=1)
    Path(file.name).replace(_path(task))


def _path(task: str) -> Path:
    return ROWS / (task.replace(":", ".") + ".json")


def _held(task: str) -> Row | None:
    path = _path(task)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def tasks(names: Sequence[str] = ()) -> list[str]:
    """What there is to measure: default and middle layer of every architecture, then the light models."""
    from tests.zoo import NAMES

    every = [f"{kind}:{name}" for name in sorted(ARCHITECTURES) for kind in ("default", "middle")]
    every += [f"light:{name}" for name in NAMES]
    return [task for task in every if not names or task in names or task.partition(":")[2] in names]


def spawn(task: str) -> None:
    """Measure one row in a process of its own; a crash or a timeout becomes the row's reason."""
    command = [sys.executable, "-W", "ignore", __file__, "--row", task]
    _path(task).unlink(missing_ok=True)
    began = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=LIMIT_S, capture_output=True, text=True)
        reason = f"the process ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"
    except subprocess.TimeoutExpired:
        reason = f"not done after {LIMIT_S} s"
    if _held(task) is None:
        _keep(task, {"passed": False, "reason": reason, "seconds": time.perf_counter() - began})


def render() -> str:
    """The page, from the rows kept so far; what was not measured says so."""
    rows = {task: _held(task) for task in tasks()}
    done = [row for row in rows.values() if row is not None]
    dates = sorted({row["date"] for row in done})
    versions = {name: sorted({row["versions"][name] for row in done}) for name in PACKAGES}
    torch_rows = {task: row for task, row in rows.items() if not task.startswith("light:")}
    light_rows = {task: row for task, row in rows.items() if task.startswith("light:")}
    passed = sum(bool(row and row["passed"]) for row in torch_rows.values())
    floored = sum(row is not None and row["passed"] and _floor(row) is not None for row in torch_rows.values())
    lines = [
        "# Coverage",
        "",
        "Written by `make matrix` (`benchmarks/matrix.py`); do not edit.",
        "",
        f"Measured {' to '.join(dict.fromkeys([dates[0], dates[-1]])) if dates else 'never'} with "
        + ", ".join(f"{name} {' and '.join(held)}" for name, held in versions.items())
        + f", Python {platform.python_version()}, on the CPU.",
        "",
        "## torchvision architectures",
        "",
        f"{len(ARCHITECTURES)} architectures, each at the default layer (the last spatial one) and at a layer in the "
        f"middle: **{passed} of {len(torch_rows)} rows pass**, {floored} of them by the noise floor.",
        "",
        "Seeded random weights, perturbed batch-norm statistics and affine parameters. Exported from a one-row example "
        f"with `onnxcam.exporters.pytorch.export`, run in ONNX Runtime on a batch of {SAMPLES} random pictures, two "
        "rows at their own top-1 class and two at a class given. Scores, activations and gradients of the score "
        "are compared with torch autograd through plain forward hooks: per sample ‖a−b‖ / ‖b‖, the worst sample shown.",
        "",
        f"Tolerance: {TOLERANCE:g}, or {SLACK:g} × torch's own float32 against float64 difference on that sample where "
        "that is larger. The last column gives that difference wherever it was needed.",
        "",
        "A gradient error of 0 is no accident at a last layer that only a global average pooling and one linear layer "
        "follow: the gradient is then a weight divided by an area. Rows marked † have a layer that no module returns "
        "(a functional ReLU): they are compared with the program that torch.export captured.",
        "",
        "| Architecture | Input | Layer | Shape | Scores | Activations | Gradients | Exporter | Export | Result |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(task, row) for task, row in torch_rows.items()),
        "",
        "`Export` is the whole export with its verification, in seconds, on two busy cores.",
        "",
        "## Light models of the onnx package",
        "",
        f"Old files (opset 3 to 9) as other tools wrote them, with seeded random weights: "
        f"**{sum(bool(row and row['passed']) for row in light_rows.values())} of {len(light_rows)} pass**. Augmented, "
        "run in ONNX Runtime, predictions compared with the file as it came (tolerance 1e-5), gradients compared with "
        "finite differences by `onnxcam.check`. `unsure` means that the finite differences disagree among themselves.",
        "",
        "| Model | Opset | Default layer | Shape | Predictions | Gradients (along, halves, anywhere) | Time | Result |",
        "|---|---|---|---|---|---|---|---|",
        *(_light_line(task, row) for task, row in light_rows.items()),
        "",
    ]
    return "\n".join(lines)


def _floor(row: Row) -> float | None:
    needed = [f["floor"] for f in row.get("figures", {}).values() if f["error"] > TOLERANCE and f.get("floor")]
    return max(needed) if needed else None


def _result(row: Row) -> str:
    if not row["passed"]:
        reason = row.get("reason") or row.get("refused") or "; ".join(row.get("findings", ())) or "above tolerance"
        return "**fails**: " + reason.replace("|", "\\|")
    floor = _floor(row)
    return "passes" if floor is None else f"passes, floor {floor:.1e}"


def _shape(shape: Sequence[object]) -> str:
    return "×".join(str(dim) for dim in shape[1:])


def _line(task: str, row: Row | None) -> str:
    kind, _, name = task.partition(":")
    size = ARCHITECTURES[name].size
    if row is None or "figures" not in row:
        layer = "default" if kind == "default" else f"`{ARCHITECTURES[name].middle}`"
        return f"| {name} | {size} | {layer} | | | | | | | {_result(row) if row else 'not measured'} |"
    mark = "" if row["oracle"] == "hooks" else " †"
    label = f"`{row['layer']}`{mark}" + (" (default)" if kind == "default" else "")
    figures = " | ".join(f"{row['figures'][quantity]['error']:.1e}" for quantity in QUANTITIES)
    return (
        f"| {name} | {size} | {label} | {_shape(row['shape'])} | {figures} | {row['exporter']} | "
        f"{row['export_s']:.0f} s | {_result(row)} |"
    )


def _light_line(task: str, row: Row | None) -> str:
    name = task.partition(":")[2]
    if row is None or "layer" not in row:
        return f"| {name} | | | | | | | {_result(row) if row else 'not measured'} |"
    figures = ", ".join(f"{value:.1e}" for value in row["differences"].values()) or row["detail"]
    unsure = " (unsure)" if row["gradients"] == "unsure" else ""
    return (
        f"| {name} | {row['opset']} | `{row['layer']}` | {_shape(row['shape'])} | {row['predictions']:.1e} | "
        f"{figures}{unsure} | {row['augment_s']:.1f} s | {_result(row)} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the page; 1 when a row fails."""
    parser = argparse.ArgumentParser(description="Measure parity with torch autograd and write docs/coverage.md.")
    parser.add_argument("names", nargs="*", help="architectures or light models, measured anew (default: the missing)")
    parser.add_argument("--fresh", action="store_true", help="measure all rows anew")
    parser.add_argument("--table-only", action="store_true", help="write the page from the rows kept")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.row:
        work(given.row)
        return 0
    wanted = [] if given.table_only else tasks(given.names)
    if given.names and not wanted:
        parser.error(f"no architecture called {', '.join(given.names)}; there are {', '.join(ARCHITECTURES)}")
    if hasattr(os, "nice"):
        os.nice(10)
    for place, task in enumerate(wanted, 1):
        held = _held(task)
        if held is None or not held["passed"] or given.fresh or given.names:
            spawn(task)
            held = _held(task) or {"passed": False}
        print(f"[{place}/{len(wanted)}] {task}: {_result(held)} ({held.get('seconds', 0):.0f} s)", flush=True)
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(render(), encoding="utf-8")
    TABLE.write_text(render(), encoding="utf-8")
    return 0 if all((row := _held(task)) is not None and row["passed"] for task in tasks()) else 1


if __name__ == "__main__":
    sys.exit(main())
