"""What `Explainer.explain` returns: the prediction, the map, the pictures made of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.errors import InputError, OutputError
from onnxcam.explain.statistics import describe
from onnxcam.image import png


@dataclass(frozen=True, eq=False)
class Map:
    """The map of one class.

    Attributes:
        target, label, probability: the class explained, its name, and its predicted probability.
        heatmap: float32 `[H, W]` of the original picture.
        raw_map: float32 `[h, w]` at layer resolution, after ReLU, not normalised (a list for several layers).
    """

    target: int
    label: str
    probability: float
    heatmap: np.ndarray = field(repr=False)
    raw_map: Any = field(repr=False)

    @cached_property
    def attention(self) -> dict[str, Any]:
        """The map in a few numbers: where its energy lies, how concentrated (`onnxcam.explain.statistics.describe`)."""
        return describe(self.heatmap)


@dataclass(frozen=True, eq=False)
class Explanation:
    """One explained picture.

    Attributes:
        picture: uint8 `[H, W, 3]` RGB, as it was read (upright).
        predictions: `(index, label, probability)`, best first, for the five best classes.
        maps: one `Map` per class explained, the first one also as `heatmap`, `target`, `label`, `raw_map`.
        method, layer: how and where (a list of layers where several were fused).
        warnings: sentences about anything doubtful, such as a map that is zero everywhere.
        name: what the picture is called, for messages and folders.
        model: what the file says about itself: source, parity, labels left out.
        kind: what of the class is explained: its `logit`, its `contrast` with another class, its `probability`, or
            `weights` over several classes.
        other: `(index, label)` of the class it is contrasted with, or None.
        per_layer: an explanation for each layer alone, where they were asked for side by side; else empty.
        per_method: an explanation by each method, this one first, where several were asked for; else empty.
    """

    picture: np.ndarray = field(repr=False)
    predictions: list[tuple[int, str, float]]
    maps: list[Map] = field(repr=False)
    method: str
    layer: Any
    warnings: list[str]
    name: str = "picture"
    model: dict[str, Any] = field(default_factory=dict, repr=False)
    kind: str = "logit"
    other: tuple[int, str] | None = None
    per_layer: list[Explanation] = field(default_factory=list, repr=False)
    per_method: list[Explanation] = field(default_factory=list, repr=False)

    @property
    def heatmap(self) -> np.ndarray:
        """float32 `[H, W]` of the original picture."""
        return self.maps[0].heatmap

    @property
    def raw_map(self) -> Any:
        """float32 `[h, w]` at layer resolution, after ReLU, not normalised."""
        return self.maps[0].raw_map

    @property
    def target(self) -> int:
        """The class explained."""
        return self.maps[0].target

    @property
    def label(self) -> str:
        """The name of the class explained."""
        return self.maps[0].label

    @property
    def probability(self) -> float:
        """The predicted probability of the class explained."""
        return self.maps[0].probability

    @property
    def attention(self) -> dict[str, Any]:
        """`heatmap` in a few numbers, as `onnxcam.explain.statistics.describe` gives them."""
        return self.maps[0].attention

    @property
    def title(self) -> str:
        """What is explained, as the panels' heading says it."""
        if self.other is not None:
            return f"{self.label} rather than {self.other[1]}"
        return f"several classes, {self.label} foremost" if self.kind == "weights" else self.label

    def overlay(self, alpha: float = 0.5, colormap: str = "jet") -> np.ndarray:
        """The heatmap over the picture, uint8 `[H, W, 3]` RGB."""
        return image.overlay(self.picture, unit(self.heatmap), alpha, colormap)

    def panel(self, colormap: str = "jet", alpha: float = 0.5) -> np.ndarray:
        """Original, heatmap and overlay side by side with label, probability and colour bar, uint8 RGB."""
        return image.panel(
            self.picture,
            unit(self.heatmap),
            label=self.title,
            probability=self.probability,
            method=self.method,
            alpha=alpha,
            colormap=colormap,
        )

    def layers_panel(self, colormap: str = "jet", alpha: float = 0.5) -> np.ndarray:
        """The picture and the overlay of each layer beside one another, uint8 RGB.

        Raises:
            InputError: the layers were not asked for side by side.
        """
        if not self.per_layer:
            raise InputError(
                "this explanation has no maps of single layers; ask for them with explain(..., layer=[...], "
                "side_by_side=True)"
            )
        return self._gallery([(str(held.layer), held) for held in self.per_layer], colormap, alpha)

    def methods_panel(self, colormap: str = "jet", alpha: float = 0.5) -> np.ndarray:
        """The picture and the overlay of each method beside one another, uint8 RGB.

        Raises:
            InputError: there is one method only.
        """
        if not self.per_method:
            raise InputError(
                "this explanation has the map of one method; ask for several with explain(..., method=[...])"
            )
        return self._gallery([(held.method, held) for held in self.per_method], colormap, alpha)

    def _gallery(self, named: Sequence[tuple[str, Explanation]], colormap: str, alpha: float) -> np.ndarray:
        return image.gallery(
            self.picture,
            [(name, unit(held.heatmap)) for name, held in named],
            label=self.title,
            probability=self.probability,
            alpha=alpha,
            colormap=colormap,
        )

    def to_dict(self) -> dict[str, Any]:
        """The explanation without its arrays, ready for JSON: a probability that is no number is None."""
        return {
            "name": self.name,
            "size": [int(self.picture.shape[0]), int(self.picture.shape[1])],
            "predictions": [
                {"index": index, "label": label, "probability": _finite(probability)}
                for index, label, probability in self.predictions
            ],
            "target": {"index": self.target, "label": self.label, "probability": _finite(self.probability)},
            "objective": {
                "kind": self.kind,
                "other": self.other and {"index": self.other[0], "label": self.other[1]},
            },
            "method": self.method,
            "layer": self.layer,
            "maps": [_record(m) for m in self.maps],
            "layers": [
                {"layer": held.layer, "raw_map": _shapes(held.raw_map), "attention": held.attention}
                for held in self.per_layer
            ],
            "methods": [
                {"method": held.method, "maps": [_record(m) for m in held.maps], "attention": held.attention}
                | {"warnings": [text for text in held.warnings if held is self or text not in self.warnings]}
                for held in self.per_method
            ],
            "warnings": list(self.warnings),
            "model": self.model,
        }

    def save(
        self, directory: str | Path, *, alpha: float = 0.5, colormap: str = "jet", compress: bool = True
    ) -> dict[str, str]:
        """Write the pictures and `explanation.json` into a folder, which is made if need be.

        Arguments:
            directory: where to; files of the same names are replaced.
            alpha, colormap: how overlays are drawn.
            compress: False stores colours as they are: ten times faster, and files of about twice the size.

        Returns:
            file names by what they show, relative to the folder. `explanation.json` is written last and names only
            files that are there; each file is whole or absent.

        Raises:
            OutputError: the folder cannot be made or written to.
        """
        folder = Path(directory)
        _make(folder)
        files: dict[str, str] = {}

        def write(key: str, name: str, pixels: np.ndarray) -> None:
            image.write_png(folder / name, pixels, compress)
            files[key] = name

        def mix(key: str, name: str, gray: np.ndarray) -> None:
            """Grey levels in colours over the picture, drawn as they are written."""
            height, width = gray.shape
            parts = (
                image.blend(self.picture[rows], image.paint(gray[rows], colormap), alpha)
                for rows in png.bands(height, width)
            )
            image.write_pieces(folder / name, png.colors(height, width, parts, compress))
            files[key] = name

        def draw(explanation: Explanation, key: str, where: str) -> None:
            """The maps of one explanation; the grey map and the coloured one share their compressed pixels."""
            gray = image.grayscale(unit(explanation.heatmap))
            packed = png.pack(gray)
            stem = f"{where}{explanation.method}"
            for name, table in (("grayscale", None), ("heatmap", image.palette(colormap))):
                files[f"{key}{name}"] = f"{stem}_{name}.png"
                image.write_bytes(folder / files[f"{key}{name}"], png.shades(packed, table))
            mix(f"{key}overlay", f"{stem}_overlay.png", gray)

        def draw_classes(explanation: Explanation, key: str) -> None:
            """Each class's overlay, where several were explained."""
            if len(explanation.maps) < 2:
                return
            _make(folder / "top_predictions")
            for rank, held in enumerate(explanation.maps, start=1):
                name = f"top_predictions/{explanation.method}_top{rank}_{file_stem(held.label)}.png"
                mix(f"{key}top{rank}", name, image.grayscale(unit(held.heatmap)))

        write("input", "input.png", self.picture)
        draw(self, "", "")
        write("panel", "panel.png", self.panel(colormap, alpha))
        draw_classes(self, "")
        if self.per_method:
            write("methods", "methods.png", self.methods_panel(colormap, alpha))
            for explanation in self.per_method[1:]:
                draw(explanation, f"{explanation.method}/", "")
                draw_classes(explanation, f"{explanation.method}/")
        if self.per_layer:
            write("layers", "layers.png", self.layers_panel(colormap, alpha))
            for stem, explanation in zip(_layer_stems(self.per_layer), self.per_layer, strict=True):
                _make(folder / "layers" / stem)
                draw(explanation, f"layers/{stem}/", f"layers/{stem}/")
        record = self.to_dict() | {"files": dict(files)}
        text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
        # a file name that is no text keeps its bytes as JSON escapes
        image.write_bytes(folder / "explanation.json", text.encode(errors="backslashreplace"))
        return files | {"explanation": "explanation.json"}

    def _repr_png_(self) -> bytes:
        """How a notebook shows it: several methods beside one another, or the panel of one."""
        return image.encode_png(self.methods_panel() if self.per_method else self.panel())


