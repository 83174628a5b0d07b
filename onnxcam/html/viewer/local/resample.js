// Resizing pictures exactly as Pillow does (antialiased): weights of 22 fractional bits, rounded to 8 bits after each axis.
// Values that are not 8-bit pixels are summed without rounding, as Pillow's mode F. See onnxcam/image/resample.py.

const BITS = 22;
const HALF = 2 ** (BITS - 1);

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

function cubic(x) {
  const a = -0.5, t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
}

const KERNELS = {
  area: [(x) => (x > -0.5 && x <= 0.5 ? 1 : 0), 0.5],
  bilinear: [(x) => Math.max(1 - Math.abs(x), 0), 1],
  bicubic: [cubic, 2],
  lanczos: [(x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0), 3],
};

/** For each of `size` pixels the first old pixel, how many follow, and their weights, `taps` numbers a pixel. */
function weights(old, size, interpolation) {
  const [kernel, reach] = KERNELS[interpolation];
  const scale = old / size, stretch = Math.max(scale, 1), support = reach * stretch;
  const taps = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(size), count = new Int32Array(size), values = new Float64Array(size * taps);
  for (let i = 0; i < size; i++) {
    const centre = (i + 0.5) * scale;
    first[i] = Math.max(Math.trunc(centre - support + 0.5), 0);
    count[i] = Math.min(Math.trunc(centre + support + 0.5), old) - first[i];
    let sum = 0;
    for (let j = 0; j < count[i]; j++) {
      values[i * taps + j] = kernel((j + first[i] - centre + 0.5) * (1 / stretch));
      sum += values[i * taps + j];
    }
    if (sum !== 0) for (let j = 0; j < count[i]; j++) values[i * taps + j] /= sum;
  }
  return { first, count, values, taps };
}

/** A picture { pixels, height, width, channels } of another size; pixels are Uint8Array or Float32Array, and stay that. */
export function antialiased(picture, [height, width], interpolation) {
  return downwards(across(picture, width, interpolation), height, interpolation);
}

function fixed({ values, ...others }) {
  const whole = new Int32Array(values.length);
  for (let i = 0; i < values.length; i++) whole[i] = Math.trunc(values[i] * 2 ** BITS + (values[i] < 0 ? -0.5 : 0.5));
  return { ...others, values: whole };
}

const clipped = (sum) => (sum < 0 ? 0 : sum > 255 ? 255 : sum);

function across(picture, size, interpolation) {
  const { pixels, height, width, channels } = picture;
  if (width === size) return picture;
  const whole = pixels instanceof Uint8Array;
  const table = weights(width, size, interpolation);
  const { first, count, values, taps } = whole ? fixed(table) : table;
  const resized = new pixels.constructor(height * size * channels);
  let to = 0;
  for (let y = 0; y < height; y++) {
    const row = y * width * channels;
    for (let x = 0; x < size; x++) {
      const start = row + first[x] * channels, weight = x * taps, stop = weight + count[x];
      for (let c = 0; c < channels; c++) {
        let sum = whole ? HALF : 0;
        for (let w = weight, at = start + c; w < stop; w++, at += channels) sum += values[w] * pixels[at];
        resized[to++] = whole ? clipped(sum >> BITS) : sum;
      }
    }
  }
  return { ...picture, pixels: resized, width: size };
}

function downwards(picture, size, interpolation) {
  const { pixels, height, width, channels } = picture;
  if (height === size) return picture;
  const whole = pixels instanceof Uint8Array;
  const table = weights(height, size, interpolation);
  const { first, count, values, taps } = whole ? fixed(table) : table;
  const line = width * channels;
  const resized = new pixels.constructor(size * line);
  const sums = whole ? new Int32Array(line) : new Float64Array(line);
  for (let y = 0; y < size; y++) {
    sums.fill(whole ? HALF : 0);
    for (let j = 0; j < count[y]; j++) {
      const weight = values[y * taps + j], row = (first[y] + j) * line;
      for (let x = 0; x < line; x++) sums[x] += weight * pixels[row + x];
    }
    const to = y * line;
    if (whole) for (let x = 0; x < line; x++) resized[to + x] = clipped(sums[x] >> BITS);
    else for (let x = 0; x < line; x++) resized[to + x] = sums[x];
  }
  return { ...picture, pixels: resized, height: size };
}

/** The old pixel under each new pixel's centre. */
export function nearest(picture, [height, width]) {
  const { pixels, channels } = picture;
  const rows = under(picture.height, height), columns = under(picture.width, width);
  const resized = new pixels.constructor(height * width * channels);
  let to = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = (rows[y] * picture.width + columns[x]) * channels;
      for (let c = 0; c < channels; c++) resized[to++] = pixels[from + c];
    }
  }
  return { ...picture, pixels: resized, height, width };
}

function under(old, size) {
  const places = new Int32Array(size), step = old / size;
  // Pillow adds the step pixel by pixel, and rounds each time
  for (let i = 0, at = step * 0.5; i < size; i++, at += step) places[i] = Math.min(Math.trunc(at), old - 1);
  return places;
}
