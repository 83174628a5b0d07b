"""A PyTorch model during its export: on the CPU, restored afterwards, its modules watched call by call."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from onnxcam.errors import InputError, LayerError, ModelError, listing, nearest
from onnxcam.exporters.reasons import first_line
from onnxcam.graph.shape_inference import describe

Tap = Callable[[Tensor], Tensor | None]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of one module.

    Attributes:
        name: the module's dotted name, "" for the model itself.
        index: 0 for its first call.
        module: the module called.
        shape: of the first tensor it returned, None where it returned none.
    """

    name: str
    index: int
    module: nn.Module
    shape: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Target:
    """A target layer: the output of the `index`-th call of the module called `module`, under the name users gave it."""

    name: str
    module: str
    index: int
    shape: tuple[int, ...]


class Watched:
    """A model whose module calls can be watched and whose modules' outputs can be replaced.

    Arguments:
        model: a module, or a `torch.export.ExportedProgram`, which is unflattened into its modules again.

    Raises:
        ModelError: neither of them, or a program exported for one fixed batch size.
    """

    def __init__(self, model: Any) -> None:
        self.exported = isinstance(model, torch.export.ExportedProgram)
        if self.exported:
            require_free_batch(model)
            self.root: nn.Module = torch.export.unflatten(model)
        elif isinstance(model, torch.jit.ScriptModule):
            raise ModelError(
                "the model is a TorchScript module, whose layers cannot be watched; export the nn.Module it was "
                "scripted or traced from"
            )
        elif isinstance(model, nn.Module):
            self.root = unwrap(model)
        else:
            raise ModelError(
                f"got a {type(model).__name__}; expected a torch.nn.Module or a torch.export.ExportedProgram"
            )
        self.names: dict[str, str] = {}
        first: dict[int, str] = {}
        self._modules: dict[str, list[nn.Module]] = {}
        for path, module in self.root.named_modules(remove_duplicate=False):
            # unflattening calls the second call's module `name@1`: here it is the second call of `name`
            plain = re.sub(r"@\d+", "", path) if self.exported else path
            name = first.setdefault(id(module), plain)
            self.names.setdefault(plain, name)
            if module not in self._modules.setdefault(name, []):
                self._modules[name].append(module)

    @contextmanager
    def watching(
        self, see: Callable[[str, int, nn.Module, Any], Any], names: Sequence[str] | None = None
    ) -> Iterator[None]:
        """Call `see(name, call index, module, output)` whenever a module returns; what it returns replaces the output.

        Arguments:
            see: the watcher; None leaves the output as it is.
            names: the modules to watch, all of them by default.
        """
        counts: dict[str, int] = {}
        handles = []

        def watch(name: str) -> Callable[[nn.Module, Any, Any], Any]:
            def hook(module: nn.Module, _: Any, output: Any) -> Any:
                index = counts.get(name, 0)
                counts[name] = index + 1
                return see(name, index, module, output)

            return hook

        def restart(module: nn.Module, _: Any) -> None:
            counts.clear()  # an exporter may run the model several times under one set of hooks

        try:
            handles.append(self.root.register_forward_pre_hook(restart))
            for name in self._modules if names is None else dict.fromkeys(names):
                handles.extend(module.register_forward_hook(watch(name)) for module in self._modules[name])
            yield
        finally:
            for handle in handles:
                handle.remove()

    def calls(self, picture: Tensor) -> tuple[list[Call], Any]:
        """Every module call in the order in which the modules return, and the model's output.

        Raises:
            ModelError: the model does not run on this input.
        """
        calls: list[Call] = []

        def see(name: str, index: int, module: nn.Module, output: Any) -> None:
            tensor = first_tensor(output)
            calls.append(Call(name, index, module, None if tensor is None else tuple(int(d) for d in tensor.shape)))

        with self.watching(see), torch.no_grad():
            output = run(self.root, picture)
        return calls, output

    def resolve(self, layer: str | nn.Module, calls: Sequence[Call], rows: int) -> Target:
        """The target layer meant by a module name, `name#k` or a module object.

        Raises:
            LayerError: no such module, not called, or its output is neither a spatial map nor a sequence of tokens.
        """
        label, name, index = self._locate(layer, calls)
        own_calls = [call for call in calls if call.name == name]
        if not own_calls:
            usable = [call.name for call in calls if call.name and is_map(call.shape, rows)]
            raise LayerError(
                f"module {label!r} is not called when the model runs, so it has no output; "
                f"choose one that is: {listing(nearest(label, usable))}"
            )
        if index is None:
            index = len(own_calls) - 1
        if index >= len(own_calls):
            raise LayerError(
                f"layer {label!r}: module {name!r} is called {len(own_calls)} times; expected {name}#0 to "
                f"{name}#{len(own_calls) - 1}"
            )
        shape = own_calls[index].shape
        if shape is None or not is_map(shape, rows):
            usable = [call.name for call in calls if call.name and is_map(call.shape, rows)]
            output = "no tensor" if shape is None else f"a tensor of shape {describe(shape)} for {rows} pictures"
            raise LayerError(
                f"layer {label!r} returns {output}; expected a spatial map [N, C, h, w] or [N, h, w, C], or tokens "
                f"[N, T, C], as return {listing(nearest(label, usable))}"
            )
        return Target(label, name, index, shape)

    def _locate(self, layer: str | nn.Module, calls: Sequence[Call]) -> tuple[str, str, int | None]:
        if isinstance(layer, nn.Module):
            for name, modules in self._modules.items():
                if any(module is layer for module in modules):
                    return name or "", name, None
            raise LayerError(
                f"the {type(layer).__name__} given as a layer is not a module of the model; give a module of the model "
                "that is exported (not of a copy), or its name"
            )
        if not isinstance(layer, str):
            raise LayerError(f"got a {type(layer).__name__} as a layer; expected a module's name or the module itself")
        if layer in self.names:
            return layer, self.names[layer], None
        path, _, number = layer.rpartition("#")
        index = int(number) if path and number.isdigit() else None
        if index is None:
            path = layer
        for prefix in ("module.", "_orig_mod."):  # what DataParallel and torch.compile put before every name
            path = path.removeprefix(prefix) if path not in self.names else path
        if path in self.names:
            return (path if index is None else f"{path}#{index}"), self.names[path], index
        inside = [name for name in self.names if name.endswith(f".{path}")]
        if len({self.names[name] for name in inside}) == 1:
            name = inside[0]
            return (name if index is None else f"{name}#{index}"), self.names[name], index
        if inside:
            raise LayerError(f"layer {layer!r} is ambiguous; it could be {listing(inside)}: give the whole name")
        called = [name for name in dict.fromkeys(call.name for call in calls) if name]
        raise LayerError(f"the model has no module {layer!r}; the nearest are {listing(nearest(path, called))}")


