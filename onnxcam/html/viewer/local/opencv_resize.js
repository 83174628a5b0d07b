// cv2.resize, which models are trained with that say "antialias": false: INTER_LINEAR, _CUBIC, _AREA and _LANCZOS4.
// As in OpenCV's modules/imgproc/src/resize.cpp: on 8 bits weights have 11 fractional bits, values are summed in float32.
// On x86 processors OpenCV takes INTER_CUBIC from Intel's IPP, whose weights are not rounded; so are those here.

const BITS = 11, ONE = 1 << BITS;
const { fround } = Math;

/** To the nearest integer, halves to even. */
export function rint(x) {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low % 2 === 0 ? 0 : 1) : Math.round(x);
}

const clipped = (x) => (x < 0 ? 0 : x > 255 ? 255 : x);
const stored = (pixels, value) => (pixels instanceof Uint8Array ? clipped(rint(value)) : value);

/** A picture { pixels, height, width, channels } of another size; pixels are Uint8Array or Float32Array, and stay that. */
export function openCvResize(picture, [height, width], interpolation) {
  const ratios = [picture.height / height, picture.width / width];
  const whole = ratios.every(Number.isInteger);
  if (interpolation === "area" && Math.min(...ratios) >= 1) {
    return whole ? averaged(picture, height, width) : shared(picture, height, width);
  }
  if (interpolation === "bilinear" && ratios.every((ratio) => ratio === 2)) return averaged(picture, height, width);
  return interpolated(picture, height, width, interpolation);
}

/** Per new pixel the places of its old neighbours, clamped to the picture, and their weights. */
function neighbours(old, size, interpolation) {
  const scale = old / size, taps = { bilinear: 2, area: 2, bicubic: 4, lanczos: 8 }[interpolation];
  const places = new Int32Array(size * taps), weights = new Float32Array(size * taps);
  for (let i = 0; i < size; i++) {
    let position = fround((i + 0.5) * scale - 0.5), low = Math.floor(position), part = fround(position - low);
    if (interpolation === "area") {
      low = Math.floor(i * scale);
      part = fround(i + 1 - (low + 1) / scale);
      part = part <= 0 ? 0 : fround(part - Math.floor(part));
    }
    if (taps === 2 && low < 0) [low, part] = [0, 0];
    if (taps === 2 && low >= old - 1) [low, part] = [old - 1, 0];
    const shares = { 2: linear, 4: cubic, 8: lanczos }[taps](part);
    for (let j = 0; j < taps; j++) {
      places[i * taps + j] = Math.min(Math.max(low - taps / 2 + 1 + j, 0), old - 1);
      weights[i * taps + j] = shares[j];
    }
  }
  return { places, weights, taps };
}

const linear = (x) => [fround(1 - x), x];

