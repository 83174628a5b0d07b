"""Measure which colour map, and which opacity of overlays, people with and without colour vision can read.

    python benchmarks/colormaps.py

Every figure is a colour difference in CIEDE2000 units (Sharma, Wu and Dalal 2005; scikit-image's implementation), in
which about 1 is just noticeable side by side, or a difference of lightness L* (0 black to 100 white). Each is taken for
normal vision and for protanopia, deuteranopia and tritanopia, simulated by the matrices for severity 1.0 in linear RGB
of Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency" (IEEE
TVCG 2009, table 1); the worst of the four counts. Photographs are scikit-image's. Nothing is random but the pixels
drawn from them (seed 1234), and nothing is timed.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from skimage import color, data

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onnxcam import image  # noqa: E402
from onnxcam.image.colormap import KNEE, OPACITY  # noqa: E402

VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
CYCLIC = ("hsv", "twilight", "twilight_shifted")
PHOTOGRAPHS = (
    *("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry"),
    *("camera", "brick", "grass", "coins", "moon", "page", "text"),
)
PIXELS = 400  # drawn from each photograph
STEP, FAR = 16, 64  # levels of 256
VALUES = np.linspace(0.0, 1.0, 9)  # of the map in overlays; differences are taken over a quarter
# (most opacity, the value of the map from which on it is reached): None is constant
OPACITIES = ((0.5, None), (0.7, 1.0), (0.8, 1.0), (0.5, 0.5), (0.6, 0.5), (0.7, 0.5), (0.8, 0.5))
REVERSAL, NOTICEABLE = 1.0, 2.0  # what a default may turn back in lightness, and the least its steps must differ

Levels = Callable[[np.ndarray], np.ndarray]


def to_lab(rgb: np.ndarray, vision: str = "normal") -> np.ndarray:
    """CIELAB (D65) of colours 0 to 255, `[..., 3]`, as they look to this vision."""
    share = np.asarray(rgb, float) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ VISIONS[vision].T, 0, 1)
    simulated = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(color.rgb2lab(simulated))


def tables() -> dict[str, np.ndarray]:
    """The 256 colours of every map of OpenCV, and of onnxcam's."""
    levels = np.arange(256, dtype=np.uint8)[:, None]
    names = [name.removeprefix("COLORMAP_") for name in dir(cv2) if name.startswith("COLORMAP_")]
    result = {name.lower(): cv2.applyColorMap(levels, getattr(cv2, f"COLORMAP_{name}"))[:, 0, ::-1] for name in names}
    return result | {name: image.palette(name) for name in image.COLORMAPS}


def reversal(table: np.ndarray) -> float:
    """By how much the lightness turns back, at most, on the way from the lowest to the highest level."""
    lightness = to_lab(table)[:, 0]
    lightness = lightness if lightness[-1] >= lightness[0] else -lightness
    return float((np.maximum.accumulate(lightness) - lightness).max())


def smallest_step(table: np.ndarray) -> dict[str, float]:
    """The least difference of two levels that are a sixteenth of the scale apart."""
    labs = {vision: to_lab(table, vision) for vision in VISIONS}
    return {vision: float(color.deltaE_ciede2000(lab[:-STEP], lab[STEP:]).min()) for vision, lab in labs.items()}


def nearest_far(table: np.ndarray) -> dict[str, float]:
    """The least difference of two levels that are a quarter of the scale apart or more: values that look alike."""
    some = np.arange(0, 256, 5)
    apart = np.abs(some[:, None] - some) >= FAR
    labs = {vision: to_lab(table[some], vision) for vision in VISIONS}
    return {k: float(color.deltaE_ciede2000(lab[:, None], lab[None])[apart].min()) for k, lab in labs.items()}


def photographs() -> np.ndarray:
    """Pixels of photographs, `[M, 3]`."""
    rng = np.random.default_rng(1234)
    drawn = []
    for name in PHOTOGRAPHS:
        pixels = getattr(data, name)()
        pixels = pixels.reshape(-1, 3) if pixels.ndim == 3 else np.repeat(pixels.reshape(-1, 1), 3, axis=1)
        drawn.append(pixels[rng.choice(len(pixels), PIXELS, replace=False)])
    return np.concatenate(drawn).astype(float)


def opacities(most: float, knee: float | None) -> np.ndarray:
    """The opacity at each of `VALUES`."""
    return np.full(len(VALUES), most) if knee is None else most * np.minimum(VALUES / knee, 1.0)


