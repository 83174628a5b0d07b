"""Explainable files in runtimes other than ONNX Runtime for Python: what they compute, or why they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxcam
from onnxcam.graph.load import save
from tests.support import wrong_gradients
from tests.support.batches import distance
from tests.support.runtime import run

VERSIONS = {"onnxruntime-node": "1.30.0", "onnxruntime-web": "1.30.0"}
TOLERANCE = 2e-2  # a ReLU that flips at float noise moves the gradients of a random network by up to 1.2e-2
FORMS: dict[str, dict[str, Any]] = {
    "required": {"target": "required"},
    "constant": {"target": 2},
    "optional": {"target": "optional"},
    "portable": {"target": "required", "portable": True},
}
# by kind of file: networks and what they are exported with; networks end with another size of every operator's operands
KINDS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "last layer": (("plain", "residual", "mobile", "dense", "channels last", "einsum", "arithmetic"), {}),
    "middle layer": (
        ("plain", "residual", "mobile", "dense", "channels last", "einsum", "arithmetic"),
        {"layers": "a"},
    ),
    "before an overlapping pool": (("pooling",), {"layers": "r"}),
    "tokens": (("tokens",), {"layers": "z"}),
    "behind tokens": (("tokens",), {"layers": "a"}),
    "square strided weights": (("strided",), {"layers": "a"}),
    "gated": (("plain", "residual"), {"gate": "confidence < 0.999"}),
}
# of gradient(): input gradients, whatever the form
GRADIENT, DIFFERENTIATED = "input gradient", ("plain", "residual", "mobile", "pooling", "tokens", "strided")
wrong_gradients.ARCHITECTURES.setdefault(
    "strided",
    (
        "a",
        """a = Conv<pads = [1, 1, 1, 1]>(input, w8_3_3_3)  d = Conv<strides = [2, 2]>(a, w8_8_2_2)  k = Relu(d)
        u = ConvTranspose<strides = [2, 2]>(k, x8_8_2_2)  v = Relu(u)  p = GlobalAveragePool(v)  f = Flatten(p)
        g = Gemm<transB = 1>(f, w8_8)  r = Relu(g)  logits = Gemm(r, w8_6)""",
    ),
)

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One file and what is fed to it.

    Attributes:
        kind, form: keys of `KINDS` and `FORMS`, or `GRADIENT` both.
        outputs: of the file, in order.
        expected: scores, gradients and maps by ONNX Runtime on a CPU.
    """

    kind: str
    form: str
    network: str
    path: Path
    feeds: Arrays
    outputs: tuple[str, ...]
    expected: Arrays

    def verdict(self, outputs: Mapping[str, np.ndarray] | str) -> str:
        """`right`, `refused: why`, or `wrong: how far`."""
        if isinstance(outputs, str):
            return f"refused: {outputs}"
        worst = max(distance(outputs[name], value) for name, value in self.expected.items())
        return "right" if worst <= TOLERANCE else f"wrong: {worst:.1e}"


def cases(folder: Path, forms: Sequence[str] = tuple(FORMS), batches: Sequence[int] = (1, 3)) -> Iterator[Case]:
    """Write the files of all kinds in these forms; a class for each row where the form takes one."""
    rng = np.random.default_rng(0)
    for kind, (networks, options) in KINDS.items():
        for network in networks:
            source = wrong_gradients.build(network)
            for form in forms:
                model = onnxcam.augment(source, **options, **FORMS[form])
                path = folder / f"{kind} {network} {form}.onnx".replace(" ", "_")
                save(model, path)
                for rows in batches:
                    feeds = {"input": rng.normal(size=(rows, 3, 16, 16)).astype(np.float32)}
                    if form in ("required", "portable"):
                        shared = form == "portable"
                        feeds["target"] = np.array([3] if shared else rng.integers(0, 5, rows), np.int64)
                    outputs = tuple(output.name for output in model.graph.output)
                    names = [name for name in ("logits", "gradients", "heatmap") if name in outputs]
                    yield Case(kind, form, network, path, feeds, outputs, run(model, feeds, outputs=names))
    for network in DIFFERENTIATED:
        model = onnxcam.gradient(wrong_gradients.build(network), of="logits", wrt=["input"])
        path = folder / f"gradient_{network}.onnx"
        save(model, path)
        outputs = tuple(output.name for output in model.graph.output)
        for rows in batches:
            feeds = {
                "input": rng.normal(size=(rows, 3, 16, 16)).astype(np.float32),
                "cotangent.logits": rng.normal(size=(rows, 6)).astype(np.float32),
            }
            expected = run(model, feeds, outputs=["logits", "grad.input"])
            yield Case(GRADIENT, GRADIENT, network, path, feeds, outputs, expected)


