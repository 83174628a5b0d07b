#!/usr/bin/env bash
# torchvision has two roi_align: the one in Python repeats the map's border outside the map, where ONNX RoiAlign gives 0.
#
# Versions:  torchvision 0.28.0, torch 2.13.0, onnx 1.23.2, onnxruntime 1.32.0, NumPy 2.4.6, Python 3.11
# Behaviour: torchvision.ops.roi_align runs a function in Python where its compiled operator is missing and, by its source,
#            on a GPU with torch.use_deterministic_algorithms(True). Sampling points more than one pixel outside the map
#            take the border's values there; they count as 0 for RoiAlign of ONNX, which is what an export becomes.
# Seen:      a map of ones, 8 x 8: for a box inside both give 1; for [2, 2, 12, 12] in cells of 4 x 4 Python gives 1 all
#            over, onnxruntime 0 in the last row and column and 0.5 and 0.25 beside them.
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6 pillow==13.0.0
"$folder/venv/bin/pip" install --quiet --no-deps torchvision==0.28.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
import torch

if torch.version.cuda is None:  # PyPI's torchvision is built for CUDA: on another torch it imports once these are declared
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import torchvision  # noqa: F401

python = sys.modules["torchvision.ops.roi_align"]._roi_align.__wrapped__  # uncompiled: needs no compiler
text = """<ir_version: 8, opset_import: ["" : 16]>
g (float[1, 1, 8, 8] x, float[1, 4] boxes, int64[1] batch) => (float[1, 1, 4, 4] y)
{ y = RoiAlign<output_height = 4, output_width = 4, sampling_ratio = 2,
    coordinate_transformation_mode = "half_pixel">(x, boxes, batch) }"""
session = onnxruntime.InferenceSession(onnx.parser.parse_model(text).SerializeToString())
ones = torch.ones(1, 1, 8, 8)


def both(box):
    boxes = torch.tensor([box], dtype=torch.float32)
    seen = python(ones, torch.cat([torch.zeros(1, 1), boxes], 1), 1.0, 4, 4, 2, True).numpy()[0, 0]
    (expected,) = session.run(None, {"x": ones.numpy(), "boxes": boxes.numpy(), "batch": np.zeros(1, np.int64)})
    print(f"{box}: torchvision in Python {seen.tolist()}, onnxruntime {expected[0, 0].tolist()}")
    return seen, expected[0, 0]


seen, expected = both([1, 1, 7, 7])
assert np.allclose(seen, 1) and np.allclose(expected, 1), "boxes inside are computed alike"
seen, expected = both([2, 2, 12, 12])
share = np.array([1, 1, 0.5, 0])
assert np.allclose(expected, np.outer(share, share)), "onnxruntime has changed"
assert np.allclose(seen, 1), "torchvision has changed"
PYTHON
