"""What the programs of all engines share: pictures in, tables out, and a callable whose worker is killed once."""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from onnxcam.fleet import Explain

FOLDER = Path(os.environ["ONNXCAM_TEST_FOLDER"])
MODEL = str(FOLDER / "model.cam.onnx")
PICTURES: list[bytes] = pickle.loads((FOLDER / "pictures.pickle").read_bytes())
SETTINGS: dict[str, Any] = json.loads((FOLDER / "settings.json").read_text("utf-8"))
BATCH = 37


def write(name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write a table in the order of the pictures."""
    (FOLDER / f"{name}.pickle").write_bytes(pickle.dumps(sorted(rows, key=lambda row: row["id"])))


def batches() -> Iterator[dict[str, list[Any]]]:
    """The pictures in batches."""
    for start in range(0, len(PICTURES), BATCH):
        part = PICTURES[start : start + BATCH]
        yield {"bytes": part, "id": list(range(start, start + len(part)))}


calls = 0  # of `Killed` in this process


class Killed(Explain):
    """Kills its process once: in the first that is called for the third time, after half of the batch."""

    def explain(self, pictures: Iterable[Any]) -> Iterator[Any]:
        """As of `Explain`."""
        from tests.fleet.engines import tables  # one count a process, also where the class came by value

        tables.calls += 1
        for number, row in enumerate(super().explain(pictures)):
            if tables.calls == 3 and number == BATCH // 2 and _first(FOLDER / "killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            yield row


def _first(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def killed() -> bool:
    """Whether a worker was killed; the next one is to be killed again."""
    marker = FOLDER / "killed"
    there = marker.exists()
    marker.unlink(missing_ok=True)
    return there
