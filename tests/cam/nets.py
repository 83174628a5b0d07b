"""Random PyTorch networks and their ONNX files, for methods to be compared on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from onnxcam.exporters import pytorch


class Convolutions(nn.Module):
    """Three convolutions with ReLUs and a head; `deep`: two linear layers with a ReLU, after pooling to 2 x 3."""

    def __init__(self, deep: bool = False, smooth: bool = False, classes: int = 6) -> None:
        super().__init__()
        active = nn.SiLU if smooth else nn.ReLU
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), active())
        self.second = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), active())
        self.third = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), active())
        if deep:
            self.head = nn.Sequential(
                nn.AvgPool2d((4, 4)), nn.Flatten(), nn.Linear(16 * 2 * 3, 20), active(), nn.Linear(20, classes)
            )
        else:
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.third(self.second(self.first(x))))


def net(seed: int = 0, **options: Any) -> Convolutions:
    """A network of larger weights than PyTorch's own, so that scores differ."""
    torch.manual_seed(seed)
    network = Convolutions(**options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.7)
    return network.eval()


def pictures(rows: int = 3, seed: int = 1) -> np.ndarray:
    """float32 `[rows, 3, 16, 24]`: not square."""
    return np.random.default_rng(seed).normal(size=(rows, 3, 16, 24)).astype(np.float32)


def exported(module: nn.Module, layers: tuple[str, ...] = ("third",), methods: tuple[str, ...] = ("gradcam",)) -> bytes:
    """The explainable file of a network."""
    explainable = pytorch.export(
        module, torch.from_numpy(pictures(2)), None, layers=list(layers), methods=methods, verify=False
    )
    assert isinstance(explainable, onnx.ModelProto)
    return explainable.SerializeToString()
