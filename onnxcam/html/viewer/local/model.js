// An explainable model in onnxruntime-web: what it can be asked, and its answers.

import { heatmapOf } from "./heatmap.js";
import { doubts, labelOf } from "./manifest.js";
import { PictureError, fromHalf, prepare, rangeOf, readSpec } from "./preprocess.js";
import { best, bestClass, probabilities } from "./readout.js";
import { describe } from "./statistics.js";

const TOP1 = -1;
const MOST_DRAWN = 4_000_000; // pixels of a map; of larger pictures it is drawn smaller

/** What a page has to know of a model, from its manifest and which classes it can be asked for. */
export function entryOf(name, manifest, targets) {
  const last = manifest.layers.at(-1), methods = Object.keys(last.heatmaps), { kind, classes } = manifest.scores;
  return {
    name,
    layers: manifest.layers.map((layer) => layer.name),
    layer: last.name,
    methods,
    method: methods[0],
    classes: manifest.labels ?? null,
    class_count: classes,
    kind,
    targets,
    notes: notesOf(manifest, targets),
  };
}

function notesOf(manifest, targets) {
  const notes = [];
  if (targets === "class") notes.push(`This file explains one class alone: ${labelOf(manifest, manifest.target.class)}.`);
  if (manifest.gate) notes.push(`This file explains predictions with ${manifest.gate.condition} alone.`);
  return notes;
}

/** The model's input for a picture, and how it maps back. */
export function prepared(manifest, picture) {
  return prepare(picture, readSpec(manifest.input), manifest.input.layout, manifest.input.dtype);
}

const floats = (tensor) =>
  tensor.type === "float16" && tensor.data instanceof Uint16Array ? Float32Array.from(tensor.data, fromHalf) : tensor.data;

/**
 * The answer for one prepared picture; see backend.js for its form. `map.heatmap` has the map as float32, too.
 * `model` is { ort, session, manifest, targets }, `input` what `prepared` returns.
 */
export async function explain(model, input, { layer, method, target = null, topK = 5 }, doubtsOfPicture = []) {
  const { ort, session, manifest, targets } = model;
  const entry = layer ? manifest.layers.find(({ name }) => name === layer) : manifest.layers.at(-1);
  if (!entry) throw new PictureError(`The model has no layer “${layer}”.`);
  const chosen = method ?? Object.keys(entry.heatmaps)[0], output = entry.heatmaps[chosen];
  if (!output) throw new PictureError(`The model has no map by ${chosen} of layer “${entry.name}”.`);
  const { classes, kind, name: scoresName } = manifest.scores;
  if (target !== null && !(Number.isInteger(target) && target >= 0 && target < classes)) {
    throw new PictureError(`There is no class ${target}: they are numbered from 0 to ${classes - 1}.`);
  }
  const bound = targets === "class" ? manifest.target.class : null;
  if (bound !== null && target !== null && target !== bound) {
    throw new PictureError(`This file explains one class alone: ${labelOf(manifest, bound)}.`);
  }
  const rows = typeof manifest.input.shape[0] === "number" ? manifest.input.shape[0] : 1;
  const feeds = { [manifest.input.name]: new ort.Tensor(manifest.input.dtype, repeated(input.data, rows), [rows, ...input.shape.slice(1)]) };
  if (targets === "any") feeds[manifest.target.name] = new ort.Tensor("int64", BigInt64Array.of(BigInt(target ?? TOP1)), [1]);
  const fetched = [scoresName, output, ...(manifest.gate ? [manifest.gate.output] : [])];
  const outputs = await session.run(feeds, [...new Set(fetched)]);
  const scores = floats(outputs[scoresName]).slice(0, outputs[scoresName].dims.slice(1).reduce((a, b) => a * b, 1));
  const [, h, w] = outputs[output].dims, raw = Float32Array.from(floats(outputs[output]).subarray(0, h * w));
  const fired = manifest.gate ? Boolean(outputs[manifest.gate.output].data[0]) : true;
  const explained = bound ?? target ?? bestClass(scores, kind);
  if (targets === "top-1" && target !== null && target !== bestClass(scores, kind)) {
    throw new PictureError("This file explains the class that it finds most likely, no other; export it with --target required.");
  }
  if (!raw.every(Number.isFinite)) {
    throw new PictureError("The map is not finite: the model's activations or gradients overflow at this layer, or the picture's values do.");
  }
  return answer({ manifest, input, entry, chosen, scores, raw, size: [h, w], fired, explained, target, topK, doubtsOfPicture });
}

