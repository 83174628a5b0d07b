"""Boxes and regions on pictures: seen on anything, in their place, and nothing else of the picture changed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from onnxcam.errors import InputError
from onnxcam.image import Outline, gallery, outline, overlay, panel
from onnxcam.image.outlines import line_width
from tests.image.pictures import noise, smooth

WHITE, BLACK = (255, 255, 255), (16, 18, 22)


def _is(pixels, color):
    return np.all(pixels == np.array(color, np.uint8), axis=-1)


@pytest.mark.parametrize("size", [(48, 64), (480, 640), (1500, 1100)])
@pytest.mark.parametrize("ground", [0, 16, 128, 255, "noise"])
def test_a_box_is_a_white_line_between_black_ones_in_its_place(size, ground):
    picture = noise(*size) if ground == "noise" else np.full((*size, 3), ground, np.uint8)
    before = picture.copy()
    x0, y0, x1, y1 = size[1] // 4, size[0] // 4, 3 * size[1] // 4, 4 * size[0] // 5
    drawn = outline(picture, [Outline((x0, y0, x1, y1))])
    np.testing.assert_array_equal(picture, before)
    wide = line_width(size)
    edge = max(round(wide / 2), 1)
    white, black = np.zeros(size, bool), np.zeros(size, bool)
    white[y0:y1, x0:x1] = True
    white[y0 + wide : y1 - wide, x0 + wide : x1 - wide] = False
    black[y0 - edge : y1 + edge, x0 - edge : x1 + edge] = True
    black[y0 + wide + edge : y1 - wide - edge, x0 + wide + edge : x1 - wide - edge] = False
    black &= ~white
    assert _is(drawn[white], WHITE).all() and _is(drawn[black], BLACK).all()
    np.testing.assert_array_equal(drawn[~(white | black)], picture[~(white | black)])
    assert wide == max(round(max(size) / 200), 1) and line_width(size, foremost=False) <= wide


def test_a_box_beyond_the_picture_is_cut_to_it_and_a_reversed_one_is_turned():
    picture = np.full((100, 120, 3), 128, np.uint8)
    drawn = outline(picture, [Outline((-40.0, 20.0, 500.0, 60.0))])
    assert _is(drawn[20:60, [0, 119]], WHITE).all() and _is(drawn[[20, 59]], WHITE).all()
    np.testing.assert_array_equal(drawn, outline(picture, [Outline((500.0, 60.0, -40.0, 20.0))]))
    far = outline(picture, [Outline((400.0, 400.0, 500.0, 500.0))])
    assert _is(far[99, 119], WHITE)  # the nearest corner says where it would be


def test_a_chip_is_text_on_black_inside_the_picture_and_apart_from_others():
    picture = smooth(480, 640)
    boxes = [Outline((200, 5, 400, 470), f"box {k}: dog 87.0 %", foremost=k == 0) for k in range(4)]
    drawn = outline(picture, boxes)
    plain = outline(picture, [one._replace(text="") for one in boxes])
    rows = np.flatnonzero(np.any(drawn != plain, axis=(1, 2)))
    tall = [len(band) for band in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)]
    assert sum(tall) >= 29 + 2 * 23  # three under each other and one at the bottom: none lies on another
    black = _is(drawn, BLACK) & ~_is(plain, BLACK)
    assert black.sum() > 4 * 1500 and (drawn[rows][:, 200:400].min(axis=-1) > 200).any()


@pytest.mark.parametrize("label", ["猫 ярлык 🐱", "very long " * 60, "a\n\tb\0", " "])
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (90, 900), (300, 20)])
def test_any_label_on_any_picture(size, label):
    drawn = outline(smooth(*size), [Outline((0, 0, size[1], size[0]), label)])
    assert drawn.shape == (*size, 3) and drawn.dtype == np.uint8


def test_small_pictures_have_no_chip_that_hides_the_object():
    picture, box = smooth(64, 64), (10.0, 12.0, 50.0, 60.0)
    np.testing.assert_array_equal(outline(picture, [Outline(box, "dog")]), outline(picture, [Outline(box)]))


def test_what_is_explained_lies_above_the_rest():
    picture = np.full((200, 200, 3), 90, np.uint8)
    ends = Outline((20, 20, 120, 120)), Outline((70, 70, 180, 180), foremost=False)
    np.testing.assert_array_equal(outline(picture, ends), outline(picture, ends[::-1]))
    assert _is(outline(picture, ends)[70:120, 119], WHITE).all()


def test_a_mask_has_its_border_drawn_inside_it():
    mask = np.zeros((200, 300), bool)
    mask[:60, :100], mask[120:180, 150:260], mask[140:160, 190:220] = True, True, False
    picture = noise(200, 300)
    drawn = outline(picture, [Outline(mask=mask, text="road")])
    wide = line_width((200, 300))
    white = _is(drawn, WHITE)
    core = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * wide + 1,) * 2)
    inside = cv2.erode(np.pad(mask.astype(np.uint8), 1), core)[1:-1, 1:-1] != 0
    lines = mask & ~inside
    assert white[:60, 0].all() and white[120, 150:260].all()
    without_chip = outline(picture, [Outline(mask=mask)])
    assert _is(without_chip[lines], WHITE).all()
    changed = np.any(without_chip != picture, axis=-1)
    assert not (changed & ~(cv2.dilate(lines.astype(np.uint8), np.ones((5, 5))) != 0)).any()
    top = np.flatnonzero(np.any(drawn != without_chip, axis=(1, 2)))[0]
    assert 120 > top > 60  # the chip is at the largest part


def test_outlines_keep_their_place_on_panels_overlays_and_galleries():
    picture = smooth(400, 600)
    heat = np.linspace(0, 1, 600, dtype=np.float32)[None].repeat(400, 0)
    box = Outline((150.0, 100.0, 300.0, 300.0), "box 3: dog 87.0 %")
    np.testing.assert_array_equal(overlay(picture, heat, outlines=[box]), outline(overlay(picture, heat), [box]))
    half = box.scaled((400, 600), (200, 300))
    assert half.box == (75.0, 50.0, 150.0, 150.0) and half.text == box.text
    mask = np.zeros((400, 600), bool)
    mask[100:300, 150:300] = True
    shrunk = Outline(mask=mask).scaled((400, 600), (200, 300)).mask
    assert shrunk is not None and shrunk.sum() == 100 * 75 and shrunk[50:150, 75:150].all()
    plain, drawn = panel(picture, heat), panel(picture, heat, outlines=[box])
    assert plain.shape == drawn.shape
    starts = [band[0] for band in _bands(np.any(plain != drawn, axis=(0, 2)))]
    assert len(starts) == 3  # in each of the three cells
    both = gallery(picture, [("a", heat), ("b", heat)], outlines=[[box], [Outline((400, 10, 590, 390), "box 4")]])
    assert both.shape == gallery(picture, [("a", heat), ("b", heat)]).shape


def _bands(columns):
    places = np.flatnonzero(columns)
    return np.split(places, np.flatnonzero(np.diff(places) > 30) + 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Outline((0.0, 1.0, float("nan"), 3.0)), "four finite numbers"),
        (Outline((0.0, 1.0, 3.0)), "four finite numbers"),  # type: ignore[arg-type]
        (Outline(), "neither a box nor a mask"),
        (Outline(mask=np.zeros((3, 3), bool)), r"shape \[3, 3\]; the picture has \[20, 30\]"),
    ],
)
def test_wrong_outlines_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        outline(noise(20, 30), [wrong])
