"""Answers about one picture: predictions, maps as pictures, the map's numbers, statistics, warnings."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from onnxcam import image
from onnxcam.explain import saving
from onnxcam.explain.explanation import Explanation, boxes
from onnxcam.explain.preparation import Prepared
from onnxcam.explain.question import Question
from onnxcam.explain.saving import Drawing
from onnxcam.server.models import Model, Prediction, Rows

FILES = ("heatmap", "overlay", "grayscale", "panel", "input", "map")
DEFAULT_FILES = ("heatmap", "overlay")
_URL = b'"data:image/png;base64,'


def answer(
    model: Model,
    prepared: Prepared,
    prediction: Prediction,
    question: Question,
    count: int,
    files: Sequence[str],
    style: Drawing,
) -> dict[str, Any]:
    """The answer about one picture.

    Arguments:
        model: which predicted.
        prepared: the picture.
        prediction: of one row.
        question: about it.
        count: classes in `top_predictions`.
        files: of `FILES`.
        style: of the pictures.
    """
    rows, explanation = prediction.explained, None
    if rows is not None:
        explanation = rows.maps[0].explanation(rows.start, prepared[0], prepared[2])
    predictions = () if explanation is None else explanation.predictions
    top = model.top(prediction.probabilities[0], count, predictions)
    content: dict[str, Any] = {
        "model": model.name,
        "prediction": top[0]["class_name"],
        "confidence": top[0]["confidence"],
        "top_predictions": top,
        **model.calibrated(prediction.scores[:1], count),
        "fired": bool(prediction.fired[0]),
        "target": None,
        "layer": question.layer,
        "method": question.methods[0].name,
        "statistics": None,
        "visible": None,
        "warnings": list(model.explainer.warnings),
    }
    if rows is None or explanation is None:
        content |= dict.fromkeys(empty_fields(files))
        return content
    content["target"] = {
        "class_name": explanation.label,
        "class_index": explanation.target,
        "confidence": explanation.probability,
    }
    if explanation.numeric:  # the quantity of a regression
        content["target"] |= {"confidence": None, "value": explanation.probability}
    content["statistics"] = explanation.statistics
    content["visible"] = boxes(explanation.visible, explanation.picture)
    content["warnings"] = list(explanation.warnings)
    content.update(dict(pictures_of(explanation, files, style)))
    if "map" in files:
        content |= layer_map(rows, prepared[2])
    return content


def empty_fields(files: Iterable[str]) -> list[str]:
    """The names of the maps that an answer has, null where nothing is explained."""
    return [f"gradcam_{name}" for name in files] + (["gradcam_map_box"] if "map" in files else [])


def pictures_of(
    explanation: Explanation, files: Sequence[str], style: Drawing
) -> Iterator[tuple[str, orjson.Fragment]]:
    """The pictures asked for as data URLs, to the byte those that `Explanation.save` writes."""
    for kind, _, pieces in saving.map_files(explanation, style) if style.files else ():
        yield f"gradcam_{kind}", data_url(b"".join(pieces))
    if "panel" in files:
        yield (
            "gradcam_panel",
            data_url(image.encode_png(explanation.panel(style.colormap, style.alpha), style.compress)),
        )
    if "input" in files:
        yield "gradcam_input", data_url(image.encode_png(explanation.picture, style.compress))


def data_url(png: bytes) -> orjson.Fragment:
    """A PNG as a data URL in JSON: it has no character to escape, so that a long text is not searched for one."""
    return orjson.Fragment(b"".join((_URL, binascii.b2a_base64(png, newline=False), b'"')))


def layer_map(rows: Rows, geometry: image.Geometry) -> dict[str, Any]:
    """`gradcam_map` and `gradcam_map_box` of the first row, see `BatchMaps.layer_map`."""
    values, box = rows.maps[0].layer_map(rows.start, geometry)
    return {"gradcam_map": values, "gradcam_map_box": list(box)}
