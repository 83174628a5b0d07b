"""What is explained of a model that is no classifier, as texts and as JSON; wrong combinations are one sentence."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from onnxcam.cli.question import flag
from onnxcam.errors import InputError, OnnxcamError, TargetError
from onnxcam.explain.question import Question, Terms
from onnxcam.targets.difference import Difference
from onnxcam.targets.readout import LOGITS, Readout
from onnxcam.targets.scalars import Box, Region, Several, Similarity, Value
from onnxcam.targets.tasks import Detect, Embed, Segment, Slab, Task, Values

NAMES = ["cat", "dog", "7"]


def terms(task: Task, labels: list[str] | None = NAMES) -> Terms:
    return Terms(Readout.of_task("columns", task), labels, ["layer"])


DETECTOR = terms(Detect(Slab(0, 4, 7), Slab(4, 3, 7), 7, 3, 20))
SEGMENTER = terms(Segment(3, 4, 6))
EMBEDDING = terms(Embed(3), None)
VALUES = terms(Values(("depth", "pose"), (1, 3)), ["depth", "pose[0]", "pose[1]", "pose[2]"])
CLASSIFIER = Terms(Readout("scores", LOGITS, 3), NAMES, ["layer"])


@pytest.mark.parametrize(
    ("model", "texts", "values", "target"),
    [
        (DETECTOR, {"box": ["3"]}, {"box": 3}, Box(3)),
        (DETECTOR, {"box": ["3", "rank:1"]}, {"box": [3, {"rank": 1}]}, Several([Box(3), Box(rank=1)])),
        (DETECTOR, {"box": ["label:dog"]}, {"box": {"label": "dog"}}, Box(label=1)),
        (DETECTOR, {"box": ["label:dog;at:9,8"]}, {"box": {"label": "dog", "at": [9, 8]}}, Box(label=1, at=(9, 8))),
        (DETECTOR, {"box": ["3"], "part": "x0"}, {"box": 3, "part": "x0"}, Box(3, part="x0")),
        (DETECTOR, {"part": "score*iou"}, {"part": "score*iou"}, Box(part="score*iou")),
        (DETECTOR, {"target": "dog"}, {"target": 1}, Box(label=1)),
        (DETECTOR, {"target": "7"}, {"target": {"box": {"label": "7"}}}, Box(label=2)),
        (SEGMENTER, {"region": "1,2,30,40", "target": "dog"}, {"region": [1, 2, 30, 40], "target": 1},
         Region(1, (1, 2, 30, 40))),
        (SEGMENTER, {"region": "1,2,30,40"}, {"target": {"region": [1, 2, 30, 40]}}, Region(None, (1, 2, 30, 40))),
        (VALUES, {"output": "pose[2]"}, {"output": {"output": "pose", "index": 2}}, Value("pose", 2)),
        (VALUES, {"output": "-depth"}, {"target": {"output": "depth", "sign": -1}}, Value("depth", None, -1)),
    ],
)  # fmt: skip
def test_texts_and_json_ask_the_same(model: Terms, texts: dict[str, Any], values: dict[str, Any], target: Any) -> None:
    expected = Question.of(model, target=target).describe()
    assert Question.parse(texts, model, spell=flag).describe() == expected
    assert Question.parse(json.loads(json.dumps(values)), model).describe() == expected
    assert type(Question.parse(texts, model).targets[0]) is type(Question.of(model, target=target).targets[0])


def test_a_vector_is_compared_with_and_a_contrast_is_a_difference() -> None:
    question = Question.parse({"like": [3.0, 0.0, 4.0]}, EMBEDDING)
    np.testing.assert_allclose(question.targets[0].vector, [0.6, 0, 0.8])
    both = Question.parse({"like": [1, 0, 0], "contrast": [0, 1, 0]}, EMBEDDING).targets[0]
    assert isinstance(both, Difference) and isinstance(both.second, Similarity)
    boxes = Question.parse({"box": ["1", "2"], "contrast": "label:dog"}, DETECTOR).targets[0]
    assert [(one.first.index, one.second.label) for one in boxes] == [(1, 1), (2, 1)]
    region = Question.parse({"region": "0,0,9,9", "target": "cat", "contrast": "dog"}, SEGMENTER).targets[0]
    assert (region.first.label, region.second.label, region.second.region) == (0, 1, (0, 0, 9, 9))
    value = Question.parse({"output": "depth", "contrast": "pose[0]"}, VALUES).targets[0]
    assert (value.first.index, value.second.index) == (0, 1)


@pytest.mark.parametrize(
    ("model", "values", "kind", "words"),
    [
        (DETECTOR, {"box": ["1"], "region": "0,0,1,1"}, InputError, ["--box and --region exclude each other"]),
        (DETECTOR, {"part": "x0", "like": [1.0]}, InputError, ["--box and --like exclude"]),
        (DETECTOR, {"box": ["1"], "target": "cat"}, InputError, ["--target and --box", "--box 'label:cat'"]),
        (VALUES, {"output": "depth", "target": "depth"}, InputError, ["--target and --value exclude"]),
        (DETECTOR, {"box": ["1"], "top": 2}, TargetError, ["--box and --top"]),
        (DETECTOR, {"box": ["1"], "probability": True}, InputError, ["--probability is of a class", "--box"]),
        (DETECTOR, {"box": ["three"]}, TargetError, ["'three'", "label:cat"]),
        (DETECTOR, {"box": ["at:1"]}, TargetError, ["'at:1'", "at:120,80"]),
        (DETECTOR, {"box": [{"label": "cat", "size": 3}]}, TargetError, ["no 'size'"]),
        (DETECTOR, {"box": []}, TargetError, ["0 boxes"]),
        (DETECTOR, {"box": ["1"], "part": "middle"}, TargetError, ["middle", "score*iou"]),
        (DETECTOR, {"box": ["label:horse"]}, TargetError, ["horse"]),
        (DETECTOR, {"region": "0,0,1,1"}, TargetError, ["a detector", "--box"]),
        (DETECTOR, {"contrast": "dog"}, TargetError, ["a detector"]),
        (SEGMENTER, {"region": "0,0,1"}, TargetError, ["4 finite numbers"]),
        (SEGMENTER, {"region": "5,5,5,9"}, TargetError, ["no area"]),
        (SEGMENTER, {"box": ["1"]}, TargetError, ["segmentation", "--region"]),
        (EMBEDDING, {}, TargetError, ["--like"]),
        (EMBEDDING, {"like": "/etc/passwd"}, TargetError, ["'/etc/passwd'", "numbers of an embedding"]),
        (EMBEDDING, {"like": [1.0, 2.0]}, TargetError, ["2 numbers", "3"]),
        (EMBEDDING, {"like": [0.0, 0.0, 0.0]}, TargetError, ["zero"]),
        (VALUES, {}, TargetError, ["pose[0]"]),
        (VALUES, {"output": "pose"}, TargetError, ["pose", "[index]"]),
        (VALUES, {"output": "speed"}, TargetError, ["speed", "depth"]),
        (CLASSIFIER, {"box": ["1"]}, TargetError, ["a detector", "a classifier"]),
        (CLASSIFIER, {"region": "0,0,9,9", "target": "cat"}, TargetError, ["a classifier"]),
        (CLASSIFIER, {"target": {"minus": [{"box": 1}]}}, TargetError, ["two targets"]),
    ],
)
def test_wrong_combinations_are_one_sentence(
    model: Terms, values: dict[str, Any], kind: type[OnnxcamError], words: list[str]
) -> None:
    with pytest.raises(OnnxcamError) as error:
        Question.parse(values, model, spell=flag)
    assert type(error.value) is kind, error.value
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)
