#!/usr/bin/env bash
# OpenVINO applies square weights untransposed where a model uses the same weights both ways.
#
# Versions:  openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.32.0, Python 3.11
# Behaviour: a model that multiplies by a square matrix and by its transpose (tied weights, or a backward pass), or that
#            convolves and transpose-convolves with the same weights of as many input as output channels, computes the
#            second product with the weights as packed for the first. No warning; weights that are not square are right,
#            and so is the negative of the weights in one of the two places.
# Seen:      relative distances from onnxruntime above 0.5 where 1e-6 is right.
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0
"$folder/venv/bin/python" - "$folder/model.onnx" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import numpy_helper

rng = np.random.default_rng(0)


def distance(body, shape, weights):
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[{shape}] x) => (float y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=weights).astype(np.float32), "w"))
    onnx.save(model, sys.argv[1])
    x = rng.normal(size=[int(size) for size in shape.split(",")]).astype(np.float32)
    expected = onnxruntime.InferenceSession(sys.argv[1]).run(None, {"x": x})[0]
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    seen = core.compile_model(core.read_model(sys.argv[1]), "CPU", options)([x])[0]
    far = float(np.linalg.norm(seen - expected) / np.linalg.norm(expected))
    print(f"{body}  weights {list(weights)}: {far:.1e}")
    return far


both_ways = "a = MatMul(x, w) b = Relu(a) y = Gemm<transB = 1>(b, w)"
assert distance(both_ways, "4,8", (8, 8)) > 0.1, "square matrices have changed"
assert distance(both_ways, "4,8", (8, 9)) < 1e-5, "other matrices were right"
assert distance("a = MatMul(x, w) b = Relu(a) n = Neg(w) y = Gemm<transB = 1, alpha = -1.0>(b, n)", "4,8", (8, 8)) < 1e-5
convolutions = "a = Conv<strides = [2, 2]>(x, w) b = Relu(a) y = ConvTranspose<strides = [2, 2]>(b, w)"
assert distance(convolutions, "1,8,8,8", (8, 8, 2, 2)) > 0.1, "square convolutions have changed"
assert distance(convolutions, "1,8,8,8", (6, 8, 2, 2)) < 1e-5, "other convolutions were right"
PYTHON
