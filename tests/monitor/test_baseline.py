"""`Monitor(baseline=...)` from end to end: recorded, made by the command, and told in the records that follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from onnxcam.cli import main
from onnxcam.errors import InputError, SettingError
from onnxcam.monitor import baseline as baselines
from onnxcam.monitor.hook import Monitor
from onnxcam.monitor.schema import validate
from tests.monitor.monitoring import ALWAYS, MODEL, PLAIN, SIZE, SMALL, UNLIMITED, Collector


def blobs(rows: int, seed: int, middle: float = 0.5) -> np.ndarray:
    """Faint noise with one bright spot around a place, float32 `[rows, 3, SIZE, SIZE]`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    places = rng.normal(middle, 0.06, (rows, 2, 1, 1))
    spot = 3 * np.exp(-((y - places[:, 0]) ** 2 + (x - places[:, 1]) ** 2) * 60)
    return (spot[:, None] + rng.normal(scale=0.1, size=(rows, 3, SIZE, SIZE))).astype(np.float32)


def record(batch: np.ndarray, sink: Any, **options: Any) -> None:
    settings = UNLIMITED | {"when": ALWAYS, "queue": 2000, "redact": "hash"} | options
    with Monitor(MODEL, sink=sink, **settings) as monitor:
        monitor.wrap(ort.InferenceSession(PLAIN)).run(None, {"input": batch})
        assert monitor.flush(60)
        assert monitor.stats()["explained"] == len(batch)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline of 600 recorded rows."""
    folder = tmp_path_factory.mktemp("cam")
    record(blobs(600, 0), folder / "records", sink_options={"sync": False})
    target = folder / "baseline.json"
    outcome = CliRunner().invoke(main, ["monitor", "baseline", str(folder / "records"), "-o", str(target)])
    assert outcome.exit_code == 0, outcome.output
    return target


@pytest.mark.slow
def test_records_tell_their_distance_whoever_explains(path: Path) -> None:
    batch = np.concatenate([blobs(20, 1), blobs(20, 2, middle=0.85)])
    collectors = {worker: Collector() for worker in ("thread", "process", "inline")}
    for worker, sink in collectors.items():
        record(batch, sink, baseline=path, worker=worker)
    baseline = baselines.load(path)
    distances = [entry["drift"] for entry in collectors["thread"].records]
    assert distances == [entry["drift"] for entry in collectors["process"].records]
    assert distances == [entry["drift"] for entry in collectors["inline"].records]
    for entry in collectors["thread"].records:
        validate(entry)
        assert entry["drift"] == baseline.distances(entry), "what the record itself says"
        assert entry["drift"]["comparable"] and entry["drift"]["baseline"] == baseline.identity
    usual, moved = distances[:20], distances[20:]
    for name in ("map", "attention"):
        low, high = (np.array([distances_of[name] for distances_of in part]) for part in (usual, moved))
        assert high.min() > 2 * np.median(low), name
    assert np.median([distances_of["rank"] for distances_of in usual]) < 0.9
    assert min(distances_of["rank"] for distances_of in moved) > 0.99, "farther than what the baseline itself holds"
    assert {distances_of["furthest"].rpartition(".")[0] for distances_of in moved} == {"attention"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("missing", "cannot be read"),
        ("cut", "is not a baseline"),
        ("maps", "is not a baseline"),
        ("empty", "is not a baseline"),
        ("records", "is not a baseline"),
    ],
)
def test_a_file_that_is_no_baseline(path: Path, tmp_path: Path, spoil: str, message: str) -> None:
    bad, data = tmp_path / "bad.json", path.read_bytes()
    if spoil == "cut":
        bad.write_bytes(data[: len(data) // 2])
    elif spoil == "maps":
        document = json.loads(data)
        document["rows"]["maps"]["uint16"] = document["rows"]["maps"]["uint16"][:200]
        bad.write_text(json.dumps(document))
    elif spoil == "empty":
        bad.write_bytes(b"")
    elif spoil == "records":
        bad.write_text('{"schema": 1, "id": "x"}\n{"schema": 1, "id": "y"}\n')
    with pytest.raises(InputError, match=message) as caught:
        Monitor(MODEL, sink=Collector(), when=ALWAYS, baseline=bad)
    assert str(bad) in str(caught.value)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (SMALL, {}, "model '[0-9a-f]{64}' instead of"),
        (MODEL, {"when": "confidence < 0.5"}, "when 'confidence <= 1' instead of 'confidence < 0.5'"),
        (MODEL, {"layer": "relu1"}, "layer 'relu2' instead of 'relu1'"),
        (MODEL, {"method": "hirescam"}, "method 'gradcam' instead of"),
    ],
)
def test_a_baseline_of_something_else(path: Path, model: bytes, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Monitor(model, sink=Collector(), baseline=path, **({"when": ALWAYS} | options))
