"""Pictures in memory: all threads share one bound, and no failure keeps its room."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxcam import image
from onnxcam.explain import folder as batch
from onnxcam.explain.pictures import Item
from onnxcam.explain.question import Question, Terms
from onnxcam.explain.saving import Drawing
from onnxcam.targets.readout import LOGITS, Readout


class Loader:
    """Stands for reading and writing, and keeps count of the pixels between the two."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.pixels = self.peak = 0
        self.lock = threading.Lock()

    def read(self, pending: batch._Pending) -> Exception:
        with self.lock:
            self.pixels += self.sizes[pending.item.name]
            self.peak = max(self.peak, self.pixels)
        time.sleep(0.001)
        return ValueError(pending.item.name)

    def write(self, item: Item, result: Any) -> batch.Outcome:
        with self.lock:
            self.pixels -= self.sizes[item.name]
        if item.name.endswith("7"):
            raise KeyboardInterrupt
        return batch.Outcome(item, error=result)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(batch._Pending, "pixels", property(lambda pending: self.sizes[pending.item.name]))
        monkeypatch.setattr(batch._Pending, "load", lambda pending: self.read(pending))
        monkeypatch.setattr(batch._Work, "write", lambda work, item, result: self.write(item, result))


def question() -> Question:
    return Question.of(Terms(Readout("scores", LOGITS, 2), None, ["layer"]))


def work(budget: batch.PixelBudget, folder: Path) -> batch._Work:
    explainer = SimpleNamespace(answer=lambda question, pictures, progress: iter(()), preparation=None)
    return batch._Work(explainer, question(), folder, Drawing(), lambda done, total: None, budget)  # type: ignore[arg-type]


@pytest.mark.parametrize("largest", [30, 100, 250])
def test_threads_share_the_pixels(largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(largest)
    sizes = {f"{number}.": int(size) for number, size in enumerate(rng.integers(0, largest + 1, 60))}
    loader = Loader(sizes)
    monkeypatch.setattr(batch, "_PIXELS", 100)
    monkeypatch.setattr(batch, "workers", lambda: 4)
    loader.install(monkeypatch)
    items = [Item(tmp_path, name) for name in sizes]
    explainer = SimpleNamespace(answer=lambda question, pictures, progress: iter(()), preparation=None)
    done = list(batch.explain_all(explainer, items, question(), tmp_path))  # type: ignore[arg-type]
    assert [outcome.item.name for outcome in done] == list(sizes)
    assert 50 < loader.peak <= max(100, max(sizes.values())) and loader.pixels == 0


def test_a_failure_releases_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = work(batch.PixelBudget(10), tmp_path)
    Loader({"7": 10, "8": 10}).install(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        whole.finish([Item(tmp_path, "7")])
    assert len(whole.finish([Item(tmp_path, "8")])) == 1


def test_the_budget() -> None:
    budget = batch.PixelBudget(10)
    assert budget.reserve(25, wait=True), "a picture may exceed it alone"
    assert not budget.reserve(1, wait=False)
    threading.Timer(0.05, budget.release, [25]).start()
    assert budget.reserve(4, wait=True)
    assert budget.reserve(6, wait=False) and not budget.reserve(1, wait=False)


def test_pixels_are_known_before_decoding(tmp_path: Path) -> None:
    data = image.encode_png(np.zeros((6, 7, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "b.png").write_bytes(b"no picture")
    sources = (data, *(tmp_path / name for name in ("a.png", "b.png", "c")))
    sizes = [batch._Pending(Item(source, "x")).pixels for source in sources]
    assert sizes == [42, 42, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "expected"), [(None, "1"), ("3", "3")])
def test_explain_has_one_thread_for_matrices(arguments: str | None, expected: str) -> None:
    """Those of OpenBLAS would spin on the core that opens the model; who sets their number has it."""
    code = (
        "import os, sys\nfrom onnxcam.cli import main\nassert 'numpy' not in sys.modules, 'too late: the number is "
        "read as numpy is loaded'\nmain(['explain', '--help'], "
        "standalone_mode=False)\nprint(os.environ['OPENBLAS_NUM_THREADS'])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_NUM_THREADS"}
    environment |= {} if arguments is None else {"OPENBLAS_NUM_THREADS": arguments}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == expected
