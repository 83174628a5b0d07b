// The page: pictures in, predictions and heatmaps out. What explains them is the module backend.js:
//   models() -> [{name, layers, layer, methods, method, classes, class_count, kind, targets, notes}]
//   explain(blob, {model, layer, method, target, topK, signal, progress}) -> {predictions, map, target, layer, method, statistics, warnings}
//     where `target` is null, a class's index, {box: index} or {region: [x0, y0, x1, y1]}; predictions and target have such an `id` if they are
//     no classes, boxes a `box`, and what is explained an `outline`, both in pixels of the picture, whose size is map.size
// and, where they exist: about() -> a line for the foot; samples() -> [{name, url}]; openModel(file) -> its entry of models();
// limits() -> {bytes}; decodes: whether it reads pictures that the browser cannot, and then sends `picture`, a Blob; authorize(token).
import * as backend from "./backend.js";
import { DEFAULT } from "./colormaps.js";
import { marked } from "./drawing.js";
import { BackendError } from "./errors.js";
import { decode, filesOf, isModel, pixelsOf, thumbnail } from "./pictures.js";
import { classOf, confidence, regionOf, size } from "./texts.js";
import * as view from "./view.js";

const { find } = view;
const MOST_PICTURES = 200, MOST_MAPS = 24, TOP = 5, MOST_WAITS = 10;
const state = { models: [], model: null, pictures: [], current: null, view: "overlay", colormap: DEFAULT, opacity: 0.6, even: false, gone: null, authorized: false, count: 0 };
const results = new Map(); // the newest last
let job = null, decoded = null;

// only what is new: each change is read aloud
const say = (text) => { if (find("status").textContent !== text) find("status").textContent = text; };
const layerOf = () => find("layer").value, methodOf = () => find("method").value;
const keyOf = (picture, target) => JSON.stringify([picture.id, state.model.name, layerOf(), methodOf(), target]);
const targetsOf = (picture) => (picture.other === null ? [picture.target] : [picture.target, picture.other]);

function alarm(text, again = null) {
  find("alert").hidden = !text;
  if (find("alert-text").textContent !== (text ?? "")) find("alert-text").textContent = text ?? "";
  find("retry").hidden = !again;
  find("retry").onclick = again;
}

// ---- what is explained next, one at a time: the picture that is shown, then those that wait

function next() {
  if (state.gone || !state.model) return null;
  const others = state.pictures.filter((picture) => picture !== state.current);
  for (const picture of [...(state.current ? [state.current] : []), ...others]) {
    if (picture.problem) continue;
    if (picture !== state.current && picture.label !== undefined) continue;
    for (const target of picture === state.current ? targetsOf(picture) : [picture.target]) {
      const key = keyOf(picture, target);
      if (!results.has(key)) return { picture, target, key };
    }
  }
  return null;
}

async function work() {
  if (job) {
    if (next()?.key !== job.key) job.control.abort();
    return;
  }
  for (let found = next(); found; found = next()) {
    job = { ...found, control: new AbortController() };
    render();
    try {
      keep(job.key, await explain(job));
    } catch (error) {
      if (!job.control.signal.aborted) fail(job, error);
    } finally {
      job = null;
    }
  }
  render();
}

async function explain({ picture, target, control }) {
  const { signal } = control;
  if (!picture.checked) await check(picture);
  const question = { model: state.model.name, layer: layerOf(), method: methodOf(), target, topK: TOP, signal, progress: say, picture: !picture.readable };
  let result;
  for (let waits = 0; ; waits += 1) {
    try {
      result = await backend.explain(picture.blob, question);
      break;
    } catch (error) {
      if (signal.aborted || error.status !== 429 || waits >= MOST_WAITS) throw error;
      await pause(error.retryAfter ?? 1, signal);
    }
  }
  signal.throwIfAborted();
  if (result.picture) {
    picture.shown = result.picture;
    const bitmap = await decode(result.picture);
    if (bitmap) picture.thumbnail = thumbnail(bitmap);
  }
  const first = result.predictions[0];
  picture.label = first ? [first.class_name, confidence(first.confidence, state.model.kind)] : [];
  return result;
}

