"""Going back through a residual network stays in the layout that ONNX Runtime's convolutions have on a CPU."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from onnxcam.exporters import pytorch
from onnxcam.network.names import GRADIENT, SCORES, TARGET
from onnxcam.network.network import Network
from onnxcam.network.subgraphs import input_gradient

BLOCKS = 4


class Block(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, 1, 1)
        )
        self.side = nn.Conv2d(channels, channels, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.main(x) + self.side(x)).relu()


@pytest.fixture(scope="module")
def residual() -> nn.Module:
    torch.manual_seed(3)
    stages = [Block(32, 2 if place == BLOCKS // 2 else 1) for place in range(BLOCKS)]
    start = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU())
    return nn.Sequential(start, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)).eval()


@pytest.mark.slow
def test_the_gradient_is_not_reordered_block_by_block(residual: nn.Module, tmp_path: Path) -> None:
    picture = torch.randn(1, 3, 16, 16)
    network = Network(pytorch.export(residual, picture, None, verify=False))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(
        input_gradient(network).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = session.run([SCORES, GRADIENT], {network.picture.name: picture.numpy(), TARGET: np.array([2])})
    leaf = picture.clone().requires_grad_()
    scores = residual(leaf)
    (expected,) = torch.autograd.grad(scores[0, 2], leaf)
    np.testing.assert_allclose(outputs[0], scores.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(outputs[1] - expected.numpy()) <= 1e-5 * np.linalg.norm(expected.numpy())

    ops = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    if not ops["ReorderOutput"]:
        pytest.skip("this processor has no blocked layout")
    # into pool and head, out of both strided convolutions, at the picture: not one per block
    assert ops["ReorderOutput"] <= 5 and ops["ReorderInput"] <= 5, ops
