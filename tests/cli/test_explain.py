"""`onnxcam explain`: what is written where, what is printed, and that one failure never loses the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import image
from onnxcam.explain import folder as batch
from onnxcam.explain.explainer import Explainer
from onnxcam.graph import load
from tests.cli.conftest import LABELS, RAW, Run, noise, tree
from tests.graph.test_input_normalization import beginning_with
from tests.support import models

FILES = {
    "input.png",
    "gradcam_grayscale.png",
    "gradcam_heatmap.png",
    "gradcam_overlay.png",
    "panel.png",
    "explanation.json",
}


def summary(folder: Path) -> dict:
    return json.loads((folder / "analysis_summary.json").read_text(encoding="utf-8"))


def test_one_picture_is_written_flat(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    result = run("explain", ready, photo, "-o", tmp_path / "made" / "out")
    assert (result.code, result.err) == (0, "")
    out = tmp_path / "made" / "out"
    assert tree(out) == FILES | {"analysis_summary.json"}
    np.testing.assert_array_equal(image.load(out / "input.png").pixels, image.load(photo).pixels)


def test_several_pictures_get_a_folder_each(run: Run, ready: Path, photos: Path, tmp_path: Path) -> None:
    result = run("explain", ready, photos, "-o", tmp_path / "out")
    assert result.code == 0
    expected = {f"{folder}/{file}" for folder in ("a.png", "a.jpg", "sub/b") for file in FILES}
    assert tree(tmp_path / "out") == expected | {"analysis_summary.json"}
    summary_read = summary(tmp_path / "out")
    assert summary_read["counts"] == {"found": 3, "explained": 3, "failed": 0}
    for entry in summary_read["pictures"]:
        assert all((tmp_path / "out" / file).is_file() for file in entry["files"].values())
    assert result.err.startswith("3 of 3 explained in ")


def test_files_hold_what_the_explainer_computes(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    assert run("explain", ready, photo, "-o", tmp_path / "out", "--target", "hen").code == 0
    e = Explainer(ready).explain(photo, target="hen")
    gray = cv2.imread(str(tmp_path / "out" / "gradcam_grayscale.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(gray, np.floor(e.heatmap * 255 + 0.5).astype(np.uint8))
    overlay = cv2.imread(str(tmp_path / "out" / "gradcam_overlay.png"))[..., ::-1]
    np.testing.assert_array_equal(overlay, e.overlay())
    summary_read = summary(tmp_path / "out")["pictures"][0]
    assert summary_read["target"]["index"] == 3 and summary_read["target"]["label"] == "hen"
    assert [row["index"] for row in summary_read["predictions"]] == [index for index, _, _ in e.predictions]
    assert summary_read["confidence"] == e.predictions[0][2] and summary_read["prediction"] == e.predictions[0][1]


def test_top_five_are_always_printed(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    out = run("explain", ready, photo, "-o", tmp_path / "out").out
    assert all(f"{index}  {label}" in out for index, label in enumerate(LABELS))
    assert out.count("%") == 5 and out.count("*") == 1


def test_top_k_draws_each_class(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    assert run("explain", ready, photo, "-o", tmp_path / "out", "--top", 3).code == 0
    drawn = {name for name in tree(tmp_path / "out") if name.startswith("top_predictions/")}
    best = [label.split(",")[0].replace(" ", "_") for _, label, _ in Explainer(ready).explain(photo).predictions]
    assert drawn == {f"top_predictions/gradcam_top{k}_{best[k - 1]}.png" for k in (1, 2, 3)}


def test_json_is_one_document_and_the_summary(run: Run, ready: Path, photos: Path, tmp_path: Path) -> None:
    result = run("explain", ready, photos, "-o", tmp_path / "out", "--json")
    assert result.json() == summary(tmp_path / "out")
    document = result.json()
    assert document["model"]["path"] == str(ready) and len(document["model"]["sha256"]) == 64
    assert document["providers"] == ["CPUExecutionProvider"] and document["options"]["seed"] == 1234
    assert document["options"]["preprocess"] == Explainer(ready).preprocess.to_dict()
    assert document["versions"]["onnxcam"] == onnxcam.__version__


def test_options_reach_the_map(run: Run, plain: Path, photo: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(RAW))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(LABELS))
    result = run(
        "explain", plain, photo, "-o", tmp_path / "out", "--preprocess", spec, "--labels", names, "--class", "tiger",
        "--method", "hirescam", "--layer", "relu1", "--last-conv", "relu2", "--normalize", "max", "--colormap",
        "viridis", "--alpha", "0.25", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    explainer = Explainer(plain, preprocess=RAW, layers=["relu1", "relu2"], methods=("hirescam",))
    e = explainer.explain(photo, target=1, method="hirescam", layer=["relu1", "relu2"], normalize="max")
    overlay = cv2.imread(str(tmp_path / "out" / "hirescam_overlay.png"))[..., ::-1]
    np.testing.assert_array_equal(overlay, e.overlay(0.25, "viridis"))
    document = result.json()["pictures"][0]
    assert document["layer"] == ["relu1", "relu2"] and document["method"] == "hirescam"
    assert document["target"] == {"index": 1, "label": "tiger cat, tiger", "probability": e.probability}


@pytest.mark.parametrize(("text", "index"), [("3", 3), ("-1", None), ("HEN", 3), ("tiger", 1)])
def test_target_is_an_index_or_a_label(
    run: Run, ready: Path, photo: Path, tmp_path: Path, text: str, index: int | None
) -> None:
    document = run("explain", ready, photo, "-o", tmp_path / "out", "--target", text, "--json").json()
    best = document["pictures"][0]["index"]
    assert document["pictures"][0]["target"]["index"] == (best if index is None else index)


def test_digits_that_are_a_label_mean_that_label(run: Run, plain: Path, photo: Path, tmp_path: Path) -> None:
    names = tmp_path / "digits.txt"
    names.write_text("4\n3\n2\n1\n0")
    arguments = ("explain", plain, photo, "-o", tmp_path / "out", "--labels", names, "--preprocess", "0..1", "--json")
    assert run(*arguments, "--target", "3").json()["pictures"][0]["target"]["index"] == 1


def test_layers_and_methods_the_file_lacks_are_added(run: Run, ready: Path, photo: Path, tmp_path: Path) -> None:
    result = run("explain", ready, photo, "-o", tmp_path / "out", "--layer", "relu1", "--method", "hirescam", "--json")
    assert result.code == 0, result.err
    assert result.json()["pictures"][0]["layer"] == "relu1"
    assert "hirescam_overlay.png" in tree(tmp_path / "out")


def test_layers_side_by_side(run: Run, plain: Path, photo: Path, tmp_path: Path) -> None:
    arguments = ("explain", plain, photo, "-o", tmp_path / "out", "--preprocess", "0..1", "--side-by-side", "--json")
    refused = run(*arguments)
    assert refused.code == 2 and "two layers or more" in refused.err
    document = run(*arguments, "--layer", "relu1", "--layer", "relu2").json()["pictures"][0]
    assert {"layers.png", "layers/relu1/gradcam_heatmap.png", "layers/relu2/gradcam_overlay.png"} < tree(
        tmp_path / "out"
    )
    assert [entry["layer"] for entry in document["layers"]] == ["relu1", "relu2"]
    assert document["attention"]["entropy"] != document["layers"][0]["attention"]["entropy"]


def test_standard_input(run: Run, ready: Path, photos: Path, tmp_path: Path) -> None:
    data = (photos / "a.png").read_bytes()
    assert run("explain", ready, "-", "-o", tmp_path / "one", stdin=data).code == 0
    assert summary(tmp_path / "one")["pictures"][0]["name"] == "stdin"
    listed = f"{photos / 'a.png'}\0{photos / 'sub'}\0".encode()
    assert run("explain", ready, "--files-from", "-", "-o", tmp_path / "two", stdin=listed).code == 0
    assert {"a/panel.png", "sub/b/panel.png"} <= tree(tmp_path / "two")


def test_one_bad_picture_never_loses_the_others(run: Run, ready: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.jpg").write_bytes(b"")
    (photos / "worse.png").write_bytes((photos / "a.png").read_bytes()[:200])
    result = run("explain", ready, photos, photos / "gone.png", photos / "*.bmp", "-o", tmp_path / "out")
    assert result.code == 1
    summary_read = summary(tmp_path / "out")
    assert summary_read["counts"] == {"found": 7, "explained": 3, "failed": 4}
    wrong = {Path(entry["name"]).name: entry["error"] for entry in summary_read["pictures"] if entry["error"]}
    assert set(wrong) == {"bad.jpg", "worse.png", "gone.png", "*.bmp"}
    for name, error in wrong.items():
        assert name in error
        assert result.err.count(error) == 1
    assert "Traceback" not in result.err and result.err.count("\n") == 5
    assert not any("bad" in name or "worse" in name for name in tree(tmp_path / "out"))


@pytest.mark.slow
def test_a_folder_of_200_with_3_corrupt_ones(run: Run, ready: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(0)
    bad = {"017.jpg", "101.jpg", "199.jpg"}
    for number in range(200):
        name = f"{number:03}.jpg"
        data = cv2.imencode(".jpg", noise(rng, 24, 32))[1].tobytes()
        (folder / name).write_bytes(data[: len(data) // 2] if name in bad else data)
    result = run("explain", ready, folder, "-o", tmp_path / "out")
    assert result.code == 1
    summary_read = summary(tmp_path / "out")
    assert summary_read["counts"] == {"found": 200, "explained": 197, "failed": 3}
    assert {Path(entry["name"]).name for entry in summary_read["pictures"] if entry["error"]} == bad
    assert all(result.err.count(name) == 1 for name in bad), "each is named, once"
    assert len(list((tmp_path / "out").rglob("panel.png"))) == 197
    fields = {"prediction", "confidence", "predictions", "target", "layer", "method", "attention", "files", "warnings"}
    explained = [entry for entry in summary_read["pictures"] if not entry["error"]]
    assert all(fields <= entry.keys() and entry["attention"]["zero"] is False for entry in explained)


def test_pictures_are_compressed_where_asked(run: Run, ready: Path, photos: Path, tmp_path: Path) -> None:
    """One picture is; of many each file is written fast instead. The pixels are the same."""
    plain = (tmp_path / "one", tmp_path / "many", tmp_path / "small")
    assert run("explain", ready, photos / "a.png", "-o", plain[0], "--no-compress").code == 0
    assert run("explain", ready, photos, "-o", plain[1]).code == 0
    assert run("explain", ready, photos, "-o", plain[2], "--compress").code == 0
    large, small = (folder / "sub" / "b" / "panel.png" for folder in plain[1:])
    assert small.stat().st_size < large.stat().st_size
    np.testing.assert_array_equal(image.load(small).pixels, image.load(large).pixels)
    assert (plain[0] / "input.png").stat().st_size > 40 * 60 * 3


def test_a_failing_run_is_one_pictures_failure(
    run: Run, ready: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Explainer.prepare

    def broken(self: Explainer, picture: image.Picture, **options: str) -> object:
        if picture.name == "a.jpg":
            raise MemoryError
        return prepare(self, picture, **options)

    monkeypatch.setattr(Explainer, "prepare", broken)
    result = run("explain", ready, photos, "-o", tmp_path / "out")
    assert result.code == 1
    assert "a.jpg" in result.err and "memory" in result.err
    assert {"a.png/panel.png", "sub/b/panel.png"} <= tree(tmp_path / "out")


def test_warnings_are_told(run: Run, photo: Path, tmp_path: Path) -> None:
    model = models.tiny_cnn()
    bias = next(t for t in model.graph.initializer if t.name == "b2")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(16, -1e6, np.float32), "b2"))
    load.save(onnxcam.augment(model, preprocess=RAW), tmp_path / "dead.onnx")
    result = run("explain", tmp_path / "dead.onnx", photo, "-o", tmp_path / "out", "--json")
    assert result.code == 0
    assert "Warning" in result.err and "zero everywhere" in result.err
    assert result.json()["pictures"][0]["warnings"]


def test_doubts_about_the_preprocessing_are_told_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        image.write_png(tmp_path / "photos" / f"{number}.png", noise(np.random.default_rng(number)))
    load.save(onnxcam.augment(beginning_with([("Mul", 1 / 255)]), preprocess="raw"), tmp_path / "model.onnx")
    arguments = ("explain", tmp_path / "model.onnx", tmp_path / "photos", "-o", tmp_path / "out")
    assert "Warning" not in run(*arguments).err
    result = run(*arguments, "--preprocess", "0..1", "--json")
    assert result.code == 0 and result.err.count("Warning") == 2
    document = result.json()
    assert len(document["warnings"]) == 2 and document["pictures"][2]["warnings"] == document["warnings"]
    assert "overridden" in document["warnings"][0] and "begins with" in document["warnings"][1]


def test_a_run_that_says_nothing_is_told_of(run: Run, photo: Path, tmp_path: Path) -> None:
    model = models.tiny_cnn(classes=20)
    weights = next(t for t in model.graph.initializer if t.name == "w3")
    weights.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(weights.dims), np.float32), weights.name))
    load.save(onnxcam.augment(model, preprocess="0..1"), tmp_path / "model.onnx")
    result = run("explain", tmp_path / "model.onnx", photo, "-o", tmp_path / "out")
    assert "next to nothing" in result.err


def test_scores_that_are_not_finite_give_valid_json(run: Run, photo: Path, tmp_path: Path) -> None:
    model = models.tiny_cnn()
    bias = next(t for t in model.graph.initializer if t.name == "b3")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(5, np.nan, np.float32), "b3"))
    load.save(onnxcam.augment(model, preprocess=RAW), tmp_path / "nan.onnx")
    result = run("explain", tmp_path / "nan.onnx", photo, "-o", tmp_path / "out", "--json")
    assert run("explain", tmp_path / "nan.onnx", photo, "-o", tmp_path / "text").code == 0

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    for text in (result.out, *(path.read_text() for path in (tmp_path / "out").glob("*.json"))):
        json.loads(text, parse_constant=refuse)
    assert result.json()["pictures"][0]["confidence"] is None


def test_order_is_kept_over_many_chunks(run: Run, ready: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "many").mkdir()
    for number in range(21):
        image.write_png(tmp_path / "many" / f"{number:02}.png", noise(rng, 20 + number, 30))
    document = run("explain", ready, tmp_path / "many", "-o", tmp_path / "out", "--json").json()
    assert [Path(entry["name"]).stem for entry in document["pictures"]] == [f"{number:02}" for number in range(21)]
    one = Explainer(ready).explain(tmp_path / "many" / "20.png")
    actual = document["pictures"][20]["predictions"]
    np.testing.assert_allclose([row["probability"] for row in actual], [p for _, _, p in one.predictions], rtol=1e-5)


def test_only_a_few_pictures_are_held_at_a_time(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image.write_png(tmp_path / "p.png", noise(rng))
    started: list[int] = []
    real = image.load
    monkeypatch.setattr(batch.image, "load", lambda source, **keywords: started.append(1) or real(source, **keywords))
    items = [batch.Item(tmp_path / "p.png", str(n), Path(str(n))) for n in range(100)]
    explainer = Explainer(ready)
    outcomes = batch.explain_all(explainer, items, explainer.question(), tmp_path / "out")
    for _ in range(3):
        next(outcomes)
    assert len(started) <= 3 * 8 + 3
    outcomes.close()


def test_interrupted_runs_tell_what_was_done(
    run: Run, ready: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> object:
        yield next(real(*arguments[:6]))  # without what it tells of pictures that are finished
        raise KeyboardInterrupt

    from onnxcam.cli import summary as module

    real = batch.explain_all
    monkeypatch.setattr(module, "explain_all", stop)
    result = run("explain", ready, photos, "-o", tmp_path / "out")
    assert result.code == 130
    assert summary(tmp_path / "out")["counts"] == {"found": 3, "explained": 1, "failed": 0, "left": 2}


def test_a_second_run_into_the_same_folder_does_not_explain_its_own_results(
    run: Run, ready: Path, photos: Path
) -> None:
    for _ in range(2):
        assert run("explain", ready, photos, "-o", photos / "out").code == 0
    assert summary(photos / "out")["counts"]["found"] == 3


@pytest.mark.slow
def test_as_a_process(ready: Path, photo: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onnxcam", "explain", str(ready), str(photo), "-o", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(tmp_path / "out") == FILES | {"analysis_summary.json"}


def test_an_explainable_file_is_explained_without_importing_onnx(ready: Path, photo: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom onnxcam.cli import main\n"
        f"main(['explain', {str(ready)!r}, {str(photo)!r}, '-o', {str(tmp_path / 'out')!r}], standalone_mode=False)\n"
        "print([name for name in ('onnx', 'torch', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
