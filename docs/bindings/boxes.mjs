// Explains a box of a detector with a file exported with --target required, in ONNX Runtime alone:
//   npm install onnxruntime-web pngjs
//   node boxes.mjs detector.onnx picture.png overlay.png [box]
// A box is named by its candidate's index in the detector's own output; -1, or none, is the one with the highest score,
// whose map the file gives on the grid of the finest level, whichever level the box comes from.
import { readFile, writeFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";
import * as ort from "onnxruntime-web";
import { PNG } from "pngjs";
import { manifest, overlay, readPng } from "./explain.mjs";
import { minmax, preprocess, resizeMap, toPicture } from "./preprocess.mjs";

/** The map of a box's score, and the detector's own outputs, from which its boxes are decoded as ever. */
export async function explainBox(model, picture, box = -1, method = "layercam") {
  const { input, layers, scores, target } = manifest(model);
  if (scores.task?.task !== "detect") throw new Error("the file is of no detector; explain.mjs is for classifiers");
  if (input.dtype !== "float32") throw new Error(`the model takes ${input.dtype}; this program feeds float32`);
  const session = await ort.InferenceSession.create(model);
  const { data, shape, geometry } = preprocess(picture, input.preprocess, input.layout);
  const feeds = { [input.name]: new ort.Tensor("float32", data, shape) };
  if (session.inputNames.includes(target.name)) feeds[target.name] = new ort.Tensor("int64", BigInt64Array.of(BigInt(box)), [1]);
  else if (box >= 0) throw new Error(`the model takes no box here (target: ${target.mode}); export it with --target required`);
  const outputs = await session.run(feeds);
  const level = layers.find(({ candidates }) => candidates?.some(([from, to]) => from <= box && box < to));
  const raw = outputs[level?.heatmaps[method] ?? target.heatmaps?.[method] ?? layers.at(-1).heatmaps[method]];
  const map = minmax(resizeMap(minmax(raw.data), raw.dims.slice(1), geometry.input));
  const visible = toPicture(new Float32Array(map.length).fill(1), geometry); // 0 where a crop cut the picture off
  const { height, width } = picture;
  return { heatmap: toPicture(map, geometry), visible, outputs, height, width };
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [model, file, output, box] = process.argv.slice(2);
  const picture = await readPng(file);
  const { heatmap, visible, height, width } = await explainBox(await readFile(model), picture, Number(box ?? -1));
  const png = new PNG({ height, width });
  png.data.set(overlay(picture, heatmap, visible));
  await writeFile(output, PNG.sync.write(png));
}
