"""The coverage matrix: parity with the frameworks' own gradients over many architectures, written to docs/coverage.md.

    make matrix                      # measure what is missing or failed last time, then write the table
    make matrix ARGS='--fresh'       # measure everything anew
    make matrix ARGS='resnet18 vgg16'

Every architecture runs in a process of its own, one at a time, so that a crash costs one row. Rows are kept as JSON in
benchmarks/coverage, each with its date and versions, until they are measured anew; the page is written from them once
none is missing, or as far as they go with --table-only.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks" / "coverage"
TABLE = ROOT / "docs" / "coverage.md"
sys.path.insert(0, str(ROOT))

from benchmarks.architectures import KERAS, TORCH  # noqa: E402
from benchmarks.judgement import QUANTITIES, SLACK, TOLERANCE, Ask, distance, judge  # noqa: E402

SAMPLES = 3
# of one file on one batch, which must give the same bits
RUNS = 3
LIMIT_S = 1800
SEED = 1234
# that settle the batch norms: fewer fit these too well, and activations then grow with depth
SETTLING = 64
PACKAGES = ("onnxcam", "onnxruntime", "onnx", "torch", "torchvision", "onnxscript")
Row = dict[str, Any]


def build(name: str, seed: int = SEED) -> tuple[Any, Any]:
    """A torchvision model with seeded weights and batch-norm statistics that are neither trivial nor absurd.

    The affine parameters are drawn around 1 and 0. The running statistics of each batch norm are those of what reaches
    it, each then off by up to 20 %: every norm sees what the norms before it really give, so activations keep their
    size with depth, and none is the identity.

    Returns:
        the model in eval mode, and one random picture `[1, 3, size, size]`.
    """
    import torch
    from torch import nn

    from tests.support.torchvision_stub import import_torchvision

    entry = TORCH[name]
    torch.manual_seed(seed)
    model = import_torchvision().models.get_model(name, weights=None, **dict(entry.options)).eval()

    def settle(norm: Any, given: tuple[Any, ...]) -> None:
        var, mean = torch.var_mean(given[0], dim=(0, 2, 3))
        norm.running_var.copy_(var * torch.empty_like(var).uniform_(0.8, 1.25))
        norm.running_mean.copy_(mean + var.sqrt() * torch.empty_like(mean).uniform_(-0.2, 0.2))
        norm.weight.uniform_(0.7, 1.3)
        norm.bias.uniform_(-0.2, 0.2)

    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Linear) and not part.weight.any():
                nn.init.normal_(part.weight, std=0.02)  # ViT's head starts at 0, where every gradient would be 0
        norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
        if norms:
            model(torch.randn(SETTLING, 3, entry.size, entry.size))
        for hook in hooks:
            hook.remove()
    return model, torch.randn(1, 3, entry.size, entry.size)


def measure(name: str) -> dict[str, Row]:
    """Export an architecture from a one-row example and compare a batch with torch autograd, at both layers.

    The comparison is the matrix's own: plain forward hooks on the module that the layer is named after. Where no module
    returns the default layer's value, the figures are those of the exporter's own verification.

    Returns:
        rows `default` and `middle`: layer, shape, and per quantity its `error` and, where measured, `floor`.
    """
    import torch

    from onnxcam.network import manifest
    from onnxcam.network.network import list_layers

    entry = TORCH[name]
    model, picture = build(name)
    batch = torch.randn(SAMPLES, *picture.shape[1:], generator=torch.Generator().manual_seed(SEED))
    named = [entry.middle, entry.last] if entry.last else [entry.middle]
    explained, common = _export(model, picture, named)
    rows = {"middle": common | _compare(model, explained, entry.middle, batch)}
    default = next(layer for layer in list_layers(explained) if layer.default)
    if default.name == entry.last:
        rows["default"] = common | _compare(model, explained, entry.last, batch)
        return rows
    explained, common = _export(model, picture, None)
    found = (manifest.read(explained) or {})["layers"][0]["name"]
    if found in dict(model.named_modules()):
        rows["default"] = common | _compare(model, explained, found, batch)
    else:
        rows["default"] = common | _recorded(explained, common["refused"])
    return rows


def _export(model: Any, picture: Any, layers: list[str] | None) -> tuple[Any, Row]:
    from onnxcam.errors import VerificationError
    from onnxcam.exporters import pytorch
    from onnxcam.network import manifest

    began = time.perf_counter()
    refused = None
    try:
        explained: Any = pytorch.export(model, picture, None, layers=layers, verify=1)
    except VerificationError as error:
        refused = str(error)
        explained = pytorch.export(model, picture, None, layers=layers, verify=False)
    seconds = time.perf_counter() - began
    held = manifest.read(explained)
    assert held is not None
    row = {"exporter": held["source"]["exporter"], "export_s": seconds, "refused": refused}
    return explained, row | {"gated": _gated(explained, picture)}


def _gated(explained: Any, picture: Any) -> float:
    """How far a file with a gate that fires is from the one without, over all outputs; infinitely, if one that does not
    fire leaves anything but zeros or changes a score."""
    import numpy as np

    from onnxcam.network import manifest
    from onnxcam.network.explainable import augment

    held = manifest.read(explained)
    assert held is not None
    batch = np.random.default_rng(SEED).normal(size=(SAMPLES, *picture.shape[1:])).astype(np.float32)

    def run(model: Any) -> dict[str, Any]:
        session = _open(model)
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, {held["input"]["name"]: batch}), strict=True))

    want = run(explained)
    fired, blank = run(augment(explained, gate="confidence <= 1")), run(augment(explained, gate="confidence < 0"))
    maps = {entry["gradients"] for entry in held["layers"]}
    maps |= {name for entry in held["layers"] for name in entry["heatmaps"].values()}
    wrong = [not fired["fired"].all(), blank["fired"].any(), *(blank[name].any() for name in maps)]
    wrong += [distance(blank[name], value).max() > 1e-6 for name, value in want.items() if name not in maps]
    return np.inf if any(wrong) else max(float(distance(fired[name], value).max()) for name, value in want.items())


def _compare(model: Any, explained: Any, layer: str, batch: Any) -> Row:
    """One layer of the file against autograd."""
    import numpy as np
    import torch

    from onnxcam.network import manifest

    held = manifest.read(explained)
    assert held is not None
    entry = manifest.layer(held, layer)
    file = opened(explained, held, entry)
    targets = np.array([-1, 7, 123])
    *expected, classes = _autograd(model, layer, batch, targets)

    def exact(pictures: Any, classes: Any) -> Any:
        try:
            return _autograd(model.double(), layer, torch.from_numpy(pictures).double(), classes)[:3]
        finally:
            model.float()

    figures, passed = judge(
        file(batch.numpy(), targets),
        expected,
        batch.numpy(),
        classes,
        file,
        lambda pictures, classes: _autograd(model, layer, torch.from_numpy(pictures), classes)[:3],
        exact,
    )
    return {"layer": layer, "shape": entry["shape"], "oracle": "hooks", "figures": figures, "passed": passed}


def _recorded(explained: Any, refused: str | None) -> Row:
    """The default layer, as the exporter verified it."""
    from onnxcam.errors import VerificationError
    from onnxcam.network import manifest

    if refused is not None:
        raise VerificationError(refused)
    held = manifest.read(explained)
    assert held is not None
    entry, parity = held["layers"][0], held["parity"]
    figures: Row = {quantity: {"error": parity[quantity], "floor": None, "beside": None} for quantity in QUANTITIES}
    if parity["tolerance"] > TOLERANCE:
        figures["gradients"]["floor"] = parity["tolerance"] / SLACK
    return {
        "layer": entry["name"],
        "shape": entry["shape"],
        "oracle": "captured program",
        "figures": figures,
        "passed": True,
    }


def opened(explained: Any, held: Any, entry: Any) -> Ask:
    """How to ask a file alone for scores, activations and gradients, as any ONNX Runtime client would."""
    session = _open(explained)
    names = [held["scores"]["name"], entry["activations"], entry["gradients"]]

    def ask(batch: Any, targets: Any) -> Any:
        feeds = {held["input"]["name"]: batch, held["target"]["name"]: targets}
        found = session.run(names, feeds)
        for _ in range(RUNS - 1):
            if any((a != b).any() for a, b in zip(found, session.run(names, feeds), strict=True)):
                raise ValueError("two runs on the same pictures give different numbers")
        return found

    return ask


def _open(model: Any) -> Any:
    """A plain session on the model's file, or on the two files of one over 2 GiB."""
    import onnxruntime

    from onnxcam.graph.load import save

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        save(model, path)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


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


