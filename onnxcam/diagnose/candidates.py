"""Plausible preprocessings of a model: every combination of value range, colour order and resizing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from onnxcam import image
from onnxcam.errors import PreprocessError
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.warnings import same_values
from onnxcam.image.presets import IMAGENET_MEAN, IMAGENET_STD
from onnxcam.network.layout import Layout

OPEN_SIZE = (224, 224)  # where the model leaves its input size open
_CAFFE_MEAN = (123.68, 116.779, 103.939)
# scale, mean and deviation for RGB
_VALUES: dict[str, tuple[float, Any, Any]] = {
    "imagenet": (1 / 255, IMAGENET_MEAN, IMAGENET_STD),
    "caffe": (1.0, _CAFFE_MEAN, (1.0,) * 3),
    "0..1": (1 / 255, 0.0, 1.0),
    "-1..1": (1 / 127.5, 1.0, 1.0),
    "raw": (1.0, 0.0, 1.0),
}
_PRESETS = {
    ("imagenet", "RGB", "crop"): "imagenet",
    ("imagenet", "RGB", "stretch"): "torch",
    ("caffe", "BGR", "stretch"): "caffe",
    **{(name, color, "stretch"): name for name in ("0..1", "-1..1", "raw") for color in ("RGB", "L")},
}


@dataclass(frozen=True)
class Candidate:
    """One preprocessing, by its three choices; `recorded` marks the one in use, the caller's or the file's own."""

    values: str
    color: str
    resize: str
    preprocess: image.Preprocess
    recorded: bool = False

    @property
    def name(self) -> str:
        """The three choices: `-1..1 RGB crop`."""
        return f"{self.values} {self.color} {self.resize}"

    @property
    def preset(self) -> str | None:
        """The name that `--preprocess` takes for it, if any."""
        return _PRESETS.get((self.values, self.color, self.resize))


def candidates(explainer: Explainer) -> list[Candidate]:
    """List the preprocessings that fit the model's input, and the one in use.

    Raises:
        PreprocessError: the input takes neither one nor three channels.
    """
    entry = explainer.manifest["input"]
    recorded = explainer.preprocess
    dims = [d if isinstance(d, int) and d > 0 else None for d in entry["shape"]]
    layout = Layout.of(entry)
    channels, (height, width) = dims[layout.channels], layout.size(dims)
    if channels is None:
        channels = 3 if recorded is None else recorded.channels
    if channels not in (1, 3):
        raise PreprocessError(
            f"the model takes {channels} channels, and only those of 1 or 3 are compared; "
            "ask who trained it, or try presets one by one: `onnxcam explain --preprocess 0..1 --range LO,HI`"
        )
    size = (height, width) if height is not None and width is not None else None
    if size is None:
        size = (recorded and recorded.output_size) or OPEN_SIZE
    fitting = []
    for values in ("raw",) if entry["dtype"] == "uint8" else ("0..1", "-1..1", "raw") if channels == 1 else _VALUES:
        for color in ("L", "inverted") if channels == 1 else ("RGB", "BGR"):
            for resize in ("stretch", "crop"):
                fitting.append(Candidate(values, color, resize, _preprocess(values, color, resize, size)))
    return fitting if recorded is None else _with(fitting, recorded)


def _preprocess(values: str, color: str, resize: str, size: tuple[int, int]) -> image.Preprocess:
    scale, mean, std = _VALUES[values]
    if color == "inverted":
        scale, mean = -scale, mean - 255 * scale
    elif color == "BGR" and isinstance(mean, tuple):
        mean, std = mean[::-1], std[::-1]
    larger = [round(side * 256 / 224) for side in size]
    geometry: dict[str, Any] = {"resize": {"mode": "stretch", "size": list(size), "antialias": False}}
    if resize == "crop":
        geometry = {"resize": {"mode": "shortest", "size": larger[0] if size[0] == size[1] else larger}}
        geometry["crop"] = {"size": list(size)}
    color = "L" if color == "inverted" else color
    return image.Preprocess.from_dict({"color": color, "scale": scale, "mean": mean, "std": std, **geometry})


def _with(candidates: list[Candidate], recorded: image.Preprocess) -> list[Candidate]:
    """Put the recorded preprocessing in place of the one that is the same but for rounding, or at the end."""
    mode = None if recorded.resize is None else recorded.resize.mode
    resize = "crop" if recorded.crop is not None else mode or "as it is"
    alike = [place for place, one in enumerate(candidates) if same_values(one.preprocess, recorded)]
    for place in alike:
        if candidates[place].resize == resize:
            candidates[place] = replace(candidates[place], preprocess=recorded, recorded=True)
            return candidates
    choices = (candidates[alike[0]].values, candidates[alike[0]].color) if alike else ("recorded", recorded.color)
    return [*candidates, Candidate(*choices, resize, recorded, recorded=True)]
