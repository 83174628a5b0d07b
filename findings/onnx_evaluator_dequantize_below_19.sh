#!/usr/bin/env bash
# onnx's ReferenceEvaluator has no DequantizeLinear below opset 19, where the operator exists from opset 10 on.
#
# Versions:  onnx 1.23.2, onnxruntime 1.32.0, Python 3.11
# Behaviour: a valid model of opset 18 (checked by onnx) that quantizes and dequantizes runs in onnxruntime; constructing
#            ReferenceEvaluator raises RuntimeError. The same nodes at opset 21 run in both.
# Seen:      "No implementation for operator 'DequantizeLinear' domain '' and version 18, found 19, 21, 23, 25, None."
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet onnx==1.23.2 onnxruntime==1.32.0
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator


def model(opset):
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[3] x) => (float[3] y) '
        "{ q = QuantizeLinear(x, step, zero) y = DequantizeLinear(q, step, zero) }"
    )
    made = onnx.parser.parse_model(text)
    made.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "step"))
    made.graph.initializer.append(numpy_helper.from_array(np.uint8(0), "zero"))
    onnx.checker.check_model(made, full_check=True)
    return made


feeds = {"x": np.array([0.1, 0.6, 2.0], np.float32)}
for opset in (18, 21):
    print(opset, "onnxruntime:", onnxruntime.InferenceSession(model(opset).SerializeToString()).run(None, feeds)[0])
print(21, "ReferenceEvaluator:", ReferenceEvaluator(model(21)).run(None, feeds)[0])
try:
    ReferenceEvaluator(model(18))
except RuntimeError as error:
    print(18, "ReferenceEvaluator:", error)
    assert "No implementation for operator 'DequantizeLinear'" in str(error)
else:
    raise SystemExit(1)
PYTHON
