"""A folder of pictures to Parquet files by Daft: two processes.

python docs/recipes/fleets/daft_frame.py FOLDER OUT
"""

import sys

import daft

from onnxcam import models
from onnxcam.fleet import Explain
from onnxcam.fleet.daft import explain_frame

MODEL = models.path(models.MODEL)

if __name__ == "__main__":
    pictures = daft.from_glob_path(f"{sys.argv[1]}/*").select("path")
    pictures = pictures.with_column("bytes", pictures["path"].download(on_error="null"))
    explained = explain_frame(pictures, Explain(MODEL, when="confidence < 0.6"), workers=2)
    explained.write_parquet(sys.argv[2])
    print(daft.read_parquet(f"{sys.argv[2]}/*").count_rows(), "rows")