def require_free_batch(program: Any) -> None:
    """Refuse a program whose batch size was fixed when it was exported."""
    inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in inputs:
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.ndim and not isinstance(value.shape[0], torch.SymInt):
                raise ModelError(
                    f"the exported program takes exactly {int(value.shape[0])} picture(s) at a time; export it again "
                    "from an example of two rows with a free batch dimension: torch.export.export(model, (example,), "
                    'dynamic_shapes=({0: torch.export.Dim("N")},))'
                )


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel or torch.compile."""
    while True:
        wrapped = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        inner = getattr(model, "module" if wrapped else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def run(module: nn.Module, picture: Tensor) -> Any:
    """The module's output for a batch.

    Raises:
        ModelError: it does not run on that batch.
    """
    try:
        return module(picture)
    except (LayerError, ModelError):
        raise
    except Exception as error:
        raise ModelError(
            f"the model does not run on a {str(picture.dtype).removeprefix('torch.')} input of shape "
            f"{describe(tuple(picture.shape))}: {first_line(error)}; give example inputs of the size it was trained on"
        ) from error


def is_map(shape: tuple[int, ...] | None, rows: int) -> bool:
    """Whether a CAM can be computed at a value: `[N, C, h, w]`, `[N, h, w, C]` or `[N, T, C]` of several positions."""
    if shape is None or not shape or shape[0] != rows:
        return False
    if len(shape) == 3:
        return shape[1] > 1
    return len(shape) == 4 and shape[2:] != (1, 1) and shape[1:3] != (1, 1)


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor of a module's output: itself, or the first inside a tuple, list, dict or dataclass."""
    if isinstance(output, Tensor):
        return output
    parts: Sequence[Any] = ()
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, (tuple, list)):
        parts = output
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        parts = [getattr(output, field.name) for field in dataclasses.fields(output)]
    return next((tensor for part in parts if (tensor := first_tensor(part)) is not None), None)


