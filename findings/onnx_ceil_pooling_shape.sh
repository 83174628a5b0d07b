#!/usr/bin/env bash
# onnx infers one cell too many behind pooling with ceil_mode whose last window would start in the padding, below opset 22.
#
# Versions:  onnx 1.23.2, onnxruntime 1.32.0, NumPy 2.4.6, Python 3.11
# Behaviour: the standard says that windows which would start in the padding behind the picture are ignored, and so do
#            onnxruntime and PyTorch. Shape inference of AveragePool and MaxPool counts them in opsets 11 to 19, and of
#            LpPool in 18 and 19, and right in opset 22: a tool that writes sizes of such a file writes wrong ones. The
#            strict mode of the checker does not notice.
# Seen:      a picture of 12 pixels, kernel 1, stride 2, ceil_mode 1: 7 cells inferred, 6 computed; 7 pixels, kernel 2,
#            stride 3, padding 1: 4 inferred, 3 computed; 14 pixels, kernel 3, stride 2, no padding: 7 both.
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime

options = onnxruntime.SessionOptions()
options.log_severity_level = 4
for kind, opsets in (("MaxPool", (11, 13, 18, 19, 22)), ("AveragePool", (11, 18, 19, 22)), ("LpPool", (18, 22))):
    for opset in opsets:
        for size, kernel, stride, pad, computed in ((12, 1, 2, 0, 6), (7, 2, 3, 1, 3), (14, 3, 2, 0, 7)):
            text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
            g (float[1, 1, {size}, {size}] x) => (float[1, 1, h, w] y) {{
            y = {kind}<ceil_mode = 1, kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}],
                       pads = [{pad}, {pad}, {pad}, {pad}]>(x) }}"""
            model = onnx.parser.parse_model(text)
            onnx.checker.check_model(model, full_check=True)
            inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim[2].dim_value
            session = onnxruntime.InferenceSession(model.SerializeToString(), options)
            seen = session.run(None, {"x": np.zeros((1, 1, size, size), np.float32)})[0].shape[2]
            print(f"{kind}, opset {opset}, {size} pixels: {inferred} inferred, {seen} computed")
            one_more = opset < 22 and size != 14
            assert (inferred, seen) == (computed + one_more, computed), "onnx or onnxruntime has changed"
PYTHON