def measure_light(name: str) -> Row:
    """Augment one of the onnx package's light models, compare its predictions with the file as it came, check it."""
    import numpy as np

    from onnxcam.diagnose.gradients import check
    from onnxcam.network import manifest
    from onnxcam.network.explainable import augment
    from onnxcam.runtime import open_session, run
    from tests.support.onnx_models import light

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
    far = float(distance(after, before).max())
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
    """Measure one architecture or light model in this process and keep its rows."""
    began = time.perf_counter()
    name = task.partition(":")[2]
    rows: dict[str, Row]
    try:
        if task.startswith("keras:"):
            from benchmarks import keras_matrix

            rows = keras_matrix.measure(name)
        else:
            rows = {"light": measure_light(name)} if task.startswith("light:") else measure(name)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        rows = _failed(task, f"{type(error).__name__}: {first}")
    _keep(task, rows, time.perf_counter() - began)


def _failed(task: str, reason: str) -> dict[str, Row]:
    kinds = ("light",) if task.startswith("light:") else ("default", "middle")
    return {kind: {"passed": False, "reason": reason} for kind in kinds}


def _keep(task: str, rows: dict[str, Row], seconds: float) -> None:
    passed = all(row["passed"] and not row.get("refused") for row in rows.values())
    held = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": _versions(task),
        "seconds": seconds,
        "passed": passed,
        "rows": rows,
    }
    ROWS.mkdir(parents=True, exist_ok=True)
    part = _path(task).with_suffix(".part")
    part.write_text(json.dumps(held, indent=1), encoding="utf-8")
    part.replace(_path(task))


