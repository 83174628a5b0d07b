"""From a model in any training framework to an explainable ONNX file, checked against the framework's own gradients.

`export` does what every framework has in common; a `Framework` contributes the rest.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnx

from onnxcam.errors import LayerError, ModelError, OutputError, PreprocessError, listing
from onnxcam.exporters import parity
from onnxcam.exporters.source import Info
from onnxcam.graph.layers import Layer
from onnxcam.graph.load import save
from onnxcam.network import gate as gates
from onnxcam.network import manifest
from onnxcam.network.explainable import augment
from onnxcam.network.manifest import Manifest
from onnxcam.network.pixels import UNPREPARED, wrap
from onnxcam.targets.tasks import DETECT


@dataclass(frozen=True)
class Classifier:
    """A framework's model written as plain ONNX.

    Attributes:
        model: one input `input` and the model's own outputs, the batch dimension of all called N and free.
        scores: name of the output that holds the class scores; of a model of another task what the caller named.
        layers: the target layers, named as the framework names them; None to explain the graph's default layer.
        of_task: whether none of the outputs holds class scores: what they are is measured in the file.
    """

    model: onnx.ModelProto
    scores: str | None
    layers: list[Layer] | None
    of_task: bool = False

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return int(next(o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")))


class Framework(Protocol):
    """One model in its training framework. `export` calls each method at most once, in the order they stand here.

    Attributes:
        autograd: name of what the gradients are compared with, for the record: `torch autograd`.
    """

    autograd: str

    def inference(self) -> AbstractContextManager[None]:
        """Hold the model in inference mode, on the CPU and in float32; on leaving restore it, also after an error.

        All other methods are called inside.
        """
        ...

    def example(self, preprocess: Any) -> tuple[np.ndarray, Any]:
        """Return a batch of two rows, and the preprocessing to store: the given one, or what the model itself tells."""
        ...

    def capture(
        self,
        layers: Sequence[Any] | None,
        scores: str | None,
        opset: int | None,
        task: str | None,
        boxes_output: str | None = None,
    ) -> Classifier:
        """Write the model as plain ONNX in which the target layers' values are known.

        Arguments:
            layers: names or objects of the framework; None for the default layer.
            scores: name of the output with the class scores, None to search for it (`onnxcam.exporters.scores`).
            opset: None for the framework's own default.
            task: one of `onnxcam.targets.tasks.TASKS` where the caller says that the model is no classifier, else None.
            boxes_output: of a detector, as of `onnxcam.augment`.
        """
        ...

    def source(self, classifier: Classifier) -> dict[str, Any]:
        """Return the manifest's `source` entry: framework, name, opset, versions, sha256 of the weights."""
        ...

    def default_name(self, explainable: onnx.ModelProto, manifest: Manifest) -> str:
        """Return the framework's name for the default layer where the graph chose it (`Classifier.layers` is None).

        Arguments:
            explainable: the explainable model, whose one layer has the name of its graph value.
            manifest: its manifest.
        """
        ...

    def oracle(self, manifest: Manifest) -> parity.Oracle:
        """Return the framework's own scores, layer values and gradients as a function of a batch."""
        ...


class Loaded(NamedTuple):
    """A model that was named by a source, ready for `export`, and what the source tells about it.

    Attributes:
        framework: the model.
        info: its name, labels and preprocessing.
        shape: of a batch of pictures, `[N, C, H, W]`, where that is known before the export, else None.
    """

    framework: Framework
    info: Info
    shape: Sequence[int | str | None] | None = None


