"""Runs an explainable model: batches in, scores and gradients and maps out, on sessions made when first needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from onnxcam import runtime
from onnxcam.cam.methods import GRAPH, find
from onnxcam.errors import InputError, LayerError, MethodError, ModelError
from onnxcam.explain.features import HeadRun, InputGradient, Progress, run_head
from onnxcam.explain.sessions import MakeOptions, Sessions
from onnxcam.graph import file
from onnxcam.graph.large_model import LargeModel, Serialized
from onnxcam.network import manifest
from onnxcam.network.manifest import Manifest
from onnxcam.network.names import SCORES
from onnxcam.runtime.rows import joined, portions
from onnxcam.targets.classes import TOP1
from onnxcam.targets.readout import Readout

Source = Any  # str | os.PathLike[str] | bytes | onnx.ModelProto


class Raw(NamedTuple):
    """What the model itself computed.

    Attributes:
        scores: logits `[N, K]`.
        activations: the target layer's output, in its own layout; a list where several layers were asked for.
        gradients: d scores[n, target[n]] / d activations, same shape.
        target: the class explained per row, int64 `[N]`.
    """

    scores: np.ndarray
    activations: Any
    gradients: Any
    target: np.ndarray


@dataclass(frozen=True)
class _Loaded:
    source: str | Serialized
    manifest: Manifest
    session: Any


class FileSession:
    """One model on one set of execution providers.

    Thread-safe: sessions are created under a lock and replaced whole; calls keep nothing.
    """

    def __init__(
        self,
        source: Source,
        *,
        layers: Sequence[str] | None = None,
        methods: Sequence[str] = ("gradcam",),
        preprocess: Any = None,
        providers: Sequence[runtime.Provider] | None = None,
        session_options: Any = None,
        allow_fallback: bool = False,
    ) -> None:
        self._providers = providers
        self._options = session_options
        self._allow_fallback = allow_fallback
        self._lock = threading.RLock()
        # of the last batch that was in order: beside a small model the checks count
        self._taken: tuple[tuple[int, ...], np.dtype[Any]] | None = None
        where, held = open_source(source)
        if held is not None and held.get("gate"):  # who asks for an explanation gets one
            where, held = _ungated(where)
            source = where
        names = [] if held is None else [entry["name"] for entry in held["layers"]]
        # what no file can hold is computed beside it
        methods = [name for name in methods if find(name).kind == GRAPH] or ["gradcam"]
        if isinstance(layers, str):
            layers = [layers]
        if held is None or (layers is not None and not set(layers) <= set(names)):
            extra = [] if layers is None else [name for name in layers if name not in names]
            where, held = self._augment(source, [*names, *extra] or None, methods, preprocess if held is None else None)
        session = self._session(where)
        shapes = {i.name: i.shape for i in session.get_inputs()}
        manifest.require_fit(held, shapes.get(held["input"]["name"]), {o.name for o in session.get_outputs()})
        self._loaded = _Loaded(where, held, session)
        self.sessions = Sessions(where, self._open_part)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the model in use."""
        return self._loaded.manifest

    @property
    def source(self) -> str | Serialized:
        """The model in use, with its manifest: a path or its bytes; over 2 GiB its graph and weights."""
        return self._loaded.source

    def on(self, model: Source) -> dict[str, Any]:
        """What makes an engine of another model on the same terms: arguments by name."""
        return {
            "source": model,
            "providers": self._providers,
            "session_options": self._options,
            "allow_fallback": self._allow_fallback,
        }

    @property
    def readout(self) -> Readout:
        """The scores of the model and their meaning."""
        return Readout.from_manifest(self.manifest["scores"])

    @property
    def providers(self) -> list[str]:
        """The execution providers really in use, first choice first."""
        return list(self._loaded.session.get_providers())

    @property
    def batch_size(self) -> int | None:
        """Rows per run where the model fixes them, else None."""
        rows = self.manifest["input"]["shape"][0]
        return rows if isinstance(rows, int) else None

    def run(
        self, batch: np.ndarray, target: np.ndarray, layers: Sequence[str | None]
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Scores, and activations and gradients per layer."""
        loaded = self._having(layers, (), raw=True, classes=target)
        entries = [manifest.layer(loaded.manifest, name) for name in layers]
        names = [entry["activations"] for entry in entries] + [entry["gradients"] for entry in entries]
        got = self._compute(loaded, batch, target, [loaded.manifest["scores"]["name"], *names])
        half = len(entries)
        values = [got[name] for name in names]
        return got[loaded.manifest["scores"]["name"]], values[:half], values[half:]

    def maps(
        self, batch: np.ndarray, target: np.ndarray, layers: Sequence[str | None], method: str
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Scores `[N, K]`, and per layer the maps `[N, h, w]` after ReLU."""
        loaded = self._loaded
        names = [manifest.layer(loaded.manifest, name)["heatmaps"][method] for name in layers]
        got = self._compute(loaded, batch, target, [loaded.manifest["scores"]["name"], *names])
        return got[loaded.manifest["scores"]["name"]], [got[name] for name in names]

    def scores(self, batch: np.ndarray) -> np.ndarray:
        """Logits `[N, K]` alone: the head runs, nothing is differentiated."""
        head, feed = self.sessions.head(()), self.manifest["input"]["name"]
        rows = [runtime.run(head, [SCORES], {feed: part})[SCORES] for part in portions(batch, self.batch_size)]
        return joined(rows)[: len(batch)]

    def features(
        self,
        batch: np.ndarray,
        layers: Sequence[str],
        *,
        seed: int = 1234,
        progress: Progress | None = None,
        gradient: InputGradient | None = None,
    ) -> HeadRun:
        """What the head makes of a batch: from it, any class, method and layer of these cost the tail alone."""
        return run_head(
            self.sessions, batch, layers, size=self.batch_size, seed=seed, progress=progress, gradient=gradient
        )

    def holds(self, layers: Sequence[str], method: str, classes: np.ndarray) -> bool:
        """Whether the file itself computes these maps."""
        return not self._lacks(self.manifest, layers, (method,), False, classes)

    def check_batch(self, batch: Any) -> np.ndarray:
        """The batch as a contiguous array, if it is what the model takes.

        Raises:
            InputError: another rank, dimension or element type, or no rows.
        """
        array = np.asarray(batch)
        if (array.shape, array.dtype) == self._taken:
            return np.ascontiguousarray(array)
        entry = self.manifest["input"]
        if array.ndim != len(entry["shape"]) or any(
            isinstance(d, int) and axis and d != array.shape[axis] for axis, d in enumerate(entry["shape"])
        ):
            hint = "; add the batch axis: batch[None]" if array.ndim == len(entry["shape"]) - 1 else ""
            raise InputError(f"got a batch of shape {list(array.shape)}; the model takes {_asked(entry)}{hint}")
        if array.dtype.name != entry["dtype"]:
            raise InputError(
                f"got a batch of {array.dtype}; the model takes {_asked(entry)}: use batch.astype(np.{entry['dtype']})"
            )
        if 0 in array.shape:
            raise InputError(f"got an empty batch, shape {list(array.shape)}; the model takes {_asked(entry)}")
        self._taken = array.shape, array.dtype
        return np.ascontiguousarray(array)

    def _compute(
        self, loaded: _Loaded, batch: np.ndarray, target: np.ndarray, outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        held = loaded.manifest
        names = list(dict.fromkeys(outputs))
        found: list[dict[str, np.ndarray]] = []
        done = 0
        for part in portions(batch, self.batch_size):
            feeds = {held["input"]["name"]: part}
            if held["target"]["mode"] != "constant":
                wanted = target[done : done + len(part)]
                fill = np.full(len(part) - len(wanted), TOP1, np.int64)
                feeds[held["target"]["name"]] = np.concatenate([wanted, fill]) if len(fill) else wanted
            done += len(part)
            found.append(runtime.run(loaded.session, names, feeds))
        if len(found) == 1:
            return {name: value[: len(batch)] for name, value in found[0].items()}
        return {name: np.concatenate([part[name] for part in found])[: len(batch)] for name in names}

    def _having(
        self,
        layers: Sequence[str | None],
        methods: Sequence[str],
        *,
        raw: bool = False,
        classes: np.ndarray | None,
    ) -> _Loaded:
        """The loaded model, first extended in memory where it lacks a layer, method, raw output or free target.

        `classes` are those to be explained, None where the target has to be an input.
        """
        if self._lacks(self._loaded.manifest, layers, methods, raw, classes):
            with self._lock:
                if self._lacks(self._loaded.manifest, layers, methods, raw, classes):
                    self._extend(layers, methods)
                return self._loaded
        return self._loaded

    @staticmethod
    def _lacks(
        held: Manifest,
        layers: Sequence[str | None],
        methods: Sequence[str],
        raw: bool,
        classes: np.ndarray | None,
    ) -> bool:
        fixed = held["target"].get("class")
        if held["target"]["mode"] == "constant" and (classes is None or any(c not in (TOP1, fixed) for c in classes)):
            return True
        for name in layers:
            if name is not None and all(entry["name"] != name for entry in held["layers"]):
                return True
            entry = manifest.layer(held, name)
            if any(method not in entry["heatmaps"] for method in methods) or (raw and not entry["gradients"]):
                return True
        return False

    def _extend(self, layers: Sequence[str | None], methods: Sequence[str]) -> None:
        held = self.manifest
        names = [entry["name"] for entry in held["layers"]]
        # the manifest's last layer stays last: it is what layer=None means
        extra = [name for name in dict.fromkeys(layers) if name is not None and name not in names]
        present = list(dict.fromkeys(m for entry in held["layers"] for m in entry["heatmaps"]))
        try:
            where, extended = self._augment(self._loaded.source, [*extra, *names], [*present, *methods])
        except MethodError as error:
            raise MethodError(f"{error}; the file itself has {present}") from error
        except LayerError as error:
            raise LayerError(f"{error}; the file itself exposes {names}") from error
        self._loaded = _Loaded(where, extended, self._session(where))

    def _augment(
        self, source: Source, layers: Sequence[str] | None, methods: Sequence[str], preprocess: Any = None
    ) -> tuple[Serialized, Manifest]:
        from onnxcam.graph.load import serialize
        from onnxcam.network.explainable import augment

        model = augment(source, layers, tuple(dict.fromkeys(methods)), preprocess=preprocess)
        made = manifest.read(model)
        if made is None:
            raise ModelError("the augmented model carries no manifest; report this as a bug")
        return serialize(model), made

    def _session(self, source: str | Serialized) -> Any:
        return runtime.open_session(source, self._providers, self._options, allow_fallback=self._allow_fallback)

    def _open_part(self, model: Serialized, make_options: MakeOptions) -> Any:
        """Open a session of a part of the network."""
        options = self._options if self._options is not None else make_options(single_use=True)
        return runtime.open_session(model, self._providers, options, allow_fallback=self._allow_fallback)


def _asked(entry: dict[str, Any]) -> str:
    """The manifest's input, told."""
    return f"{entry['dtype']} {entry['shape']} ({entry['layout']})"


def open_source(source: Source) -> tuple[str | Serialized, Manifest | None]:
    """Where the model is (path or bytes) and its manifest, read without importing onnx where possible."""
    if isinstance(source, (str, os.PathLike)):
        where: str | Serialized = os.fspath(source)
        return where, manifest.parse(file.metadata(where).get(manifest.KEY))
    if isinstance(source, LargeModel):
        return source, manifest.parse(file.metadata(source).get(manifest.KEY))
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return data, manifest.parse(file.metadata(data).get(manifest.KEY))
    if hasattr(source, "SerializeToString") and hasattr(source, "graph"):
        from onnxcam.graph.load import serialize

        return serialize(source), manifest.read(source)
    raise ModelError(f"a {type(source).__name__} is not a model; pass a path, bytes or a ModelProto")


def _ungated(source: str | Serialized) -> tuple[Serialized, Manifest | None]:
    from onnxcam.graph.load import load, serialize
    from onnxcam.network.gate import ungate

    model = load(source)
    ungate(model)
    return serialize(model), manifest.read(model)
