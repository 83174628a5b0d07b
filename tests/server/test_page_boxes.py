"""What a person does on the page at `GET /` with a detector and a segmentation: boxes, outlines, parts of a picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from onnxcam import image, models
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.explanation import Explanation
from onnxcam.server import create_app
from onnxcam.targets.scalars import Box, Region
from tests.server.live import LiveServer
from tests.server.visitor import canvas, hand_over, same, status
from tests.support import browser as browsers
from tests.support import detectors, scenes

SCENE = scenes.PICTURES[0]
REFUSED = ("status of 4",)  # what Chromium's console says of it


@pytest.fixture(scope="module")
def explainers() -> dict[str, Explainer]:
    names = {"detector": models.path("scenes/detector.onnx"), "segmenter": models.path("scenes/segmenter.onnx")}
    sparse = Explainer(detectors.build("torchvision"), preprocess="0..1", probe=False)
    return {name: Explainer(path, preprocess="0..1", probe=False) for name, path in names.items()} | {"sparse": sparse}


@pytest.fixture(scope="module")
def live_boxes(explainers: dict[str, Explainer]) -> Iterator[LiveServer]:
    server = LiveServer(create_app(explainers, threads=2))
    yield server
    server.stop()


@pytest.fixture
def page(chromium: Any, live_boxes: LiveServer) -> Iterator[Any]:
    with browsers.visit(chromium, live_boxes.url, expected=REFUSED) as opened:
        yield opened


def framed(e: Explanation, box: Any = None) -> np.ndarray:
    """An overlay as the page draws it: its box without a chip, as the caption has the text."""
    drawn = image.draw(e.picture, image.grayscale(e.heatmap), None, "viridis", e.marks)
    return image.outline(drawn, [image.Outline(tuple(e.maps[0].box.box if box is None else box))])


def choose(page: Any, model: str) -> None:
    page.wait_for_selector("#settings:not([hidden])")
    page.get_by_label("Model", exact=True).select_option(model)


@pytest.mark.slow
def test_boxes_are_listed_pressed_pointed_at_and_compared(page: Any, explainers: dict[str, Explainer]) -> None:
    explainer = explainers["detector"]
    boxes = explainer.boxes(str(SCENE))
    names = [f"box {one.index}: {one.label}" for one in boxes]
    choose(page, "detector")
    hand_over(page, SCENE.read_bytes())
    status(page, f"what speaks for {names[0]}")
    assert page.get_by_role("heading", name="Boxes", exact=True).is_visible() and len(boxes) > 2
    for row, one, name in zip(page.locator("#predictions li").all(), boxes, names, strict=True):
        assert name in row.inner_text() and f"{100 * one.score:.1f} %" in row.inner_text()
    same(canvas(page), framed(explainer.explain(str(SCENE), target=Box(boxes[0].index))))
    # by the keyboard alone: from the row that is shown to the next one
    page.get_by_role("button", name=names[0], exact=False).first.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent").startswith(names[1])
    page.keyboard.press("Enter")
    status(page, f"what speaks for {names[1]}")
    same(canvas(page), framed(explainer.explain(str(SCENE), target=Box(boxes[1].index))))
    assert page.evaluate("document.activeElement.textContent").startswith(names[1]), "the focus stays"
    # in the picture
    x0, y0, x1, y1 = boxes[2].box
    place = page.locator("#figures canvas").bounding_box()
    height, width = canvas(page).shape[:2]
    scale = min(place["width"] / width, place["height"] / height)
    left, top = place["x"] + (place["width"] - width * scale) / 2, place["y"] + (place["height"] - height * scale) / 2
    inside = [
        one for one in boxes if one.box[0] <= (x0 + x1) / 2 <= one.box[2] and one.box[1] <= (y0 + y1) / 2 <= one.box[3]
    ]
    smallest = min(inside, key=lambda one: (one.box[2] - one.box[0]) * (one.box[3] - one.box[1]))
    page.mouse.click(left + scale * (x0 + x1) / 2, top + scale * (y0 + y1) / 2)
    status(page, f"what speaks for box {smallest.index}: {smallest.label}")
    same(canvas(page), framed(explainer.explain(str(SCENE), target=Box(smallest.index))))
    page.get_by_role("button", name=f"Compare with {names[0]}", exact=True).click()
    status(page, f"beside {names[0]}")
    same(canvas(page, 1), framed(explainer.explain(str(SCENE), target=Box(boxes[0].index))))
    page.get_by_label("Picture", exact=True).check()
    bare = image.outline(explainer.explain(str(SCENE)).picture, [image.Outline(boxes[0].box)])
    assert np.array_equal(canvas(page, 1), bare)


@pytest.mark.slow
def test_a_class_without_a_box_leaves_what_was_shown(page: Any, explainers: dict[str, Explainer]) -> None:
    explainer = explainers["detector"]
    boxes = explainer.boxes(str(SCENE))
    labels = explainer.labels or []
    there = {one.label for one in boxes}
    absent = next(label for label in [*labels, None] if label not in there)
    choose(page, "detector")
    hand_over(page, SCENE.read_bytes())
    status(page, f"what speaks for box {boxes[0].index}")
    field = page.get_by_label("Another class")
    last = boxes[-1]
    field.fill(str(last.class_index))
    field.press("Enter")
    best = next(one for one in boxes if one.class_index == last.class_index)
    status(page, f"what speaks for box {best.index}: {best.label}")
    assert page.locator("#predictions [aria-pressed=true]").first.inner_text().startswith(f"box {best.index}")
    if absent is not None:
        field.fill(absent)
        field.press("Enter")
        page.locator("#class-problem").get_by_text(re.compile("no box of")).wait_for()
        status(page, f"what speaks for box {boxes[0].index}")
        assert page.locator("#alert").is_hidden() and page.locator("#figures canvas").is_visible()


@pytest.mark.slow
def test_a_picture_without_a_box_is_said_to_have_none(page: Any, explainers: dict[str, Explainer]) -> None:
    """And the next picture, whose classes have no names, is explained all the same."""
    pixels = (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    choose(page, "sparse")
    hand_over(page, image.encode_png(np.zeros_like(pixels)), "black.png")
    page.get_by_role("alert").get_by_text("“black.png”: The model reports no box on this picture.").wait_for()
    hand_over(page, image.encode_png(pixels), "other.png")
    best = explainers["sparse"].boxes(pixels)[0]
    status(page, f"other.png: what speaks for box {best.index}: {best.label}")
    field = page.get_by_label("Another class")
    field.fill(str(best.class_index))
    field.press("Enter")
    page.locator('#figures[aria-busy="false"]').wait_for()
    assert page.locator("#class-problem").inner_text() == ""


@pytest.mark.slow
def test_a_part_of_a_segmentation_is_dragged_over_or_typed(page: Any, explainers: dict[str, Explainer]) -> None:
    explainer = explainers["segmenter"]
    choose(page, "segmenter")
    hand_over(page, SCENE.read_bytes())
    status(page, "what speaks for")
    assert page.get_by_role("heading", name="Predictions", exact=True).is_visible()
    field = page.get_by_label("A part of the picture", exact=False)
    field.fill("10, 20, 10, 40")
    field.press("Enter")
    page.get_by_text("Left has to be less than right").wait_for()
    field.fill("10, 20, 60, 70.5")
    field.press("Enter")
    e = explainer.explain(str(SCENE), target=Region(None, (10, 20, 60, 70.5)))
    status(page, f"what speaks for {e.label}, in the part")
    same(canvas(page), framed(e, (10, 20, 60, 70.5)))
    place = page.locator("#figures canvas").bounding_box()
    height, width = canvas(page).shape[:2]
    scale = min(place["width"] / width, place["height"] / height)
    left, top = place["x"] + (place["width"] - width * scale) / 2, place["y"] + (place["height"] - height * scale) / 2
    page.mouse.move(left + 0.2 * width * scale, top + 0.3 * height * scale)
    page.mouse.down()
    page.mouse.move(left + 0.5 * width * scale, top + 0.5 * height * scale, steps=3)
    assert page.locator("figure .shade").is_visible()
    page.mouse.move(left + 0.7 * width * scale, top + 0.8 * height * scale, steps=3)
    page.mouse.up()
    page.wait_for_function("!document.getElementById('part').value.startsWith('10, 20')")
    page.locator('#figures[aria-busy="false"]').wait_for()
    region = [float(number) for number in field.input_value().split(",")]
    expected = [0.2 * width, 0.3 * height, 0.7 * width, 0.8 * height]
    assert region == pytest.approx(expected, abs=max(1.0, 1.5 / scale))
    e = explainer.explain(str(SCENE), target=Region(None, tuple(region)))
    status(page, f"what speaks for {e.label}, in the part")
    same(canvas(page), framed(e, region))
