#!/usr/bin/env bash
# onnxruntime-web's WebGPU provider computes a small Conv silently wrong.
#
# Versions:  onnxruntime-web 1.30.0, Chromium 156 with its software adapter (SwiftShader), onnx 1.23.2, playwright 1.65.2
# Behaviour: Conv of a picture [1, 6, 16, 16] with weights [4, 6, 3, 3] and pads 1 gives other numbers by the provider
#            webgpu than by wasm, without an error; with weights [6, 3, 3, 3] on a picture [1, 3, 16, 16] both agree.
# Seen:      relative distance (L2) 0.0000001 for 3 channels, 1.4 for 6.
#
# Needs Node, npm and Chromium. Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --ignore-scripts --no-audit --no-fund onnxruntime-web@1.30.0
python3 -m venv venv
venv/bin/pip install --quiet onnx==1.23.2 numpy==2.4.6 playwright==1.65.2
cp node_modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs node_modules/onnxruntime-web/dist/*.asyncify.wasm .
venv/bin/python - <<'PYTHON'
import http.server
import pathlib
import shutil
import threading

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from playwright.sync_api import sync_playwright

SCRIPT = """async (channels) => {
  const ort = await import("/ort.webgpu.bundle.min.mjs"), results = {};
  ort.env.wasm.numThreads = 1;
  const model = new Uint8Array(await (await fetch(`/${channels}.onnx`)).arrayBuffer());
  const x = Float32Array.from({ length: channels * 256 }, (_, i) => Math.sin(7 * i));
  for (const provider of ["wasm", "webgpu"]) {
    const session = await ort.InferenceSession.create(model, { executionProviders: [provider], logSeverityLevel: 3 });
    const { y } = await session.run({ x: new ort.Tensor("float32", x, [1, channels, 16, 16]) });
    results[provider] = [...await y.getData()];
  }
  return results;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


rng = np.random.default_rng(0)
for channels, filters in ((3, 6), (6, 4)):
    weights = rng.normal(size=(filters, channels, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, filters, 16, 16])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, f"{channels}.onnx")
pathlib.Path("index.html").write_text("<title>Conv</title>")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
threading.Thread(target=server.serve_forever, daemon=True).start()
off = {}
with sync_playwright() as driver:
    flags = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
    browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    for channels in (3, 6):
        results = {name: np.array(values) for name, values in page.evaluate(SCRIPT, channels).items()}
        off[channels] = float(np.linalg.norm(results["webgpu"] - results["wasm"]) / np.linalg.norm(results["wasm"]))
    print(f"Chromium {browser.version}: {off}")
    browser.close()
assert off[3] < 1e-5 and off[6] > 0.1, "onnxruntime-web or Chromium has changed"
PYTHON
