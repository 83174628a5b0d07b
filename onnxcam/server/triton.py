"""A model repository of the Triton Inference Server: an explainable file, its `config.pbtxt` and its class names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from onnxcam import files
from onnxcam.errors import InputError, ModelError, OutputError
from onnxcam.graph import large_model
from onnxcam.network import manifest as manifests
from onnxcam.network.manifest import Manifest

if TYPE_CHECKING:
    import onnx

MODEL_FILE, CONFIG_FILE, LABELS_FILE = "model.onnx", "config.pbtxt", "labels.txt"
MAX_BATCH = 8
# names of Triton's `DataType` (model_config.proto) by ONNX's `TensorProto.DataType`
_TYPES = {
    1: "TYPE_FP32",
    2: "TYPE_UINT8",
    3: "TYPE_INT8",
    4: "TYPE_UINT16",
    5: "TYPE_INT16",
    6: "TYPE_INT32",
    7: "TYPE_INT64",
    8: "TYPE_STRING",
    9: "TYPE_BOOL",
    10: "TYPE_FP16",
    11: "TYPE_FP64",
    12: "TYPE_UINT32",
    13: "TYPE_UINT64",
    16: "TYPE_BF16",
}


class Tensor(NamedTuple):
    """An input or output in `config.pbtxt`.

    Attributes:
        dims: as a client sends or receives it, without the batch axis where Triton batches; -1 for any size.
        reshape: as the model takes or gives it, where that differs from `dims`.
        labels: whether the file of class names belongs to it.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    labels: bool = False


@dataclass(frozen=True)
class Repository:
    """What goes into a model repository.

    Attributes:
        name: of the model: the folder's, and what clients call it.
        model: with `target` as an ordinary input, or bound to one class.
        manifest: of it.
        max_batch: rows that Triton puts into one run, 0 where it may not batch.
        inputs, outputs: in the order of the file.
        notes: sentences about what differs from what was expected.
    """

    name: str
    model: onnx.ModelProto
    manifest: Manifest
    max_batch: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, source: Any, name: str, max_batch: int = MAX_BATCH) -> Repository:
        """The repository of an explainable model, whose optional target becomes an ordinary input.

        Arguments:
            source: an explainable model: path, bytes or `ModelProto`.
            name: of the model.
            max_batch: rows that Triton may put into one run.

        Raises:
            ModelError: not an explainable model, or an input that Triton has no type for.
            InputError: a name that cannot be a folder's.
        """
        check_name(name)
        model, manifest, notes = with_required_target(source)
        rows, why = _rows_per_run(model, manifest)
        if why is not None:
            notes.append(f"Triton may not batch requests of this model: {why}")
            max_batch = 0
        if manifest.get("gate") and max_batch:
            condition, output = manifest["gate"]["condition"], manifest["gate"]["output"]
            notes.append(
                f"the gate ({condition}) is decided once a batch, which may hold other clients' rows: read the maps "
                f"of the rows where output {output!r} is true, and ignore the others"
            )
        names = {value.name for value in model.graph.initializer}
        inputs = tuple(
            _tensor(value, max_batch, rows, "input") for value in model.graph.input if value.name not in names
        )
        outputs = []
        labels = _labelled(manifest)
        for value in model.graph.output:
            try:
                tensor = _tensor(value, max_batch, rows, "output")
            except ModelError as error:
                notes.append(f"{error}; it is left out of {CONFIG_FILE}")
            else:
                outputs.append(tensor._replace(labels=tensor.name == labels))
        if not any(tensor.name == manifest["scores"]["name"] for tensor in outputs):
            raise ModelError(
                f"the scores {manifest['scores']['name']!r} cannot be an output in Triton: {'; '.join(notes)}"
            )
        return cls(name, model, manifest, max_batch, inputs, tuple(outputs), tuple(notes))

    def config(self) -> str:
        """The text of `config.pbtxt`, in the text format of Triton's `ModelConfig`."""
        lines = [f"# {line}" for line in self._comments()]
        lines += [f"name: {_quoted(self.name)}", 'backend: "onnxruntime"', f"max_batch_size: {self.max_batch}"]
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            for tensor in tensors:
                lines += [f"{kind} {{", *(f"  {line}" for line in _fields(tensor)), "}"]
        if self.max_batch:
            lines.append("dynamic_batching { }")
        parameters = {"onnxcam.target": json.dumps(self.manifest["target"])}
        preprocess = self.manifest["input"].get("preprocess")
        if preprocess:
            parameters["onnxcam.preprocess"] = json.dumps(preprocess)
        for key, value in parameters.items():
            lines.append(f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}")
        return "\n".join(lines) + "\n"

    def write(self, folder: Path, version: int = 1) -> list[Path]:
        """Write the model's folder into a repository, `config.pbtxt` last.

        Returns:
            the files, the model first.

        Raises:
            OutputError: one of them cannot be written.
        """
        from onnxcam.graph.load import serialize

        place = folder / self.name
        try:
            (place / str(version)).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{str(place)!r} could not be written ({error.strerror})") from error
        model, config, labels = place / str(version) / MODEL_FILE, place / CONFIG_FILE, place / LABELS_FILE
        serialized = serialize(self.model, large_model.weights_path(model).name)
        with files.FileSet() as together:
            if isinstance(serialized, large_model.LargeModel):
                large_model.write(serialized, model)
            else:
                together.write(model, [serialized])
            if self.has_labels:
                together.write(labels, [_utf8("".join(f"{_line(label)}\n" for label in self.manifest["labels"]))])
            together.write(config, [_utf8(self.config())])
        return [model, *([labels] if self.has_labels else []), config]

    @property
    def has_labels(self) -> bool:
        """Whether an output has class names, for Triton's classification extension."""
        return any(tensor.labels for tensor in self.outputs)

    def _comments(self) -> Iterator[str]:
        entry, target, scores = self.manifest["input"], self.manifest["target"], self.manifest["scores"]
        yield "Written by `onnxcam triton`. The model is a plain ONNX file: Triton needs nothing of onnxcam."
        yield (
            f"{_line(entry['name'])}: {entry['dtype']} {entry['layout']}, prepared by the client. "
            + _preprocess_words(entry.get("preprocess"))
        )
        if target["mode"] == "constant":
            bound = target.get("class")
            of = "each row's best class" if bound is None or bound < 0 else f"class {bound}"
            yield f"The file explains {of} and has no input for another."
        else:
            yield f"{_line(target['name'])}: int64, the class to explain; -1 for each row's best class."
        yield f"{_line(scores['name'])}: scores of kind {scores['kind']}, {scores['classes']} classes."
        for layer in self.manifest["layers"]:
            for method, name in layer["heatmaps"].items():
                yield (
                    f"{_line(name)}: {method} of layer {_line(layer['name'])} at its own resolution, not negative, not "
                    "normalised."
                )
        yield from (f"Note: {_line(note)}." for note in self.notes)


