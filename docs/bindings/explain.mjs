// Explains a picture with an explainable model, in ONNX Runtime alone:
//   npm install onnxruntime-web pngjs
//   node explain.mjs model.onnx picture.png overlay.png [class index]
// Naming a class needs a model exported with --target required: onnxruntime-web cannot feed an optional input.
import { readFile, writeFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";
import * as ort from "onnxruntime-web";
import { PNG } from "pngjs";
import { fromRgba, minmax, preprocess, resizeMap, toPicture } from "./preprocess.mjs";

/** The manifest: onnxruntime-web does not show a model's metadata, so it is read from the file's own bytes. */
export function manifest(model) {
  const text = new TextDecoder();
  for (const [field, entry] of fields(model)) {
    if (field !== 14) continue; // ModelProto.metadata_props
    const { 1: key, 2: value } = Object.fromEntries(fields(entry));
    if (text.decode(key) === "onnxcam") return JSON.parse(text.decode(value));
  }
  throw new Error("the model has no onnxcam manifest; make it explainable: onnxcam export");
}

/** The fields of a protobuf message that hold bytes: [number, Uint8Array]. The graph is stepped over, not read. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = varint();
      yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
      at += length;
    } else throw new Error("this is not an ONNX file");
  }
}

/** The map of a class: `picture` is { pixels (RGB), height, width }, `target` an index, -1 for the best. */
export async function explain(model, picture, target = -1, method = "gradcam") {
  const header = manifest(model);
  if (header.scores.task) throw new Error(`the model's task is ${header.scores.task.task}, and this program is of classifiers (boxes.mjs of detectors)`);
  if (header.input.dtype !== "float32") throw new Error(`the model takes ${header.input.dtype}; this program feeds float32`);
  const session = await ort.InferenceSession.create(model);
  const layer = header.layers.at(-1);
  const { data, shape, geometry } = preprocess(picture, header.input.preprocess, header.input.layout);
  const feeds = { [header.input.name]: new ort.Tensor("float32", data, shape) };
  if (session.inputNames.includes(header.target.name)) {
    feeds[header.target.name] = new ort.Tensor("int64", BigInt64Array.of(BigInt(target)), [1]);
  } else if (target >= 0) {
    throw new Error(`the model takes no class here (target: ${header.target.mode}); export it with --target required`);
  }
  const outputs = await session.run(feeds, [header.scores.name, layer.heatmaps[method]]);

  const raw = outputs[layer.heatmaps[method]];
  const map = minmax(resizeMap(minmax(raw.data), raw.dims.slice(1), geometry.input));
  const odds = probabilities([...outputs[header.scores.name].data], header.scores.kind);
  const predictions = odds
    .map((probability, index) => ({ index, label: header.labels?.[index] ?? String(index), probability }))
    .sort((a, b) => b.probability - a.probability);
  const visible = toPicture(new Float32Array(map.length).fill(1), geometry); // 0 where a crop cut the picture off
  const { height, width } = picture;
  return { predictions, heatmap: toPicture(map, geometry), visible, height, width };
}

function probabilities(scores, kind) {
  const sigmoid = (score) => 1 / (1 + Math.exp(-score));
  if (kind === "binary_logit") return [1 - sigmoid(scores[0]), sigmoid(scores[0])];
  if (kind === "multilabel") return scores.map(sigmoid);
  const top = Math.max(...scores);
  const odds = scores.map((score) => Math.exp(score - top));
  const sum = odds.reduce((a, b) => a + b, 0);
  return odds.map((value) => value / sum);
}

// viridis, from 0 to 1: rising lightness, legible with and without colour vision
const COLORS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

/** The picture with the map in colours over it, RGBA: fading out towards 0, pale and striped what the model never saw. */
export function overlay({ pixels, width }, heatmap, visible) {
  const result = new Uint8ClampedArray(heatmap.length * 4).fill(255);
  heatmap.forEach((heat, i) => {
    const alpha = visible[i] ? 0.6 * Math.min(1, 2 * heat) : 0.7;
    const low = Math.min(Math.floor(4 * heat), 3);
    const grey = ((i % width) + Math.floor(i / width)) % 8 < 2 ? 90 : 160;
    for (let c = 0; c < 3; c++) {
      const color = visible[i] ? COLORS[low][c] + (COLORS[low + 1][c] - COLORS[low][c]) * (4 * heat - low) : grey;
      result[4 * i + c] = (1 - alpha) * pixels[3 * i + c] + alpha * color;
    }
  });
  return result;
}

/** A PNG file as RGB. In a browser: draw on a canvas, then fromRgba(context.getImageData(...).data, height, width). */
export async function readPng(path) {
  const { data, height, width } = PNG.sync.read(await readFile(path));
  return fromRgba(data, height, width);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [model, file, output, target] = process.argv.slice(2);
  const picture = await readPng(file);
  const { predictions, heatmap, visible, height, width } = await explain(await readFile(model), picture, Number(target ?? -1));
  for (const { label, probability } of predictions.slice(0, 5)) {
    console.log(`${(100 * probability).toFixed(1).padStart(5)} %  ${label}`);
  }
  const png = new PNG({ height, width });
  png.data.set(overlay(picture, heatmap, visible));
  await writeFile(output, PNG.sync.write(png));
}
