#!/usr/bin/env bash
# OpenCV multiplies the colours of a TIFF by its unassociated alpha at 8 bits per channel, and not at 16.
#
# Versions:  opencv-python-headless 5.0.0.93, tifffile 2026.3.3, NumPy 2.4.6, Python 3.11
# Behaviour: cv2.imdecode(data, cv2.IMREAD_UNCHANGED) of an RGBA TIFF whose ExtraSamples says unassociated alpha (the
#            colours are stored as they are) returns other colours than stored where it has 8 bits per channel: libtiff's
#            RGBA interface has multiplied them. The same picture with 16 bits per channel comes back as stored.
# Seen:      colours (200, 100, 50) under alpha 51 of 255 are read as (40, 20, 10) at 8 bits, as stored at 16.
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 tifffile==2026.3.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io

import cv2
import numpy as np
import tifffile

pixel = np.array([200, 100, 50, 51])
read = {}
for kind, factor in ((np.uint8, 1), (np.uint16, 257)):
    stored = np.tile((pixel * factor).astype(kind), (4, 5, 1))
    stream = io.BytesIO()
    tifffile.imwrite(stream, stored, photometric="rgb", extrasamples=["unassalpha"])
    pixels = cv2.imdecode(np.frombuffer(stream.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)
    read[np.dtype(kind).name] = (pixels[0, 0, [2, 1, 0]] // factor).tolist()
print(read)
assert read == {"uint8": [40, 20, 10], "uint16": [200, 100, 50]}, "OpenCV has changed"
PYTHON