function cubic(x) {
  const a = -0.75, y = 1 - x;
  const shares = [
    ((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a,
    ((a + 2) * x - (a + 3)) * x * x + 1,
    ((a + 2) * y - (a + 3)) * y * y + 1,
  ].map(fround);
  return [...shares, fround(1 - shares[0] - shares[1] - shares[2])];
}

function lanczos(x) {
  if (x < 1.1920929e-7) return [0, 0, 0, 1, 0, 0, 0, 0];
  const half = Math.SQRT1_2;
  const turns = [[1, 0], [-half, -half], [0, 1], [half, -half], [-1, 0], [half, half], [0, -1], [-half, half]];
  const start = -(x + 3) * Math.PI * 0.25, sine = Math.sin(start), cosine = Math.cos(start);
  const shares = turns.map(([s, c], i) => {
    const y = -(x + 3 - i) * Math.PI * 0.25;
    return fround((s * sine + c * cosine) / (y * y));
  });
  const sum = shares.reduce((a, b) => fround(a + b), 0);
  return shares.map((share) => fround(share * fround(1 / sum)));
}

function interpolated(picture, height, width, interpolation) {
  const { pixels, channels } = picture;
  const whole = pixels instanceof Uint8Array;
  const [rows, columns] = [neighbours(picture.height, height, interpolation), neighbours(picture.width, width, interpolation)];
  const integers = ({ weights }) => Float64Array.from(weights, (weight) => (interpolation === "bicubic" ? weight * ONE : rint(weight * ONE)));
  const [down, along] = whole ? [integers(rows), integers(columns)] : [rows.weights, columns.weights];
  const { taps } = rows, line = width * channels, lines = new Map();
  const resized = new pixels.constructor(height * line);
  // one old row at the new width
  const row = (y) => {
    if (!lines.has(y)) {
      const values = new (whole ? Float64Array : Float32Array)(line);
      for (let x = 0, to = 0; x < width; x++) {
        for (let c = 0; c < channels; c++, to++) {
          let sum = 0;
          for (let j = x * taps; j < (x + 1) * taps; j++) {
            const product = along[j] * pixels[(y * picture.width + columns.places[j]) * channels + c];
            sum = whole ? sum + product : fround(sum + fround(product));
          }
          values[to] = sum;
        }
      }
      lines.set(y, values);
    }
    return lines.get(y);
  };
  for (let y = 0; y < height; y++) {
    const near = Array.from({ length: taps }, (_, j) => row(rows.places[y * taps + j]));
    for (const kept of lines.keys()) if (kept < rows.places[y * taps]) lines.delete(kept);
    for (let x = 0; x < line; x++) {
      let value = 0;
      if (whole && taps === 2) {
        const [above, below] = [down[y * 2], down[y * 2 + 1]];
        value = (((above * (near[0][x] >> 4)) >> 16) + ((below * (near[1][x] >> 4)) >> 16) + 2) >> 2;
      } else if (whole) {
        for (let j = 0; j < taps; j++) value += down[y * taps + j] * near[j][x];
        value = clipped(rint(value / 2 ** (2 * BITS)));
      } else {
        for (let j = 0; j < taps; j++) value = fround(value + fround(down[y * taps + j] * near[j][x]));
      }
      resized[y * line + x] = value;
    }
  }
  return { ...picture, pixels: resized, height, width };
}

/** The mean of the old pixels in a new one, where whole numbers of them fit. */
function averaged(picture, height, width) {
  const { pixels, channels } = picture, whole = pixels instanceof Uint8Array;
  const [tall, wide] = [picture.height / height, picture.width / width];
  const share = fround(1 / (tall * wide)), resized = new pixels.constructor(height * width * channels);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < channels; c++, to++) {
        let sum = 0;
        for (let i = 0; i < tall; i++) {
          for (let j = 0; j < wide; j++) {
            sum += pixels[((y * tall + i) * picture.width + x * wide + j) * channels + c];
            if (!whole) sum = fround(sum);
          }
        }
        resized[to] = whole && tall === 2 && wide === 2 ? (sum + 2) >> 2 : stored(pixels, fround(sum * share));
      }
    }
  }
  return { ...picture, pixels: resized, height, width };
}

/** The mean of the old pixels in a new one, those on its edge in part. */
function shared(picture, height, width) {
  const { pixels, channels } = picture;
  const [rows, columns] = [portions(picture.height, height), portions(picture.width, width)];
  const resized = new pixels.constructor(height * width * channels), line = width * channels;
  const across = new Float32Array(line), total = new Float32Array(line);
  rows.forEach((down, y) => {
    total.fill(0);
    for (const [row, part] of down) {
      across.fill(0);
      columns.forEach((along, x) => {
        for (const [column, share] of along) {
          for (let c = 0; c < channels; c++) {
            const at = x * channels + c;
            across[at] = fround(across[at] + fround(pixels[(row * picture.width + column) * channels + c] * share));
          }
        }
      });
      for (let x = 0; x < line; x++) total[x] = fround(total[x] + fround(across[x] * part));
    }
    for (let x = 0; x < line; x++) resized[y * line + x] = stored(pixels, total[x]);
  });
  return { ...picture, pixels: resized, height, width };
}

/** Per new pixel the old ones that it covers, each with its share. */
function portions(old, size) {
  const scale = old / size;
  return Array.from({ length: size }, (_, i) => {
    const from = i * scale, to = from + scale, cell = Math.min(scale, old - from);
    const last = Math.min(Math.floor(to), old - 1), first = Math.min(Math.ceil(from), last);
    const shares = [];
    if (first - from > 1e-3) shares.push([first - 1, fround((first - from) / cell)]);
    for (let at = first; at < last; at++) shares.push([at, fround(1 / cell)]);
    if (to - last > 1e-3) shares.push([last, fround(Math.min(Math.min(to - last, 1), cell) / cell)]);
    return shares;
  });
}