// What can be told of a file without the model.
async function check(picture) {
  const { bytes = Infinity } = (await backend.limits?.()) ?? {};
  if (picture.blob.size > bytes) throw new BackendError(`“${picture.name}” has ${size(picture.blob.size)}, and at most ${size(bytes)} are taken.`, { status: 413 });
  if (!picture.blob.size) throw new BackendError(`“${picture.name}” is empty.`, { status: 422 });
  const bitmap = await decode(picture.blob);
  if (!bitmap && !backend.decodes) throw new BackendError(`“${picture.name}” is not a picture that this browser can read: JPEG, PNG, WebP, GIF and BMP are.`, { status: 415 });
  picture.readable = Boolean(bitmap);
  if (bitmap) picture.thumbnail = thumbnail(bitmap);
  bitmap?.close();
  picture.checked = true;
}

async function pause(seconds, signal) {
  for (let left = Math.min(Math.max(Math.ceil(seconds), 1), 60); left > 0 && !signal.aborted; left -= 1) {
    say(`The queue is full: others are being answered. Trying again in ${left} s.`);
    await new Promise((done) => { setTimeout(done, 1000); });
  }
  signal.throwIfAborted();
}

function keep(key, result) {
  results.set(key, result);
  for (const old of results.keys()) {
    if (results.size <= MOST_MAPS) break;
    if (!state.current || !targetsOf(state.current).some((target) => keyOf(state.current, target) === old)) results.delete(old);
  }
}

function fail({ picture, target }, error) {
  if (!(error instanceof BackendError)) console.error(error);
  const text = error instanceof BackendError ? error.message : `Something in this page failed: ${error.message}`;
  if (error.status === 401) { authorize(); return; }
  if (error.status === 422 && target !== null) {
    // the picture has no such box, class or part: what was shown before stays
    if (view.same(picture.other, target)) picture.other = null;
    else picture.target = null;
    if (picture === state.current) find("class-problem").textContent = text;
    return;
  }
  // what concerns every picture: nothing answers
  if (error instanceof BackendError && error.status === 0) state.gone = text;
  else picture.problem = { text: text.includes(picture.name) ? text : `“${picture.name}”: ${text}`, again: [408, 429, 500, 502, 503, 504].includes(error.status) };
}

function authorize() {
  // nothing more is tried until there is one; the form says it
  state.gone = "This server asks for a token.";
  find("token-form").hidden = false;
  find("token-problem").textContent = state.authorized ? "The server does not accept this token." : "";
  find("token").focus();
}

// ---- pictures

async function add(files) {
  const models = files.filter(isModel), pictures = files.filter((file) => !isModel(file));
  for (const file of models) await open(file);
  const room = MOST_PICTURES - state.pictures.length;
  const added = pictures.slice(0, room).map((blob) => ({ id: state.count++, name: blob.name || "pasted picture", blob, target: null, other: null, problem: null }));
  if (!added.length && models.length) return;
  if (pictures.length > room) alarm(`At most ${MOST_PICTURES} pictures are kept: the last ${pictures.length - room} are left out. “Remove all” makes room.`);
  else alarm(null);
  if (!added.length) return;
  state.pictures.push(...added);
  choose(added[0]);
}

async function open(file) {
  if (!backend.openModel) { alarm(`“${file.name}” is a model: this page takes pictures. Models are named when the server is started.`); return; }
  try {
    say(`Opening ${file.name}`);
    const entry = await backend.openModel(file);
    state.models = [...state.models.filter((model) => model.name !== entry.name), entry];
    show(entry);
    say(`${entry.name} is open.`);
  } catch (error) {
    say("");
    alarm(error instanceof BackendError ? error.message : `“${file.name}” cannot be opened: ${error.message}`);
  }
}

function take(transfer) {
  const { files, problem } = filesOf(transfer);
  if (problem) alarm(problem);
  else add(files);
}

function choose(picture) {
  state.current = picture;
  decoded = null;
  changed();
}

// Something else is wanted now.
function changed() {
  find("class-problem").textContent = "";
  render();
  work();
}

function again() {
  state.gone = null;
  for (const picture of state.pictures) if (picture.problem?.again) picture.problem = null;
  alarm(null);
  if (state.models.length) changed();
  else start();
}

// ---- showing

