"""Class names in a model's own metadata: taken where they are one per class, and said where they are not."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam.network import manifest
from onnxcam.network.metadata_labels import find
from tests.support import models

NAMES = ["ant", "bee", "cat", "dog", "eel"]


def carrying(properties: dict[str, str], model: onnx.ModelProto | None = None) -> onnx.ModelProto:
    model = models.tiny_cnn() if model is None else model
    onnx.helper.set_model_props(model, properties)
    return model


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("names", str(dict(enumerate(NAMES)))),  # Ultralytics
        ("names", str(NAMES)),  # YOLOv5
        ("names", str({4: "eel", 2: "cat", 1: "bee", 3: "dog", 0: "ant"})),
        ("classes", json.dumps(NAMES)),
        ("labels", json.dumps({name: index for index, name in enumerate(NAMES)})),
        ("class_names", json.dumps(dict(enumerate(NAMES)))),
        ("class_names", json.dumps([dict(enumerate(NAMES))])),
        ("labels", "\n".join(NAMES)),
        ("labels", "|".join(NAMES)),
        ("classes", ", ".join(NAMES)),
        ("class_labels", ",".join(f"{index}:{name}" for index, name in enumerate(NAMES))),
        ("model_info labels", " ".join(NAMES)),
        ("model_info label_info", json.dumps({"label_names": NAMES, "label_groups": [NAMES]})),
        ("Labels", json.dumps(NAMES)),
    ],
)
def test_names_are_read(key: str, value: str) -> None:
    assert find({key: value, "task": "classify", "stride": "1"}, 5) == (NAMES, None)


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"names": str(NAMES[:4])}, ["`names`", "4 names for 5 classes", "--labels"]),
        ({"names": str({1: "a", 2: "b"})}, ["`names`", "from 1 to 2"]),
        ({"names": "{0: open('x')}"}, ["`names`", "not JSON"]),
        ({"labels": "some words"}, ["`labels`", "some words"]),
        ({"names": str(NAMES), "classes": json.dumps(NAMES[::-1])}, ["`names` and `classes` differ"]),
    ],
)
def test_names_that_do_not_fit_are_said(properties: dict[str, str], words: list[str]) -> None:
    labels, doubt = find(properties, 5)
    assert labels is None and doubt is not None
    assert all(word in doubt for word in words), doubt
    assert onnxcam.Explainer(carrying(properties)).warnings == [doubt]
    assert onnxcam.Explainer(carrying(properties), labels=NAMES).warnings == []


@pytest.mark.parametrize(
    "properties",
    [{"classes": "5"}, {"names": ""}, {"producer": "x"}, {"labels": str([f"LABEL_{n}" for n in range(5)])}],
)
def test_other_metadata_is_no_reason_for_a_warning(properties: dict[str, str]) -> None:
    assert find(properties, 5) == (None, None)


def test_they_are_the_labels_of_plain_and_explainable_files() -> None:
    properties = {"names": str(dict(enumerate(NAMES)))}
    plain = carrying(properties)
    explainer = onnxcam.Explainer(plain, preprocess="0..1")
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    explanation = explainer.explain(picture, target="dog")
    assert (explanation.target, explanation.label) == (3, "dog")
    exported = manifest.read(onnxcam.augment(plain))
    assert exported is not None and exported["labels"] == NAMES
    # a file exported before its names were read
    silent = onnxcam.augment(models.tiny_cnn())
    record = manifest.read(silent)
    onnx.helper.set_model_props(silent, properties)
    manifest.write(silent, record)
    assert onnxcam.Explainer(silent).labels == NAMES
    assert onnxcam.Explainer(silent, labels=NAMES[::-1]).labels == NAMES[::-1]


def test_names_with_their_numbers_the_other_way_round() -> None:
    names = find({"label2id": '{"dog": 1, "cat": 0, "hen": 2}'}, 3)
    assert names.labels == ["cat", "dog", "hen"]
    both = {"label2id": '{"dog": 1, "cat": 0}', "id2label": '{"0": "cat", "1": "dog"}'}
    assert find(both, 2).labels == ["cat", "dog"]
    assert find({"label2id": '{"LABEL_0": 0, "LABEL_1": 1}'}, 2) == find({}, 2)
