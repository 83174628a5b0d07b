"""Which files are written, in which format; all of a picture's files or none; and maps of many classes one by one."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import onnxcam
from onnxcam import files, image
from onnxcam.errors import InputError, OutputError
from onnxcam.explain import batch_maps, examination
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.folder import explain_all
from onnxcam.explain.pictures import Item
from onnxcam.explain.saving import FILES, Drawing
from onnxcam.explain.statistics import describe
from onnxcam.graph import load
from tests.cli.conftest import RAW, tree
from tests.support import models

PICTURE = cv2.GaussianBlur(np.random.default_rng(4).integers(0, 256, (90, 120, 3), dtype=np.uint8), (0, 0), 3)
NAMES = {
    "input": "input", "grayscale": "gradcam_grayscale", "heatmap": "gradcam_heatmap", "overlay": "gradcam_overlay",
    "panel": "panel", "json": "explanation",
}  # fmt: skip


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Explainer:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    load.save(onnxcam.augment(models.tiny_cnn(classes=200), preprocess=RAW), path)
    return Explainer(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_each_file_can_be_asked_for_alone(explainer: Explainer, tmp_path: Path, name: str, form: str) -> None:
    e = explainer.explain(PICTURE)
    e.save(tmp_path / "all")
    names = e.save(tmp_path / "one", files=[name], format=form)
    ending = {"json": "json", "grayscale": "png"}.get(name, form)
    assert tree(tmp_path / "one") == {f"{NAMES[name]}.{ending}"} == set(names.values())
    assert list(names) == ["explanation" if name == "json" else name]
    if name == "json":
        return
    whole = cv2.imread(str(tmp_path / "all" / f"{NAMES[name]}.png"), cv2.IMREAD_COLOR).astype(float)
    part = cv2.imread(str(tmp_path / "one" / f"{NAMES[name]}.{ending}"), cv2.IMREAD_COLOR).astype(float)
    assert whole.shape == part.shape
    if ending == "png":
        np.testing.assert_array_equal(part, whole)
    else:
        assert np.abs(part - whole).mean() < 4, "what the format loses, and no more"
        data = (tmp_path / "one" / f"{NAMES[name]}.{ending}").read_bytes()
        assert data.startswith(b"\xff\xd8\xff" if form == "jpeg" else b"RIFF")


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_a_photograph_is_kept_as_it_came(explainer: Explainer, tmp_path: Path, form: str) -> None:
    """A folder's JPEG pictures are written without a second loss, and without their metadata."""
    encoded = cv2.imencode(".jpg", PICTURE, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()
    (tmp_path / "a.jpg").write_bytes(encoded[:2] + b"\xff\xfe\0\x08secret" + encoded[2:])
    cv2.imwrite(str(tmp_path / "b.png"), PICTURE)
    items = [Item(tmp_path / name, name, Path(name).stem) for name in ("a.jpg", "b.png")]
    style = Drawing.of(format=form)
    for outcome in explain_all(explainer, items, explainer.question(), tmp_path / "out", style):
        assert outcome.error is None and outcome.files is not None
        written = (tmp_path / "out" / outcome.item.folder / outcome.files["input"]).read_bytes()
        pixels, read = image.load(written).pixels, image.load(outcome.item.source).pixels
        if form == "png" or (form == "jpeg" and outcome.item.name == "a.jpg"):
            np.testing.assert_array_equal(pixels, read)
        assert np.abs(pixels.astype(int) - read).mean() < 3 and b"secret" not in written
        assert (written == encoded) == (form == "jpeg" and outcome.item.name == "a.jpg")


def test_several_methods_layers_and_classes_follow(explainer: Explainer, tmp_path: Path) -> None:
    e = explainer.explain(
        PICTURE, method=["gradcam", "hirescam"], layer=["relu1", "relu2"], side_by_side=True, top=2, fusion="max"
    )
    names = e.save(tmp_path, files="overlay, json", format="jpeg")
    kinds = {Path(name).stem.split("_")[1] for name in names.values() if name.endswith(".jpeg")}
    assert kinds == {"overlay", "top1", "top2"} and set(names.values()) == tree(tmp_path)
    assert not any(name.endswith(".png") for name in tree(tmp_path)) and "explanation.json" in tree(tmp_path)
    assert set(e.save(tmp_path / "panels", files=["panel"]).values()) == {"panel.png", "methods.png", "layers.png"}


@pytest.mark.parametrize("names", [["overlays"], "overlay,", "", [], [3], "Overlay"])
def test_unknown_files_are_refused(explainer: Explainer, tmp_path: Path, names: Any) -> None:
    with pytest.raises(InputError, match="expected some of input, grayscale, heatmap, overlay, panel, json"):
        explainer.explain(PICTURE).save(tmp_path / "out", files=names)
    with pytest.raises(InputError, match="expected one of png, jpeg, webp"):
        explainer.explain(PICTURE).save(tmp_path / "out", format="gif")
    assert not (tmp_path / "out").exists()


def test_pictures_too_large_for_a_format_are_told() -> None:
    from onnxcam.image import lossy

    with pytest.raises(OutputError, match="at most 16,383 pixels a side; write png"):
        lossy.encode(np.zeros((1, 16384, 3), np.uint8), "webp")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("moment", range(6))
def test_all_files_or_those_of_before(
    explainer: Explainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, moment: int
) -> None:
    explainer.explain(PICTURE[::-1].copy()).save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    send: Callable[..., int] = files._send
    count = 0

    def fail(file: Any, pieces: Any, *sync: bool) -> int:
        nonlocal count
        count += 1
        if count == moment + 1:
            file.write(b"half")
            raise error
        return send(file, pieces, *sync)

    monkeypatch.setattr(files, "_send", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        explainer.explain(PICTURE).save(tmp_path)
    assert count == moment + 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_maps_of_many_classes_are_drawn_when_asked_for(
    explainer: Explainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explanation = explainer.explain(PICTURE, top=100)
    explanation.save(tmp_path / "held")
    assert all("heatmap" in vars(one) for one in explanation.maps)
    monkeypatch.setattr(batch_maps, "_TOGETHER", 50 * PICTURE.shape[0] * PICTURE.shape[1])
    drawn = explainer.explain(PICTURE, top=100)
    assert [one.heatmap.shape for one in drawn.maps] == [PICTURE.shape[:2]] * 100
    assert "heatmap" in vars(drawn.maps[0]) and not any("heatmap" in vars(one) for one in drawn.maps[1:])
    again = pickle.loads(pickle.dumps(drawn))
    for one, other, third in zip(explanation.maps, drawn.maps, again.maps, strict=True):
        np.testing.assert_array_equal(one.heatmap, other.heatmap)
        np.testing.assert_array_equal(one.heatmap, third.heatmap)
    other = dataclasses.replace(drawn.maps[1], label="renamed")
    assert other.label == "renamed" and other.statistics == describe(drawn.maps[1].heatmap)
    np.testing.assert_array_equal(other.heatmap, drawn.maps[1].heatmap)
    drawn.save(tmp_path / "drawn")
    assert tree(tmp_path / "drawn") == tree(tmp_path / "held")
    assert all(
        (tmp_path / "drawn" / n).read_bytes() == (tmp_path / "held" / n).read_bytes() for n in tree(tmp_path / "held")
    )


def test_classes_in_portions_are_those_of_one_run(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    few = explainer.explain(PICTURE, top=30, method=["gradcam", "hirescam"])
    monkeypatch.setattr(examination, "_PORTION", 7)
    many = explainer.explain(PICTURE, top=30, method=["gradcam", "hirescam"])
    for one, other in zip(few.per_method, many.per_method, strict=True):
        assert [m.target for m in one.maps] == [m.target for m in other.maps]
        for first, second in zip(one.maps, other.maps, strict=True):
            np.testing.assert_allclose(first.raw_map, second.raw_map, atol=1e-6)
    monkeypatch.setattr(examination, "_LARGEST", 100)
    with pytest.raises(InputError, match=r"the maps of 30 classes take .* ask for fewer classes"):
        explainer.explain(PICTURE, top=30)


CHILD = """
import sys
from pathlib import Path
from onnxcam.cli import main
def high():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
def run(*more):
    main(["explain", sys.argv[1], sys.argv[2], "-o", sys.argv[3], "--files", "json", *more], standalone_mode=False)
run("--top", "2")
before = high()
run("--top", "200")
print(high() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_two_hundred_large_maps_do_not_take_their_memory(explainer: Explainer, tmp_path: Path) -> None:
    large = np.kron(PICTURE, np.ones((12, 12, 1), np.uint8))  # 1080 x 1440: 6 MiB a map
    image.write_png(tmp_path / "large.png", large)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(explainer.source), str(tmp_path / "large.png"), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout.splitlines()[-1]) < 128, "of 1,190 MiB"
