// From a picture to the tensor that a model was trained on, as docs/preprocessing.md says, and the way back for maps.
// No dependency: runs in a browser and under Node.

/** A picture as RGB: transparent pixels are laid on white. `rgba` has four bytes per pixel, as a canvas gives them. */
export function fromRgba(rgba, height, width) {
  const pixels = new Uint8Array(height * width * 3);
  for (let i = 0; i < height * width; i++) {
    const alpha = rgba[4 * i + 3];
    for (let c = 0; c < 3; c++) {
      pixels[3 * i + c] = Math.floor((rgba[4 * i + c] * alpha + 255 * (255 - alpha) + 127) / 255);
    }
  }
  return { pixels, height, width, channels: 3 };
}

/**
 * The model's input for one picture.
 * `spec` is the manifest's input.preprocess, `layout` NCHW or NHWC. Returns the values, their shape, and the geometry
 * that `toPicture` needs.
 */
export function preprocess(picture, spec, layout) {
  const original = [picture.height, picture.width];
  let now = recolor(picture, spec.color);
  let resized = original;
  let offset = [0, 0];
  if (spec.resize) {
    const { mode, size, interpolation, antialias, pad_value: pad } = spec.resize;
    resized = resizedSize(original, mode, size);
    now = resize(now, resized, interpolation, antialias);
    if (mode === "letterbox") {
      const box = pair(size);
      offset = [0, 1].map((axis) => Math.floor((box[axis] - resized[axis]) / 2));
      now = place(now, box, offset, pad);
    }
  }
  if (spec.crop) {
    const [vertical, horizontal] = anchors(spec.crop.anchor);
    const moved = [
      anchored(now.height, spec.crop.size[0], vertical),
      anchored(now.width, spec.crop.size[1], horizontal),
    ];
    now = place(now, spec.crop.size, moved, 0);
    offset = [offset[0] + moved[0], offset[1] + moved[1]];
  }
  const { pixels, height, width, channels } = now;
  const data = new Float32Array(pixels.length);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < channels; c++) {
      const value = (pixels[i * channels + c] * spec.scale - each(spec.mean, c)) / each(spec.std, c);
      data[layout === "NCHW" ? c * height * width + i : i * channels + c] = value;
    }
  }
  const shape = layout === "NCHW" ? [1, channels, height, width] : [1, height, width, channels];
  return { data, shape, geometry: { original, resized, offset, input: [height, width] } };
}

/** A map at the input's resolution, brought onto the original picture: 0 outside a crop, padding left out. */
export function toPicture(map, { original, resized, offset, input }) {
  const [rows, columns] = [0, 1].map((axis) => {
    const start = Math.max(offset[axis], 0);
    const stop = Math.min(offset[axis] + resized[axis], input[axis]);
    return Array.from({ length: original[axis] }, (_, i) => {
      const centre = ((i + 0.5) * resized[axis]) / original[axis] + offset[axis];
      if (centre < start || centre >= stop) return null;
      const position = Math.min(Math.max(centre - 0.5, start), stop - 1);
      const low = Math.floor(position);
      return [low, Math.min(low + 1, stop - 1), position - low];
    });
  });
  const result = new Float32Array(original[0] * original[1]);
  rows.forEach((row, y) => {
    columns.forEach((column, x) => {
      if (row && column) result[y * original[1] + x] = between(map, input[1], row, column);
    });
  });
  return result;
}

/** A map of [h, w] resized to [height, width]: bilinear, half-pixel centres. */
export function resizeMap(map, size, to) {
  return toPicture(map, { original: to, resized: size, offset: [0, 0], input: size });
}

/** Subtract the minimum, divide by the maximum plus 1e-7, as pytorch-grad-cam does. A map of zeros stays zero. */
export function minmax(map) {
  const low = map.reduce((a, b) => Math.min(a, b), Infinity);
  const high = map.reduce((a, b) => Math.max(a, b), -Infinity) - low;
  return map.map((value) => (value - low) / (1e-7 + high));
}

function between(map, width, [top, bottom, down], [left, right, along]) {
  const upper = map[top * width + left] * (1 - along) + map[top * width + right] * along;
  const lower = map[bottom * width + left] * (1 - along) + map[bottom * width + right] * along;
  return upper * (1 - down) + lower * down;
}

function recolor({ pixels, height, width }, color) {
  const grey = color === "L";
  const now = new Uint8Array(height * width * (grey ? 1 : 3));
  for (let i = 0; i < height * width; i++) {
    const [r, g, b] = pixels.subarray(3 * i, 3 * i + 3);
    if (grey) now[i] = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16;
    else now.set(color === "BGR" ? [b, g, r] : [r, g, b], 3 * i);
  }
  return { pixels: now, height, width, channels: grey ? 1 : 3 };
}

function resizedSize([height, width], mode, size) {
  if (mode === "stretch") return pair(size);
  if (mode === "shortest" && typeof size === "number") {
    const longer = Math.max(Math.trunc((size * Math.max(height, width)) / Math.min(height, width)), 1);
    return height <= width ? [size, longer] : [longer, size];
  }
  const [h, w] = pair(size);
  const ratios = [height / h, width / w];
  const ratio = mode === "letterbox" ? Math.max(...ratios) : Math.min(...ratios);
  const fitted = [rint(height / ratio), rint(width / ratio)];
  if (mode === "letterbox") return [Math.min(Math.max(fitted[0], 1), h), Math.min(Math.max(fitted[1], 1), w)];
  return [Math.max(fitted[0], h), Math.max(fitted[1], w)];
}

function anchors(anchor) {
  return anchor.startsWith("center") ? [anchor, anchor] : anchor.split("_");
}

