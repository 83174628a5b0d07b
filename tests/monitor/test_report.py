"""The page: what it says, that it is one file, and that nothing in a record can break out of it."""

from __future__ import annotations

import base64
import os
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from onnxcam import image
from onnxcam.monitor import baseline as baselines
from onnxcam.monitor import drift, page
from onnxcam.monitor.normal import Baseline
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
def normal() -> Baseline:
    return baselines.parse(baselines.build([synthetic.record(n) for n in range(700)])[0])


def test_the_numbers_are_those_of_the_records(normal: Baseline) -> None:
    records = [synthetic.record(n) for n in range(1000, 2200)]
    report = Report.of(records, normal, top=5)
    low = [r for r in records if r["prediction"]["confidence"] < 0.6]
    assert (report.count, report.low_count) == (1200, len(low))
    assert report.low_rate == pytest.approx(len(low) / (len(low) + 10 * (1200 - len(low))))
    assert [r["id"] for r in report.uncertain] == [
        r["id"] for r in sorted(records, key=lambda r: r["prediction"]["confidence"])[:5]
    ]
    rows = Rows.of(records)
    for entry in report.classes:
        of_class = rows.target == entry.index
        assert entry.count == of_class.sum()
        np.testing.assert_allclose(
            entry.map, np.average(rows.maps[of_class], axis=0, weights=rows.weights[of_class]), rtol=1e-5
        )
        np.testing.assert_allclose(entry.normal, normal.mean_maps[entry.index])
    points = report.points()
    assert points.seconds == 3600 and points.begin[0].isoformat() == "2026-11-02T16:00:00+00:00"
    assert points.low.sum() + points.confident.sum() == 1200
    hour = [r for r in records if r["ts"].startswith("2026-11-02T17")]
    values = np.array([r["prediction"]["confidence"] for r in hour])
    weights = np.where(values < 0.6, 1, 10)
    repeated = np.sort(np.repeat(values, weights))
    assert points.confidence[1, 1] == repeated[int(np.ceil(len(repeated) / 2)) - 1]


def test_weighted_quantiles() -> None:
    quantiles = weighted_quantiles(np.array([3.0, 1.0, 2.0]), np.array([1.0, 8.0, 1.0]), (0.1, 0.8, 0.85, 0.9, 1.0))
    assert quantiles.tolist() == [1, 1, 2, 2, 3]


def test_a_picture_is_shown_once() -> None:
    records = [synthetic.record(n, confidence=0.1 + n / 100, picture__sha256="cd" * 32) for n in range(5)]
    records += [synthetic.record(9, confidence=0.5, picture__sha256="ef" * 32)]
    assert [int(r["id"]) for r in Report.of(records, top=3).uncertain] == [0, 9]


def test_the_page_is_one_file_that_says_all(normal: Baseline, tmp_path: Path) -> None:
    overlay = image.encode_png(np.full((8, 8, 3), 77, np.uint8))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.png").write_bytes(overlay)
    records = [synthetic.record(n, attention__border=0.4) for n in range(1000, 1600)]
    records[3]["prediction"] |= {"confidence": 0.001}
    records[3]["files"] = [{"kind": "overlay", "name": "files/a.png", "sha256": "", "bytes": len(overlay)}]
    assessment = drift.assess(records, drift.Detector(normal, replicates=400), 600)
    counts = {"processes": 2, "seen": 123456, "confident": 100000, "explained": 600, "dropped": {"rate": 22856}}
    text = page.render(Report.of(records, normal), tmp_path, assessment, counts, notes=["a note"])
    checked = Checker(text)
    assert checked.tags.isdisjoint({"script", "link", "iframe", "object", "form"})
    assert checked.links == ["data:image/png;base64," + base64.b64encode(overlay).decode()]
    assert "url(#hatch)" in text and len(re.findall(r"url\(", text)) == 1
    for words in (
        "Drift", "energy of the map at the border", "123,456", "22,856", "the token bucket was empty",
        "confidence < 0.6", "baseline sample", "600 records", "tabby", "all classes", "median", "a note",
    ):  # fmt: skip
        assert words in checked.text, words


