"""What the page at `GET /` draws in a real browser, held to what `Explainer` draws."""

from __future__ import annotations

import io
import re
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from onnxcam import image
from onnxcam.explain.explainer import Explainer
from tests.server.conftest import CAT
from tests.server.visitor import canvas, hand_over, same, status


@pytest.mark.slow
def test_a_dropped_picture_is_explained_as_explainer_does(page: Any, explainer: Explainer) -> None:
    e = explainer.explain(str(CAT))
    hand_over(page, CAT.read_bytes(), "cat.png")
    status(page, f"cat.png: what speaks for {e.label}")
    same(canvas(page), e.overlay())
    page.get_by_text("Hatched").wait_for()  # the crop leaves the margins out
    for row, (_, label, probability) in zip(page.locator("#predictions li").all(), e.predictions, strict=True):
        assert label in row.inner_text() and f"{100 * probability:.1f} %" in row.inner_text()
    gray = image.grayscale(e.heatmap)
    page.get_by_label("Heatmap", exact=True).check()
    same(canvas(page), image.marked(image.palette("viridis"))[e.marks.levels(gray)])
    page.get_by_label("Picture", exact=True).check()
    assert np.array_equal(canvas(page), e.picture)
    page.get_by_label("Overlay", exact=True).check()
    page.get_by_label("Colours").select_option("jet")
    page.get_by_label("The same opacity everywhere").check()
    page.locator("#opacity").fill("35")
    same(canvas(page), e.overlay(alpha=0.35, colormap="jet"))
    name = page.get_by_role("img").get_attribute("aria-label")
    assert e.label in name and f"{round(100 * e.statistics['centroid'][1])} % from the left" in name
    table = page.locator("#statistics").inner_text()
    assert f"{round(100 * e.statistics['half_area'])} % of the picture" in table and "Separate peaks" in table
    assert not e.warnings and page.locator("#warnings").is_hidden()


@pytest.mark.slow
def test_pictures_are_turned_blended_and_scaled_as_onnxcam_reads_them(page: Any, explainer: Explainer) -> None:
    photo = Image.open(CAT)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned right
    turned = io.BytesIO()
    photo.convert("RGB").save(turned, "JPEG", quality=95, exif=exif)
    hand_over(page, turned.getvalue(), "turned.jpg", "image/jpeg")
    status(page, "turned.jpg: what speaks for")
    e = explainer.explain(turned.getvalue())
    assert canvas(page).shape == e.picture.shape == (photo.width, photo.height, 3)
    assert np.abs(canvas(page).astype(int) - e.overlay()).mean() < 1.5  # two decoders of JPEG
    clear = photo.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    encoded = io.BytesIO()
    clear.save(encoded, "PNG")
    hand_over(page, encoded.getvalue(), "clear.png")
    status(page, "clear.png: what speaks for")
    assert np.abs(canvas(page).astype(int) - explainer.explain(encoded.getvalue()).overlay()).max() <= 2
    large = io.BytesIO()
    photo.convert("RGB").resize((4096, 1024)).save(large, "JPEG", quality=80)
    hand_over(page, large.getvalue(), "large.jpg", "image/jpeg")
    status(page, "large.jpg: what speaks for")
    e = explainer.explain(large.getvalue())
    drawn = canvas(page)
    assert drawn.shape == (512, 2048, 3)
    smaller = cv2.resize(e.overlay(), (2048, 512), interpolation=cv2.INTER_AREA)
    # but for the lines of the hatching, which keep their distance on the screen
    part = (e.visible or [])[0].scaled((1024, 4096), (512, 2048))
    inner = np.s_[part.y0 + 2 : part.y1 - 2, part.x0 + 2 : part.x1 - 2]
    assert np.abs(drawn[inner].astype(int) - smaller[inner]).mean() < 2


@pytest.mark.slow
def test_a_map_is_saved_as_a_file(page: Any, explainer: Explainer) -> None:
    hand_over(page, CAT.read_bytes(), "cat.png")
    status(page, "what speaks for")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as PNG").click()
    e = explainer.explain(str(CAT))
    assert download.value.suggested_filename == f"cat_{re.sub(r'[^A-Za-z0-9_]+', '_', e.label)}_overlay.png"
    same(np.asarray(Image.open(download.value.path()).convert("RGB")), e.overlay())


@pytest.mark.slow
def test_colours_are_those_of_onnxcam(page: Any) -> None:
    tables = page.evaluate(
        "async () => { const { COLORMAPS, palette } = await import('./colormaps.js');"
        " return COLORMAPS.map((name) => [name, [...palette(name)]]); }"
    )
    assert [name for name, _ in tables] == list(image.COLORMAPS)
    for name, table in tables:
        assert np.array_equal(np.array(table).reshape(256, 3), image.palette(name))


PARTS = ([(3, 5, 40, 30)], [(0, 0, 20, 48), (44, 7, 64, 48)], [], [(10, 10, 10, 10)])


@pytest.mark.slow
def test_marks_are_those_of_onnxcam(page: Any) -> None:
    random = np.random.default_rng(1)
    pixels, gray = random.integers(0, 256, (48, 64, 3), np.uint8), random.integers(0, 256, (48, 64), np.uint8)
    rgba = np.dstack([pixels, np.full((48, 64), 255, np.uint8)])
    for parts in PARTS:
        visible = [image.Rectangle(*part) for part in parts]
        mask = np.zeros((48, 64), int)
        for part in visible:
            mask[part.y0 : part.y1, part.x0 : part.x1] = 1
        overlaid, mapped = page.evaluate(
            """async ([values, visible, rgba]) => {
              const { overlay, heatmap } = await import("./drawing.js");
              const bytes = (list) => Uint8ClampedArray.from(list);
              const map = { width: 64, height: 48, values: bytes(values), visible: bytes(visible) };
              return [[...overlay(map, bytes(rgba), "turbo")], [...heatmap(map, "turbo")]];
            }""",
            [gray.ravel().tolist(), mask.ravel().tolist(), rgba.ravel().tolist()],
        )
        marks = image.Marks.of((48, 64), visible)
        same(np.array(overlaid).reshape(48, 64, 4)[..., :3], image.draw(pixels, gray, None, "turbo", marks))
        levels = marks.levels(gray) if marks else gray
        same(np.array(mapped).reshape(48, 64, 4)[..., :3], image.marked(image.palette("turbo"))[levels])
