"""PyTorch's own numbers for a model: scores, layer values, and autograd's gradients of scores at those values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from onnxcam.errors import LayerError, ModelError
from onnxcam.exporters import task_scalars
from onnxcam.exporters.reasons import first_line
from onnxcam.exporters.torch_module import Target, Watched, first_tensor, frozen, run, tensors, with_first
from onnxcam.targets.readout import Readout

Forward = Callable[[Tensor, Callable[[int, Tensor], Tensor]], Any]

_PROBABILITY = {"softmax", "_softmax", "log_softmax", "_log_softmax", "sigmoid", "sigmoid_"}


class Endings(TorchFunctionMode):  # type: ignore[misc]
    """Record the input and the output of every Softmax, LogSoftmax and Sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").split(".")[0]
        before = args[0] if args else (kwargs or {}).get("input")
        if name == "sigmoid_" and isinstance(before, Tensor):
            before = before.clone()
        result = func(*args, **(kwargs or {}))
        if name in _PROBABILITY and isinstance(before, Tensor) and isinstance(result, Tensor):
            self.calls.append((name.strip("_"), before, result))
        return result

    def ending(self, output: Tensor) -> tuple[str, Tensor] | None:
        """The kind and the input of the last of them, if it made this output."""
        for name, before, result in reversed(self.calls):
            if result.numel() == output.numel() and torch.equal(result.detach().flatten(), output.detach().flatten()):
                return name, before
        return None

    def nearest(self, output: Tensor) -> tuple[str, Tensor] | None:
        """As `ending`, but for steps that follow: a clip, a multiple, an order by rank."""
        rows = output.detach().reshape(len(output), -1)
        for name, before, result in reversed(self.calls):
            values = result.detach().reshape(len(result), -1).to(rows.dtype)
            if len(values) != len(rows) or values.shape[1] < rows.shape[1]:
                continue
            ranked = values.sort(dim=1, descending=True).values[:, : rows.shape[1]]
            for candidate in (values, 100 * values, ranked):
                if candidate.shape == rows.shape and torch.allclose(candidate, rows, rtol=0, atol=1e-5):
                    return name, before
        return None


def log_probabilities(output: Tensor, readout: Readout) -> Tensor:
    """log p of the probabilities that a model returns, or log p - log(1 - p) of those of one class."""
    p = output.reshape(len(output), -1) / readout.scale
    smallest = torch.finfo(p.dtype).tiny
    logarithm = p.clamp(min=smallest).log()
    return logarithm if readout.logarithmic else logarithm - (1 - p).clamp(min=smallest).log()


class Evaluation:
    """One batch through the model, with the graph that autograd needs: a `parity.Reference`.

    Arguments:
        forward: the model, which hands each target layer's value to its second argument and goes on with what it gets.
        count: number of target layers.
        batch: `[N, …]`, on the CPU.
        place: which output tensors hold the scores: one of a classifier, of another task those that are its columns.
        readout: the meaning of the scores.
        stepped_over: whether a Softmax or Sigmoid ends the model and its input is meant.

    Raises:
        ModelError: the scores cannot be differentiated.
    """

    def __init__(
        self, forward: Forward, count: int, batch: Tensor, place: Sequence[int], readout: Readout, stepped_over: bool
    ) -> None:
        values: dict[int, Tensor] = {}

        def tap(layer: int, value: Tensor) -> Tensor:
            leaf = value.clone()
            if not leaf.requires_grad:
                leaf.requires_grad_()
            values[layer] = leaf
            return leaf.clone()  # what follows may edit this one in place; `leaf` stays what the layer returned

        with torch.inference_mode(False), torch.enable_grad():
            with Endings() as endings:
                outputs = tensors(forward(batch, tap))
            scores = outputs[place[0]]
            if readout.task is not None:
                dtype = next(outputs[k].dtype for k in place if outputs[k].is_floating_point())
                scores = torch.cat([outputs[k].reshape(len(batch), -1).to(dtype) for k in place], dim=1)
            ending = None
            if stepped_over and readout.task is None and not (readout.logarithmic or readout.numeric):
                ending = endings.ending(scores) or endings.nearest(scores)
            if ending is not None:
                scores = ending[1]
            elif readout.logarithmic or (stepped_over and readout.probabilities_output and not readout.exclusive):
                scores = log_probabilities(scores, readout)
            self._scores = scores.reshape(len(scores), -1)
        self._readout = readout
        self._values = [values[layer] for layer in range(count)]
        if not self._scores.requires_grad:
            raise ModelError(
                "the scores do not depend on the target layer for PyTorch's autograd (a detach, or no_grad inside the "
                "model?), so the gradients cannot be verified; choose another layer, or export with verify=False"
            )
        self.scores = _array(self._scores)
        self.outputs = [_array(output) for output in outputs]
        self.activations = [_array(value) for value in self._values]

    def gradients(self, targets: np.ndarray | task_scalars.Target) -> list[np.ndarray]:
        """d score[n, targets[n]] / d value, per target layer; for a binary logit minus that at class 0.

        Of another task than classification d scalar / d value.
        """
        with torch.enable_grad():
            if not isinstance(targets, np.ndarray):
                total = _scalar(self._scores, targets).sum()
            elif self._readout.signed:
                index = torch.as_tensor(targets)
                total = (self._scores[:, 0] * (2 * index - 1)).sum()
            else:
                total = self._scores.gather(1, torch.as_tensor(targets)[:, None]).sum()
        gradients = torch.autograd.grad(total, self._values, retain_graph=True, allow_unused=True)
        if any(gradient is None for gradient in gradients):
            raise LayerError("the scores do not depend on the target layer; choose one between picture and scores")
        return [_array(gradient) for gradient in gradients]


