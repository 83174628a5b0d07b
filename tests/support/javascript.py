"""The JavaScript of the page that needs no server, run in Node: cases in, results out, one process for many."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcam

VIEWER = Path(onnxcam.__file__).parent / "html" / "viewer"

PROGRAM = """
import { readFile } from "node:fs/promises";
import { heatmapOf } from "./local/heatmap.js";
import { doubts } from "./local/manifest.js";
import { entryOf, explain, prepared } from "./local/model.js";
import { open } from "./local/onnx_file.js";
import { fromSamples, readPicture } from "./local/picture.js";
import { half, prepare, readSpec } from "./local/preprocess.js";
import { best, bestClass, probabilities } from "./local/readout.js";
import { describe } from "./local/statistics.js";

const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const floats = (text) => new Float32Array(bytes(text).buffer);
const encode = (array) => {
  const { buffer, byteOffset, byteLength } = array;
  return { type: array.constructor.name, base64: Buffer.from(buffer, byteOffset, byteLength).toString("base64") };
};
const plain = (picture) => ({ ...picture, pixels: encode(picture.pixels) });
const refuse = () => { throw new Error("only a browser decodes this"); };
const sessions = new Map();

async function model(path, runtime) {
  if (!sessions.has(path)) {
    const ort = await import(runtime), file = open(new Uint8Array(await readFile(path)));
    const options = { executionProviders: ["wasm"], logSeverityLevel: 3 };
    const session = await ort.InferenceSession.create(file.model, options);
    sessions.clear();
    sessions.set(path, { ort, session, manifest: file.manifest, targets: file.targets });
  }
  return sessions.get(path);
}

const actions = {
  prepare({ picture, input }) {
    const spec = readSpec(input), pixels = bytes(picture.base64);
    const data16 = picture.bits === 16 ? new Uint16Array(pixels.buffer) : pixels;
    const made = fromSamples({ ...picture, data: data16 }, spec.range);
    const { data, shape, geometry } = prepare(made, spec, input.layout, input.dtype);
    return { data: encode(data), shape, geometry };
  },
  half: ({ values }) => values.map(half),
  async read({ file, range }) {
    return plain(await readPicture(new Blob([bytes(file)]), range ?? null, refuse));
  },
  heatmap({ map, size, window, geometry }) {
    const { heatmap, visible } = heatmapOf(floats(map), size, window, geometry);
    return { heatmap: encode(heatmap), visible };
  },
  readout({ scores, kind, count }) {
    const row = floats(scores), p = probabilities(row, kind);
    return { p: encode(Float32Array.from(p)), best: best(p, count), top: bestClass(row, kind) };
  },
  statistics: ({ map, size }) => describe(floats(map), size),
  doubts: ({ manifest, layer }) => doubts(manifest, layer),
  open({ file }) {
    const { manifest, model, targets } = open(bytes(file));
    return { manifest, targets, model: encode(model) };
  },
  async explain({ path, runtime, file, question }) {
    const current = await model(path, runtime);
    const { range } = readSpec(current.manifest.input);
    const { doubts: ofPicture, ...picture } = await readPicture(new Blob([bytes(file)]), range, refuse);
    const { map, raw_map, ...rest } = await explain(current, prepared(current.manifest, picture), question, ofPicture);
    const visible = map.visible && encode(map.visible);
    const drawn = { heatmap: encode(map.heatmap), values: encode(map.values), visible };
    const entry = entryOf("model", current.manifest, current.targets);
    return { ...rest, ...drawn, size: [map.height, map.width], entry };
  },
};

const results = [];
for (const { action, ...request } of JSON.parse(await readFile(process.argv[2], "utf8"))) {
  try {
    results.push(await actions[action](request));
  } catch (error) {
    results.push({ error: error.message, kind: error.name });
  }
}
console.log(JSON.stringify(results));
"""


class Node:
    """A folder with the page's modules, in which Node runs cases."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("node") is None:
            pytest.skip("Node is not installed")
        self.folder = folder
        shutil.copytree(VIEWER, folder, dirs_exist_ok=True)
        (folder / "package.json").write_text('{"type": "module"}', "utf-8")
        (folder / "run.mjs").write_text(PROGRAM, "utf-8")

    def run(self, cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The result of each case; one that throws has `error`, the message, and `kind`, the error's name."""
        file = self.folder / "cases.json"
        file.write_text(json.dumps(cases), "utf-8")
        command = ["node", "run.mjs", str(file)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        results: list[dict[str, Any]] = json.loads(done.stdout)
        return results


def encode(values: np.ndarray) -> str:
    """The bytes of an array, as the cases have them."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


_TYPES = {
    "Float32Array": np.float32,
    "Float64Array": np.float64,
    "Uint8Array": np.uint8,
    "Uint8ClampedArray": np.uint8,
    "Uint16Array": np.uint16,
}


def array(entry: dict[str, str]) -> np.ndarray:
    """An array of a result."""
    return np.frombuffer(base64.b64decode(entry["base64"]), _TYPES[entry["type"]])
