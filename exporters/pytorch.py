"""From a PyTorch model to an explainable ONNX file, its gradients checked against autograd.

    manifest = onnxcam.exporters.pytorch.export(model, torch.randn(1, 3, 224, 224), "model.onnx", layers=["layer4"])

As a program, `python exporters/pytorch.py torchvision:resnet50 -o resnet50.onnx` does the same from a named source.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from onnxcam.errors import LayerError, OnnxcamError, OutputError, listing
from onnxcam.exporters import parity, torch_capture, torch_oracle
from onnxcam.exporters.outputs import choose
from onnxcam.exporters.torch_module import Target, Watched, example, first_tensor, frozen, run, tensors
from onnxcam.graph.layers import Layer
from onnxcam.graph.load import save, serialize
from onnxcam.network import gate as gates
from onnxcam.network import manifest
from onnxcam.network.explainable import augment
from onnxcam.network.manifest import Manifest
from onnxcam.runtime import open_session
from onnxcam.runtime import run as run_session
from onnxcam.targets.readout import Readout

AGAINST = "torch autograd"


def export(
    model: Any,
    example_inputs: Any,
    path: str | os.PathLike[str] | None,
    *,
    layers: Sequence[str | nn.Module] | str | nn.Module | None = None,
    labels: Sequence[str] | None = None,
    preprocess: Any = None,
    methods: Sequence[str] = ("gradcam",),
    target: str | int = "optional",
    opset: int | None = None,
    verify: bool | int = True,
    scores: str | None = None,
    outputs: str = "all",
    gate: str | None = None,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Manifest | onnx.ModelProto:
    """Export a classifier as an explainable ONNX file.

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
        methods: CAM methods whose heatmaps the file computes.
        target: `optional`, `required`, or the one class the file explains.
        opset: 18 to 21; 20 by default, the first with Gelu as one operator.
        verify: compare with autograd on 4 random samples, on that many, or (False) not at all.
        scores: name of the output with the class scores, where the model returns several candidates; the first one by
            default.
        outputs: `all`, or `heatmap` to leave activations and gradients out of the file.
        gate: compute gradients and heatmaps only where a prediction meets this, such as `confidence < 0.6`.
        grid, prefix_tokens: rows and columns of the patches in layers of tokens, and how many tokens come before them,
            where the graph does not tell.
        origin: more entries for the manifest's `source`, such as `name`.

    Returns:
        the manifest; with `path=None` the `ModelProto`, which holds it.

    Raises:
        LayerError: an unknown or ambiguous layer, or one without positions.
        VerificationError: scores, activations or gradients differ from PyTorch's by more than the tolerance: 1e-3, or
            three times PyTorch's own float32 error. Nothing is written then.
        ModelError: the model does not run on the example, or cannot be exported.
        InputError: the example is not a batch of pictures.
        OutputError: the file cannot be written.
    """
    samples = parity.samples(verify)
    gates.parse(gate or "", labels)  # told now, not after the export
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {Path(path).absolute().parent}; make it first")
    picture = example(example_inputs)
    with torch_capture.quiet():
        watched = Watched(model)
    with frozen(watched.root):
        calls, returned = watched.calls(picture)
        targets = [watched.resolve(layer, calls, len(picture)) for layer in _listed(layers)]
        names, place = _outputs(watched, picture, returned, scores)
        captured = torch_capture.capture(watched, picture, targets, names, opset)
        source = _source(model, watched.root, captured, origin)

        def explain(part: str, gate: str | None) -> onnx.ModelProto:
            return augment(
                captured.model,
                None if layers is None else [_layer(*pair) for pair in zip(targets, captured.values, strict=True)],
                methods,
                target,
                scores=names[place],
                outputs=part,
                labels=labels,
                preprocess=preprocess,
                origin=source,
                gate=gate,
                grid=grid,
                prefix_tokens=prefix_tokens,
            )

        explained = explain("all", None)
        held = manifest.read(explained)
        assert held is not None
        if layers is None:
            targets = _name_default(watched, picture, explained, held)
        if samples:
            oracle = _oracle(watched, targets, captured, held, place)
            batch = parity.draw(picture.numpy(), samples)
            held["parity"] = parity.verify(explained, held, oracle, batch, AGAINST)
    if outputs != "all" or gate:
        explained, known = explain(outputs, gate), held
        held = manifest.read(explained)
        assert held is not None
        held["parity"] = known["parity"]
        for entry, checked in zip(held["layers"], known["layers"], strict=True):
            entry["name"] = checked["name"]
    manifest.write(explained, held)
    if path is None:
        return explained
    save(explained, path)
    return held


def _listed(layers: Any) -> list[str | nn.Module]:
    if layers is None:
        return []
    listed = [layers] if isinstance(layers, (str, nn.Module)) else list(layers)
    if not listed:
        raise LayerError("`layers` is empty; name at least one target layer, or pass None for the default")
    return listed


def _outputs(watched: Watched, picture: Tensor, returned: Any, scores: str | None) -> tuple[list[str], int]:
    """Names for the model's output tensors, and the place of the class scores among them.

    Raises:
        ModelError: none of them looks like class scores, or it cannot be told which one is meant.
    """
    found = tensors(returned)
    names = torch_capture.output_names(returned, "output")
    shapes = [tuple(t.shape) for t in found]
    place = choose(names, shapes, [t.is_floating_point() for t in found], len(picture), scores)
    if names[place] in ("output", "logits"):
        names[place] = _meaning(watched, picture, place)
    return names, place


def _meaning(watched: Watched, picture: Tensor, place: int) -> str:
    """`logits`, or `probabilities` where a Softmax or Sigmoid ends the model."""
    with torch.no_grad(), torch_oracle.Endings() as endings:
        output = tensors(run(watched.root, picture))[place]
    ending = endings.ending(output)
    if ending is None:
        # [N, K, 1, 1] is not yet the [N, K] that the name `logits` promises
        return "logits" if output.ndim == 2 else "scores"
    return "log_probabilities" if ending[0] == "log_softmax" else "probabilities"


def _layer(target: Target, value: str) -> Layer:
    return Layer(target.name, value, shape=(torch_capture.BATCH, *target.shape[1:]))


def _name_default(watched: Watched, picture: Tensor, explained: onnx.ModelProto, held: Manifest) -> list[Target]:
    """Find the module that returns the default layer's value and give the layer its name.

    Of several (a block, the stage that ends with it, the activation inside) the one with the fewest dots in its name
    is taken, of those the one that returns first. Which ones return the value is told by numbers: the nearest module
    output within 1e-3, the later one where two are equally near, and all that return exactly the same tensor.
    """
    entry = held["layers"][0]
    feeds = {held["input"]["name"]: picture.numpy()}
    if held["target"]["mode"] == "required":
        feeds[held["target"]["name"]] = np.full(len(picture), -1, np.int64)
    session = open_session(serialize(explained), ["CPUExecutionProvider"])
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

    with watched.watching(see), torch.no_grad():
        run(watched.root, picture)
    if not near:
        return []
    least = min(far for far, *_ in near)
    best = [tensor for far, _, _, tensor in near if far <= max(2 * least, 1e-6)][-1]
    same = [(name, index) for _, name, index, tensor in near if torch.equal(tensor, best)]
    name, index = min(same, key=lambda pair: pair[0].count("."))
    entry["name"] = name if index == counts[name] - 1 else f"{name}#{index}"
    return [Target(entry["name"], name, index, tuple(value.shape))]


def _oracle(
    watched: Watched, targets: Sequence[Target], captured: torch_capture.Captured, held: Manifest, place: int
) -> torch_oracle.TorchOracle:
    """Autograd on the model itself; on the program captured from it where no module returns the layer's value."""
    root, forward = watched.root, torch_oracle.by_hooks(watched, targets)
    if not targets:
        values = [entry["value"] for entry in held["layers"]]
        with torch_capture.quiet():
            found = None if captured.program is None else torch_oracle.by_program(captured.program, values)
        if found is None:
            raise LayerError(
                f"no module returns the default layer's value ({listing(values)}), so its gradients cannot be compared "
                "with autograd; name a module in layers=, or export with verify=False"
            )
        root, forward = found
    return torch_oracle.TorchOracle(
        root,
        forward,
        len(held["layers"]),
        place=place,
        readout=Readout.from_manifest(held["scores"]),
        stepped_over=held["scores"]["name"] != captured.outputs[place],
    )


