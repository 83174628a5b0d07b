"""One `Explainer` a process for each model and its settings, however many callables ask for it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcam.errors import ModelError

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer

_MOST = 4  # models open at a time: a process that serves one job after another does not collect them
_lock = threading.Lock()
_open: OrderedDict[str, Explainer] = OrderedDict()


def explainer_of(key: str, source: str | bytes, digest: str, arguments: dict[str, Any]) -> Explainer:
    """The explainer of a model in this process, opened the first time.

    Its sessions compute on the calling thread: results do not depend on how many cores a worker has. A forked child
    shares what is in memory and opens sessions of its own.

    Arguments:
        key: of the model and its settings.
        source: path or bytes of the model.
        digest: its SHA-256 where the callable was made.
        arguments: of `Explainer`.

    Raises:
        ModelError: it is missing here, or another file. What `Explainer` raises.
    """
    with _lock:
        explainer = _open.get(key)
        if explainer is None:
            explainer = _opened(source, digest, arguments)
            while len(_open) >= _MOST:
                _open.popitem(last=False)
            _open[key] = explainer
        _open.move_to_end(key)
        return explainer


def _opened(source: str | bytes, digest: str, arguments: dict[str, Any]) -> Explainer:
    from onnxcam.explain.explainer import Explainer
    from onnxcam.runtime import options

    if isinstance(source, str):
        if not Path(source).exists():
            raise ModelError(
                f"the model {source} does not exist on this machine; put it at the same path on every worker, or pass "
                "its bytes: Explain(Path(...).read_bytes())"
            )
        here = sha256(source)
        if here != digest:
            raise ModelError(
                f"{source} is not the model that the callable was made for: its SHA-256 is {here[:12]}… here and was "
                f"{digest[:12]}… there; put the same file on every worker, or pass its bytes"
            )
    return Explainer(source, session_options=options.one_thread(), **arguments)


def sha256(source: str | bytes) -> str:
    """SHA-256 of a model; of a file with external weights, of all of its files one after another.

    Raises:
        ModelError, TrustError: no such model, or weights outside its folder.
    """
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    from onnxcam.graph import external_data, file

    external_data.check(source)
    path = Path(source)
    digest = hashlib.sha256()
    with file.open_model(path) as opened:
        data = opened.read()
    digest.update(data)
    for location in external_data.locations(data, source):
        with (path.parent / location).open("rb") as weights:
            for block in iter(lambda: weights.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def _forked() -> None:
    """Replace the lock in a forked child, where the thread that may hold it does not exist."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
