"""Ray Data's `map_batches` by actors and by tasks, in three formats of batches, and `onnxcam.fleet.ray.run`."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import ray
import ray.data

from onnxcam.fleet import Explain
from onnxcam.fleet.ray import run
from tests.fleet.engines import tables

ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
source = ray.data.from_items([{"bytes": data, "id": id} for id, data in enumerate(tables.PICTURES)])
pool = partial(dict, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=1)
constructor: dict[str, Any] = {"fn_constructor_args": (tables.MODEL,), "fn_constructor_kwargs": tables.SETTINGS}


def explained(name: str, **arguments: Any) -> None:
    tables.write(name, source.map_batches(**arguments, batch_size=tables.BATCH).take_all())


explained("actors", fn=Explain, **constructor, **pool())
explained("arrow", fn=Explain, **constructor, **pool(batch_format="pyarrow"))
explained("pandas", fn=Explain, **constructor, **pool(batch_format="pandas"))
explained("tasks", fn=Explain(tables.MODEL, **tables.SETTINGS), batch_format="numpy")
explained("killed actor", fn=tables.Killed, **constructor, **pool())
lost = [tables.killed()]
killing = tables.Killed(tables.MODEL, **tables.SETTINGS)
tables.write("run", [row for table in run(killing, tables.batches(), workers=2) for row in table.to_pylist()])
lost.append(tables.killed())
print(json.dumps({"killed": lost, "version": ray.__version__}))