def openvino(case: Case) -> Arrays | str:
    """The file in OpenVINO on a CPU, in float32: bfloat16, its default on some processors, is 2 to 9 % off."""
    import openvino

    core = openvino.Core()
    try:
        model = core.compile_model(core.read_model(case.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        inputs = [
            next(value for name, value in case.feeds.items() if name in port.get_names()) for port in model.inputs
        ]
        results = model(inputs)
    except RuntimeError as error:
        return _sentence(error)
    return {name: value for port, value in results.items() for name in port.get_names()}


def tract(case: Case) -> Arrays | str:
    """The file in tract, which knows no names of outputs in a model that runs: they come in the file's order."""
    import tract as library

    try:
        model = library.onnx().load(str(case.path))
        names = [model.input_name(place) for place in range(model.input_count())]
        results = model.into_model().into_runnable().run([np.ascontiguousarray(case.feeds[name]) for name in names])
    except library.TractError as error:
        return _sentence(error)
    return {name: value.to_numpy() for name, value in zip(case.outputs, results, strict=True)}


PROGRAM = """
import { readFile } from "node:fs/promises";
const [runtime, list] = process.argv.slice(2);
const ort = await import(runtime);
const results = [];
for (const { model, feeds, outputs } of JSON.parse(await readFile(list, "utf8"))) {
  try {
    const session = await ort.InferenceSession.create(runtime === "onnxruntime-node" ? model : await readFile(model));
    const tensors = {};
    for (const [name, { type, data, dims }] of Object.entries(feeds)) {
      const values = type === "int64" ? BigInt64Array.from(data, BigInt) : Float32Array.from(data);
      tensors[name] = new ort.Tensor(type, values, dims);
    }
    const values = await session.run(tensors);
    const plain = (value) => ({ data: [...value.data].map(Number), dims: value.dims });
    results.push(Object.fromEntries(outputs.map((name) => [name, plain(values[name])])));
  } catch (error) {
    results.push({ error: String(error?.message ?? error) });
  }
}
console.log(JSON.stringify(results));
"""


def node(folder: Path) -> Callable[[str, Sequence[Case]], list[Arrays | str]] | None:
    """A function that runs cases in a package for Node, installed in this folder; None where there is no Node."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    if not all(_version(folder, name) == version for name, version in VERSIONS.items()):
        (folder / "package.json").write_text(json.dumps({"type": "module", "dependencies": VERSIONS}), "utf-8")
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600)
    (folder / "run.mjs").write_text(PROGRAM, "utf-8")

    def outputs(package: str, some: Sequence[Case]) -> list[Arrays | str]:
        listed = [
            {
                "model": str(case.path),
                "feeds": {k: _tensor(v) for k, v in case.feeds.items()},
                "outputs": [*case.expected],
            }
            for case in some
        ]
        (folder / "cases.json").write_text(json.dumps(listed), "utf-8")
        done = subprocess.run(
            ["node", "run.mjs", package, "cases.json"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        )
        results = json.loads(done.stdout)
        return [
            result["error"].splitlines()[0]
            if "error" in result
            else {name: np.array(v["data"], np.float32).reshape(v["dims"]) for name, v in result.items()}
            for result in results
        ]

    return outputs


def _version(folder: Path, name: str) -> str | None:
    file = folder / "node_modules" / name / "package.json"
    return json.loads(file.read_text("utf-8"))["version"] if file.is_file() else None


def _tensor(value: np.ndarray) -> dict[str, Any]:
    return {"type": value.dtype.name, "data": value.ravel().tolist(), "dims": list(value.shape)}


def _sentence(error: Exception) -> str:
    """What the runtime says, in one line: an operator and a reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "node" in line or "failed" in line.lower()), lines[0] if lines else "")[:200]
