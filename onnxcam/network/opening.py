"""Open a model, and add in memory what its file lacks. onnx is imported only where something is added."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from onnxcam.errors import LayerError, MethodError, ModelError
from onnxcam.graph import file
from onnxcam.graph.large_model import LargeModel, Serialized
from onnxcam.network import manifest as manifests
from onnxcam.network.layout import Layout
from onnxcam.network.manifest import Manifest

if TYPE_CHECKING:
    import onnx

Source = Any  # str | os.PathLike[str] | bytes | onnx.ModelProto

# what a file can lack
MANIFEST, LAYERS, METHODS, GRADIENTS, TARGET = "manifest", "layers", "methods", "gradients", "target"
READOUT = "readout"


class Model(NamedTuple):
    """An explainable model.

    Attributes:
        source: its path or its bytes; over 2 GiB its graph and weights.
        manifest: of this model.
        bound_class: the class that the opened file explains where none is named, also once it was extended.
        added: what the opened file lacked and has been added in memory: `MANIFEST`, `LAYERS`, `METHODS`, `GRADIENTS`,
            `TARGET` or `READOUT`.
        doubts: sentences about what the opened file says and could not be taken.
        left_out: sentences about a calibration of the opened file that an augmented model lacks.
        origin: path or bytes of what was opened, before anything was added.
    """

    source: str | Serialized
    manifest: Manifest
    bound_class: int | None = None
    added: frozenset[str] = frozenset()
    doubts: tuple[str, ...] = ()
    origin: str | Serialized | None = None
    left_out: tuple[str, ...] = ()

    @property
    def layers(self) -> list[str]:
        """Names of the layers that it exposes."""
        return [entry["name"] for entry in self.manifest["layers"]]

    def extended(self, layers: Iterable[str | None]) -> Model:
        """Augment the model again with these layers, with gradients, and with a free target.

        Raises:
            LayerError: no such layer.
        """
        # the manifest's last layer stays last: it is the one that is explained where none is named
        lacking_layers = [name for name in dict.fromkeys(layers) if name is not None and name not in self.layers]
        present = _methods(self.manifest)
        try:
            where, extended, left_out = _augment(self.source, [*lacking_layers, *self.layers], present, probe=False)
        except MethodError as error:
            raise MethodError(f"{error}; the file itself has {present}") from error
        except LayerError as error:
            raise LayerError(f"{error}; the file itself exposes {self.layers}") from error
        return self._replace(source=where, manifest=extended, left_out=(*self.left_out, *left_out))


def open_model(
    source: Source,
    *,
    layers: Sequence[str | None] | None = None,
    methods: Sequence[str] = (),
    require_methods: bool = False,
    raw: bool = False,
    classes: Sequence[int] | None = (),
    gated: bool = False,
    preprocess: Any = None,
    input_size: Sequence[int] | None = None,
    probe: bool = True,
    scores: str | None = None,
    kind: str | None = None,
    task: str | None = None,
    boxes_output: str | None = None,
) -> Model:
    """Open a model, and augment it in memory where its file lacks something that is required.

    Arguments:
        source: an explainable model or any classifier: path, bytes or `ModelProto`.
        layers: target layers, the manifest's last one for a None among them; None for those of the file, or for the
            default layer of a plain classifier.
        methods: graph methods whose maps a model that is augmented computes along with those of the file.
        require_methods: whether lacking one of them is a reason to augment.
        raw: whether activations and gradients have to be outputs.
        classes: those to be explained, -1 for each row's top-1; None if the target has to be an input.
        gated: whether to leave a gate as it is; the maps are computed for every batch otherwise.
        preprocess: for the manifest of a plain classifier.
        input_size: height and width of the picture where the file leaves them open, which become fixed.
        probe: whether facts about a plain classifier are measured, see `onnxcam.probe`.
        scores, kind, task, boxes_output: as of `onnxcam.augment`; an explainable model that was made for others is
            augmented anew.

    Raises:
        ModelError: not a usable classifier, or not of this `input_size` or `kind`.
        LayerError, MethodError: no such layer or method.
    """
    where, manifest, properties = _read_source(source)
    origin = where
    if manifest is not None and manifest.get("pixels"):  # tensors are prepared exactly as in training, and in batches
        where, manifest = _without_pixels(where)
        source = where
    if manifest is not None and manifest.get("gate") and not gated:
        where, manifest = _without_gate(where)
        source = where
    if manifest is None:
        names = None if layers is None else [name for name in layers if name is not None] or None
        where, manifest, _ = _augment(
            source, names, methods or ("gradcam",), preprocess, input_size, probe, scores, kind, task, boxes_output
        )
        return _labelled(Model(where, manifest, added=frozenset({MANIFEST}), origin=origin), properties)
    bound_class = manifest["target"].get("class")
    missing = lacking(manifest, layers, methods if require_methods else (), raw=raw, classes=classes)
    if _reads_other(manifest, scores, kind, task, boxes_output):
        missing |= {READOUT}
    opened_size = input_size is not None and _is_open(manifest, input_size)
    if not missing and not opened_size:
        return _labelled(Model(where, manifest, bound_class, origin=origin), properties)
    present = [entry["name"] for entry in manifest["layers"]]
    further = [name for name in layers or () if name is not None and name not in present]
    size = input_size if opened_size else None
    where, manifest, left_out = _augment(
        source,
        [*present, *further],
        [*_methods(manifest), *methods],
        preprocess,
        size,
        READOUT in missing,
        scores,
        kind,
        task,
        boxes_output,
    )
    return _labelled(Model(where, manifest, bound_class, missing, origin=origin, left_out=left_out), properties)


def _reads_other(
    manifest: Manifest, scores: str | None, kind: str | None, task: str | None, boxes_output: str | None
) -> bool:
    """Whether an explainable model was made for other scores, or another kind or task, than these."""
    entry, source = manifest["scores"], manifest.get("source") or {}
    names = (entry["name"], entry.get("probabilities"), source.get("scores"))
    if task is not None and task != (entry.get("task") or {}).get("task"):
        return True
    if boxes_output is not None and boxes_output not in source.get("values", ()):
        return True
    if entry.get("task") is not None and scores in source.get("values", ()):
        return False
    return (scores is not None and scores not in names) or (kind is not None and kind != entry["kind"])


def _labelled(model: Model, properties: Mapping[str, str]) -> Model:
    """The model with the class names of its metadata, where its manifest has none."""
    if model.manifest.get("labels") or properties.keys() <= {manifests.KEY}:
        return model
    from onnxcam.network import metadata_labels

    if model.manifest["scores"].get("task") is not None:  # augmenting has read them, where they fit
        return model
    names = metadata_labels.find(properties, model.manifest["scores"]["classes"])
    if names.labels is not None:
        model.manifest["labels"] = names.labels
    return model if names.doubt is None else model._replace(doubts=(names.doubt,))


def lacking(
    manifest: Manifest,
    layers: Sequence[str | None] | None = None,
    methods: Sequence[str] = (),
    *,
    raw: bool = False,
    classes: Iterable[int] | None = (),
) -> frozenset[str]:
    """Compare a file with what is required of it, as in `open_model`: which of `LAYERS`, `METHODS`, … it lacks."""
    missing = set()
    target = manifest["target"]
    # not even the top-1 (-1): a file bound to a class explains that one always
    if target["mode"] == "constant" and (classes is None or any(index != target.get("class") for index in classes)):
        missing.add(TARGET)
    entries = {entry["name"]: entry for entry in manifest["layers"]}
    for name in entries if layers is None else layers:
        if name is not None and name not in entries:
            missing.add(LAYERS)
            continue
        entry = manifests.layer(manifest, name)
        if any(method not in entry["heatmaps"] for method in methods):
            missing.add(METHODS)
        if raw and not entry["gradients"]:
            missing.add(GRADIENTS)
    return frozenset(missing)


def read_source(source: Source) -> tuple[str | Serialized, Manifest | None]:
    """Read where a model is (path or bytes) and its manifest; onnx is imported for a `ModelProto` only.

    Raises:
        ModelError: not a model, or its manifest is damaged.
    """
    where, manifest, _ = _read_source(source)
    return where, manifest


def _read_source(source: Source) -> tuple[str | Serialized, Manifest | None, Mapping[str, str]]:
    """Where a model is, its manifest and all of its metadata."""
    if isinstance(source, (str, os.PathLike)):
        where: str | Serialized = os.fspath(source)
    elif isinstance(source, LargeModel):
        where = source
    elif isinstance(source, (bytes, bytearray, memoryview)):
        where = bytes(source)
    elif hasattr(source, "SerializeToString") and hasattr(source, "graph"):
        from onnxcam.graph.load import serialize

        return serialize(source), manifests.read(source), {p.key: p.value for p in source.metadata_props}
    else:
        raise ModelError(f"a {type(source).__name__} is not a model; pass a path, bytes or a ModelProto")
    properties = file.metadata(where)
    return where, manifests.parse(properties.get(manifests.KEY)), properties


def _methods(manifest: Manifest) -> list[str]:
    """The methods whose maps a file computes at any of its layers."""
    return list(dict.fromkeys(method for entry in manifest["layers"] for method in entry["heatmaps"]))


def _is_open(manifest: Manifest, size: Sequence[int]) -> bool:
    """Whether the picture's size is left open, so that this one can be set.

    Raises:
        ModelError: it is fixed, and another one.
    """
    entry = manifest["input"]
    declared = Layout.of(entry).size(entry["shape"])
    if all(isinstance(side, int) for side in declared):
        if tuple(declared) != tuple(size):
            raise ModelError(
                f"the model takes {' x '.join(map(str, declared))} pictures and was asked for "
                f"{' x '.join(map(str, size))}; leave the size out"
            )
        return False
    return True


def _augment(
    source: Source,
    layers: Sequence[str] | None,
    methods: Sequence[str],
    preprocess: Any = None,
    input_size: Sequence[int] | None = None,
    probe: bool = True,
    scores: str | None = None,
    kind: str | None = None,
    task: str | None = None,
    boxes_output: str | None = None,
) -> tuple[Serialized, Manifest, tuple[str, ...]]:
    """The augmented model, its manifest, and why a calibration of the source is not in it.

    Other doubts are said by who reads the manifest.
    """
    from onnxcam.graph.load import serialize
    from onnxcam.network.calibration.record import LEFT_OUT
    from onnxcam.network.explainable import augment
    from onnxcam.network.target_input import OpenSizeError

    doubts: list[str] = []

    size = None if input_size is None else (int(input_size[0]), int(input_size[1]))

    def augmented(target: str) -> onnx.ModelProto:
        return augment(
            source,
            layers,
            tuple(dict.fromkeys(methods)),
            preprocess=preprocess,
            input_size=size,
            scores=scores,
            kind=kind,
            task=task,
            boxes_output=boxes_output,
            probe=probe,
            on_warning=doubts.append,
            target=target,
        )

    try:
        model = augmented("optional")
    except OpenSizeError:  # regions are resolved picture by picture
        model = augmented(manifests.NONE)
    manifest = manifests.read(model)
    if manifest is None:
        raise ModelError("the augmented model carries no manifest; report this as a bug")
    return serialize(model), manifest, tuple(text for text in doubts if text.startswith(LEFT_OUT))


def _without_pixels(source: str | Serialized) -> tuple[Serialized, Manifest | None]:
    from onnxcam.graph.load import load, serialize
    from onnxcam.network.pixels import unwrap

    model = load(source)
    unwrap(model)
    return serialize(model), manifests.read(model)


def _without_gate(source: str | Serialized) -> tuple[Serialized, Manifest | None]:
    from onnxcam.graph.load import load, serialize
    from onnxcam.network.gate import ungate

    model = load(source)
    ungate(model)
    return serialize(model), manifests.read(model)
