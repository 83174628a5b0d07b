// From a picture to the tensor that the model was trained on, by the manifest's `input.preprocess`, and the geometry that
// maps back. docs/reference/preprocessing.md states every rule; onnxcam/image/preprocess.py is the reference.

import { antialiased, nearest } from "./resample.js";
import { openCvResize, rint } from "./opencv_resize.js";

const COLORS = ["RGB", "BGR", "L", "bands"];
const MODES = ["stretch", "shortest", "letterbox"];
const INTERPOLATIONS = ["bilinear", "bicubic", "nearest", "area", "lanczos"];
const ANCHORS = ["center", "center_floor", "top_left", "top_right", "bottom_left", "bottom_right"];
const ARRAYS = { float32: Float32Array, float64: Float64Array, uint8: Uint8Array, float16: Uint16Array };
const LARGEST = 200_000_000; // pixels of a resized picture

/** A picture that cannot be explained, or a preprocessing that this page cannot do; a sentence for people. */
export class PictureError extends Error {
  constructor(message) {
    super(message);
    this.name = "PictureError";
  }
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const isSide = (value) => Number.isInteger(value) && value >= 1 && value <= 65536;

function chosen(value, options, what) {
  if (!options.includes(value)) throw new PictureError(`The model's preprocessing has ${what} ${JSON.stringify(value)}, which this page does not know.`);
  return value;
}

function numbers(value, channels, what) {
  const list = Array.isArray(value) ? value : [value];
  if (!list.every(isNumber) || (list.length !== 1 && list.length !== channels)) {
    throw new PictureError(`The model's preprocessing has ${what} ${JSON.stringify(value)}, expected a number, or ${channels}.`);
  }
  return list.length === 1 ? Array(channels).fill(list[0]) : list;
}

function sizeOf(value, what) {
  if (isSide(value)) return value;
  if (Array.isArray(value) && value.length === 2 && value.every(isSide)) return value;
  throw new PictureError(`The model's preprocessing has ${what} ${JSON.stringify(value)}, expected n or [height, width].`);
}

/**
 * The manifest's preprocessing, complete and checked.
 * `input` is the manifest's entry: `layout`, `shape`, `dtype` and `preprocess`.
 */
export function readSpec({ preprocess, layout, shape }) {
  if (!preprocess || !Object.keys(preprocess).length) {
    throw new PictureError(
      "The model does not say how pictures become tensors, and a wrong guess silently gives a wrong map; name it when the " +
        "model is exported, or the page made: --preprocess.",
    );
  }
  const color = chosen(preprocess.color ?? "RGB", COLORS, "color");
  const channels = color === "bands" ? preprocess.channels : color === "L" ? 1 : 3;
  const wanted = shape[layout.indexOf("C")];
  if (!isSide(channels) || (isSide(wanted) && wanted !== channels)) {
    throw new PictureError(`The model's preprocessing makes ${channels} channels, and the model takes ${wanted}.`);
  }
  const sides = [shape[layout.indexOf("H")], shape[layout.indexOf("W")]];
  const input = sides.every(isSide) ? sides : undefined;
  const std = numbers(preprocess.std ?? 1, channels, "std");
  if (std.includes(0)) throw new PictureError("The model's preprocessing divides by a std of 0.");
  const range = preprocess.range ?? null;
  if (range && !(Array.isArray(range) && range.length === 2 && range.every(isNumber) && range[0] !== range[1])) {
    throw new PictureError(`The model's preprocessing has range ${JSON.stringify(range)}, expected [low, high].`);
  }
  const { resize: stated, crop: cut } = preprocess;
  let resize = stated === undefined && input ? { mode: "stretch", size: input } : stated ?? null;
  if (resize) {
    resize = {
      mode: chosen(resize.mode ?? "stretch", MODES, "mode"),
      size: sizeOf(resize.size ?? input, "size"),
      interpolation: chosen(resize.interpolation ?? "bilinear", INTERPOLATIONS, "interpolation"),
      antialias: chosen(resize.antialias ?? true, [true, false], "antialias"),
      pad: numbers(resize.pad_value ?? 0, channels, "pad_value"),
    };
  }
  const crop = cut && { size: pair(sizeOf(cut.size ?? input, "crop size")), anchor: chosen(cut.anchor ?? "center", ANCHORS, "anchor") };
  return {
    color, channels, range, resize, crop: crop ?? null, std,
    scale: numbers(preprocess.scale ?? 1, 1, "scale")[0], mean: numbers(preprocess.mean ?? 0, channels, "mean"),
  };
}

/** The least and the largest value of a tensor per channel. */
export function rangeOf({ scale, mean, std }) {
  return mean.map((m, c) => [(0 * scale - m) / std[c], (255 * scale - m) / std[c]].sort((a, b) => a - b));
}

/**
 * The model's input for one picture.
 * `picture` is { pixels, height, width, channels }: Uint8Array of RGB, or Float32Array on the scale of pixels.
 * Returns `data`, `shape` and the `geometry` { picture, resized, offset, input }, each [height, width].
 */
export function prepare(picture, spec, layout, dtype) {
  const original = [picture.height, picture.width];
  let now = recolored(picture, spec);
  let resized = original, offset = [0, 0];
  if (spec.resize) {
    const { mode, size, interpolation, antialias, pad } = spec.resize;
    resized = resizedSize(original, mode, size);
    if (resized[0] * resized[1] > LARGEST) {
      throw new PictureError(`A picture of ${original[1]} x ${original[0]} would be resized to ${resized[1]} x ${resized[0]} pixels: it is too narrow for this model; crop it first.`);
    }
    now = resizedPicture(now, resized, interpolation, antialias);
    if (mode === "letterbox") {
      const box = pair(size);
      offset = [0, 1].map((axis) => Math.floor((box[axis] - resized[axis]) / 2));
      now = placed(now, box, offset, pad);
    }
  }
  if (spec.crop) {
    const { size, anchor } = spec.crop;
    const [vertical, horizontal] = anchor.startsWith("center") ? [anchor, anchor] : anchor.split("_");
    const moved = [anchored(now.height, size[0], vertical), anchored(now.width, size[1], horizontal)];
    now = placed(now, size, moved, Array(spec.channels).fill(0));
    offset = [offset[0] + moved[0], offset[1] + moved[1]];
  }
  const { height, width, channels } = now;
  const shape = layout === "NCHW" ? [1, channels, height, width] : [1, height, width, channels];
  return { data: scaled(now, spec, layout, dtype), shape, geometry: { picture: original, resized, offset, input: [height, width] } };
}

const pair = (size) => (typeof size === "number" ? [size, size] : size);

function recolored({ pixels, height, width, channels }, { color, channels: wanted }) {
  if (color === "bands" && channels !== wanted) {
    throw new PictureError(`The model takes ${wanted} bands, and this page reads pictures of three colours.`);
  }
  if (channels === 3 && (color === "RGB" || color === "bands")) return { pixels, height, width, channels };
  const now = new pixels.constructor(height * width * wanted);
  const rounded = pixels instanceof Uint8Array;
  for (let i = 0; i < height * width; i++) {
    const r = pixels[i * channels], g = pixels[i * channels + (channels > 1 ? 1 : 0)], b = pixels[i * channels + (channels > 2 ? 2 : 0)];
    if (color === "L") {
      now[i] = channels === 1 ? r : rounded ? (19595 * r + 38470 * g + 7471 * b + 32768) >> 16 : grey(r, g, b);
    } else {
      now[3 * i] = color === "BGR" ? b : r;
      now[3 * i + 1] = g;
      now[3 * i + 2] = color === "BGR" ? r : b;
    }
  }
  return { pixels: now, height, width, channels: wanted };
}

const { fround } = Math;
const grey = (r, g, b) => fround(fround(fround(fround(0.299) * r) + fround(fround(0.587) * g)) + fround(fround(0.114) * b));

function resizedSize([height, width], mode, size) {
  if (mode === "stretch") return pair(size);
  if (mode === "shortest" && typeof size === "number") {
    const longer = Math.max(Math.trunc((size * Math.max(height, width)) / Math.min(height, width)), 1);
    return height <= width ? [size, longer] : [longer, size];
  }
  const [h, w] = pair(size), ratios = [height / h, width / w];
  const ratio = mode === "letterbox" ? Math.max(...ratios) : Math.min(...ratios);
  const fitted = [rint(height / ratio), rint(width / ratio)];
  if (mode === "letterbox") return [Math.min(Math.max(fitted[0], 1), h), Math.min(Math.max(fitted[1], 1), w)];
  return [Math.max(fitted[0], h), Math.max(fitted[1], w)];
}

/** Where a picture of size `old` starts on a crop of size `size`; negative where the crop cuts. */
function anchored(old, size, anchor) {
  if (anchor === "top" || anchor === "left") return 0;
  if (anchor === "bottom" || anchor === "right") return size - old;
  if (size >= old) return Math.floor((size - old) / 2);
  return anchor === "center_floor" ? -Math.floor((old - size) / 2) : -rint((old - size) / 2);
}

function resizedPicture(picture, size, interpolation, antialias) {
  if (picture.height === size[0] && picture.width === size[1]) return picture;
  if (interpolation === "nearest") return nearest(picture, size);
  return (antialias ? antialiased : openCvResize)(picture, size, interpolation);
}

/** The picture laid on a canvas of another size, cut off where it does not fit. */
function placed({ pixels, height, width, channels }, [h, w], [top, left], pad) {
  const canvas = new pixels.constructor(h * w * channels);
  const fill = pad.map((value) => rint(Math.min(Math.max(value, 0), 255)));
  if (fill.some((value) => value)) for (let i = 0; i < canvas.length; i++) canvas[i] = fill[i % channels];
  const first = Math.max(left, 0), last = Math.min(left + width, w);
  for (let y = Math.max(top, 0); y < Math.min(top + height, h) && first < last; y++) {
    const from = ((y - top) * width + first - left) * channels;
    canvas.set(pixels.subarray(from, from + (last - first) * channels), (y * w + first) * channels);
  }
  return { pixels: canvas, height: h, width: w, channels };
}

/** The tensor's values: computed in float64 and rounded once to the input's type. */
function scaled({ pixels, height, width, channels }, { scale, mean, std }, layout, dtype) {
  const data = new ARRAYS[dtype](pixels.length), area = height * width;
  const rounded = pixels instanceof Uint8Array;
  for (let c = 0; c < channels; c++) {
    const value = (pixel) => converted((pixel * scale - mean[c]) / std[c], dtype);
    if (dtype === "uint8") checkWhole(value0(scale, mean[c], std[c]), value0(scale, mean[c], std[c], 255), scale / std[c]);
    const table = new ARRAYS[dtype](256);
    if (rounded) for (let pixel = 0; pixel < 256; pixel++) table[pixel] = value(pixel);
    const [start, step] = layout === "NCHW" ? [c * area, 1] : [c, channels];
    for (let i = 0, from = c, to = start; i < area; i++, from += channels, to += step) {
      data[to] = rounded ? table[pixels[from]] : value(pixels[from]);
    }
  }
  return data;
}

const value0 = (scale, mean, std, pixel = 0) => (pixel * scale - mean) / std;
const isWhole = (x) => Math.abs(x - Math.round(x)) < 1e-5;

function checkWhole(low, high, step) {
  if (!(isWhole(low) && isWhole(step) && Math.min(low, high) >= 0 && Math.max(low, high) < 256)) {
    throw new PictureError(`The model takes uint8, but its preprocessing gives ${Math.min(low, high)} to ${Math.max(low, high)}.`);
  }
}

function converted(value, dtype) {
  if (dtype === "float16") return half(value);
  return dtype === "uint8" ? Math.min(Math.max(rint(value), 0), 255) : value;
}

/** The bits of a float16, rounded to nearest, halves to even. */
export function half(value) {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0, size = Math.abs(value);
  if (Number.isNaN(size)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  const exponent = Math.max(Math.floor(Math.log2(Math.max(size, Number.MIN_VALUE))), -14);
  let digits = rint((size / 2 ** exponent) * 1024), power = exponent;
  if (digits >= 2048) [digits, power] = [1024, exponent + 1];
  return sign | (digits < 1024 ? digits : ((power + 15) << 10) | (digits - 1024));
}

/** The number that the bits of a float16 stand for. */
export function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, digits = bits & 1023;
  if (exponent === 31) return digits ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + digits / 1024) * 2 ** (exponent - 15) : digits * 2 ** -24);
}
