#!/usr/bin/env bash
# OpenCV's NMSBoxesBatched lets boxes of different classes suppress each other where coordinates are negative.
#
# Versions:  opencv-python-headless 5.0.0.93, NumPy 2.4.6, Python 3.11
# Behaviour: cv2.dnn.NMSBoxesBatched suppresses within each class only. Boxes with coordinates about the picture's centre
#            are suppressed across classes, without a word: the shift that keeps classes apart seems to follow from the
#            largest coordinate alone. NMSBoxes of each class, and the same boxes moved to positive coordinates, keep both.
# Seen:      [-100, -100, 105, 105] of class 0 and [-94, -94, 105, 105] of class 1: one is left; of each class alone, and
#            100 pixels further right and down: both are.
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import cv2

scores, classes = [0.9, 0.8], [0, 1]
boxes = [[-100.0, -100.0, 105.0, 105.0], [-94.0, -94.0, 105.0, 105.0]]  # left, top, width, height
positive = [[left + 100, top + 100, width, height] for left, top, width, height in boxes]
batched = [int(index) for index in cv2.dnn.NMSBoxesBatched(boxes, scores, classes, 0.1, 0.5)]
moved = [int(index) for index in cv2.dnn.NMSBoxesBatched(positive, scores, classes, 0.1, 0.5)]
alone = [len(cv2.dnn.NMSBoxes([box], [score], 0.1, 0.5)) for box, score in zip(boxes, scores)]
print("batched", batched, "at positive coordinates", moved, "boxes left of each class alone", alone)
assert moved == [0, 1] and alone == [1, 1], "boxes of different classes are kept elsewhere"
assert batched == [0], "OpenCV has changed"
PYTHON
