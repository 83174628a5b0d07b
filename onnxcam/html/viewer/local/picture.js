// Pictures as Explainer reads them: upright RGB, transparent pixels on white; or values on the scale of pixels where the
// model's preprocessing states a range. As onnxcam/image/picture.py and onnxcam/image/header.py.

import { decodePng } from "./png.js";
import { PictureError } from "./preprocess.js";

export const MAX_PIXELS = 50_000_000;
const LOW_BITS = 1 << 14; // 16-bit values below may be data of 10, 12 or 14 bits
const ORIENTATION = 0x0112;

const text = (bytes, from, to) => String.fromCharCode(...bytes.subarray(from, to));

/** Format, height and width of an encoded picture, before anything is decoded; null where they cannot be told. */
export function headerOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const size = (format, height, width) => ({ format, height, width });
  try {
    if (text(bytes, 1, 8) === "PNG\r\n\x1a\n") return size("PNG", view.getUint32(20), view.getUint32(16));
    if (text(bytes, 0, 3) === "GIF") return size("GIF", view.getUint16(8, true), view.getUint16(6, true));
    if (text(bytes, 0, 2) === "BM") {
      if (view.getUint32(14, true) === 12) return size("BMP", view.getUint16(20, true), view.getUint16(18, true));
      return size("BMP", Math.abs(view.getInt32(22, true)), view.getInt32(18, true));
    }
    if (text(bytes, 0, 4) === "RIFF" && text(bytes, 8, 12) === "WEBP") return webp(bytes, view, size);
    if (bytes[0] === 0xff && bytes[1] === 0xd8) return jpeg(bytes, view, size);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new PictureError("The picture is cut off within its header; give a whole picture file.");
  }
  return null;
}

function webp(bytes, view, size) {
  const kind = text(bytes, 12, 16), three = (at) => view.getUint16(at, true) + 65536 * bytes[at + 2];
  if (kind === "VP8X") return size("WebP", three(27) + 1, three(24) + 1);
  if (kind === "VP8L") {
    const bits = view.getUint32(21, true);
    return size("WebP", ((bits >> 14) & 0x3fff) + 1, (bits & 0x3fff) + 1);
  }
  return size("WebP", view.getUint16(28, true) & 0x3fff, view.getUint16(26, true) & 0x3fff);
}

function jpeg(bytes, view, size) {
  for (let at = 2; ; ) {
    while (view.getUint8(at) === 0xff && view.getUint8(at + 1) === 0xff) at++;
    const marker = view.getUint8(at + 1);
    if (view.getUint8(at) !== 0xff || marker === 0xd9 || marker === 0xda) throw new RangeError("no frame");
    if ((marker >= 0xd0 && marker <= 0xd8) || marker === 1) {
      at += 2;
      continue;
    }
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) return size("JPEG", view.getUint16(at + 5), view.getUint16(at + 7));
    at += 2 + Math.max(view.getUint16(at + 2), 2);
  }
}

