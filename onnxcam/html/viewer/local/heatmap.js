// From a layer's map to the picture: normalised, placed on the model's input, and mapped back through the preprocessing.
// As onnxcam/explain/maps.py, onnxcam/image/geometry.py and onnxcam/graph/window.py; positions are half-pixel.

const { fround } = Math;
const SMALL = fround(1e-7), PART = fround(3e-6), TINY = fround(2 ** -126);

/** Subtract the minimum and divide by the maximum, as pytorch-grad-cam does; a map of zeros stays zero. */
export function normalized(map) {
  let low = Infinity, high = -Infinity;
  for (const value of map) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const peak = fround(high - low);
  const divisor = Math.max(fround(peak + Math.min(SMALL, fround(PART * peak))), TINY);
  return map.map((value) => fround(value - low) / divisor);
}

/** Neighbours and the share of the second for each of `size` pixels, as cv2.INTER_LINEAR on float32 takes them. */
function neighbours(old, size) {
  const low = new Int32Array(size), high = new Int32Array(size), part = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const position = fround(((i + 0.5) * old) / size - 0.5);
    const at = Math.floor(position);
    low[i] = Math.min(Math.max(at, 0), old - 1);
    high[i] = Math.min(low[i] + 1, old - 1);
    part[i] = at < 0 || at >= old - 1 ? 0 : fround(position - at);
  }
  return { low, high, part };
}

/** A map of [h, w] resized to [height, width]. */
export function resizedMap(map, [h, w], [height, width]) {
  if (h === height && w === width) return map;
  return mixed(map, w, neighbours(h, height), neighbours(w, width));
}

function mixed(map, stride, rows, columns) {
  const height = rows.low.length, width = columns.low.length;
  const result = new Float32Array(height * width), lines = new Map();
  const line = (y) => {
    if (!lines.has(y)) {
      const values = new Float32Array(width), start = y * stride;
      for (let x = 0; x < width; x++) {
        const part = columns.part[x];
        values[x] = fround(map[start + columns.low[x]] * fround(1 - part)) + fround(map[start + columns.high[x]] * part);
      }
      lines.set(y, values);
    }
    return lines.get(y);
  };
  for (let y = 0; y < height; y++) {
    const above = line(rows.low[y]), below = line(rows.high[y]), part = rows.part[y], rest = fround(1 - part);
    for (const done of lines.keys()) if (done < rows.low[y]) lines.delete(done);
    for (let x = 0; x < width; x++) result[y * width + x] = fround(above[x] * rest) + fround(below[x] * part);
  }
  return result;
}

/** A layer's map [h, w] drawn where it lies on the model's input: `window` is the manifest's entry; 0 outside it. */
export function placedMap(map, [h, w], window, input) {
  let values = map, size = [h, w];
  if (window.transposed) {
    values = new Float32Array(h * w);
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) values[x * h + y] = map[y * w + x];
    size = [w, h];
  }
  const rows = within(size[0], window.height, input[0]), columns = within(size[1], window.width, input[1]);
  const result = new Float32Array(input[0] * input[1]);
  rows.forEach((row, y) => {
    if (!row) return;
    columns.forEach((column, x) => {
      if (!column) return;
      const upper = values[row[0] * size[1] + column[0]] * (1 - column[2]) + values[row[0] * size[1] + column[1]] * column[2];
      const lower = values[row[1] * size[1] + column[0]] * (1 - column[2]) + values[row[1] * size[1] + column[1]] * column[2];
      result[y * input[1] + x] = upper * (1 - row[2]) + lower * row[2];
    });
  });
  return result;
}

/** For each pixel of an axis the two cells of a span it lies between and the share of the second; null outside. */
function within(cells, [start, stop], length) {
  const places = Array.from({ length }, (_, i) => ((i + 0.5 - start) / (stop - start)) * cells);
  let inside = places.map((at) => at >= 0 && at < cells);
  if (!inside.includes(true) && Math.max(start, stop) > 0 && Math.min(start, stop) < length) {
    // narrower than a pixel and between two centres: the pixel under its middle
    inside = places.map((_, i) => i === Math.min(Math.max(Math.trunc((start + stop) / 2), 0), length - 1));
  }
  return places.map((at, i) => {
    if (!inside[i]) return null;
    const place = Math.min(Math.max(at - 0.5, 0), cells - 1), low = Math.min(Math.trunc(place), Math.max(cells - 2, 0));
    return [low, Math.min(low + 1, cells - 1), fround(place - low)];
  });
}