def _scalar(columns: Tensor, target: task_scalars.Target) -> Tensor:
    """The number of each row, `[N]`."""
    if isinstance(target, task_scalars.Sum):
        return (columns * torch.as_tensor(target.weights, dtype=columns.dtype)).sum(dim=1)
    if isinstance(target, task_scalars.Product):
        return columns.gather(1, torch.as_tensor(target.columns)).prod(dim=1)
    reference = torch.as_tensor(target.reference, dtype=columns.dtype)
    return torch.nn.functional.cosine_similarity(columns, reference, dim=1)


class TorchOracle:
    """A `parity.Oracle`: the model evaluated in float32, or in float64 to measure its own rounding error."""

    def __init__(
        self,
        root: nn.Module,
        forward: Forward,
        count: int,
        *,
        place: Sequence[int],
        readout: Readout,
        stepped_over: bool,
    ) -> None:
        self._root = root
        self._evaluate: Callable[[Any], Evaluation] = lambda picture: Evaluation(
            forward, count, picture, place, readout, stepped_over
        )

    def __call__(self, batch: np.ndarray, double: bool) -> Evaluation | None:
        picture = torch.from_numpy(batch)
        if not double:
            return self._evaluate(picture)
        try:
            with frozen(self._root, torch.float64):
                return self._evaluate(picture.double() if picture.is_floating_point() else picture)
        except Exception:  # a model that casts to float32 by itself has no float64 form
            return None


def by_hooks(watched: Watched, targets: Sequence[Target]) -> Forward:
    """The model with its target layers' outputs handed out through hooks."""
    # two names for one call share one value: each gets a tap of its own, one behind the other
    layers: dict[tuple[str, int], list[int]] = {}
    for place, target in enumerate(targets):
        layers.setdefault((target.module, target.index), []).append(place)

    def forward(picture: Tensor, tap: Callable[[int, Tensor], Tensor]) -> Any:
        def see(name: str, index: int, _: nn.Module, output: Any) -> Any:
            places = layers.get((name, index))
            value = first_tensor(output) if places else None
            if not places or value is None:
                return None
            for layer in places:
                value = tap(layer, value)
            return with_first(output, value)

        with watched.watching(see, [target.module for target in targets]):
            return run(watched.root, picture)

    return forward


def by_program(program: Any, values: Sequence[str]) -> tuple[nn.Module, Forward] | None:
    """The captured program with the values of these names handed out; None where it has no such values."""
    module = program.module()
    names = [node.name for node in module.graph.nodes]
    if any(value not in names for value in values):
        return None

    def forward(picture: Tensor, tap: Callable[[int, Tensor], Tensor]) -> Any:
        class Tapped(torch.fx.Interpreter):  # type: ignore[misc]
            def run_node(self, node: Any) -> Any:
                result = super().run_node(node)
                return tap(values.index(node.name), result) if node.name in values else result

        try:
            return Tapped(module).run(picture)
        except Exception as error:
            raise ModelError(f"the captured program does not run in PyTorch: {first_line(error)}") from error

    return module, forward


def _array(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().numpy(force=True))
