"""Small transformers of the zoos, random weights: how each is built, and how its own users would explain it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.torchvision_stub import import_torchvision

torch = pytest.importorskip("torch")
nn = torch.nn


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        build: makes it.
        layer: the module that is its default layer.
        layout, grid, prefix: how that layer lies on the picture.
        size: of the picture.
        middle: another layer, from which on everything is differentiated.
    """

    build: Callable[[], Any]
    layer: str
    layout: str
    grid: tuple[int, int]
    prefix: int = 0
    size: tuple[int, int] = (64, 64)
    middle: str = ""

    def fold(self, value: Any) -> Any:
        """The layer's output as `[N, C, h, w]`: what pytorch-grad-cam calls a reshape_transform."""
        if self.layout == "NTC":
            return value[:, self.prefix :].reshape(len(value), *self.grid, -1).permute(0, 3, 1, 2)
        return value.permute(0, 3, 1, 2) if self.layout == "NHWC" else value


def _vision(**options: Any) -> Any:
    import_torchvision()
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=6, **options
    )


def _swin(version: int = 1, window: int = 4) -> Any:
    import_torchvision()
    from torchvision.models.swin_transformer import PatchMerging, PatchMergingV2, SwinTransformer, SwinTransformerBlock
    from torchvision.models.swin_transformer import SwinTransformerBlockV2 as BlockV2

    block, merging = (SwinTransformerBlock, PatchMerging) if version == 1 else (BlockV2, PatchMergingV2)
    return SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [window, window], stochastic_depth_prob=0.0, num_classes=6, block=block,
        downsample_layer=merging,
    )  # fmt: skip


def _maxvit() -> Any:
    import_torchvision()
    from torchvision.models import MaxVit

    return MaxVit((64, 64), 8, 4, [8, 16], [1, 1], 8, 0.0, num_classes=6)


def _timm(name: str, **options: Any) -> Any:
    import_torchvision()
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=6, **options)


def _tokens(name: str, **options: Any) -> Callable[[], Any]:
    return functools.partial(_timm, name, **({"img_size": 64, "depth": 2} | options))


_WINDOWS = {"img_size": 64, "window_size": 4, "depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}
_TINY = "vit_tiny_patch16_224"

CASES: dict[str, Case] = {
    "torchvision ViT": Case(_vision, "encoder.layers.encoder_layer_1.ln_1", "NTC", (4, 4), 1, middle="encoder.dropout"),
    "torchvision Swin": Case(_swin, "norm", "NHWC", (8, 8), middle="features.0"),
    "torchvision Swin V2": Case(functools.partial(_swin, 2), "norm", "NHWC", (8, 8), middle="features.0"),
    "padded windows": Case(functools.partial(_swin, 1, 5), "norm", "NHWC", (8, 8), middle="features.0"),
    "torchvision MaxViT": Case(_maxvit, "blocks.1", "NCHW", (8, 8), middle="stem"),
    "ViT": Case(_tokens(_TINY), "blocks.1.norm1", "NTC", (4, 4), 1, middle="norm_pre"),
    "oblong": Case(_tokens(_TINY, img_size=(48, 80)), "blocks.1.norm1", "NTC", (3, 5), 1, (48, 80)),
    "registers": Case(_tokens(_TINY, reg_tokens=4), "blocks.1.norm1", "NTC", (4, 4), 5),
    "class token, mean of the patches": Case(_tokens(_TINY, global_pool="avg"), "blocks.1", "NTC", (4, 4), 1),
    "mean": Case(_tokens(_TINY, global_pool="avg", class_token=False), "blocks.1", "NTC", (4, 4)),
    "pooled by attention": Case(_tokens(_TINY, global_pool="map", class_token=False), "norm", "NTC", (4, 4)),
    "distilled DeiT": Case(_tokens("deit_tiny_distilled_patch16_224"), "blocks.1.norm1", "NTC", (4, 4), 2),
    "hybrid": Case(_tokens("vit_tiny_r_s16_p8_224", img_size=96), "blocks.1.norm1", "NTC", (3, 3), 1, (96, 96)),
    "CaiT": Case(_tokens("cait_xxs24_224"), "blocks.1", "NTC", (4, 4)),
    "Swin": Case(functools.partial(_timm, "swin_tiny_patch4_window7_224", **_WINDOWS),
                 "norm", "NHWC", (8, 8), middle="layers.0"),
    "Swin V2": Case(functools.partial(_timm, "swinv2_tiny_window8_256", **_WINDOWS),
                 "norm", "NHWC", (8, 8), middle="layers.0"),
}  # fmt: skip


def build(name: str) -> Any:
    """A network whose weights are random, those too that start at zero, and large enough to matter."""
    torch.manual_seed(0)
    net = CASES[name].build().eval()
    with torch.no_grad():
        for part in net.parameters():
            if not part.any() or (part == part.flatten()[0]).all():
                part.add_(0.3 * torch.randn_like(part))
            elif part.std() < 0.05 and part.ndim > 1:
                part.mul_(4)
    return net


def pictures(name: str) -> Any:
    return torch.randn(3, 3, *CASES[name].size, generator=torch.Generator().manual_seed(1))
