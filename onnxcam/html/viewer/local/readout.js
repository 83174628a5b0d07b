// What the scores of a classifier mean: probabilities, and the best classes. As onnxcam/targets/readout.py.

const { fround } = Math;

/** Scores per class from one row: of a single logit those of both classes. */
export const perClass = (scores, kind) => (kind === "binary_logit" ? [-scores[0], scores[0]] : [...scores]);

/** The class with the highest score, the lowest index on ties; as NumPy, the first NaN before all. */
export function bestClass(scores, kind) {
  const values = perClass(scores, kind);
  let best = 0;
  for (let i = 0; i < values.length; i++) {
    if (Number.isNaN(values[i])) return i;
    if (values[i] > values[best]) best = i;
  }
  return best;
}

const sigmoid = (y) => (y >= 0 ? 1 : Math.exp(Math.min(y, 0))) / (1 + Math.exp(-Math.abs(y)));

/** Probabilities of one row, float32: a softmax, exp of log p, or sigmoids; of a regression the value itself. */
export function probabilities(scores, kind) {
  if (kind === "regression") return [...scores];
  if (kind === "probabilities") return Array.from(scores, (score) => fround(Math.exp(score)));
  if (kind === "logits") {
    const top = scores.reduce((a, b) => Math.max(a, b), -Infinity);
    const powers = Array.from(scores, (score) => Math.exp(score - top));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((power) => fround(power / sum));
  }
  const p = Array.from(scores, sigmoid);
  return (kind === "binary_logit" ? [1 - p[0], p[0]] : p).map(fround);
}

/** The indices of the highest values, best first, the lower index on ties; what is not a number comes last. */
export function best(values, count) {
  const rank = (value) => (Number.isNaN(value) ? -Infinity : value);
  return Array.from(values, (_, index) => index)
    .sort((a, b) => rank(values[b]) - rank(values[a]) || a - b)
    .slice(0, count);
}
