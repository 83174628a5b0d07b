"""Run an explainable file as any client runs it: batches in; scores, gradients and maps out."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxcam import runtime
from onnxcam.cam.methods import GRAPH, Method, find
from onnxcam.errors import InputError, ModelError, OnnxcamError, SerializationError, SettingError
from onnxcam.explain.features import Component, HeadRun, InputGradient, Progress, run_head, uneven_rows
from onnxcam.explain.sessions import MakeOptions, Sessions, inherit
from onnxcam.graph.large_model import Serialized
from onnxcam.graph.window import assemble_crops
from onnxcam.network import manifest as manifests
from onnxcam.network.agreement import Interface, require_agreement
from onnxcam.network.layout import Layout, crops_of, window_of
from onnxcam.network.manifest import Manifest
from onnxcam.network.names import SCORES
from onnxcam.network.opening import MANIFEST, Model, Source, lacking, open_model
from onnxcam.runtime.rows import joined, portions
from onnxcam.targets.classes import TOP1
from onnxcam.targets.readout import Readout

if TYPE_CHECKING:
    from onnxcam.graph.window import Window
    from onnxcam.network.calibration.record import Calibration


_open: weakref.WeakSet[FileSession] = weakref.WeakSet()


class Raw(NamedTuple):
    """Outputs of the model, see `Explainer.run`.

    Attributes:
        scores: `[N, K]`: logits, log p where no logit can be reached, or a quantity, as the manifest's kind says.
        activations: the target layer's output, in its own layout; a list where several layers were asked for.
        gradients: d scores[n, target[n]] / d activations, same shape.
        target: the class explained per row, int64 `[N]`.
    """

    scores: np.ndarray
    activations: Any
    gradients: Any
    target: np.ndarray


class _Loaded(NamedTuple):
    model: Model
    session: Any


class _Facts(NamedTuple):
    """What a manifest says, read once: next to a small model reading it for each batch counts."""

    manifest: Manifest
    readout: Readout
    batch_size: int | None
    layout: Layout  # of the picture
    crops: bool  # whether a layer has several rows for each picture

    @classmethod
    def of(cls, manifest: Manifest) -> _Facts:
        readout, layers = Readout.from_manifest(manifest["scores"]), manifest["layers"]
        crops = any(entry.get("crops") for entry in layers)
        rows: int | None = None
        task = readout.task
        if task is not None and (not task.columns or getattr(task, "one_picture", False)):
            rows = 1
        elif isinstance(manifest["input"]["shape"][0], int):
            rows = manifest["input"]["shape"][0]
        elif crops or (manifest.get("measured") or {}).get("rows") == manifests.COUPLED:
            rows = 1
        return cls(manifest, readout, rows, Layout.of(manifest["input"]), crops)


class FileSession:
    """An explainable file on one set of execution providers, and the sessions of its network.

    Thread-safe: sessions are opened under a lock and replaced whole; calls keep no state. A forked child opens sessions
    of its own: the threads of its parent's are not there.

    Attributes:
        origin: what was opened: an absolute path, or bytes, which were a `ModelProto` or not.
    """

    def __init__(
        self,
        source: Source,
        *,
        layers: Sequence[str] | None = None,
        methods: Sequence[str | Method] = ("gradcam",),
        preprocess: Any = None,
        input_size: Sequence[int] | None = None,
        scores: str | None = None,
        kind: str | None = None,
        task: str | None = None,
        boxes_output: str | None = None,
        providers: Sequence[runtime.Provider] | None = None,
        session_options: Any = None,
        allow_fallback: bool = False,
        probe: bool = True,
        rows: int | None = None,
    ) -> None:
        self._providers = providers
        self._options = session_options
        self._allow_fallback = allow_fallback
        self._lock = threading.RLock()
        # of the last batch that passed `check_batch`: next to a small model the checks count
        self._checked: tuple[tuple[int, ...], np.dtype[Any]] | None = None
        self._read: _Facts | None = None
        # other methods cannot be stored in a file and are computed next to it
        storable = [method.name for method in map(find, methods) if method.kind == GRAPH] or ["gradcam"]
        names = [layers] if isinstance(layers, str) else layers
        model = open_model(
            source,
            layers=names,
            methods=storable,
            preprocess=preprocess,
            input_size=input_size,
            probe=probe,
            scores=scores,
            kind=kind,
            task=task,
            boxes_output=boxes_output,
        )
        session = self._open_file(model.source)
        manifest = model.manifest
        require_agreement(manifest, Interface.of_session(session))
        if manifest["target"]["mode"] == "optional" and manifest["target"]["name"] not in _optional(session):
            # a tool such as onnxsim has made a constant of the default: the file explains each row's top-1
            target = {**manifest["target"], "mode": "constant", "class": TOP1}
            model = model._replace(manifest={**manifest, "target": target})
        self._loaded = _Loaded(model, session)
        self.sessions = Sessions(model.source, self._open_part)
        self.fix_rows(rows)
        origin = model.origin
        path = os.path.abspath(origin) if isinstance(origin, str) else origin  # noqa: PTH100
        self.origin = (path, hasattr(source, "SerializeToString"))
        _open.add(self)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the model in use."""
        return self._loaded.model.manifest

    @property
    def source(self) -> str | Serialized:
        """The model in use, with its manifest: a path or its bytes; over 2 GiB its graph and weights."""
        return self._loaded.model.source

    @property
    def plain(self) -> bool:
        """Whether the opened file is a plain classifier, augmented in memory."""
        return MANIFEST in self._loaded.model.added

    @property
    def bound_class(self) -> int | None:
        """The class that the opened file explains where none is named, None if it is bound to none."""
        return self._loaded.model.bound_class

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of the file, None where it has none."""
        if not self.manifest.get("calibration"):
            return None
        from onnxcam.network.calibration import record

        return record.of_manifest(self.manifest)

    def doubts(self, labels: Sequence[str] | None) -> list[str]:
        """Sentences about what the opened file says and could not be taken, or no longer holds.

        Arguments:
            labels: class names in use, without which what the file says of them matters.
        """
        model = self._loaded.model
        sentences = [*(() if labels else model.doubts), *model.left_out]
        entry = None if model.added else model.manifest.get("calibration")
        if entry and isinstance(model.origin, (str, bytes)):
            from onnxcam.graph import file
            from onnxcam.network.calibration import record

            changed = record.doubt(entry, file.graph_bytes(model.origin))
            sentences += [] if changed is None else [changed]
        return sentences

    def on(self, model: Source) -> dict[str, Any]:
        """The arguments, by name, for a session of another model on the same terms."""
        return {
            "source": model,
            "providers": self._providers,
            "session_options": self._options,
            "allow_fallback": self._allow_fallback,
        }

    @property
    def readout(self) -> Readout:
        """The scores of the model and their meaning."""
        return self._facts.readout

    @property
    def layout(self) -> Layout:
        """The axes of the picture."""
        return self._facts.layout

    @property
    def _facts(self) -> _Facts:
        facts, manifest = self._read, self.manifest
        if facts is None or facts.manifest is not manifest:
            facts = self._read = _Facts.of(manifest)
        return facts

    @property
    def providers(self) -> list[str]:
        """The execution providers really in use, first choice first."""
        return list(self._with_session().session.get_providers())

    @property
    def batch_size(self) -> int | None:
        """Rows per run where the model fixes them, 1 where rows affect each other or are crops, else None."""
        return self._facts.batch_size

    def fix_rows(self, rows: int | None) -> None:
        """Fix the rows in each run of methods that run the model many times; None to choose them by measurement.

        Raises:
            SettingError: not a number of rows, or not that of the model, where it fixes them.
        """
        if rows is not None:
            if isinstance(rows, bool) or not isinstance(rows, (int, np.integer)) or rows < 1:
                raise SettingError(f"rows={rows!r}; expected a whole number from 1, or None to choose by measurement")
            if self.batch_size not in (None, rows):
                raise SettingError(f"rows={rows}, and this model runs {self.batch_size} rows at a time; leave it out")
        self.sessions.rows = None if rows is None else int(rows)

    def run(
        self, batch: np.ndarray, target: np.ndarray, layers: Sequence[str | None]
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Compute the scores, and activations and gradients per layer."""
        loaded = self._with_raw(layers, target)
        entries = [manifests.layer(loaded.model.manifest, name) for name in layers]
        names = [entry["activations"] for entry in entries] + [entry["gradients"] for entry in entries]
        scores, outputs = self._compute(loaded, batch, target, names)
        values = [outputs[name] for name in names]
        return scores, values[: len(entries)], values[len(entries) :]

    def maps(
        self, batch: np.ndarray, target: np.ndarray, layers: Sequence[str | None], method: str
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Compute the scores `[N, K]`, and per layer the maps `[N, h, w]` after ReLU."""
        loaded = self._with_session()
        names = [manifests.layer(loaded.model.manifest, name)["heatmaps"][method] for name in layers]
        scores, outputs = self._compute(loaded, batch, target, names)
        return scores, [outputs[name] for name in names]

    def windows(self, layers: Sequence[str]) -> list[Window | None]:
        """Per layer the part of the model's input that its maps cover, None for all of it."""
        entries = {entry["name"]: entry for entry in self.manifest["layers"]}
        return [
            window_of(entries[name]) if name in entries else self.sessions.cut(name).layout.window for name in layers
        ]

    def scores(self, batch: np.ndarray) -> np.ndarray:
        """Compute the scores `[N, K]` alone: the head runs, nothing is differentiated."""
        head, feed = self.sessions.head(()), self.manifest["input"]["name"]
        try:
            rows = [runtime.run(head, [SCORES], {feed: part})[SCORES] for part in portions(batch, self.batch_size)]
        except (InputError, ModelError) as error:
            raise _refusal(error, self.manifest["input"], batch.shape) from error
        return joined(rows)[: len(batch)]

    def features(
        self,
        batch: np.ndarray,
        layers: Sequence[str],
        *,
        seed: int = 1234,
        progress: Progress | None = None,
        gradient: InputGradient | None = None,
        component: Component | None = None,
    ) -> HeadRun:
        """Run the head over a batch: any class, method and layer of these then costs the tail alone."""
        try:
            return run_head(
                self.sessions, batch, layers, size=self.batch_size, seed=seed, progress=progress, gradient=gradient,
                component=component,
            )  # fmt: skip
        except (InputError, ModelError) as error:
            raise _refusal(error, self.manifest["input"], batch.shape) from error

    def holds(self, layers: Sequence[str], method: str, classes: np.ndarray) -> bool:
        """Whether the file itself computes these maps."""
        return not lacking(self.manifest, layers, (method,), classes=classes)

    def check_batch(self, batch: Any) -> np.ndarray:
        """Return the batch as a contiguous array, if the model takes it.

        Raises:
            InputError: another rank, dimension or element type, or no rows.
        """
        array = np.asarray(batch)
        if (array.shape, array.dtype) == self._checked:
            return np.ascontiguousarray(array)
        entry = self.manifest["input"]
        if array.ndim != len(entry["shape"]) or any(
            isinstance(d, int) and axis and d != array.shape[axis] for axis, d in enumerate(entry["shape"])
        ):
            hint = "; add the batch axis: batch[None]" if array.ndim == len(entry["shape"]) - 1 else ""
            raise InputError(f"got a batch of shape {list(array.shape)}; the model takes {_described(entry)}{hint}")
        if array.dtype.name != entry["dtype"]:
            raise InputError(
                f"got a batch of {array.dtype}; the model takes {_described(entry)}: "
                f"use batch.astype(np.{entry['dtype']})"
            )
        if 0 in array.shape:
            raise InputError(f"got an empty batch, shape {list(array.shape)}; the model takes {_described(entry)}")
        self._checked = array.shape, array.dtype
        return np.ascontiguousarray(array)

    def _compute(
        self, loaded: _Loaded, batch: np.ndarray, target: np.ndarray, outputs: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Run the file over a batch: the scores, and outputs by name."""
        manifest = loaded.model.manifest
        scores = manifest["scores"]["name"]
        names = list(dict.fromkeys([scores, *outputs]))
        runs: list[dict[str, np.ndarray]] = []
        done = 0
        for part in portions(batch, self.batch_size):
            feeds = {manifest["input"]["name"]: part}
            if manifest["target"]["mode"] != "constant":
                classes = target[done : done + len(part)]
                if len(classes) < len(part):
                    classes = np.concatenate([classes, np.full(len(part) - len(classes), TOP1, np.int64)])
                feeds[manifest["target"]["name"]] = classes
            done += len(part)
            run = _run_by_class if manifest["target"].get("rows") == manifests.SHARED else _run
            try:
                runs.append(run(loaded, names, feeds))
            except (InputError, ModelError) as error:
                raise _refusal(error, manifest["input"], batch.shape) from error
        for entry in manifest["layers"] if self._facts.crops else ():
            parts = crops_of(entry)
            size = self.layout.size(batch.shape)
            for name in entry["heatmaps"].values() if parts else ():
                for outputs_of in runs:
                    if name in outputs_of and len(outputs_of[name]) == len(parts or ()):
                        outputs_of[name] = assemble_crops(outputs_of[name], parts or (), size)
        if len(batch) > 1:  # of one picture the first row is drawn, with the warning that was measured
            for entry in manifest["layers"]:
                for name in (entry["activations"], *entry["heatmaps"].values()):
                    if name in names and len(runs[0][name]) != len(runs[0][scores]):
                        raise uneven_rows(entry["name"], len(runs[0][name]), len(runs[0][scores]))
        values = {name: joined([run[name] for run in runs])[: len(batch)] for name in names}
        return values[scores], values

    def _with_raw(self, layers: Sequence[str | None], classes: np.ndarray) -> _Loaded:
        """The loaded file, extended in memory where it lacks a layer, its raw outputs, or one of the classes."""
        if lacking(self.manifest, layers, raw=True, classes=classes):
            with self._lock:
                if lacking(self.manifest, layers, raw=True, classes=classes):
                    model = self._loaded.model.extended(layers)
                    self._loaded = _Loaded(model, self._open_file(model.source))
                return self._loaded
        return self._with_session()

    def _with_session(self) -> _Loaded:
        """The loaded file, with a session also in a forked child."""
        loaded = self._loaded
        if loaded.session is None:
            with self._lock:
                loaded = self._loaded
                if loaded.session is None:
                    loaded = self._loaded = loaded._replace(session=self._open_file(loaded.model.source))
        return loaded

    def forked(self) -> None:
        """Leave the sessions to the parent, in a forked child."""
        self._lock = threading.RLock()
        inherit(self._loaded.session)
        self._loaded = self._loaded._replace(session=None)
        self.sessions.forked()

    def _open_file(self, source: str | Serialized) -> Any:
        return runtime.open_session(source, self._providers, self._options, allow_fallback=self._allow_fallback)

    def _open_part(self, model: Serialized, make_options: MakeOptions) -> Any:
        """Open a session of a part of the network."""
        options = self._options if self._options is not None else make_options(single_use=True)
        return runtime.open_session(model, self._providers, options, allow_fallback=self._allow_fallback)


def as_made(kind: type, origin: tuple[Any, bool], arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what pickle stores of an object that opens a file: what it was made of.

    Raises:
        SerializationError: that has parts of this process.
    """
    if arguments.get("session_options") is not None:
        raise SerializationError(
            f"{kind.__name__} with session_options cannot be pickled, because onnxruntime's SessionOptions cannot; "
            "leave them out, or make it where it is used"
        )
    return _make, (kind, origin, dict(arguments))


def _make(kind: Callable[..., Any], origin: tuple[Any, bool], arguments: dict[str, Any]) -> Any:
    source, proto = origin
    if proto:
        from onnxcam.graph.load import load

        source = load(source)
    return kind(source, **arguments)


def _reopen() -> None:
    for file in list(_open):
        file.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reopen)


def _run(loaded: _Loaded, names: Sequence[str], feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return runtime.run(loaded.session, names, feeds)


def _run_by_class(loaded: _Loaded, names: Sequence[str], feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a file that takes one class for all rows once for each class, and take every row from its class's run."""
    target = loaded.model.manifest["target"]["name"]
    classes = feeds[target]
    values: dict[str, np.ndarray] = {}
    for index in np.unique(classes):
        outputs = runtime.run(loaded.session, names, {**feeds, target: np.array([index], np.int64)})
        rows = classes == index
        for name, output in outputs.items():
            values.setdefault(name, output)[rows] = output[rows]
    return values


def _optional(session: Any) -> set[str]:
    """The inputs that a session takes and does not need."""
    return {value.name for value in session.get_overridable_initializers()}


def _described(entry: dict[str, Any]) -> str:
    """The manifest's input in words."""
    return f"{entry['dtype']} {entry['shape']} ({entry['layout']})"


def _refusal(error: OnnxcamError, entry: dict[str, Any], shape: tuple[int, ...]) -> OnnxcamError:
    from onnxcam.network.open_size import refusal

    return refusal(error, entry, shape)
