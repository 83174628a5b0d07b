"""Twenty small PyTorch classifiers, each with what the architecture it is named after is known for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, CLASSES = 16, 6


class Added(nn.Module):  # type: ignore[misc]
    """The sum of several branches of one value, then an activation."""

    def __init__(self, *branches: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.branches, self.after = nn.ModuleList(branches), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(functools.reduce(torch.add, [branch(x) for branch in self.branches]))


class Joined(nn.Module):  # type: ignore[misc]
    """Several branches of one value, their channels one behind the other."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Gated(nn.Module):  # type: ignore[misc]
    """`gate(x) * body(x) + (1 - gate(x)) * x` of a highway network, or `gate(x) * x` of squeeze and excitation."""

    def __init__(self, gate: nn.Module, body: nn.Module | None = None) -> None:
        super().__init__()
        self.gate, self.body = gate, body

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        return gate * x if self.body is None else gate * self.body(x) + (1 - gate) * x


class Applied(nn.Module):  # type: ignore[misc]
    """A function of tensors as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Hierarchy(nn.Module):  # type: ignore[misc]
    """Res2Net: groups of channels, each convolved together with the result of the group before."""

    def __init__(self, width: int, groups: int = 3) -> None:
        super().__init__()
        self.parts = nn.ModuleList(conv(width, width) for _ in range(groups - 1))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = x.chunk(len(self.parts) + 1, 1)
        results = [first]
        for part, group in zip(self.parts, others, strict=True):
            results.append(part(group + results[-1]))
        return torch.cat(results, 1)


class Attention(nn.Module):  # type: ignore[misc]
    """Self-attention of two heads, with its norm and its residual sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class Tokens(nn.Module):  # type: ignore[misc]
    """Patches of 4 x 4 pixels as tokens, each with its position; with a class token in front or without."""

    def __init__(self, width: int, with_class: bool) -> None:
        super().__init__()
        count = (SIDE // 4) ** 2 + with_class
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, count, width))
        self.front = nn.Parameter(torch.randn(1, 1, width)) if with_class else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.front is not None:
            x = torch.cat([self.front.expand(x.shape[0], -1, -1), x], 1)
        return x + self.positions


