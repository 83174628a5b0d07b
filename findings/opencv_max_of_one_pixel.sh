#!/usr/bin/env bash
# OpenCV's max, min and bitwise_and of a 1 x 1 picture and a number return four values in a column, add and absdiff one.
#
# Versions:  opencv-python-headless 5.0.0.93, NumPy 2.4.6, Python 3.11
# Behaviour: cv2.max(picture, number), and likewise min and bitwise_and, return an array of the picture's shape, but for a
#            picture of one pixel, which is taken for the number and the number for the picture: the result then has the
#            shape (4, 1) of a cv::Scalar. cv2.add, subtract, multiply and absdiff return the shape (1, 1).
# Seen:      max (4, 1), min (4, 1), bitwise_and (4, 1), add (1, 1), absdiff (1, 1); all (1, 2) of a picture of two pixels.
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np

names = ("max", "min", "bitwise_and", "add", "absdiff")
shapes = {
    width: {name: getattr(cv2, name)(np.full((1, width), 200, np.uint8), 102).shape for name in names}
    for width in (1, 2)
}
print(shapes)
column = dict.fromkeys(("max", "min", "bitwise_and"), (4, 1))
assert shapes == {1: column | {"add": (1, 1), "absdiff": (1, 1)}, 2: dict.fromkeys(names, (1, 2))}, "OpenCV has changed"
PYTHON
