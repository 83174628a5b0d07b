"""What a PyTorch network computes, by autograd and in a file, and what an export could disturb in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxcam.exporters import parity  # noqa: E402

nn = torch.nn


def picture(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def differentiate(net: Any, pick: Callable[..., Any], batch: Any, targets: Any, logits: Callable[[], Any]) -> Any:
    """Value and gradient at one place of a network, by an `autograd` that shares nothing with the exporter.

    `pick(hold)` puts `hold` (tensor -> tensor to go on with) in place and returns a handle to take it away again;
    `logits()` runs the network and returns the scores.
    """
    values: list[Any] = []

    def hold(tensor: Any) -> Any:
        leaf = tensor.detach().clone().requires_grad_()
        values[:] = [leaf]
        return leaf * 1.0

    handles = pick(hold)
    scores = logits()
    for handle in handles:
        handle.remove()
    total = sum(scores[n, t] for n, t in enumerate(targets))
    (gradient,) = torch.autograd.grad(total, values[0])
    return values[0].detach().numpy(), gradient.numpy(), scores.detach().numpy()


def at(module: Any, call: int = 0) -> Callable[..., Any]:
    """`pick` for the `call`-th output of a module that returns a tensor."""

    def pick(hold: Callable[..., Any]) -> list[Any]:
        count = iter(range(100))
        return [module.register_forward_hook(lambda m, i, o: hold(o) if next(count) == call else None)]

    return pick


def close(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert parity.distance(a, b).max() < 1e-5


def snapshot(net: Any) -> dict[str, Any]:
    """Everything an export could disturb."""
    return {
        "modes": [(name, part.training) for name, part in net.named_modules()],
        "parameters": [(n, id(p), p.data_ptr(), p.dtype, p.requires_grad, p.grad) for n, p in net.named_parameters()],
        "buffers": [(n, id(b), b.clone().tolist()) for n, b in net.named_buffers()],
        "hooks": [(len(p._forward_hooks), len(p._forward_pre_hooks), len(p._backward_hooks)) for p in net.modules()],
        "attributes": [sorted(vars(part)) for part in net.modules()],
        "state": [(n, v.clone().tolist()) for n, v in net.state_dict().items()],
    }
