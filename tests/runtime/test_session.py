"""Sessions: providers by name, what is said when one is missing, broken runtimes, and CUDA where there is one."""

from __future__ import annotations

import builtins
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxcam
from onnxcam import runtime
from onnxcam.errors import DependencyError, InputError, ModelError, RuntimeUnavailable
from tests.support import models

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", None),
        ("AUTO", None),
        ("cpu", [CPU]),
        ("CUDA", [CUDA]),
        ("cuda:1", [(CUDA, {"device_id": 1})]),
        ("tensorrt", ["TensorrtExecutionProvider"]),
        ("directml:2", [("DmlExecutionProvider", {"device_id": 2})]),
        (CUDA, [CUDA]),
        ("VitisAIExecutionProvider", ["VitisAIExecutionProvider"]),
    ],
)
def test_providers_by_name(text: str, expected: Any) -> None:
    assert runtime.parse_provider(text) == expected


@pytest.mark.parametrize(
    ("text", "says"), [("cdua", r"'cdua'.*cuda"), ("gpu", "'gpu'"), ("cuda:first", r"number, as in cuda:0"), ("", "''")]
)
def test_no_such_provider(text: str, says: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=says):
        runtime.parse_provider(text)


class FakeSession:
    """A session that uses the providers its class says, whatever is asked for: silent fallback as it really happens."""

    providers_in_use = (CPU,)

    def __init__(self, source: Any, sess_options: Any = None, providers: Any = None) -> None:
        self.requested = providers

    def get_providers(self) -> list[str]:
        return list(self.providers_in_use)


def fake(monkeypatch: pytest.MonkeyPatch, available: list[str], session: Any = FakeSession) -> None:
    library: Any = types.SimpleNamespace(
        InferenceSession=session,
        SessionOptions=lambda: types.SimpleNamespace(
            log_severity_level=2, intra_op_num_threads=0, add_session_config_entry=lambda key, value: None
        ),
        get_available_providers=lambda: available,
        __version__="1.0",
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", library)


def test_a_provider_that_is_listed_but_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, [CUDA, CPU])
    with pytest.raises(RuntimeUnavailable, match=rf"{CUDA} was asked for but is not in use.*{CPU}.*onnxcam doctor"):
        runtime.open_session(b"", [CUDA])
    assert runtime.open_session(b"", [CUDA], allow_fallback=True).get_providers() == [CPU]
    assert runtime.open_session(b"").get_providers() == [CPU]


def test_a_provider_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, [CPU])
    with pytest.raises(RuntimeUnavailable, match=rf"{CUDA} is not in this onnxruntime.*onnxcam\[gpu\]"):
        runtime.open_session(b"", [(CUDA, {"device_id": 0})])
    assert runtime.open_session(b"", [CUDA], allow_fallback=True).requested == [CPU]


def test_cuda_first_where_it_works_and_cpu_where_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Works(FakeSession):
        providers_in_use = (CUDA, CPU)

    fake(monkeypatch, [CUDA, CPU], Works)
    assert runtime.open_session(b"").requested == [CUDA, CPU]

    class Breaks(FakeSession):
        def __init__(self, source: Any, sess_options: Any = None, providers: Any = None) -> None:
            if providers[0] == CUDA:
                raise RuntimeError("CUDA failure 35: driver version is insufficient")
            super().__init__(source, sess_options, providers)

    fake(monkeypatch, [CUDA, CPU], Breaks)
    assert runtime.open_session(b"").requested == [CPU]
    with pytest.raises(RuntimeUnavailable, match="driver version"):
        runtime.open_session(b"", [CUDA])


def test_options_reach_the_runtime_as_a_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    class Works(FakeSession):
        providers_in_use = (CUDA, CPU)

    fake(monkeypatch, [CUDA, CPU], Works)
    options = types.MappingProxyType({"device_id": 1})
    ((_, passed),) = runtime.open_session(b"", [(CUDA, options)]).requested
    assert type(passed) is dict and passed == {"device_id": 1}


