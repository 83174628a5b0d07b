#!/usr/bin/env bash
# onnxruntime-node silently ignores a value that is fed to an input with a default.
#
# Versions:  onnxruntime-node 1.30.0, Node 20, onnx 1.23.2, onnxruntime 1.32.0 (Python), Python 3.11
# Behaviour: an initializer that is also listed among the inputs is a default that a client may override (ONNX IR). Python
#            computes with the value that is fed; onnxruntime-node computes with the default and says nothing.
# Seen:      y = x + k with the default k = 1, fed x = 10 and k = 5: Python 15, Node 11.
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet onnx==1.23.2 onnxruntime==1.32.0
echo '{"type": "module", "dependencies": {"onnxruntime-node": "1.30.0"}}' > package.json
npm install --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel=error
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

text = '<ir_version: 8, opset_import: ["" : 18]> g (float[1] x, float[1] k) => (float[1] y) { y = Add(x, k) }'
model = onnx.parser.parse_model(text)
model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.float32), "k"))
onnx.save(model, "model.onnx")
feeds = {"x": np.array([10], np.float32), "k": np.array([5], np.float32)}
y = onnxruntime.InferenceSession("model.onnx").run(None, feeds)[0].tolist()
print("Python:", y)
assert y == [15.0]
PYTHON
cat > run.mjs <<'JAVASCRIPT'
import ort from "onnxruntime-node";
const session = await ort.InferenceSession.create("model.onnx");
const tensor = (value) => new ort.Tensor("float32", Float32Array.of(value), [1]);
const { y } = await session.run({ x: tensor(10), k: tensor(5) });
console.log("Node:", [...y.data]);
process.exit(y.data[0] === 11 ? 0 : 1);
JAVASCRIPT
node run.mjs