def tensors(output: Any) -> list[Tensor]:
    """The tensors in a module's output, in order."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def with_first(output: Any, value: Tensor) -> Any:
    """The output with its first tensor replaced, the rest as it was.

    Raises:
        LayerError: the output is a structure that cannot be rebuilt.
    """
    leaves, spec = torch.utils._pytree.tree_flatten(output)
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            leaves[place] = value
            return torch.utils._pytree.tree_unflatten(leaves, spec)
    raise LayerError(
        f"the layer returns a {type(output).__name__}, whose tensors cannot be replaced one by one; choose a module "
        "inside it that returns a tensor, or export with verify=False"
    )


@contextmanager
def frozen(module: nn.Module, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Hold the module in eval mode, on the CPU, in one floating-point type; on leaving restore it exactly.

    Nothing is copied if it is on the CPU in that type already. Otherwise parameters and buffers are exchanged for
    converted ones and the same objects put back at the end, so that optimizers, `.grad` and shared weights are not
    affected; a deep copy would need twice the memory, and many modules cannot be deep-copied.
    """
    modes = [(part, part.training) for part in module.modules()]
    exchanged: list[tuple[nn.Module, str, Tensor]] = []
    converted: dict[int, Tensor] = {}
    try:
        try:
            module.eval()
        except NotImplementedError:  # graph modules of torch.export refuse it: their mode was fixed when exported
            for part, _ in modes:
                part.training = False
        for part, _ in modes:
            for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
                if tensor is None or not _differs(tensor, dtype):
                    continue
                if id(tensor) not in converted:
                    converted[id(tensor)] = _converted(tensor, dtype)
                exchanged.append((part, name, tensor))
                setattr(part, name, converted[id(tensor)])
        yield
    finally:
        for part, name, tensor in exchanged:
            setattr(part, name, tensor)
        for part, mode in modes:
            part.training = mode


def _differs(tensor: Tensor, dtype: torch.dtype) -> bool:
    return bool(tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != dtype))


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.device.type == "meta" or nn.parameter.is_lazy(tensor):
        raise ModelError("the model has parameters without values; load its weights (and run it once) before exporting")
    moved = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
    return nn.Parameter(moved, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved


def example(inputs: Any) -> Tensor:
    """The example picture batch as two rows on the CPU, in float32 where it is floating-point.

    Arguments:
        inputs: a tensor or array `[N, C, H, W]`, or a tuple or list of exactly one.

    Raises:
        InputError: several inputs, or not a batch of pictures.
    """
    if isinstance(inputs, (tuple, list)):
        if len(inputs) != 1:
            raise InputError(f"got {len(inputs)} example inputs; expected one, a batch of pictures")
        inputs = inputs[0]
    try:
        picture = torch.as_tensor(inputs).detach().to("cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"got a {type(inputs).__name__} as example inputs; expected a tensor [N, C, H, W]") from error
    if picture.ndim != 4 or not picture.shape[0]:
        raise InputError(
            f"the example input has shape {describe(tuple(picture.shape))}; expected a batch of pictures, [N, C, H, W]"
        )
    if picture.is_floating_point():
        picture = picture.float()
    # from one row torch.export concludes that the batch size is always one
    return picture[:2].clone() if picture.shape[0] > 1 else picture.repeat(2, 1, 1, 1)
