"""`onnxcam bench`: who is measured, against what, and that the figures say what they claim."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam.diagnose import cost as module
from onnxcam.diagnose.cost import Case, bench
from onnxcam.errors import InputError
from onnxcam.explain.explainer import Explainer
from onnxcam.graph import load
from onnxcam.image import write_png
from tests.cli.conftest import RAW, Run, noise, photo, photos, plain, ready, run  # noqa: F401 - fixtures
from tests.support import detectors, models

QUICK = ("--seconds", 0, "--rounds", 2)
CLASSES = 8  # more than the five that are explained of a classifier
TASKS = {
    "detect": (
        detectors.Net(
            lambda op, x: detectors.yolov5(op, x, classes=CLASSES),
            {"output": ["N", detectors.count(2, 2), 5 + CLASSES]},
        ),
        "layercam",
    ),
    "segment": (
        detectors.Net(
            lambda op, x: detectors.segmenter(op, x, CLASSES),
            {"out": ["N", CLASSES, detectors.HEIGHT, detectors.WIDTH]},
        ),
        "hirescam",
    ),
}


def test_a_plain_model_and_random_pictures(run: Run, plain: Path) -> None:  # noqa: F811
    report = run("bench", plain, *QUICK, "--batch", 1, "--batch", 3, "--method", "hirescam", "--json").json()
    named = [(case["batch"], case["name"]) for case in report["cases"]]
    assert named == [(size, name) for size in (1, 3) for name in ("forward", "predict", "hirescam")]
    for case in report["cases"]:
        assert 0 < case["p50_ms"] <= case["p99_ms"] and case["calls"] >= 1
        assert case["per_second"] == pytest.approx(1e3 * case["batch"] / case["p50_ms"])
        assert (case["ratio"] == 1.0) if case["name"] == "forward" else case["ratio"] > 0
        assert case["fired"] is None
    peaks = [case["peak_mib"] for case in report["cases"]]
    assert peaks == sorted(peaks) and peaks[0] > 10
    assert report["rounds"] == 1, "no second round begins when the time is over"
    assert report["providers"] == ["CPUExecutionProvider"] and report["input"]["shape"] == [3, 3, 32, 32]
    assert report["versions"]["onnxcam"] == onnxcam.__version__ and min(report["load_ms"].values()) > 0


def test_an_explainable_file_and_pictures(run: Run, tmp_path: Path, photos: Path) -> None:  # noqa: F811
    path = tmp_path / "many.onnx"
    load.save(onnxcam.augment(models.tiny_cnn(classes=9), preprocess=RAW), path)
    result = run("bench", path, photos, *QUICK, "--batch", 2, "--json")
    assert result.code == 0, result.err
    names = [case["name"] for case in result.json()["cases"]]
    assert names == ["forward", "predict", "file", "gradcam", "gradcam top-5", "explain gradcam"]
    assert result.json()["cases"][-1]["batch"] == 1 and result.json()["cases"][-1]["ratio"] is None
    text = run("bench", path, *QUICK, "--batch", 2)
    assert text.code == 0 and "gradcam top-5" in text.out and "CPUExecutionProvider" in text.out
    assert text.err == "", "a bar is for terminals"


@pytest.mark.parametrize("task", TASKS)
def test_a_model_of_another_task(run: Run, tmp_path: Path, task: str) -> None:  # noqa: F811
    """By its own usual method, and without the five best classes of a classifier."""
    net, method = TASKS[task]
    path = tmp_path / f"{task}.onnx"
    load.save(detectors.build(net), path)
    for named in ((), ("--task", task)):
        result = run("bench", path, *QUICK, "--batch", 1, *named, "--json")
        assert result.code == 0, result.err
        assert [case["name"] for case in result.json()["cases"]] == ["forward", "predict", method]
    assert run("bench", path, *QUICK, "--task", "embed").code == 3


def test_the_calls_do_what_they_are_called(tmp_path: Path) -> None:
    path = tmp_path / "many.onnx"
    load.save(onnxcam.augment(models.tiny_cnn(classes=9), preprocess=RAW), path)
    done = bench(path, batches=[2], rounds=1, seconds=0)
    explainer = Explainer(path)
    results = {case.name: case.call() for case in done.cases}
    batch = np.random.default_rng(1234).normal(size=(2, 3, 32, 32)).astype(np.float32)
    scores = explainer.run(batch).scores
    np.testing.assert_allclose(results["forward"][0], scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(results["file"][0], scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(results["predict"], explainer.predict(batch), rtol=1e-5)
    np.testing.assert_allclose(results["gradcam"], explainer.attribute(batch), rtol=1e-5, atol=1e-6)
    best = np.argsort(-scores, axis=1)[:, :5]
    one = explainer.attribute(batch, [int(k) for k in best[:, 3]], normalize="none", size="layer")
    np.testing.assert_allclose(results["gradcam top-5"][0][0][:, 3], one, rtol=1e-4, atol=1e-6)


def test_the_forward_pass_is_the_model_without_its_gradients(tmp_path: Path) -> None:
    path = tmp_path / "ready.onnx"
    load.save(onnxcam.augment(models.tiny_cnn(), preprocess=RAW), path)
    alone = module._plain(path)
    assert isinstance(alone, bytes)
    plain_model = onnx.load_from_string(alone)
    assert [output.name for output in plain_model.graph.output] == ["logits"]
    assert [value.name for value in plain_model.graph.input] == ["input"]
    assert len(plain_model.graph.node) < len(onnx.load(path).graph.node)


@pytest.mark.slow
def test_ratios_are_taken_within_a_round() -> None:
    """A machine that becomes five times slower in the middle leaves them alone."""
    turns = {"forward": 0, "twice": 0}
    clock = {"slow": 1.0}

    def call(name: str, seconds: float) -> None:
        turns[name] += 1
        if turns["forward"] > 4:
            clock["slow"] = 3.0
        time.sleep(seconds * clock["slow"])

    cases = [
        Case("forward", 1, lambda: call("forward", 0.01)),
        Case("twice", 1, lambda: call("twice", 0.02)),
        Case("other batch", 2, lambda: None),
    ]
    rounds, _ = module._measure(cases, 5, 0.5, None)
    assert rounds >= 2
    assert 1.5 < cases[1].ratio < 2.7 and math.isnan(cases[2].ratio)


def test_a_block_keeps_to_its_time() -> None:
    times = module._block(lambda: time.sleep(0.005), 0.1)
    assert 2 <= len(times) <= 20 and min(times) >= 0.004
    assert len(module._block(lambda: time.sleep(0.02), 0.0)) == 1, "one call that takes longer than a block counts"


@pytest.mark.parametrize(("batch", "sizes"), [(4, [4]), ("N", [1, 8])])
def test_batch_sizes_are_what_the_model_takes(tmp_path: Path, batch: int | str, sizes: list[int]) -> None:
    onnx.save(models.tiny_cnn(batch=batch), tmp_path / "m.onnx")
    done = bench(tmp_path / "m.onnx", rounds=1, seconds=0)
    assert sorted({case.batch for case in done.cases}) == sizes
    if batch == 4:
        with pytest.raises(InputError, match="4 rows per run"):
            bench(tmp_path / "m.onnx", batches=[1], rounds=1, seconds=0)


@pytest.mark.parametrize("model", [{"size": None}, {"nhwc": True}, {"ending": "Softmax"}, {"pool": "ReduceMean"}])
def test_any_classifier(tmp_path: Path, model: dict[str, object]) -> None:
    onnx.save(models.tiny_cnn(**model), tmp_path / "m.onnx")  # type: ignore[arg-type]
    done = bench(tmp_path / "m.onnx", batches=[1], rounds=1, seconds=0)
    assert [case.name for case in done.cases] == ["forward", "predict", "gradcam"]
    shapes = {"size": (3, 224, 224), "nhwc": (32, 32, 3)}
    assert tuple(done.about["input"]["shape"][1:]) == shapes.get(next(iter(model)), (3, 32, 32))


def test_what_cannot_be_measured(run: Run, plain: Path, photo: Path, tmp_path: Path) -> None:  # noqa: F811
    assert run("bench", plain, "--method", "nonsense").code == 2
    assert run("bench", plain, "--layer", "nonsense", *QUICK).code == 2
    unprepared = run("bench", plain, photo, *QUICK)
    assert unprepared.code == 2 and "--preprocess" in unprepared.sentence
    assert run("bench", plain, tmp_path / "gone.png", "--preprocess", "0..1", *QUICK).code == 1
    assert run("bench", tmp_path / "gone.onnx").code == 3
    assert run("bench", plain, "--provider", "quantum").code == 4


def test_pictures_of_many_sizes_fill_a_batch(run: Run, plain: Path, photos: Path) -> None:  # noqa: F811
    result = run("bench", plain, photos, "--preprocess", "0..1", *QUICK, "--batch", 4, "--json")
    assert result.code == 0, result.err
    assert result.json()["input"]["shape"][0] == 4


def test_unreadable_pictures_are_named_and_the_rest_measured(run: Run, ready: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a_broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    write_png(folder / "b.png", noise(np.random.default_rng(0)))
    result = run("bench", ready, folder, tmp_path / "absent.png", *QUICK, "--batch", 1, "--json")
    assert result.code == 1 and "explain gradcam" in [case["name"] for case in result.json()["cases"]]
    failed = result.json()["failed"]
    assert len(failed) == 2 and any("a_broken.png" in text for text in failed) and "absent.png" in "".join(failed)
    assert all(f"Error: {text}" in result.err for text in failed)
    (folder / "b.png").unlink()
    none = run("bench", ready, folder, *QUICK, "--json")
    assert none.code == 1 and none.out == "" and "a_broken.png" in none.err
