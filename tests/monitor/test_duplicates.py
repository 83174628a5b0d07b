"""Promise 23: no two different pictures are dropped as duplicates; the same picture is, in any form."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from onnxcam.monitor import hook
from onnxcam.monitor.hook import Monitor
from onnxcam.monitor.predictions import Row
from onnxcam.monitor.worker import DuplicateFilter
from tests.monitor.monitoring import ALWAYS, MODEL, Collector, FakeClock, Stub, logits, pictures

SIZES = (32, 48, 64, 128, 256, 512, 1024, 2048, 4096)


def row(**fields: Any) -> Row:
    defaults: dict[str, Any] = {"observed": 0.0, "queued": 0.0, "probabilities": np.ones(2), "reason": "condition"}
    return Row(**defaults, quantities={"label": 1}, sample=1.0, size=0, **fields)


@pytest.mark.parametrize("pairs", [200, pytest.param(10_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("field", ["tensor", "picture", "bytes"])
def test_pairs_that_differ_in_one_value(field: str, pairs: int) -> None:
    """Anywhere in it; the larger sizes less often, because they take longer."""
    generator, duplicates = np.random.default_rng(0), DuplicateFilter(60.0, FakeClock())
    weights = 1.0 / np.square(SIZES)
    sizes = generator.choice(SIZES, pairs, p=weights / weights.sum())
    sizes[: len(SIZES)] = SIZES  # each at least once
    different = same = 0
    for size in sizes.tolist():
        dtype = np.float32 if field == "tensor" and size <= 512 else np.uint8
        shape = (1, 1, size, size) if field == "tensor" else (size, size)
        first = np.broadcast_to(generator.integers(0, 255, shape[-1]).astype(dtype), shape).copy()
        second = first.copy()
        second.reshape(-1)[generator.integers(second.size)] += 1
        arguments = [value.tobytes() if field == "bytes" else value for value in (first, second, first.copy())]
        keys = [duplicates.key(row(**{"picture" if field == "bytes" else field: value})) for value in arguments]
        different += keys[0] != keys[1]
        same += keys[0] == keys[2]
    assert (different, same) == (pairs, pairs)


def test_a_key_has_128_bits_and_tells_shape_type_and_class_apart() -> None:
    duplicates = DuplicateFilter(60.0, FakeClock())
    zeros = np.zeros((1, 3, 4, 8), np.float32)
    rows = [
        row(tensor=zeros),
        row(tensor=zeros.reshape(1, 3, 8, 4)),
        row(tensor=zeros.astype(np.float16)),
        row(picture=np.zeros((4, 8), np.uint8)),
        row(picture=bytes(32)),
        row(features={"a": zeros}),
        row(features={"b": zeros}),
        row(features={"a": zeros, "b": zeros}),
        row(features={"a": np.full_like(zeros, -0.0)}),
    ]
    keys = [duplicates.key(one) for one in rows]
    assert len(set(keys)) == len(rows) and {len(key or b"") for key in keys} == {16}
    assert DuplicateFilter(0.0, FakeClock()).key(rows[0]) is None


def test_a_file_is_told_by_what_it_holds(tmp_path: Path) -> None:
    duplicates, path = DuplicateFilter(60.0, FakeClock()), tmp_path / "frame.png"
    path.write_bytes(b"one")
    first = duplicates.key(row(picture=path))
    path.write_bytes(b"two")
    assert duplicates.key(row(picture=path)) != first
    (tmp_path / "copy.png").write_bytes(b"one")
    assert duplicates.key(row(picture=str(tmp_path / "copy.png"))) == first
    assert duplicates.key(row(picture=tmp_path / "missing")) is None
    assert duplicates.key(row(picture=tmp_path)) is None
    assert duplicates.key(row(picture="a\x00b")) is None
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert duplicates.key(row(picture=tmp_path / "pipe")) is None


def test_pictures_with_a_dark_border_are_all_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """At powers of two a stride over the bytes stays in one column: three different pictures were one."""
    monkeypatch.setattr(hook, "RowExplainer", Stub)
    shots = np.zeros((3, 2048, 2048), np.uint8)
    shots[:, 900:1100, 900:1100] = np.array([10, 20, 30])[:, None, None]
    options: dict[str, Any] = {"rate": None, "daily_budget": None, "when": ALWAYS}
    with Monitor(MODEL, sink=Collector(), **options) as monitor:
        scores = np.repeat(logits(1), 3, axis=0)
        monitor.observe(scores, pictures=list(shots))
        monitor.observe(scores, pictures=list(shots))
        assert monitor.flush(20)
        stats = monitor.stats()
        assert (stats["explained"], stats["dropped"]["duplicate"]) == (3, 3)


def test_a_camera_that_writes_one_name_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "RowExplainer", Stub)
    path = tmp_path / "frame.png"
    with Monitor(MODEL, sink=Collector(), when=ALWAYS, rate=None, daily_budget=None) as monitor:
        for level in (10, 20, 20, 30):
            cv2.imwrite(str(path), np.full((8, 8, 3), level, np.uint8))
            monitor.observe(logits(1), pictures=[path])
            assert monitor.flush(20)
        stats = monitor.stats()
        assert (stats["explained"], stats["dropped"]["duplicate"]) == (3, 1)


def test_it_runs_in_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    threads: set[int] = set()
    real = DuplicateFilter.key
    monkeypatch.setattr(DuplicateFilter, "key", lambda self, one: threads.add(threading.get_ident()) or real(self, one))
    monkeypatch.setattr(hook, "RowExplainer", Stub)
    with Monitor(MODEL, sink=Collector(), when=ALWAYS, rate=None, daily_budget=None) as monitor:
        monitor.observe(logits(2), tensor=pictures(2))
        assert monitor.flush(20)
    assert threads and threading.get_ident() not in threads