def _source(
    model: Any, root: nn.Module, captured: torch_capture.Captured, origin: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The manifest's `source` entry; `sha256` is that of the weights, names and values in order."""
    source: dict[str, Any] = {
        "framework": "pytorch",
        "name": type(root).__name__ if isinstance(model, nn.Module) else "ExportedProgram",
        "opset": next(o.version for o in captured.model.opset_import if o.domain in ("", "ai.onnx")),
        "exporter": captured.exporter,
        "torch": str(torch.__version__),
    }
    if captured.note is not None:
        source["note"] = captured.note
    source |= origin or {}
    if "sha256" not in source:
        digest = hashlib.sha256()
        for name, held in root.state_dict().items():
            if isinstance(held, Tensor):
                digest.update(f"{name} {held.dtype} {list(held.shape)}\n".encode())
                digest.update(held.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        source["sha256"] = digest.hexdigest()
    return source


def main(arguments: Sequence[str] | None = None) -> int:
    """Export from the command line; 0 when done, 3 for a model that cannot be exported or trusted."""
    from onnxcam.exporters import torch_source

    parser = argparse.ArgumentParser(description="Export a PyTorch classifier as an explainable ONNX file.")
    parser.add_argument("source", help="package.module:callable, torchvision:NAME, timm:NAME, a .pt2 file")
    parser.add_argument("-o", "--output", required=True, help="the .onnx file to write")
    parser.add_argument("--weights", help="a state dict file, 'none' or 'imagenet'")
    parser.add_argument("--layer", action="append", help="target layer (repeatable)")
    parser.add_argument("--input-size", type=int, help="side of the square input picture")
    parser.add_argument("--trust-model", action="store_true", help="allow loading to run code from the file")
    given = parser.parse_args(arguments)
    try:
        model, inputs, info = torch_source.load(
            given.source, weights=given.weights, trust=given.trust_model, input_size=given.input_size
        )
        held = export(
            model,
            inputs,
            given.output,
            layers=given.layer,
            labels=info.labels,
            preprocess=info.preprocess,
            origin={"name": info.name},
        )
    except OnnxcamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    assert isinstance(held, dict)
    print(f"{given.output}: layer {listing(e['name'] for e in held['layers'])}, parity {held['parity']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
