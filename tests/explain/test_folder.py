"""Pictures in memory: all threads share one bound, and no failure keeps its room."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcam import image
from onnxcam.explain import folder as batch
from onnxcam.explain.pictures import Item


class Loader:
    """Stands for reading and writing, and keeps count of the pixels between the two."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.held = self.peak = 0
        self.lock = threading.Lock()

    def read(self, item: Item) -> tuple[Item, Exception]:
        with self.lock:
            self.held += self.sizes[item.name]
            self.peak = max(self.peak, self.held)
        time.sleep(0.001)
        return item, ValueError(item.name)

    def write(self, item: Item, result: Any, *rest: Any) -> batch.Outcome:
        with self.lock:
            self.held -= self.sizes[item.name]
        if item.name.endswith("7"):
            raise KeyboardInterrupt
        return batch.Outcome(item, error=result)


@pytest.mark.parametrize("largest", [30, 100, 250])
def test_threads_share_the_pixels(largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(largest)
    sizes = {f"{number}.": int(size) for number, size in enumerate(rng.integers(0, largest + 1, 60))}
    loader = Loader(sizes)
    monkeypatch.setattr(batch, "_PIXELS", 100)
    monkeypatch.setattr(batch, "workers", lambda: 4)
    monkeypatch.setattr(batch, "_pixels", lambda item: sizes[item.name])
    monkeypatch.setattr(batch, "_read", loader.read)
    monkeypatch.setattr(batch, "_write", loader.write)
    items = [Item(tmp_path, name) for name in sizes]
    done = list(batch.explain_all(None, items, batch.Request(), tmp_path))  # type: ignore[arg-type]
    assert [outcome.item.name for outcome in done] == list(sizes)
    assert 50 < loader.peak <= max(100, max(sizes.values())) and loader.held == 0


def test_a_failure_gives_its_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = batch.Room(10)
    loader = Loader({"7": 10, "8": 10})
    monkeypatch.setattr(batch, "_pixels", lambda item: loader.sizes[item.name])
    monkeypatch.setattr(batch, "_read", loader.read)
    monkeypatch.setattr(batch, "_write", loader.write)
    with pytest.raises(KeyboardInterrupt):
        batch._finish(None, [Item(tmp_path, "7")], batch.Request(), tmp_path, room)  # type: ignore[arg-type]
    assert len(batch._finish(None, [Item(tmp_path, "8")], batch.Request(), tmp_path, room)) == 1  # type: ignore[arg-type]


def test_room() -> None:
    room = batch.Room(10)
    assert room.enter(25, wait=True), "where nothing is held, any picture may"
    assert not room.enter(1, wait=False)
    threading.Timer(0.05, room.leave, [25]).start()
    assert room.enter(4, wait=True)
    assert room.enter(6, wait=False) and not room.enter(1, wait=False)


def test_pixels_are_known_before_decoding(tmp_path: Path) -> None:
    data = image.encode_png(np.zeros((6, 7, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "b.png").write_bytes(b"no picture")
    found = [
        batch._pixels(Item(source, "x")) for source in (data, *(tmp_path / name for name in ("a.png", "b.png", "c")))
    ]
    assert found == [42, 42, 0, 0]


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("3", "3")])
def test_explain_has_one_thread_for_matrices(given: str | None, expected: str) -> None:
    """Those of OpenBLAS would spin on the core that opens the model; who sets their number has it."""
    code = (
        "import os, sys\n"
        "from onnxcam.cli import main\n"
        "assert 'numpy' not in sys.modules, 'too late: the number is read as numpy is loaded'\n"
        "main(['explain', '--help'], standalone_mode=False)\n"
        "print(os.environ['OPENBLAS_NUM_THREADS'])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_NUM_THREADS"}
    environment |= {} if given is None else {"OPENBLAS_NUM_THREADS": given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == expected
