"""A Keras model during its export: its layers named by paths, their calls watched and their outputs replaced."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from onnxcam.errors import DependencyError, LayerError, ModelError, listing, nearest
from onnxcam.exporters import frameworks
from onnxcam.exporters.reasons import first_line, reason
from onnxcam.graph.shape_inference import describe
from onnxcam.network.layout import Layout

CHANNELS_LAST, CHANNELS_FIRST = Layout("NHWC"), Layout("NCHW")
# layers whose `data_format` says nothing of the values before them
_FORMLESS = ("Flatten",)
See = Callable[[str, int, Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of one layer.

    Attributes:
        name: the layer's path, "" for the model itself.
        index: 0 for its first call.
        layer: the layer called.
        leaf: whether it called no other layer that has a path.
        value: the first tensor it returned as an array, None where it returned none.
        layout: the axes of a value of four dimensions: as the last layer with a `data_format` has them.
    """

    name: str
    index: int
    layer: Any
    leaf: bool
    value: np.ndarray | None
    layout: Layout = CHANNELS_LAST


@dataclasses.dataclass(frozen=True)
class Target:
    """A target layer: the output of the `index`-th call of the layer at `path`, under the name users gave it."""

    name: str
    path: str
    index: int
    shape: tuple[int, ...]
    layout: Layout = CHANNELS_LAST


class Watched:
    """A model whose layer calls can be watched and whose layers' outputs can be replaced.

    Nested models' layers have paths, `efficientnetb0/top_conv`. Works for Keras 3 and for tf_keras.

    Raises:
        ModelError: not a Keras model, or one that does not run on TensorFlow.
    """

    def __init__(self, model: Any) -> None:
        self.root = model
        self.family, self._base = _family(model)
        self._paths: dict[int, str] = {id(model): ""}
        self.layers: dict[str, list[Any]] = {}
        self._walk(model, "", {id(model)})

    def _walk(self, parent: Any, prefix: str, above: set[int]) -> None:
        for layer in parent._flatten_layers(include_self=False, recursive=False):
            path = f"{prefix}{layer.name}"
            namesakes = self.layers.setdefault(path, [])
            if all(layer is not other for other in namesakes):
                namesakes.append(layer)
            self._paths.setdefault(id(layer), path)
            if id(layer) not in above:
                self._walk(layer, f"{path}/", above | {id(layer)})

    @contextmanager
    def watching(self, see: See) -> Iterator[None]:
        """Call `see(path, call index, layer, output)` whenever a layer returns; what it returns replaces the output.

        None leaves the output as it is. Paths are those under which a layer was found first.
        """
        counts: dict[int, int] = {}
        original = self._base.__call__
        paths = self._paths

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            path = paths.get(id(layer))
            if path is None:
                return original(layer, *args, **kwargs)
            if not path:
                counts.clear()  # a function may be traced more than once under one watcher
            output = original(layer, *args, **kwargs)
            index = counts.get(id(layer), 0)
            counts[id(layer)] = index + 1
            replaced = see(path, index, layer, output)
            return output if replaced is None else replaced

        self._base.__call__ = call
        try:
            yield
        finally:
            self._base.__call__ = original

    def run(self, picture: Any) -> Any:
        """The model in inference mode."""
        return self.root(picture, training=False)

    def calls(self, picture: np.ndarray) -> tuple[list[Call], Any]:
        """Every layer call in the order in which the layers return, and what the model returns.

        Raises:
            ModelError: the model does not run on this picture.
        """
        tensorflow = import_tensorflow()
        calls: list[Call] = []
        returned: set[str] = set()
        layouts = [layout_of_picture(self, picture.shape[1:])]

        def see(path: str, index: int, layer: Any, output: Any) -> None:
            tensor = first_tensor(output)
            leaf = not any(inner.startswith(f"{path}/") for inner in returned)
            returned.add(path)
            layouts.append(_layout(layer) or layouts[-1])
            calls.append(Call(path, index, layer, leaf, None if tensor is None else np.asarray(tensor), layouts[-1]))

        try:
            with self.watching(see), tensorflow.device("/CPU:0"):
                output = self.run(tensorflow.constant(picture))
        except Exception as error:
            # TensorFlow's own convolutions take channels last alone on a CPU
            first = isinstance(error, tensorflow.errors.UnimplementedError) and "NCHW" in str(error)
            hint = "; set TF_ENABLE_ONEDNN_OPTS=1 before TensorFlow is imported" if first else ""
            raise ModelError(
                f"the model does not run on a picture batch {list(picture.shape)} {picture.dtype}: "
                f"{reason(error)}{hint}"
            ) from error
        return calls, output

    def resolve(self, layer: Any, calls: Sequence[Call]) -> Target:
        """A target layer from its path, its bare name, `name#k` for the k-th call, or the layer object.

        Raises:
            LayerError: unknown, ambiguous, never called, or without an array to explain.
        """
        if isinstance(layer, str):
            name, path, index = self._named(layer)
        elif id(layer) in self._paths and self._paths[id(layer)]:
            name = path = self._paths[id(layer)]
            index = None
        else:
            raise LayerError(
                f"{layer!r} is neither a layer of this model nor a layer's name; the last ones are "
                f"{listing(list(self.layers)[-5:])}"
            )
        calls = [call for call in calls if call.name == path]
        if not calls:
            raise LayerError(f"layer {name!r} is not called when the model predicts; choose one that is")
        if index is not None and index >= len(calls):
            raise LayerError(
                f"layer {name!r} is called {len(calls)} times, so {path}#{len(calls) - 1} is its last call"
            )
        call = calls[-1 if index is None else index]
        if call.value is None:
            raise LayerError(f"layer {name!r} returns no tensor; choose another target layer")
        if call.value.ndim not in (3, 4):
            raise LayerError(
                f"layer {name!r} returns {describe(('N', *call.value.shape[1:]))}; expected a spatial map "
                "[N, h, w, C] or tokens [N, T, C]: choose an earlier layer"
            )
        return Target(name, path, call.index, tuple(call.value.shape), call.layout)

    def _named(self, text: str) -> tuple[str, str, int | None]:
        """Name, path and call index of the layer that a text names."""
        match = re.fullmatch(r"(.+)#(\d+)", text)
        name, index = (match[1], int(match[2])) if match and text not in self.layers else (text, None)
        paths = [path for path in self.layers if path == name]
        paths = paths or [path for path in self.layers if path.endswith(f"/{name}")]
        owners = {id(layer): path for path in paths for layer in self.layers[path]}
        if len(owners) > 1:
            places = sorted({self._paths[layer] for layer in owners})
            raise LayerError(
                f"{len(owners)} layers are called {name!r}"
                + (f": {listing(places)}; give the whole path" if len(places) > 1 else "; pass the layer object")
            )
        if not owners:
            inside = list(dict.fromkeys([*self.layers, *(path.rpartition("/")[2] for path in self.layers)]))
            raise LayerError(f"the model has no layer {name!r}; the nearest are {listing(nearest(name, inside))}")
        path = self._paths[next(iter(owners))]
        return path if index is None else f"{path}#{index}", path, index