def _versions(task: str) -> dict[str, str]:
    from benchmarks import keras_matrix

    of_torch = ("torch", "torchvision", "onnxscript")
    names = PACKAGES if task.startswith("torchvision:") else [name for name in PACKAGES if name not in of_torch]
    names = [*names, *keras_matrix.PACKAGES] if task.startswith("keras:") else names
    return {name: importlib.metadata.version(name) for name in names}


def _path(task: str) -> Path:
    return ROWS / (task.replace(":", ".") + ".json")


def held(task: str) -> Row | None:
    """What was kept of an architecture, None where it was not measured."""
    path = _path(task)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def tasks(names: Sequence[str] = ()) -> list[str]:
    """What there is to measure: every architecture, then every light model."""
    from tests.support.onnx_models import NAMES

    every = [f"torchvision:{name}" for name in sorted(TORCH)] + [f"light:{name}" for name in sorted(NAMES)]
    every += [f"keras:{name}" for name in sorted(KERAS)]
    return [task for task in every if not names or task in names or task.partition(":")[2] in names]


def spawn(task: str) -> None:
    """Measure in a process of its own; a crash or a timeout becomes the reason."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", task]
    _path(task).unlink(missing_ok=True)
    began = time.perf_counter()
    try:
        # what is given back is given back at once: converters leave holes in the heap
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
        done = subprocess.run(command, cwd=ROOT, timeout=LIMIT_S, capture_output=True, text=True, env=environment)
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        killed = "; was there too little memory?" if done.returncode == -signal.SIGKILL else f": {last}"
        reason = f"the process ended with {done.returncode}{killed}"
    except subprocess.TimeoutExpired:
        reason = f"not done after {LIMIT_S} s"
    if held(task) is None:
        _keep(task, _failed(task, reason), time.perf_counter() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the page; 1 when a row fails."""
    parser = argparse.ArgumentParser(description="Measure parity with torch autograd and write docs/coverage.md.")
    parser.add_argument("names", nargs="*", help="architectures or light models, measured anew (default: the missing)")
    parser.add_argument("--fresh", action="store_true", help="measure all rows anew")
    parser.add_argument("--table-only", action="store_true", help="write the page from the rows kept")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    from benchmarks import coverage_page

    if given.one:
        work(given.one)
        return 0
    wanted = [] if given.table_only else tasks(given.names)
    if given.names and not wanted:
        parser.error(f"no architecture called {', '.join(given.names)}; there are {', '.join(TORCH)}")
    if hasattr(os, "nice"):
        os.nice(10)
    for place, task in enumerate(wanted, 1):
        kept = held(task)
        if kept is None or not kept["passed"] or given.fresh or given.names:
            spawn(task)
            kept = held(task)
        assert kept is not None
        told = ", ".join(f"{kind} {coverage_page.result(row)}" for kind, row in kept["rows"].items())
        print(f"[{place}/{len(wanted)}] {task}: {told} ({kept['seconds']:.0f} s)", flush=True)
    missing = [task for task in tasks() if held(task) is None]
    if missing and not given.table_only:
        print(f"{len(missing)} of {len(tasks())} are not measured yet; {TABLE} is left as it is", flush=True)
        return 1
    TABLE.write_text(coverage_page.render(), encoding="utf-8")
    return 0 if all((row := held(task)) is not None and row["passed"] for task in tasks()) else 1


if __name__ == "__main__":
    sys.exit(main())