def on_photographs(table: np.ndarray, pixels: np.ndarray, opacity: np.ndarray) -> dict[str, float]:
    """How an overlay reads, each the worst of the four visions.

    Returns:
        `peak`: the difference between the map's maximum and the bare photograph, exceeded by nine of ten pixels.
        `step`: the difference of values a quarter apart in the median pixel, the least along the scale.
        `contrast`: what is left of the photograph's contrast in lightness where the map is 0, a half, and 1.
    """
    levels = np.rint(255 * VALUES).astype(int)
    mixed = [np.rint((1 - a) * pixels + a * table[level]) for a, level in zip(opacity, levels, strict=True)]
    peaks, steps = [], []
    for vision in VISIONS:
        labs = [to_lab(one, vision) for one in mixed]
        peaks.append(np.percentile(color.deltaE_ciede2000(labs[-1], to_lab(pixels, vision)), 10))
        steps += [np.median(color.deltaE_ciede2000(a, b)) for a, b in zip(labs, labs[2:], strict=False)]
    spread = [to_lab(one)[:, 0].std() for one in (pixels, mixed[0], mixed[len(mixed) // 2], mixed[-1])]
    left = {f"contrast {name}": spread[k] / spread[0] for k, name in enumerate(("0", "half", "1"), start=1)}
    return {"peak": float(min(peaks)), "step": float(min(steps))} | left


def report() -> str:
    """The figures as Markdown."""
    pixels, usual = photographs(), opacities(OPACITY, KNEE)
    rows = []
    for name, table in tables().items():
        if name in CYCLIC:
            continue  # both ends look the same
        lightness = to_lab(table)[:, 0]
        peak = on_photographs(table, pixels, usual)["peak"]
        ends = (float(lightness[0]), float(lightness[-1]))
        rows.append((name, reversal(table), ends, smallest_step(table), nearest_far(table), peak))
    legible = [row for row in rows if row[1] <= REVERSAL and min(row[3].values()) >= NOTICEABLE]
    fit = [row for row in legible if row[0] in image.COLORMAPS]
    default = max(fit, key=lambda row: row[5])[0]
    lines = [
        "# Colours that people can read",
        "",
        f"Computed {datetime.date.today()} with `python benchmarks/colormaps.py`: opencv-python "
        f"{version('opencv-python')}, scikit-image {version('scikit-image')}.",
        "",
        "Colour differences in CIEDE2000 units, about 1 of which is just noticeable, for normal vision (n), protanopia",
        "(p), deuteranopia (d) and tritanopia (t), simulated after Machado, Oliveira and Fernandes (2009).",
        "*turns back*: by how much lightness L* (0 to 100) turns back along the scale: more than about 1, and the map",
        "cannot be read in grey, nor its order without colour. *step*: the least difference of two levels a sixteenth",
        "of the scale apart: below about 2 parts of the scale look even. *alike*: the least difference of two levels",
        "at least a quarter apart: small where different values share a colour. *peak*: the difference between the",
        f"overlay at the map's maximum and the bare photograph, which nine of ten pixels of {len(PHOTOGRAPHS)}",
        "photographs exceed in every vision.",
        "",
        f"The default is **{default}**: of onnxcam's maps whose lightness turns back by at most {REVERSAL:g} and whose",
        f"steps are at least {NOTICEABLE:g} in every vision it has the highest peak. `jet`, the default of earlier",
        "versions, is an option.",
        "",
        "| map | L* | turns back | step n, p, d, t | alike n, p, d, t | peak |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, back, (low, high), step, far, peak in sorted(rows, key=lambda row: (row not in fit, -row[5])):
        top = f"**{name}**" if name == default else name if name in image.COLORMAPS else f"({name})"
        four = [", ".join(f"{value:.1f}" for value in values.values()) for values in (step, far)]
        lines.append(f"| {top} | {low:.0f} to {high:.0f} | {back:.1f} | {four[0]} | {four[1]} | {peak:.1f} |")
    lines += [
        "",
        "Maps in brackets are OpenCV's and not among onnxcam's; the cyclic ones (hsv, twilight) are left out.",
        "",
        "## Opacity",
        "",
        f"Overlays of {default} on the photographs. An overlay of constant opacity recolours all of the picture,",
        "whatever the map says. *step*: the difference of two values of the map a quarter apart, in the median pixel,",
        "the least along the scale. *contrast*: what is left of the photograph's contrast in lightness where the map",
        "is 0, a half, and 1.",
        "",
        "| opacity of a map's value v | peak | step | contrast at 0, 1/2, 1 |",
        "|---|---:|---:|---:|",
    ]
    for most, knee in OPACITIES:
        figures = on_photographs(image.palette(default), pixels, opacities(most, knee))
        name = f"{most}" if knee is None else f"{most} v" if knee == 1 else f"{most} min(1, {1 / knee:g} v)"
        mark = "**" if (most, knee) == (OPACITY, KNEE) else ""
        left = ", ".join(f"{figures[f'contrast {at}']:.2f}" for at in ("0", "half", "1"))
        lines.append(f"| {mark}{name}{mark} | {figures['peak']:.1f} | {figures['step']:.1f} | {left} |")
    lines += [
        "",
        f"The default, {OPACITY} min(1, {1 / KNEE:g} v), leaves the photograph as it is where the map is 0 and shows",
        "the upper half of the scale in even opacity, so that equal values look equal there; it keeps more than a",
        "third of the photograph's contrast under the peak. `--alpha` gives a constant opacity.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "colormaps.md")
    output: Path = parser.parse_args().output
    output.write_text(report(), encoding="utf-8")
    print(output)


if __name__ == "__main__":
    main()
