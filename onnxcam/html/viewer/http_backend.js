// The backend of the page that `onnxcam serve` answers at GET /: everything is asked of the server that sent the page.
import { BackendError } from "./errors.js";

export const decodes = true; // formats that browsers do not read, such as TIFF

const GONE = "The server does not answer: it was stopped, or the connection is broken.";
const SIDE = 2048; // pixels of the longer side at which maps are drawn
let token = null, facts = null;

export const authorize = (text) => { token = text.trim(); };
export const models = async () => (await described()).models;
export const limits = async () => ({ bytes: (await described()).max_body });
export async function about() {
  const { onnxcam, monitored } = await described();
  return `Explained by onnxcam ${onnxcam} on the server of this page, which ${monitored ? "keeps a record of predictions" : "keeps no picture"}.`;
}

async function described() {
  facts ??= await (await send("viewer.json", {})).json();
  return facts;
}

// The answer of a route beside the page; everything but success is thrown.
async function send(route, { signal, ...request }) {
  let response;
  try {
    response = await fetch(route, { ...request, signal, headers: token ? { authorization: `Bearer ${token}` } : {}, credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new BackendError(GONE, { status: 0 });
  }
  if (response.ok) return response;
  const seconds = Number.parseFloat(response.headers.get("retry-after"));
  throw new BackendError(await sentence(response), { status: response.status, retryAfter: Number.isFinite(seconds) ? seconds : null });
}

async function sentence(response) {
  const texts = {
    401: "This server asks for a token.", 413: "The picture is larger than this server takes.", 429: "The server's queue is full.",
    502: GONE, 503: "The server is being stopped, or is not ready yet.", 504: "The server did not answer within its time limit.",
  };
  const general = texts[response.status] ?? `The server answered with status ${response.status}.`;
  try {
    const { error } = await response.json();
    return typeof error === "string" && error ? `${general === texts[response.status] && response.status !== 401 ? `${general} ` : ""}${upper(error)}` : general;
  } catch {
    return general; // of a proxy in between
  }
}

const upper = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

export async function explain(blob, { model, layer, method, target, topK, signal, progress, picture }) {
  const form = new FormData();
  form.append("image", blob, "picture"); // not its name, which is nobody's business
  const about = (await models()).find(({ name }) => name === model);
  const fields = { model, method, top_k: topK, when: "always", files: picture ? "grayscale,input" : "grayscale" };
  // boxes come from several layers: each has its own, unless another one is chosen
  if (!about?.task || layer !== about.layer) fields.layer = layer;
  if (target?.box !== undefined) fields.box = target.box;
  else if (target?.region) fields.region = target.region.join(",");
  else if (target !== null) fields[about?.task ? "target" : "class_index"] = target;
  for (const [name, value] of Object.entries(fields)) form.append(name, String(value));
  let response, answer;
  try {
    response = await send(target === null || about?.task ? "predict_with_gradcam" : "analyze_class", { method: "POST", body: form, signal });
  } catch (error) {
    if (error.status === 0 && !(await readable(blob))) throw new BackendError("The file cannot be read any more: it was moved or changed.", { status: 422 });
    throw error;
  }
  try {
    answer = await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new BackendError("The answer of the server broke off.", { status: 0 });
  }
  progress?.("Drawing the map");
  const explained = targetOf(answer, target);
  return {
    predictions: answer.task === "detect" ? answer.boxes.map(rowOf) : answer.top_predictions.map(measured), target: measured(explained),
    outline: explained.outline ?? null, layer: answer.layer, method: answer.method, statistics: answer.statistics, warnings: answer.warnings,
    map: await mapOf(answer), picture: picture ? bytesOf(answer.gradcam_input) : null,
  };
}

// What is explained; of boxes and parts of the picture with an id of its own, and where it lies.
const targetOf = ({ task, boxes, target }, question) => {
  if (!target && task === "detect" && !boxes.length) throw new BackendError("The model reports no box on this picture.", { status: 422 });
  if (!target) throw new BackendError(`The server sent no map${question === null ? "" : ` of class ${question}`}.`, { status: 500 });
  if (target.box) return { ...target, ...rowOf(target.box), outline: target.box.box };
  const region = target.scalar?.region;
  if (!region) return target;
  return { ...target, class_name: `${target.class_name}, in the part`, id: { region: question?.region ?? region }, outline: region };
};

// A box as a row of the page: a box is chosen by its candidate's index, as several are of one class.
const rowOf = ({ index, label, class_index, score, box }) => ({ class_name: `box ${index}: ${label}`, class_index, confidence: score, id: { box: index }, box });

// The value of a regression stands where the confidence of a class does.
const measured = (one) => ({ ...one, confidence: one.confidence ?? one.value });

// A request with a file that has changed on disk fails like one to a server that is gone.
const readable = (blob) => blob.slice(0, 1).arrayBuffer().then(() => true, () => false);

// The bytes of a data URL: the page's policy forbids to fetch one.
const bytesOf = (url) => new Blob([Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (letter) => letter.charCodeAt(0))], { type: "image/png" });

// Grey levels of the map, and which pixels the model saw.
async function mapOf({ gradcam_grayscale: url, visible }) {
  const plain = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  let bitmap = await createImageBitmap(bytesOf(url), plain);
  const size = { width: bitmap.width, height: bitmap.height }, scale = SIDE / Math.max(size.width, size.height);
  if (scale < 1) {
    bitmap.close();
    const [width, height] = [size.width, size.height].map((side) => Math.max(Math.round(side * scale), 1));
    bitmap = await createImageBitmap(bytesOf(url), { ...plain, resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
  }
  const { width, height } = bitmap;
  const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const pixels = context.getImageData(0, 0, width, height).data, values = new Uint8ClampedArray(width * height);
  for (let at = 0; at < values.length; at += 1) values[at] = pixels[4 * at];
  return { width, height, values, size, visible: maskOf(visible, size, { width, height }) };
}

// 1 where one of the parts lies, null where they are all of the picture.
function maskOf(parts, size, { width, height }) {
  const covers = ({ x0, y0, x1, y1 }) => x0 <= 0 && y0 <= 0 && x1 >= size.width && y1 >= size.height;
  if (!parts || parts.some(covers)) return null;
  const mask = new Uint8ClampedArray(width * height), across = width / size.width, down = height / size.height;
  for (const { x0, y0, x1, y1 } of parts) {
    const [left, right, top, bottom] = [x0 * across, x1 * across, y0 * down, y1 * down].map(Math.round);
    for (let row = Math.max(top, 0); row < Math.min(bottom, height); row += 1) mask.fill(1, row * width + Math.max(left, 0), row * width + Math.min(right, width));
  }
  return mask;
}
