"""Feature maps as files: one page over all layers, a page per layer, their numbers, and their values on request."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam import image
from onnxcam.documents import render
from onnxcam.image import sheet
from onnxcam.image.stack import encode_stack
from onnxcam.inside import feature_maps, outcome
from onnxcam.inside.feature_maps import FeatureMaps
from onnxcam.inside.files import stems

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer

VALUES = ("none", "npy", "tiff")
_FIRST = 12  # channels of each layer on the page over all of them


@dataclass(frozen=True)
class Style:
    """How feature maps are shown.

    Attributes:
        order, max_channels: as of `features`.
        scale, colormap: as of `FeatureMaps.grid`.
        values: `none`, or the file in which the values of all channels are written: `npy` or `tiff`.
    """

    order: str = "variance"
    max_channels: int = feature_maps.MAX_CHANNELS
    scale: str = "channel"
    colormap: str = "viridis"
    values: str = "none"


def write(
    explainer: Explainer,
    prepared: tuple[image.Picture, np.ndarray, image.Geometry],
    layers: Sequence[str],
    folder: Path,
    style: Style,
) -> dict[str, Any]:
    """Write `features.png`, `features_<layer>.png`, `features.json` and the values, if asked for, into a folder.

    Returns:
        what `features.json` says.

    Raises:
        OutputError: a file cannot be written.
    """
    feature_maps.check_settings(style.max_channels, style.order)
    every, scores = feature_maps.of_prepared(
        explainer, prepared, layers, max_channels=style.max_channels, order=style.order
    )
    kind, predictions = outcome.kind_of(explainer.terms.readout), outcome.predictions(explainer, scores)[:1]
    number = "probability" if kind == outcome.CLASSES else "value"
    record: dict[str, Any] = {
        "picture": prepared[0].name,
        "prediction": next(({"index": index, "label": label, number: p} for index, label, p in predictions), None),
        "order": style.order,
        "scale": style.scale,
        "layers": [],
    }
    image.write_png(folder / "features.png", overview(every, outcome.listed(kind, predictions), style))
    for maps, stem in zip(every, stems(maps.layer for maps in every).values(), strict=True):
        entry = maps.describe() | {"file": f"features_{stem}.png"}
        image.write_png(folder / entry["file"], maps.grid(scale=style.scale, colormap=style.colormap))
        if style.values != "none":
            entry["values"] = f"features_{stem}.{style.values}"
            image.write_bytes(folder / entry["values"], encode(maps.values, style.values))
        record["layers"].append(entry)
    image.write_bytes(folder / "features.json", render(record))
    return record


def encode(values: np.ndarray, kind: str) -> bytes:
    """Float32 `[C, h, w]` as the bytes of an `npy` or `tiff` file."""
    if kind == "tiff":
        return encode_stack(values)
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(values, np.float32))
    return buffer.getvalue()


def overview(every: Sequence[FeatureMaps], answer: str, style: Style) -> sheet.Pixels:
    """Draw one page over all layers: the picture, and the first channels of each.

    Arguments:
        answer: what the model says of the picture, empty for nothing.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    columns = feature_maps.COLUMNS
    notes = [f"{feature_maps.CAPTIONS} Bright: strong."]
    title = "What a layer responds to" if len(every) == 1 else f"What {len(every)} layers respond to"
    parts = [sheet.heading(f"{title}: {answer}" if answer else title, notes)]
    if every and every[0].picture is not None:
        parts.append(sheet.grid([sheet.Cell(every[0].picture, "what the model sees")], 3))
    for maps in every:
        parts.append(sheet.heading(maps.layer, maps.notes(_FIRST)))
        parts.append(sheet.grid(maps.cells(_FIRST, style.scale, style.colormap), columns))
    ends = ("lowest", "highest")
    parts.append(sheet.scale(image.palette(style.colormap), *ends))
    return sheet.page(parts)
