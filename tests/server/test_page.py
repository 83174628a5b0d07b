"""What a person does on the page at `GET /`, in a real browser: classes, files, errors, keyboard, phones, policy."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from onnxcam import image
from onnxcam.explain.explainer import Explainer
from onnxcam.html import interface
from onnxcam.server import create_app
from tests.server.conftest import CAT, MODELS, Serve
from tests.server.live import LiveServer
from tests.server.visitor import canvas, hand_over, same, status
from tests.support import browser as browsers
from tests.support.models import tiny_cnn

COFFEE = MODELS / "coffee.png"
HTML = {"accept": "text/html"}
REFUSED = ("status of 4",)  # what Chromium's console says of it


@pytest.mark.slow
def test_classes_layers_and_methods_are_switched(page: Any, explainer: Explainer) -> None:
    e = explainer.explain(str(CAT))
    (_, _, _), (second, name, _), (third, other, _) = e.predictions[:3]
    hand_over(page, CAT.read_bytes())
    status(page, e.label)
    page.get_by_role("button", name=re.compile(f"^{re.escape(name)}")).click()
    status(page, f"what speaks for {name}")
    same(canvas(page), explainer.explain(str(CAT), target=second).overlay())
    page.get_by_role("button", name=f"Compare with {other}").click()
    status(page, f"beside {other}")
    same(canvas(page, 0), explainer.explain(str(CAT), target=second).overlay())
    same(canvas(page, 1), explainer.explain(str(CAT), target=third).overlay())
    page.get_by_role("button", name=f"Compare with {other}").click()
    page.locator("figure:nth-child(2)").wait_for(state="detached")
    page.get_by_label("Method", exact=True).select_option("hirescam")
    page.locator('#figures[aria-busy="false"]').wait_for()
    same(canvas(page), explainer.explain(str(CAT), target=second, method="hirescam").overlay())
    layer = page.locator("#layer option").nth(30).inner_text()
    assert layer != e.layer
    page.get_by_label("Layer", exact=True).select_option(layer)
    page.locator('#figures[aria-busy="false"]').wait_for()
    same(canvas(page), explainer.explain(str(CAT), target=second, method="hirescam", layer=layer).overlay())


@pytest.mark.slow
def test_any_class_is_found_by_name_or_number(page: Any, explainer: Explainer) -> None:
    hand_over(page, CAT.read_bytes())
    status(page, "what speaks for")
    field = page.get_by_label("Another class")
    labels = explainer.labels or []
    hen = next(index for index, label in enumerate(labels) if label.split(",")[0] == "hen")
    for text, sentence in (
        ("zebu", "No class is called “zebu”."),
        ("1000", "There is no class 1000: they are numbered from 0 to 999."),
        ("cat", "Several classes match"),
    ):
        field.fill(text)
        field.press("Enter")
        page.get_by_text(sentence).wait_for()
        assert field.get_attribute("aria-invalid") == "true"
    field.fill("HEN")
    field.press("Enter")
    status(page, f"what speaks for {labels[hen]}")
    same(canvas(page), explainer.explain(str(CAT), target=hen).overlay())
    assert page.locator("#predictions li").count() == 6
    assert page.locator('#predictions [aria-pressed="true"]').first.inner_text().startswith(labels[hen])


@pytest.mark.slow
def test_several_pictures_one_after_another(page: Any, explainer: Explainer) -> None:
    page.wait_for_selector("#settings:not([hidden])")
    page.set_input_files("#file", [str(CAT), str(COFFEE)])
    first, second = explainer.explain(str(CAT)), explainer.explain(str(COFFEE))
    strip = page.locator("#strip button")
    strip.nth(1).get_by_text(second.label).wait_for()
    assert first.label in strip.nth(0).inner_text()
    strip.nth(1).click()
    status(page, f"coffee.png: what speaks for {second.label}")
    same(canvas(page), second.overlay())
    hand_over(page, CAT.read_bytes(), "again.png", event="paste")
    status(page, f"again.png: what speaks for {first.label}")
    page.get_by_role("button", name="Remove all").click()
    assert page.locator("#result").is_hidden() and strip.count() == 0


@pytest.mark.slow
def test_formats_that_browsers_do_not_read_are_shown_by_the_server(page: Any, explainer: Explainer) -> None:
    pixels = cv2.imread(str(CAT))
    tiff = cv2.imencode(".tiff", pixels)[1].tobytes()
    hand_over(page, tiff, "cat.tif", "image/tiff")
    status(page, "cat.tif: what speaks for")
    same(canvas(page), explainer.explain(tiff).overlay())


@pytest.mark.slow
def test_files_that_are_no_picture_are_refused_in_a_sentence(chromium: Any, explainer: Explainer) -> None:
    server = LiveServer(create_app({"lite0": explainer}, threads=1, max_body="300KiB", max_pixels=140_000))
    wide = np.random.default_rng(0).integers(0, 255, (300, 500), np.uint8)
    cases = [
        (b"a list of things to do", "notes.txt", "text/plain", "picture"),
        (b"", "empty.png", "image/png", "“empty.png” is empty."),
        (bytes(400 << 10), "large.png", "image/png", "“large.png” has 400 KiB, and at most 300 KiB are taken."),
        (cv2.imencode(".png", wide)[1].tobytes(), "wide.png", "image/png", "500x300 = 150,000 pixels"),
        (CAT.read_bytes()[:4000], "cut.png", "image/png", "picture"),
        (b"onnx", "model.onnx", "", "“model.onnx” is a model: this page takes pictures."),
    ]
    with browsers.visit(chromium, server.url, expected=REFUSED) as page:
        for data, name, kind, sentence in cases:
            hand_over(page, data, name, kind)
            alert = page.get_by_role("alert")
            alert.get_by_text(sentence).wait_for()
            assert page.locator("#result").is_hidden(), name
            assert "undefined" not in alert.inner_text() and "[object" not in alert.inner_text()
        small = cv2.imencode(".jpg", cv2.resize(cv2.imread(str(CAT)), (300, 200)))[1].tobytes()
        hand_over(page, small, "small.jpg", "image/jpeg")
        status(page, "small.jpg: what speaks for")
        assert page.get_by_role("alert").count() == 0
    server.stop()


@pytest.mark.slow
def test_a_server_that_is_gone_and_comes_back(chromium: Any, explainer: Explainer) -> None:
    server = LiveServer(create_app({"lite0": explainer}, threads=1))
    with browsers.visit(chromium, server.url, expected=("ERR_CONNECTION_REFUSED",)) as page:
        hand_over(page, CAT.read_bytes())
        status(page, "what speaks for")
        server.stop()
        page.get_by_label("Method", exact=True).select_option("hirescam")
        page.get_by_role("alert").get_by_text("The server does not answer").wait_for()
        assert page.locator("#result").is_hidden()  # no map of another method stands there
        server.app = create_app({"lite0": explainer}, threads=1)
        server.start()
        page.get_by_role("button", name="Try again").click()
        status(page, "what speaks for")
        same(canvas(page), explainer.explain(str(CAT), method="hirescam").overlay())
    server.stop()


@pytest.mark.slow
def test_a_full_queue_is_waited_for(chromium: Any, explainer: Explainer) -> None:
    app = create_app({"lite0": explainer}, threads=1, queue=1, timeout=60)
    server, done = LiveServer(app), threading.Event()
    with browsers.visit(chromium, server.url, expected=REFUSED) as page:
        page.wait_for_selector("#settings:not([hidden])")
        scheduler = app.state.onnxcam.scheduler

        async def never() -> Any:
            await asyncio.sleep(3600)

        started = threading.Event()
        work = [server.call(lambda: scheduler.submit(lambda _: (started.set(), done.wait(60)), size=0, receive=never))]
        assert started.wait(10)
        work.append(server.call(lambda: scheduler.submit(lambda _: None, size=0, receive=never)))
        hand_over(page, CAT.read_bytes())
        status(page, "The queue is full: others are being answered. Trying again in")
        done.set()
        status(page, "what speaks for")
        assert [future.result(10) for future in work] == [(None, True), None]
    server.stop()


@pytest.mark.slow
def test_a_token_is_asked_for(chromium: Any, explainer: Explainer) -> None:
    token = "correct-horse-battery-staple"
    server = LiveServer(create_app({"lite0": explainer}, threads=1, tokens=token))
    with browsers.visit(chromium, server.url, expected=REFUSED) as page:
        field = page.get_by_label("This server asks for a token")
        field.wait_for()
        assert page.evaluate("document.activeElement.id") == "token"
        field.fill("wrong-horse-battery-staple")
        field.press("Enter")
        page.get_by_text("The server does not accept this token.").wait_for()
        assert page.evaluate("document.activeElement.id") == "token" and not field.input_value()
        field.fill(token)
        field.press("Enter")
        hand_over(page, CAT.read_bytes())
        status(page, "what speaks for")
        assert page.get_by_role("alert").count() == 0
        assert token not in page.evaluate(
            "JSON.stringify([document.cookie, { ...localStorage }, { ...sessionStorage }])"
        )
    server.stop()


def chooser_by_key(page: Any) -> Any:
    """The file chooser that Enter opens; on a busy machine the browser has been seen to open none at the first."""
    from playwright.sync_api import TimeoutError as Late

    presses = 3
    while True:
        presses -= 1
        try:
            with page.expect_file_chooser(timeout=10_000) as chooser:
                page.keyboard.press("Enter")
            return chooser.value
        except Late:
            if not presses:
                raise


@pytest.mark.slow
def test_keyboard_alone(page: Any, explainer: Explainer) -> None:
    e = explainer.explain(str(CAT))
    page.wait_for_selector("#settings:not([hidden])")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    chooser_by_key(page).set_files(str(CAT))
    status(page, e.label)
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the result"
    page.keyboard.press("Enter")
    name = e.predictions[1][1]
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.key ?? ''") == f"class {e.predictions[1][0]}":
            break
    page.keyboard.press("Enter")
    status(page, f"what speaks for {name}")
    # the list is made anew, and the focus stays where it was
    assert page.evaluate("document.activeElement.dataset.key") == f"class {e.predictions[1][0]}"
    for _ in range(20):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.name") == "view":
            break
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.value") == "heatmap"
    second = explainer.explain(str(CAT), target=e.predictions[1][0])
    same(canvas(page), image.marked(image.palette("viridis"))[second.marks.levels(image.grayscale(second.heatmap))])


@pytest.mark.slow
def test_files_that_change_and_answers_of_a_proxy(chromium: Any, live: LiveServer, tmp_path: Path) -> None:
    with browsers.visit(chromium, live.url, expected=("status of 502", "Failed to load resource: net::")) as page:
        page.wait_for_selector("#settings:not([hidden])")
        file = tmp_path / "cat.png"
        file.write_bytes(CAT.read_bytes())
        page.set_input_files("#file", str(file))
        status(page, "what speaks for")
        file.unlink()
        page.get_by_label("Method", exact=True).select_option("hirescam")
        page.get_by_role("alert").get_by_text("“cat.png”: The file cannot be read any more").wait_for()
        page.route("**/predict_with_gradcam", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
        hand_over(page, CAT.read_bytes(), "proxy.png")
        page.get_by_role("alert").get_by_text("“proxy.png”: The server does not answer").wait_for()
        page.unroute("**/predict_with_gradcam")
        page.get_by_role("button", name="Try again").click()
        status(page, "proxy.png: what speaks for")


@pytest.mark.slow
def test_several_models_of_several_kinds(chromium: Any, explainer: Explainer) -> None:
    plain = Explainer(tiny_cnn(), preprocess="0..1")
    number = Explainer(tiny_cnn(classes=1), preprocess="0..1", kind="regression")
    server = LiveServer(create_app({"lite0": explainer, "plain": plain, "number": number}, threads=1))
    with browsers.visit(chromium, server.url) as page:
        hand_over(page, CAT.read_bytes(), "cat.png")
        status(page, "what speaks for")
        page.get_by_role("button", name=re.compile("^Compare with")).first.click()
        status(page, "beside")
        page.get_by_label("Model", exact=True).select_option("plain")
        e = plain.explain(str(CAT))
        status(page, f"cat.png: what speaks for {e.label}, {100 * e.probability:.1f} %")
        same(canvas(page), e.overlay())  # the class and the comparison of the other model are forgotten
        assert page.locator("#figures canvas").count() == 1
        for warning in e.warnings:
            page.locator("#warnings li").get_by_text(warning, exact=True).wait_for()
        page.get_by_label("Another class").fill("tabby")
        page.get_by_label("Another class").press("Enter")
        page.get_by_text("This model has no class names: type a number from 0 to").wait_for()
        page.get_by_label("Model", exact=True).select_option("number")
        value = number.explain(str(CAT))
        status(page, f"cat.png: what speaks for {value.label}, {value.probability:.4g}"[:40])
        assert "%" not in page.locator("#predictions").inner_text()
        same(canvas(page), value.overlay())
    server.stop()


NAMELESS = """() => [...document.querySelectorAll("button, input, select, canvas, a, ul, ol, section")]
  .filter((one) => one.checkVisibility() && one.getAttribute("aria-hidden") !== "true")
  .filter((one) => !one.labels?.length && !one.ariaLabel && !one.textContent.trim())
  .map((one) => one.outerHTML)"""
# the formula of WCAG 2.2 for everything that has a text of its own
FAINT = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const color = channels(getComputedStyle(one).backgroundColor);
      if (color[3] !== 0) return color;
    }
    return [255, 255, 255];
  };
  const ratio = (one) => {
    const [low, high] = [light(channels(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  return [...document.querySelectorAll("body *")]
    .filter((one) => one.checkVisibility() && !one.closest("[disabled], option, datalist, .skip"))
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .filter((one) => ratio(one) < 4.5).map((one) => [ratio(one), one.outerHTML.slice(0, 90)]);
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phones_and_colours(chromium: Any, explainer: Explainer, scheme: str) -> None:
    names = [f"a_name_without_any_space_in_it_that_is_wider_than_a_phone_{index}, and more" for index in range(5)]
    long_names = Explainer(tiny_cnn(), labels=names, preprocess="0..1")
    server = LiveServer(create_app({"lite0": explainer, "a_model_called_" + "x" * 60: long_names}, threads=2))
    with browsers.visit(chromium, server.url, 360, 740, scheme) as page:
        wide = "document.documentElement.scrollWidth"
        page.wait_for_selector("#settings:not([hidden])")
        assert page.evaluate(wide) == 360
        page.set_input_files("#file", [str(CAT), str(COFFEE)] * 4)
        status(page, "what speaks for")
        page.get_by_role("button", name=re.compile("^Compare with")).first.click()
        status(page, "beside")
        page.locator("#strip button").nth(7).get_by_text("%").wait_for()
        assert page.evaluate(wide) == 360
        assert page.evaluate(FAINT) == []
        assert page.evaluate(NAMELESS) == []
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        dark = all(int(part) < 64 for part in re.findall(r"\d+", ground)[:3])
        assert dark == (scheme == "dark")
        # side by side on a phone too
        boxes = [one.bounding_box() for one in page.locator("#figures canvas").all()]
        assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
        page.get_by_label("Model", exact=True).select_option(index=1)
        status(page, "what speaks for a_name")
        page.get_by_role("button", name=re.compile("^Compare with")).first.click()
        status(page, "beside a_name")
        assert page.evaluate(wide) == 360
    server.stop()


@pytest.mark.slow
def test_under_a_path_of_another_app(chromium: Any, explainer: Explainer) -> None:
    server = LiveServer(Starlette(routes=[Mount("/explain", create_app({"lite0": explainer}, threads=1))]))
    with browsers.visit(chromium, f"{server.url}explain/") as page:
        hand_over(page, CAT.read_bytes())
        status(page, "what speaks for")
    server.stop()


def test_the_policy_allows_nothing_but_the_server(serve: Serve) -> None:
    client = serve()
    response = client.get("/", headers=HTML)
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy.pop("frame-ancestors") == "'none'" and policy["default-src"] == "'none'"
    assert policy == interface.POLICY
    assert (
        "unsafe" not in str(policy)
        and "http:" not in str(policy)
        and "https:" not in str(policy)
        and "*" not in str(policy)
    )
    # the same in the file itself, for copies that no server sends
    assert f'content="{interface.policy()}"' in response.text
    assert not re.search(r"<script>|<style|\son\w+=|style=", response.text)
    assert response.headers["x-content-type-options"] == "nosniff"
    again = client.get("/", headers=HTML | {"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304 and not again.content
    assert client.get("/nothing.js").status_code == 404


def test_every_file_that_the_page_names_is_sent(serve: Serve) -> None:
    client = serve()
    names = {"/"}
    waiting = ["/"]
    while waiting:
        response = client.get(waiting.pop(), headers=HTML)
        assert response.status_code == 200
        linked = re.findall(r'(?:src|href)="([\w.]+)"|from "\./([\w.]+)"', response.text)
        new = {f"/{a or b}" for a, b in linked} - names
        names |= new
        waiting += sorted(new)
    assert {name.lstrip("/") or interface.INDEX for name in names} == {*interface.FILES, "backend.js"}


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("TEXT/HTML; q=0.5", True),
        ("text/html;q=0, application/xhtml+xml;q=0.1", True),
        ("text/html;q=0, application/json", False),
        ("text/html ; level=1 ; Q=0.000", False),
        ("*/*", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_who_does_not_ask_for_a_page_is_told_that_the_server_lives(serve: Serve, accept: str, html: bool) -> None:
    """As `kserve.InferenceRESTClient.is_server_live` of the V1 protocol reads it."""
    response = serve(tokens=["a-token-of-sixteen-characters"]).get("/", headers={"accept": accept})
    assert response.status_code == 200 and response.headers["vary"] == "Accept"
    if html:
        assert response.headers["content-type"].startswith("text/html") and "<html" in response.text
    else:
        assert response.json() == {"status": "alive"}
