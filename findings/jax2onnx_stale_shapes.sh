#!/usr/bin/env bash
# jax2onnx declares shapes for values of its file that are those of before its optimizer moved the Transposes.
#
# Versions:  jax2onnx 0.17.1, jax 0.10.2, flax 0.12.8, onnx 1.23.2, onnxruntime 1.32.0, Python 3.11
# Behaviour: the file passes onnx's checker and runs in onnxruntime; shape inference keeps the declared shapes where they
#            contradict what the operators give, so that tools that read them compute with wrong ones.
# Seen:      convolution, batch norm, silu: `silu_sigmoid_0` is declared [B, 32, 32, 8] and has shape [1, 8, 32, 32].
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet 'jax[cpu]==0.10.2' flax==0.12.8 jax2onnx==0.17.1 onnx==1.23.2 onnxruntime==1.32.0
JAX_PLATFORMS=cpu venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from flax import nnx
from jax2onnx import to_onnx


class Network(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.expand = nnx.Conv(4, 8, (1, 1), rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.depthwise = nnx.Conv(8, 8, (3, 3), strides=2, feature_group_count=8, rngs=rngs)

    def __call__(self, x):
        return self.depthwise(nnx.silu(self.norm(self.expand(x))))


to_onnx(Network(), [("B", 32, 32, 4)], return_mode="file", output_path="network.onnx")
model = onnx.load("network.onnx")
onnx.checker.check_model(model)
produced = {name for node in model.graph.node for name in node.output}
declared = {
    info.name: [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
    for info in onnx.shape_inference.infer_shapes(model).graph.value_info
    if info.name in produced and len(info.type.tensor_type.shape.dim) == 4
}
known = {output.name for output in model.graph.output}
model.graph.output.extend(
    onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in declared if name not in known
)
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
del model.graph.value_info[:]
session = onnxruntime.InferenceSession(model.SerializeToString(), options)
feeds = {session.get_inputs()[0].name: np.zeros((1, 32, 32, 4), np.float32)}
wrong = []
for name, value in zip(declared, session.run(list(declared), feeds)):
    print(name, "declared", declared[name], "is", list(value.shape))
    if declared[name][1:] != list(value.shape)[1:]:
        wrong.append(name)
print("wrong:", wrong)
raise SystemExit(not wrong)
PYTHON
