"""Measure what activation maximisation reaches, against a plain ascent in PyTorch and against crops of photographs.

    python -m benchmarks.ascents                     # what ascents.md lacks
    python -m benchmarks.ascents resnet18 --steps 256
    python -m benchmarks.ascents mnist

Networks of torchvision with seeded random weights, on the small pictures of the coverage matrix: a class's logit, a
channel of a layer in the middle and one of the last layer, each from several seeds. The plain ascent is
`torch.optim.Adam` over `torch.fft.irfft2` (or over plain pixels), with the noise, jitter, steps and learning rate of
`inside.maximize`. Trained networks: random channels, against the highest of 500 crops of photographs. Written into
ascents.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.files import SEED

PAGE = Path(__file__).with_suffix(".md")
NETWORKS = ("resnet18", "mobilenet_v2", "efficientnet_b0", "densenet121", "squeezenet1_1", "convnext_tiny")
TRAINED = {
    "efficientnet_lite0": "efficientnet_lite0.onnx",
    "mnist": "classroom/mnist.onnx",
    "fashion_mnist": "classroom/fashion_mnist.onnx",
}
# of the trained networks: layers; None for the classes
LAYERS: dict[str, tuple[str | None, ...]] = {
    "efficientnet_lite0": ("hardtanh_3", "_swish"),
    "mnist": ("conv1", "conv2", None),
    "fashion_mnist": ("conv1", "conv2", None),
}
STEPS, SEEDS, RATE, CLASS, CHANNEL = 64, (1, 2, 3), 0.1, 7, 1
CROPS, CHANNELS, CLIMBED = 500, 10, 128
LEAST, ROUNDING = 0.95, 0.01  # bounds of the table
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = {"color": "RGB", "scale": 1 / 255, "mean": list(MEAN), "std": list(STD), "resize": None}

Objective = Callable[[Any], Any]


@dataclass(frozen=True)
class Outcome:
    """What one ascent of either reaches.

    Attributes:
        start: the value at the noise that both begin with.
        reached, verified: by onnxcam, before and after rounding to 8 bits.
        theirs: by the plain ascent.
    """

    start: float
    reached: float
    verified: float
    theirs: float

    @property
    def ratio(self) -> float:
        """Reached / theirs."""
        return self.reached / self.theirs

    @property
    def rise(self) -> float:
        """The rise from the start, as a multiple of theirs."""
        return (self.reached - self.start) / (self.theirs - self.start)

    @property
    def rounding(self) -> float:
        """The share by which rounding changes the value."""
        return abs(self.verified / self.reached - 1)


@dataclass(frozen=True)
class Channel:
    """What an ascent of a trained network's channel, or class, reaches, and the highest value over crops."""

    index: int
    reached: float
    verified: float
    highest: float