def unit(heatmap: np.ndarray) -> np.ndarray:
    """A map for display: as it is where it lies in 0..1, else divided by its maximum."""
    top = float(heatmap.max(initial=0.0))
    return heatmap / top if top > 1.0 + 1e-6 else heatmap


def file_stem(label: str) -> str:
    """A label as part of a file name: letters, digits and underscores, at most 60 of them."""
    first = label.split(",")[0].strip()
    return re.sub(r"\W+", "_", first).strip("_")[:60] or "class"


def _layer_stems(explanations: Sequence[Explanation]) -> list[str]:
    """A folder's name per layer, told apart by a number where the letters alone are the same."""
    stems: list[str] = []
    for explanation in explanations:
        stem = plain = re.sub(r"[^\w.-]+", "_", str(explanation.layer)).strip("._")[:100] or "layer"
        number = 1
        while stem.casefold() in (held.casefold() for held in stems):
            number += 1
            stem = f"{plain}-{number}"
        stems.append(stem)
    return stems


def _record(held: Map) -> dict[str, Any]:
    return {
        "index": held.target,
        "label": held.label,
        "probability": _finite(held.probability),
        "raw_map": _shapes(held.raw_map),
        "attention": held.attention,
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {str(folder)!r} cannot be made: {error.strerror}; choose another") from error


def _shapes(raw: Any) -> Any:
    return [list(r.shape) for r in raw] if isinstance(raw, list) else list(raw.shape)
