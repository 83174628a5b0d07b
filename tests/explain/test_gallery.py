"""The gallery of right and wrong: what is on the page, and what a person does with it in a browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import onnxcam
from onnxcam import image, models
from onnxcam.explain import gallery
from onnxcam.explain.explanation import Drawing
from onnxcam.explain.gallery import Card, Gallery
from tests.support.browser import page


def one(name: str, best: tuple[int, str, float | None], truth: tuple[int, str] | None, *more: str) -> Card:
    pixels = np.random.default_rng(len(name)).integers(0, 255, (40, 60, 3), np.uint8)
    maps = [("picture", gallery.encode(pixels)), (f"predicted: {best[1]}", gallery.encode(pixels[::-1]))]
    return Card(name, [best, (2, "boat", 0.01)], truth, maps, more)


CARDS = [
    one("a/1.jpg", (0, "cat", 0.9), (0, "cat")),
    one("a/2.jpg", (1, "dog", 0.4), (0, "cat"), "the map of 'dog' is zero everywhere"),
    one("b/3.jpg", (1, "dog", 0.8), (1, "dog")),
    one("b/<4>.jpg", (2, "boat", 0.55), (1, "dog")),
    one("c.jpg", (0, "cat", None), None),
]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "index.html"
    with Gallery("Pictures & classes") as pages:
        for place, card in enumerate(CARDS):
            pages.add(card, f"out/{place} %/panel.png")
        pages.write(path, ["of a test"])
    return path


def test_the_page_says_everything_without_its_script(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert "2 of 4" in text and "right (50.0 %)" in text and "85.0 %" in text and "47.5 %" in text
    assert text.count("✓ right</span>") == text.count("✗ wrong</span>") == 2
    assert "true: cat" in text and "b/&lt;4&gt;.jpg" in text and "b/<4>" not in text
    assert "out/1%20%25/panel.png" in text and "is zero everywhere" in text and "of a test" in text


@pytest.mark.slow
def test_filters_search_and_order_in_a_browser(written: Path) -> None:
    with page(written) as opened:
        count = opened.locator(".count")
        visible = lambda: opened.eval_on_selector_all(  # noqa: E731
            ".gallery > li:not([hidden]) h3", "all => all.map(one => one.textContent)"
        )
        assert count.inner_text() == "5 of 5 shown"
        opened.get_by_text("✗ wrong", exact=True).first.click()
        assert visible() == ["a/2.jpg", "b/<4>.jpg"]
        opened.select_option("#truth", "cat")
        assert visible() == ["a/2.jpg"]
        opened.click("#clear")
        assert count.inner_text() == "5 of 5 shown"
        opened.keyboard.press("Escape")
        opened.select_option("#predicted", "dog")
        assert visible() == ["a/2.jpg", "b/3.jpg"]
        opened.click("#clear")
        opened.fill("#low", "50")
        assert visible() == ["a/1.jpg", "b/3.jpg", "b/<4>.jpg"]
        opened.fill("#high", "60")
        assert visible() == ["b/<4>.jpg"]
        opened.click("#clear")
        opened.select_option("#order", "low")
        assert visible() == ["a/2.jpg", "b/<4>.jpg", "b/3.jpg", "a/1.jpg", "c.jpg"]
        opened.select_option("#order", "")
        opened.fill("#search", "cat a/")
        assert visible() == ["a/1.jpg", "a/2.jpg"]
        opened.fill("#search", "nothing like it")
        assert visible() == [] and opened.locator(".none").is_visible()


@pytest.mark.slow
def test_by_keyboard_alone(written: Path) -> None:
    with page(written, width=400) as opened:
        opened.keyboard.press("/")
        opened.keyboard.type("jpg")
        assert opened.evaluate("document.activeElement.id") == "search"
        opened.focus(".gallery > li")
        focus = "document.activeElement.querySelector('h3').textContent"
        for key, name in (("ArrowDown", "a/2.jpg"), ("End", "c.jpg"), ("ArrowLeft", "b/<4>.jpg"), ("Home", "a/1.jpg")):
            opened.keyboard.press(key)
            assert opened.evaluate(focus) == name
        assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than a phone"


@pytest.mark.slow
def test_values_of_a_regression_are_filtered_as_values(tmp_path: Path) -> None:
    path = tmp_path / "values.html"
    with Gallery("values") as pages:
        for name, value in (("a.jpg", 250.0), ("b.jpg", -3.5), ("c.jpg", 0.25)):
            pages.add(replace(one(name, (0, "weight", value), None), predictions=[(0, "weight", value)], value=True))
        pages.write(path)
    text = path.read_text(encoding="utf-8")
    assert "speaks for the value" in text and "Predicted class" not in text and "Confidence" not in text
    with page(path) as opened:
        names = lambda: opened.eval_on_selector_all(  # noqa: E731
            ".gallery > li:not([hidden]) h3", "all => all.map(one => one.textContent)"
        )
        opened.select_option("#order", "low")
        assert names() == ["b.jpg", "c.jpg", "a.jpg"]
        opened.select_option("#order", "high")
        assert names() == ["a.jpg", "c.jpg", "b.jpg"]
        opened.fill("#low", "0.2")
        assert names() == ["a.jpg", "c.jpg"]
        opened.fill("#high", "100")
        assert names() == ["c.jpg"]


def test_beyond_the_limit_pictures_are_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST", 3)
    with Gallery("many") as pages:
        for card in CARDS:
            pages.add(card)
        pages.write(tmp_path / "many.html")
    text = (tmp_path / "many.html").read_text(encoding="utf-8")
    assert text.count("<li class") == 3 and "2 more pictures are not on this page" in text and "2 of 4" in text


def test_the_true_class_has_a_map_where_the_prediction_is_another() -> None:
    explainer = onnxcam.Explainer(models.path(models.MODEL))
    question = explainer.question(target=None)
    read = image.load(models.path("cat.png"))
    (explanation,) = explainer.answer(question, [read])
    best = explanation.target
    judge = gallery.Judge(explainer, question, {"right": best, "wrong": 285}, Drawing())
    cards = {name: judge.card(name, read, explanation) for name in ("right", "wrong", "other")}
    assert {name: card.state for name, card in cards.items()} == {
        "right": gallery.RIGHT,
        "wrong": gallery.WRONG,
        "other": gallery.UNKNOWN,
    }
    assert [len(card.maps) for card in cards.values()] == [2, 3, 2]
    caption, encoded = cards["wrong"].maps[2]
    assert caption == "true: Egyptian cat"
    (of_truth,) = explainer.answer(explainer.question(target=285), [read])
    assert encoded == gallery.encode(of_truth.overlay())