def test_nothing_in_a_record_breaks_out(tmp_path: Path) -> None:
    evil = "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"\x89PNG\r\n\x1a\nnot for the page")
    folder = tmp_path / "cam"
    folder.mkdir()
    (folder / "text.png").write_bytes(b"<svg onload=alert(1)>")
    names = ("../secret.png", str(secret), "text.png", "nowhere.png", "a\0b")
    records = [
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
        Report.of(records), folder, counters={"processes": 1, "seen": 1, "dropped": {evil: 3}}, notes=[evil]
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


def test_now_is_without_the_baselines_own_records(normal: Baseline, tmp_path: Path) -> None:
    baseline_records = [synthetic.record(n) for n in range(700)]
    later = [synthetic.record(n) for n in range(1000, 1200)]
    other = [synthetic.record(n, prediction__layer="layer3") for n in range(2000, 2100)]
    report, alone = Report.of([*baseline_records, *later, *other], normal), Report.of(later, normal)
    assert report.count == 1000, "the charts show all of them"
    assert [summary.count for summary in report.classes] == [summary.count for summary in alone.classes]
    for summary, expected in zip(report.classes, alone.classes, strict=True):
        np.testing.assert_allclose(summary.map, expected.map)
    assert report.overall is not None and alone.overall is not None
    np.testing.assert_allclose(report.overall.map, alone.overall.map)
    assert report.overall.moved != Report.of([*baseline_records, *later]).overall.moved  # type: ignore[union-attr]
    assessment = drift.assess(later, drift.Detector(normal, replicates=400))
    assert "without the records of the baseline's own time" in page.render(report, tmp_path, assessment)
    text = Checker(page.render(Report.of(baseline_records, normal), tmp_path, assessment)).text
    assert "No record to compare with the baseline." in text


@pytest.mark.slow
def test_rare_classes_fold_into_one_table(tmp_path: Path) -> None:
    records, n = [], 0
    for index in range(60):
        for _ in range(45 if index < 3 else 29 if index < 10 else 2):
            n += 1
            records.append(
                synthetic.record(
                    n, index=0, prediction__target={"index": index, "label": f"class <{index}>"}, confidence=0.5
                )
            )
    text = page.render(Report.of(records), tmp_path)
    checked = Checker(text)
    assert text.count('<div class="card"><div class="maps">') == 4, "three classes and all together"
    assert "57 classes of fewer than 30 records each" in checked.text
    (table,) = re.findall(r"<details>.*?</details>", text)
    assert table.count("<tr><td>class &lt;") == 57
    assert '<tr><td>class &lt;3&gt;</td><td class="number">29</td><td class="number">29</td>' in table
    assert len(text) < 120_000
    many = [synthetic.record(n, prediction__target={"index": n, "label": str(n)}, confidence=0.5) for n in range(700)]
    assert "and 200 more" in Checker(page.render(Report.of(many), tmp_path)).text


@pytest.mark.slow
def test_pictures_are_no_larger_than_they_are_shown(tmp_path: Path) -> None:
    """Twelve photographs of 1,200 x 900 with their overlays: 60 MB of files, half a megabyte of page."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    photograph = coarse.repeat(100, 0).repeat(100, 1) ^ rng.integers(0, 8, (900, 1200, 3), dtype=np.uint8)
    encoded = image.encode_png(photograph, compress=False)
    (tmp_path / "files").mkdir()
    records = []
    for n in range(12):
        files = []
        for kind in ("input", "overlay"):
            name = f"files/{n}-{kind}.png"
            (tmp_path / name).write_bytes(encoded)
            files.append({"kind": kind, "name": name, "sha256": "0" * 64, "bytes": len(encoded)})
        records.append(synthetic.record(n, confidence=0.3, files=files))
    text = page.render(Report.of(records), tmp_path)
    links = Checker(text).links
    assert len(links) == 24 and len(text) < 700_000 < 12 * len(encoded)
    for link in links:
        assert link.startswith("data:image/jpeg;base64,")
        pixels = image.load(base64.b64decode(link.partition(",")[2])).pixels
        assert pixels.shape == (180, 240, 3), "twice the 119 pixels of a card, the other side in proportion"
    means = photograph.reshape(180, 5, 240, 5, 3).mean((1, 3))
    assert np.abs(means - pixels).mean() < 6


def test_pictures_that_cannot_be_shown(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    whole = image.encode_png(np.full((600, 600, 3), 77, np.uint8))
    (folder / "cut.png").write_bytes(whole[:200])
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to("/dev/zero")
    bomb = bytearray(whole)
    bomb[16:24] = struct.pack(">II", 100_000, 100_000)
    (folder / "bomb.png").write_bytes(bomb)
    with (folder / "huge.png").open("wb") as file:
        file.write(whole)
        file.truncate(1 << 40)
    records = [
        synthetic.record(
            n, confidence=0.3, files=[{"kind": "heatmap", "name": f"files/{name}.png", "sha256": "", "bytes": 1}]
        )
        for n, name in enumerate(("cut", "folder", "pipe", "link", "bomb", "huge"))
    ]
    checked = Checker(page.render(Report.of(records), tmp_path))
    assert checked.links == [], "the small maps of the records take their place"


@pytest.mark.parametrize("times", [("0001-01-01", "9999-12-31"), ("0001-01-01",), ("9999-12-31",), ("1970-01-01",)])
def test_times_at_the_ends_of_the_calendar(times: tuple[str, ...], tmp_path: Path) -> None:
    records = [
        synthetic.record(n, ts=f"{day}T{clock}Z")
        for n, (day, clock) in enumerate((d, c) for d in times for c in ("00:00:00.000000", "23:59:59.999999"))
    ]
    report = Report.of(records)
    points = report.points()
    assert points.low.sum() + points.confident.sum() == len(records)
    Checker(page.render(report, tmp_path))
