"""The server that people write today: FastAPI and pytorch-grad-cam, as in that package's own examples.

    python benchmarks/serving/grad_cam.py PORT

EfficientNet-Lite0 of timm with random weights, which change nothing about the time; the picture is the body, heatmap
and overlay come back at its own size as PNG in data URLs.
"""

from __future__ import annotations

import base64
import io
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import torch
import uvicorn
from fastapi import Body, FastAPI
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.support.torchvision_stub import import_torchvision

import_torchvision()

import timm  # noqa: E402
from pytorch_grad_cam import GradCAM  # noqa: E402
from pytorch_grad_cam.utils.image import show_cam_on_image  # noqa: E402

app = FastAPI()
torch.manual_seed(1234)
model = timm.create_model("efficientnet_lite0", pretrained=False).eval()
cam = GradCAM(model=model, target_layers=[model.bn2])
lock = threading.Lock()  # its hooks keep what they saw in the object: one request at a time


def data_url(rgb: np.ndarray) -> str:
    """A picture as PNG in a data URL."""
    return "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()).decode()


@app.post("/predict_with_gradcam")
def predict_with_gradcam(data: bytes = Body(media_type="image/jpeg")) -> dict[str, object]:
    """Explain the best class."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 256 / min(picture.size)
    small = picture.resize((int(picture.width * scale), int(picture.height * scale)), Image.Resampling.BICUBIC)
    top, left = (small.height - 224) // 2, (small.width - 224) // 2
    pixels = np.asarray(small.crop((left, top, left + 224, top + 224)), np.float32)
    tensor = torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None].contiguous()
    with lock:
        heatmap = cam(input_tensor=tensor, targets=None)[0]
        odds = cam.outputs.detach()[0].softmax(dim=0)
    whole = np.zeros((small.height, small.width), np.float32)
    whole[top : top + 224, left : left + 224] = heatmap
    whole = cv2.resize(whole, picture.size)
    best = odds.topk(5)
    predictions = [
        {"rank": rank, "class_name": str(index), "class_index": index, "confidence": confidence}
        for rank, (confidence, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), 1)
    ]
    colors = cv2.applyColorMap((whole * 255).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    return {
        "prediction": predictions[0]["class_name"],
        "confidence": predictions[0]["confidence"],
        "top_predictions": predictions,
        "gradcam_heatmap": data_url(colors),
        "gradcam_overlay": data_url(show_cam_on_image(np.float32(picture) / 255, whole, use_rgb=True)),
        "fired": True,
        "layer": "bn2",
        "method": "gradcam",
    }


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]))
