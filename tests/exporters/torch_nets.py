"""Small PyTorch classifiers, each with one thing that exporters get wrong."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = namedtuple("Pair", ["features", "extra"])


class InPlace(nn.Module):  # type: ignore[misc]
    """bn's output is edited in place by the ReLU that follows it; the residual add is in place too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.deep = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        y = self.deep(x)
        y += x
        y = self.relu(y)
        return self.head(F.avg_pool2d(y, 2).square().mean((2, 3)))


class Reused(nn.Module):  # type: ignore[misc]
    """One block called three times, its convolution's weight shared with a second, grouped path."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.ReLU())
        self.twin = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.twin.weight = self.block[0].weight
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = x + self.block(x)
        return self.head(F.max_pool2d(self.twin(x), 2).flatten(2).square().mean(2))


class Structured(nn.Module):  # type: ignore[misc]
    """Blocks that return a tuple, a dict and a named tuple; an ending Softmax; two outputs, by name."""

    def __init__(self) -> None:
        super().__init__()

        class Tupled(nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 6, 3)

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                y = self.conv(x)
                return y, y.mean()

        class Mapped(nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(6, 6, 3)

            def forward(self, x: Tensor) -> dict[str, Any]:
                y = F.gelu(self.conv(x))
                return {"maps": [y, x], "extra": x}

        class Named(nn.Module):  # type: ignore[misc]
            def forward(self, x: Tensor) -> Pair:
                return Pair(x.sigmoid() * x, x)

        self.tupled, self.mapped, self.named = Tupled(), Mapped(), Named()
        self.head = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x, mean = self.tupled(x)
        x = self.mapped(x)["maps"][0] + mean * 0
        x = self.named(x).features
        return {"probabilities": self.head(x.mean((2, 3))).softmax(-1), "pooled": x.mean((1, 2, 3))}


class Functional(nn.Module):  # type: ignore[misc]
    """The default layer's value, an activation after a residual add, is returned by no module."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        x = F.relu(self.two(x) + x)
        return self.head(F.avg_pool2d(x, 2).square().mean((2, 3)))


class Binary(nn.Module):  # type: ignore[misc]
    """One sigmoid output."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh())
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.head(F.avg_pool2d(self.features(x), 2).square().mean((2, 3))))


def seeded(net: nn.Module) -> nn.Module:
    """The same weights every time, and batch norm statistics that matter."""
    generator = torch.Generator().manual_seed(7)
    for parameter in net.parameters():
        with torch.no_grad():
            parameter.normal_(0.0, 0.4, generator=generator)
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5, generator=generator)
    return net


def make() -> nn.Module:
    """What `package.module:callable` names in tests."""
    return seeded(Functional())


def make_with_inputs() -> tuple[nn.Module, Tensor]:
    return seeded(Binary()), torch.zeros(1, 1, 9, 9)


def make_nothing() -> int:
    return 3


def needs_argument(size: int) -> nn.Module:
    return nn.Conv2d(size, size, 1)
