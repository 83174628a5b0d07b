#!/usr/bin/env bash
# ONNX Runtime's default optimisation of weight-only int8 products rounds the activations, too.
#
# Versions:  onnxruntime 1.32.0, onnx 1.23.2, Python 3.11, on a CPU
# Behaviour: DequantizeLinear of int8 weights before a MatMul with float activations is replaced by MatMulNBits at the
#            level at which the activations are quantized to 8 bits for each product. The model has no such step. With
#            session.qdq_matmulnbits_accuracy_level = 0, or without optimisation, the product is exact to float32.
# Seen:      relative distances from the product in float64 of 5e-3 by default, 1e-7 with level 0 and unoptimised. The
#            output is a staircase of the input, so finite differences of it are not its gradient.
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2
"$folder/venv/bin/python" - "$folder/optimised.onnx" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

rng = np.random.default_rng(0)
text = """<ir_version: 8, opset_import: ["" : 21]> g (float[4,64] x) => (float[4,32] y) {
    w = DequantizeLinear<axis = 1>(q, s, z) y = MatMul(x, w) }"""
model = onnx.parser.parse_model(text)
q = rng.integers(-127, 128, (64, 32)).astype(np.int8)
s = (rng.uniform(0.5, 1.5, 32) / 100).astype(np.float32)
for name, value in (("q", q), ("s", s), ("z", np.zeros(32, np.int8))):
    model.graph.initializer.append(numpy_helper.from_array(value, name))
x = rng.normal(size=(4, 64)).astype(np.float32)
exact = x.astype(np.float64) @ (q.astype(np.float64) * s)


def distance(level=None, optimise=True):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = sys.argv[1]
    options.log_severity_level = 3
    if level is not None:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    far = float(np.linalg.norm(session.run(None, {"x": x})[0] - exact) / np.linalg.norm(exact))
    operators = [node.op_type for node in onnx.load(sys.argv[1]).graph.node]
    print(f"level {level}, optimised {optimise}: {operators}, {far:.1e}")
    return far


assert distance() > 1e-3, "the default has changed"
assert distance(level="0") < 1e-5
assert distance(optimise=False) < 1e-5
PYTHON
