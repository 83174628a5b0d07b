"""The server that is compared with: starlette and ONNX Runtime, and nothing that a prediction does not need.

    python benchmarks/serving/bare.py MODEL.onnx LABELS.json PORT [--threads 0] [--decode opencv|pillow]

It takes the encoded picture as the body and answers with the fields of `POST /predict_with_gradcam` where nothing is
explained. `--decode opencv` decodes with OpenCV and resamples by onnxcam's own code, which is the fastest that gives
the pixels of training; `--decode pillow` is what people write.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

SHORTER, SIDE = 256, 224
MEAN, STD = np.float32(127), np.float32(128)


def resized(height: int, width: int) -> tuple[int, int]:
    """Height and width with the shorter side of `SHORTER`, the longer one rounded down."""
    if height <= width:
        return SHORTER, int(SHORTER * width / height)
    return int(SHORTER * height / width), SHORTER


def by_opencv() -> Callable[[bytes], np.ndarray]:
    """Bytes to uint8 `[224, 224, 3]`, the cropped part alone resampled."""
    import cv2

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
    from onnxcam.image.resample import resize

    cv2.setNumThreads(1)

    def read(data: bytes) -> np.ndarray:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        size = resized(*pixels.shape[:2])
        top, left = (round((side - SIDE) / 2) for side in size)
        return resize(pixels, size, "bicubic", True, (slice(top, top + SIDE), slice(left, left + SIDE)))

    return read


def by_pillow() -> Callable[[bytes], np.ndarray]:
    """Bytes to uint8 `[224, 224, 3]`."""
    from PIL import Image, ImageOps

    def read(data: bytes) -> np.ndarray:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        height, width = resized(picture.height, picture.width)
        top, left = round((height - SIDE) / 2), round((width - SIDE) / 2)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)))

    return read


class Classifier:
    """The plain model in a session."""

    def __init__(self, model: str, labels: list[str], threads: int, read: Callable[[bytes], np.ndarray]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if threads:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self.labels, self.read = labels, read

    def __call__(self, data: bytes, top: int = 5) -> bytes:
        """The answer to a request, as JSON."""
        pixels = self.read(data)
        tensor = np.ascontiguousarray(((pixels.astype(np.float32) - MEAN) / STD).transpose(2, 0, 1)[None])
        scores = self.session.run(None, {self.input: tensor})[0][0]
        odds = np.exp(scores - scores.max())
        odds /= odds.sum()
        best = np.argpartition(-odds, top)[:top]
        best = best[np.argsort(-odds[best])]
        predictions: list[dict[str, Any]] = [
            {
                "rank": rank,
                "class_name": self.labels[index],
                "class_index": index,
                "confidence": float(odds[index]),
            }
            for rank, index in enumerate(best.tolist(), 1)
        ]
        return orjson.dumps(
            {
                "prediction": predictions[0]["class_name"],
                "confidence": predictions[0]["confidence"],
                "top_predictions": predictions,
                "gradcam_heatmap": None,
                "gradcam_overlay": None,
                "fired": False,
                "layer": None,
                "method": None,
                "statistics": None,
                "warnings": [],
            }
        )


def application(classify: Classifier) -> Starlette:
    """The app: one route, the work in a thread of starlette's pool."""

    async def predict(request: Request) -> Response:
        data = await request.body()
        return Response(await run_in_threadpool(classify, data), media_type="application/json")

    return Starlette(routes=[Route("/predict_with_gradcam", predict, methods=["POST"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("labels", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--threads", type=int, default=0, help="of a run; 0 is ONNX Runtime's default")
    parser.add_argument("--decode", choices=("opencv", "pillow"), default="opencv")
    arguments = parser.parse_args()
    read = by_opencv() if arguments.decode == "opencv" else by_pillow()
    labels = json.loads(arguments.labels.read_text("utf-8"))
    app = application(Classifier(arguments.model, labels, arguments.threads, read))
    uvicorn.run(app, host="127.0.0.1", port=arguments.port)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