function answer({ manifest, input, entry, chosen, scores, raw, size, fired, explained, target, topK, doubtsOfPicture }) {
  const p = probabilities(scores, manifest.scores.kind);
  const named = (index) => ({ class_name: labelOf(manifest, index), class_index: index, confidence: p[index] });
  const map = drawnMap(raw, size, entry.window, input.geometry);
  const statistics = describe(map.heatmap, [map.height, map.width]);
  const warnings = [
    ...doubts(manifest, entry.name),
    ...normalizationDoubts(manifest.input),
    ...doubtsOfPicture,
    ...mapDoubts(manifest, explained, scores, raw, map, fired),
  ];
  return {
    predictions: best(p, topK).map((index, rank) => ({ rank: rank + 1, ...named(index) })),
    map, target: named(explained), layer: entry.name, method: chosen, statistics, warnings, raw_map: { height: size[0], width: size[1], values: raw }, scores,
  };
}

function repeated(data, rows) {
  if (rows === 1) return data;
  const all = new data.constructor(data.length * rows);
  for (let row = 0; row < rows; row++) all.set(data, row * data.length);
  return all;
}

/** The map at the picture's size, or at that size divided by a whole number: float32, as grey levels, and what is visible. */
function drawnMap(raw, size, window, geometry) {
  const [rows, columns] = geometry.picture, step = Math.ceil(Math.sqrt((rows * columns) / MOST_DRAWN));
  const [height, width] = [Math.ceil(rows / step), Math.ceil(columns / step)];
  const { heatmap, visible: part } = heatmapOf(raw, size, window, { ...geometry, picture: [height, width] });
  const values = Uint8ClampedArray.from(heatmap, (value) => value * 255); // which rounds
  let visible = null;
  if (part) {
    const [x0, y0, x1, y1] = part;
    visible = new Uint8ClampedArray(height * width);
    for (let y = y0; y < y1; y++) visible.fill(255, y * width + x0, y * width + x1);
  }
  return { width, height, values, visible, heatmap };
}

function mapDoubts(manifest, explained, scores, raw, map, fired) {
  const sentences = [], label = labelOf(manifest, explained);
  if (!fired) return [`the file explains predictions with ${manifest.gate.condition} alone, which this one does not meet: there is no map`];
  if (!scores.every(Number.isFinite)) {
    sentences.push("the scores are not finite: the map means nothing; check the model and its preprocessing");
  }
  if (map.heatmap.some((value) => value)) return sentences;
  if (!raw.some((value) => value)) {
    sentences.push(`the map of '${label}' is zero everywhere: nothing at this layer speaks for the class; try another layer or method`);
  } else {
    const even = raw.every((value) => value === raw[0]);
    sentences.push(`the map of '${label}' shows nothing: ${even ? "it is the same everywhere" : "it lies outside the visible part of the picture"}`);
  }
  return sentences;
}

/** A normalisation inside the model that does not fit the tensor: onnxcam/explain/warnings.py. */
function normalizationDoubts({ normalization, ...input }) {
  if (!normalization) return [];
  const spec = readSpec(input), ranges = rangeOf(spec), { mean, std } = normalization;
  if (![1, ranges.length].includes(mean.length)) return [];
  const at = (list, c) => list[list.length === 1 ? 0 : c];
  const widths = ranges.map(([low, high]) => high - low);
  const outside = ranges.every(([low, high], c) => at(mean, c) < low - 0.5 * widths[c] || at(mean, c) > high + 0.5 * widths[c]);
  const parts = widths.map((width, c) => at(std, c) / width);
  const scaled = std.some((value) => Math.abs(value - 1) > 1e-8 + 1e-5);
  if (!outside && !(scaled && (parts.every((part) => part < 0.06) || parts.every((part) => part > 2)))) return [];
  return ["the model itself begins with a normalisation that does not fit its input: it may be scaled twice or not at all"];
}
