"""The class that a target means: -1 is each row's own top-1 everywhere, None the class a file is bound to, if it is."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import onnxcam
from onnxcam import Contrast, Explainer, Probability
from onnxcam.cam.methods import INPUT, find, methods
from onnxcam.targets.readout import BINARY, KINDS, LOGITS, MULTILABEL, PROBABILITIES, REGRESSION
from tests.support import models

RAW = {"color": "RGB", "scale": 1 / 255, "resize": {"mode": "stretch", "size": [16, 16]}}
OF_CLASSES = [kind for kind in KINDS if kind != REGRESSION]
ENDINGS = {LOGITS: None, PROBABILITIES: "Softmax"}
ROWS, MODES = 4, ("optional", "required", "constant")
LAYERS = ("relu2", ["relu1", "relu2"])
PLAIN: dict[str, Any] = {"normalize": "none", "size": "layer"}
# of methods that would take long
QUICK: dict[str, dict[str, Any]] = {
    "rise": {"masks": 4},
    "occlusion": {"window": 8},
    "scorecam": {"channels": 4},
    "integrated_gradients": {"steps": 2},
    "smoothgrad": {"samples": 2},
    "smoothgradcam++": {"samples": 2},
    "sscam": {"samples": 2, "channels": 4},
    "iscam": {"samples": 2, "channels": 4},
}
OF_TRANSFORMERS = {"rollout", "legrad"}
METHODS = [name for name in methods() if name not in OF_TRANSFORMERS]


def pictures(rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(rows, 3, 16, 16)).astype(np.float32)


@functools.cache
def file(kind: str, mode: str) -> tuple[Any, int, np.ndarray]:
    """An explainable file, the class it is bound to (or would be), and the top-1 of each row, which differ."""
    net = models.tiny_cnn(
        classes=1 if kind == BINARY else 4,
        size=16,
        width=4,
        ending=ENDINGS.get(kind, "Sigmoid"),
        seed={LOGITS: 2, PROBABILITIES: 2, MULTILABEL: 3, BINARY: 6}[kind],
    )
    top = Explainer(net).run(pictures()).target
    bound = next(index for index in range(2) if (top != index).any())
    target: Any = bound if mode == "constant" else mode
    return onnxcam.augment(net, ["relu1", "relu2"], target=target, kind=kind, preprocess=RAW), bound, top


def meanings(kind: str, mode: str) -> tuple[Any, dict[Any, list[int]]]:
    """A file, and for each target that names no class the classes that it means."""
    source, bound, top = file(kind, mode)
    return source, {-1: top.tolist(), None: [bound] * ROWS if mode == "constant" else top.tolist()}


def options_of(method: str) -> dict[str, Any]:
    return {key: value for key, value in QUICK.get(method, {}).items() if key in find(method).options}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_a_file_bound_to_a_class(method: str) -> None:
    source, means = meanings(LOGITS, "constant")
    explainer, options = Explainer(source), options_of(method)
    for target, classes in means.items():
        maps = explainer.attribute(pictures(), target, method, **PLAIN, **options)
        np.testing.assert_allclose(
            maps, explainer.attribute(pictures(), classes, method, **PLAIN, **options), rtol=1e-3, atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", OF_CLASSES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layer", LAYERS, ids=["one layer", "several layers"])
def test_every_kind_of_file_and_of_layer(kind: str, mode: str, layer: Any) -> None:
    source, means = meanings(kind, mode)
    # one that the file stores, one that is computed from its gradients, from its scores, and at the input
    for method in ("gradcam", "hirescam", "ablationcam", "saliency"):
        by_class = {}
        for target, classes in means.items():
            # each from a file as it was opened: the first question extends it in memory
            maps = Explainer(source).attribute(pictures(), target, method, layer, **PLAIN)
            by_class[target] = Explainer(source).attribute(pictures(), classes, method, layer, **PLAIN)
            np.testing.assert_allclose(maps, by_class[target], rtol=1e-3, atol=1e-5, err_msg=f"{method} {target}")
        if mode == "constant" and kind != BINARY:
            assert not np.allclose(by_class[-1], by_class[None], atol=1e-4), "the two could not be told apart"


@pytest.mark.sample(4)
@pytest.mark.parametrize("kind", OF_CLASSES)
@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_asking(kind: str, mode: str) -> None:
    source, means = meanings(kind, mode)
    for target, classes in means.items():
        explainer = Explainer(source)
        assert explainer.run(pictures(), target).target.tolist() == classes
        examination = explainer.examine(pictures(), ["relu1", "relu2"])
        assert examination.objective(target).classes.tolist() == classes
        for ask in (explainer.attribution, functools.partial(examination_attribution, examination)):
            expected = explainer.attribution(pictures(), classes)
            np.testing.assert_allclose(ask(pictures(), target), expected, rtol=1e-3, atol=1e-5)
        maps = examination.attribute(target, layer="relu2", **PLAIN)
        expected = explainer.attribute(pictures(), classes, **PLAIN)
        np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-5)
        shots = [np.random.default_rng(row).integers(0, 256, (16, 16, 3), np.uint8) for row in range(2)]
        top = [explanation.predictions[0][0] for explanation in explainer.explain(shots)]
        expected_classes = [file(kind, mode)[1]] * 2 if target is None and mode == "constant" else top
        assert [e.target for e in explainer.explain(shots, target)] == expected_classes
        assert [e.target for e in explainer.stream(shots, target)] == expected_classes
        assert [e.target for e in explainer.explain(shots, [target, target])] == expected_classes
        assert [e.target for e in explainer.explain(shots, Probability(target))] == expected_classes
        assert [e.target for e in explainer.explain(shots, Contrast(target))] == expected_classes


def examination_attribution(examination: Any, batch: np.ndarray, target: Any) -> np.ndarray:
    return np.asarray(examination.attribution(target))


def test_a_gradient_of_a_top_1_in_a_bound_file_is_that_of_the_class_named() -> None:
    """The bare file has no input for it, so it is extended in memory; asked again, it is ready."""
    source, bound, top = file(LOGITS, "constant")
    explainer = Explainer(source)
    raw = explainer.run(pictures(), -1)
    np.testing.assert_allclose(raw.gradients, explainer.run(pictures(), top).gradients, atol=1e-6)
    assert (explainer.run(pictures(), None).target == bound).all()
    mixed = explainer.run(pictures(), [-1, bound, -1, None]).target
    assert mixed.tolist() == [top[0], bound, top[2], bound]


@pytest.mark.parametrize("kind", [LOGITS, MULTILABEL])
def test_evaluation_judges_the_bound_class(kind: str) -> None:
    pytest.importorskip("cv2")
    from onnxcam.evaluation.judge import evaluate

    shots = [np.random.default_rng(row).integers(0, 256, (16, 16, 3), np.uint8) for row in range(2)]
    source, bound, _ = file(kind, "constant")
    explainer = Explainer(source)
    top = [e.predictions[0][0] for e in explainer.explain(shots)]
    for targets, expected in ((None, [bound, bound]), ([-1, -1], top)):
        evaluation = evaluate(explainer, shots, methods=["gradcam"], metrics=["average_drop"], targets=targets)
        assert list(evaluation.classes) == expected


@pytest.mark.parametrize("method", [name for name in METHODS if find(name).kind == INPUT][:2])
def test_attributions_of_the_top_1(method: str) -> None:
    source, means = meanings(LOGITS, "constant")
    explainer, options = Explainer(source), options_of(method)
    for target, classes in means.items():
        np.testing.assert_allclose(
            explainer.attribution(pictures(), target, method, **options),
            explainer.attribution(pictures(), classes, method, **options),
            rtol=1e-3,
            atol=1e-5,
        )


def test_the_monitor_explains_the_bound_class() -> None:
    """What a bound file is asked where nobody names a class: the prediction is recorded as it was."""
    source, bound, top = file(LOGITS, "constant")
    other = onnxcam.augment(models.tiny_cnn(classes=4, size=16, width=4, seed=2), ["relu1", "relu2"], preprocess=RAW)
    scores = Explainer(other).run(pictures()).scores
    for model, classes in ((source, [bound] * ROWS), (other, top.tolist())):
        records: list[dict[str, Any]] = []
        with onnxcam.Monitor(
            model.SerializeToString(),
            sink=lambda record, files: records.append(record),  # noqa: B023
            when="confidence <= 1",
            worker="inline",
            rate=None,
            daily_budget=None,
        ) as monitor:
            monitor.observe(scores, tensor=pictures())
        assert [record["prediction"]["target"]["index"] for record in records] == classes
        assert [record["prediction"]["top"][0]["index"] for record in records] == top.tolist()
        raw = [np.asarray(Explainer(other).attribute(pictures(), classes, **PLAIN)[row]).ravel() for row in range(ROWS)]
        for record, expected in zip(records, raw, strict=True):
            np.testing.assert_allclose(record["map"]["values"], expected / max(expected.max(), 1e-9) * 255, atol=0.51)
