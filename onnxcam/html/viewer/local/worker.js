// Decodes, prepares and explains pictures away from the page, so that it stays responsive.

import * as ort from "../runtime/ort.wasm.bundle.min.mjs";
import { consider } from "./graphics.js";
import { explain, prepared } from "./model.js";
import { FileError, open } from "./onnx_file.js";
import { byBrowser, readPicture } from "./picture.js";
import { PictureError, readSpec } from "./preprocess.js";

ort.env.logLevel = "error";
ort.env.wasm.wasmPaths = { wasm: new URL("../runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 4) : 1;

const sources = new Map(); // by model: { url, sha256, bytes } or { file }
let opened = null; // the one model that is in memory
let last = null; // the last picture, prepared
let webgpu = false; // whether the page has the files that run a model on the graphics processor

const actions = {
  configure(settings) {
    ({ webgpu } = settings);
  },

  /** Where a model lies; nothing is loaded. */
  add({ name, source }) {
    sources.set(name, source);
  },

  /** Open the file of a model: its manifest and which classes it can be asked for. */
  async open({ name }, report) {
    const { manifest, targets } = await model(name, report);
    return { manifest, targets };
  },

  async explain({ name, picture, blob, question }, report) {
    const current = await model(name, report);
    if (last?.picture !== picture || last.name !== name) {
      const { range } = readSpec(current.manifest.input);
      const { doubts, ...read } = await readPicture(blob, range, byBrowser);
      last = { picture, name, doubts, input: prepared(current.manifest, read) };
    }
    if (current.faster) {
      try {
        return { ...(await explain(current.faster, last.input, question, last.doubts)), provider: "webgpu" };
      } catch (error) {
        if (error instanceof PictureError) throw error;
        current.faster = null; // the graphics processor is gone
      }
    }
    const start = performance.now(), result = await explain(current, last.input, question, last.doubts);
    const { input, doubts } = last, reference = { result, seconds: (performance.now() - start) / 1000 };
    // after the answer: the next picture may be explained faster, if the numbers are the same
    if (webgpu && current.faster === undefined) later = () => consider(current, input, question, doubts, reference);
    return { ...result, provider: "wasm" };
  },
};

async function model(name, report) {
  if (opened?.name === name) return opened;
  const previous = opened;
  opened = last = null;
  await previous?.session.release();
  await previous?.faster?.session.release();
  const bytes = await load(name, sources.get(name), report);
  report(`Opening ${name}`);
  const file = open(bytes);
  let session;
  try {
    session = await ort.InferenceSession.create(file.model, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  } catch (error) {
    throw new FileError(`The model cannot be opened by onnxruntime-web: ${String(error?.message ?? error).split("\n")[0]}`);
  }
  opened = { name, ort, session, manifest: file.manifest, targets: file.targets, bytes: webgpu ? file.model : null };
  return opened;
}

async function load(name, source, report) {
  if (!source) throw new FileError(`There is no model ${name}.`);
  if (source.file) return new Uint8Array(await source.file.arrayBuffer());
  let response;
  try {
    response = await fetch(source.url);
  } catch {
    response = null;
  }
  if (!response?.ok) throw new FileError(`The file of the model ${name} cannot be loaded${response ? ` (${response.status})` : ""}; is the page still there?`);
  const bytes = new Uint8Array(source.bytes), reader = response.body.getReader();
  let at = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (at + part.value.length > bytes.length) throw new FileError(`The file of the model ${name} is longer than it was; reload the page, or make it anew.`);
    bytes.set(part.value, at);
    at += part.value.length;
    report(`Loading ${name}: ${(at / 2 ** 20).toFixed(1)} of ${(bytes.length / 2 ** 20).toFixed(1)} MiB`);
  }
  if (at < bytes.length || !(await isSame(bytes, source.sha256))) throw new FileError(`The file of the model ${name} is not the one that the page was made with; reload the page, or make it anew.`);
  return bytes;
}

async function isSame(bytes, sha256) {
  if (!crypto.subtle) return true; // not in a secure context
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("") === sha256;
}

// one request after the other: the runtime does one thing at a time
let queue = Promise.resolve(), later = null;
self.onmessage = ({ data: { id, action, ...request } }) => {
  const report = (progress) => self.postMessage({ id, progress });
  queue = queue.then(async () => {
    try {
      self.postMessage({ id, result: await actions[action](request, report) });
    } catch (error) {
      const known = error instanceof FileError || error instanceof PictureError;
      const text = String(error?.message ?? error).split("\n")[0];
      self.postMessage({ id, problem: known ? text : `The model cannot be run on this picture: ${text}`, status: known ? 422 : 500 });
    }
    const work = later;
    later = null;
    await work?.();
  });
};
