"""The torchvision part of the coverage matrix: parity with torch autograd through plain forward hooks."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.architectures import TORCH
from benchmarks.files import SAMPLES, SEED, SETTLING, open_file, open_session
from benchmarks.judgement import QUANTITIES, SLACK, TOLERANCE, distance, judge

Row = dict[str, Any]


def build(name: str, seed: int = SEED, size: int | None = None, settling: Any = None) -> tuple[Any, Any]:
    """A torchvision model with seeded weights and batch-norm statistics that are neither trivial nor absurd.

    The affine parameters are drawn around 1 and 0. The running statistics of each batch norm are those of what reaches
    it, each then off by up to 20 %: every norm sees what the norms before it really give, so activations keep their
    size with depth, and none is the identity.

    Arguments:
        name: of `TORCH`. seed: of the weights.
        size: side of the input picture; that of `TORCH` by default.
        settling: pictures `[N, 3, size, size]` whose statistics the batch norms take; white noise by default.

    Returns:
        the model in eval mode, and one random picture `[1, 3, size, size]`.
    """
    import torch
    from torch import nn

    from tests.support.torchvision_stub import import_torchvision

    entry = TORCH[name]
    side = entry.size if size is None else size
    options = {key: side if key == "image_size" else value for key, value in entry.options}
    torch.manual_seed(seed)
    model = import_torchvision().models.get_model(name, weights=None, **options).eval()

    def settle(norm: Any, inputs: tuple[Any, ...]) -> None:
        var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        norm.running_var.copy_(var * torch.empty_like(var).uniform_(0.8, 1.25))
        norm.running_mean.copy_(mean + var.sqrt() * torch.empty_like(mean).uniform_(-0.2, 0.2))
        norm.weight.uniform_(0.7, 1.3)
        norm.bias.uniform_(-0.2, 0.2)

    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Linear) and not part.weight.any():
                nn.init.normal_(part.weight, std=0.02)  # ViT's head starts at 0, where every gradient would be 0
        norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
        if norms:
            model(torch.randn(SETTLING, 3, side, side) if settling is None else torch.from_numpy(settling))
        for hook in hooks:
            hook.remove()
    return model, torch.randn(1, 3, side, side)


def measure(name: str) -> dict[str, Row]:
    """Export an architecture from a one-row example and compare a batch with torch autograd, at both layers.

    The comparison is the matrix's own: plain forward hooks on the module that the layer is named after. Where no module
    returns the default layer's value, the figures are those of the exporter's own verification.

    Returns:
        rows `default` and `middle`: layer, shape, and per quantity its `error` and, where measured, `floor`.
    """
    import torch

    from onnxcam.network import manifest
    from onnxcam.network.network import list_layers

    entry = TORCH[name]
    model, picture = build(name)
    batch = torch.randn(SAMPLES, *picture.shape[1:], generator=torch.Generator().manual_seed(SEED))
    named = [entry.middle, entry.last] if entry.last else [entry.middle]
    explained, common = _export(model, picture, named)
    rows = {"middle": common | _compare(model, explained, entry.middle, batch)}
    default = next(layer for layer in list_layers(explained) if layer.default)
    if default.name == entry.last:
        rows["default"] = common | _compare(model, explained, entry.last, batch)
        return rows
    explained, common = _export(model, picture, None)
    layer = (manifest.read(explained) or {})["layers"][0]["name"]
    if layer in dict(model.named_modules()):
        rows["default"] = common | _compare(model, explained, layer, batch)
    else:
        rows["default"] = common | _recorded(explained, common["refused"])
    return rows


def _export(model: Any, picture: Any, layers: list[str] | None) -> tuple[Any, Row]:
    from onnxcam.errors import VerificationError
    from onnxcam.exporters import pytorch
    from onnxcam.network import manifest

    began = time.perf_counter()
    refused = None
    try:
        explained: Any = pytorch.export(model, picture, None, layers=layers, verify=1)
    except VerificationError as error:
        refused = str(error)
        explained = pytorch.export(model, picture, None, layers=layers, verify=False)
    seconds = time.perf_counter() - began
    header = manifest.read(explained)
    assert header is not None
    row = {"exporter": header["source"]["exporter"], "export_s": seconds, "refused": refused}
    return explained, row | {"gated": _gated(explained, picture)}


def _gated(explained: Any, picture: Any) -> float:
    """How far a file with a gate that fires is from the one without, over all outputs; infinitely, if one that does not
    fire leaves anything but zeros or changes a score."""
    import numpy as np

    from onnxcam.network import manifest
    from onnxcam.network.explainable import augment

    header = manifest.read(explained)
    assert header is not None
    batch = np.random.default_rng(SEED).normal(size=(SAMPLES, *picture.shape[1:])).astype(np.float32)

    def run(model: Any) -> dict[str, Any]:
        session = open_session(model)
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, {header["input"]["name"]: batch}), strict=True))

    want = run(explained)
    fired, blank = run(augment(explained, gate="confidence <= 1")), run(augment(explained, gate="confidence < 0"))
    maps = {entry["gradients"] for entry in header["layers"]}
    maps |= {name for entry in header["layers"] for name in entry["heatmaps"].values()}
    wrong = [not fired["fired"].all(), blank["fired"].any(), *(blank[name].any() for name in maps)]
    wrong += [distance(blank[name], value).max() > 1e-6 for name, value in want.items() if name not in maps]
    return np.inf if any(wrong) else max(float(distance(fired[name], value).max()) for name, value in want.items())


def _compare(model: Any, explained: Any, layer: str, batch: Any) -> Row:
    """One layer of the file against autograd."""
    import numpy as np
    import torch

    from onnxcam.network import manifest

    header = manifest.read(explained)
    assert header is not None
    entry = manifest.layer(header, layer)
    file = open_file(explained, header, entry)
    targets = np.array([-1, 7, 123])
    *expected, classes = _autograd(model, layer, batch, targets)

    def exact(pictures: Any, classes: Any) -> Any:
        try:
            return _autograd(model.double(), layer, torch.from_numpy(pictures).double(), classes)[:3]
        finally:
            model.float()

    figures, passed = judge(
        file(batch.numpy(), targets),
        expected,
        batch.numpy(),
        classes,
        file,
        lambda pictures, classes: _autograd(model, layer, torch.from_numpy(pictures), classes)[:3],
        exact,
    )
    return {"layer": layer, "shape": entry["shape"], "oracle": "hooks", "figures": figures, "passed": passed}


def _recorded(explained: Any, refused: str | None) -> Row:
    """The default layer, as the exporter verified it."""
    from onnxcam.errors import VerificationError
    from onnxcam.network import manifest

    if refused is not None:
        raise VerificationError(refused)
    header = manifest.read(explained)
    assert header is not None
    entry, parity = header["layers"][0], header["parity"]
    figures: Row = {quantity: {"error": parity[quantity], "floor": None, "beside": None} for quantity in QUANTITIES}
    if parity["tolerance"] > TOLERANCE:
        figures["gradients"]["floor"] = parity["tolerance"] / SLACK
    return {
        "layer": entry["name"],
        "shape": entry["shape"],
        "oracle": "captured program",
        "figures": figures,
        "passed": True,
    }


def _autograd(model: Any, layer: str, batch: Any, targets: Any) -> tuple[Any, Any, Any, Any]:
    """Scores, the layer's value, d score[n, target[n]] / d value, and the targets with top-1 in place of negatives."""
    import numpy as np
    import torch

    values: list[Any] = []

    def hook(_: Any, __: Any, output: Any) -> Any:
        values.append(output.clone().requires_grad_() if not output.requires_grad else output.clone())
        return values[-1].clone()

    handle = dict(model.named_modules())[layer].register_forward_hook(hook)
    try:
        scores = model(batch)
    finally:
        handle.remove()
    classes = np.where(targets < 0, scores.detach().numpy().argmax(axis=1), targets)
    total = scores.gather(1, torch.as_tensor(classes)[:, None]).sum()
    (gradient,) = torch.autograd.grad(total, values[-1])
    return scores.detach().numpy(), values[-1].detach().numpy(), gradient.numpy(), classes
