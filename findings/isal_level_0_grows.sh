#!/usr/bin/env bash
# ISA-L's compression level 0 makes incompressible bytes a fifth larger; zlib's level 0 stores them.
#
# Versions:  isal 1.9.1 (python-isal), NumPy 2.4.6, Python 3.11
# Behaviour: isal_zlib is made to replace zlib, whose result is at most a thousandth larger than its input. Levels 1 to 3
#            keep to that; level 0 compresses with a fixed code, also where the code is longer than the bytes.
# Seen:      100000 random bytes: isal 122975 at level 0, 100075 to 100077 at levels 1 to 3; zlib 100021 to 100041.
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet isal==1.9.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import zlib

import numpy as np
from isal import isal_zlib

data = np.random.default_rng(0).bytes(100_000)
isal = {level: isal_zlib.compress(data, level) for level in range(4)}
plain = {level: len(zlib.compress(data, level)) for level in range(10)}
print("isal", {level: len(result) for level, result in isal.items()}, "zlib", plain)
assert all(zlib.decompress(result) == data for result in isal.values())
assert max(plain.values()) <= 100_100, "zlib has changed"
assert all(len(isal[level]) <= 100_100 for level in (1, 2, 3)), "levels 1 to 3 grow by a thousandth at most"
assert len(isal[0]) > 115_000, "ISA-L has changed"
PYTHON
