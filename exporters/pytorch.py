"""From a PyTorch model to an explainable ONNX file, its gradients checked against autograd.

    manifest = onnxcam.exporters.pytorch.export(model, torch.randn(1, 3, 224, 224), "model.onnx", layers=["layer4"])

As a program, `python exporters/pytorch.py torchvision:resnet50 -o resnet50.onnx` does the same from a named source.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from onnxcam.errors import LayerError, ModelError, listing
from onnxcam.exporters import export as exporting
from onnxcam.exporters import parity, program, torch_capture, torch_oracle, torch_source
from onnxcam.exporters import scores as class_scores
from onnxcam.exporters.export import Classifier, Loaded
from onnxcam.exporters.torch_module import Call, Target, Watched, example, first_tensor, frozen, run, tensors
from onnxcam.graph.layers import Layer
from onnxcam.graph.load import serialize
from onnxcam.network.manifest import Manifest
from onnxcam.network.score_facts import distribution
from onnxcam.runtime import open_session
from onnxcam.runtime import run as run_session
from onnxcam.targets.readout import Readout
from onnxcam.targets.tasks import REGRESS


def export(
    model: Any,
    example_inputs: Any,
    path: str | os.PathLike[str] | None,
    *,
    layers: Sequence[str | nn.Module] | str | nn.Module | None = None,
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
) -> Manifest | onnx.ModelProto:
    """Export a classifier, or a model of another task, as an explainable ONNX file.

    The model is exported in eval mode, on the CPU and in float32 (a float16 or bfloat16 model as its float32 values);
    its modes, device, hooks, `requires_grad` and `.grad` are afterwards what they were, also after an error. It must
    not be used from another thread meanwhile.

    Arguments:
        model: a `torch.nn.Module`, or a `torch.export.ExportedProgram` with a free batch dimension.
        example_inputs: a batch of pictures like those it will see, `[N, C, H, W]`; one row is enough. Height and width
            become fixed, the batch size stays free.
        path: where to write; None to get the model instead.
        layers: target layers as module names or module objects; `name#k` is the k-th call of a module called several
            times (without it: the last). Of a tuple, list or dict output the first tensor counts. The value is the
            module's output when it returns, whatever edits it in place later. None: the last convolution, followed
            through norm, activation and residual add, called by the shortest name of a module that returns it (`layer4`
            for ResNet-50), or by its graph value where no module does.
        labels: class names by index.
        preprocess: how pictures become tensors: the manifest's form, a preset's name, or a JSON file.
        methods: CAM methods whose heatmaps the file computes; None for Grad-CAM, of a detector
            LayerCAM, of a segmentation HiResCAM.
        target: `optional`, `required`, or the one class the file explains.
        opset: 18 to 21; 20 by default, the first with Gelu as one operator.
        verify: compare with autograd on 4 random samples, on that many, or (False) not at all.
        scores: name of the output with the class scores, where the model returns several candidates; the first one by
            default.
        kind: what the scores are: `logits`, `probabilities`, `binary_logit`, `multilabel` (a sigmoid outside the
            model), or `regression`; None to find out.
        task: `detect`, `segment`, `embed` or `regress`, of a model that is no classifier; None to find out from what
            its outputs measure. Autograd is then compared at a box's score, the sum of a class over a region, the
            cosine with an embedding, or a value.
        boxes_output: the output with the boxes of a detector, where the model has several candidates.
        outputs: `all`, or `heatmap` to leave activations and gradients out of the file.
        gate: compute gradients and heatmaps only where a prediction meets this, such as `confidence < 0.6`.
        portable: as of `onnxcam.augment`: a file for more runtimes, with one `target` for all rows.
        pixels: as of `onnxcam.augment`: a file that takes the picture itself and returns an overlay of its size.
        grid, prefix_tokens: rows and columns of the patches in layers of tokens, and how many tokens come before them,
            where the graph does not tell.
        origin: more entries for the manifest's `source`, such as `name`.

    Returns:
        the manifest; with `path=None` the `ModelProto`, which holds it.

    Raises:
        LayerError: an unknown or ambiguous layer, or one without positions.
        VerificationError: scores, activations or gradients differ from PyTorch's by more than the tolerance: 1e-3, or
            three times PyTorch's own float32 error or the rounding of small probabilities. Nothing is written then.
        ModelError: the model does not run on the example, or cannot be exported.
        InputError: the example is not a batch of pictures.
        OutputError: the file cannot be written.
    """
    return exporting.export(
        PyTorch(model, example_inputs),
        path,
        layers=layers,
        labels=labels,
        preprocess=preprocess,
        methods=methods,
        target=target,
        opset=opset,
        verify=verify,
        scores=scores,
        kind=kind,
        task=task,
        boxes_output=boxes_output,
        outputs=outputs,
        gate=gate,
        portable=portable,
        pixels=pixels,
        grid=grid,
        prefix_tokens=prefix_tokens,
        origin=origin,
    )


class PyTorch:
    """A PyTorch model to be exported: a `Framework`.

    Arguments:
        model: a module or an exported program.
        example_inputs: a batch of pictures, `[N, C, H, W]`.
    """

    autograd = "torch autograd"

    _watched: Watched
    _picture: Tensor
    _calls: list[Call]
    _returned: Any
    _targets: list[Target]
    _captured: torch_capture.Captured
    _place: int | None

    def __init__(self, model: Any, example_inputs: Any) -> None:
        self._model, self._inputs = model, example_inputs

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Hold the model in eval mode, on the CPU and in float32."""
        self._picture = example(self._inputs)
        with torch_capture.quiet():
            self._watched = Watched(self._model)
        with frozen(self._watched.root):
            yield

    def example(self, preprocess: Any) -> tuple[np.ndarray, Any]:
        """Two rows of the example inputs, and the preprocessing as given."""
        return self._picture.numpy(), preprocess

    def capture(
        self,
        layers: Sequence[Any] | None,
        scores: str | None,
        opset: int | None,
        task: str | None,
        boxes_output: str | None = None,
    ) -> Classifier:
        """Write the model as ONNX.

        Raises:
            LayerError: a layer that cannot be a target.
            ModelError: the model does not run, returns nothing that could be explained, or cannot be written.
        """
        calls, self._returned = self._watched.calls(self._picture)
        self._targets = [self._watched.resolve(layer, calls, len(self._picture)) for layer in layers or ()]
        names, self._place = self._outputs(scores, task)
        self._captured = torch_capture.capture(self._watched, self._picture, self._targets, names, opset)
        pairs = zip(self._targets, self._captured.values, strict=True)
        return Classifier(
            self._captured.model,
            scores if self._place is None else names[self._place],
            None if layers is None else [_layer(*pair) for pair in pairs],
            self._place is None,
        )

    def _outputs(self, name: str | None, task: str | None) -> tuple[list[str], int | None]:
        """Names for the model's output tensors, and the position of the class scores among them, None of a model of
        another task.

        Raises:
            ModelError: nothing in them can be explained, or several could be class scores; or they are a detector's
                lists of boxes.
        """
        _refuse_lists_of_boxes(self._returned)
        outputs = tensors(self._returned)
        names = torch_capture.output_names(self._returned, "output")
        shapes = [tuple(t.shape) for t in outputs]
        floating, rows = [t.is_floating_point() for t in outputs], len(self._picture)
        if task is not None:
            if name is not None:
                class_scores.position(names, shapes, floating, rows, name)
            quantities = class_scores.values(shapes, floating, rows) if name is None else [names.index(name)]
            # one quantity is the score of a readout without a task
            single = task == REGRESS and [outputs[k].numel() for k in quantities] == [rows]
            return names, quantities[0] if single else None
        place = class_scores.search(names, shapes, floating, rows, name)
        if place is not None and names[place] in ("output", "logits"):
            names[place] = self._meaning(place)
        return names, place

    def _meaning(self, place: int) -> str:
        """`logits`, or `probabilities` where a Softmax or Sigmoid ends the model."""
        with torch.no_grad(), torch_oracle.Endings() as endings:
            output = tensors(run(self._watched.root, self._picture))[place]
        ending = endings.ending(output)
        if ending is None and distribution(output.numpy(force=True)):
            return "probabilities"
        if ending is None:
            # [N, K, 1, 1] is not yet the [N, K] that the name `logits` promises
            return "logits" if output.ndim == 2 else "scores"
        return "log_probabilities" if ending[0] == "log_softmax" else "probabilities"

    def source(self, classifier: Classifier) -> dict[str, Any]:
        """The manifest's `source` entry; `sha256` is that of the weights, names and values in order."""
        root = self._watched.root
        digest = hashlib.sha256()
        for name, value in root.state_dict().items():
            if isinstance(value, Tensor):
                digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
                digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        note = {} if self._captured.note is None else {"note": self._captured.note}
        return {
            "framework": "pytorch",
            "name": type(root).__name__ if isinstance(self._model, nn.Module) else "ExportedProgram",
            "opset": classifier.opset,
            "exporter": self._captured.exporter,
            "torch": str(torch.__version__),
            **note,
            "sha256": digest.hexdigest(),
        }

    def default_name(self, explainable: onnx.ModelProto, manifest: Manifest) -> str:
        """The name of the module that returns the default layer's value; the value's own where none does.

        Of several (a block, the stage that ends with it, the activation inside) the one with the fewest dots in its
        name is taken, of those the one that returns first. Which ones return the value is told by numbers: the nearest
        module output within 1e-3, the later one where two are equally near, and all that return exactly the same
        tensor.
        """
        entry = manifest["layers"][0]
        feeds: dict[str, np.ndarray] = {manifest["input"]["name"]: self._picture.numpy()}
        session = open_session(serialize(explainable), ["CPUExecutionProvider"])
        for further in session.get_inputs():  # a value that a layer's does not depend on
            if further.name not in feeds:
                shape = [1, *(dim for dim in further.shape[1:] if isinstance(dim, int))]
                feeds[further.name] = np.zeros(shape, np.int64 if "int64" in further.type else np.float32)
        value = run_session(session, [entry["activations"]], feeds)[entry["activations"]]

        near: list[tuple[float, str, int, Tensor]] = []
        counts: dict[str, int] = {}

        def see(name: str, index: int, _: nn.Module, output: Any) -> None:
            counts[name] = index + 1
            tensor = first_tensor(output)
            if name and tensor is not None and tuple(tensor.shape) == value.shape:
                far = float(parity.distance(tensor.detach().numpy(), value).max())
                if far < parity.TOLERANCE:
                    near.append((far, name, index, tensor.detach().clone()))

        with self._watched.watching(see), torch.no_grad():
            run(self._watched.root, self._picture)
        if not near:
            return str(entry["name"])
        least = min(far for far, *_ in near)
        best = [tensor for far, _, _, tensor in near if far <= max(2 * least, 1e-6)][-1]
        same = [(name, index) for _, name, index, tensor in near if torch.equal(tensor, best)]
        module, index = min(same, key=lambda pair: pair[0].count("."))
        name = module if index == counts[module] - 1 else f"{module}#{index}"
        self._targets = [Target(name, module, index, tuple(value.shape))]
        return name

    def oracle(self, manifest: Manifest) -> torch_oracle.TorchOracle:
        """Autograd on the model itself; on the program captured from it where no module returns the layer's value.

        Raises:
            LayerError: no module returns it, and the program does not have it either.
            ModelError: the model does not return what is explained.
        """
        place = class_scores.columns(manifest, self._captured.outputs, self._place, "autograd")
        root, forward = self._watched.root, torch_oracle.by_hooks(self._watched, self._targets)
        if not self._targets:
            values = [entry["value"] for entry in manifest["layers"]]
            with torch_capture.quiet():
                program = self._captured.program
                tapped = None if program is None else torch_oracle.by_program(program, values)
            if tapped is None:
                raise LayerError(
                    f"no module returns the default layer's value ({listing(values)}), so its gradients cannot be "
                    "compared with autograd; name a module in layers=, or export with verify=False"
                )
            root, forward = tapped
        return torch_oracle.TorchOracle(
            root,
            forward,
            len(manifest["layers"]),
            place=place,
            readout=Readout.from_manifest(manifest["scores"]),
            stepped_over=manifest["scores"]["name"] != self._captured.outputs[place[0]],
        )


