"""Colours, overlays, panels and files."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from onnxcam import files
from onnxcam.errors import DependencyError, InputError, OutputError
from onnxcam.image import COLORMAPS, colorize, grayscale, load, overlay, panel, write_bytes, write_png
from onnxcam.image import opencv as opencv_module
from onnxcam.image.panel import _cell, _show, _show_map, percentage
from onnxcam.image.text import Font
from tests.image.pictures import noise, smooth


@pytest.mark.parametrize("name", COLORMAPS)
def test_colors_are_rgb_and_in_the_named_order(name):
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    colors = colorize(ramp, name)
    assert colors.shape == (1, 256, 3) and colors.dtype == np.uint8
    if name == "gray":
        np.testing.assert_array_equal(colors[0, :, 0], np.arange(256))
        return
    matplotlib = pytest.importorskip("matplotlib")
    expected = matplotlib.colormaps[name](np.arange(256))[:, :3] * 255
    # OpenCV interpolates its jet and hot tables differently; the others are the same tables.
    assert np.abs(colors[0] - expected).mean() < {"jet": 6, "hot": 9}.get(name, 0.5)


def test_grayscale_clips_and_forgives_nan():
    heat = np.array([[-1.0, 0.0, 0.5, 1.0, 2.0, np.nan, np.inf]], np.float32)
    np.testing.assert_array_equal(grayscale(heat), [[0, 0, 128, 255, 255, 0, 255]])


def test_unknown_colormap_lists_the_others():
    with pytest.raises(InputError, match=r"did you mean 'viridis'.*'jet'"):
        colorize(np.zeros((2, 2)), "veridis")


def test_overlay_is_the_weighted_mean():
    pixels, heat = noise(20, 30), np.random.default_rng(0).random((20, 30)).astype(np.float32)
    for alpha in (0.0, 0.3, 0.5, 1.0):
        expected = (1 - alpha) * pixels + alpha * colorize(heat)
        assert np.abs(overlay(pixels, heat, alpha) - expected).max() <= 0.5 + 1e-4
    np.testing.assert_array_equal(overlay(load(pixels), heat), overlay(pixels, heat))


@pytest.mark.parametrize(
    ("pixels", "heat", "alpha", "message"),
    [
        (noise(4, 5), np.zeros((5, 4)), 0.5, "map it back onto the picture"),
        (noise(4, 5), np.zeros((4, 5)), 1.5, "alpha is 1.5"),
        (noise(4, 5), np.zeros((4, 5)), float("nan"), "alpha is nan"),
        (noise(4, 5, 4), np.zeros((4, 5)), 0.5, "expected uint8"),
        (np.zeros((4, 5, 3)), np.zeros((4, 5)), 0.5, "float64"),
    ],
)
def test_overlay_errors(pixels, heat, alpha, message):
    with pytest.raises(InputError, match=message):
        overlay(pixels, heat, alpha)


@pytest.mark.parametrize(
    "size",
    [(1, 1), (28, 28), (224, 224), (300, 451), (5, 900), (900, 5), pytest.param((2000, 3000), marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("label", ["", "tabby, tabby cat", "ярлык 猫 🐱 é\n\t\0", "very long " * 60])
def test_panel_of_any_picture_and_label(size, label):
    drawn = panel(smooth(*size), np.ones(size, np.float32) * 0.5, label=label, probability=0.931)
    assert drawn.dtype == np.uint8 and drawn.shape[2] == 3
    assert 200 <= max(drawn.shape[:2]) <= 3 * 640 + 400
    margin = 10
    for edge in (drawn[:margin], drawn[-margin:], drawn[:, :margin], drawn[:, -margin:]):
        assert (edge == 255).all(), "something is drawn into the margin"


def test_panel_shows_what_it_was_given():
    """The three cells, found by their pixels."""
    pixels, heat = smooth(240, 320), np.random.default_rng(0).random((240, 320)).astype(np.float32)
    blend = overlay(pixels, heat, 0.25, "magma")
    drawn = panel(pixels, heat, blend, label="x", colormap="magma")
    for cell in (pixels, colorize(heat, "magma"), blend):
        score = cv2.matchTemplate(drawn, np.ascontiguousarray(cell[:50, :50]), cv2.TM_SQDIFF)
        left, top = cv2.minMaxLoc(score)[2]
        np.testing.assert_array_equal(drawn[top : top + 240, left : left + 320], cell)
    bar = drawn[:, -60:].reshape(-1, 3).tolist()
    for end in (0.0, 1.0):
        assert colorize(np.array([[end]]), "magma")[0, 0].tolist() in bar


@pytest.mark.parametrize(
    ("height", "width"), [(479, 639), (480, 640), (957, 1279), (958, 1278), (420, 560), (1, 3000), (8, 1227), (3, 641)]
)
def test_a_thin_peak_keeps_its_energy_wherever_it_lies(height, width):
    size = _cell(height, width)
    share = size[1] / width  # of a cell, that a column of the map covers
    for column in [*range(0, width, 7), width - 2, width - 1]:
        heatmap = np.zeros((height, width), np.float32)
        heatmap[:, column] = 1.0
        rows = _show_map(heatmap, size).astype(np.float64).mean(axis=0)
        most = 2.5 if column == width - 1 else 1.2  # an odd column at the end counts twice
        assert 0.4 * 255 * share <= rows.max() and rows.sum() >= 0.8 * 255 * share - 1.5, (column, rows.max())
        assert rows.sum() <= most * 255 * share + 1.5, (column, rows.sum())


@pytest.mark.parametrize(("height", "width"), [(1, 3000), (2, 5000), (3000, 1)])
def test_a_strip_is_averaged_down(height, width):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels.reshape(-1, 3)[::2] = 254
    rows = _show(pixels, _cell(height, width))
    assert abs(rows.astype(int) - 127).max() <= 30, "stripes finer than a pixel are grey"


def test_panel_text_depends_on_label_and_probability():
    def draw(**text):
        return panel(smooth(64, 64), np.zeros((64, 64)), **text)

    assert not np.array_equal(draw(label="cat"), draw(label="dog"))
    assert not np.array_equal(draw(label="cat", probability=0.5), draw(label="cat", probability=0.6))
    assert draw().shape[0] < draw(label="cat").shape[0]
    with pytest.raises(InputError, match="give both in one size"):
        panel(smooth(4, 4), np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9312, "93.1 %"), (1.0, "100.0 %"), (0.99999, "> 99.9 %"), (0.0, "0.0 %"), (1e-6, "< 0.1 %"), (0.0005, "0.1 %")],
)
def test_percentage(value, text):
    assert percentage(value) == text


@pytest.mark.parametrize("fonts", ["truetype", "strokes"])
def test_text_fits(fonts, monkeypatch):
    if fonts == "strokes":
        monkeypatch.delattr(cv2, "FontFace", raising=False)
    font = Font(20, 600)
    long = "Ågren's naïve 猫 " * 20
    fitted = font.fit(long, 300)
    assert fitted.endswith("...") and 200 < font.width(fitted) <= 300
    assert font.fit("cat", 300) == "cat" and font.fit(long, 3) == ""
    canvas = np.full((60, 400, 3), 255, np.uint8)
    font.draw(canvas, fitted, 10, 40, (0, 0, 0))
    inked = np.flatnonzero((canvas < 128).any(axis=(0, 2)))
    assert inked[0] >= 8 and 200 < inked[-1] <= 310
    if fonts == "strokes":
        assert font._printable("Ångström 猫") == "Angstrom ?"


def test_png_round_trip(tmp_path):
    for pixels in (noise(7, 9), noise(7, 9, 0)):
        write_png(tmp_path / "x.png", pixels)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), pixels)
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "x.png").stat().st_mode & 0o777 == 0o666 & ~mask
    write_bytes(tmp_path / ("n" * 250 + ".json"), b"{}")
    with pytest.raises(OutputError, match="is not a picture"):
        write_png(tmp_path / "y.png", np.zeros((3, 3), np.float32))


@pytest.mark.parametrize("moment", ["write", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(moment, tmp_path, monkeypatch):
    write_bytes(tmp_path / "x.png", b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "replace":
        monkeypatch.setattr(files.os, "replace", full)
    else:

        class Half(io.FileIO):
            def write(self, data):
                super().write(data[: len(data) // 2])
                full()

        monkeypatch.setattr(files.io, "FileIO", Half)
    with pytest.raises(OutputError, match="No space left on device; free some space"):
        write_png(tmp_path / "x.png", noise(4, 4))
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"x.png": b"old"}


def test_a_system_that_takes_a_few_bytes_at_a_time_gets_all_of_them(tmp_path, monkeypatch):
    class Slow(io.FileIO):
        def write(self, data):
            return super().write(data[:1000])

    pixels = noise(40, 50)
    for compress in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(files.io, "FileIO", Slow)
            write_png(tmp_path / "x.png", pixels, compress)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), pixels)


def test_unwritable_places(tmp_path):
    with pytest.raises(OutputError, match="does not exist; create it first"):
        write_bytes(tmp_path / "no" / "x", b"")
    with pytest.raises(OutputError, match="could not be written"):
        write_bytes(tmp_path, b"")
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="choose a folder that you may write to"):
            write_bytes(tmp_path / "x", b"")
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("libxcb.so.1: cannot open shared object file"), "a system library is missing"),
        (ModuleNotFoundError("No module named 'cv2'"), "is not installed"),
    ],
)
def test_opencv_errors_name_both_remedies(error, message, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.delitem(sys.modules, "cv2")
    monkeypatch.setattr(opencv_module.importlib, "import_module", fail)
    with pytest.raises(DependencyError, match=message) as caught:
        opencv_module.import_cv2()
    assert "apt-get install --no-install-recommends libgl1 libglib2.0-0" in str(caught.value)
    assert "pip uninstall -y opencv-python && pip install opencv-python-headless" in str(caught.value)


def test_importing_loads_no_heavy_library():
    heavy = ("cv2", "PIL", "torch", "onnx", "onnxruntime", "tensorflow")
    script = f"import sys, onnxcam.image; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (3, 3)])
@pytest.mark.parametrize("alpha", [None, 0.4])
def test_overlays_of_the_smallest_pictures(shape: tuple[int, int], alpha: float | None) -> None:
    pixels = np.full((*shape, 3), 90, np.uint8)
    drawn = overlay(pixels, np.ones(shape, np.float32), alpha)
    assert drawn.shape == pixels.shape and (drawn == drawn[0, 0]).all() and (drawn != pixels).any()