def test_a_missing_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("libonnxruntime.so: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DependencyError, match=r'libonnxruntime\.so.*pip install "onnxcam\[cpu\]"'):
        runtime.import_onnxruntime()


def test_a_broken_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(DependencyError, match=r"broken.*onnxcam doctor"):
        runtime.import_onnxruntime()


def test_what_the_runtime_refuses(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not an ONNX model.*text file"):
        runtime.open_session(b"hello, this is no model at all", [CPU])
    (tmp_path / "m.onnx").write_bytes(b"PK\x03\x04" + bytes(range(200)))
    with pytest.raises(ModelError, match=r"m\.onnx is not an ONNX model.*zip"):
        runtime.open_session(tmp_path / "m.onnx", [CPU])
    newer = models.tiny_cnn()
    newer.opset_import[0].version = 99
    with pytest.raises(ModelError, match=rf"ONNX Runtime {ort.__version__} refuses the model.*99"):
        runtime.open_session(newer.SerializeToString(), [CPU])


def test_what_a_run_refuses() -> None:
    session = runtime.open_session(models.tiny_cnn().SerializeToString(), [CPU])
    with pytest.raises(InputError, match="refuses the input"):
        runtime.run(session, ["logits"], {"input": np.zeros((1, 3, 31, 32), np.float32)})
    with pytest.raises(InputError, match="refuses the input"):
        runtime.run(session, ["logits"], {"input": np.zeros((1, 3, 32, 32), np.float64)})


def test_options_of_the_caller_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = runtime.open_session(models.tiny_cnn().SerializeToString(), [CPU], options)
    assert Path(session.end_profiling()).parent == tmp_path


def test_the_optional_target_is_no_warning(capfd: pytest.CaptureFixture[str]) -> None:
    runtime.open_session(onnxcam.augment(models.tiny_cnn()).SerializeToString(), [CPU])
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


@pytest.mark.cuda
@pytest.mark.skipif(CUDA not in ort.get_available_providers(), reason="this onnxruntime has no CUDA provider")
def test_cuda_runs_every_heavy_node_and_agrees_with_the_cpu(tmp_path: Path) -> None:
    model = onnxcam.augment(models.tiny_cnn(seed=2), ["relu1", "relu2"], ("gradcam", "hirescam"))
    onnx.save(model, tmp_path / "m.onnx")
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = runtime.open_session(tmp_path / "m.onnx", [CUDA, CPU], options)
    x = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    session.run(None, {"input": x})
    events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    placed = {(e["args"]["op_name"], e["args"]["provider"]) for e in events if "provider" in e.get("args", {})}
    heavy = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Mul", "ReduceSum", "ReduceMean"}
    assert {op for op, provider in placed if provider == CUDA} & {"Conv", "FusedConv"}
    assert not {op for op, provider in placed if provider == CPU} & heavy
    gpu, cpu = (onnxcam.Explainer(tmp_path / "m.onnx", providers=p) for p in ([CUDA, CPU], [CPU]))
    for method in ("gradcam", "hirescam"):
        for layer in ("relu1", "relu2"):
            a, b = gpu.attribute(x, 1, method, layer), cpu.attribute(x, 1, method, layer)
            assert np.abs(a - b).max() <= 1e-3


# ---- signals and forks


@pytest.fixture
def creating(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], None]]]:
    """What happens, one thing each, while the next sessions are being created."""
    during: list[Callable[[], None]] = []
    create = ort.InferenceSession.__init__

    def created(self: Any, *args: Any, **kwargs: Any) -> None:
        if during:
            during.pop()()
        create(self, *args, **kwargs)

    monkeypatch.setattr(ort.InferenceSession, "__init__", created)
    yield during
    assert not during


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs POSIX signals")
def test_a_signal_handler_opens_a_session_while_its_thread_opens_one(creating: list[Callable[[], None]]) -> None:
    model = models.tiny_cnn(size=8).SerializeToString()
    sessions: list[Any] = []

    def handle(*_: Any) -> None:
        sessions.append(runtime.open_session(model, [CPU]))

    before = signal.signal(signal.SIGUSR1, handle)
    creating.append(lambda: signal.raise_signal(signal.SIGUSR1))
    # a deadlock would last for ever; what is called when the alarm comes may be the deadlock's own wait
    alarm = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("deadlock"))
    signal.alarm(20)
    try:
        sessions.append(runtime.open_session(model, [CPU]))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGUSR1, before)
    assert len(sessions) == 2


FORKED = """
import os, select, sys, threading
import onnxruntime as ort
from onnxcam import runtime

CPU, model = ["CPUExecutionProvider"], sys.stdin.buffer.read()
entered, left = threading.Event(), threading.Event()
create = ort.InferenceSession.__init__

def created(self, *args, **kwargs):
    if threading.current_thread() is not threading.main_thread():
        entered.set()
        left.wait()
    create(self, *args, **kwargs)

ort.InferenceSession.__init__ = created
thread = threading.Thread(target=lambda: runtime.open_session(model, CPU))
thread.start()
entered.wait()
reading, writing = os.pipe()
child = os.fork()
if not child:
    runtime.open_session(model, CPU)
    os.write(writing, b"opened")
    os._exit(0)  # by another way ONNX Runtime may hang in a forked process
ready = select.select([reading], [], [], 30)[0]
if not ready:
    os.kill(child, 9)
os.waitpid(child, 0)
left.set()
thread.join()
sys.exit(not ready)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_another_thread_opens_a_session_opens_its_own() -> None:
    model = models.tiny_cnn(size=8).SerializeToString()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], input=model, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
