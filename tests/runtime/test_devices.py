"""A device that is named reaches every session: those of an explainer's parts, a hook, a server, the fleet, a bench."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
import pytest

import onnxcam
from onnxcam import inside, runtime
from onnxcam.diagnose.cost import bench
from onnxcam.diagnose.gradients import check
from onnxcam.errors import RuntimeUnavailable
from onnxcam.fleet import Explain
from tests.image.pictures import smooth
from tests.support.models import tiny_cnn

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PREPROCESS = {"scale": 1 / 255, "resize": {"mode": "stretch", "size": [32, 32]}}
ON_SECOND = [(CUDA, {"device_id": 1})]


class OnGpu(ort.InferenceSession):
    """A session that says it runs on a GPU, and computes on the processor; `opened` has what each was asked for."""

    opened: ClassVar[list[Any]] = []

    def __init__(self, model: Any, sess_options: Any = None, providers: Any = None, **more: Any) -> None:
        OnGpu.opened.append(providers)
        super().__init__(model, sess_options=sess_options, providers=[CPU], **more)

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Two pretended GPUs; the list of what every session since was asked to run on."""
    monkeypatch.setattr(ort, "InferenceSession", OnGpu)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(OnGpu, "opened", [])
    yield OnGpu.opened


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("devices") / "tiny.cam.onnx"
    path.write_bytes(onnxcam.augment(tiny_cnn(), preprocess=PREPROCESS, probe=False).SerializeToString())
    return path


def test_names_with_a_device(gpu: list[Any], model: Path) -> None:
    for providers in ("cuda:1", ["cuda:1"], [(CUDA, {"device_id": 1})]):
        runtime.open_session(model, providers)  # type: ignore[arg-type]
    assert gpu == [ON_SECOND] * 3
    runtime.open_session(model, ["cuda:1", "cpu"])
    assert gpu[-1] == [*ON_SECOND, CPU]
    for wrong, sentence in (("auto", "is no name"), ("cuda:x", "must be a number"), ("gpu", "no execution provider")):
        with pytest.raises(RuntimeUnavailable, match=sentence):
            runtime.open_session(model, [wrong])


@pytest.mark.parametrize("method", ["gradcam", "layercam", "gradcam++", "scorecam", "saliency", "integrated_gradients"])
def test_the_sessions_of_every_method(gpu: list[Any], model: Path, method: str) -> None:
    explainer = onnxcam.Explainer(model, providers=["cuda:1"])
    explainer.explain(smooth(40, 50), method=method, top=2 if method == "gradcam" else None)
    explainer.predict(explainer.prepare(smooth(40, 50))[1])
    assert len(gpu) >= 2 and all(one == ON_SECOND for one in gpu), gpu


def test_a_file_that_is_augmented_in_memory(gpu: list[Any]) -> None:
    explainer = onnxcam.Explainer(tiny_cnn(), preprocess=PREPROCESS, providers=["cuda:1"], probe=False)
    explainer.run(np.zeros((1, 3, 32, 32), np.float32), layer="conv1")
    assert gpu and all(one == ON_SECOND for one in gpu), gpu


def test_the_fleet_and_the_hook(gpu: list[Any], model: Path, tmp_path: Path) -> None:
    explain = Explain(str(model), providers=["cuda:1"], when="confidence < 1")
    assert not any(explain({"bytes": np.array([smooth(30, 30), smooth(20, 30)], object)})["error"])
    assert gpu and all(one == ON_SECOND for one in gpu), gpu
    gpu.clear()
    monitor = onnxcam.Monitor(model, sink=tmp_path / "records", when="confidence < 1", providers=["cuda:1"])
    session = monitor.wrap(runtime.open_session(model, ["cuda:1"]))
    session.run(["logits"], {"input": np.zeros((1, 3, 32, 32), np.float32)})
    assert monitor.flush(60)
    monitor.close(60)
    assert len(gpu) > 1 and all(one == ON_SECOND for one in gpu), gpu


def test_the_server(gpu: list[Any], model: Path) -> None:
    from starlette.testclient import TestClient

    from onnxcam.image import encode_png
    from onnxcam.server.app import build
    from onnxcam.server.settings import Settings

    opening = {"providers": runtime.parse_provider("cuda:1")}
    with TestClient(build([str(model)], Settings.of(threads=1, rows=1), opening=opening)) as client:
        for query in ("", "?when=never", "?method=scorecam", "?layer=conv1"):
            assert client.post(f"/predict_with_gradcam{query}", content=encode_png(smooth(30, 30))).status_code == 200
    assert len(gpu) > 2 and all(one == ON_SECOND for one in gpu), gpu


def test_looking_inside_a_bench_and_a_check(gpu: list[Any], model: Path) -> None:
    explainer = onnxcam.Explainer(model, providers=["cuda:1"])
    inside.features(explainer, smooth(30, 30))
    inside.dead(explainer, [smooth(30, 30)])
    assert all(one == ON_SECOND for one in gpu), gpu
    gpu.clear()
    bench(model, rounds=1, seconds=1.0, batches=(1,), providers=runtime.parse_provider("cuda:1"))
    assert len(gpu) > 2 and all(one == ON_SECOND for one in gpu), gpu
    gpu.clear()
    check(str(model), samples=1, directions=1, providers=runtime.parse_provider("cuda:1"))
    assert gpu and all(one == ON_SECOND for one in gpu), gpu


def test_only_what_is_read_leaves_the_device(gpu: list[Any], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that nobody fetches are not copied: a map costs the scores and the map, predictions the scores."""
    fetched: list[list[str]] = []
    run = OnGpu.run

    def noting(self: Any, names: Any, *more: Any, **options: Any) -> Any:
        fetched.append(list(names))
        return run(self, names, *more, **options)

    monkeypatch.setattr(OnGpu, "run", noting)
    explainer = onnxcam.Explainer(model, providers=["cuda:1"])
    explainer.explain(smooth(30, 30))
    assert fetched == [["logits", "heatmap"]]
    fetched.clear()
    explainer.predict(explainer.prepare(smooth(30, 30))[1])
    assert len(fetched) == 1 and len(fetched[0]) == 1