def with_required_target(source: Any) -> tuple[onnx.ModelProto, Manifest, list[str]]:
    """An explainable model whose target is an ordinary input or a constant, its manifest, and what was changed.

    Raises:
        ModelError: not an explainable model.
    """
    from onnxcam.graph.load import load
    from onnxcam.network.explainable import augment

    model = load(source)
    manifest = manifests.read(model)
    if manifest is None:
        raise ModelError("the model is not explainable yet; write it with `onnxcam export MODEL -o OUT.onnx` first")
    notes: list[str] = []
    target = manifest["target"]
    if target.get("rows") == manifests.SHARED:
        # one class for all rows of a batch is not what clients mean whose requests are batched together
        methods = list(dict.fromkeys(method for layer in manifest["layers"] for method in layer["heatmaps"]))
        raw = any(layer["gradients"] for layer in manifest["layers"])
        model = augment(
            model, methods=methods, target="required", outputs="all" if raw else "heatmap", portable=False,
            probe=False, on_warning=notes.append,
        )  # fmt: skip
        notes.append("the portable file takes one target for all rows of a batch; it was exported again with one a row")
        manifest = manifests.read(model)
        if manifest is None:
            raise ModelError("the augmented model carries no manifest; report this as a bug")
    elif target["mode"] == "optional":
        kept_initializers = [one for one in model.graph.initializer if one.name != target["name"]]
        if len(kept_initializers) == len(model.graph.initializer) or target["name"] not in {
            value.name for value in model.graph.input
        }:
            raise ModelError(
                f"the manifest says that {target['name']!r} is an optional input, and the file has no such input with "
                "a default (a tool that simplifies models may have removed it); export it again with "
                "`onnxcam export SOURCE -o OUT.onnx --target required`"
            )
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept_initializers)
        manifest = {**manifest, "target": {**target, "mode": "required"}}
        manifests.write(model, manifest)
        notes.append(
            "the optional target became an ordinary input, because Triton does not batch models with optional inputs"
        )
    return model, manifest, notes


