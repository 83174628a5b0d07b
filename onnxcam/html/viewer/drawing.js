// Heatmaps and overlays as onnxcam draws them: image/colormap.py and image/visible.py are the reference.
import { palette } from "./colormaps.js";

export const OPACITY = 0.6, KNEE = 0.5;
// the marks on what the model did not see: the part of the light that stays, the grey, and how much darker the lines are
const LIGHT = 0.3, GREY = 162, STEP = 52;
const HIDDEN = 208, LINE = 164, BLACK = 24, WHITE = 255;

// Round half to even, as NumPy does.
const rint = (value) => {
  const low = Math.floor(value), part = value - low;
  return part > 0.5 || (part === 0.5 && low % 2 === 1) ? low + 1 : low;
};

// The grey levels [w * h] as colours, RGBA.
export function heatmap({ width, height, values, visible }, colormap) {
  const table = palette(colormap), pixels = new Uint8ClampedArray(4 * width * height);
  // onnxcam's file is a PNG with a palette, in which the marks take the first four of the 256 colours
  const lowest = marked(visible) ? 4 : 0;
  for (let at = 0, to = 0; at < values.length; at += 1, to += 4) {
    const from = 3 * Math.max(values[at], lowest);
    pixels[to] = table[from];
    pixels[to + 1] = table[from + 1];
    pixels[to + 2] = table[from + 2];
    pixels[to + 3] = 255;
  }
  mark(pixels, width, height, visible, (_, line) => (line ? LINE : HIDDEN));
  return pixels;
}

// The colours over a picture of the same size, RGBA; `opacity` is reached where the map is KNEE, or everywhere if `even`.
export function overlay({ width, height, values, visible }, picture, colormap, { opacity = OPACITY, even = false } = {}) {
  const table = palette(colormap), colors = new Float64Array(768), weights = new Float64Array(256);
  for (let level = 0; level < 256; level += 1) {
    const alpha = even ? opacity : opacity * Math.min(level / 255 / KNEE, 1);
    weights[level] = even ? 1 - alpha : rint(255 * (1 - alpha)) / 255;
    for (let at = 3 * level; at < 3 * level + 3; at += 1) colors[at] = even ? table[at] * alpha : rint(table[at] * alpha);
  }
  const pixels = new Uint8ClampedArray(picture.length);
  for (let at = 0, to = 0; at < values.length; at += 1, to += 4) {
    const from = 3 * values[at], weight = weights[values[at]];
    // a clamped array rounds what it stores
    pixels[to] = picture[to] * weight + colors[from];
    pixels[to + 1] = picture[to + 1] * weight + colors[from + 1];
    pixels[to + 2] = picture[to + 2] * weight + colors[from + 2];
    pixels[to + 3] = 255;
  }
  mark(pixels, width, height, visible, (at, line) => picture[at] * LIGHT + (1 - LIGHT) * GREY - (line ? STEP : 0));
  return pixels;
}

// Frame a box of the picture, as image/outlines.py does: white between two black lines. `size` is the picture's.
export function outline(pixels, { width, height, size }, box) {
  const wide = Math.max(rint(Math.max(width, height) / 200), 1), edge = Math.max(rint(wide / 2), 1);
  const [left, top, right, bottom] = box.map((value, at) => rint(value * (at % 2 ? height / size.height : width / size.width)));
  const x0 = Math.min(Math.max(Math.min(left, right), 0), width - 1), y0 = Math.min(Math.max(Math.min(top, bottom), 0), height - 1);
  const x1 = Math.max(Math.min(Math.max(left, right), width), x0 + 1), y1 = Math.max(Math.min(Math.max(top, bottom), height), y0 + 1);
  const fill = (fromX, toX, fromY, toY, color) => {
    for (let y = Math.max(fromY, 0); y < Math.min(toY, height); y += 1) {
      for (let x = Math.max(fromX, 0); x < Math.min(toX, width); x += 1) pixels.set(color, 4 * (y * width + x));
    }
  };
  for (const [reach, color] of [[edge, [16, 18, 22]], [0, [255, 255, 255]]]) {
    const inner = wide + reach;
    for (const [from, to] of [[y0 - reach, y0 + inner], [y1 - inner, y1 + reach]]) fill(x0 - reach, x1 + reach, from, to, color);
    for (const [from, to] of [[x0 - reach, x0 + inner], [x1 - inner, x1 + reach]]) fill(from, to, y0 - reach, y1 + reach, color);
  }
}

export const marked = (visible) => Boolean(visible) && !visible.every((value) => value);

// Hatch the pixels where `visible` is 0, and frame the others.
function mark(pixels, width, height, visible, shade) {
  if (!marked(visible)) return;
  const longer = Math.max(width, height), thin = Math.max(rint(longer / 300), 1);
  const distance = Math.max(rint(longer / 32), 4), thickness = Math.max(Math.floor(distance / 4), 1);
  const some = visible.some((value) => value);
  const near = some ? grown(visible, width, height, thin) : visible;
  const far = some ? grown(visible, width, height, 2 * thin) : visible;
  for (let y = 0, at = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, at += 1) {
      if (visible[at]) continue;
      const line = (x + y) % distance < thickness;
      for (let to = 4 * at; to < 4 * at + 3; to += 1) {
        pixels[to] = near[at] ? WHITE : far[at] ? BLACK : shade(to, line);
      }
    }
  }
}

// 1 where a pixel with 1 lies at most `reach` columns and rows away.
function grown(mask, width, height, reach) {
  const along = (source, lines, length, lineStep, step) => {
    const target = new Uint8Array(source.length);
    for (let line = 0; line < lines; line += 1) {
      const start = line * lineStep;
      let last = -Infinity;
      for (let at = 0; at < length; at += 1) {
        if (source[start + at * step]) last = at;
        if (at - last <= reach) target[start + at * step] = 1;
      }
      last = Infinity;
      for (let at = length - 1; at >= 0; at -= 1) {
        if (source[start + at * step]) last = at;
        if (last - at <= reach) target[start + at * step] = 1;
      }
    }
    return target;
  };
  return along(along(mask, height, width, width, 1), width, height, 1, width);
}
