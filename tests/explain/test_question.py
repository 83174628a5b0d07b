"""A question is the same whether it comes as keywords, flags, a form or JSON; what cannot be asked is one sentence."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxcam.cam.methods import find
from onnxcam.cli.question import flag
from onnxcam.errors import InputError, MethodError, OnnxcamError, TargetError
from onnxcam.explain.question import KEYS, SEED, Question, Terms
from onnxcam.targets.objectives import Contrast, Probability, Weights
from onnxcam.targets.readout import BINARY, LOGITS, Readout

LABELS = ["cat", "tiger cat, tiger", "crane", "hen", "7"]
TERMS = Terms(Readout("scores", LOGITS, 5), LABELS, ["relu1", "relu2"])
BOUND = TERMS._replace(bound_class=3)


def settings_of(question: Question) -> dict[str, Any]:
    """Everything a question says, to be compared."""
    more = {"several": (question.several_methods, question.several_layers), "side_by_side": question.side_by_side}
    return question.describe() | more | {"options": dict(question.options), "targets": question.targets}


@pytest.mark.parametrize(
    ("keywords", "texts", "values"),
    [
        ({}, {}, {}),
        ({"target": 1}, {"target": "tiger"}, {"target": "TIGER CAT"}),
        ({"target": 4}, {"target": "7"}, {"target": 4}),
        ({"target": 3}, {"target": " 3"}, {"target": 3}),
        ({"target": -1}, {"target": "-1"}, {"target": -1}),
        ({"target": Contrast(1, 3)}, {"target": "1", "contrast": "hen"}, {"target": 1, "contrast": 3}),
        ({"target": Contrast(1)}, {"target": "tiger", "contrast": "Runner-Up"}, {"target": 1, "contrast": "runner-up"}),
        ({"target": Contrast()}, {"contrast": "runner-up"}, {"contrast": "runner-up"}),
        ({"target": Probability(3)}, {"target": "hen", "probability": "yes"}, {"target": 3, "probability": True}),
        ({"target": Probability()}, {"probability": "on"}, {"probability": True}),
        ({"target": [1, -1]}, {"target": ["tiger", "-1"]}, {"target": ["tiger", -1]}),
        (
            {"target": [Contrast(1, 3), Contrast(0, 3)]},
            {"target": ("1", "cat"), "contrast": "hen"},
            {"target": [1, 0], "contrast": 3},
        ),
        ({"top": 3}, {"top": "3"}, {"top": 3}),
        ({"method": "hirescam"}, {"method": "hirescam"}, {"method": ["hirescam"]}),
        (
            {"method": ["gradcam", "saliency"]},
            {"method": ("gradcam", "saliency", "gradcam")},
            {"method": ["gradcam", "saliency"]},
        ),
        ({"layer": "relu1"}, {"layer": ("relu1",)}, {"layer": "relu1"}),
        ({"layer": ["relu1", "relu2"]}, {"layer": ["relu1", "relu2"]}, {"layer": ["relu1", "relu2"]}),
        ({"side_by_side": True}, {"side_by_side": "true"}, {"side_by_side": True}),
        (
            {"method": "rise", "options": {"masks": 9, "keep": 0.25}},
            {"method": "rise", "option": ["masks=9", "keep=0.25"]},
            {"method": "rise", "option": {"masks": 9, "keep": 0.25}},
        ),
        (
            {"normalize": "max", "fusion": "product", "smooth": ("eigen", "augment"), "seed": 5},
            {"normalize": "max", "fusion": "product", "smooth": ("augment", "eigen"), "seed": "5"},
            {"normalize": "max", "fusion": "product", "smooth": ["eigen", "augment"], "seed": 5},
        ),
    ],
    ids=str,
)
def test_keywords_texts_and_json_ask_the_same(
    keywords: dict[str, Any], texts: dict[str, Any], values: dict[str, Any]
) -> None:
    expected = settings_of(Question.of(TERMS, **keywords))
    assert settings_of(Question.parse(texts, TERMS)) == expected
    assert settings_of(Question.parse(json.loads(json.dumps(values)), TERMS)) == expected
    empty = dict.fromkeys(KEYS) | texts
    assert settings_of(Question.parse(empty, TERMS, spell=flag)) == expected
    json.dumps(Question.of(TERMS, **keywords).describe())


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"targets": 1}, InputError, ["no --targets", "--target,"]),
        ({"target": "dog"}, TargetError, ["no class is called 'dog'"]),
        ({"target": 9}, TargetError, ["0 to 4"]),
        ({"target": "9" * 5000}, TargetError, ["no class is called"]),
        ({"target": 1, "top": 2}, TargetError, ["--target and --top"]),
        ({"contrast": "hen", "top": 2}, TargetError, ["--contrast and --top"]),
        ({"contrast": "hen", "probability": True}, InputError, ["--contrast and --probability exclude each other"]),
        ({"target": "hen", "contrast": 3}, TargetError, ["'hen' is the target itself"]),
        ({"top": 9}, TargetError, ["--top 9", "1 to 5"]),
        ({"top": "many"}, InputError, ["--top 'many'", "whole number"]),
        ({"probability": "perhaps"}, InputError, ["--probability", "yes or no"]),
        ({"method": "gradcma"}, MethodError, ["'gradcam'"]),
        ({"method": 5}, InputError, ["--method 5"]),
        ({"method": "rise", "option": ["masks"]}, InputError, ["--option 'masks'", "KEY=VALUE", "masks=1000"]),
        ({"method": "rise", "option": "masks=x"}, InputError, ["a whole number"]),
        ({"method": "rise", "option": {"mask": 1}}, InputError, ["no option 'mask'", "masks=1000"]),
        ({"normalize": "most"}, InputError, ["--normalize 'most'", "minmax"]),
        ({"fusion": "sum"}, InputError, ["--fusion 'sum'", "product"]),
        ({"smooth": "more"}, InputError, ["eigen"]),
        ({"smooth": "augment", "top": 2}, InputError, ["--smooth 'augment'", "one map of one class", "--side-by-side"]),
        ({"layer": "relu1", "side_by_side": True}, InputError, ["--side-by-side", "only layer 'relu1'", "--layer"]),
        ({"layer": [1]}, InputError, ["--layer"]),
        ({"option": 5}, InputError, ["--option 5", "KEY=VALUE"]),
        ({"option": [5]}, InputError, ["--option [5]", "a mapping"]),
        ({"seed": -1}, InputError, ["--seed -1"]),
        ({"seed": "x"}, InputError, ["--seed 'x'"]),
        ({"target": {"hen": 1}}, TargetError, ["a dict"]),
        ({"target": 1.5}, TargetError, ["a float"]),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_one_sentence(
    values: dict[str, Any], kind: type[OnnxcamError], words: list[str]
) -> None:
    with pytest.raises(OnnxcamError) as error:
        Question.parse(values, TERMS, spell=flag)
    assert type(error.value) is kind
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["normalize", "fusion", "seed"])
def test_messages_name_none_where_it_was_given(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}=None; expected"):
        Question.of(TERMS, **{name: None})


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_question_can_be_copied_and_pickled(duplicate: Callable[[Question], Question]) -> None:
    question = Question.of(TERMS, target=Contrast(1, 3), method=["gradcam", "rise"], options={"masks": 9})
    same = duplicate(question)
    assert settings_of(same) == settings_of(question) and same.methods == question.methods and same.terms == TERMS
    assert same.methods[0] is find("gradcam")


def test_one_target_for_all_or_one_per_picture() -> None:
    scores = np.array([[0, 5, 1, 2, 3], [9, 0, 0, 0, 0], [0, 0, 7, 0, 0]], np.float32)
    one, each = Question.of(TERMS, rows=3, target="hen"), Question.of(TERMS, rows=3, target=["hen", None, -1])
    assert one.classes(3).tolist() == [3, 3, 3] and each.classes(3).tolist() == [3, -1, -1]
    assert each.of_rows(1, 3).objective(scores[1:]).classes.tolist() == [0, 2]
    assert one.of_rows(1, 3) is one
    with pytest.raises(TargetError, match="got 2 targets for 3 pictures"):
        Question.of(TERMS, rows=3, target=["hen", "cat"])
    mixed = Question.of(TERMS, rows=3, target=[Contrast("hen"), "cat", Weights({"crane": 1})])
    assert not mixed.of_classes and mixed.objective(scores).classes.tolist() == [3, 0, 2]
    assert Question.of(TERMS, rows=2, target=np.array([1, -1])).classes(2).tolist() == [1, -1]


def test_none_is_the_bound_class_and_minus_one_is_not() -> None:
    scores = np.array([[0, 5, 1, 2, 3]], np.float32)
    for target, expected in ((None, 3), (-1, 1), (Probability(), 3), (Probability(-1), 1), (Contrast(), 3)):
        assert Question.of(BOUND, target=target).objective(scores).classes.tolist() == [expected]
        unbound = [1] if target != 3 else [3]
        assert Question.of(TERMS, target=target).objective(scores).classes.tolist() == unbound
    assert Question.of(BOUND).describe()["target"] is None
    assert [Question.of(BOUND, target=target).lacks_target for target in (None, 3, -1, 1)] == [False, False, True, True]


def test_what_a_question_needs_of_the_model() -> None:
    plain = Question.of(TERMS)
    assert plain.plain and not plain.alone and plain.layers_read == ("relu2",) and plain.input_gradient is None
    assert plain.seed == SEED and plain.layer == "relu2"
    saliency = Question.of(TERMS, method="saliency")
    assert saliency.input_gradient == "plain" and saliency.layers_read == () and saliency.alone
    assert Question.of(TERMS, method="saliency", target=Probability()).input_gradient is None
    assert not Question.of(TERMS, target=Contrast()).plain and not Question.of(TERMS, smooth="eigen").plain
    assert not Question.of(TERMS, top=2).plain
    both = Question.of(TERMS, method=[find("gradcam"), "rise"], options={"masks": 5})
    assert both.options_of(both.methods[0]) == {} and both.options_of(both.methods[1]) == {"masks": 5}
    with pytest.raises(MethodError, match="no option 'mask'"):
        Question.of(TERMS, method="rise", options={"mask": 5})


def test_a_binary_model_has_two_classes() -> None:
    terms = Terms(Readout("scores", BINARY, 2), None, ["relu2"])
    scores = np.array([[2.0], [-1.0]], np.float32)
    assert Question.of(terms, rows=2).objective(scores).classes.tolist() == [1, 0]
    with pytest.raises(TargetError, match="1 to 2"):
        Question.of(terms, top=3)


def test_an_empty_list_of_methods_is_refused_and_says_why() -> None:
    with pytest.raises(InputError, match=r"method=\[\].*an empty list asks for no map at all"):
        Question.of(Terms(Readout("scores", LOGITS, 2), None, ["layer"]), method=[])