def export(
    framework: Framework,
    path: str | os.PathLike[str] | None,
    *,
    layers: Any = None,
    labels: Sequence[str] | None = None,
    preprocess: Any = None,
    methods: Sequence[str] | None = None,
    target: str | int = "optional",
    opset: int | None = None,
    verify: bool | int = True,
    scores: str | None = None,
    kind: str | None = None,
    task: str | None = None,
    boxes_output: str | None = None,
    outputs: str = "all",
    gate: str | None = None,
    portable: bool = False,
    pixels: bool = False,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
    origin: Mapping[str, Any] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> Manifest | onnx.ModelProto:
    """Export a framework's model as an explainable ONNX file.

    Arguments:
        framework: the model.
        path: where to write; None to get the model instead.
        layers: target layers as the framework names them, one or several; None for the default layer.
        labels, preprocess, methods, target, opset, verify, scores, kind, task, boxes_output, outputs, gate, portable,
            pixels, grid, prefix_tokens, origin: as of `onnxcam.exporters.pytorch.export`.
        on_warning: called with each doubt that was measured; None for Python's `warnings.warn`.

    Returns:
        the manifest; with `path=None` the `ModelProto`, which holds it.

    Raises:
        VerificationError: scores, activations or gradients differ from the framework's by more than the tolerance.
            Nothing is written then.
        OutputError: the file cannot be written.
        ModelError, LayerError, TargetError, LabelsError, SettingError, …: as of `onnxcam.augment`.
    """
    samples = parity.samples(verify)
    gates.parse(gate or "", labels)  # reported now, not after the export
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {Path(path).absolute().parent}; make it first")
    targets = _listed(layers)
    doubts: list[str] = []
    with framework.inference():
        batch, spec = framework.example(preprocess)
        if pixels and not spec:
            raise PreprocessError(UNPREPARED)  # reported now, not after the export
        task_named = DETECT if boxes_output is not None else task
        classifier = framework.capture(targets, scores, opset, task_named, boxes_output)
        source = {**framework.source(classifier), **(origin or {})}

        def explain(outputs: str, gate: str | None, layers: Sequence[Layer] | None, probe: bool) -> onnx.ModelProto:
            return augment(
                classifier.model,
                layers,
                methods,
                target,
                scores=classifier.scores,
                kind=kind,
                task=task,
                boxes_output=boxes_output,
                outputs=outputs,
                labels=labels,
                preprocess=spec,
                origin=source,
                gate=gate,
                portable=portable,
                pixels=False,
                grid=grid,
                prefix_tokens=prefix_tokens,
                probe=probe,
                on_warning=doubts.append,
            )

        # gradients are compared where they are always computed, and are outputs
        model = explain("all", None, classifier.layers, True)
        record = _manifest(model)
        if classifier.of_task and not record["scores"].get("task"):
            raise ModelError(
                f"the model's outputs {listing(record['source']['outputs'])} could be boxes or class scores; say which "
                "with task= or scores= (on the command line: --task, --scores NAME)"
            )
        # the levels of a pyramid keep the names of their values
        if classifier.layers is None and len(record["layers"]) == 1:
            record["layers"][0]["name"] = framework.default_name(model, record)
        if samples:
            oracle = framework.oracle(record)
            record["parity"] = parity.verify_on_samples(model, record, oracle, batch, samples, framework.autograd)
    if outputs != "all" or gate:
        model, verified = explain(outputs, gate, _corrected(classifier.layers, record), False), record
        record = _manifest(model)
        record["parity"], record["measured"] = verified["parity"], verified["measured"]
        for entry, other in zip(record["layers"], verified["layers"], strict=True):
            entry.update({key: other[key] for key in ("name", "covers", "place") if key in other})
    if pixels:
        wrap(model, record)
    manifest.write(model, record)
    for sentence in doubts:
        if on_warning is not None:
            on_warning(sentence)
        else:
            warnings.warn(sentence, stacklevel=3)
    if path is None:
        return model
    save(model, path)
    return record


def _listed(layers: Any) -> list[Any] | None:
    """The layers as a list; modules of a framework may be iterable, so only what is a collection by type counts."""
    if layers is None:
        return None
    several = isinstance(layers, (Sequence, Set, Iterator)) and not isinstance(layers, str)
    names = list(layers) if several else [layers]
    if not names:
        raise LayerError("`layers` is empty; name at least one target layer, or pass None for the default")
    return names


def _corrected(layers: Sequence[Layer] | None, record: Manifest) -> Sequence[Layer] | None:
    """The target layers with the layouts that were measured."""
    if layers is None:
        return None
    entries = zip(layers, record["layers"], strict=True)
    return [
        layer if entry["layout"] == layer.layout else replace(layer, layout=entry["layout"], shape=None, grid=None)
        for layer, entry in entries
    ]


def _manifest(model: onnx.ModelProto) -> Manifest:
    record = manifest.read(model)
    assert record is not None, "augment writes one"
    return record
