"""Daft's `@daft.cls` with a batch method, by `explain_frame`, and `onnxcam.fleet.daft.run`."""

from __future__ import annotations

import json

import daft

from onnxcam.fleet import Explain
from onnxcam.fleet.daft import explain_frame, run
from tests.fleet.engines import tables

if __name__ == "__main__":
    frame = daft.from_pydict({"bytes": tables.PICTURES, "id": list(range(len(tables.PICTURES)))})
    explain = Explain(tables.MODEL, **tables.SETTINGS)
    tables.write("frame", explain_frame(frame, explain, workers=2, batch_size=tables.BATCH).to_pylist())
    killing = tables.Killed(tables.MODEL, **tables.SETTINGS)
    tables.write("run", [row for table in run(killing, tables.batches(), workers=2) for row in table.to_pylist()])
    print(json.dumps({"killed": [tables.killed()], "version": daft.__version__}))
