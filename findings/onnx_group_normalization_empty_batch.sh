#!/usr/bin/env bash
# GroupNormalization of an empty batch fails in onnxruntime and in onnx's evaluator; other normalizations take it.
#
# Versions:  onnx 1.23.2, onnxruntime 1.32.0, NumPy 2.4.6, Python 3.11
# Behaviour: a detector that finds nothing hands its head an empty batch of regions. InstanceNormalization and
#            BatchNormalization return an empty tensor for it. GroupNormalization, and InstanceNormalization between two
#            Reshape as exporters write it, raise an error: the shape [0, groups, -1] cannot be inferred from no element.
# Seen:      x of shape (0, 4, 2, 2), two groups: "The input tensor cannot be reshaped to the requested shape" of
#            onnxruntime, "cannot reshape array of size 0" of the evaluator; one picture works in both.
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
from onnx.reference import ReferenceEvaluator

BODIES = {
    "GroupNormalization": "y = GroupNormalization<num_groups = 2>(x, w, b)",
    "as exporters write it": """shape = Constant<value_ints = [0, 2, -1]>() groups = Reshape(x, shape)
        one = Constant<value_floats = [1.0, 1.0]>() zero = Constant<value_floats = [0.0, 0.0]>()
        normalized = InstanceNormalization(groups, one, zero) size = Shape(x) y = Reshape(normalized, size)""",
    "InstanceNormalization": "y = InstanceNormalization(x, w, b)",
    "BatchNormalization": "y = BatchNormalization(x, w, b, b, w)",
}
options = onnxruntime.SessionOptions()
options.log_severity_level = 4


def outcome(run):
    try:
        return run()[0].shape
    except Exception as error:  # each runtime raises its own
        return next(reason for reason in ("cannot be reshaped", "cannot reshape") if reason in str(error))


for name, body in BODIES.items():
    text = f"""<ir_version: 10, opset_import: ["" : 21]> g (float[N, 4, 2, 2] x) => (float[N, 4, 2, 2] y)
    {{ w = Constant<value_floats = [1.0, 1.0, 1.0, 1.0]>() b = Constant<value_floats = [0.0, 0.0, 0.0, 0.0]>()
    {body} }}"""
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    session, evaluator = onnxruntime.InferenceSession(model.SerializeToString(), options), ReferenceEvaluator(model)
    for pictures in (1, 0):
        feeds = {"x": np.zeros((pictures, 4, 2, 2), np.float32)}
        seen = outcome(lambda: session.run(None, feeds)), outcome(lambda: evaluator.run(None, feeds))
        print(f"{name}, {pictures} pictures: {seen}")
        fails = not pictures and name in ("GroupNormalization", "as exporters write it")
        expected = ("cannot be reshaped", "cannot reshape") if fails else ((pictures, 4, 2, 2),) * 2
        assert seen == expected, "onnx or onnxruntime has changed"
PYTHON
