#!/usr/bin/env bash
# onnxsim and onnxslim make a constant of an input that has a default.
#
# Versions:  onnxsim 0.8.1, onnxslim 0.1.98, onnx 1.23.2, Python 3.11
# Behaviour: an initializer that is also listed among the inputs is a default that a client may override (ONNX IR). Both
#            tools take it out of the inputs without a warning: the simplified model computes with the default always.
# Seen:      inputs ["x", "k"] before, ["x"] after either tool.
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxsim==0.8.1 onnxslim==0.1.98 onnx==1.23.2 onnxruntime==1.32.0
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxsim
import onnxslim
from onnx import numpy_helper

text = '<ir_version: 8, opset_import: ["" : 18]> g (float[1] x, float[1] k) => (float[1] y) { z = Add(x, k) y = Relu(z) }'
model = onnx.parser.parse_model(text)
model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.float32), "k"))
onnx.checker.check_model(model)
for name, simplified in (("onnxsim", onnxsim.simplify(model)[0]), ("onnxslim", onnxslim.slim(model))):
    inputs = [value.name for value in simplified.graph.input]
    print(name, inputs)
    assert inputs == ["x"], f"{name} has changed"
PYTHON
