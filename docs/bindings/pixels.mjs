// Explains a picture with a model exported with --pixels --target required: the file itself prepares, explains and draws.
//   npm install onnxruntime-web pngjs
//   node pixels.mjs model.onnx picture.png overlay.png [class index]
import { readFile, writeFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";
import * as ort from "onnxruntime-web";
import { PNG } from "pngjs";

/** All outputs for a picture { pixels (RGB bytes), height, width }; `target` is a class index, -1 for the best. */
export async function explain(model, { pixels, height, width }, target = -1) {
  const session = await ort.InferenceSession.create(model);
  return session.run({
    pixels: new ort.Tensor("uint8", pixels, [height, width, 3]),
    target: new ort.Tensor("int64", BigInt64Array.of(BigInt(target)), [1]),
  });
}

/** RGBA, as PNG decoders and canvases give it, to RGB; `back` the other way round. */
export const rgb = (rgba) => Uint8Array.from({ length: (rgba.length / 4) * 3 }, (_, i) => rgba[Math.floor(i / 3) * 4 + (i % 3)]);
export const back = (pixels) => Uint8Array.from({ length: (pixels.length / 3) * 4 }, (_, i) => (i % 4 === 3 ? 255 : pixels[Math.floor(i / 4) * 3 + (i % 4)]));

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [model, file, output, target] = process.argv.slice(2);
  const { data, height, width } = PNG.sync.read(await readFile(file));
  const { predictions, target_class, overlay } = await explain(await readFile(model), { pixels: rgb(data), height, width }, target ?? -1);
  const index = Number(target_class.data[0]);
  console.log(`class ${index}: ${(100 * predictions.data[index]).toFixed(1)} %`);
  const png = new PNG({ height, width });
  png.data.set(back(overlay.data));
  await writeFile(output, PNG.sync.write(png));
}
