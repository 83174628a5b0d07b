"""PyTorch models whose heads are not a plain layer, Softmax or Sigmoid: exported, and compared with autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

from onnxcam.exporters import pytorch
from tests.support.explainable import manifest_of

pytestmark = [pytest.mark.torch, pytest.mark.slow]

Head = Callable[[Tensor, Tensor], object]


class Network(nn.Module):
    """A convolution, a mean, and a head that gets the outputs of two linear layers."""

    def __init__(self, head: Head, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu = nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU()
        self.first, self.second = nn.Linear(6, classes), nn.Linear(6, classes)
        self.head = head

    def forward(self, x: Tensor) -> object:
        pooled = self.relu(self.conv(x)).mean((2, 3))
        return self.head(4 * self.first(pooled), 4 * self.second(pooled))


def thresholds(z: Tensor, _: Tensor) -> Tensor:
    p = z.sigmoid()
    return torch.where(p < 0.3, p / 0.6, 1 - (1 - p) / 1.4)


@pytest.mark.parametrize(
    ("head", "classes", "entry"),
    [
        (lambda z, u: (z.softmax(1) + u.softmax(1)) / 2, 5, {"kind": "probabilities", "name": "log_probabilities"}),
        (lambda z, u: z.softmax(1).topk(5), 5, {"kind": "logits", "stepped_over": ["TopK", "Softmax"]}),
        (lambda z, u: z.sigmoid().squeeze(1), 1, {"kind": "binary_logit", "stepped_over": ["Squeeze", "Sigmoid"]}),
        (thresholds, 5, {"kind": "multilabel", "probabilities": "probabilities"}),
    ],
    ids=["vote", "topk", "squeezed", "thresholds"],
)
def test_heads_agree_with_autograd(head: Head, classes: int, entry: dict[str, object]) -> None:
    exported = pytorch.export(Network(head, classes), torch.randn(1, 3, 16, 16), None, layers="relu")
    record = manifest_of(exported)
    assert entry.items() <= record["scores"].items()
    assert record["parity"]["samples"] == 4 and record["parity"]["gradients"] <= 1e-3
    assert record["source"]["outputs"][0] == "probabilities"


def test_a_declared_kind_is_exported() -> None:
    exported = pytorch.export(
        Network(lambda z, u: z, 5), torch.randn(1, 3, 16, 16), None, layers="relu", kind="multilabel"
    )
    assert manifest_of(exported)["scores"]["kind"] == "multilabel"
