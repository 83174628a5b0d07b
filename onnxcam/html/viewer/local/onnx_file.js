// What a page needs of an explainable ONNX file: its manifest, and `target` as an ordinary input.
// onnxruntime-web shows no metadata, and refuses to be fed an input that has a default (an overridable initializer).

import { check } from "./manifest.js";
import { FileError, fields, head, joined } from "./wire.js";

// fields of ModelProto, GraphProto, TensorProto, ValueInfoProto and StringStringEntryProto in onnx.proto
const GRAPH = 7, METADATA = 14;
const INITIALIZER = 5, INPUT = 11, OUTPUT = 12;
const TENSOR_NAME = 8, TENSOR_LOCATION = 14;
const VALUE_NAME = 1;
const KEY = 1, VALUE = 2;
const MANIFEST = "onnxcam";
const LONGEST_MANIFEST = 8 * 2 ** 20; // characters
const DEEPEST = 64; // levels of lists and objects

export { FileError };

/**
 * Open the bytes of an explainable file.
 * Returns `manifest`, `model` (the bytes for the runtime) and `targets`: "any" class, or "top-1", the best one alone, or
 * "class", the one that the file is bound to.
 */
export function open(bytes) {
  const { graph, entry, text } = parts(bytes);
  const manifest = check(parsed(text));
  const { name, mode } = manifest.target;
  const names = graphNames(bytes, graph);
  const missing = [manifest.input.name, manifest.scores.name, ...manifest.layers.flatMap((l) => Object.values(l.heatmaps))]
    .filter((value) => !names.inputs.has(value) && !names.outputs.has(value));
  if (missing.length) {
    throw new FileError(`The file's manifest names ${missing[0]}, which its graph does not have; export the model again.`);
  }
  if (mode === "constant") return { manifest, model: bytes, targets: "class" };
  if (!names.inputs.has(name)) {
    // a tool such as onnxsim has made a constant of the default: the file explains each picture's best class
    if (mode === "optional") return { manifest, model: bytes, targets: "top-1" };
    throw new FileError(`The file's manifest names the input ${name}, which its graph does not have; export the model again.`);
  }
  const stored = names.initializers.get(name);
  if (stored === undefined) return { manifest, model: bytes, targets: "any" };
  const changed = { ...manifest, target: { ...manifest.target, mode: "required" } };
  return { manifest: changed, model: without(bytes, graph, stored, entry, changed), targets: "any" };
}

/** Where the graph and the manifest lie, and the manifest's text. */
function parts(bytes) {
  let graph, entry, text;
  for (const field of fields(bytes)) {
    if (field.number === GRAPH && field.bytes) {
      if (graph) throw new FileError("The file has two graphs, and they would have to be merged; export the model again.");
      graph = field;
    } else if (field.number === METADATA && field.bytes) {
      const pair = pairOf(bytes, field);
      if (pair.key === MANIFEST) [entry, text] = [field, pair.value];
    }
  }
  if (!graph) throw new FileError("This is not an ONNX file: it has no graph.");
  if (!entry) {
    throw new FileError("This model is not explainable: it has no onnxcam manifest. Make it so: onnxcam export MODEL -o OUT.cam.onnx");
  }
  return { graph, entry, text };
}

function pairOf(bytes, field) {
  const pair = { key: "", value: "" };
  for (const part of fields(bytes, field.from, field.to)) {
    if (part.number === KEY) pair.key = textOf(bytes, part);
    else if (part.number === VALUE && part.to - part.from <= 4 * LONGEST_MANIFEST) pair.value = textOf(bytes, part);
  }
  return pair;
}

const textOf = (bytes, { from, to }) => new TextDecoder().decode(bytes.subarray(from, to));

function parsed(text) {
  if (text.length > LONGEST_MANIFEST) {
    throw new FileError(`The file's manifest has ${text.length} characters, more than ${LONGEST_MANIFEST}; export the model again.`);
  }
  let depth = 0, deepest = 0;
  for (const [mark] of text.replace(/"(?:[^"\\]|\\.)*"/gs, "").matchAll(/[[\]{}]/g)) {
    depth += mark === "[" || mark === "{" ? 1 : -1;
    deepest = Math.max(deepest, depth);
  }
  if (deepest > DEEPEST) throw new FileError(`The file's manifest has ${deepest} levels; export the model again.`);
  try {
    return JSON.parse(text);
  } catch {
    throw new FileError("The file's manifest is not JSON; export the model again.");
  }
}

/** Names of the graph's inputs and outputs, and its initializers by name. */
function graphNames(bytes, graph) {
  const names = { inputs: new Set(), outputs: new Set(), initializers: new Map() };
  for (const field of fields(bytes, graph.from, graph.to)) {
    if (!field.bytes) continue;
    if (field.number === INPUT || field.number === OUTPUT) {
      for (const part of fields(bytes, field.from, field.to)) {
        if (part.number === VALUE_NAME) names[field.number === INPUT ? "inputs" : "outputs"].add(textOf(bytes, part));
      }
    } else if (field.number === INITIALIZER) {
      for (const part of fields(bytes, field.from, field.to)) {
        if (part.number === TENSOR_NAME) names.initializers.set(textOf(bytes, part), field);
        if (part.number === TENSOR_LOCATION && part.value === 1) {
          throw new FileError("The model keeps its weights in another file, which a page cannot open; export it again as one file.");
        }
      }
    }
  }
  return names;
}

/** The file without the default of `target`, and with another manifest; everything else is copied as it is. */
function without(bytes, graph, stored, entry, manifest) {
  const key = new TextEncoder().encode(MANIFEST), value = new TextEncoder().encode(JSON.stringify(manifest));
  const pair = joined([head(KEY, key.length), key, head(VALUE, value.length), value]);
  const changed = new Map([
    [graph, [head(GRAPH, graph.to - graph.from - (stored.to - stored.begin)), bytes.subarray(graph.from, stored.begin), bytes.subarray(stored.to, graph.to)]],
    [entry, [head(METADATA, pair.length), pair]],
  ]);
  const pieces = [];
  let at = 0;
  for (const [field, replaced] of [...changed].sort(([a], [b]) => a.begin - b.begin)) {
    pieces.push(bytes.subarray(at, field.begin), ...replaced);
    at = field.to;
  }
  return joined([...pieces, bytes.subarray(at)]);
}

