"""The PyTorch twin of `tiny_cnn`, from its initializers: an oracle that shares no code with onnxcam."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def build(model: onnx.ModelProto) -> Any:
    """A module of the same arithmetic: `relu1` and `relu2`, then the mean over positions and a linear layer."""
    torch = pytest.importorskip("torch")
    constants = {name: torch.from_numpy(value.copy()) for name, value in weights(model).items()}

    class Twin(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            width, channels = constants["w1"].shape[:2]
            self.conv1 = torch.nn.Conv2d(channels, width, 3, padding=1)
            self.relu1 = torch.nn.ReLU()
            self.conv2 = torch.nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)
            self.relu2 = torch.nn.ReLU()
            self.head = torch.nn.Linear(*constants["w3"].shape)
            for place, weight, bias in ((self.conv1, "w1", "b1"), (self.conv2, "w2", "b2")):
                place.weight.data, place.bias.data = constants[weight], constants[bias]
            self.head.weight.data, self.head.bias.data = constants["w3"].T.contiguous(), constants["b3"]
            self.flatten = constants["w3"].shape[0] != 2 * width

        def forward(self, x: Any) -> Any:
            y = self.relu2(self.conv2(self.relu1(self.conv1(x))))
            return self.head(y.flatten(1) if self.flatten else y.mean((2, 3)))

    return Twin().eval()


def gradients(
    model: onnx.ModelProto, batch: np.ndarray, target: np.ndarray, layer: str = "relu2", sign: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, activations and gradients of the twin at one layer, by PyTorch's autograd in float64."""
    torch = pytest.importorskip("torch")
    module = build(model).double()
    values: list[Any] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        output.retain_grad()
        values.append(output)

    getattr(module, layer).register_forward_hook(keep)
    logits = module(torch.from_numpy(batch.astype(np.float64)))
    selected = logits[torch.arange(len(batch)), torch.from_numpy(np.asarray(target))]
    (selected if sign is None else selected * torch.from_numpy(sign)).sum().backward()
    return logits.detach().numpy(), values[0].detach().numpy(), values[0].grad.numpy()
