// The manifest of an explainable file: checked, and the sentences about what is doubtful in it.
// The same checks and sentences as onnxcam/network/manifest.py and onnxcam/explain/warnings.py.

import { FileError } from "./wire.js";

const FORMAT = 1;
export const KINDS = ["logits", "probabilities", "binary_logit", "multilabel", "regression"];

const isName = (value) => typeof value === "string" && value !== "";
const isCount = (value, lowest) => Number.isSafeInteger(value) && value >= lowest;
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const among = (...values) => (value) => values.includes(value);
const orNull = (check) => (value) => value === undefined || value === null || check(value);
const listOf = (check, length) => (value) =>
  Array.isArray(value) && (length === undefined || value.length === length) && value.every(check);
const isDimension = (value) => value === null || typeof value === "string" || isCount(value, 1);
const isText = (value) => typeof value === "string";
const isSpan = (value) => listOf(Number.isFinite, 2)(value) && value[0] !== value[1];
const isWindow = (value) => isObject(value) && isSpan(value.height) && isSpan(value.width);

const CHECKS = {
  input: {
    name: isName, layout: among("NCHW", "NHWC"), dtype: among("float32", "float16", "float64", "uint8"),
    shape: listOf(isDimension, 4), preprocess: orNull(isObject), size: orNull(isText),
    normalization: orNull((value) => isObject(value) && listOf(Number.isFinite)(value.mean) && listOf(Number.isFinite)(value.std)),
  },
  scores: {
    name: isName, kind: among(...KINDS), classes: (value) => isCount(value, 1), warnings: orNull(listOf(isText)),
  },
  target: { name: isName, mode: among("optional", "required", "constant"), class: orNull((value) => isCount(value, 0)) },
  layers: {
    name: isName, layout: among("NCHW", "NHWC", "NTC"), window: orNull(isWindow), beside: orNull(listOf(isText)),
    place: orNull((value) => isObject(value) && isText(value.verdict)),
    heatmaps: (value) => isObject(value) && Object.values(value).every(isName),
  },
  measured: { rows: orNull(among("independent", "coupled")), deterministic: orNull((value) => typeof value === "boolean") },
  gate: { condition: isText, output: isName },
};

/** The manifest, if a reader can rely on it. */
export function check(manifest) {
  if (!isObject(manifest) || !isCount(manifest.format, 1)) {
    throw new FileError("The file's manifest is damaged: it has no format; export the model again.");
  }
  if (manifest.format > FORMAT) {
    throw new FileError(`The file's manifest has format ${manifest.format}, and this page reads up to ${FORMAT}; make the page anew with a newer onnxcam.`);
  }
  const wrong = damages(manifest);
  if (wrong.length) {
    throw new FileError(`The file's manifest lacks ${wrong.join(", ")}, or holds something else there; export the model again.`);
  }
  return manifest;
}

function damages(manifest) {
  const wrong = [];
  for (const [key, checks] of Object.entries(CHECKS)) {
    const value = manifest[key];
    if ((key === "measured" || key === "gate") && (value === undefined || value === null)) continue;
    const entries = key === "layers" ? value : [value];
    if (!Array.isArray(entries) || !entries.length || !entries.every(isObject)) {
      wrong.push(key);
      continue;
    }
    for (const entry of entries) {
      for (const [name, holds] of Object.entries(checks)) if (!holds(entry[name])) wrong.push(`${key}.${name}`);
    }
  }
  if (wrong.length) return wrong;
  const { kind, classes } = manifest.scores;
  if (classes !== ({ binary_logit: 2, regression: 1 }[kind] ?? classes)) wrong.push("scores.classes");
  if (manifest.labels !== undefined && manifest.labels !== null && !(listOf(isText)(manifest.labels) && manifest.labels.length === classes)) {
    wrong.push("one of labels per class");
  }
  if (manifest.target.mode === "constant" && !(manifest.target.class < classes)) wrong.push("target.class");
  return wrong;
}

/** Name of a class. */
export const labelOf = (manifest, index) => manifest.labels?.[index] ?? String(index);

/** Sentences about what makes every map or number of this model doubtful. */
export function doubts(manifest, layer) {
  return [
    ...sizeDoubts(manifest.input),
    ...(manifest.scores.warnings ?? []),
    ...partDoubts(manifest.layers.filter(({ name }) => name === layer)),
    ...measuredDoubts(manifest),
  ];
}

function sizeDoubts({ size, layout, shape }) {
  if (size === "assumed") {
    const [rows, columns] = [shape[layout.indexOf("H")], shape[layout.indexOf("W")]];
    return [
      `the model leaves the picture's size open, and its layers of tokens need one: ${rows} x ${columns} was assumed; ` +
        "name the size it was trained on with --input-size (input_size=), or a preprocessing that makes it",
    ];
  }
  if (size === "unknown") {
    return [
      "the model has attention and leaves the picture's size open, and the sizes that it admits could not be determined: " +
        "layers of tokens cannot be explained, and the default layer may be an early one; name the size with --input-size (input_size=)",
    ];
  }
  return [];
}

function listing(names, limit = 10) {
  const more = names.length - limit;
  return names.slice(0, limit).map((name) => `'${name}'`).join(", ") + (more > 0 ? ` and ${more} more` : "");
}

function partDoubts(entries) {
  const sentences = [];
  for (const { name, beside, place, window } of entries) {
    if (beside === undefined || beside === null) continue;
    if (!beside.length && place?.verdict === "none") continue;
    const sees = window ? `, which sees ${windowWords(window)} of the model's input` : "";
    const around = beside.length ? `${listing(beside)} too` : "paths around it";
    const which = beside.length ? `one of ${beside.length + 1} parallel parts` : "a part";
    sentences.push(
      `the map shows ${which} of the model alone, layer '${name}'${sees}: the scores are computed from ${around}; ` +
        "explain another part with `--layer` (layers=)",
    );
  }
  return sentences;
}

function windowWords({ height, width, transposed }) {
  const short = (number) => String(Number(number.toPrecision(4)));
  const part = ([start, stop], name) => `${name} ${short(start)} to ${short(stop)}` + (stop < start ? " (mirrored)" : "");
  return `${part(height, "rows")}, ${part(width, "columns")}` + (transposed ? ", transposed" : "");
}

function measuredDoubts({ measured, layers }) {
  const sentences = [];
  if (measured?.rows === "coupled") {
    sentences.push(
      "a picture's results depend on the others in its batch (as after BatchNormalization in training mode): pictures are " +
        "explained one by one, and differ from what the model says of them in a batch",
    );
  }
  if (measured?.deterministic === false) {
    sentences.push(
      "the model is not deterministic: two runs on the same picture differ, so maps and scores hold for one run",
    );
  }
  for (const { name, place } of layers) {
    const verdict = place?.verdict ?? "unsettled";
    if (verdict === "direct" || verdict === "unsettled" || place.drawn) continue;
    const order = place.reason ? `${verdict} (${place.reason})` : verdict;
    const lies = verdict === "none" ? "has no place on the picture" : `lies ${order} on the picture`;
    const reason = verdict === "none" && place.reason ? `: ${place.reason}` : "";
    sentences.push(
      `layer '${name}' ${lies}${reason}, as measured by changing the picture at several places: its maps are drawn in ` +
        "the wrong place; choose another layer (`onnxcam layers` lists them)",
    );
  }
  return sentences;
}
