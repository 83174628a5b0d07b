// The page's elements: what is known, as HTML. No state of its own.
import { COLORMAPS, palette } from "./colormaps.js";
import { heatmap, outline, overlay } from "./drawing.js";
import { confidence, description, statistics } from "./texts.js";

export const find = (id) => document.getElementById(id);

// What a row, or what is explained, is asked for by: a class by its index, a box or a part of the picture by an object.
export const idOf = ({ id, class_index: index }) => id ?? index;
export const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const nameOf = (id) => (typeof id === "object" ? JSON.stringify(id) : id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function options(select, names, value) {
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(value)) select.value = value;
}

// Replace what is in a list and keep the focus on the button with the same key.
function refill(list, items) {
  const key = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  list.replaceChildren(...items);
  if (key) [...list.querySelectorAll("button")].find((button) => button.dataset.key === key)?.focus();
}

const button = (key, properties, ...children) => {
  const made = element("button", { type: "button", ...properties }, ...children);
  made.dataset.key = key;
  return made;
};

export function strip(list, pictures, current, choose) {
  list.hidden = pictures.length < 2;
  const kept = list.hidden ? [] : pictures.map((picture) => {
    const texts = picture.problem ? ["not explained"] : picture.label ?? ["waiting"];
    const label = element("span", { className: "label" }, ...texts.map((text) => element("span", { textContent: text })));
    const made = button(`picture ${picture.id}`, { title: picture.name, onclick: () => choose(picture) },
      ...(picture.thumbnail ? [picture.thumbnail] : []), element("span", { className: "name", textContent: picture.name }), label);
    made.setAttribute("aria-pressed", String(picture === current));
    return element("li", {}, made);
  });
  refill(list, kept);
}

// Bars of the predictions; a class that is shown and not among them has a row of its own.
export function predictions(list, { rows, kind, target, other, fixed }, { choose, compare }) {
  const numeric = kind === "regression";
  const most = numeric ? Math.max(...rows.map((row) => Math.abs(row.confidence)), 1e-12) : 1;
  refill(list, rows.map((row) => {
    const id = idOf(row), shown = same(id, target), second = same(id, other), share = Math.min(Math.max(Math.abs(row.confidence ?? 0) / most, 0), 1);
    const value = confidence(row.confidence, kind);
    const filled = element("i");
    filled.style.width = `${100 * share}%`;
    const bar = button(`class ${nameOf(id)}`, { className: `bar${second ? " second" : ""}`, disabled: fixed && !shown, onclick: () => choose(id) },
      element("span", { className: "name", textContent: row.class_name }), element("span", { className: "share", textContent: value }),
      element("span", { className: "track" }, filled));
    bar.setAttribute("aria-pressed", String(shown));
    if (fixed || shown) return element("li", {}, bar);
    const beside = button(`compare ${nameOf(id)}`, { className: "compare", textContent: "Compare", onclick: () => compare(id) });
    beside.setAttribute("aria-pressed", String(second));
    beside.setAttribute("aria-label", `Compare with ${row.class_name}`);
    return element("li", {}, bar, beside);
  }));
}

// Draw the results beside each other; returns the canvases.
export function figures(place, results, { name, view, colormap, opacity, even, kind }) {
  return place.replaceChildren(...results.map(({ result, pixels }, at) => {
    const { map, target } = result, canvas = element("canvas", { width: map.width, height: map.height });
    const drawn = view === "picture" ? Uint8ClampedArray.from(pixels) : view === "heatmap" ? heatmap(map, colormap) : overlay(map, pixels, colormap, { opacity, even });
    if (result.outline) outline(drawn, map, result.outline);
    canvas.getContext("2d").putImageData(new ImageData(drawn, map.width, map.height), 0, 0);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", description(view, name, result));
    const caption = element("figcaption");
    if (results.length > 1) caption.append(element("b", { textContent: "AB"[at] }));
    caption.append(`${target.class_name}, ${confidence(target.confidence, kind)}`);
    return element("figure", {}, canvas, caption);
  }));
}

export function numbers(place, results) {
  const tables = results.map(({ result }) => new Map(statistics(result.statistics)));
  const head = results.length > 1 ? [element("thead", {}, element("tr", {}, element("td"),
    ...results.map(({ result }, at) => element("th", { scope: "col", textContent: `${"AB"[at]}: ${result.target.class_name}` }))))] : [];
  const names = [...new Set(tables.flatMap((table) => [...table.keys()]))];
  place.replaceChildren(element("table", {}, ...head, element("tbody", {}, ...names.map((name) => element("tr", {},
    element("th", { scope: "row", textContent: name }), ...tables.map((table) => element("td", { textContent: table.get(name) ?? "" })))))));
}

export function sentences(place, texts) {
  place.hidden = !texts.length;
  const list = place.matches("ul") ? place : place.querySelector("ul");
  list.replaceChildren(...texts.map((text) => element("li", { textContent: text })));
}

export function scale(canvas, colormap) {
  const table = palette(colormap), drawn = new ImageData(256, 1);
  for (let level = 0; level < 256; level += 1) drawn.data.set([...table.slice(3 * level, 3 * level + 3), 255], 4 * level);
  canvas.getContext("2d").putImageData(drawn, 0, 0);
}

export const colormaps = COLORMAPS;
