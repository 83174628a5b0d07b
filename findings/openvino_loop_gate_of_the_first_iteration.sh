#!/usr/bin/env bash
# In the body of a Loop, OpenVINO multiplies a convolution by an older iteration's HardSigmoid.
#
# Versions:  openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.32.0, Python 3.11
# Behaviour: Mul(Conv(constant), HardSigmoid(Clip(Conv(state)))) is right in the first iteration of a Loop and silently
#            wrong in the following ones, as if the gate were not computed again. With the operands of the Mul in the
#            other order every iteration is right. Precision is float32 (INFERENCE_PRECISION_HINT).
# Seen:      largest difference from onnxruntime in iterations 0, 1, 2: [0.0, 3.4, 3.3] for Mul(conv, gate),
#            [0.0, 0.0, 0.0] for Mul(gate, conv).
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
from onnx import helper, numpy_helper


def differences(operands):
    rng = np.random.default_rng(0)
    body = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        step (int64 i, bool c, float[1,3,16,16] x) => (bool c2, float[1,3,16,16] x2, float[1,3,16,16] each) {{
        a = Conv<pads = [1, 1, 1, 1]>(x, w)  r = Clip(a, lo, hi)
        gate = HardSigmoid<alpha = 1.7014118e+38, beta = -1.1754944e-38>(r)
        conv = Conv(constant, v)  m = Mul({operands})
        each = Conv<pads = [1, 1, 1, 1]>(m, u)  x2 = Add(x, each)  c2 = Identity(c) }}"""
    ).graph
    weights = {
        "w": rng.normal(size=(8, 3, 3, 3)),
        "v": rng.normal(size=(8, 4, 1, 1)),
        "u": rng.normal(size=(3, 8, 3, 3)) * 0.1,
        "constant": rng.normal(size=(1, 4, 16, 16)),
        "lo": np.asarray(0.0),
        "hi": np.asarray(6.0),
    }
    body.initializer.extend(numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items())
    loop = helper.make_node("Loop", ["trips", "go", "start"], ["end", "all"], body=body)
    graph = helper.make_graph(
        [loop],
        "g",
        [helper.make_tensor_value_info("start", 1, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("end", 1, [1, 3, 16, 16]), helper.make_tensor_value_info("all", 1, [3, 1, 3, 16, 16])],
        [numpy_helper.from_array(np.asarray(3), "trips"), numpy_helper.from_array(np.asarray(True), "go")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, sys.argv[1])
    x = rng.normal(size=(1, 3, 16, 16)).astype(np.float32)
    expected = onnxruntime.InferenceSession(sys.argv[1]).run(["all"], {"start": x})[0]
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(sys.argv[1]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    computed = next(value for port, value in compiled([x]).items() if "all" in port.get_names())
    return [float(np.abs(computed[k] - expected[k]).max()) for k in range(3)]


for operands, right in (("conv, gate", False), ("gate, conv", True)):
    worst = differences(operands)
    print(f"Mul({operands}): {worst}")
    assert worst[0] < 1e-4, "the first iteration was right"
    assert (max(worst[1:]) < 1e-4) is right, "OpenVINO has changed"
PYTHON
