"""A PyTorch module written as plain ONNX, the values of its target layers known by name.

The exporter based on torch.export comes first, the older one based on TorchScript where it fails. Either way the batch
dimension is dynamic, and the file has been run with another batch size.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from onnxcam.errors import ModelError, OnnxcamError
from onnxcam.exporters.reasons import reason
from onnxcam.exporters.torch_module import Target, Watched, first_tensor, tensors
from onnxcam.graph.load import load, serialize
from onnxcam.graph.shape_inference import describe
from onnxcam.graph.ties import first_of_ties
from onnxcam.graph.view import shape_of
from onnxcam.runtime import open_session, run

# 20 is the first opset with Gelu as one operator, and what torch's own default is; above 21 CUDA lacks MaxPool
DEFAULT_OPSET = 20
OPSETS = range(18, 22)
_NEWEST_TORCHSCRIPT_OPSET = 20
INPUT, BATCH = "input", "N"
_RESERVED = {"target", "activations", "gradients", "heatmap", INPUT}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captured:
    """A module as ONNX.

    Attributes:
        model: input `input`, its batch dimension called N; the outputs are the module's own.
        values: the graph value of each target layer.
        outputs: the names of the module's output tensors, in order.
        exporter: `torch.export` or `torchscript`.
        program: what torch.export captured, None from the older exporter.
        note: why the older exporter was used, None where it was not.
    """

    model: onnx.ModelProto
    values: list[str]
    outputs: list[str]
    exporter: str
    program: Any
    note: str | None


class Exposed(nn.Module):  # type: ignore[misc]
    """A model that returns, after its own output tensors, the outputs of its target layers.

    A layer's output is cloned the moment the layer returns it: what follows may edit it in place.
    """

    def __init__(self, watched: Watched, targets: Sequence[Target]) -> None:
        super().__init__()
        self.model = watched.root
        self.training = False
        self._watched = watched
        self._targets = targets

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        values: dict[tuple[str, int], Tensor] = {}
        calls = {(target.module, target.index) for target in self._targets}

        def see(name: str, index: int, _: nn.Module, output: Any) -> None:
            tensor = first_tensor(output)
            if (name, index) in calls and tensor is not None:
                values[name, index] = tensor.clone()

        with self._watched.watching(see, [target.module for target in self._targets]):
            output = self.model(picture)
        return (*tensors(output), *(values[target.module, target.index] for target in self._targets))


def capture(
    watched: Watched, picture: Tensor, targets: Sequence[Target], outputs: Sequence[str], opset: int | None
) -> Captured:
    """Write a module as ONNX.

    Arguments:
        watched: the module, frozen by the caller.
        picture: example batch of two rows.
        targets: the layers whose values are wanted.
        outputs: names for the module's output tensors.
        opset: 18 to 21, None for 20.

    Raises:
        ModelError: an opset that is not supported, or neither exporter can write the module with a free batch.
    """
    version = DEFAULT_OPSET if opset is None else opset
    if version not in OPSETS:
        raise ModelError(
            f"opset {opset} is not supported; expected {OPSETS[0]} to {OPSETS[-1]}: the gradients need 18, and above "
            "21 ONNX Runtime has no MaxPool on CUDA"
        )
    names = [*outputs, *(f"layer/{target.name}" for target in targets)]
    wrapper = Exposed(watched, targets)
    reasons: list[str] = []
    for exporter, write in (("torch.export", _by_torch_export), ("torchscript", _by_torchscript)):
        try:
            with quiet(), torch.random.fork_rng(devices=[]):
                model, program = write(wrapper, picture, names, version)
            first_of_ties(model)  # while the notes are there, and the layers' shapes
            values = [_origin(model, name) for name in names[len(outputs) :]]
            del model.graph.output[len(outputs) :]
            _forget_paths(model.graph)
            _require_free_batch(model, picture)
        except MemoryError:
            raise
        except Exception as error:
            reasons.append(f"the {exporter} exporter: {_cause(error)}")
            log.debug("exporting with %s failed", exporter, exc_info=True)
            continue
        note = reasons[0] if reasons else None
        if note is not None:
            log.warning("exported with the older TorchScript exporter, because of an error of %s", note)
        return Captured(model, values, list(outputs), exporter, program, note)
    raise ModelError("PyTorch cannot write the model as ONNX with a free batch size. " + ". ".join(reasons))


def _by_torch_export(
    wrapper: nn.Module, picture: Tensor, names: Sequence[str], opset: int
) -> tuple[onnx.ModelProto, Any]:
    program: Any = torch.onnx.export(
        wrapper,
        (picture,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim(BATCH)},),
        input_names=[INPUT],
        output_names=list(names),
        opset_version=opset,
        external_data=False,
        verbose=False,
    )
    return program.model_proto, program.exported_program


def _by_torchscript(
    wrapper: nn.Module, picture: Tensor, names: Sequence[str], opset: int
) -> tuple[onnx.ModelProto, None]:
    written: Any = io.BytesIO()
    torch.onnx.export(
        wrapper,
        (picture,),
        written,
        dynamo=False,
        dynamic_axes={name: {0: BATCH} for name in (INPUT, *names)},
        input_names=[INPUT],
        output_names=list(names),
        opset_version=min(opset, _NEWEST_TORCHSCRIPT_OPSET),
        verbose=False,
    )
    return load(written.getvalue()), None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what torch's exporters print on standard output, and their warnings about their own internals."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        for category in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(torch|onnxscript|onnx_ir|copyreg)(\.|$)")
        # these two are attributed to the lines of the model's code and of ours
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript-based", DeprecationWarning)
        yield


def _origin(model: onnx.ModelProto, name: str) -> str:
    """The value behind an output, through the Identity that exporters put where one value has two names."""
    producers = {output: node for node in model.graph.node for output in node.output}
    while name in producers and producers[name].op_type == "Identity":
        name = producers[name].input[0]
    return name


def _forget_paths(graph: onnx.GraphProto) -> None:
    """Drop the exporters' notes on nodes and values: stack traces with this machine's paths, among others."""
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _forget_paths(body)


def _require_free_batch(model: onnx.ModelProto, picture: Tensor) -> None:
    """Refuse a model whose batch dimension is not a symbol everywhere, or that does not run on a batch of three.

    Raises:
        ModelError: the dimension is fixed, or the graph depends on the size of the example.
    """
    for value in (*model.graph.input, *model.graph.output):
        shape = shape_of(value)
        if shape and isinstance(shape[0], int):
            raise ModelError(f"the batch dimension of {value.name!r} came out fixed: {describe(shape)}")
    session = open_session(serialize(model), ["CPUExecutionProvider"])
    batch = np.concatenate([picture.numpy(), picture.numpy()[:1]])
    names = [output.name for output in model.graph.output]
    for name, array in run(session, names, {model.graph.input[0].name: batch}).items():
        if array.shape[:1] != (3,):
            raise ModelError(f"output {name!r} has shape {list(array.shape)} for a batch of 3 pictures")


def _cause(error: Exception) -> str:
    if isinstance(error, OnnxcamError):
        return str(error)
    cause: BaseException = error
    while cause.__cause__ is not None:  # torch wraps the error in advice on filing a report
        cause = cause.__cause__
    return reason(cause)


def output_names(output: Any, first: str) -> list[str]:
    """Names for the tensors of a module's output: a dict's keys or a named tuple's fields, else `first`, output_1, ….

    Arguments:
        output: what the module returned.
        first: the name of the first tensor where the structure has no names.
    """
    count = len(tensors(output))
    if isinstance(output, Mapping):
        names = [str(key) for key, value in output.items() if isinstance(value, Tensor)]
    else:
        fields = getattr(output, "_fields", ())
        names = [name for name in fields if isinstance(getattr(output, name), Tensor)]
    if len(names) != count or len(set(names)) != count:
        names = [first, *(f"output_{k}" for k in range(1, count))]
    return [f"output_{k}" if _is_reserved(name) else name for k, name in enumerate(names)]


def _is_reserved(name: str) -> bool:
    return name in _RESERVED or name.startswith(("activations/", "gradients/", "heatmap/", "layer/"))
