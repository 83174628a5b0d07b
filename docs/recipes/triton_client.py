"""With Triton: the client has tensor and scores, so the explanation is computed there, not on the server.

python docs/recipes/triton_client.py FOLDER http://localhost:8000 MODEL_NAME

Speaks the KServe v2 protocol over HTTP with the standard library; with `tritonclient` only `infer` changes.
"""

import json
import sys
import urllib.request

import numpy as np

import onnxcam
from onnxcam import models

folder, server, name = sys.argv[1:]
MODEL = models.path(models.MODEL)  # the explainable twin of the model that Triton serves
explainer = onnxcam.Explainer(MODEL, providers=["CPUExecutionProvider"])  # here only to prepare pictures
monitor = onnxcam.Monitor(MODEL, sink=folder, when="confidence < 0.6", baseline_sample=1.0)


@monitor.watch(image="batch")
def infer(batch: np.ndarray) -> np.ndarray:
    tensor = {"name": "input", "shape": list(batch.shape), "datatype": "FP32", "data": batch.ravel().tolist()}
    request = {"inputs": [tensor], "outputs": [{"name": "logits"}]}
    call = urllib.request.Request(f"{server}/v2/models/{name}/infer", json.dumps(request).encode())
    with urllib.request.urlopen(call, timeout=30) as answer:
        output = json.load(answer)["outputs"][0]
    return np.array(output["data"], np.float32).reshape(output["shape"])


for picture in ("cat.png", "coffee.png"):
    _, tensor, _ = explainer.prepare(models.path(picture))
    best = int(infer(tensor)[0].argmax())
    print(f"{picture}: {explainer.labels[best]}")
monitor.close(30)
print(f"explained {monitor.stats()['explained']} of {monitor.stats()['seen']}")
