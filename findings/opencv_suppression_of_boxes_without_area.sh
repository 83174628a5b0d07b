#!/usr/bin/env bash
# OpenCV's NMSBoxes suppresses boxes without area wherever they lie, as if two of them overlapped entirely.
#
# Versions:  opencv-python-headless 5.0.0.93, onnx 1.23.2, onnxruntime 1.32.0, NumPy 2.4.6, Python 3.11
# Behaviour: of boxes whose width or height is 0 (lines, points, boxes clipped at the picture's edge) cv2.dnn.NMSBoxes
#            keeps the best alone, at any threshold below 1 and however far apart they lie. NonMaxSuppression of ONNX
#            keeps them all, as no two overlap.
# Seen:      three lines hundreds of pixels apart and a square: OpenCV [0, 2], onnxruntime [0, 1, 2, 3].
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np
import onnx
import onnxruntime

boxes = np.array([[5, 5, 0, 10], [500, 500, 0, 20], [50, 50, 9, 9], [300, 5, 10, 0]], np.float32)  # left, top, width, height
scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
text = """<ir_version: 8, opset_import: ["" : 18]>
g (float[1, 4, 4] boxes, float[1, 1, 4] scores, int64[1] most, float[1] threshold) => (int64[K, 3] indices)
{ indices = NonMaxSuppression(boxes, scores, most, threshold) }"""
session = onnxruntime.InferenceSession(onnx.parser.parse_model(text).SerializeToString())
corners = np.concatenate([boxes[:, 1::-1], boxes[:, 1::-1] + boxes[:, :1:-1]], axis=1)  # top, left, bottom, right
for threshold in (0.5, 0.99):
    opencv = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.1, threshold).tolist()
    feeds = {"boxes": corners[None], "scores": scores[None, None], "most": np.array([4])}
    (indices,) = session.run(None, feeds | {"threshold": np.array([threshold], np.float32)})
    print(f"threshold {threshold}: OpenCV {opencv}, onnxruntime {indices[:, 2].tolist()}")
    assert indices[:, 2].tolist() == [0, 1, 2, 3], "onnxruntime has changed"
    assert opencv == [0, 2], "OpenCV has changed"
PYTHON
