"""What a map does not cover is told apart from what it calls unimportant: where it lies, and how it is drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from onnxcam.errors import InputError
from onnxcam.image import (
    COLORMAPS,
    DEFAULT_COLORMAP,
    Geometry,
    Marks,
    Preprocess,
    Rectangle,
    draw,
    gallery,
    grayscale,
    hidden,
    marked,
    overlay,
    paint,
    palette,
    panel,
    whole,
)
from onnxcam.image.colormap import KNEE, OPACITY, remaining
from tests.image.pictures import noise, smooth
from tests.image.test_geometry import PICTURES, SPECS

CROP = [Rectangle(20, 10, 70, 55)]


def mask(size, visible):
    drawn = np.zeros(size, bool)
    for part in visible:
        drawn[part.y0 : part.y1, part.x0 : part.x1] = True
    return drawn


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("size", [*PICTURES, (3, 1000), (1, 1)])
def test_what_lies_on_the_input_is_where_a_map_of_ones_is(name, size):
    _, geometry = Preprocess.from_dict(SPECS[name]).transform(smooth(*size))
    back = geometry.to_picture(np.ones(geometry.input_size, np.float32))
    np.testing.assert_array_equal(back > 0, mask(size, [geometry.visible()]))
    if name in ("stretch", "letterbox", "nothing", "shortest alone"):
        assert geometry.visible() == whole(size)


def test_a_part_of_the_input_lies_on_the_pixels_whose_centres_it_contains():
    rng = np.random.default_rng(0)
    for _ in range(200):
        side = [int(n) for n in rng.integers(20, 300, 2)]
        resized = [int(n) for n in rng.integers(30, 300, 2)]
        offset = [int(rng.integers(-20, 15)) for _ in range(2)]
        geometry = Geometry(tuple(side), tuple(resized), tuple(offset), (64, 96))
        spans = [sorted(rng.uniform(-5, n + 5, 2)) for n in (64, 96)]
        spans = [span[::-1] if rng.random() < 0.5 else span for span in spans]  # mirrored
        inside = []
        for axis, (a, b) in enumerate(spans):
            start, stop = max(min(a, b), 0, offset[axis]), min(max(a, b), (64, 96)[axis], offset[axis] + resized[axis])
            centre = (np.arange(side[axis]) + 0.5) * resized[axis] / side[axis] + offset[axis]
            inside.append((centre >= start) & (centre < stop))
        box = geometry.visible(*map(tuple, spans))
        if inside[0].any() and inside[1].any():
            np.testing.assert_array_equal(mask(side, [box]), np.outer(*inside))
        else:
            assert min(box.x1 - box.x0, box.y1 - box.y0) <= 1
    assert Geometry((10, 10), (10, 10), (50, 0), (20, 20)).visible().area == 0


def test_hidden_is_the_rest_and_nothing_twice():
    rng = np.random.default_rng(1)
    for _ in range(300):
        size = tuple(int(n) for n in rng.integers(1, 40, 2))
        corners = rng.integers(-5, 45, (int(rng.integers(0, 4)), 4))
        visible = [Rectangle(*(int(n) for n in corner)) for corner in corners]
        times = np.zeros(size, int)
        for part in hidden(size, visible):
            assert part.area and part.intersection(whole(size)) == part
            times[part.y0 : part.y1, part.x0 : part.x1] += 1
        display = np.zeros(size, bool)
        for part in visible:
            display[max(part.y0, 0) : max(part.y1, 0), max(part.x0, 0) : max(part.x1, 0)] = True
        np.testing.assert_array_equal(times, ~display)


@pytest.mark.parametrize("level", [0, 60, 128, 162, 200, 255, None])
def test_marks_are_told_from_any_picture_without_colour(level):
    """By lightness alone: hatched in two greys, framed in black and white, and the visible part as it was."""
    pixels = noise(80, 100) if level is None else np.full((80, 100, 3), level, np.uint8)
    marks = Marks.of((80, 100), CROP)
    drawn = marks.draw(pixels.copy())
    inside = mask((80, 100), CROP)
    np.testing.assert_array_equal(drawn[inside], pixels[inside])
    lines, counts = np.unique(drawn[70:, :, 0], return_counts=True)
    if level is not None:
        assert len(lines) == 2 and lines[1] - lines[0] >= 40 and counts.min() >= 0.1 * counts.sum()
        assert (drawn[9, 20:70] == 255).all() and (drawn[8, 20:70] == 24).all(), "a white and a black line around it"
    # pale: what is left of the picture's contrast
    assert drawn[70:].astype(float).std() < 0.6 * max(pixels.astype(float).std(), 60)


@pytest.mark.parametrize(
    "visible", [CROP, [Rectangle(5, 5, 40, 41), Rectangle(30, 20, 70, 60)], [Rectangle(60, 50, 130, 95)], []]
)
def test_rows_drawn_apart_are_rows_of_the_whole(visible):
    pixels, heat = noise(80, 100), np.random.default_rng(0).random((80, 100)).astype(np.float32)
    marks = Marks.of((80, 100), visible)
    for alpha in (None, 0.4):
        at_once = overlay(pixels, heat, alpha, visible=visible)
        gray = grayscale(heat)
        parts = [draw(pixels[k : k + 7], gray[k : k + 7], alpha, "viridis", marks, k) for k in range(0, 80, 7)]
        np.testing.assert_array_equal(np.concatenate(parts), at_once)
        inside = mask((80, 100), visible)
        np.testing.assert_array_equal(at_once[inside], overlay(pixels, heat, alpha)[inside])
        np.testing.assert_array_equal(at_once[~inside], marks.draw(pixels.copy())[~inside])


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_a_coloured_map_shows_the_marks_in_greys_of_their_own(colormap):
    heat = np.random.default_rng(0).random((80, 100)).astype(np.float32)
    marks, gray, inside = Marks.of((80, 100), CROP), grayscale(heat), mask((80, 100), CROP)
    levels = marks.levels(gray)
    assert (levels[~inside] < 4).all() and (levels[inside] >= 4).all()
    np.testing.assert_array_equal(levels[inside], np.maximum(gray[inside], 4))
    colors = marked(palette(colormap))[levels]
    np.testing.assert_array_equal(colors[inside & (gray >= 4)], paint(gray, colormap)[inside & (gray >= 4)])
    assert set(colors[~inside][:, 0]) == {24, 164, 208, 255}
    assert (colors[~inside] == colors[~inside][:, :1]).all(), "greys"


@pytest.mark.parametrize("size", [(90, 130), (700, 900), (900, 700)])
def test_hidden_pixels_are_dimmed_and_hatched(size):
    """By hand, in whole numbers: 0.3 of the pixel and 0.7 of a grey, lines darker by 52, rounded."""
    pixels, visible = noise(*size), [Rectangle(size[1] // 4, 0, size[1] // 2, size[0] * 3 // 4)]
    marks = Marks.of(size, visible)
    y, x = np.indices(size)
    lines = (x + y) % marks.distance < marks.thickness
    expected = np.rint(0.3 * pixels.astype(np.float64) + 113.4 - 52 * lines[..., None])
    framed = np.zeros(size, bool)
    for part, _ in marks.frame:
        framed[part.y0 : part.y1, part.x0 : part.x1] = True
    apart = np.concatenate([marks.draw(pixels[k : k + 33].copy(), None, k) for k in range(0, size[0], 33)])
    for drawn in (marks.draw(pixels.copy()), apart, marks.draw(np.zeros_like(pixels), pixels)):
        plain = ~framed & ~mask(size, visible)
        assert np.abs(drawn[plain] - expected[plain]).max() <= 1 and (drawn[plain] == expected[plain]).mean() > 0.99
    np.testing.assert_array_equal(marks.levels(np.zeros(size, np.uint8))[~framed & ~mask(size, visible)], lines[plain])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 900), (900, 7), (32, 32), (600, 800)])
def test_marks_fit_any_size(size):
    visible = [Rectangle(0, 0, max(size[1] // 2, 1), max(size[0] // 2, 1))]
    marks = Marks.of(size, visible)
    assert bool(marks) == (size != (1, 1))
    pixels = np.full((*size, 3), 128, np.uint8)
    drawn = marks.draw(pixels.copy())
    np.testing.assert_array_equal(drawn[mask(size, visible)], pixels[mask(size, visible)])
    assert (drawn[~mask(size, visible)] != 128).all()
    # shrunk to a thumbnail the lines are still there
    if min(size) > 300:
        small = cv2.resize(drawn, (160, 120), interpolation=cv2.INTER_AREA)[100:, 100:, 0]
        assert np.ptp(small.astype(int)) >= 25


def test_nothing_is_marked_where_everything_is_visible_and_all_where_nothing_is():
    pixels = noise(30, 40)
    for visible in (None, [whole((30, 40))], [Rectangle(0, 0, 25, 30), Rectangle(20, 0, 40, 30)]):
        assert not Marks.of((30, 40), visible)
        np.testing.assert_array_equal(overlay(pixels, np.zeros((30, 40)), visible=visible), pixels)
    assert Marks.of((30, 40), []).hidden == (whole((30, 40)),)


def test_the_opacity_grows_with_the_map_by_default():
    pixels, heat = noise(20, 256), np.repeat(np.linspace(0, 1, 256, dtype=np.float32)[None], 20, 0)
    opacity = OPACITY * np.minimum(heat / KNEE, 1)[..., None]
    for name in ("viridis", "jet"):
        expected = (1 - opacity) * pixels + opacity * palette(name)[grayscale(heat)]
        assert np.abs(overlay(pixels, heat, colormap=name) - expected).max() <= 1.6
    np.testing.assert_array_equal(overlay(pixels, heat * 0), pixels)
    np.testing.assert_array_equal(overlay(pixels, heat), overlay(pixels, heat, None, DEFAULT_COLORMAP))


def test_what_is_left_of_the_picture_is_the_rest_of_the_opacity():
    levels = np.arange(256, dtype=np.uint8)[None]
    expected = np.rint(255 * (1 - OPACITY * np.minimum(levels / 255 / KNEE, 1)))
    np.testing.assert_array_equal(remaining(levels), expected)


def test_panels_show_what_is_not_covered():
    pixels, heat = smooth(240, 320), np.random.default_rng(0).random((240, 320)).astype(np.float32)
    visible = [Rectangle(60, 20, 260, 220)]
    drawn = panel(pixels, heat, label="x", visible=visible)
    for cell in (
        pixels,
        overlay(pixels, heat, visible=visible),
        marked(palette("viridis"))[Marks.of((240, 320), visible).levels(grayscale(heat))],
    ):
        score = cv2.matchTemplate(drawn, np.ascontiguousarray(cell), cv2.TM_SQDIFF)
        left, top = cv2.minMaxLoc(score)[2]
        np.testing.assert_array_equal(drawn[top : top + 240, left : left + 320], cell)
    side = gallery(pixels, [("a", heat), ("b", heat)], visible=[visible, None])
    score = cv2.matchTemplate(side, overlay(pixels, heat, visible=visible), cv2.TM_SQDIFF)
    assert cv2.minMaxLoc(score)[0] == pytest.approx(0, abs=1e3)
    assert side.shape[0] > gallery(pixels, [("a", heat), ("b", heat)]).shape[0], "a line says what the hatching means"


def test_a_map_that_is_zero_everywhere_is_words_and_not_a_colour():
    pixels, zero = smooth(240, 320), np.zeros((240, 320), np.float32)
    drawn = panel(pixels, zero, label="x", probability=1.0)
    lowest = palette("viridis")[0]
    assert (drawn == lowest).all(axis=2).mean() < 0.005, "the colour bar alone"
    middle = drawn[60:300, 370:650]
    assert ((middle < 200).any(axis=2)).any(), "letters"
    assert drawn.shape[0] < panel(pixels, zero, label="x", notes=["why " * 10]).shape[0]
    for size in ((20, 20), (4, 500), (500, 4)):
        panel(smooth(*size), np.zeros(size), notes=["word " * 300, "", "unbreakable" * 60])


def test_an_opacity_that_is_none_is_refused_by_nobody_and_others_as_before():
    for call in (overlay, panel):
        with pytest.raises(InputError, match=r"alpha is -0\.1"):
            call(noise(4, 5), np.zeros((4, 5)), alpha=-0.1)
    with pytest.raises(InputError, match=r"alpha is 2"):
        gallery(noise(4, 5), [("a", np.zeros((4, 5)))], alpha=2)
