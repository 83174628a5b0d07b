"""PyTorch predicts, onnxcam explains: the model is exported once, the decorator sees what `predict` returns.

python docs/recipes/pytorch_model.py FOLDER
"""

import sys

import torch

import onnxcam
from onnxcam.exporters import pytorch

torch.manual_seed(1)
net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 16, 3, stride=2, padding=1),
    torch.nn.ReLU(),
    torch.nn.Conv2d(16, 32, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.AdaptiveAvgPool2d(1),
    torch.nn.Flatten(),
    torch.nn.Linear(32, 4),
).eval()

model = pytorch.export(net, torch.randn(2, 3, 64, 64), None, layers=["3"], labels=["ant", "bee", "cow", "doe"])
monitor = onnxcam.Monitor(model, sink=sys.argv[1], when="confidence < 0.9", rate=None)


@monitor.watch(image=0)
def predict(batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return net(batch)


for _ in range(5):
    predict(torch.rand(4, 3, 64, 64))
monitor.close(30)
counts = monitor.stats()
print(f"{counts['seen']} rows of PyTorch seen, {counts['explained']} explained in ONNX Runtime")
