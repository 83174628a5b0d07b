// PNG files as their samples, all of them: a canvas rounds 16 bits to 8 and colours under transparency, and some browsers
// alter what pages read from it. https://www.w3.org/TR/png-3/

import { PictureError } from "./preprocess.js";

const GREY = 0, RGB = 2, PALETTE = 3, GREY_ALPHA = 4, RGBA = 6;
const SAMPLES = { [GREY]: 1, [RGB]: 3, [PALETTE]: 1, [GREY_ALPHA]: 2, [RGBA]: 4 };
const DEPTHS = { [GREY]: [1, 2, 4, 8, 16], [RGB]: [8, 16], [PALETTE]: [1, 2, 4, 8], [GREY_ALPHA]: [8, 16], [RGBA]: [8, 16] };
// first column and row, and steps, of the passes of an interlaced picture
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

const cutOff = () => new PictureError("The picture is a PNG that is cut off or damaged; save or copy it again.");
const nameOf = (bytes, at) => String.fromCharCode(...bytes.subarray(at, at + 4));

/**
 * Decode a PNG file.
 * Returns `height`, `width`, `samples` per pixel (1 grey, 3 RGB, 4 RGBA), `bits` (8 or 16), `data` (Uint8Array or
 * Uint16Array) and `exif`, the bytes of that block or null.
 */
export async function decodePng(bytes) {
  const { header, palette, alpha, parts, exif } = chunks(bytes);
  const { height, width, depth, type, interlaced } = header;
  const passes = (interlaced ? PASSES : [[0, 0, 1, 1]])
    .map(([x, y, dx, dy]) => ({ x, y, dx, dy, width: Math.ceil((width - x) / dx), height: Math.ceil((height - y) / dy) }))
    .filter((pass) => pass.width > 0 && pass.height > 0);
  const bitsPerPixel = SAMPLES[type] * depth;
  const lineOf = (pass) => Math.ceil((pass.width * bitsPerPixel) / 8);
  const size = passes.reduce((sum, pass) => sum + pass.height * (lineOf(pass) + 1), 0);
  const lines = await inflated(parts, size);
  const channels = SAMPLES[type], raw = new (depth === 16 ? Uint16Array : Uint8Array)(height * width * channels);
  let at = 0;
  for (const pass of passes) {
    const line = lineOf(pass);
    unfilter(lines, at, line, pass.height, Math.max(bitsPerPixel >> 3, 1));
    for (let row = 0; row < pass.height; row++) {
      const from = at + row * (line + 1) + 1;
      if (depth === 8 && pass.dx === 1) { // nothing to unpack
        raw.set(lines.subarray(from, from + line), (pass.y + row * pass.dy) * width * channels);
        continue;
      }
      for (let column = 0; column < pass.width; column++) {
        const to = ((pass.y + row * pass.dy) * width + pass.x + column * pass.dx) * channels;
        for (let c = 0; c < channels; c++) raw[to + c] = sample(lines, from, column * channels + c, depth);
      }
    }
    at += pass.height * (line + 1);
  }
  return { height, width, exif, bits: depth === 16 ? 16 : 8, ...expanded(raw, height * width, type, depth, palette, alpha) };
}

function sample(bytes, from, index, depth) {
  if (depth === 8) return bytes[from + index];
  if (depth === 16) return bytes[from + 2 * index] * 256 + bytes[from + 2 * index + 1];
  const bit = index * depth;
  return (bytes[from + (bit >> 3)] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
}

function chunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let header = null, palette = null, alpha = null, exif = null, ended = false;
  const parts = [];
  for (let at = 8; at + 12 <= bytes.length && !ended; ) {
    const length = view.getUint32(at), name = nameOf(bytes, at + 4), from = at + 8;
    if (from + length + 4 > bytes.length) throw cutOff();
    const data = bytes.subarray(from, from + length);
    if (!header && name !== "IHDR") throw cutOff();
    if (name === "IHDR") header = headerOf(view, from, length);
    else if (name === "PLTE") palette = data;
    else if (name === "tRNS") alpha = data;
    else if (name === "eXIf") exif = data;
    else if (name === "IDAT") parts.push(data);
    ended = name === "IEND";
    at = from + length + 4;
  }
  if (!header || !parts.length || !ended || (header.type === PALETTE && !palette)) throw cutOff();
  return { header, palette, alpha, exif, parts };
}

