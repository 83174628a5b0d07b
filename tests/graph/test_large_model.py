"""Models over protobuf's 2 GiB, in small: the limit lowered, so that the weights lie outside the graph."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import onnxcam
from onnxcam import files
from onnxcam.diagnose.gradients import check
from onnxcam.errors import ModelError, OutputError
from onnxcam.graph import load as loading
from onnxcam.graph.large_model import LargeModel, offsets
from onnxcam.graph.load import load, save, serialize
from onnxcam.monitor import model as monitored
from onnxcam.network import manifest
from onnxcam.network.explainable import augment
from onnxcam.runtime import open_session
from onnxcam.runtime.options import serving
from tests.support.models import tiny_cnn

CPU = ["CPUExecutionProvider"]
PICTURES = np.random.default_rng(5).normal(size=(2, 3, 32, 32)).astype(np.float32)


def wide() -> onnx.ModelProto:
    return tiny_cnn(width=16, classes=40)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LARGEST", 8000)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with_gradients = augment(wide(), methods=["gradcam", "layercam"])
    session = onnxruntime.InferenceSession(with_gradients.SerializeToString(), serving(), providers=CPU)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": PICTURES}), strict=True))


def test_what_fits_stays_in_one_piece() -> None:
    assert serialize(wide()) == wide().SerializeToString()


@pytest.mark.usefixtures("small_files")
def test_weights_lie_outside_the_graph_and_come_together_again() -> None:
    apart = serialize(wide())
    assert isinstance(apart, LargeModel)
    assert set(apart.weights) == {"w1", "w2", "w3"}  # the biases are too small
    assert len(apart.graph) < 2000
    assert load(apart) == load(wide())
    assert wide() == load(wide())


@pytest.mark.usefixtures("small_files")
def test_a_saved_large_model_is_two_files_that_any_client_reads(
    expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    save(augment(wide(), methods=["gradcam", "layercam"]), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    onnx.checker.check_model(path)
    assert {
        entry.value for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data if entry.key == "location"
    } == {"model.onnx.data"}  # fmt: skip
    session = onnxruntime.InferenceSession(path, serving(), providers=CPU)
    for name, value in expected.items():
        np.testing.assert_array_equal(session.run([name], {"input": PICTURES})[0], value)
    again = load(path)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in again.graph.initializer}
    for tensor in wide().graph.initializer:
        np.testing.assert_array_equal(tensors[tensor.name], numpy_helper.to_array(tensor))


@pytest.mark.sample(3)
@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("options", [None, serving()], ids=["own", "of the caller"])
@pytest.mark.parametrize("kind", ["path", "proto", "large"])
def test_it_is_explained_as_a_small_one_is(kind: str, options: Any, tmp_path: Path) -> None:
    picture = np.random.default_rng(6).integers(0, 256, (32, 32, 3), np.uint8)
    whole = onnxcam.Explainer(wide().SerializeToString(), providers=CPU, preprocess="0..1")
    source = {"path": tmp_path / "model.onnx", "proto": wide(), "large": serialize(wide())}[kind]
    if isinstance(source, Path):
        save(wide(), source)
    explainer = onnxcam.Explainer(source, providers=CPU, preprocess="0..1", session_options=options)
    assert isinstance(explainer.source, LargeModel)  # augmented in memory
    for method in ("gradcam", "ablationcam", "saliency"):
        mine, its = (e.explain(picture, method=method, target=7) for e in (explainer, whole))
        np.testing.assert_array_equal(mine.heatmap, its.heatmap)


@pytest.mark.usefixtures("small_files")
def test_it_is_checked_and_watched(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    save(augment(wide()), path)
    assert check(path, providers=CPU).passed
    plain = monitored.read(wide(), None, "gradcam")
    assert isinstance(plain.source, LargeModel)
    assert plain.sha256 == serialize(wide()).sha256()  # type: ignore[union-attr]
    assert manifest.layer(plain.manifest, None)["name"] == plain.layer


@pytest.mark.usefixtures("small_files")
def test_its_hash_is_of_the_weights_too() -> None:
    one, two = serialize(tiny_cnn(width=16, seed=1)), serialize(tiny_cnn(width=16, seed=2))
    assert isinstance(one, LargeModel) and isinstance(two, LargeModel)
    assert one.sha256() != two._replace(graph=one.graph).sha256()
    assert one.sha256() == pickle.loads(pickle.dumps(one)).sha256()


@pytest.mark.usefixtures("small_files")
def test_one_set_of_options_opens_one_after_the_other() -> None:
    options = serving()
    for seed in (1, 2):
        model = tiny_cnn(width=16, seed=seed)
        want = onnxruntime.InferenceSession(model.SerializeToString(), providers=CPU).run(None, {"input": PICTURES})
        outputs = open_session(serialize(model), CPU, options).run(None, {"input": PICTURES})
        np.testing.assert_array_equal(outputs[0], want[0])


@pytest.mark.usefixtures("small_files")
def test_another_provider_is_tried_with_the_same_options(monkeypatch: pytest.MonkeyPatch) -> None:
    original = onnxruntime.InferenceSession

    def refusing(*arguments: Any, providers: Any, **options: Any) -> Any:
        if providers != CPU:
            raise RuntimeError("CUDA: no device")
        return original(*arguments, providers=providers, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refusing)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *CPU])
    outputs = open_session(serialize(wide())).run(None, {"input": PICTURES})[0]
    np.testing.assert_array_equal(outputs, original(wide().SerializeToString()).run(None, {"input": PICTURES})[0])


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("failing", ["model.onnx.data", "model.onnx"])
def test_what_was_there_stays_where_writing_fails(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    save(wide(), path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    opened: list[Path] = []

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if len(opened) == ["model.onnx.data", "model.onnx"].index(failing) + 1:
                raise OSError(28, "No space left on device")
            return super().write(data)

    def create(part: Path, target: Any) -> Full:
        opened.append(target.path)
        return Full(part, "x")

    monkeypatch.setattr(files, "_create", create)
    with pytest.raises(OutputError, match="No space left on device"):
        save(tiny_cnn(width=32), path)
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_where_a_session_has_no_room(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any, pieces: Any, *sync: bool) -> int:
        raise error

    monkeypatch.setattr(files, "_send", full)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt, match=r"TMPDIR|^$"):
        open_session(serialize(wide()), CPU, serving())
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        save(wide(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_too_large_by_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LARGEST", 100)
    monkeypatch.setattr(loading, "_EXTERNAL_TYPES", set())
    with pytest.raises(ModelError, match="limit of 2 GiB even without its weights"):
        serialize(wide())


def test_places_lie_on_pages_of_their_own() -> None:
    assert dict(offsets({"a": 1, "b": 4096, "c": 4097, "d": 3})) == {"a": 0, "b": 4096, "c": 8192, "d": 16384}
