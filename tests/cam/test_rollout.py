"""Attention rollout and LeGrad, against plain computations in torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from onnxcam.errors import LayerError
from onnxcam.explain.explainer import Explainer
from onnxcam.exporters import pytorch
from tests.support import models
from tests.support.examples import rest_slow

torch = pytest.importorskip("torch")
nn = torch.nn
pytestmark = pytest.mark.torch
CPU = ["CPUExecutionProvider"]


class Block(nn.Module):
    """A pre-norm transformer block; what `look` returns is its attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.look = nn.Softmax(-1)

    def forward(self, x: Any) -> Any:
        n, t, d = x.shape
        q, k, v = self.qkv(self.first(x)).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attention = self.look(q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5)
        x = x + self.out((attention @ v).transpose(1, 2).reshape(n, t, d))
        return x + self.mlp(self.second(x))


class Transformer(nn.Module):
    """A small ViT, with a class token or with the mean over its tokens."""

    def __init__(self, token: bool, classes: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16)) if token else None
        self.position = nn.Parameter(torch.randn(1, 16 + token, 16))
        self.blocks = nn.ModuleList([Block(16, 2) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, classes)

    def read(self, x: Any) -> Any:
        """The scores from the tokens of any block."""
        x = self.norm(x)
        return self.head(x[:, 0] if self.token is not None else x.mean(dim=1))

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        return self.read(x)


@contextlib.contextmanager
def looking(net: Transformer) -> Iterator[list[Any]]:
    """The attention of each block, as it is computed."""
    probabilities: list[Any] = []
    hooks = [
        block.look.register_forward_hook(lambda _, __, output: probabilities.append(output)) for block in net.blocks
    ]
    yield probabilities
    for hook in hooks:
        hook.remove()


def pictures() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module", params=rest_slow([True, False], 0), ids=["class token", "mean"])
def pair(request: pytest.FixtureRequest) -> tuple[Transformer, Explainer]:
    torch.manual_seed(0)
    net = Transformer(request.param)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.6)
    net.eval()
    exported = pytorch.export(net, torch.from_numpy(pictures()[:2]), None, layers=["blocks.1"], verify=False)
    return net, Explainer(exported.SerializeToString(), providers=CPU)


def raw(explainer: Explainer, method: str, target: Any) -> np.ndarray:
    return explainer.attribute(pictures(), target, method, normalize="none", size="layer")


def test_rollout_is_its_formula(pair: tuple[Transformer, Explainer]) -> None:
    net, explainer = pair
    with looking(net) as probabilities:
        net.double()(torch.from_numpy(pictures()).double())
    net.float()
    total = torch.eye(probabilities[0].shape[-1], dtype=torch.float64)
    for attention in probabilities:
        total = (0.5 * attention.mean(1) + 0.5 * torch.eye(attention.shape[-1], dtype=torch.float64)) @ total
    with_token = net.token is not None
    want = (total[:, 0, 1:] if with_token else total.mean(1)).reshape(3, 4, 4).detach().numpy()
    assert np.allclose(raw(explainer, "rollout", None), want, atol=1e-5)
    assert np.array_equal(raw(explainer, "rollout", 1), raw(explainer, "rollout", 2))


def test_legrad_is_its_formula(pair: tuple[Transformer, Explainer]) -> None:
    net, explainer = pair
    classes = [1, 4, 2]
    net.double()
    x = net.patches(torch.from_numpy(pictures()).double()).flatten(2).transpose(1, 2)
    if net.token is not None:
        x = torch.cat([net.token.expand(x.shape[0], -1, -1), x], dim=1)
    x = x + net.position
    total: Any = 0
    with looking(net) as probabilities:
        for block in net.blocks:
            x = block(x)
            score = net.read(x)[range(3), classes].sum()
            (gradient,) = torch.autograd.grad(score, probabilities[-1], retain_graph=True)
            total = total + gradient.clamp(min=0).mean(dim=(1, 2))
    prefix = 1 if net.token is not None else 0
    net.float()
    want = total[:, prefix:].reshape(3, 4, 4).detach().numpy()
    actual = raw(explainer, "legrad", classes)
    assert np.linalg.norm(actual - want) <= 1e-3 * np.linalg.norm(want)
    assert not np.allclose(actual, raw(explainer, "legrad", [0, 0, 0]), atol=1e-4)


@pytest.mark.slow
def test_both_on_the_zoos_own_transformer() -> None:
    from tests.support.torchvision_stub import import_torchvision

    import_torchvision()
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    ).eval()
    nn.init.normal_(net.heads.head.weight)
    exported = pytorch.export(net, torch.from_numpy(pictures()[:2]), None, verify=False)
    explainer = Explainer(exported.SerializeToString(), providers=CPU)
    for method in ("rollout", "legrad"):
        maps = explainer.attribute(pictures(), None, method)
        assert maps.shape == (3, 32, 32) and np.isfinite(maps).all() and maps.max() > 0.9


def test_a_convolutional_network_has_no_attention() -> None:
    explainer = Explainer(models.tiny_cnn(), providers=CPU)
    for method in ("rollout", "legrad"):
        with pytest.raises(LayerError, match=r"no attention was found.*transformers such as ViT"):
            explainer.attribute(pictures(), None, method)
