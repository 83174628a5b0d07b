"""Class names that exporters write into a model's own metadata (`metadata_props`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from onnxcam.errors import LabelsError

# Ultralytics and YOLOv5 write `names`, a Python literal; others JSON, or a list with a separator
KEYS = ("names", "class_names", "classes", "labels", "class_labels", "label_names", "id2label", "label2id",
        "model_info label_info", "model_info labels")  # fmt: skip
_SEPARATORS = "\n|,;"
# a Hugging Face configuration in which nobody named the classes
_PLACEHOLDER = re.compile(r"LABEL_\d+")


class MetadataLabels(NamedTuple):
    """Class names by index, or None; and a sentence about names that could not be taken."""

    labels: list[str] | None = None
    doubt: str | None = None


def find(properties: Mapping[str, str], classes: int) -> MetadataLabels:
    """Find the class names in a model's metadata.

    Names are taken where they are one per class, and all keys that fit agree.

    Arguments:
        properties: the metadata.
        classes: number of classes of the model.
    """
    by_key = {key.strip().casefold(): value for key, value in properties.items()}
    fitting: dict[str, list[str]] = {}
    reasons = []
    for key in KEYS:
        text = by_key.get(key, "").strip()
        if not text or text.isdecimal():  # `classes` may be their number
            continue
        try:
            names = _read(text, classes, spaces=key == "model_info labels")
        except LabelsError as error:
            reasons.append(f"`{key}`: {error}")
            continue
        if all(_PLACEHOLDER.fullmatch(name) for name in names):
            continue
        if len(names) == classes:
            fitting[key] = names
        else:
            reasons.append(f"`{key}` has {len(names)} names for {classes} classes")
    if fitting and all(names == next(iter(fitting.values())) for names in fitting.values()):
        return MetadataLabels(next(iter(fitting.values())))
    if fitting:
        reasons = [f"{' and '.join(f'`{key}`' for key in fitting)} differ"]
    if not reasons:
        return MetadataLabels()
    return MetadataLabels(
        None,
        f"the class names in the model's metadata are left out ({'; '.join(reasons)}); give them with --labels FILE "
        "(labels=)",
    )


def any_names(properties: Mapping[str, str]) -> list[str] | None:
    """The class names in a model's metadata whatever their number, None if there are none."""
    by_key = {key.strip().casefold(): value.strip() for key, value in properties.items()}
    for text in (by_key.get(key, "") for key in KEYS):
        if not text or text.isdecimal():
            continue
        separator = next((mark for mark in _SEPARATORS if mark in text), "\n")
        try:
            return _read(text, text.count(separator) + 1, spaces=False)
        except LabelsError:
            continue
    return None


def _read(text: str, classes: int, spaces: bool) -> list[str]:
    """Names from one value.

    Raises:
        LabelsError: it cannot be told what they are.
    """
    from onnxcam.targets import labels

    if spaces:  # OpenVINO's Model API writes a blank within a name as an underscore
        return text.split()
    if text[0] not in "[{" and not text.startswith("OrderedDict("):
        parts = [text.split(separator) for separator in _SEPARATORS]
        text = next(("\n".join(names) for names in parts if len(names) == classes > 1), text)
        if "\n" not in text:
            raise LabelsError(f"{text[:40]!r} is neither JSON nor a list of {classes} names")
    return labels.parse(text)
