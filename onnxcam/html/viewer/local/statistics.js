// Position and concentration of a map's energy, as onnxcam/explain/statistics.py.

const BORDER = 0.1, PEAK = 0.5, GRID = 32;
const NAMES = ["centroid", "spread", "entropy", "gini", "half_area", "border", "peaks"];

const unit = (value) => Math.min(1, Math.max(0, value));
const sumOf = (values) => values.reduce((a, b) => a + b, 0);

/** Statistics of a map [height, width]; positions and lengths are parts of its height and width. */
export function describe(heatmap, [height, width]) {
  const [rows, columns] = [Math.min(height, GRID), Math.min(width, GRID)];
  const grid = gathered(heatmap, height, width, rows, columns);
  const total = sumOf(grid);
  if (!(total > 0)) return { zero: true, ...Object.fromEntries(NAMES.map((name) => [name, null])) };
  const share = grid.map((value) => value / total);
  const place = (i, n) => (i + 0.5) / n;
  let [cy, cx] = [0, 0];
  share.forEach((value, i) => {
    cy += value * place(Math.floor(i / columns), rows);
    cx += value * place(i % columns, columns);
  });
  let variance = 0, inner = 0;
  const insideRows = inside(rows), insideColumns = inside(columns);
  share.forEach((value, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    variance += value * ((place(row, rows) - cy) ** 2 + (place(column, columns) - cx) ** 2);
    inner += value * insideRows[row] * insideColumns[column];
  });
  const cells = Float64Array.from(share).sort().reverse();
  let running = 0, half = -1, before = 0, cumulated = 0, entropy = 0;
  cells.forEach((value, i) => {
    const next = running + value;
    if (half < 0 && next >= 0.5) [half, before] = [i, running];
    running = next;
    cumulated += next;
    if (value > 0) entropy -= value * Math.log(value);
  });
  const highest = grid.reduce((a, b) => Math.max(a, b), 0), n = cells.length;
  return {
    zero: false,
    centroid: [cy, cx],
    spread: Math.sqrt(variance),
    entropy: n > 1 ? unit(entropy / Math.log(n)) : 0,
    gini: unit((2 * cumulated - 1 - n) / n),
    half_area: (half + (0.5 - before) / cells[half]) / n,
    border: unit(1 - inner),
    peaks: regions(grid.map((value) => value >= PEAK * highest), rows, columns),
  };
}

/** The energy summed over cells of equal area; a pixel in two cells is divided between them. */
function gathered(heatmap, height, width, rows, columns) {
  const grid = new Float64Array(rows * columns);
  const down = shares(height, rows), along = shares(width, columns);
  const line = new Float64Array(columns);
  for (let y = 0; y < height; y++) {
    line.fill(0);
    for (let x = 0; x < width; x++) {
      const value = heatmap[y * width + x];
      if (value > 0 && Number.isFinite(value)) for (const [cell, part] of along[x]) line[cell] += value * part;
    }
    for (const [cell, part] of down[y]) for (let x = 0; x < columns; x++) grid[cell * columns + x] += line[x] * part;
  }
  return grid;
}

function shares(side, cells) {
  return Array.from({ length: side }, (_, i) => {
    const first = Math.floor((i * cells) / side), last = Math.min(Math.floor(((i + 1) * cells - 1e-9) / side), cells - 1);
    if (first === last) return [[first, 1]];
    const part = (last * side) / cells - i;
    return [[first, part], [last, 1 - part]];
  });
}

/** The part of each cell that lies inside the frame. */
function inside(side) {
  const low = BORDER * side, high = (1 - BORDER) * side;
  return Array.from({ length: side }, (_, i) => unit(Math.min(i + 1, high) - Math.max(i, low)));
}

/** The number of 8-connected regions. */
function regions(mask, rows, columns) {
  const left = Array.from(mask);
  let count = 0;
  for (let start = 0; start < left.length; start++) {
    if (!left[start]) continue;
    count++;
    const open = [start];
    left[start] = 0;
    while (open.length) {
      const at = open.pop(), [row, column] = [Math.floor(at / columns), at % columns];
      for (let y = Math.max(row - 1, 0); y <= Math.min(row + 1, rows - 1); y++) {
        for (let x = Math.max(column - 1, 0); x <= Math.min(column + 1, columns - 1); x++) {
          if (left[y * columns + x]) {
            left[y * columns + x] = 0;
            open.push(y * columns + x);
          }
        }
      }
    }
  }
  return count;
}
