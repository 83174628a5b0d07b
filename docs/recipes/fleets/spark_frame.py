"""A folder of pictures to Parquet files by Spark: mapInArrow on every core.

python docs/recipes/fleets/spark_frame.py FOLDER OUT
"""

import os
import sys

from pyspark.sql import SparkSession

from onnxcam import models
from onnxcam.fleet import Explain
from onnxcam.fleet.spark import explain_frame

MODEL = models.path(models.MODEL)
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # the workers' interpreter, which needs onnxcam too

spark = (
    SparkSession.builder.master("local[2,4]")  # two cores; a task is tried four times
    .config("spark.ui.enabled", "false")
    .config("spark.sql.execution.arrow.maxRecordsPerBatch", "256")  # pictures in memory at a time, for each core
    .getOrCreate()
)
pictures = spark.read.format("binaryFile").load(sys.argv[1]).select("path", "content")
explained = explain_frame(pictures, Explain(MODEL, when="confidence < 0.6", column="content"))
explained.write.parquet(sys.argv[2])
print(spark.read.parquet(sys.argv[2]).count(), "rows")
