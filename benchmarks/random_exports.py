"""Prove right random networks: `python -m benchmarks.random_exports [--count 200] [--seed 0] [--torch]`.

Every network is one of some twenty small architectures with random weights, explained at a random layer; the check that
`onnxcam export` runs must not refuse any. With `--torch` the architectures are PyTorch modules and the check compares
with its autograd.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np
import onnx

import onnxcam
from onnxcam.diagnose.gradients import check
from onnxcam.errors import VerificationError
from tests.support import wrong_gradients

CPU = ["CPUExecutionProvider"]


def networks(count: int, seed: int) -> Iterator[tuple[str, onnx.ModelProto, str]]:
    """Name, model and target layer of `count` random networks."""
    rng = np.random.default_rng(seed)
    names = list(wrong_gradients.ARCHITECTURES)
    for index in range(count):
        name = names[index % len(names)]
        model = wrong_gradients.build(name, int(rng.integers(1 << 30)))
        layers = [layer.name for layer in onnxcam.layers(model)]
        yield name, model, layers[int(rng.integers(len(layers)))]


def refused(count: int, seed: int) -> list[str]:
    """What is refused of `count` right networks, one line each."""
    lines = []
    for index, (name, model, layer) in enumerate(networks(count, seed)):
        report = check(onnxcam.augment(model, [layer]), providers=CPU, seed=index)
        lines += [f"{index} {name} at {layer}: {finding.detail}" for finding in report.findings if not finding.ok]
    return lines


def refused_of_torch(count: int, seed: int) -> list[str]:
    """The same of PyTorch modules, exported with verification."""
    import torch
    from torch import nn

    from onnxcam.exporters import pytorch

    rng = np.random.default_rng(seed)
    activations = [nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.ELU, nn.ReLU6, nn.Hardswish]
    pools = [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d]
    lines = []
    for index in range(count):
        torch.manual_seed(int(rng.integers(1 << 30)))
        width, active = int(rng.choice([8, 12, 16])), activations[index % len(activations)]
        between = [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1), nn.Identity()][index % 4]
        norm = nn.BatchNorm2d(width) if index % 3 else nn.GroupNorm(4, width)
        blocks = [nn.Conv2d(3, width, 3, padding=1), norm, active(), between, nn.Conv2d(width, width, 3, padding=1)]
        head = [active(), pools[index % 2](1), nn.Flatten(), nn.Linear(width, 6)]
        model = nn.Sequential(*blocks, *head).eval()
        layer = str(int(rng.integers(len(blocks) + 1)))
        try:
            pytorch.export(model, torch.randn(2, 3, 20, 20), None, layers=[layer])
        except VerificationError as error:
            lines.append(f"{index} {model} at {layer}: {error}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--torch", action="store_true")
    arguments = parser.parse_args()
    lines = (refused_of_torch if arguments.torch else refused)(arguments.count, arguments.seed)
    print(f"{len(lines)} of {arguments.count} refused", *lines, sep="\n")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
