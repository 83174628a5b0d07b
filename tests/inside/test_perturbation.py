"""A covered part changes what it changes in onnxruntime, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import image, inside
from onnxcam.errors import InputError, LayerError
from onnxcam.inside import boxes, perturbation
from tests.cli.conftest import RAW, Run
from tests.inside import nets
from tests.support import browser, models
from tests.support.batches import picture

SAME = {"color": "RGB", "scale": 1 / 255, "mean": 0.4, "std": 0.2, "resize": None}


def opened(nhwc: bool = False) -> onnxcam.Explainer:
    model = models.tiny_cnn(nhwc=nhwc)
    return onnxcam.Explainer(model, preprocess=SAME, probe=False, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("fill", ["0", "mean", "blur"])
def test_differences_and_predictions_are_the_runtimes(fill: str, nhwc: bool) -> None:
    pixels = picture(32, 32)
    result = inside.perturb(opened(nhwc), pixels, (4, 10, 12, 20), fill=fill, layers=["relu1", "conv2"])
    tensor = ((pixels / 255 - 0.4) / 0.2).astype(np.float32).transpose(2, 0, 1)[None]
    covered = tensor.copy()
    part = (slice(None), slice(None), slice(10, 20), slice(4, 12))
    if fill == "0":
        covered[part] = 0
    elif fill == "mean":
        covered[part] = tensor.mean(axis=(2, 3), keepdims=True)
    else:
        import cv2

        covered[part] = np.stack([cv2.GaussianBlur(c.astype(float), (0, 0), 32 * 0.08) for c in tensor[0]])[None][part]
    names = ["relu1", "conv2", "logits"]
    before, after = (nets.values(models.tiny_cnn(), x, names) for x in (tensor, covered))
    for name in names[:2]:
        expected = np.abs(before[name] - after[name]).mean(axis=1)[0]
        np.testing.assert_allclose(result.differences[name], expected, atol=1e-5)
    for row, scores in zip(result.probabilities, (before["logits"][0], after["logits"][0]), strict=True):
        np.testing.assert_allclose(row, np.exp(scores) / np.exp(scores).sum(), rtol=1e-4)
    assert [index for index, _, _ in result.after] == np.argsort(-after["logits"][0]).tolist()


def test_the_change_spreads_as_far_as_receptive_fields_reach() -> None:
    result = inside.perturb(opened(), picture(32, 32), (8, 8, 16, 16), layers=["conv1", "conv2"])
    assert result.spread["conv1"] == pytest.approx(10 * 10 / 32**2)
    (field,) = inside.fields(models.tiny_cnn(), "conv2")
    changed = np.zeros((16, 16), bool)
    for row in range(16):
        for column in range(16):
            x0, y0, x1, y1 = field.box((row, column)) or (0, 0, 0, 0)
            changed[row, column] = x0 < 16 and x1 > 8 and y0 < 16 and y1 > 8
    np.testing.assert_array_equal(result.differences["conv2"] > 0, changed)
    assert result.clear_spread["conv2"] <= result.spread["conv2"]


def test_a_box_is_found_through_resize_and_crop() -> None:
    preprocess = {"color": "RGB", "resize": {"mode": "shortest", "size": 40}, "crop": {"size": [32, 32]}}
    explainer = onnxcam.Explainer(models.tiny_cnn(), preprocess=preprocess, probe=False)
    pixels = np.full((80, 120, 3), 200, np.uint8)
    loaded, _, geometry = explainer.prepare(pixels)
    assert boxes.to_input((40, 30, 80, 50), geometry) == (6, 11, 26, 21)
    assert boxes.to_picture((6, 11, 26, 21), geometry) == (40, 30, 80, 50)
    with pytest.raises(InputError, match="does not see it"):
        inside.perturb(explainer, pixels, (0, 0, 10, 80))
    places = perturbation.positions((3, 3), (0, 0, 20, 20), loaded, geometry)
    assert len(places) == 9 and places[0][:2] == (28, 8) and places[-1][2:] == (92, 72)


@pytest.mark.parametrize(
    ("cover", "sentence"),
    [((0, 0, 33, 5), "outside the picture, which is 32 x 32"), ((-1, 0, 5, 5), "outside"), ((5, 5, 5, 9), "is empty"),
     ((1, 2, 3), "four numbers")],
)  # fmt: skip
def test_bad_covers_are_refused(cover: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        inside.perturb(opened(), picture(32, 32), cover)


def test_other_bad_questions_are_refused() -> None:
    with pytest.raises(InputError, match="fill is 'grey'"):
        inside.perturb(opened(), picture(32, 32), (0, 0, 4, 4), fill="grey")
    with pytest.raises(LayerError, match="nearest"):
        inside.perturb(opened(), picture(32, 32), (0, 0, 4, 4), layers="relu9")


def test_a_model_of_bytes_is_covered_too() -> None:
    nodes = [
        onnx.helper.make_node("Cast", ["input"], ["real"], to=1),
        nets.conv("real", "w", "last"),
    ]
    model = nets.classifier(nodes, width=4, w=nets.normal(4, 3, 3, 3), dtype=onnx.TensorProto.UINT8)
    explainer = onnxcam.Explainer(model, preprocess={"color": "RGB", "resize": None}, probe=False)
    result = inside.perturb(explainer, picture(32, 32), (4, 4, 9, 9), fill="mean", layers="last")
    assert result.tensor.dtype == np.uint8 and result.spread["last"] == pytest.approx(7 * 7 / 30**2)


@pytest.fixture
def written(run: Run, tmp_path: Path) -> Path:
    onnx.save(onnxcam.augment(models.tiny_cnn(), preprocess=RAW, probe=False), tmp_path / "model.onnx")
    image.write_png(tmp_path / "cat.png", picture())
    arguments = ("inside", "perturb", tmp_path / "model.onnx", tmp_path / "cat.png", "-o", tmp_path / "out")
    result = run(*arguments, "--cover", "3,5,20,25", "--places", "3", "--json")
    assert result.code == 0, result.err
    record = result.json()
    assert len(record["places"]) == 9 and [layer["layer"] for layer in record["layers"]] == ["relu1", "relu2"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"perturb.png", "perturb.json", "perturb.html"}
    wrong = run(*arguments, "--cover", "3,5,2000,25")
    assert wrong.code == 2 and "reaches outside the picture" in wrong.err
    assert run(*arguments, "--cover", "3,5,a,25").code == 2
    return tmp_path / "out" / "perturb.html"


def test_the_command_writes_a_picture_numbers_and_a_page(written: Path) -> None:
    assert "Every place" in written.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_is_driven_by_sliders_and_keys(written: Path, width: int) -> None:
    with browser.page(written, width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("#row").fill("0")
        page.locator("#column").fill("0")
        first = page.inner_text("#answer"), page.get_attribute(".map img", "src")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        assert (page.input_value("#row"), page.input_value("#column")) == ("1", "1")
        assert (page.inner_text("#answer"), page.get_attribute(".map img", "src")) != first
        rows = page.locator("tbody tr").nth(4)
        assert page.inner_text("#answer") in rows.inner_text()
        for _ in range(4):
            page.keyboard.press("ArrowLeft")
        assert page.input_value("#column") == "0"


@pytest.mark.parametrize("box", [(10, 12, 15, 17), (0, 0, 5, 6), (60, 50, 70, 60), (4, 5, 60, 50), (0, 0, 70, 60)])
def test_an_outlined_box_can_be_seen_and_does_not_hide_a_small_part(box: boxes.Box) -> None:
    pixels = picture(60, 70)
    drawn = boxes.outlined(pixels, box)
    x0, y0, x1, y1 = box
    changed = (drawn != pixels).any(axis=2)
    assert changed.any() and drawn.shape == pixels.shape
    inside_box = changed[y0:y1, x0:x1]
    if min(x1 - x0, y1 - y0) < 12:
        assert not inside_box.any()
    else:
        assert not changed[:y0].any() and not changed[:, :x0].any() and not inside_box[3:-3, 3:-3].any()
    colors = {tuple(color) for color in drawn[changed].tolist()}
    assert colors == {(0, 0, 0), (255, 255, 255)}