def _rows_per_run(model: onnx.ModelProto, manifest: Manifest) -> tuple[int | None, str | None]:
    """The rows of each run where Triton may not choose them, and why it may not."""
    rows = manifest["input"]["shape"][0]
    if isinstance(rows, int):
        return rows, f"it takes {rows} row{'' if rows == 1 else 's'} a run; export it with a free batch axis"
    if (manifest.get("measured") or {}).get("rows") == manifests.COUPLED:
        return 1, "a row's scores depend on the other rows of its batch"
    return None, None


def _labelled(manifest: Manifest) -> str | None:
    """The output with one column a class, if the model has class names."""
    scores, labels = manifest["scores"], manifest.get("labels")
    one_each = labels and scores["kind"] not in ("binary_logit", "regression")
    return (scores.get("probabilities") or scores["name"]) if one_each else None


def _tensor(value: onnx.ValueInfoProto, max_batch: int, rows: int | None, kind: str) -> Tensor:
    """An input or output as Triton describes it.

    Raises:
        ModelError: Triton cannot take it.
    """
    kind_of_type = value.type.tensor_type
    data_type = _TYPES.get(kind_of_type.elem_type)
    if data_type is None or not kind_of_type.HasField("shape"):
        what = "type" if data_type is None else "number of dimensions"
        raise ModelError(f"{kind} {value.name!r} has a {what} that Triton cannot be told")
    shape = [side.dim_value if side.HasField("dim_value") else -1 for side in kind_of_type.shape.dim]
    if not max_batch:
        if rows is not None and shape and shape[0] == -1:
            shape[0] = rows
        if not shape:
            return Tensor(value.name, data_type, (1,))
        return Tensor(value.name, data_type, tuple(shape))
    if not shape or shape[0] != -1:
        raise ModelError(f"{kind} {value.name!r} of shape {shape} has no free batch axis")
    if len(shape) == 1:  # one number a row: clients send [rows, 1], as Triton wants a dimension beside the batch
        return Tensor(value.name, data_type, (1,), ())
    return Tensor(value.name, data_type, tuple(shape[1:]))


def _fields(tensor: Tensor) -> Iterator[str]:
    yield f"name: {_quoted(tensor.name)}"
    yield f"data_type: {tensor.data_type}"
    yield f"dims: [{', '.join(map(str, tensor.dims))}]"
    if tensor.reshape is not None:
        yield f"reshape {{ shape: [{', '.join(map(str, tensor.reshape))}] }}"
    if tensor.labels:
        yield f"label_filename: {_quoted(LABELS_FILE)}"


def _preprocess_words(spec: Any) -> str:
    """The preprocessing as a sentence for whoever writes the client."""
    if not spec:
        return "The file does not say how pictures become tensors."
    parts = ["tensor = (pixel * scale - mean) / std of pixels 0 to 255"]
    parts += [f"{key} {json.dumps(value)}" for key, value in spec.items() if value is not None]
    return _line("; ".join(parts)) + ". EXIF orientation is applied first."


def _line(text: str) -> str:
    """A text on one line, without control characters."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", text)


def _utf8(text: str) -> bytes:
    """A text in UTF-8, a question mark for each half of a surrogate pair."""
    return text.encode("utf-8", "replace")


def _quoted(text: str) -> str:
    """A text as a string of protobuf's text format: UTF-8, other bytes than printable ASCII in octal."""
    escaped = []
    for byte in _utf8(text):
        if byte in b'"\\':
            escaped.append("\\" + chr(byte))
        elif 0x20 <= byte < 0x7F:
            escaped.append(chr(byte))
        else:
            escaped.append(f"\\{byte:03o}")
    return f'"{"".join(escaped)}"'


def check_name(name: str) -> None:
    """Refuse the name of a model that cannot be a folder of a repository.

    Raises:
        InputError: it cannot be one.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", name):
        raise InputError(
            f"the model name {name!r} cannot be a folder of a Triton repository and a part of an address; use up to "
            "128 letters, digits, '_', '-' and '.'"
        )


def model_name(path: str) -> str:
    """The name of a model in a repository, from its file's: `resnet50.cam.onnx` is `resnet50`."""
    stem = re.sub(r"(\.cam)?\.onnx$", "", Path(path).name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).lstrip(".-")[:128] or "model"
