"""Promise 29: an `Explainer` pickles as what it was made of, opens its sessions where it is, and survives forks."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxcam
from onnxcam.errors import ModelError, OnnxcamError, SerializationError
from tests.support.models import tiny_cnn

ROOT = Path(__file__).parents[2]
CLASSES = 5
NAMES = [f"class {k}" for k in range(CLASSES)]
BATCH = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
PHOTO = np.random.default_rng(1).integers(0, 255, (40, 50, 3), np.uint8)
PLAIN = tiny_cnn(classes=CLASSES, size=32)
UNIT = {"scale": 1 / 255, "resize": {"mode": "stretch", "size": [32, 32]}}


def answers(explainer: onnxcam.Explainer) -> list[Any]:
    """What an explainer says: from the file itself, from its parts, and of a picture."""
    e = explainer.explain(PHOTO, top=2)
    return [
        explainer.run(BATCH, layer="relu1").gradients,
        explainer.attribute(BATCH, target=1),
        explainer.attribute(BATCH, method="layercam", layer="relu1"),
        explainer.predict(BATCH),
        *(m.heatmap for m in e.maps),
        e.overlay(),
        np.array([str(e.predictions), str(e.warnings), str(explainer.labels), str(explainer.providers)]),
    ]


def same(ours: list[Any], theirs: list[Any]) -> bool:
    return len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def made_of(source: str, folder: Path) -> onnxcam.Explainer:
    material: Any = {"plain bytes": PLAIN.SerializeToString(), "proto": PLAIN}.get(source)
    model = onnxcam.augment(PLAIN, preprocess=UNIT, target=2 if source == "bound" else "optional")
    if material is None:
        material = folder / "model.onnx"
        material.write_bytes(PLAIN.SerializeToString() if source == "plain file" else model.SerializeToString())
    settings: dict[str, Any] = {"preprocess": UNIT} if source in ("plain bytes", "proto", "plain file") else {}
    return onnxcam.Explainer(material, labels=NAMES, **settings)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("source", "how"),
    [(source, "pickle") for source in ("file", "bound", "plain file", "plain bytes", "proto")]
    + [("plain file", how) for how in ("cloudpickle", "copy", "deepcopy")],
)
def test_it_comes_back_as_it_was(source: str, how: str, tmp_path: Path) -> None:
    explainer = made_of(source, tmp_path)
    expected = answers(explainer)
    explainer.attribute(BATCH, method="scorecam")  # has opened further sessions
    again: onnxcam.Explainer
    if how in ("copy", "deepcopy"):
        again = getattr(copy, how)(explainer)
    else:
        module = pytest.importorskip(how)
        again = module.loads(module.dumps(explainer))
    assert same(answers(again), expected)
    assert again.manifest == explainer.manifest and again.warnings == explainer.warnings


def test_what_is_stored_is_small_and_needs_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(PLAIN.SerializeToString())
    data = pickle.dumps(onnxcam.Explainer("model.onnx", preprocess=UNIT))
    assert len(data) < 2000
    monkeypatch.chdir("/")  # a relative path is that of the folder in which the explainer was made
    assert pickle.loads(data).classes == CLASSES
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx"):
        pickle.loads(data)


def test_a_proto_that_changes_later_changes_nothing() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(PLAIN)
    explainer = onnxcam.Explainer(model, preprocess=UNIT)
    expected = answers(explainer)
    for weights in model.graph.initializer:
        weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * 2 + 1, weights.name))
    assert same(answers(pickle.loads(pickle.dumps(explainer))), expected)


def test_labels_that_were_set_later_go_along() -> None:
    explainer = onnxcam.Explainer(PLAIN.SerializeToString())
    explainer.labels = NAMES
    assert pickle.loads(pickle.dumps(explainer)).labels == NAMES


def test_a_subclass_stays_one() -> None:
    assert type(pickle.loads(pickle.dumps(Derived(PLAIN.SerializeToString())))) is Derived


class Derived(onnxcam.Explainer):
    """A user's own."""


def test_explanations_pickle() -> None:
    explainer = onnxcam.Explainer(PLAIN, preprocess=UNIT, labels=NAMES)
    e = explainer.explain(PHOTO, top=2, method=["gradcam", "layercam"])
    again = pickle.loads(pickle.dumps(e))
    assert again.predictions == e.predictions and again.warnings == e.warnings
    assert np.array_equal(again.overlay(), e.overlay()) and len(again.per_method) == 2
    raw = explainer.run(BATCH)
    assert same(list(pickle.loads(pickle.dumps(raw))), list(raw))


def test_session_options_are_refused_in_a_sentence() -> None:
    options = ort.SessionOptions()
    explainer = onnxcam.Explainer(PLAIN.SerializeToString(), session_options=options)
    with pytest.raises(SerializationError, match="session_options"):
        pickle.dumps(explainer)
    assert issubclass(SerializationError, TypeError) and issubclass(SerializationError, OnnxcamError)


def _answers_of(explainer: onnxcam.Explainer) -> list[Any]:
    return answers(explainer)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.soak)])
def test_pools_of_processes(how: str) -> None:
    if how not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {how} here")
    explainer = onnxcam.Explainer(PLAIN.SerializeToString(), preprocess=UNIT, labels=NAMES)
    expected = answers(explainer)
    with multiprocessing.get_context(how).Pool(2) as pool:
        results = pool.map_async(_answers_of, [explainer] * 3).get(120)
    assert len(results) == 3 and all(same(result, expected) for result in results)


INHERITED = """
    import os, sys, threading
    import numpy as np
    import onnxcam
    from tests.explain.test_pickling import PLAIN, UNIT, BATCH, answers, same

    explainer = onnxcam.Explainer(PLAIN.SerializeToString(), preprocess=UNIT)
    wanted = answers(explainer)
    stop = threading.Event()

    def storm():
        while not stop.is_set():
            explainer.attribute(BATCH, method="layercam", layer="relu1")

    threads = [threading.Thread(target=storm) for _ in range(2)]
    for thread in threads:
        thread.start()
    children = []
    for _ in range({children}):
        child = os.fork()
        if child == 0:
            os._exit(0 if same(answers(explainer), wanted) else 1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    stop.set()
    print(codes, same(answers(explainer), wanted))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("children", [2, pytest.param(100, marks=pytest.mark.soak)])
def test_a_forked_child_opens_sessions_of_its_own(children: int) -> None:
    """It was made and used in the parent, whose threads the child does not have, and forked in the middle of others'
    calls: a session that was inherited would wait for ever."""
    script = textwrap.dedent(INHERITED).replace("{children}", str(children))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{[0] * children} True"


@pytest.mark.parametrize("make", [pickle.dumps, copy.copy, copy.deepcopy])
def test_others_say_why_not(make: Callable[[Any], Any]) -> None:
    model = onnxcam.augment(PLAIN).SerializeToString()
    with onnxcam.Monitor(model, sink=lambda record, files: None) as monitor:
        with pytest.raises(SerializationError, match=r"a Monitor cannot be pickled: .*make one in each process"):
            make(monitor)
        watched = monitor.wrap(ort.InferenceSession(PLAIN.SerializeToString()))
        with pytest.raises(TypeError, match=r"a session that a monitor observes cannot be pickled: .*wrap one"):
            make(watched)