function headerOf(view, at, length) {
  if (length !== 13) throw cutOff();
  const [depth, type, method, filter, interlace] = [8, 9, 10, 11, 12].map((place) => view.getUint8(at + place));
  const header = { width: view.getUint32(at), height: view.getUint32(at + 4), depth, type, interlaced: interlace === 1 };
  if (!DEPTHS[type]?.includes(depth) || method || filter || interlace > 1 || !header.width || !header.height) throw cutOff();
  return header;
}

/** The bytes of a zlib stream, of which exactly `size` are expected. */
async function inflated(parts, size) {
  const bytes = new Uint8Array(size), stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const reader = stream.getReader();
  let at = 0;
  try {
    while (at < size) {
      const { done, value } = await reader.read();
      if (done) throw cutOff();
      const some = value.subarray(0, size - at); // what comes after the last line is no part of the picture
      bytes.set(some, at);
      at += some.length;
    }
  } catch {
    throw cutOff();
  } finally {
    reader.cancel().catch(() => {});
  }
  return bytes;
}

/** Undo the filters of `count` lines of `line` bytes, each after a byte that names its filter, in place. */
function unfilter(bytes, start, line, count, step) {
  for (let row = 0; row < count; row++) {
    const from = start + row * (line + 1) + 1, above = row ? from - line - 1 : -1, filter = bytes[from - 1];
    if (filter > 4) throw cutOff();
    for (let i = 0; i < line && filter; i++) {
      const left = i >= step ? bytes[from + i - step] : 0, up = row ? bytes[above + i] : 0;
      let guess = left;
      if (filter === 2) guess = up;
      else if (filter === 3) guess = (left + up) >> 1;
      else if (filter === 4) {
        const corner = row && i >= step ? bytes[above + i - step] : 0;
        const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
        guess = a <= b && a <= c ? left : b <= c ? up : corner;
      }
      bytes[from + i] += guess;
    }
  }
}

/** Grey levels to 8 bits, indices to colours, and transparency to a fourth sample. */
function expanded(raw, count, type, depth, palette, alpha) {
  if (type === PALETTE) {
    const samples = alpha ? 4 : 3, data = new Uint8Array(count * samples);
    for (let i = 0; i < count; i++) {
      if (3 * raw[i] + 2 >= palette.length) throw cutOff();
      for (let c = 0; c < 3; c++) data[i * samples + c] = palette[3 * raw[i] + c];
      if (alpha) data[4 * i + 3] = alpha[raw[i]] ?? 255;
    }
    return { samples, data };
  }
  if (type === GREY && depth < 8) return { samples: 1, data: raw.map((level) => level * (255 / ((1 << depth) - 1))) };
  if (type === GREY_ALPHA) {
    const data = new raw.constructor(count * 4);
    for (let i = 0; i < count; i++) data.set([raw[2 * i], raw[2 * i], raw[2 * i], raw[2 * i + 1]], 4 * i);
    return { samples: 4, data };
  }
  if (type === RGB && alpha?.length === 6) {
    const key = [0, 2, 4].map((at) => alpha[at] * 256 + alpha[at + 1]), data = new raw.constructor(count * 4);
    for (let i = 0; i < count; i++) {
      const color = raw.subarray(3 * i, 3 * i + 3);
      data.set(color, 4 * i);
      data[4 * i + 3] = color.every((value, c) => value === key[c]) ? 0 : depth === 16 ? 65535 : 255;
    }
    return { samples: 4, data };
  }
  return { samples: SAMPLES[type], data: raw };
}
