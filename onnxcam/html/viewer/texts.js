// Sentences and numbers for people.
export const percent = (share) => {
  if (share === null || share === undefined || !Number.isFinite(share)) return "—";
  const value = 100 * share;
  // never rounded to all or nothing
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value < 100 && value >= 99.95) return "> 99.9 %";
  return `${value.toFixed(1)} %`;
};

export const size = (bytes) => {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let step = 0;
  while (bytes >= 1024 && step < units.length - 1) { bytes /= 1024; step += 1; }
  return `${step && bytes < 10 ? bytes.toFixed(1) : Math.round(bytes)} ${units[step]}`;
};

// A probability as a share; other outputs as the number that they are.
export const confidence = (value, kind) => (kind === "regression"
  ? (Number.isFinite(value) ? Number(value).toPrecision(4) : "—") : percent(value));

const NAMES = {
  centroid: "Centre of its weight", spread: "Spread around the centre", entropy: "Evenness (entropy, 0 to 1)", gini: "Inequality (Gini, 0 to 1)",
  half_area: "Half of its weight lies on", border: "Weight in the outer tenth", peaks: "Separate peaks", region: "Weight inside the region",
};
const SHARES = new Set(["spread", "half_area", "border", "region"]);

// Rows [name, value] of a map's statistics.
export function statistics(values) {
  if (!values) return [];
  if (values.zero) return [["Weight", "none: the map is zero everywhere"]];
  return Object.entries(values).filter(([key, value]) => key !== "zero" && value !== null).map(([key, value]) => {
    const name = NAMES[key] ?? key.replaceAll("_", " ");
    if (key === "centroid") return [name, `${Math.round(100 * value[1])} % from the left, ${Math.round(100 * value[0])} % from the top`];
    if (SHARES.has(key)) return [name, `${Math.round(100 * value)} %${key === "half_area" ? " of the picture" : ""}`];
    if (typeof value === "number") return [name, Number.isInteger(value) ? String(value) : value.toFixed(2)];
    return [name, Array.isArray(value) ? value.join(", ") : String(value)];
  });
}

// What a picture shows, for those who do not see it.
export function description(view, name, result) {
  if (view === "picture") return `The picture ${name}`;
  const what = view === "overlay" ? `Heatmap over ${name}` : `Heatmap of ${name}`;
  const numbers = result.statistics;
  const place = !numbers || numbers.zero ? "it is zero everywhere" : `its weight is centred ${Math.round(100 * numbers.centroid[1])} % from the left and ` +
    `${Math.round(100 * numbers.centroid[0])} % from the top; half of it lies on ${Math.round(100 * numbers.half_area)} % of the picture`;
  return `${what} for ${result.target.class_name}: ${place}`;
}

// The part of a picture that a text names: [x0, y0, x1, y1], or a sentence that says why there is none.
export function regionOf(text) {
  const numbers = text.split(/[\s,;]+/).filter(Boolean).map(Number);
  if (numbers.length !== 4 || !numbers.every(Number.isFinite)) return { problem: "Type four numbers: left, top, right and bottom, in pixels of the picture." };
  const [x0, y0, x1, y1] = numbers;
  return x0 < x1 && y0 < y1 ? { region: numbers } : { problem: "Left has to be less than right, and top less than bottom." };
}

// The class that a text names: its index, or a sentence that says why there is none.
export function classOf(text, classes, count) {
  const words = text.trim();
  if (!words) return { problem: "Type the name or the number of a class." };
  if (/^\d+$/.test(words)) {
    const index = Number(words);
    return index < count || !count ? { index } : { problem: `There is no class ${words}: they are numbered from 0 to ${count - 1}.` };
  }
  if (!classes) return { problem: `This model has no class names: type a number from 0${count ? ` to ${count - 1}` : ""}.` };
  const plain = words.toLowerCase();
  const all = (test) => classes.flatMap((name, index) => (test(name.toLowerCase()) ? [index] : []));
  const tests = [
    (name) => name === plain,
    (name) => name.split(",").some((part) => part.trim() === plain),
    (name) => name.includes(plain),
  ];
  for (const test of tests) {
    const matches = all(test);
    if (matches.length === 1) return { index: matches[0] };
    if (matches.length > 1) {
      const some = matches.slice(0, 5).map((index) => `${index} ${classes[index]}`).join("; ");
      return { problem: `Several classes match: ${some}${matches.length > 5 ? ` and ${matches.length - 5} more` : ""}. Type a number.` };
    }
  }
  return { problem: `No class is called “${words}”.` };
}