def plain_ascent(objective: Objective, settings: Any, size: tuple[int, int]) -> tuple[float, float]:
    """An ascent in PyTorch: the values that it begins with and arrives at, of pictures without jitter.

    Arguments:
        objective: from a batch of one picture to the number that is maximised.
        settings: `onnxcam.inside.maximization.Settings`, without scale, rotation and penalties.
    """
    import torch

    from onnxcam.inside.maximization import DEVIATION
    from onnxcam.inside.parametrization import COLORS

    height, width = size
    matrix = torch.tensor(COLORS)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = torch.tensor(np.sqrt(height * width) / 4 / np.maximum(frequency, 1 / max(size))).float()
    fourier = settings.parametrization == "fourier"

    def picture(parameters: Any) -> Any:
        values = parameters
        if fourier:
            values = torch.fft.irfft2(torch.view_as_complex(parameters) * amplitude, s=size)
        return (torch.sigmoid(torch.einsum("ij,jhw->ihw", matrix, values)) - mean) / std

    rng = np.random.default_rng(settings.seed)
    shape = (3, height, width // 2 + 1, 2) if fourier else (3, height, width)
    start = (rng.standard_normal(shape) * DEVIATION).astype(np.float32)
    parameters = torch.tensor(start, requires_grad=True)
    optimiser = torch.optim.Adam([parameters], lr=settings.rate)
    with torch.no_grad():
        first = float(objective(picture(parameters)[None]))
    for _ in range(settings.steps):
        shift = settings.transformation.draw(rng, size)
        optimiser.zero_grad()
        (-objective(torch.roll(picture(parameters), (shift.rows, shift.columns), (1, 2))[None])).backward()
        optimiser.step()
    with torch.no_grad():
        return first, float(objective(picture(parameters)[None]))


def outcomes(
    name: str, steps: int = STEPS, seeds: Sequence[int] = SEEDS, parametrizations: Sequence[str] = ("fourier", "pixels")
) -> dict[tuple[str, str], list[Outcome]]:
    """By what is maximised and parametrization, an outcome for each seed.

    Arguments:
        name: of a torchvision architecture.
    """
    import onnxcam
    from benchmarks.architectures import TORCH
    from benchmarks.torch_matrix import build
    from onnxcam.exporters import pytorch
    from onnxcam.inside.maximization import Settings, climb, scalar_of
    from onnxcam.inside.subject import Subject

    model, example = build(name)
    for weight in model.parameters():
        weight.requires_grad_(False)
    layers = [layer for layer in (TORCH[name].middle, TORCH[name].last) if layer]
    file = pytorch.export(model, example, None, layers=layers, verify=False)
    opened = onnxcam.Explainer(file, probe=False, preprocess=SPEC, providers=["CPUExecutionProvider"])
    subject = Subject(opened)
    modules = dict(model.named_modules())

    def of_channel(layer: str) -> Objective:
        def objective(batch: Any) -> Any:
            outputs: list[Any] = []
            handle = modules[layer].register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
            try:
                model(batch)
            finally:
                handle.remove()
            return outputs[-1][0, CHANNEL].mean()

        return objective

    whats: dict[str, tuple[Objective, tuple[Any, ...]]] = {
        f"logit of class {CLASS}": (lambda batch: model(batch)[0, CLASS], (None, None, None, CLASS, None))
    }
    for layer in layers:
        whats[f"channel {CHANNEL} of `{layer}`"] = (of_channel(layer), (layer, CHANNEL, None, None, None))
    results: dict[tuple[str, str], list[Outcome]] = {}
    for title, (objective, what) in whats.items():
        scalar = scalar_of(subject, *what)
        session = subject.ascent(scalar)
        for parametrization in parametrizations:
            for seed in seeds:
                settings = Settings.of(
                    subject.size, steps=steps, learning_rate=RATE, seed=seed, parametrization=parametrization
                )
                made = climb(subject, scalar, session, settings)
                first, theirs = plain_ascent(objective, settings, subject.size)
                outcome = Outcome(first, made.reached, made.verified, theirs)
                results.setdefault((title, parametrization), []).append(outcome)
    return results


def photographs() -> list[Path]:
    """Photographs at hand: two of onnxcam, and those of foolbox (ImageNet), scikit-image and scikit-learn."""
    from onnxcam import models

    paths = [models.path("cat.png"), models.path("coffee.png")]
    for package, pattern in (
        ("foolbox", "data/imagenet_*.jpg"),
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/rocket.jpg"),
        ("sklearn", "datasets/images/*.jpg"),
    ):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            paths += sorted(Path(spec.origin).parent.glob(pattern))
    return paths


def crops(count: int, seed: int = SEED) -> list[np.ndarray]:
    """Random squares of 30 to 100 % of the shorter side of random photographs, uint8 `[S, S, 3]`."""
    from onnxcam import image

    pictures = [image.load(path).pixels for path in photographs()]
    rng = np.random.default_rng(seed)
    squares = []
    for _ in range(count):
        pixels = pictures[int(rng.integers(len(pictures)))]
        side = max(round(min(pixels.shape[:2]) * rng.uniform(0.3, 1.0)), 1)
        top, left = (int(rng.integers(length - side + 1)) for length in pixels.shape[:2])
        squares.append(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    return squares


def against_crops(
    name: str,
    layer: str | None,
    pictures: Sequence[np.ndarray],
    *,
    channels: int = CHANNELS,
    steps: int = CLIMBED,
) -> list[Channel]:
    """Ascents of channels of a trained network, drawn from those that any of the pictures excites.

    Arguments:
        name: a key of `TRAINED`.
        layer: one of its layers, None for its classes.
        pictures: as of `crops`.
        channels: how many; all where there are fewer.
    """
    from onnxcam import Explainer, models
    from onnxcam.inside.maximization import Settings, climb, scalar_of
    from onnxcam.inside.subject import Subject

    subject = Subject(Explainer(models.path(TRAINED[name]), providers=["CPUExecutionProvider"]))

    def scalar(index: int) -> Any:
        what = (None, None, None, index, None) if layer is None else (layer, index, None, None, None)
        return scalar_of(subject, *what)

    first = scalar(0)
    plain = subject.values([first.value])
    highest = np.full(len(first.coefficients), -np.inf)
    for pixels in pictures:
        value = plain(subject.batch(subject.explainer.prepare(pixels)[1]))[first.value][:1].astype(np.float64)
        row = value[0] if first.layout is None else first.layout.to_canonical(value)[0].mean(axis=(1, 2))
        highest = np.maximum(highest, row)
    alive = np.arange(len(highest)) if layer is None else np.flatnonzero(highest > 0)
    rng = np.random.default_rng(SEED)
    drawn = sorted(rng.permutation(alive)[:channels].tolist())
    settings = Settings.of(subject.size, steps=steps, learning_rate=RATE, seed=SEED)
    results = []
    for index in drawn:
        made = climb(subject, scalar(index), subject.ascent(scalar(index)), settings)
        results.append(Channel(index, made.reached, made.verified, float(highest[index])))
    return results


def marked(value: float, good: bool, form: str) -> str:
    """A number, marked where it is outside its bound."""
    return f"{value:{form}}" + ("" if good else " (!)")


def ascent_rows(name: str, steps: int) -> list[str]:
    """Rows of the first table."""
    rows = []
    for (title, parametrization), runs in outcomes(name, steps).items():
        ratio, rise = min(run.ratio for run in runs), min(run.rise for run in runs)
        # plain pixels end in fine noise, of which rounding may change more: no bound, but a warning of `maximize`
        rounding = max(run.rounding for run in runs)
        close = rounding <= ROUNDING or parametrization == "pixels"
        ours, theirs = (float(np.median([getattr(run, key) for run in runs])) for key in ("reached", "theirs"))
        rows.append(
            f"| {name} | {title} | {parametrization} | {steps} | {ours:.4g} | {theirs:.4g} | "
            f"{marked(ratio, ratio >= LEAST, '.2f')} | {rise:.2f} | {marked(rounding, close, '.2%')} |"
        )
    return rows


def crop_rows(name: str, steps: int) -> list[str]:
    """Rows of the second table."""
    pictures = crops(CROPS)
    rows = []
    for layer in LAYERS[name]:
        results = against_crops(name, layer, pictures, steps=steps)
        above = sum(one.verified > one.highest for one in results)
        ratios = [one.verified / one.highest for one in results if one.highest > 0]
        rounding = max(abs(one.verified / one.reached - 1) for one in results)
        share = f"{above} of {len(results)}" + ("" if above >= 0.9 * len(results) else " (!)")
        rows.append(
            f"| {name} | {'classes' if layer is None else f'`{layer}`'} | {steps} | {share} | "
            f"{min(ratios):.2f} | {float(np.median(ratios)):.2f} | {marked(rounding, rounding <= ROUNDING, '.2%')} |"
        )
    return rows


HEAD = """\
# What activation maximisation reaches

Written by `python -m benchmarks.ascents`; a figure outside its bound is marked (!).

## Against a plain ascent in PyTorch

torchvision's architectures with seeded random weights and batch norms that fit them, on pictures of 64 x 64 (96 x 96
for SqueezeNet). PyTorch: `torch.optim.Adam` over `torch.fft.irfft2` or plain pixels, with the same noise, jitter, steps
and learning rate. *Reached*, *PyTorch*: medians over {seeds} seeds. *Ratio* (bound: 0.95) and *rise* (the same from the
value of the noise on): the lowest over the seeds. *Rounding* (bound of Fourier: 1 %): the largest share by which
writing the picture in 8 bits changes the value.

"""
FIRST = "| network | what | parametrization | steps | reached | PyTorch | ratio | rise | rounding |"
SECOND = "| network | layer | steps | above all crops | least ratio | median ratio | rounding |"
BETWEEN = """
## Against photographs

Trained networks: ten channels of a layer (all where there are fewer, without those that no crop excites), drawn at
random, and the classes; against the highest of {crops} crops of {count} photographs. *Above all crops*: of how many the
plain model's value of the written picture is higher than of every crop (bound: 9 of 10); *ratio*: that value / the
highest.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="networks (default: those that the page lacks)")
    parser.add_argument("--steps", type=int, help=f"default: {STEPS} beside PyTorch, {CLIMBED} against crops")
    arguments = parser.parse_args()
    lines = PAGE.read_text("utf-8").splitlines() if PAGE.exists() else []
    tables = [[line for line in lines if line.startswith("| ") and line.count("|") == bars][1:] for bars in (10, 8)]
    present = {line.split(" | ")[0].removeprefix("| ") for table in tables for line in table}
    for name in arguments.names or [name for name in (*NETWORKS, *TRAINED) if name not in present]:
        began = time.perf_counter()
        place = int(name in TRAINED)
        steps = arguments.steps or (CLIMBED if place else STEPS)
        made = crop_rows(name, steps) if place else ascent_rows(name, steps)
        keys = {_key(row) for row in made}
        tables[place] = [row for row in tables[place] if _key(row) not in keys] + made
        print(f"{name}: {time.perf_counter() - began:.0f} s", *made, sep="\n", flush=True)
        text = HEAD.format(seeds=len(SEEDS))
        text += "\n".join([FIRST, "|---" * 9 + "|", *tables[0]]) + "\n"
        text += BETWEEN.format(crops=CROPS, count=len(photographs()))
        text += "\n".join([SECOND, "|---" * 7 + "|", *tables[1]]) + "\n"
        PAGE.write_text(text, encoding="utf-8")


def _key(row: str) -> tuple[str, ...]:
    """What tells rows apart: network, what and how, steps."""
    return tuple(row.split(" | ")[: 4 if row.count("|") == 10 else 3])


if __name__ == "__main__":
    main()