def _family(model: Any) -> tuple[str, Any]:
    """`keras` or `tf_keras`, and the class all its layers have in common.

    Raises:
        ModelError: not a Keras model, or Keras runs on another framework here.
    """
    is_keras = frameworks.of_model(model) == "Keras"
    layer = next((base for base in type(model).__mro__ if is_keras and base.__name__ == "Layer"), None)
    family = None if layer is None else layer.__module__.partition(".")[0]
    if family == "keras":
        import keras

        running = keras.backend.backend()
        if running != "tensorflow":
            raise ModelError(
                f"Keras runs on {running} here, and the exporter needs TensorFlow: save the model as a .keras file and "
                "export that with the environment variable KERAS_BACKEND=tensorflow"
            )
    if family is None or not hasattr(model, "layers"):
        raise ModelError(f"got a {type(model).__name__}; expected a Keras model")
    return family, layer


def import_tensorflow() -> Any:
    """TensorFlow, quiet.

    Raises:
        DependencyError: it is missing or broken.
    """
    if "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with _silent():
            import tensorflow
    except ImportError as error:
        raise DependencyError(
            f"exporting a Keras model needs TensorFlow ({first_line(error)}): pip install 'onnxcam[keras]'"
        ) from error
    return tensorflow


@contextmanager
def _silent() -> Iterator[None]:
    """Close standard error: TensorFlow prints while it loads, whatever its settings and Python's loggers are."""
    if "tensorflow" in sys.modules:
        yield
        return
    try:
        original = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(null)
        os.close(original)


def tensors(output: Any) -> list[Any]:
    """The tensors of a model's output, in order; a dict's by its keys' order."""
    if isinstance(output, dict):
        return [tensor for value in output.values() for tensor in tensors(value)]
    if isinstance(output, (list, tuple)):
        return [tensor for value in output for tensor in tensors(value)]
    return [output] if hasattr(output, "dtype") and hasattr(output, "shape") else []


def first_tensor(output: Any) -> Any:
    """The first tensor of a layer's output, None where there is none."""
    return next(iter(tensors(output)), None)


def with_first(output: Any, tensor: Any) -> Any:
    """A layer's output with its first tensor replaced."""
    if isinstance(output, dict):
        output = dict(output)
        for key, value in output.items():
            if tensors(value):
                output[key] = with_first(value, tensor)
                return output
    if isinstance(output, (list, tuple)):
        items = list(output)
        place = next(k for k, value in enumerate(items) if tensors(value))
        items[place] = with_first(items[place], tensor)
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    mask = getattr(output, "_keras_mask", None)
    if mask is not None:
        tensor._keras_mask = mask
    return tensor


def layout_of_picture(watched: Watched, shape: Sequence[int | None]) -> Layout:
    """The axes of a picture of this shape (without the batch): by its number of channels, else by the first layer."""
    if len(shape) == 3 and (shape[0] in (1, 3, 4)) != (shape[2] in (1, 3, 4)):
        return CHANNELS_FIRST if shape[0] in (1, 3, 4) else CHANNELS_LAST
    layouts = (_layout(layer) for layers in watched.layers.values() for layer in layers)
    return next((layout for layout in layouts if layout is not None), CHANNELS_LAST)


def _layout(layer: Any) -> Layout | None:
    """The axes that a layer's `data_format` names, None for a layer without one."""
    names = {"channels_first": CHANNELS_FIRST, "channels_last": CHANNELS_LAST}
    return None if type(layer).__name__ in _FORMLESS else names.get(str(getattr(layer, "data_format", None)))