def _refuse_lists_of_boxes(returned: Any) -> None:
    """Refuse a detector that returns a dict per picture.

    Raises:
        ModelError: it does.
    """
    if isinstance(returned, (list, tuple)) and returned and all(isinstance(item, Mapping) for item in returned):
        keys = ", ".join(str(key) for key in returned[0])
        raise ModelError(
            f"the model returns a dict per picture ({keys}), as torchvision's detectors do, and the number of boxes "
            "depends on the picture: write it for one picture with the older exporter, torch.onnx.export(model, "
            "(picture,), 'detector.onnx', dynamo=False), then `onnxcam export detector.onnx -o OUT.onnx --task detect`"
        )


def _layer(target: Target, value: str) -> Layer:
    return Layer(target.name, value, shape=(torch_capture.BATCH, *target.shape[1:]))


def load(
    source: str,
    *,
    weights: str | None = None,
    trust: bool = False,
    import_file: str | None = None,
    input_size: torch_source.Size | None = None,
    model: Any = None,
) -> Loaded:
    """Load a model from its name or file, ready for `onnxcam.exporters.export.export`.

    Arguments:
        source, weights, trust, import_file, input_size: as of `onnxcam.exporters.torch_source.load`.
        model: what calling a `package.module:callable` returned: a module, or a module and example inputs.
    """
    if model is None:
        module, inputs, info = torch_source.load(
            source, weights=weights, trust=trust, import_file=import_file, input_size=input_size
        )
    else:
        module, inputs, info = torch_source.from_object(model, source, weights, input_size)
    known_shape = hasattr(inputs, "shape") and len(inputs.shape) == 4
    return Loaded(PyTorch(module, inputs), info, ["N", *inputs.shape[1:]] if known_shape else None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export from the command line; 0 when done, 3 for a model that cannot be exported or trusted."""
    return program.run("PyTorch", "package.module:callable, torchvision:NAME, timm:NAME, a .pt2 file", load, arguments)


if __name__ == "__main__":
    sys.exit(main())
