"""Prove right random networks, and plant errors: `python -m benchmarks.random_exports [--count 200] [--torch]`.

The networks are the small architectures of `tests.support.wrong_gradients`, with random weights, explained at a random
layer; the check that `onnxcam export` runs on plain files must not refuse any. With `--torch` they are the twenty
PyTorch networks of `benchmarks.small_torch_nets`, and exports are compared with its autograd. `--planted 100` plants a
mistake in each of that many files: the same verification must refuse all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import onnx

import onnxcam
from onnxcam.diagnose.gradients import check
from onnxcam.errors import OnnxcamError, VerificationError
from tests.support import wrong_gradients

CPU = ["CPUExecutionProvider"]
# a mistake changes gradients by at least this share of them; less than that may come from a kink
LARGE = 0.1


class Tally:
    """What became of right files and of planted mistakes, one line for each that went wrong."""

    def __init__(self, planted: int = 0) -> None:
        self.planted, self.plants, self.missed = planted, 0, 0
        self.lines: list[str] = []

    def plant(self, where: str, model: onnx.ModelProto, refuses: Callable[[onnx.ModelProto], bool], seed: int) -> None:
        """Plant one mistake at random, where some are still to be planted, and note whether it is found."""
        plant = one_mistake(model, seed) if self.plants < self.planted else None
        if plant is None:
            return
        self.plants += 1
        if not refuses(plant.model):
            self.missed += 1
            self.lines.append(f"{where}: {plant.kind} at {plant.node} was not found")


def one_mistake(model: onnx.ModelProto, seed: int) -> wrong_gradients.Plant | None:
    """A mistake at a random node that changes the gradients of the file by much; None where there is none."""
    right = wrong_gradients.gradients(model)
    plants = list(wrong_gradients.plants(model))
    for index in np.random.default_rng(seed).permutation(len(plants)):
        wrong = wrong_gradients.gradients(plants[index].model)
        if right is not None and wrong is not None and wrong_gradients.change(right, wrong) >= LARGE:
            return plants[index]
    return None


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
    return checked(count, seed).lines


def checked(count: int, seed: int, planted: int = 0) -> Tally:
    """Check `count` right networks, and `planted` wrong ones."""
    tally = Tally(planted)
    for index, (name, model, layer) in enumerate(networks(count, seed)):
        explainable = onnxcam.augment(model, [layer])
        report = check(explainable, providers=CPU, seed=index)
        tally.lines += [f"{index} {name} at {layer}: {finding.detail}" for finding in report.findings if not finding.ok]
        if name != "jumps":  # differences count jumps, gradients do not: there only some mistakes can be told
            tally.plant(
                f"{index} {name} at {layer}", explainable, lambda wrong: _raises(lambda: _require(wrong)), index
            )
    return tally


def _require(model: onnx.ModelProto) -> None:
    if not check(model, providers=CPU).passed:
        raise VerificationError("its check fails")


def _raises(verification: Callable[[], Any]) -> bool:
    """Whether a file is refused; one that runs at no other batch size cannot be verified at all."""
    try:
        verification()
    except OnnxcamError:
        return True
    return False


def exported(count: int, seed: int, planted: int = 0) -> Tally:
    """Export `count` right PyTorch networks with verification, and verify `planted` wrong files as the export does."""
    import torch

    from benchmarks import small_torch_nets
    from onnxcam.exporters import parity, pytorch

    rng = np.random.default_rng(seed)
    names = list(small_torch_nets.NETWORKS)
    tally = Tally(planted)
    verify = parity.verify_on_samples
    for index in range(count):
        name = names[index % len(names)]
        network = small_torch_nets.build(name, int(rng.integers(1 << 30)))
        layers = small_torch_nets.layers(network)
        layer = layers[int(rng.integers(len(layers)))]
        where = f"{index} {name} at {layer}"

        def verify_both(model: onnx.ModelProto, *about: Any, where: str = where, index: int = index) -> Any:
            record = verify(model, *about)

            tally.plant(where, model, lambda wrong: _raises(lambda: verify(wrong, *about)), index)
            return record

        picture = torch.randn(2, 3, small_torch_nets.SIDE, small_torch_nets.SIDE)
        with mock.patch.object(parity, "verify_on_samples", verify_both):
            try:
                pytorch.export(network, picture, None, layers=[layer])
            except VerificationError as error:
                tally.lines.append(f"{where}: {error}")
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--planted", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--torch", action="store_true")
    arguments = parser.parse_args()
    tally = (exported if arguments.torch else checked)(arguments.count, arguments.seed, arguments.planted)
    mistakes = f"{tally.plants - tally.missed} of {tally.plants} planted mistakes found"
    print(f"{len(tally.lines) - tally.missed} of {arguments.count} refused; {mistakes}", flush=True)
    print(*tally.lines, sep="\n")
    sys.exit(bool(tally.lines) or tally.plants < arguments.planted)


if __name__ == "__main__":
    main()
