"""The page: what it says, that it is one file, and that nothing in a record can break out of it."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from onnxcam import image
from onnxcam.monitor import baseline as baselines
from onnxcam.monitor import drift, page
from onnxcam.monitor.report import Report, weighted_quantiles
from onnxcam.monitor.table import Rows
from tests.monitor import synthetic

VOID = {"meta", "br", "img", "rect", "path", "circle", "polygon", "polyline"}


class Checker(HTMLParser):
    """Every element is closed where it should be; collects what the page refers to and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def normal() -> baselines.Baseline:
    return baselines.parse(baselines.build([synthetic.record(n) for n in range(700)])[0])


def test_the_numbers_are_those_of_the_records(normal: baselines.Baseline) -> None:
    held = [synthetic.record(n) for n in range(1000, 2200)]
    report = Report.of(held, normal, top=5)
    low = [r for r in held if r["prediction"]["confidence"] < 0.6]
    assert (report.count, report.low_count) == (1200, len(low))
    assert report.low_rate == pytest.approx(len(low) / (len(low) + 10 * (1200 - len(low))))
    assert [r["id"] for r in report.uncertain] == [
        r["id"] for r in sorted(held, key=lambda r: r["prediction"]["confidence"])[:5]
    ]
    rows = Rows.of(held)
    for seen in report.classes:
        own = rows.target == seen.index
        assert seen.count == own.sum()
        np.testing.assert_allclose(seen.map, np.average(rows.maps[own], axis=0, weights=rows.weights[own]), rtol=1e-5)
        np.testing.assert_allclose(seen.normal, normal.mean_maps[seen.index])
    points = report.points()
    assert points.seconds == 3600 and points.begin[0].isoformat() == "2026-11-02T16:00:00+00:00"
    assert points.low.sum() + points.confident.sum() == 1200
    hour = [r for r in held if r["ts"].startswith("2026-11-02T17")]
    values = np.array([r["prediction"]["confidence"] for r in hour])
    weights = np.where(values < 0.6, 1, 10)
    repeated = np.sort(np.repeat(values, weights))
    assert points.confidence[1, 1] == repeated[int(np.ceil(len(repeated) / 2)) - 1]


def test_weighted_quantiles() -> None:
    found = weighted_quantiles(np.array([3.0, 1.0, 2.0]), np.array([1.0, 8.0, 1.0]), (0.1, 0.8, 0.85, 0.9, 1.0))
    assert found.tolist() == [1, 1, 2, 2, 3]


def test_a_picture_is_shown_once() -> None:
    held = [synthetic.record(n, confidence=0.1 + n / 100, picture__sha256="cd" * 32) for n in range(5)]
    held += [synthetic.record(9, confidence=0.5, picture__sha256="ef" * 32)]
    assert [int(r["id"]) for r in Report.of(held, top=3).uncertain] == [0, 9]


def test_the_page_is_one_file_that_says_all(normal: baselines.Baseline, tmp_path: Path) -> None:
    overlay = image.encode_png(np.full((8, 8, 3), 77, np.uint8))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.png").write_bytes(overlay)
    held = [synthetic.record(n, attention__border=0.4) for n in range(1000, 1600)]
    held[3]["prediction"] |= {"confidence": 0.001}
    held[3]["files"] = [{"kind": "overlay", "name": "files/a.png", "sha256": "", "bytes": len(overlay)}]
    assessment = drift.assess(held, drift.Detector(normal, replicates=400), 600)
    counts = {"processes": 2, "seen": 123456, "confident": 100000, "explained": 600, "dropped": {"rate": 22856}}
    text = page.render(Report.of(held, normal), tmp_path, assessment, counts, notes=["a note"])
    checked = Checker(text)
    assert checked.tags.isdisjoint({"script", "link", "iframe", "object", "form"})
    assert checked.links == ["data:image/png;base64," + base64.b64encode(overlay).decode()]
    assert "url(#hatch)" in text and len(re.findall(r"url\(", text)) == 1
    for said in (
        "Drift", "energy of the map at the border", "123,456", "22,856", "the token bucket was empty",
        "confidence < 0.6", "baseline sample", "600 records", "tabby", "all classes", "median", "a note",
    ):  # fmt: skip
        assert said in checked.text, said


def test_nothing_in_a_record_breaks_out(tmp_path: Path) -> None:
    evil = "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"\x89PNG\r\n\x1a\nnot for the page")
    folder = tmp_path / "cam"
    folder.mkdir()
    (folder / "text.png").write_bytes(b"<svg onload=alert(1)>")
    names = ("../secret.png", str(secret), "text.png", "nowhere.png", "a\0b")
    held = [
        synthetic.record(
            n,
            request=evil,
            prediction__target={"index": 0, "label": evil},
            prediction__top=[{"index": 0, "label": evil, "probability": 0.2}],
            trigger__when=evil,
            model__name=evil,
            files=[{"kind": "heatmap", "name": name, "sha256": "", "bytes": 1}],
        )
        for n, name in enumerate(names)
    ]
    text = page.render(
        Report.of(held), folder, counters={"processes": 1, "seen": 1, "dropped": {evil: 3}}, notes=[evil]
    )
    checked = Checker(text)
    assert checked.tags.isdisjoint({"script", "img"})
    assert checked.links == []


def test_records_without_half_of_it(tmp_path: Path) -> None:
    zero = synthetic.record(1)
    zero["attention"] = dict.fromkeys(zero["attention"]) | {"zero": True}
    zero["map"]["values"] = [0] * 49
    unsure = synthetic.record(2, confidence=0.2)
    unsure["prediction"]["confidence"] = None
    Checker(page.render(Report.of([zero, unsure]), tmp_path))
