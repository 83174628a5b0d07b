"""Measure what activation maximisation reaches, against a plain ascent in PyTorch and against crops of photographs.

    python -m benchmarks.ascents                     # what ascents.md lacks
    python -m benchmarks.ascents resnet18 --steps 256
    python -m benchmarks.ascents mnist

The plain ascent is `torch.optim.Adam` over `torch.fft.irfft2` (or over plain pixels), with the noise, jitter, steps and
learning rate of `inside.maximize`. Trained networks: EfficientNet-Lite0 in PyTorch (its packages are those that
models/build_efficientnet_lite0.py names) and twins of the two classroom networks; also their channels and classes
against the highest of 500 crops of photographs. Others: torchvision's with seeded random weights, on the small pictures
of the coverage matrix. Written into ascents.md.
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
NETWORKS = ("squeezenet1_1", "resnet18", "vgg11_bn", "mobilenet_v2", "densenet121", "efficientnet_b0", "convnext_tiny")
TRAINED = {
    "efficientnet_lite0": "efficientnet_lite0.onnx",
    "mnist": "classroom/mnist.onnx",
    "fashion_mnist": "classroom/fashion_mnist.onnx",
}
FIRST_CONVOLUTION = "classroom_1/conv1_1/Relu:0"
# of the trained networks: layers; None for the classes
LAYERS: dict[str, tuple[str | None, ...]] = {
    "efficientnet_lite0": ("hardtanh_3", "_swish"),
    "mnist": (FIRST_CONVOLUTION, "conv2", None),
    "fashion_mnist": (FIRST_CONVOLUTION, "conv2", None),
}
STEPS, SEEDS, RATE, CLASS, CHANNEL = 64, (1, 2, 3), 0.1, 7, 1
CROPS, CHANNELS, CLIMBED = 500, 10, 256
LEAST, ROUNDING = 0.95, 0.01  # bounds of the table
SPEC = {"color": "RGB", "scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resize": None}

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
    def rounding(self) -> float:
        """The share by which rounding changes the value."""
        return abs(self.verified / self.reached - 1)


def rise(runs: Sequence[Outcome]) -> float:
    """How much higher than the start onnxcam arrives, as a multiple of the plain ascent's rise; of means over runs."""
    return sum(run.reached - run.start for run in runs) / sum(run.theirs - run.start for run in runs)


def ratio(runs: Sequence[Outcome]) -> float:
    """What onnxcam reaches as a multiple of what the plain ascent does; of means over runs."""
    return sum(run.reached for run in runs) / sum(run.theirs for run in runs)


@dataclass(frozen=True)
class Channel:
    """What an ascent of a trained network's channel, or class, reaches, and the highest value over crops."""

    index: int
    reached: float
    verified: float
    highest: float


