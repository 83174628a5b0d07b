// The backend of a page without a server: pictures are explained in this browser, by onnxruntime-web in a worker, and
// never leave it. `onnxcam page` writes this module as backend.js.

import { BackendError } from "./errors.js";
import { entryOf } from "./local/model.js";

const waiting = new Map(); // by number: what a request to the worker waits for
const pictures = new WeakMap(); // a number per picture, so that the worker prepares it once
let worker = null, broken = null, requests = 0, numbered = 0, catalogue = null, asked = false;

function start() {
  worker = new Worker(new URL("local/worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data: { id, result, problem, status, progress } }) => {
    const entry = waiting.get(id);
    if (!entry) return;
    if (progress !== undefined) {
      entry.progress?.(progress);
      return;
    }
    waiting.delete(id);
    if (problem === undefined) entry.resolve(result);
    else entry.reject(new BackendError(problem, { status }));
  };
  worker.onerror = (event) => {
    event.preventDefault();
    broken = `The page's own program could not be started (${event.message || "a file is missing"}); is the folder whole?`;
    for (const { reject } of waiting.values()) reject(new BackendError(broken));
    waiting.clear();
  };
}

function ask(action, request, { signal, progress } = {}) {
  if (broken) return Promise.reject(new BackendError(broken));
  if (!worker) start();
  requests += 1;
  const id = requests;
  return new Promise((resolve, reject) => {
    // the worker goes on: its answer is dropped
    const leave = () => {
      waiting.delete(id);
      reject(signal.reason);
    };
    if (signal?.aborted) leave();
    signal?.addEventListener("abort", leave, { once: true });
    waiting.set(id, { resolve, reject, progress });
    worker.postMessage({ id, action, ...request });
  });
}

async function contents() {
  if (!catalogue) {
    try {
      const response = await fetch(new URL("contents.json", import.meta.url));
      if (!response.ok) throw new Error(String(response.status));
      catalogue = await response.json();
    } catch {
      throw new BackendError("The list of this page's files cannot be loaded; is the page still there?");
    }
  }
  return catalogue;
}

export async function models() {
  const entries = [];
  await ask("configure", { webgpu: (await contents()).webgpu === true });
  for (const { name, url, sha256, bytes, manifest, targets } of (await contents()).models) {
    await ask("add", { name, source: { url: new URL(url, import.meta.url).href, sha256, bytes } });
    entries.push(entryOf(name, manifest, targets));
  }
  return entries;
}

export async function explain(blob, { model, layer, method, target = null, topK = 5, signal, progress }) {
  asked = true;
  if (!pictures.has(blob)) {
    numbered += 1;
    pictures.set(blob, numbered);
  }
  return ask("explain", { name: model, picture: pictures.get(blob), blob, question: { layer, method, target, topK } }, { signal, progress });
}

/** Open an explainable model that was dropped on the page; it is not stored. */
export async function openModel(file) {
  const names = new Set((await contents()).models.map(({ name }) => name));
  let name = file.name.replace(/(\.cam)?\.onnx$/i, "") || "model";
  if (names.has(name)) name += " (opened)";
  await ask("add", { name, source: { file } });
  const { manifest, targets } = await ask("open", { name });
  return entryOf(name, manifest, targets);
}

export async function samples() {
  return (await contents()).pictures.map(({ name, url }) => ({ name, url: new URL(url, import.meta.url).href }));
}

export async function about() {
  const { version, runtime } = await contents();
  return `Pictures are explained in this browser and never leave it. onnxcam ${version}, onnxruntime-web ${runtime}.`;
}

async function keepFiles() {
  const { serviceWorker } = navigator, previous = serviceWorker.controller;
  // the page was made anew since: take all of it, unless somebody is at work
  serviceWorker.addEventListener("controllerchange", () => { if (previous && !asked) location.reload(); });
  await serviceWorker.register(new URL("service_worker.js", import.meta.url));
}

// without it the page works all the same, while it is online
if ("serviceWorker" in navigator) keepFiles().catch(() => {});
