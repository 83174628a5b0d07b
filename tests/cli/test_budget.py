"""Large pictures: all threads together hold no more pixels than there is a budget for."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcam
from onnxcam import image
from onnxcam.cli import batch
from onnxcam.cli.pictures import Item
from onnxcam.explainer import Explainer
from tests import models


def test_many_threads_share_one_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_PIXELS", 5000)
    monkeypatch.setattr(batch, "_CHUNK_PIXELS", 2000)
    monkeypatch.setattr(batch, "workers", lambda: 4)
    sides = [30, 40, 44, 20, 90, 30, 44, 44, 10, 44, 44, 120, 40, 44, 20, 44]  # two are larger than the budget
    items = []
    for number, side in enumerate(sides):
        path = tmp_path / f"{number:02}.png"
        image.write_png(path, np.full((side, side, 3), number, np.uint8))
        items.append(Item(path, path.name, Path(path.stem)))
    (tmp_path / "05.png").write_bytes(b"not a picture")
    held: dict[int, int] = {}
    most = []
    lock = threading.Lock()
    load, write = image.load, batch._write

    def loading(source: Any, **given: Any) -> image.Picture:
        picture = load(source, **given)
        with lock:
            held[int(picture.pixels[0, 0, 0])] = picture.pixels.shape[0] * picture.pixels.shape[1]
            most.append(sum(held.values()))
        time.sleep(0.01)
        return picture

    def writing(item: Item, result: Any, *given: Any) -> Any:
        done = write(item, result, *given)
        with lock:
            held.pop(int(item.source.stem), None)
        return done

    monkeypatch.setattr(image, "load", loading)
    monkeypatch.setattr(batch, "_write", writing)
    explainer = Explainer(onnxcam.augment(models.tiny_cnn()), preprocess="0..1", providers=["CPUExecutionProvider"])
    outcomes = list(batch.explain_all(explainer, items, batch.Request(), tmp_path / "out"))
    assert [outcome.item.name for outcome in outcomes] == [item.name for item in items]
    assert [outcome.item.name for outcome in outcomes if outcome.error] == ["05.png"]
    largest = max(side * side for side in sides)
    assert max(most) == largest  # alone: nothing else is held beside it
    assert max(total for total in most if total < largest and total != 90 * 90) <= 5000


def test_what_is_no_picture_takes_no_room(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert image.count_pixels(tmp_path / "no.png") == 0
    assert image.count_pixels(tmp_path / "missing.png") == 0
    assert image.count_pixels(tmp_path) == 0
    assert image.count_pixels(image.encode_png(np.zeros((4, 6, 3), np.uint8))) == 24
