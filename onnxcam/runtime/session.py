"""ONNX Runtime sessions: opened on the execution providers asked for, with errors that say what to do."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.errors import InputError, ModelError, OutputError, RuntimeUnavailable, listing, nearest
from onnxcam.graph import external_data, file
from onnxcam.graph.large_model import LargeModel, Serialized, write
from onnxcam.runtime import options
from onnxcam.runtime.library import import_onnxruntime

Provider = str | tuple[str, Mapping[str, Any]]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_SHORT = {
    "cpu": CPU,
    "cuda": CUDA,
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
# creating sessions is not thread-safe (onnxruntime #27089), running them is; a signal handler may create one while its
# thread does
_creating = threading.RLock()


def _forked() -> None:
    """Replace the lock in a forked child, where the thread that may hold it does not exist."""
    global _creating
    _creating = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def parse_provider(text: str) -> list[Provider] | None:
    """Parse `auto`, `cpu`, `cuda`, `cuda:1`, another short name, or a full provider name.

    Returns:
        The value for `Explainer(providers=…)`; None for `auto`.

    Raises:
        RuntimeUnavailable: no such provider.
    """
    name, _, device = text.partition(":")
    if name.lower() == "auto" and not device:
        return None
    full = _SHORT.get(name.lower(), name)
    if not full.endswith("ExecutionProvider"):
        raise RuntimeUnavailable(
            f"no execution provider {text!r}; expected one of {listing(nearest(name, ['auto', *_SHORT]))}"
        )
    if not device:
        return [full]
    if not device.isdigit():
        raise RuntimeUnavailable(f"provider {text!r}: the device after the colon must be a number, as in cuda:0")
    return [(full, {"device_id": int(device)})]


def open_session(
    model: str | os.PathLike[str] | Serialized,
    providers: Sequence[Provider] | None = None,
    session_options: Any = None,
    *,
    allow_fallback: bool = False,
) -> Any:
    """Open an `onnxruntime.InferenceSession` and check that it uses the requested providers.

    Arguments:
        model: path, bytes, or `LargeModel` (graph and weights of a model over 2 GiB).
        providers: names (`cuda:1` and the like too) or (name, options) pairs; None for the best that works (CUDA, else
            CPU).
        session_options: an `onnxruntime.SessionOptions`; None for `options.serving()`.
        allow_fallback: accept a session in which a named provider is not in use.

    Raises:
        RuntimeUnavailable: a named provider is not in this onnxruntime, or not in use after loading.
        ModelError: ONNX Runtime refuses the model, or its external weights are missing.
        TrustError: the model names external weights outside its own folder.
    """
    ort = import_onnxruntime()
    # ONNX Runtime opens any file that the model names, also by hard link
    if isinstance(model, bytes):
        external_data.check_bytes(model, "the model")
    elif not isinstance(model, LargeModel):
        external_data.check(model)
    if session_options is None:
        session_options = options.serving(single_use=True)
    if providers is None:
        return _best(ort, model, session_options)
    single = isinstance(providers, str) or (
        isinstance(providers, tuple) and len(providers) == 2 and isinstance(providers[1], Mapping)
    )
    requests = [_full(one) for one in ([providers] if single else providers)]
    names = [p if isinstance(p, str) else p[0] for p in requests]
    available = ort.get_available_providers()
    missing = [name for name in names if name not in available]
    if missing and not allow_fallback:
        raise RuntimeUnavailable(
            f"execution provider {missing[0]} is not in this onnxruntime (it has {listing(available)}); "
            f"{_remedy(missing[0])}"
        )
    usable = [p for p, name in zip(requests, names, strict=True) if name in available]
    session = _create(ort, model, session_options, usable or [CPU])
    unused = [name for name in names if name not in session.get_providers()]
    if unused and not allow_fallback:
        raise RuntimeUnavailable(
            f"execution provider {unused[0]} was asked for but is not in use: the session runs on "
            f"{listing(session.get_providers())}; {_remedy(unused[0])}"
        )
    return session


def _full(provider: Any) -> Any:
    """A provider as ONNX Runtime names it: `cuda:1` is `("CUDAExecutionProvider", {"device_id": 1})`.

    Raises:
        RuntimeUnavailable: no such provider.
    """
    if not isinstance(provider, str) or provider.endswith("ExecutionProvider"):
        return provider
    parsed = parse_provider(provider)
    if parsed is None:
        raise RuntimeUnavailable("the provider 'auto' is no name; leave providers= out for the best that works")
    return parsed[0]


def _best(ort: Any, model: str | os.PathLike[str] | Serialized, session_options: Any) -> Any:
    if CUDA in ort.get_available_providers():
        try:
            session = _create(ort, model, session_options, [CUDA, CPU])
        except RuntimeUnavailable:
            session = None  # the CUDA libraries or the device are missing: use the CPU
        if session is not None:
            return session
    return _create(ort, model, session_options, [CPU])


def _create(
    ort: Any, model: str | os.PathLike[str] | Serialized, session_options: Any, providers: list[Provider]
) -> Any:
    if isinstance(model, LargeModel):
        return _create_large(ort, model, session_options, providers)
    source: str | bytes = model if isinstance(model, bytes) else os.fspath(model)
    if any((p if isinstance(p, str) else p[0]) == CUDA for p in providers) and hasattr(ort, "preload_dlls"):
        # it prints the libraries that it cannot find, and standard output is for results
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    # ONNX Runtime refuses a mapping of provider options that is not a dict
    plain = [p if isinstance(p, str) else (p[0], dict(p[1])) for p in providers]
    try:
        with _creating:
            return ort.InferenceSession(source, sess_options=session_options, providers=plain)
    except Exception as error:
        reason = _first_line(error)
        if any(word in reason for word in ("CUDA", "cudnn", "cuda", "provider")) and "parse" not in reason.lower():
            raise RuntimeUnavailable(f"the execution provider cannot be used: {reason}; {_remedy(CUDA)}") from error
        if "INVALID_PROTOBUF" in reason or "InvalidProtobuf" in type(error).__name__:
            start = source[:512] if isinstance(source, bytes) else file.read(source)[:512]
            raise ModelError(file.not_a_model(start, "the model" if isinstance(source, bytes) else source)) from error
        raise ModelError(f"ONNX Runtime {ort.__version__} refuses the model: {reason}") from error


def _create_large(ort: Any, model: LargeModel, session_options: Any, providers: list[Provider]) -> Any:
    """Open a session on weights already in memory, without copying them.

    `SessionOptions` keep weights passed through them for every session made with them, so with a caller's options the
    model is opened from a temporary file instead.
    """
    if not options.is_single_use(session_options):
        import tempfile

        with tempfile.TemporaryDirectory(prefix="onnxcam-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.onnx"
            try:
                write(model, path)
            except OutputError as error:
                raise OutputError(
                    f"given session options, a model over 2 GiB is opened from a file, and {folder} cannot take it "
                    f"({error}); set TMPDIR to a folder with room, or pass no session options"
                ) from error
            return _create(ort, path, session_options, providers)
    weights = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in model.weights.items()}
    with contextlib.suppress(RuntimeError):  # already added by an attempt with another provider
        session_options.add_external_initializers(list(weights), list(weights.values()))
    session = _create(ort, model.graph, session_options, providers)
    session.weights_in_use = weights
    return session


def _remedy(provider: str) -> str:
    if provider == CUDA:
        return (
            'install a GPU runtime (pip uninstall -y onnxruntime && pip install "onnxcam[gpu]") with its CUDA '
            "libraries, or choose cpu; `onnxcam doctor` tells what is broken"
        )
    return "install a runtime that has it, or choose cpu (`onnxcam doctor` tells what is broken)"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run(session: Any, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a session and return the outputs by name.

    Raises:
        InputError: the runtime refuses a tensor.
        ModelError: the model fails at run time.
    """
    try:
        return dict(zip(outputs, session.run(list(outputs), dict(feeds)), strict=True))
    except Exception as error:
        reason = _first_line(error)
        if "INVALID_ARGUMENT" in reason or "Unexpected input data type" in reason:
            raise InputError(f"ONNX Runtime refuses the input: {reason}") from error
        shapes = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in feeds.items())
        raise ModelError(f"the model failed at run time on {shapes}: {reason}") from error
