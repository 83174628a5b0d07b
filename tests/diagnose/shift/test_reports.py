"""The reports of a comparison: Markdown, JUnit and the page, also with hostile names, and the page in a browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from onnxcam import files, image
from onnxcam.diagnose.shift import page
from onnxcam.diagnose.shift.blame import Blame
from onnxcam.diagnose.shift.junit import Condition, junit
from onnxcam.diagnose.shift.layers import LayerDifference
from onnxcam.diagnose.shift.markdown import code, markdown, plain
from onnxcam.diagnose.shift.result import PictureShift, Prediction, Shift
from onnxcam.explain.explainer import Explainer
from tests.diagnose.shift import planted
from tests.support.browser import chromium, visit

HOSTILE = "<script>alert(1)</script>|`x` [a](http://evil.example) @team #12 \x00\x1b\ud800\uffff\u202e&amp; ]]> \"'"
LABELS = ["cat", "dog", HOSTILE, "bird", "boat"]


def shift(count: int = 6) -> Shift:
    """A comparison of two small classifiers, with names and labels that are markup."""
    preprocess = image.Preprocess.from_dict(
        {"color": "RGB", "scale": 1 / 64, "mean": 2.0, "std": 1.0, "resize": {"mode": "stretch", "size": [24, 24]}}
    )
    model = planted.network(fused=True).SerializeToString()
    explainer = Explainer(model, labels=LABELS, preprocess=preprocess, probe=False)
    rng = np.random.default_rng(0)
    pictures = []
    for k in range(count):
        pixels = rng.integers(0, 255, (30, 40, 3), np.uint8)
        old, new = Prediction(k % 3, LABELS[k % 3], 0.9), Prediction(1, "dog", 0.5 + 0.05 * k)
        name = HOSTILE if k == 0 else f"folder/{k}.png"
        regions = {"the beak <b>": (0.31, 0.06)} if k % 2 else {}
        pictures.append(PictureShift(name, pixels, k % 3, old, new, 0.1 * k, truth=1, regions=regions))
    layers = (
        LayerDifference("input", "input", "input", "structure", 0.0, 0.0),
        LayerDifference(
            "stem",
            "stem",
            "Conv",
            "name",
            0.4,
            0.4,
            0.4,
            0.01,
            0.01,
            0.01,
            0.0,
            "activation pair",
            "stem_q <",
            40.0,
            0.2,
        ),
        LayerDifference(HOSTILE, HOSTILE, "Gemm", "name", 0.5, 0.01),
    )
    blame = Blame("layer", f"The two part at {HOSTILE!r}.", layers, layers[1], layers[2], 0.5, (2, 2), 4, ("a note <",))
    names = explainer.layers[-1], explainer.layers[-1]
    return Shift(
        explainer, explainer, pictures, names, "gradcam", "old", "total variation", 1, notes=["n <i>"], blame=blame
    )


CONDITIONS = [
    Condition("attention", True, f"moved: {HOSTILE}", "one\ntwo"),
    Condition("predictions", False, "4 flipped"),
    Condition("null", None, "undecided"),
]


def test_junit_is_read_by_a_parser_and_keeps_its_counts() -> None:
    text = junit(HOSTILE, CONDITIONS, errors=[f"{HOSTILE} cannot be read"], properties={"old": HOSTILE}, seconds=1.5)
    root = ElementTree.fromstring(text.encode("utf-8"))
    suite = root.find("testsuite")
    assert suite is not None and root.tag == "testsuites"
    for element in (root, suite):
        assert (element.get("tests"), element.get("failures"), element.get("errors")) == ("4", "1", "1")
    assert suite.get("skipped") == "1" and suite.get("time") == "1.500"
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == ["attention", "predictions", "null", "pictures"]
    assert all(case.get("classname") == "onnxcam.compare" for case in cases)
    assert [[child.tag for child in case] for case in cases] == [["failure"], ["system-out"], ["skipped"], ["error"]]
    failure = cases[0].find("failure")
    assert failure is not None and failure.text is not None and failure.text.endswith("one\ntwo")
    readable = HOSTILE.translate(dict.fromkeys(map(ord, "\x00\x1b\ud800\uffff"), "�"))
    assert suite.get("name") == readable and failure.get("message") == f"moved: {readable}"


# what Jenkins' xUnit plugin takes (its junit-10.xsd): per element the attributes, those required, and the children
JUNIT: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"name", "time", "tests", "failures", "errors"}, set(), {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
        {"name", "tests", "failures", "errors"},
        {"properties", "testcase"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, {"name", "value"}, set()),
    "testcase": ({"name", "classname", "time"}, {"name", "classname"}, {"failure", "error", "skipped", "system-out"}),
    "failure": ({"message", "type"}, set(), set()),
    "error": ({"message", "type"}, set(), set()),
    "skipped": ({"message"}, set(), set()),
    "system-out": (set(), set(), set()),
}


def test_junit_has_the_elements_that_jenkins_takes() -> None:
    for errors, properties, timestamp in (([], None, None), (["e"], {"a": "b"}, "2026-01-31T10:00:00")):
        root = ElementTree.fromstring(junit("a", CONDITIONS, errors=errors, properties=properties, timestamp=timestamp))
        assert root.tag == "testsuites"
        for element in root.iter():
            allowed, required, children = JUNIT[element.tag]
            assert required <= set(element.attrib) <= allowed, element.tag
            assert {child.tag for child in element} <= children, element.tag
            for name in {"tests", "failures", "errors", "skipped"} & set(element.attrib):
                assert element.attrib[name].isdigit()
            assert re.fullmatch(r"\d+\.\d{3}", element.get("time", "0.000"))
            if children:
                assert not (element.text or "").strip()


def test_markdown_has_the_numbers_and_no_markup_of_names() -> None:
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    text = markdown(shift(), CONDITIONS)
    html = parser.render(text)
    plain_text = re.sub(r"<[^>]*>", "", html)
    assert "pictures" in plain_text and "4 (66.7%)" in plain_text and "31% → 6%" in plain_text
    assert "activation pair" in html and "40 %" in html and "attention" in html
    tags = set(re.findall(r"</?([a-zA-Z][a-zA-Z0-9]*)", html))
    allowed = {
        "h3",
        "ul",
        "li",
        "strong",
        "p",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "code",
        "details",
        "summary",
    }
    assert tags <= allowed | {"blockquote"}
    for row in re.findall(r"<tr>.*?</tr>", html, re.S):  # a bar in a name makes no cell
        assert len(re.findall(r"<t[hd]", row)) in (2, 3, 4, 5)
    assert "@team" not in re.sub(r"<code>.*?</code>", "", html, flags=re.S)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e\ud800]", text)
    text.encode("utf-8")


def test_markdown_stays_small_enough_for_a_comment() -> None:
    one = shift(4)
    long = "\\`|<&" * 400
    pictures = [
        PictureShift(long, None, 0, Prediction(0, long, 0.5), Prediction(1, long, 0.5), 0.5) for _ in range(300)
    ]
    layers = tuple(LayerDifference(long, long, "Conv", "name", 1.0, 1.0, part="operator") for _ in range(300))
    large = Shift(
        one.old, one.new, pictures, one.layers, "gradcam", "old", "x", 1, notes=[long] * 300,
        blame=Blame("layer", long, layers, layers[0], layers[1]),
    )  # fmt: skip
    assert len(markdown(large, [Condition(long, True, long)] * 3)) < 60_000


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a`b``c", "```a`b``c```"),
        ("`", "`` ` ``"),
        ("a|b", "`a\\|b`"),
        ("a\nb\x07", "`a b�`"),
        ("", "`   `"),
    ],
)
def test_names_are_code(text: str, written: str) -> None:
    assert code(text) == written


def test_plain_text_has_no_markup_and_no_mentions() -> None:
    assert plain("*a* [b](c) @d #1 <e> a_b") == r"\*a\* \[b\]\(c\) \@<!-- -->d \#<!-- -->1 \<e\> a\_b"


def test_the_page_says_everything_without_its_script(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    files.write_pieces(path, page.pieces(shift(), CONDITIONS, names=("a<.onnx", "b.onnx"), notes=["of a test"]))
    text = path.read_text("utf-8")
    assert "6 of 6 pictures are shown" in text and text.count('<li class="card ') == 6
    assert text.count("⇄ flipped</span>") == 4 and "31% → 6%" in text and "the beak &lt;b&gt;" in text
    assert "<script>alert" not in text and "<b>:" not in text and "a&lt;.onnx" in text
    assert 'class="blamed"' in text and "stem_q &lt;" in text and "of a test" in text
    assert len(re.findall("data:image/jpeg", text)) == 12  # two overlays of each picture
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)


def test_the_page_shows_as_many_as_it_may_and_says_so(tmp_path: Path) -> None:
    one = shift(6)
    assert [p.distance for p in page.chosen_pictures(one, 3)] == [0.4, 0.1, 0.5]
    assert len(page.chosen_pictures(one, 5)) == 5 and len(page.chosen_pictures(one, 60)) == 6
    files.write_pieces(tmp_path / "page.html", page.pieces(one, limit=3))
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "3 of 6 pictures are shown: those whose attention moved most" in text
    assert text.count('<li class="card ') == 3


@pytest.mark.slow
def test_filters_search_and_keyboard_in_a_browser(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    files.write_pieces(path, page.pieces(shift(), CONDITIONS))
    with chromium() as browser:
        with visit(browser, path.as_uri()) as opened:
            _use(opened)
        for scheme in ("light", "dark"):
            with visit(browser, path.as_uri(), 360, 800, scheme) as opened:
                assert opened.evaluate("document.documentElement.scrollWidth") == 360
                ground, ink = opened.evaluate(
                    "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
                )
                assert (_lightness(ground) > _lightness(ink)) == (scheme == "light")


def _use(opened: Any) -> None:
    count = opened.locator(".count")
    visible = lambda: opened.eval_on_selector_all(  # noqa: E731
        ".gallery > li:not([hidden]) h3", "all => all.map(one => one.textContent)"
    )
    assert count.inner_text() == "6 of 6 shown"
    opened.get_by_text("flipped", exact=True).last.click()
    assert count.inner_text() == "4 of 6 shown"
    opened.get_by_text("stayed but moved", exact=True).click()
    assert visible() == ["folder/4.png", "folder/1.png"]
    opened.click("#clear")
    opened.select_option("#predicted", "cat")
    assert count.inner_text() == "2 of 6 shown"
    opened.click("#clear")
    opened.keyboard.press("Escape")
    opened.locator("h1").click()
    opened.keyboard.press("/")
    opened.keyboard.type("folder/3")
    assert visible() == ["folder/3.png"]
    opened.keyboard.press("Escape")
    assert count.inner_text() == "6 of 6 shown"
    opened.locator(".gallery > li").first.focus()
    opened.keyboard.press("ArrowRight")
    assert opened.evaluate("document.activeElement.getAttribute('aria-label')") == "folder/1.png"
    opened.keyboard.press("End")
    assert opened.evaluate("document.activeElement.dataset.place") == "5"


def _lightness(color: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", color)[:3]))