/** The EXIF orientation, 1 (upright) to 8, in a block of EXIF. */
export function orientationOf(block) {
  if (!block) return 1;
  const start = text(block, 0, 6) === "Exif\0\0" ? 6 : 0, view = new DataView(block.buffer, block.byteOffset + start, block.byteLength - start);
  try {
    const little = view.getUint8(0) === 0x49, first = view.getUint32(4, little), count = Math.min(view.getUint16(first, little), 4096);
    for (let at = first + 2; at < first + 2 + 12 * count; at += 12) {
      if (view.getUint16(at, little) !== ORIENTATION) continue;
      const value = view.getUint16(at + 8, little);
      return value >= 1 && value <= 8 ? value : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return 1;
}

/** A picture turned upright. */
export function upright(picture, orientation) {
  if (orientation === 1) return picture;
  const { pixels, height, width, channels } = picture;
  const swapped = orientation >= 5, flipped = [3, 4, 7, 8].includes(orientation), mirrored = [2, 3, 6, 7].includes(orientation);
  const [h, w] = swapped ? [width, height] : [height, width];
  const turned = new pixels.constructor(pixels.length);
  for (let y = 0, to = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const [row, column] = [flipped ? h - 1 - y : y, mirrored ? w - 1 - x : x];
      const from = (swapped ? column * width + row : row * width + column) * channels;
      for (let c = 0; c < channels; c++) turned[to++] = pixels[from + c];
    }
  }
  return { pixels: turned, height: h, width: w, channels };
}

/** Samples of 1, 3 or 4 a pixel as RGB of 8 bits, or on the scale of pixels where `range` is stated. */
export function fromSamples({ height, width, samples, bits, data }, range) {
  const count = height * width, top = bits === 16 ? 65535 : 255;
  if (range === null && bits === 16) checkBits(data, samples);
  if (range !== null) {
    const scale = 255 / (range[1] - range[0]), channels = samples === 1 ? 1 : 3, pixels = new Float32Array(count * channels);
    for (let i = 0; i < count; i++) {
      for (let c = 0; c < channels; c++) {
        const value = Math.fround((data[i * samples + c] - range[0]) * scale);
        if (samples < 4) pixels[i * channels + c] = value;
        else {
          const opacity = Math.fround(data[4 * i + 3] / top);
          pixels[3 * i + c] = Math.fround(Math.fround(value * opacity) + Math.fround(255 * Math.fround(1 - opacity)));
        }
      }
    }
    return { pixels, height, width, channels };
  }
  const pixels = new Uint8Array(count * 3), byte = bits === 16 ? (value) => value >> 8 : (value) => value;
  for (let i = 0; i < count; i++) {
    const alpha = samples === 4 ? byte(data[4 * i + 3]) : 255;
    for (let c = 0; c < 3; c++) {
      const value = byte(data[i * samples + (samples === 1 ? 0 : c)]);
      pixels[3 * i + c] = alpha === 255 ? value : Math.floor((value * alpha + 255 * (255 - alpha) + 127) / 255);
    }
  }
  return { pixels, height, width, channels: 3 };
}

function checkBits(data, samples) {
  let top = 0;
  for (let i = 0; i < data.length; i++) if ((samples < 4 || i % 4 < 3) && data[i] > top) top = data[i];
  if (top > 0 && top < LOW_BITS) {
    throw new PictureError(
      `The picture has 16 bits and no value above ${top}, as data of fewer bits have; state which values are black and white ` +
        "when the page is made: a preprocessing with range.",
    );
  }
}

const refused = (why) => new PictureError(`The picture ${why}.`);

/**
 * Read an encoded picture: { pixels, height, width, channels, doubts }.
 * `decode` turns what is not a PNG into { data (RGBA), height, width, upright }, see `byBrowser`.
 */
export async function readPicture(blob, range, decode) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const header = headerOf(bytes);
  if (header && header.height * header.width > MAX_PIXELS) {
    throw refused(`has ${header.width} x ${header.height} pixels, more than the limit of ${MAX_PIXELS.toLocaleString("en")}; scale it down`);
  }
  if (header?.format === "PNG") {
    const png = await decodePng(bytes);
    return { ...upright(fromSamples(png, range), orientationOf(png.exif)), doubts: [] };
  }
  const { data, height, width, doubts } = await decode(blob);
  if (height * width > MAX_PIXELS) throw refused(`has ${width} x ${height} pixels, more than the limit`);
  const opaque = fromSamples({ height, width, samples: 4, bits: 8, data }, range);
  return { ...opaque, doubts };
}

let altered = null; // whether this browser alters what is read from a canvas

/** RGBA of a picture as the browser decodes it, turned upright, colours as they are stored. */
export async function byBrowser(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw refused("cannot be decoded by this browser; it is damaged, or of a format it does not know: convert it to PNG or JPEG");
  }
  const { height, width } = bitmap;
  const { data } = drawn(height, width, (context) => context.drawImage(bitmap, 0, 0));
  bitmap.close();
  altered ??= alters();
  const doubts = altered
    ? ["this browser alters the pixels that pages read from pictures (a protection against fingerprinting): predictions and map are of the altered picture; PNG files are read unaltered"]
    : [];
  return { data, height, width, doubts };
}

function drawn(height, width, draw) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw refused(`of ${width} x ${height} pixels is too large for this browser; scale it down`);
  draw(context);
  return context.getImageData(0, 0, width, height);
}

function alters() {
  const pattern = new ImageData(64, 64);
  for (let i = 0; i < pattern.data.length; i++) pattern.data[i] = i % 4 === 3 ? 255 : (i * 151) & 255;
  const { data } = drawn(64, 64, (context) => context.putImageData(pattern, 0, 0));
  return data.some((value, i) => value !== pattern.data[i]);
}
