// WebGPU only where it is right: its kernels, and drivers under them, are silently wrong on some networks, so that what it
// computes of a picture is compared with what the processor has computed, before it is used for the next one.

import { explain } from "./model.js";

const TOLERANCE = 1e-4;

/**
 * Try a model on the graphics processor, and set `model.faster` where it gives the same numbers in less time; null where
 * it does not. `reference` is the processor's { result, seconds } of the same question.
 */
export async function consider(model, input, question, doubts, reference) {
  const { bytes, manifest } = model;
  model.faster = null;
  // with open sizes another picture runs other kernels; a map of zeros says nothing
  const fixed = manifest.input.shape.slice(1).every((side) => typeof side === "number");
  if (!bytes || !fixed || !navigator.gpu) return;
  if (reference.result.statistics.zero) {
    model.faster = undefined;
    return;
  }
  let session;
  try {
    if (!(await navigator.gpu.requestAdapter())) return;
    const ort = await import("../runtime/ort.webgpu.bundle.min.mjs");
    ort.env.logLevel = "error";
    ort.env.wasm.wasmPaths = { wasm: new URL("../runtime/ort-wasm-simd-threaded.asyncify.wasm", import.meta.url).href };
    ort.env.wasm.numThreads = 1;
    session = await ort.InferenceSession.create(bytes, { executionProviders: ["webgpu"], logSeverityLevel: 3 });
    const other = { ...model, ort, session };
    const first = await explain(other, input, question, doubts); // compiles the shaders
    const start = performance.now(), second = await explain(other, input, question, doubts);
    const seconds = (performance.now() - start) / 1000;
    const same = [first, second].every((result) => agree(result, reference.result));
    if (same && seconds < reference.seconds) {
      model.faster = other;
      return;
    }
    console.debug(`onnxcam: WebGPU is not used (${same ? "slower" : "other numbers"})`);
  } catch (error) {
    console.debug(`onnxcam: WebGPU is not used (${error?.message ?? error})`);
  } finally {
    model.bytes = null;
    if (!model.faster) await session?.release().catch(() => {});
  }
}

/** Whether two results have the same scores and map. */
export function agree(a, b) {
  return distance(a.scores, b.scores) <= TOLERANCE && distance(a.raw_map.values, b.raw_map.values) <= TOLERANCE;
}

function distance(a, b) {
  let [off, size] = [0, 0];
  for (let i = 0; i < b.length; i++) {
    off += (a[i] - b[i]) ** 2;
    size += b[i] ** 2;
  }
  return a.length === b.length ? Math.sqrt(off / Math.max(size, 1e-24)) : Infinity;
}
