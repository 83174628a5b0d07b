"""Runs an explainable model: batches in, scores and gradients and maps out, on sessions made when first needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxcam import runtime
from onnxcam.cam import targets
from onnxcam.errors import InputError, LayerError, MethodError, ModelError, TargetError
from onnxcam.graph import file, manifest
from onnxcam.graph.manifest import Manifest

if TYPE_CHECKING:
    from onnxcam.graph.split import Tail

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
    source: str | bytes
    held: Manifest
    session: Any


@dataclass(frozen=True)
class _Split:
    """Head and tails of one loaded model; a tail's session is made when its layer is first asked for."""

    loaded: _Loaded
    head: Any
    tails: dict[str, Tail]
    sessions: dict[str, Any] = field(default_factory=dict)


class Engine:
    """One model on one set of execution providers.

    Thread-safe: sessions are created under a lock and replaced whole; calls keep nothing.
    """

    def __init__(
        self,
        source: Source,
        *,
        layers: Sequence[str] | None = None,
        methods: Sequence[str] = ("gradcam",),
        providers: Sequence[runtime.Provider] | None = None,
        session_options: Any = None,
        allow_fallback: bool = False,
    ) -> None:
        self._providers = providers
        self._options = session_options
        self._allow_fallback = allow_fallback
        self._lock = threading.RLock()
        self._split: _Split | None = None
        where, held = open_source(source)
        if held is not None and held.get("gate"):  # who asks for an explanation gets one
            where, held = _ungated(where)
            source = where
        names = [] if held is None else [entry["name"] for entry in held["layers"]]
        if isinstance(layers, str):
            layers = [layers]
        if held is None or (layers is not None and not set(layers) <= set(names)):
            extra = [] if layers is None else [name for name in layers if name not in names]
            where, held = self._augment(source, [*names, *extra] or None, methods, held)
        self._loaded = _Loaded(where, held, self._session(where))

    @property
    def held(self) -> Manifest:
        """The manifest of the model in use."""
        return self._loaded.held

    @property
    def providers(self) -> list[str]:
        """The execution providers really in use, first choice first."""
        return list(self._loaded.session.get_providers())

    @property
    def batch_size(self) -> int | None:
        """Rows per run where the model fixes them, else None."""
        rows = self.held["input"]["shape"][0]
        return rows if isinstance(rows, int) else None

    def run(
        self, batch: np.ndarray, target: np.ndarray, layers: Sequence[str | None]
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Scores, and activations and gradients per layer."""
        loaded = self._having(layers, (), raw=True, classes=target)
        entries = [manifest.layer(loaded.held, name) for name in layers]
        names = [entry["activations"] for entry in entries] + [entry["gradients"] for entry in entries]
        got = self._compute(loaded, batch, target, [loaded.held["scores"]["name"], *names])
        half = len(entries)
        values = [got[name] for name in names]
        return got[loaded.held["scores"]["name"]], values[:half], values[half:]

    def maps(
        self, batch: np.ndarray, target: np.ndarray, layers: Sequence[str | None], method: str
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Scores `[N, K]`, and per layer the maps `[N, h, w]` after ReLU."""
        loaded = self._having(layers, (method,), classes=target)
        names = [manifest.layer(loaded.held, name)["heatmaps"][method] for name in layers]
        got = self._compute(loaded, batch, target, [loaded.held["scores"]["name"], *names])
        return got[loaded.held["scores"]["name"]], [got[name] for name in names]

    def scores(self, batch: np.ndarray) -> np.ndarray:
        """Logits `[N, K]` alone: the head runs, nothing is differentiated."""
        loaded = self._loaded
        head, name, feed = self._splitted(loaded).head, loaded.held["scores"]["name"], loaded.held["input"]["name"]
        rows = [runtime.run(head, [name], {feed: part})[name] for part in self._parts(batch)]
        return np.concatenate(rows)[: len(batch)]

    def top_maps(
        self, batch: np.ndarray, count: int, layers: Sequence[str | None], method: str
    ) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """The `count` best classes of each row and their maps: the head runs once, only the tail per class.

        Returns:
            scores `[N, K]`, classes int64 `[N, count]`, and per layer maps `[N, count, h, w]`.
        """
        loaded = self._having(layers, (method,), classes=None)
        held = loaded.held
        split = self._splitted(loaded)
        entries = [manifest.layer(held, name) for name in layers]
        cut = list(dict.fromkeys(value for e in entries for value in split.tails[e["name"]].cut))
        score_name = held["scores"]["name"]
        found_scores, found_classes = [], []
        found_maps: list[list[np.ndarray]] = [[] for _ in entries]
        for part in self._parts(batch):
            got = runtime.run(split.head, list(dict.fromkeys([score_name, *cut])), {held["input"]["name"]: part})
            best = best_classes(got[score_name], held["scores"]["kind"], count)
            found_scores.append(got[score_name])
            found_classes.append(best)
            for k, entry in enumerate(entries):
                tail, session = split.tails[entry["name"]], self._tail_session(split, entry["name"])
                feeds = {name: got[name] for name in tail.cut}
                found_maps[k].append(_explain_classes(session, tail, feeds, entry["heatmaps"][method], best, held))
        n = len(batch)
        return (
            np.concatenate(found_scores)[:n],
            np.concatenate(found_classes)[:n],
            [np.concatenate(parts)[:n] for parts in found_maps],
        )

    def check_batch(self, batch: Any) -> np.ndarray:
        """The batch as a contiguous array, if it is what the model takes.

        Raises:
            InputError: another rank, dimension or element type, or no rows.
        """
        entry = self.held["input"]
        array = np.asarray(batch)
        wanted = f"{entry['dtype']} {entry['shape']} ({entry['layout']})"
        if array.ndim != len(entry["shape"]) or any(
            isinstance(d, int) and axis and d != array.shape[axis] for axis, d in enumerate(entry["shape"])
        ):
            hint = "; add the batch axis: batch[None]" if array.ndim == len(entry["shape"]) - 1 else ""
            raise InputError(f"got a batch of shape {list(array.shape)}; the model takes {wanted}{hint}")
        if str(array.dtype) != entry["dtype"]:
            raise InputError(
                f"got a batch of {array.dtype}; the model takes {wanted}: use batch.astype(np.{entry['dtype']})"
            )
        if 0 in array.shape:
            raise InputError(f"got an empty batch, shape {list(array.shape)}; the model takes {wanted}")
        return np.ascontiguousarray(array)

    def _parts(self, batch: np.ndarray) -> Iterable[np.ndarray]:
        """The batch in runs of the model's own size, the last one filled up by repeating its final row."""
        size = self.batch_size
        if size is None or size == len(batch):
            return [batch]
        parts = [batch[i : i + size] for i in range(0, len(batch), size)]
        short = size - len(parts[-1])
        parts[-1] = np.concatenate([parts[-1], np.repeat(parts[-1][-1:], short, axis=0)]) if short else parts[-1]
        return parts

    def _compute(
        self, loaded: _Loaded, batch: np.ndarray, target: np.ndarray, outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        held = loaded.held
        names = list(dict.fromkeys(outputs))
        found: list[dict[str, np.ndarray]] = []
        done = 0
        for part in self._parts(batch):
            feeds = {held["input"]["name"]: part}
            if held["target"]["mode"] != "constant":
                wanted = target[done : done + len(part)]
                fill = np.full(len(part) - len(wanted), targets.TOP1, np.int64)
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
        if self._lacks(self._loaded.held, layers, methods, raw, classes):
            with self._lock:
                if self._lacks(self._loaded.held, layers, methods, raw, classes):
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
        if held["target"]["mode"] == "constant" and (
            classes is None or any(c not in (targets.TOP1, fixed) for c in classes)
        ):
            return True
        for name in layers:
            if name is not None and all(entry["name"] != name for entry in held["layers"]):
                return True
            entry = manifest.layer(held, name)
            if any(method not in entry["heatmaps"] for method in methods) or (raw and not entry["gradients"]):
                return True
        return False

    def _extend(self, layers: Sequence[str | None], methods: Sequence[str]) -> None:
        held = self.held
        names = [entry["name"] for entry in held["layers"]]
        # the manifest's last layer stays last: it is what layer=None means
        extra = [name for name in dict.fromkeys(layers) if name is not None and name not in names]
        present = list(dict.fromkeys(m for entry in held["layers"] for m in entry["heatmaps"]))
        try:
            where, extended = self._augment(self._loaded.source, [*extra, *names], [*present, *methods], held)
        except MethodError as error:
            raise MethodError(f"{error}; the file itself has {present}") from error
        except LayerError as error:
            raise LayerError(f"{error}; the file itself exposes {names}") from error
        self._loaded = _Loaded(where, extended, self._session(where))

    def _augment(
        self, source: Source, layers: Sequence[str] | None, methods: Sequence[str], held: Manifest | None
    ) -> tuple[bytes, Manifest]:
        from onnxcam.augmentation import augment
        from onnxcam.graph.load import serialize

        model = augment(source, layers, tuple(dict.fromkeys(methods)))
        made = manifest.read(model)
        if made is None:
            raise ModelError("the augmented model carries no manifest; report this as a bug")
        return serialize(model), made

    def _session(self, source: str | bytes) -> Any:
        return runtime.open_session(source, self._providers, self._options, allow_fallback=self._allow_fallback)

    def _splitted(self, loaded: _Loaded) -> _Split:
        # another thread may extend the model meanwhile, and its outputs then have other names: a split is of one model
        found = self._split
        if found is None or found.loaded is not loaded:
            with self._lock:
                found = self._split
                if found is None or found.loaded is not loaded:
                    from onnxcam.graph.load import serialize
                    from onnxcam.graph.split import split

                    head, tails = split(loaded.source)
                    found = self._split = _Split(loaded, self._session(serialize(head)), tails)
        return found

    def _tail_session(self, split: _Split, layer: str) -> Any:
        if layer not in split.sessions:
            with self._lock:
                if layer not in split.sessions:
                    from onnxcam.graph.load import serialize

                    split.sessions[layer] = self._session(serialize(split.tails[layer].model))
        return split.sessions[layer]


def best_classes(scores: np.ndarray, kind: str, count: int) -> np.ndarray:
    """The `count` best classes per row, best first (the lower index on ties), int64 `[N, count]`.

    Raises:
        TargetError: `count` is not between 1 and the number of classes.
    """
    ranked = np.concatenate([-scores, scores], axis=1) if kind == "binary_logit" else scores
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or not 1 <= count <= ranked.shape[1]:
        raise TargetError(f"top={count!r}; expected 1 to {ranked.shape[1]}, the number of classes")
    return np.argsort(-ranked, axis=1, kind="stable")[:, :count].astype(np.int64)


def _explain_classes(
    session: Any, tail: Tail, feeds: dict[str, np.ndarray], output: str, classes: np.ndarray, held: Manifest
) -> np.ndarray:
    """Maps `[N, count, h, w]` for several classes per row, in one tail run where rows can be repeated."""
    rows, count = classes.shape
    name = held["target"]["name"]
    if tail.rowwise:
        repeated = {key: np.repeat(value, count, axis=0) for key, value in feeds.items()}
        maps = runtime.run(session, [output], repeated | {name: classes.reshape(-1)})[output]
        return maps.reshape(rows, count, *maps.shape[1:])
    single = [
        runtime.run(session, [output], feeds | {name: np.ascontiguousarray(classes[:, k])})[output]
        for k in range(count)
    ]
    return np.stack(single, axis=1)


def open_source(source: Source) -> tuple[str | bytes, Manifest | None]:
    """Where the model is (path or bytes) and its manifest, read without importing onnx where possible."""
    if isinstance(source, (str, os.PathLike)):
        where: str | bytes = os.fspath(source)
        return where, manifest.parse(file.metadata(where).get(manifest.KEY))
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return data, manifest.parse(file.metadata(data).get(manifest.KEY))
    if hasattr(source, "SerializeToString") and hasattr(source, "graph"):
        from onnxcam.graph.load import serialize

        return serialize(source), manifest.read(source)
    raise ModelError(f"a {type(source).__name__} is not a model; pass a path, bytes or a ModelProto")


def _ungated(source: str | bytes) -> tuple[bytes, Manifest | None]:
    from onnxcam.graph.branch import ungate
    from onnxcam.graph.load import load, serialize

    model = load(source)
    ungate(model)
    return serialize(model), manifest.read(model)