async function pixels(picture, { width, height }) {
  const key = `${picture.id} ${width} ${height}`;
  if (decoded?.key !== key) {
    const bitmap = await decode(picture.shown ?? picture.blob);
    decoded = { key, pixels: bitmap ? pixelsOf(bitmap, width, height) : new Uint8ClampedArray(4 * width * height).fill(200) };
    bitmap?.close();
  }
  return decoded.pixels;
}

let rendering = 0;

async function render() {
  rendering += 1;
  const turn = rendering, picture = state.current;
  document.body.classList.toggle("full", Boolean(picture));
  for (const id of ["clear", "skip"]) find(id).hidden = !picture;
  view.strip(find("strip"), state.pictures, picture, choose);
  if (!find("token-form").hidden) alarm(null);
  else if (state.gone) alarm(state.gone, again);
  else if (picture?.problem) alarm(picture.problem.text, picture.problem.again ? again : null);
  if (!picture || !state.model) { find("result").hidden = true; return; }
  const ready = targetsOf(picture).map((target) => results.get(keyOf(picture, target))).filter(Boolean);
  const complete = ready.length === targetsOf(picture).length;
  const failed = Boolean(state.gone || picture.problem);
  if (job?.picture === picture) say(`Explaining ${picture.name}`);
  if (!complete) {
    find("figures").setAttribute("aria-busy", String(!failed));
    // no map of another question stands where this one failed
    if (failed) { find("result").hidden = true; say(""); }
    return;
  }
  const shown = [];
  for (const result of ready) shown.push({ result, pixels: await pixels(picture, result.map) });
  if (turn !== rendering) return;
  find("result").hidden = false;
  const { kind, targets } = state.model, first = ready[0];
  const fixed = targets !== "any"; // "top-1", or "class": the file explains one class alone, as its notes say
  const listed = first.predictions.map(view.idOf);
  const extra = ready.map((result) => result.target).filter((target) => !listed.some((id) => view.same(id, view.idOf(target))));
  view.figures(find("figures"), shown, { ...state, name: picture.name, kind });
  find("figures").setAttribute("aria-busy", "false");
  view.predictions(find("predictions"), {
    rows: [...first.predictions, ...extra], kind, fixed, target: view.idOf(first.target), other: ready[1] ? view.idOf(ready[1].target) : null,
  }, { choose: chooseTarget, compare });
  view.numbers(find("statistics"), shown);
  view.sentences(find("warnings"), [...new Set(ready.flatMap((result) => result.warnings ?? []))]);
  const { map } = first;
  find("hatched").hidden = state.view === "picture" || !marked(map.visible);
  for (const id of ["opacity", "even"]) find(id).disabled = state.view !== "overlay";
  find("choose-help").hidden = fixed;
  find("another").hidden = fixed;
  const of = (result) => `${result.target.class_name}, ${confidence(result.target.confidence, kind)}`;
  if (!job || job.picture !== picture) say(ready.length > 1 ? `${picture.name}: ${of(ready[0])}, beside ${of(ready[1])}` : `${picture.name}: what speaks for ${of(first)}`);
}

// `id`: a class's index, or {box} or {region}.
function chooseTarget(id) {
  const picture = state.current;
  if (view.same(picture.other, id)) picture.other = null;
  picture.target = id;
  picture.problem = null;
  changed();
}

function compare(id) {
  const picture = state.current, explained = results.get(keyOf(picture, null));
  if (picture.target === null && explained) picture.target = view.idOf(explained.target);
  picture.other = view.same(picture.other, id) ? null : id;
  changed();
}

// ---- pointing at the picture: at a box of a detector, or over a part of it of a segmentation

// Where the pointer is, in pixels of the picture, however the canvas is fitted into its place.
function pointed(canvas, event) {
  const { left, top, width, height } = canvas.getBoundingClientRect(), scale = Math.min(width / canvas.width, height / canvas.height);
  const explained = results.get(keyOf(state.current, targetsOf(state.current)[0]));
  if (!explained?.map.size) return null;
  const { size } = explained.map;
  const x = (event.clientX - left - (width - canvas.width * scale) / 2) / scale, y = (event.clientY - top - (height - canvas.height * scale) / 2) / scale;
  const inside = (value, side, whole) => Math.round(10 * Math.min(Math.max(value / side, 0), 1) * whole) / 10;
  return [inside(x, canvas.width, size.width), inside(y, canvas.height, size.height)];
}

