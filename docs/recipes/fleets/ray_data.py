"""A folder of pictures to Parquet files by Ray Data: actors of one core each, all cores but one.

python docs/recipes/fleets/ray_data.py FOLDER OUT
"""

import os
import sys

import ray

from onnxcam import models
from onnxcam.fleet import Explain

MODEL = models.path(models.MODEL)  # a path that every worker has; or pass bytes, which travel with the callable

ray.init(include_dashboard=False)
pictures = ray.data.read_binary_files(sys.argv[1], include_paths=True)  # columns `bytes` and `path`
explained = pictures.map_batches(
    Explain,
    fn_constructor_args=(MODEL,),
    fn_constructor_kwargs={"when": "confidence < 0.6"},
    # a core stays free: reading and writing wait for ever where actors have all of them
    compute=ray.data.ActorPoolStrategy(size=max(1, (os.cpu_count() or 2) - 1)),
    num_cpus=1,  # becomes OMP_NUM_THREADS, which Explain reads; num_gpus=1 instead gives each actor a GPU of its own
    batch_size=64,
    batch_format="pyarrow",
)
explained.write_parquet(sys.argv[2])
print(ray.data.read_parquet(sys.argv[2]).count(), "rows")
