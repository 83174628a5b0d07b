"""Comparing preprocessings: the right one is known, from the bundled model, from labels, or by construction."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcam.models
from onnxcam import image
from onnxcam.diagnose.candidates import candidates
from onnxcam.diagnose.preprocessing import compare
from onnxcam.errors import InputError, PreprocessError
from onnxcam.explain.explainer import Explainer
from tests.image.pictures import noise
from tests.support import models
from tests.support.batches import imagenet

MODEL = onnxcam.models.path("efficientnet_lite0.onnx")


def crops(name: str, count: int) -> list[np.ndarray]:
    """Parts of a bundled photograph, some of them mirrored."""
    pixels = image.load(onnxcam.models.path(name)).pixels
    rng = np.random.default_rng(1234)
    parts = []
    for _ in range(count):
        height, width = (np.array(pixels.shape[:2]) * rng.uniform(0.6, 1.0)).astype(int)
        y, x = rng.integers(0, pixels.shape[0] - height + 1), rng.integers(0, pixels.shape[1] - width + 1)
        part = pixels[y : y + height, x : x + width]
        parts.append(np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part))
    return parts


@pytest.mark.slow
def test_without_labels_the_bundled_model_prefers_its_own() -> None:
    paths, _ = imagenet()
    comparison = compare(Explainer(MODEL), paths)
    assert comparison.pictures == 20 and not comparison.labelled and not comparison.alike and comparison.passed
    assert comparison.best.recorded and comparison.best.name == "-1..1 RGB crop"
    assert comparison.recorded is not None and not comparison.recorded.decided and comparison.recorded.margin == 0
    values, color, resize = comparison.verdicts
    assert set(values.beaten) >= {"caffe", "raw"} and color.decided and color.rival == "BGR"
    assert not resize.decided, "stretching these photographs costs the model nothing that twenty could show"


@pytest.mark.slow
def test_with_labels_a_wrong_preprocessing_fails() -> None:
    paths, targets = imagenet()
    comparison = compare(Explainer(MODEL, preprocess="caffe"), paths, targets)
    assert not comparison.passed and comparison.recorded is not None and comparison.recorded.margin > 2
    assert (comparison.best.values, comparison.best.color) == ("-1..1", "RGB")
    accuracy = {result.candidate.name: result.accuracy for result in comparison.results}
    assert accuracy["-1..1 RGB crop"] >= 0.8 and accuracy["caffe BGR stretch"] <= 0.4


@pytest.mark.slow
def test_pictures_of_one_thing_decide_nothing() -> None:
    """There the information prefers a wrong one, which says other nonsense of each crop."""
    comparison = compare(Explainer(MODEL), crops("cat.png", 10))
    assert comparison.alike and comparison.passed
    assert not any(verdict.decided for verdict in comparison.verdicts)
    most = max(comparison.results, key=lambda result: result.information)
    assert most.candidate.values in ("caffe", "raw")


def templates(
    count: int = 10, gain: float = 1.0, channels: int = 3, grey: bool = False
) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """A classifier that compares its input, 0 to 1, with `count` pictures, and those pictures.

    Every other one is the one before at half the brightness, so that other values give wrong answers.
    """
    rng = np.random.default_rng(0)
    coarse = np.repeat(rng.integers(40, 256, (count // 2, 4, 4, 3)), 2, axis=0)
    coarse[1::2] //= 2
    if channels == 1 or grey:
        coarse[:] = coarse[..., :1]
    pictures = [np.repeat(np.repeat(one, 8, axis=0), 8, axis=1).astype(np.uint8) for one in coarse]
    scaled = np.stack([one.transpose(2, 0, 1)[:channels] for one in pictures]) / 255.0
    model = models.tiny_cnn(classes=count, pool="Flatten", width=2, channels=channels)
    # the convolutions pass the picture on at a quarter of its size: 16 x 16, four channels
    weights = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    for name in ("w1", "b1", "w2", "b2"):
        weights[name][:] = 0
    for channel in range(2):
        weights["w1"][channel, channel % channels, 1, 1] = 1
        weights["w2"][channel, channel, 1, 1] = 1
    small = np.zeros((count, 4, 16, 16))
    for channel in range(2):
        small[:, channel] = scaled[:, channel % channels, ::2, ::2]
    flat = small.reshape(count, -1)
    weights["w3"] = gain * flat.T
    weights["b3"] = -gain / 2 * np.square(flat).sum(axis=1)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].astype(np.float32), tensor.name))
    return model, pictures


def test_a_known_answer_with_and_without_labels() -> None:
    model, pictures = templates(gain=0.3)
    pictures_with_noise = [
        np.clip(one + noise(32, 32, seed=seed) % 16, 0, 255).astype(np.uint8) for seed in range(2) for one in pictures
    ]
    labelled = compare(Explainer(model), pictures_with_noise, [*range(10)] * 2)
    assert labelled.best.values == "0..1" and labelled.best.color == "RGB"
    values = next(verdict for verdict in labelled.verdicts if verdict.axis == "values")
    assert values.decided and {"raw", "imagenet", "caffe"} <= set(values.beaten)
    assert labelled.recorded is None and labelled.passed


@pytest.mark.parametrize("in_use", [None, "0..1"])
def test_too_few_pictures_are_called_undecided(in_use: str | None) -> None:
    """Of very different pictures, so that information alone would name one."""
    model, pictures = templates(gain=0.3)
    comparison = compare(Explainer(model, preprocess=in_use), pictures[:6], [*range(6)])
    assert comparison.undecided and comparison.passed and comparison.to_dict()["undecided"]
    assert "prefer" not in comparison.summary
    assert comparison.lines()[-1].startswith("undecided")


def test_what_is_decided_and_what_is_not_is_said() -> None:
    """Of grey pictures the order of the colours makes no difference."""
    model, pictures = templates(gain=0.3, grey=True)
    noisy = [
        np.clip(one + noise(32, 32, seed=seed)[..., :1] % 16, 0, 255).astype(np.uint8)
        for seed in range(2)
        for one in pictures
    ]
    comparison = compare(Explainer(model), noisy, [*range(10)] * 2)
    assert {verdict.axis: verdict.decided for verdict in comparison.verdicts} == {
        "values": False, "color": False, "resize": True
    }  # fmt: skip
    assert "prefers resizing stretch; undecided: values, colour; of these" in comparison.summary


def test_a_model_that_is_sure_of_everything_wins_nothing() -> None:
    """The same classifier fed 0 to 255 says the same with a probability of 1: without labels nobody can tell."""
    model, pictures = templates(gain=3.0)
    comparison = compare(Explainer(model), pictures)
    raw = next(result for result in comparison.results if result.candidate.name == "raw RGB stretch")
    assert raw.saturated > 0.5
    first = comparison.results[0]
    assert first.saturated <= 0.5
    assert not any("raw" in verdict.beaten for verdict in comparison.verdicts)


@pytest.mark.parametrize(("channels", "count"), [(3, 20), (1, 12)])
@pytest.mark.parametrize("nhwc", [False, True])
def test_candidates_are_the_presets(channels: int, count: int, nhwc: bool) -> None:
    explainer = Explainer(models.tiny_cnn(channels=channels, nhwc=nhwc))
    listed = candidates(explainer)
    assert len(listed) == count == len({candidate.name for candidate in listed})
    presets = {candidate.preset: candidate.preprocess for candidate in listed if candidate.preset}
    expected = {"0..1", "-1..1", "raw"} | ({"imagenet", "torch", "caffe"} if channels == 3 else set())
    assert presets == {name: image.preset(name, (32, 32), channels) for name in expected}


def test_inverted_is_the_negative() -> None:
    explainer = Explainer(models.tiny_cnn(channels=1))
    pixels = noise(32, 32)[..., :1]
    for candidate in candidates(explainer):
        if candidate.color == "inverted":
            plain = next(c for c in candidates(explainer) if c.name == candidate.name.replace("inverted", "L"))
            np.testing.assert_allclose(
                candidate.preprocess.apply(pixels)[0],
                plain.preprocess.apply(255 - pixels)[0],
                atol=1.01 * abs(candidate.preprocess.scale),  # resizing rounds the other way
            )


def test_the_one_in_use_takes_its_place() -> None:
    near = {"scale": 1 / 128, "mean": 127 / 128, "resize": {"mode": "stretch", "size": 32, "interpolation": "bicubic"}}
    for spec, name, count in (
        (near, "-1..1 RGB stretch", 20),
        ("torch", "imagenet RGB stretch", 20),
        ({"scale": 3.0}, "recorded RGB stretch", 21),
        ({"scale": 1 / 255, "resize": {"mode": "letterbox", "size": 32}}, "0..1 RGB letterbox", 21),
    ):
        explainer = Explainer(models.tiny_cnn(), preprocess=spec)
        listed = candidates(explainer)
        assert [(candidate.name, candidate.preprocess) for candidate in listed if candidate.recorded] == [
            (name, explainer.preprocess)
        ]
        assert len(listed) == count


def test_every_candidate_sees_what_apply_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are resized once for all; the tensors must be those of each preprocessing alone."""
    explainer = Explainer(models.tiny_cnn(nhwc=True))
    batches: list[np.ndarray] = []
    predict = explainer.predict
    monkeypatch.setattr(explainer, "predict", lambda batch: batches.append(batch) or predict(batch))
    pictures = [noise(40, 60, seed=seed) for seed in range(3)]
    compare(explainer, pictures)
    for candidate, batch in zip(candidates(explainer), batches, strict=True):
        expected = np.concatenate([candidate.preprocess.apply(one, layout="NHWC")[0] for one in pictures])
        np.testing.assert_array_equal(batch, expected)


def test_open_sizes_and_other_inputs() -> None:
    comparison = compare(Explainer(models.tiny_cnn(size=None)), [noise(40, 60, seed=seed) for seed in range(3)])
    assert comparison.best.preprocess.output_size == (224, 224)
    assert not any(verdict.decided for verdict in comparison.verdicts), "three pictures decide nothing"
    binary = models.tiny_cnn(classes=1, ending="Sigmoid")
    assert compare(Explainer(binary), [noise(40, 60, seed=seed) for seed in range(9)], [0, 1] * 4 + [0]).labelled
    with pytest.raises(PreprocessError, match="4 channels"):
        candidates(Explainer(models.tiny_cnn(channels=4)))


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    explainer = Explainer(models.tiny_cnn())
    comparison = compare(explainer, [noise(40, 60), tmp_path / "none.png", noise(30, 30)], [0, 1, 2])
    assert comparison.pictures == 2 and [place for place, _ in comparison.failures] == [1]
    with pytest.raises(InputError, match=re.escape("none.png")):
        compare(explainer, [tmp_path / "none.png"])
    with pytest.raises(InputError, match="2 targets for 1"):
        compare(explainer, [noise(40, 60)], [0, 1])