// The smallest box at a point: of two that overlap the other one can be pointed at beside it.
function boxAt([x, y]) {
  const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
  const rows = results.get(keyOf(state.current, targetsOf(state.current)[0]))?.predictions ?? [];
  return rows.filter(({ box }) => box && box[0] <= x && x <= box[2] && box[1] <= y && y <= box[3]).sort((one, other) => area(one.box) - area(other.box))[0];
}

function point() {
  let drag = null;
  find("figures").addEventListener("pointerdown", (event) => {
    const canvas = event.target.closest?.("canvas");
    if (!canvas || event.button !== 0 || !["detect", "segment"].includes(state.model?.task)) return;
    const at = pointed(canvas, event);
    if (!at) return;
    drag = { canvas, at, from: [event.clientX, event.clientY], shade: null };
    if (event.pointerType === "touch" || state.model.task !== "segment") return; // a finger scrolls
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
  });
  find("figures").addEventListener("pointermove", (event) => {
    if (!drag?.canvas.hasPointerCapture(event.pointerId)) return;
    drag.shade ??= drag.canvas.parentElement.appendChild(view.element("div", { className: "shade" }));
    const frame = drag.canvas.parentElement.getBoundingClientRect(), [x, y] = drag.from;
    Object.assign(drag.shade.style, {
      left: `${Math.min(x, event.clientX) - frame.left}px`, top: `${Math.min(y, event.clientY) - frame.top}px`,
      width: `${Math.abs(event.clientX - x)}px`, height: `${Math.abs(event.clientY - y)}px`,
    });
  });
  const end = (event) => {
    const begun = drag;
    drag = null;
    begun?.shade?.remove();
    if (!begun || event.type === "pointercancel") return;
    const moved = Math.hypot(event.clientX - begun.from[0], event.clientY - begun.from[1]) > 4;
    if (state.model.task === "detect" && !moved) {
      const row = boxAt(begun.at);
      if (row) chooseTarget(row.id);
    } else if (state.model.task === "segment" && moved && begun.shade) {
      const at = pointed(begun.canvas, event), [x0, y0, x1, y1] = [0, 1].flatMap((axis) => Math.min(begun.at[axis], at[axis])).concat([0, 1].flatMap((axis) => Math.max(begun.at[axis], at[axis])));
      if (x0 < x1 && y0 < y1) choosePart([x0, y0, x1, y1]);
    }
  };
  for (const type of ["pointerup", "pointercancel"]) find("figures").addEventListener(type, end);
}

function choosePart(region) {
  find("part").value = region.join(", ");
  chooseTarget({ region });
}

function show(model, { layer = model.layer, method = model.method } = {}) {
  const before = state.model;
  state.model = model;
  view.options(find("model"), state.models.map((one) => one.name), model.name);
  view.options(find("layer"), model.layers, layer);
  view.options(find("method"), model.methods, method);
  find("model").disabled = state.models.length < 2;
  const boxes = model.task === "detect";
  find("predictions-name").textContent = boxes ? "Boxes" : "Predictions";
  find("choose-help").textContent = boxes ? "Press a box, here or in the picture, to see what speaks for it; Compare puts a second one beside it."
    : "Press a class to see what speaks for it; Compare puts a second class beside it.";
  find("part-form").hidden = model.task !== "segment";
  document.body.dataset.task = model.task ?? "";
  find("settings").hidden = false;
  view.sentences(find("notes"), [...(model.notes ?? []), ...(model.targets === "top-1" ? ["This file explains the class that it finds most likely, no other."] : [])]);
  find("classes").replaceChildren(...(model.classes ?? []).map((name, index) => new Option(String(index), name)));
  if (before !== model) {
    // numbers of classes mean something else in another model
    for (const picture of state.pictures) Object.assign(picture, { target: null, other: null, label: undefined, problem: null });
    alarm(null);
  }
  changed();
}

function settled() {
  for (const picture of state.pictures) picture.problem = null;
  if (!state.gone) alarm(null);
  changed();
}