class Mixed(nn.Module):  # type: ignore[misc]
    """MLP-Mixer: a network over the tokens of each channel."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(count, 2 * count), nn.GELU(), nn.Linear(2 * count, count))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x).transpose(1, 2)).transpose(1, 2)


class Shaped(nn.Module):  # type: ignore[misc]
    """U-Net: down, up again by interpolation, joined with what was before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.deep = block(3, width), block(width, width, 2)
        self.up = block(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        coarse = F.interpolate(self.deep(fine), scale_factor=2.0, mode="nearest")
        return self.up(torch.cat([coarse, fine], 1))


class Pyramid(nn.Module):  # type: ignore[misc]
    """FPN: the maps of two scales, the coarser one enlarged and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = block(3, width, 2), block(width, width, 2)
        self.side, self.top = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.first(x)
        top = self.top(self.second(fine))
        return self.side(fine) + F.interpolate(top, scale_factor=2.0, mode="bilinear", align_corners=False)


class Pooled(nn.Module):  # type: ignore[misc]
    """Attention pooling: the mean over the places, weighted by a softmax over them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weight(x).flatten(2).softmax(-1)
        return (x.flatten(2) * weights).sum(-1)


def conv(channels: int, width: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size where its stride is 1."""
    padding = options.get("dilation", 1) * (kernel // 2)
    return nn.Conv2d(channels, width, kernel, padding=padding, **options)


def block(
    channels: int, width: int, stride: int = 1, kernel: int = 3, active: type[nn.Module] = nn.ReLU, **options: Any
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    return nn.Sequential(conv(channels, width, kernel, stride=stride, **options), nn.BatchNorm2d(width), active())


def mean(width: int) -> list[nn.Module]:
    """The usual head."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]


def squeeze(width: int) -> Gated:
    """Squeeze and excitation."""
    inner = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.SiLU(), nn.Conv2d(4, width, 1), nn.Sigmoid()]
    return Gated(nn.Sequential(*inner))


def shuffled(x: Tensor) -> Tensor:
    """ShuffleNet's channels of two groups, dealt in turn."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _inverted(width: int, active: type[nn.Module], *between: nn.Module) -> Added:
    """An inverted residual block."""
    wide = 2 * width
    body = [block(width, wide, kernel=1, active=active), block(wide, wide, groups=wide, active=active), *between]
    return Added(nn.Sequential(*body, conv(wide, width, 1), nn.BatchNorm2d(width)), nn.Identity())


def _convnext(width: int) -> Added:
    tokens = [nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)]
    last, first = (Applied(lambda x, order=order: x.permute(order)) for order in ((0, 2, 3, 1), (0, 3, 1, 2)))
    return Added(nn.Sequential(conv(width, width, 7, groups=width), last, *tokens, first), nn.Identity())


def _mlp(width: int) -> Added:
    body = [nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)]
    return Added(nn.Sequential(*body), nn.Identity())


def _token_mean(width: int) -> list[nn.Module]:
    return [nn.LayerNorm(width), Applied(lambda x: x.mean(1)), nn.Linear(width, CLASSES)]


def _networks() -> dict[str, Callable[[], list[nn.Module]]]:
    """The parts of each network, by its name."""
    norm = nn.BatchNorm2d
    return {
        "vgg": lambda: [
            conv(3, 8), nn.ReLU(), nn.MaxPool2d(2), conv(8, 12), nn.ReLU(), conv(12, 12), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, CLASSES),
        ],
        "resnet": lambda: [
            block(3, 8), nn.MaxPool2d(3, 2, 1),
            Added(nn.Sequential(block(8, 8), conv(8, 8), norm(8)), nn.Identity(), after=nn.ReLU()),
            Added(nn.Sequential(block(8, 12, 2), conv(12, 12), norm(12)), conv(8, 12, 1, stride=2), after=nn.ReLU()),
            *mean(12),
        ],
        "resnet before activation": lambda: [
            conv(3, 8), Added(nn.Sequential(norm(8), nn.ReLU(), conv(8, 8)), nn.Identity()),
            Added(nn.Sequential(norm(8), nn.ReLU(), conv(8, 8)), nn.Identity()), norm(8), nn.ReLU(), *mean(8),
        ],
        "resnext": lambda: [
            block(3, 8, 2),
            Added(
                nn.Sequential(block(8, 16, kernel=1), block(16, 16, groups=4), conv(16, 8, 1), norm(8)), nn.Identity(),
                after=nn.ReLU(),
            ),
            *mean(8),
        ],
        "densenet": lambda: [
            conv(3, 8),
            *(Joined(nn.Identity(), nn.Sequential(norm(8 + 4 * k), nn.ReLU(), conv(8 + 4 * k, 4))) for k in range(3)),
            norm(20), nn.ReLU(), conv(20, 10, 1), nn.AvgPool2d(2), norm(10), nn.ReLU(), *mean(10),
        ],
        "inception": lambda: [
            block(3, 8, 2),
            Joined(block(8, 4, kernel=1), nn.Sequential(block(8, 4, kernel=1), block(4, 4)), block(8, 4, kernel=5),
                   nn.Sequential(nn.MaxPool2d(3, 1, 1), block(8, 4, kernel=1))),
            *mean(16),
        ],
        "squeezenet": lambda: [
            conv(3, 12, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), conv(12, 6, 1), nn.ReLU(),
            Joined(nn.Sequential(conv(6, 6, 1), nn.ReLU()), nn.Sequential(conv(6, 6), nn.ReLU())),
            conv(12, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ],
        "mobilenet": lambda: [
            block(3, 8, 2, active=nn.ReLU6), block(8, 8, groups=8, active=nn.ReLU6), block(8, 12, kernel=1), *mean(12),
        ],
        "mobilenet v3": lambda: [
            block(3, 8, 2, active=nn.Hardswish), _inverted(8, nn.Hardswish, squeeze(16)), _inverted(8, nn.Hardswish),
            *mean(8),
        ],
        "efficientnet": lambda: [block(3, 8, 2, active=nn.SiLU), _inverted(8, nn.SiLU, squeeze(16)), *mean(8)],
        "shufflenet": lambda: [
            block(3, 8, 2), block(8, 12, kernel=1, groups=2), Applied(shuffled), block(12, 12, groups=12),
            block(12, 12, kernel=1, groups=2), *mean(12),
        ],
        "res2net": lambda: [block(3, 12, 2), Added(Hierarchy(4), nn.Identity(), after=nn.ReLU()), *mean(12)],
        "convnext": lambda: [nn.Conv2d(3, 8, 2, 2), _convnext(8), _convnext(8), *mean(8)],
        "repvgg": lambda: [
            *(Added(nn.Sequential(conv(c, 8), norm(8)), nn.Sequential(conv(c, 8, 1), norm(8)), after=nn.ReLU())
              for c in (3, 8)),
            Added(nn.Sequential(conv(8, 8), norm(8)), norm(8), after=nn.ReLU()), *mean(8),
        ],
        "u-net": lambda: [Shaped(8), nn.Conv2d(8, 8, 1), nn.LeakyReLU(0.1), *mean(8)],
        "pyramid": lambda: [Pyramid(8), nn.GroupNorm(2, 8), nn.ELU(), conv(8, 8), *mean(8)],
        "dilated": lambda: [
            block(3, 8), Joined(*(conv(8, 4, dilation=d) for d in (1, 2, 3))), nn.PReLU(12), conv(12, 8, 1),
            nn.Softplus(), Pooled(8), nn.Linear(8, CLASSES),
        ],
        "highway": lambda: [
            conv(3, 8, stride=2), nn.InstanceNorm2d(8, affine=True),
            Gated(nn.Sequential(conv(8, 8), nn.Sigmoid()), nn.Sequential(conv(8, 8), nn.Mish())),
            Joined(nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)), nn.Flatten(), nn.Linear(16, CLASSES),
        ],
        "vision transformer": lambda: [
            Tokens(12, True), Attention(12), _mlp(12), Attention(12), _mlp(12), nn.LayerNorm(12),
            Applied(lambda x: x[:, 0]), nn.Linear(12, CLASSES),
        ],
        "mixer": lambda: [Tokens(12, False), Mixed(16, 12), _mlp(12), Mixed(16, 12), _mlp(12), *_token_mean(12)],
    }  # fmt: skip


NETWORKS = _networks()


def build(name: str, seed: int) -> nn.Sequential:
    """One of the networks with random weights, in eval mode, its norms neither trivial nor absurd."""
    torch.manual_seed(seed)
    network = nn.Sequential(*NETWORKS[name]()).eval()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                for values, low, high in (
                    (part.running_mean, -0.2, 0.2), (part.running_var, 0.5, 1.5),
                    (part.weight, 0.6, 1.6), (part.bias, -0.2, 0.2),
                ):  # fmt: skip
                    values.uniform_(low, high)
    return network


def layers(network: nn.Sequential) -> list[str]:
    """The modules that return a map or all tokens, by name: each may be explained.

    An Identity makes no value: what it returns in front of a branch is the other branches' value too.
    """
    names: list[str] = []

    def see(name: str, before: tuple[Tensor, ...], value: Tensor) -> None:
        if _spatial(value) and value is not before[0]:
            names.append(name)

    handles = [
        part.register_forward_hook(lambda _, before, value, name=name: see(name, before, value))
        for name, part in network.named_modules()
        if name
    ]
    with torch.no_grad():
        network(torch.randn(1, 3, SIDE, SIDE))
    for handle in handles:
        handle.remove()
    return names


def _spatial(value: Tensor) -> bool:
    """Whether a value is a map of several places, or tokens at the patches' places."""
    if value.ndim == 3:
        return value.shape[1] in ((SIDE // 4) ** 2, (SIDE // 4) ** 2 + 1)
    return value.ndim == 4 and min(value.shape[2:]) > 1
