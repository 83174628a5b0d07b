"""Spark's `mapInArrow`, and `onnxcam.fleet.spark.run`."""

from __future__ import annotations

import json
import os
import sys

os.environ["PYSPARK_PYTHON"] = sys.executable

import pyspark
from pyspark.sql import SparkSession

from onnxcam.fleet import Explain
from onnxcam.fleet.spark import explain_frame, run
from tests.fleet.engines import tables

builder = SparkSession.builder.master("local[2,4]").config("spark.ui.enabled", "false")
for name in ("spark.driver.host", "spark.driver.bindAddress"):
    builder = builder.config(name, "127.0.0.1")
session = builder.config("spark.local.dir", str(tables.FOLDER)).getOrCreate()
session.sparkContext.setLogLevel("OFF")
pictures = [(bytearray(data), id) for id, data in enumerate(tables.PICTURES)]
source = session.createDataFrame(pictures, "bytes BINARY, id BIGINT").repartition(4)
explain, killing = (kind(tables.MODEL, **tables.SETTINGS) for kind in (Explain, tables.Killed))


def write(name: str, frame: object) -> None:
    tables.write(name, (row.asDict() for row in frame.collect()))  # type: ignore[attr-defined]


write("mapInArrow", explain_frame(source, explain, batch_size=tables.BATCH))
write("killed", explain_frame(source, killing, batch_size=tables.BATCH))
lost = [tables.killed()]
tables.write("run", [row for table in run(killing, tables.batches()) for row in table.to_pylist()])
lost.append(tables.killed())
print(json.dumps({"killed": lost, "version": pyspark.__version__}))