/** Where a picture of size `old` starts on a crop of size `size`; negative where the crop cuts. */
function anchored(old, size, anchor) {
  if (anchor === "top" || anchor === "left") return 0;
  if (anchor === "bottom" || anchor === "right") return size - old;
  if (size >= old) return Math.floor((size - old) / 2);
  return anchor === "center_floor" ? -Math.floor((old - size) / 2) : -rint((old - size) / 2);
}

/** The picture laid on a canvas of another size, cut off where it does not fit. */
function place({ pixels, height, width, channels }, [h, w], [top, left], pad) {
  const canvas = new Uint8Array(h * w * channels);
  for (let i = 0; i < canvas.length; i++) canvas[i] = each(pad, i % channels);
  for (let y = Math.max(top, 0); y < Math.min(top + height, h); y++) {
    for (let x = Math.max(left, 0); x < Math.min(left + width, w); x++) {
      const from = ((y - top) * width + (x - left)) * channels;
      canvas.set(pixels.subarray(from, from + channels), (y * w + x) * channels);
    }
  }
  return { pixels: canvas, height: h, width: w, channels };
}

function resize(picture, [height, width], interpolation, antialias) {
  if (picture.height === height && picture.width === width) return picture;
  if (interpolation === "nearest") return nearest(picture, height, width);
  if (antialias) return along(along(picture, "width", width, interpolation), "height", height, interpolation);
  if (interpolation === "bilinear") return openCvLinear(picture, height, width);
  throw new Error(`${interpolation} without antialiasing is OpenCV's own: resize with opencv.js`);
}

function nearest({ pixels, height: h, width: w, channels }, height, width) {
  const now = new Uint8Array(height * width * channels);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = (Math.floor(((y + 0.5) * h) / height) * w + Math.floor(((x + 0.5) * w) / width)) * channels;
      now.set(pixels.subarray(from, from + channels), (y * width + x) * channels);
    }
  }
  return { pixels: now, height, width, channels };
}

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const KERNELS = {
  area: [(x) => (x > -0.5 && x <= 0.5 ? 1 : 0), 0.5],
  bilinear: [(x) => Math.max(1 - Math.abs(x), 0), 1],
  bicubic: [
    (x) => {
      const [a, t] = [-0.5, Math.abs(x)];
      if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
      return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
    },
    2,
  ],
  lanczos: [(x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0), 3],
};

/** Pillow's resampling along one axis, to the last bit: weights of 22 fractional bits, rounded to 8 bits. */
function along(picture, axis, size, interpolation) {
  if (picture[axis] === size) return picture;
  const { pixels, channels } = picture;
  const old = picture[axis];
  const now = { ...picture, [axis]: size, pixels: new Uint8Array((pixels.length / old) * size) };
  // how far apart neighbours on this axis lie, and how many such lines there are
  const step = axis === "width" ? channels : picture.width * channels;
  const lines = axis === "width" ? picture.height : 1;
  const [kernel, support] = KERNELS[interpolation];
  const scale = old / size;
  const stretch = Math.max(scale, 1);
  for (let i = 0; i < size; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support * stretch + 0.5), 0);
    const stop = Math.min(Math.trunc(centre + support * stretch + 0.5), old);
    const taps = Array.from({ length: stop - first }, (_, j) => kernel((first + j - centre + 0.5) / stretch));
    const sum = taps.reduce((a, b) => a + b, 0);
    const weights = taps.map((tap) => Math.trunc((tap / sum) * 2 ** 22 + Math.sign(tap) * 0.5));
    for (let line = 0; line < lines; line++) {
      for (let k = 0; k < step; k++) {
        let total = 2 ** 21;
        weights.forEach((weight, j) => {
          total += weight * pixels[(line * old + first + j) * step + k];
        });
        now.pixels[(line * size + i) * step + k] = Math.min(Math.max(Math.floor(total / 2 ** 22), 0), 255);
      }
    }
  }
  return now;
}

/** cv2.resize(..., INTER_LINEAR) on 8 bits: weights of 11 fractional bits; halving both axes averages. */
function openCvLinear({ pixels, height: h, width: w, channels }, height, width) {
  const now = new Uint8Array(height * width * channels);
  const halved = h === 2 * height && w === 2 * width;
  const [rows, columns] = [
    [h, height],
    [w, width],
  ].map(([old, size]) =>
    Array.from({ length: size }, (_, i) => {
      const position = Math.fround(((i + 0.5) * old) / size - 0.5);
      const low = Math.floor(position);
      const part = Math.fround(position - low);
      const inside = (index) => Math.min(Math.max(index, 0), old - 1);
      return [inside(low), inside(low + 1), rint(Math.fround(1 - part) * 2048), rint(part * 2048)];
    }),
  );
  rows.forEach(([top, bottom, above, below], y) => {
    columns.forEach(([left, right, before, after], x) => {
      for (let c = 0; c < channels; c++) {
        const at = (row, column) => pixels[(row * w + column) * channels + c];
        let value;
        if (halved) {
          value = (at(2 * y, 2 * x) + at(2 * y, 2 * x + 1) + at(2 * y + 1, 2 * x) + at(2 * y + 1, 2 * x + 1) + 2) >> 2;
        } else {
          const upper = at(top, left) * before + at(top, right) * after;
          const lower = at(bottom, left) * before + at(bottom, right) * after;
          value = (((above * (upper >> 4)) >> 16) + ((below * (lower >> 4)) >> 16) + 2) >> 2;
        }
        now[(y * width + x) * channels + c] = value;
      }
    });
  });
  return { pixels: now, height, width, channels };
}

/** To the nearest integer, halves to even. */
function rint(x) {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low % 2 === 0 ? 0 : 1) : Math.round(x);
}

const pair = (size) => (typeof size === "number" ? [size, size] : size);
const each = (value, channel) => (typeof value === "number" ? value : value[channel % value.length]);
