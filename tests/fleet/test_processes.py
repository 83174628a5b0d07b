"""One table however the pictures are cut, whatever the process and the number of threads; pickles without a session."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from onnxcam.errors import ModelError
from onnxcam.fleet import Explain, process_session, workers
from tests.fleet import samples

ROOT = Path(__file__).resolve().parents[2]
COUNT = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.model(tmp_path_factory.mktemp("fleet"))


PICTURES = samples.pictures(COUNT, every=30)


def condition(model: Path) -> str:
    confidence = Explain(model, when="never")(samples.batch(PICTURES))["confidence"]
    return f"confidence < {np.nanmedian(confidence):.6f}"


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 4, 7])
def test_a_row_does_not_depend_on_its_batch_or_on_threads(model: Path, rows: int) -> None:
    for when in (None, condition(model)):
        whole = samples.loop(Explain(model, when=when, rows=rows, threads=1), PICTURES, [COUNT])
        for cuts, threads in (([1], 1), ([7, 64, 3], 3), ([rows * 5], 2), ([50], 4)):
            other = samples.loop(Explain(model, when=when, rows=rows, threads=threads), PICTURES, cuts)
            assert samples.differences(whole, other) == {}, (when, cuts)


@pytest.mark.slow
def test_rows_per_run_change_nothing_but_rounding(model: Path) -> None:
    single = samples.loop(Explain(model), PICTURES, [COUNT])
    several = samples.loop(Explain(model, rows=8), PICTURES, [COUNT])
    assert set(several["rows"]) == {8}
    differences = samples.differences(single, several | {"rows": single["rows"]})
    assert all(value < 1e-6 for value in differences.values()), differences


def test_a_seed_gives_one_table_whatever_the_batches(model: Path) -> None:
    settings: dict[str, Any] = {"method": "rise", "masks": 8, "seed": 7, "when": condition(model)}
    whole = samples.loop(Explain(model, threads=1, **settings), PICTURES[:20], [20])
    cut = samples.loop(Explain(model, threads=2, rows=4, **settings), PICTURES[:20], [3])
    differences = samples.differences(whole, cut | {"rows": whole["rows"]})
    assert all(value < 1e-6 for value in differences.values()), differences


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
@pytest.mark.parametrize("by", ["path", "bytes"])
def test_pickles_as_what_it_was_made_of(model: Path, dumps: Any, by: str) -> None:
    explain = Explain(model if by == "path" else model.read_bytes(), top_k=2, when="confidence < 0.5", prefix="x_")
    expected = explain(samples.batch(PICTURES[:10]))
    data = dumps(explain)  # after a session was opened
    assert len(data) < (2_000 if by == "path" else len(model.read_bytes()) + 2_000)
    again = pickle.loads(data)
    assert samples.differences(expected, again(samples.batch(PICTURES[:10]))) == {}


def test_another_file_under_the_same_path_is_refused_where_it_is_opened(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.cam.onnx"
    path.write_bytes(model.read_bytes())
    data = pickle.dumps(Explain(path, labels=list("abcde")))
    other = samples.model(tmp_path).read_bytes()
    path.write_bytes(other + b"\x1a\x00")  # an empty field of ModelProto
    with pytest.raises(ModelError, match="is not the model that the callable was made for"):
        pickle.loads(data)(samples.batch(PICTURES[:1]))
    path.unlink()
    with pytest.raises(ModelError, match="does not exist on this machine"):
        pickle.loads(data)(samples.batch(PICTURES[:1]))


def test_callables_about_one_model_share_a_session(model: Path) -> None:
    process_session._open.clear()
    for settings in ({}, {"when": "never"}, {"top_k": 1}, {"column": "bytes", "keep": True}):
        pickle.loads(pickle.dumps(Explain(model, **settings)))(samples.batch(PICTURES[:2]))
    assert len(process_session._open) == 1
    explainers: set[int] = set()

    def ask() -> None:
        explainers.add(id(Explain(model)._job().explainer))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(explainers) == 1
    for number in range(6):
        Explain(model, labels=[f"{name} {number}" for name in samples.NAMES])(samples.batch(PICTURES[:1]))
    assert len(process_session._open) == process_session._MOST


def explained(explain: Explain, connection: Any) -> None:
    connection.send_bytes(pickle.dumps((os.getpid(), explain(samples.batch(PICTURES)))))
    connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_opens_a_session_of_its_own(model: Path, start: str) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    context = multiprocessing.get_context(start)
    explain = Explain(model, when=condition(model))
    expected = explain(samples.batch(PICTURES))
    for _ in range(2):
        ours, theirs = context.Pipe()
        child = context.Process(target=explained, args=(explain, theirs))
        child.start()
        pid, table = pickle.loads(ours.recv_bytes())
        child.join(60)
        assert child.exitcode == 0 and pid != os.getpid()
        assert samples.differences(expected, table) == {}
    assert samples.differences(expected, explain(samples.batch(PICTURES))) == {}


def test_threads_are_the_share_of_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(workers, "cores", lambda: 16)
    monkeypatch.setattr(workers, "_QUOTA", quota)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert workers.share() == 16
    quota.write_text("max 100000")
    assert workers.share() == 16
    quota.write_text("150000 100000")
    assert workers.share() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert workers.share() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    quota.write_text("rubbish")
    assert workers.share() == 16


def test_importing_needs_numpy_only(model: Path) -> None:
    script = (
        "import sys, json; import onnxcam.fleet; from onnxcam.fleet import Explain; e = Explain(sys.argv[1]); "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(model)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"onnx", "onnxruntime", "cv2", "pyarrow", "pandas", "ray", "daft", "pyspark", "torch"}