/** The input pixels of an axis that show the picture: [start, stop). */
function shown({ resized, offset, input }, axis) {
  const start = Math.max(offset[axis], 0);
  return [start, Math.max(start, Math.min(offset[axis] + resized[axis], input[axis]))];
}

const centreOf = ({ picture, resized, offset }, axis, i) => (i + 0.5) * (resized[axis] / picture[axis]) + offset[axis];

/** Picture pixels [first, last) whose centre lies in a span of the input. */
function covered(geometry, axis, start, stop) {
  const count = geometry.picture[axis];
  let first = 0, last = count;
  while (first < count && centreOf(geometry, axis, first) < start) first++;
  while (last > first && centreOf(geometry, axis, last - 1) >= stop) last--;
  if (first < last) return [first, last];
  const scale = geometry.resized[axis] / count;
  const middle = Math.min(Math.trunc(((start + stop) / 2 - geometry.offset[axis]) / scale), count - 1);
  return [middle, middle + 1];
}

/** A map at the input's size, brought onto the picture: 0 outside a crop, padding left out. */
export function toPicture(map, geometry) {
  const { picture, resized, input } = geometry;
  const result = new Float32Array(picture[0] * picture[1]);
  const [rows, columns] = [shown(geometry, 0), shown(geometry, 1)];
  const size = [rows[1] - rows[0], columns[1] - columns[0]];
  if (!(size[0] > 0 && size[1] > 0)) return result;
  const part = new Float32Array(size[0] * size[1]);
  for (let y = 0; y < size[0]; y++) {
    const from = (rows[0] + y) * input[1] + columns[0];
    part.set(map.subarray(from, from + size[1]), y * size[1]);
  }
  if (size[0] === resized[0] && size[1] === resized[1]) return resizedMap(part, size, picture);
  const down = samples(geometry, 0, rows), along = samples(geometry, 1, columns);
  const values = mixed(part, size[1], down, along), width = along.low.length;
  for (let y = 0; y < down.low.length; y++) {
    result.set(values.subarray(y * width, (y + 1) * width), (down.first + y) * picture[1] + along.first);
  }
  return result;
}

function samples(geometry, axis, [start, stop]) {
  const [first, last] = covered(geometry, axis, start, stop), size = last - first;
  const low = new Int32Array(size), high = new Int32Array(size), part = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const position = Math.min(Math.max(centreOf(geometry, axis, first + i) - 0.5 - start, 0), stop - start - 1);
    low[i] = Math.floor(position);
    high[i] = Math.min(low[i] + 1, stop - start - 1);
    part[i] = position - low[i];
  }
  return { first, low, high, part };
}

/** The part of the picture, [x0, y0, x1, y1], that the model sees, or the layer's window of it; null for all of it. */
export function visiblePart(geometry, window) {
  const spans = [0, 1].map((axis) => {
    let [start, stop] = shown(geometry, axis);
    const span = window && (axis ? window.width : window.height);
    if (span) [start, stop] = [Math.max(start, Math.min(...span)), Math.min(stop, Math.max(...span))];
    return stop > start ? covered(geometry, axis, start, stop) : [0, 0];
  });
  const [[y0, y1], [x0, x1]] = spans, [height, width] = geometry.picture;
  if (y0 === 0 && x0 === 0 && y1 === height && x1 === width) return null;
  return y1 > y0 && x1 > x0 ? [x0, y0, x1, y1] : [0, 0, 0, 0];
}

/**
 * A layer's map [h, w] as the picture's heatmap, float32 [H, W] from 0 to 1.
 * Returns `heatmap` and `visible`, [x0, y0, x1, y1] or null where all of the picture is.
 */
export function heatmapOf(map, size, window, geometry) {
  const placed = window ? placedMap(normalized(map), size, window, geometry.input) : resizedMap(normalized(map), size, geometry.input);
  const heatmap = toPicture(normalized(placed), geometry);
  const visible = visiblePart(geometry, window);
  if (window && visible) {
    const [x0, y0, x1, y1] = visible, width = geometry.picture[1];
    for (let i = 0; i < heatmap.length; i++) {
      const x = i % width, y = (i - x) / width;
      if (x < x0 || x >= x1 || y < y0 || y >= y1) heatmap[i] = 0; // where interpolation reaches across the edge
    }
  }
  return { heatmap, visible };
}
