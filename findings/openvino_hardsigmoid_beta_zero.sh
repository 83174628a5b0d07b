#!/usr/bin/env bash
# OpenVINO reads a HardSigmoid attribute that is written as 0 as the operator's default.
#
# Versions:  openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.32.0, Python 3.11
# Behaviour: HardSigmoid(alpha=1, beta=0) is max(0, min(1, x)) by the ONNX specification. OpenVINO computes with
#            beta=0.5, the default of an attribute that is absent, without a warning; alpha=0 is read as 0.2 likewise.
# Seen:      x = [-1, 0, 0.25, 2]: onnxruntime [0, 0, 0.25, 1], OpenVINO [0, 0.5, 0.75, 1].
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

x = np.array([-1, 0, 0.25, 2], np.float32)


def both(alpha, beta):
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[4] x) => (float[4] y) {{ y = HardSigmoid<alpha={alpha}, beta={beta}>(x) }}'
    onnx.save(onnx.parser.parse_model(text), sys.argv[1])
    expected = onnxruntime.InferenceSession(sys.argv[1]).run(None, {"x": x})[0]
    core = openvino.Core()
    seen = core.compile_model(core.read_model(sys.argv[1]), "CPU")([x])[0]
    print(f"alpha={alpha} beta={beta}: onnxruntime {expected.tolist()}, OpenVINO {seen.tolist()}")
    return expected, seen


expected, seen = both("1.0", "0.0")
assert np.allclose(expected, np.clip(x, 0, 1)), "onnxruntime has changed"
assert np.allclose(seen, np.clip(x + 0.5, 0, 1)), "OpenVINO has changed"
expected, seen = both("0.0", "0.25")
assert np.allclose(expected, 0.25), "onnxruntime has changed"
assert np.allclose(seen, np.clip(0.2 * x + 0.25, 0, 1)), "OpenVINO has changed"
expected, seen = both("1.0", "0.25")
assert np.allclose(expected, seen), "attributes that are not 0 were read right"
PYTHON
