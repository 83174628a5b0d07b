#!/usr/bin/env bash
# pyarrow makes a ChunkedArray, not an Array, of a pandas column of NaN alone where its type is string.
#
# Versions:  pyarrow 26.0.1, pandas 2.3.3, Python 3.11
# Behaviour: pyarrow.Array.from_pandas(pandas.Series([nan, nan]), type=pyarrow.string()) returns a ChunkedArray;
#            with one text among the values, or another type, an Array. RecordBatch.from_arrays refuses a ChunkedArray, so
#            a conversion column by column fails for the batches in which a text is missing in every row.
# Seen:      ChunkedArray for [nan, nan] as string, StringArray for ["a", nan], DoubleArray for [nan, nan] as float64.
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1 pandas==2.3.3
"$folder/venv/bin/python" - <<'PYTHON'
import pandas as pd
import pyarrow as pa

nan = float("nan")
cases = (([nan, nan], pa.string()), (["a", nan], pa.string()), ([nan, nan], pa.float64()))
kinds = [type(pa.Array.from_pandas(pd.Series(values), type=kind)).__name__ for values, kind in cases]
print(kinds)
assert kinds == ["ChunkedArray", "StringArray", "DoubleArray"], "pyarrow has changed"
PYTHON
