"""The check of a GPU: what it says where there is none, and the whole of it on the processor as a stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from tools import gpu_check

PARTS = {
    "device", "parity", "determinism", "placement", "IO binding", "throughput of a loop",
    "throughput of the fleet's callable", "throughput of the server", "memory",
}  # fmt: skip
needs_none = pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="there is a GPU")


@needs_none
def test_without_a_gpu_it_says_that_nothing_was_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu_check.main(["--json", str(tmp_path / "gpu.json")]) == gpu_check.NO_GPU == 4
    output = capsys.readouterr().out
    assert output.startswith(
        "not measured: everything: cuda:0 cannot be used: execution provider CUDAExecutionProvider"
    )
    document = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert document["figures"] == {} and set(document["not measured"]) == {"everything"}


def test_what_found_no_time_is_said_and_no_success(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(gpu_check.Check, "device", lambda self: {})
    monkeypatch.setattr(gpu_check.time, "monotonic", iter(range(0, 1000, 3)).__next__)
    assert gpu_check.main(["--stand-in", "--seconds", "5"]) == 1
    assert "not measured: parity: the time was spent" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("part", ["parity", "IO binding"])
def test_a_device_that_computes_something_else_fails(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = gpu_check.Check("cpu", 1.0)
    monkeypatch.setattr(gpu_check, "_distance", lambda actual, expected: 2e-3)
    (check.parity if part == "parity" else check.io_binding)()
    assert check.failed and set(check.failed) == {part}


@pytest.mark.soak
def test_the_whole_on_the_processor(tmp_path: Path) -> None:
    assert gpu_check.main(["--stand-in", "--seconds", "300", "--json", str(tmp_path / "gpu.json")]) == 0
    document = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert set(document["figures"]) == PARTS and document["failed"] == []
    assert set(document["not measured"]) == {"the GPU", "GPU memory"}
    figures = document["figures"]
    assert figures["parity"]["same best class"] == 24 and figures["parity"]["gradcam"] <= 1e-5
    assert figures["determinism"]["again"] and figures["determinism"]["another session"]
    assert set(figures["placement"]["nodes"]) == {"CPUExecutionProvider"}
    assert all(rate > 0 for rate in figures["throughput of a loop"].values())