function save() {
  const picture = state.current;
  document.querySelectorAll("#figures canvas").forEach((canvas, at) => canvas.toBlob((blob) => {
    const target = results.get(keyOf(picture, targetsOf(picture)[at]))?.target.class_name ?? "map";
    const link = view.element("a", { href: URL.createObjectURL(blob), download: `${picture.name.replace(/\.\w+$/, "")}_${target.replace(/[^\p{L}\p{N}]+/gu, "_")}_${state.view}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }));
}

// ---- events

function listen() {
  find("choose").addEventListener("click", () => find("file").click());
  find("file").addEventListener("change", (event) => { add([...event.target.files]); event.target.value = ""; });
  find("clear").addEventListener("click", () => {
    state.pictures = [];
    state.current = null;
    results.clear();
    job?.control.abort();
    alarm(null);
    say("");
    render();
    find("choose").focus();
  });
  let depth = 0;
  const over = (by) => { depth = Math.max(depth + by, 0); document.body.classList.toggle("over", depth > 0); };
  document.addEventListener("dragenter", (event) => { event.preventDefault(); over(1); });
  document.addEventListener("dragleave", () => over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => { event.preventDefault(); depth = 0; over(0); take(event.dataTransfer); });
  document.addEventListener("paste", (event) => {
    // text that is pasted into a field is the field's
    if (event.target.matches?.("input, textarea") && !event.clipboardData?.files.length) return;
    event.preventDefault();
    take(event.clipboardData);
  });
  find("model").addEventListener("change", (event) => show(state.models.find((model) => model.name === event.target.value)));
  for (const id of ["layer", "method"]) find(id).addEventListener("change", settled);
  find("views").addEventListener("change", (event) => { state.view = event.target.value; render(); });
  find("colormap").addEventListener("change", (event) => { state.colormap = event.target.value; view.scale(find("scale"), state.colormap); render(); });
  find("opacity").addEventListener("input", (event) => {
    state.opacity = Number(event.target.value) / 100;
    find("opacity-value").textContent = `${event.target.value} %`;
    render();
  });
  find("even").addEventListener("change", (event) => { state.even = event.target.checked; render(); });
  find("save").addEventListener("click", save);
  find("another").addEventListener("submit", (event) => {
    event.preventDefault();
    const { index, problem } = classOf(find("class").value, state.model.classes, state.model.class_count);
    find("class").setAttribute("aria-invalid", String(Boolean(problem)));
    find("class-problem").textContent = problem ?? "";
    if (!problem) { find("class").value = ""; chooseTarget(index); }
  });
  find("part-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const { region, problem } = regionOf(find("part").value);
    find("part").setAttribute("aria-invalid", String(Boolean(problem)));
    find("part-problem").textContent = problem ?? "";
    if (!problem) choosePart(region);
  });
  point();
  find("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    backend.authorize?.(find("token").value);
    state.authorized = true;
    find("token").value = "";
    find("token-form").hidden = true;
    again();
  });
  for (const id of ["settings", "drawing"]) find(id).addEventListener("submit", (event) => event.preventDefault());
}

function takeModels() {
  find("file").accept += ",.onnx";
  find("drop-help").textContent += " Another explainable model (.onnx) can be dropped too.";
}

async function samples() {
  const list = (await backend.samples?.()) ?? [];
  find("samples").hidden = !list.length;
  find("samples").querySelector("ul").replaceChildren(...list.map(({ name, url }) => view.element("li", {}, view.element("button", {
    type: "button",
    onclick: async () => {
      try {
        const response = await fetch(url);
        if (!response.ok) throw new Error(String(response.status));
        add([new File([await response.blob()], name)]);
      } catch { alarm(`“${name}” cannot be loaded.`); }
    },
  }, view.element("img", { src: url, alt: "", loading: "lazy" }), view.element("span", { textContent: name })))));
}

async function start() {
  say("Opening the model");
  try {
    state.models = await backend.models();
    find("footer").textContent = (await backend.about?.()) ?? "";
    if (backend.openModel) takeModels();
    await samples();
  } catch (error) {
    say("");
    if (error.status === 401) authorize();
    else state.gone = error.message;
    render();
    return;
  }
  say("");
  if (state.models.length) show(state.models[0]);
  else say("Drop an explainable model (.onnx) to begin.");
}

view.options(find("colormap"), view.colormaps, DEFAULT);
view.scale(find("scale"), DEFAULT);
listen();
start();
