"""The last question is remembered only where nothing about it can have changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcam.errors import InputError, TargetError
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.recent import Recent
from onnxcam.targets.objectives import Probability
from tests.cam import net

X = net.pictures()


@pytest.fixture
def explainer() -> Explainer:
    return Explainer(net.model(), layers=[net.LAYER], providers=["CPUExecutionProvider"])


SETTINGS: list[dict[str, Any]] = [
    {}, {"target": 1}, {"target": 2}, {"target": np.int64(2)}, {"target": -1}, {"target": [0, 1, 2]},
    {"target": (2, 1, 0)}, {"target": Probability(1)}, {"method": "hirescam"}, {"method": ["gradcam", "layercam"]},
    {"normalize": "max"}, {"size": "layer"}, {"size": (5, 9)}, {"smooth": "eigen"}, {"smooth": ("eigen",)},
    {"method": "ablationcam", "channels": 2}, {"method": "ablationcam"}, {"layer": net.LAYER}, {"seed": 5},
    {"method": "smoothgrad", "samples": 2, "seed": 1}, {"method": "smoothgrad", "samples": 2, "seed": 2},
]  # fmt: skip


def test_the_answer_does_not_depend_on_what_was_asked_before(explainer: Explainer) -> None:
    """Every setting before every other one that it could be mistaken for."""
    explainer.sessions.rows = 1
    answers = []
    for settings in SETTINGS:
        explainer._recent = Recent()
        answers.append(explainer.attribute(X, **settings))
    order = [*range(len(SETTINGS)), *reversed(range(len(SETTINGS)))]
    for place in order:
        for _ in range(2):
            values = explainer.attribute(X, **SETTINGS[place])
            assert np.array_equal(np.asarray(values), np.asarray(answers[place])), SETTINGS[place]


@pytest.mark.parametrize(("first", "second", "error"), [
    ({"target": 1}, {"target": True}, TargetError), ({"seed": 1}, {"seed": True}, InputError),
    ({"target": 1}, {"target": 1.0}, TargetError), ({"size": (4, 1)}, {"size": (4, 1.0)}, InputError),
])  # fmt: skip
def test_equal_values_of_another_type_are_still_refused(
    explainer: Explainer, first: dict[str, Any], second: dict[str, Any], error: type[Exception]
) -> None:
    explainer.attribute(X, **first)
    with pytest.raises(error):
        explainer.attribute(X, **second)


def test_labels_that_are_exchanged_or_renamed_count(explainer: Explainer) -> None:
    explainer.labels = ["a", "b", "c", "d", "e"]
    one = explainer.attribute(X, "b")
    explainer.labels[0], explainer.labels[1] = "b", "a"
    other = explainer.attribute(X, "b")
    assert np.array_equal(other, explainer.attribute(X, 0)) and np.array_equal(one, explainer.attribute(X, 1))
    explainer.labels = ["c", "a", "b", "d", "e"]
    assert np.array_equal(explainer.attribute(X, "b"), explainer.attribute(X, 2))


def test_another_batch_size_is_another_question(explainer: Explainer) -> None:
    three = explainer.attribute(X)
    assert np.allclose(explainer.attribute(X[:1]), three[:1], atol=1e-6)
    assert np.array_equal(explainer.attribute(X), three)