def plain_ascent(objective: Objective, settings: Any, size: tuple[int, int], spec: Any) -> tuple[float, float]:
    """An ascent in PyTorch: the values that it begins with and arrives at, of pictures without jitter.

    Arguments:
        objective: from a batch of one picture `[1, C, H, W]` to the number that is maximised.
        settings: `onnxcam.inside.maximization.Settings`, without scale, rotation and penalties.
        spec: the preprocessing: scale, mean and standard deviation per channel.
    """
    import torch

    from onnxcam.inside.maximization import DEVIATION
    from onnxcam.inside.parametrization import COLORS

    height, width = size
    mean, std = (torch.tensor(np.asarray(spec[key], np.float32))[:, None, None] for key in ("mean", "std"))
    channels = len(mean)
    matrix = torch.tensor(COLORS) if channels == 3 else torch.eye(channels)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = torch.tensor(np.sqrt(height * width) / 4 / np.maximum(frequency, 1 / max(size))).float()
    fourier = settings.parametrization == "fourier"

    def picture(parameters: Any) -> Any:
        values = parameters
        if fourier:
            values = torch.fft.irfft2(torch.view_as_complex(parameters) * amplitude, s=size)
        return (255 * spec["scale"] * torch.sigmoid(torch.einsum("ij,jhw->ihw", matrix, values)) - mean) / std

    rng = np.random.default_rng(settings.seed)
    shape = (channels, height, width // 2 + 1, 2) if fourier else (channels, height, width)
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


def channel_of(model: Any, layer: str, channel: int) -> Objective:
    """The mean of a channel's map of a module."""
    module = dict(model.named_modules())[layer]

    def objective(batch: Any) -> Any:
        outputs: list[Any] = []
        handle = module.register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
        try:
            model(batch)
        finally:
            handle.remove()
        return outputs[-1][0, channel].mean()

    return objective


def torchvision_network(name: str) -> tuple[Any, Any, dict[str, tuple[Objective, tuple[Any, ...]]], Any]:
    """The explainer of an architecture, its module, by title what is maximised in either, and the preprocessing."""
    import onnxcam
    from benchmarks.architectures import TORCH
    from benchmarks.torch_matrix import build
    from onnxcam.exporters import pytorch

    model, example = build(name)
    layers = [layer for layer in (TORCH[name].last,) if layer]
    file = pytorch.export(model, example, None, layers=layers or None, verify=False)
    opened = onnxcam.Explainer(file, probe=False, preprocess=SPEC, providers=["CPUExecutionProvider"])
    whats: dict[str, tuple[Objective, tuple[Any, ...]]] = {
        f"logit of class {CLASS}": (lambda batch: model(batch)[0, CLASS], (None, None, None, CLASS, None))
    }
    for layer in layers:
        what = (layer, CHANNEL, None, None, None)
        whats[f"channel {CHANNEL} of `{layer}`"] = (channel_of(model, layer, CHANNEL), what)
    return opened, model, whats, SPEC


def trained_network(name: str) -> tuple[Any, Any, dict[str, tuple[Objective, tuple[Any, ...]]], Any]:
    """The same of a trained network."""
    from onnxcam import Explainer, models

    opened = Explainer(models.path(TRAINED[name]), providers=["CPUExecutionProvider"])
    assert opened.preprocess is not None
    spec = opened.preprocess.to_dict()
    if name == "efficientnet_lite0":
        from models.build_efficientnet_lite0 import network

        model, _ = network()
        tabby = opened.manifest["labels"].index("tabby, tabby cat")
        # a channel behind a ReLU6 often sleeps at noise: onnxcam wakes it, and a plain ascent does not
        return (
            opened,
            model,
            {"logit of 'tabby'": (lambda x: model(x)[0, tabby], (None, None, None, tabby, None))},
            spec,
        )
    model = classroom_twin(TRAINED[name])
    whats: dict[str, tuple[Objective, tuple[Any, ...]]] = {
        "logit of class 3": (lambda batch: model(batch)[0, 3], (None, None, None, 3, None)),
        "channel 3 of `conv2`": (channel_of(model, "conv2", 3), ("conv2", 3, None, None, None)),
    }
    return opened, model, whats, spec


def classroom_twin(file: str) -> Any:
    """A classroom network in PyTorch, with the weights of its Keras file; `conv2` ends in its ReLU."""
    import keras
    import torch

    from onnxcam import models

    network = keras.models.load_model(models.path(file).with_suffix(".keras"))
    arrays = [torch.tensor(np.asarray(weight)) for weight in network.get_weights()]
    first, second = (torch.nn.Conv2d(*w.shape[2:], w.shape[0], padding="same") for w in arrays[0:4:2])
    dense = torch.nn.Linear(*arrays[4].shape)
    for module, weight, bias in zip((first, second, dense), arrays[::2], arrays[1::2], strict=True):
        module.weight.data = weight.permute(3, 2, 0, 1).contiguous() if weight.ndim == 4 else weight.T.contiguous()
        module.bias.data = bias

    class Twin(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = torch.nn.Sequential(first, torch.nn.ReLU())
            self.conv2 = torch.nn.Sequential(second, torch.nn.ReLU())
            self.pool = torch.nn.MaxPool2d(2)
            self.dense = dense

        def forward(self, x: Any) -> Any:
            y = self.pool(self.conv2(self.pool(self.conv1(x))))
            return self.dense(y.permute(0, 2, 3, 1).flatten(1))  # as Keras flattens

    return Twin().eval()


def outcomes(
    name: str, steps: int = STEPS, seeds: Sequence[int] = SEEDS, parametrizations: Sequence[str] = ("fourier",)
) -> dict[tuple[str, str], list[Outcome]]:
    """By what is maximised and parametrization, an outcome for each seed.

    Arguments:
        name: of a torchvision architecture, or a key of `TRAINED`.
    """
    from onnxcam.inside.maximization import Settings, climb, scalar_of
    from onnxcam.inside.subject import Subject

    opened, model, whats, spec = (trained_network if name in TRAINED else torchvision_network)(name)
    for weight in model.parameters():
        weight.requires_grad_(False)
    subject = Subject(opened)
    results: dict[tuple[str, str], list[Outcome]] = {}
    for title, (objective, what) in whats.items():
        scalar = scalar_of(subject, *what)
        session = subject.ascent(scalar)
        for parametrization in parametrizations:
            for seed in seeds:
                settings = Settings.of(
                    subject.size, steps=steps, learning_rate=RATE, seed=seed, parametrization=parametrization
                )
                result = climb(subject, scalar, session, settings)
                first, theirs = plain_ascent(objective, settings, subject.size, spec)
                outcome = Outcome(first, result.reached, result.verified, theirs)
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
        result = climb(subject, scalar(index), subject.ascent(scalar(index)), settings)
        results.append(Channel(index, result.reached, result.verified, float(highest[index])))
    return results


def marked(value: float, good: bool, form: str) -> str:
    """A number, marked where it is outside its bound."""
    return f"{value:{form}}" + ("" if good else " (!)")


def ascent_rows(name: str, steps: int) -> list[str]:
    """Rows of the first table."""
    rows = []
    parametrizations = ("fourier", "pixels") if name in ("mnist", "fashion_mnist") else ("fourier",)
    for (title, parametrization), runs in outcomes(name, steps, parametrizations=parametrizations).items():
        # plain pixels end in fine noise, of which rounding may change more: no bound, but a warning of `maximize`
        rounding = max(run.rounding for run in runs)
        close = rounding <= ROUNDING or parametrization == "pixels"
        start, ours, theirs = (
            float(np.mean([getattr(run, key) for run in runs])) for key in ("start", "reached", "theirs")
        )
        singles = [run.reached / run.theirs for run in runs if run.theirs]
        rows.append(
            f"| {name} | {'trained' if name in TRAINED else 'random'} | {title} | {parametrization} | {steps} | "
            f"{start:.4g} | {ours:.4g} | {theirs:.4g} | {marked(ratio(runs), ratio(runs) >= LEAST, '.2f')} | "
            f"{rise(runs):.2f} | {min(singles):.2f} to {max(singles):.2f} | {marked(rounding, close, '.2%')} |"
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

PyTorch: `torch.optim.Adam` over `torch.fft.irfft2` or plain pixels; noise, jitter, steps and learning rate are equal.
*Start*, *reached*, *PyTorch*: means over {seeds} seeds. *Ratio* (bound: 0.95): of the means; *rise*: the same from the
start on; *single*: the ratios of single seeds. Two ascents of one network part at the first gate that rounding or
another epsilon decides, and may end on different hills, most of all in small random networks: single seeds scatter to
either side. *Rounding* (bound of Fourier: 1 %): the largest share by which writing the picture in 8 bits changes the
value. Random weights: torchvision's architectures with batch norms that fit them, pictures of 64 x 64 or 96 x 96.
The gradients of deep ones shatter: where a change of half a grey level moves the value by 15 % and more, no step of an
ascent is small, neither of the two finds a way up, and their ratio says nothing.

"""
FIRST = (
    "| network | weights | what | parametrization | steps | start | reached | PyTorch | ratio | rise | single "
    "| rounding |"
)
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
    parser.add_argument("--table", choices=("pytorch", "crops"), help="one of the two alone")
    arguments = parser.parse_args()
    lines = PAGE.read_text("utf-8").splitlines() if PAGE.exists() else []
    tables = [[line for line in lines if line.startswith("| ") and line.count("|") == bars][1:] for bars in (13, 8)]
    kinds = (("pytorch", ascent_rows, (*TRAINED, *NETWORKS), STEPS), ("crops", crop_rows, tuple(TRAINED), CLIMBED))
    for place, (kind, measure, every, usual) in enumerate(kinds):
        if arguments.table not in (None, kind):
            continue
        present = {row.split(" | ")[0].removeprefix("| ") for row in tables[place]}
        for name in [name for name in (arguments.names or every) if name in every]:
            if name in present and not arguments.names:
                continue
            began = time.perf_counter()
            result = measure(name, arguments.steps or usual)
            tables[place] = [row for row in tables[place] if row.split(" | ")[0] != f"| {name}"] + result
            print(f"{name}: {time.perf_counter() - began:.0f} s", *result, sep="\n", flush=True)
            PAGE.write_text(page(tables), encoding="utf-8")


def page(tables: Sequence[Sequence[str]]) -> str:
    """The page of both tables."""
    text = HEAD.format(seeds=len(SEEDS)) + "\n".join([FIRST, "|---" * 12 + "|", *tables[0]]) + "\n"
    text += BETWEEN.format(crops=CROPS, count=len(photographs()))
    return text + "\n".join([SECOND, "|---" * 7 + "|", *tables[1]]) + "\n"


if __name__ == "__main__":
    main()
