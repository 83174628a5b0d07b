"""A session that predicts as before, and shows the monitor what it predicted."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcam.errors import InputError, listing
from onnxcam.monitor.predictions import Batch, to_numpy
from onnxcam.network.manifest import Manifest
from onnxcam.targets.readout import Readout

# scores, their form, what came with them
Observe = Callable[[np.ndarray, str, Batch], int]


@dataclass(frozen=True)
class Wiring:
    """Which of a session's values the monitor reads.

    Attributes:
        image: the input that is the picture.
        scores: the output that holds the scores; `form` says what they are.
        features: outputs behind the target layer by the tail's own names for them, empty where they are not all there.
    """

    image: str
    scores: str
    form: str
    features: Mapping[str, str]

    @property
    def outputs(self) -> list[str]:
        """Every output that is read."""
        return [self.scores, *self.features.values()]


def connect(
    session: Any, held: Manifest, form: str, tail: Callable[[], Sequence[str]], entry: Mapping[str, Any]
) -> Wiring:
    """Find the picture, the scores and perhaps the target layer's value among a session's inputs and outputs.

    Arguments:
        held: the manifest of the model that explains; `entry` is its target layer's.
        form: the monitor's `scores` setting.
        tail: the values that the layer's tail starts from; asked for only where the session shows the layer's value.

    Raises:
        InputError: the session does not serve the same kind of model.
    """
    inputs = {i.name: list(i.shape) for i in session.get_inputs()}
    outputs = {o.name: list(o.shape) for o in session.get_outputs()}
    image = held["input"]["name"]
    if image not in inputs:
        pictures = [name for name, shape in inputs.items() if len(shape) == 4]
        if len(pictures) != 1:
            raise InputError(
                f"the session has inputs {listing(inputs)}; expected {image!r}, the picture of the explained model"
            )
        image = pictures[0]
    scores, found_form = _scores(outputs, held)
    features: dict[str, str] = {}
    shown = next((n for n in (entry["value"], entry["activations"]) if n in outputs), None)
    if shown is not None:
        names = {value: shown if value == entry["value"] else value for value in tail()}
        if all(name in outputs for name in names.values()):
            features = names
    return Wiring(image, scores, form if form != "auto" else found_form, features)


def _scores(outputs: Mapping[str, list[Any]], held: Manifest) -> tuple[str, str]:
    columns = Readout.from_manifest(held["scores"]).columns
    wide = {name: shape for name, shape in outputs.items() if len(shape) in (2, 4)}
    for key, form in (("name", "logits"), ("probabilities", "probabilities")):
        name = held["scores"].get(key)
        if name in wide and (wide[name][1] == columns or not isinstance(wide[name][1], int)):
            return str(name), form
    fitting = [name for name, shape in wide.items() if shape[1] == columns]
    if len(fitting) == 1:
        return fitting[0], "auto"
    raise InputError(
        f"the session has outputs {listing(outputs)}; expected one with scores of {held['scores']['classes']} classes"
    )


class WatchedSession:
    """An `onnxruntime.InferenceSession` whose `run`, `run_async` and `run_with_iobinding` are watched.

    Results are those of the session, everything else is forwarded to it, and `isinstance` says it is one. Where the
    outputs asked for do not include what the monitor reads, they are fetched with them (the runtime computes them
    anyway) and taken out of the answer.
    """

    __slots__ = ("__weakref__", "_complain", "_observe", "_session", "_wiring")

    def __init__(
        self, session: Any, wiring: Wiring, observe: Observe, complain: Callable[[str, BaseException], None]
    ) -> None:
        put = object.__setattr__
        put(self, "_session", session)
        put(self, "_wiring", wiring)
        put(self, "_observe", observe)
        put(self, "_complain", complain)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._session)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_session"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._session, name, value)

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """As the session's own."""
        names = self._fetched(output_names)
        if names is None:
            results = self._session.run(output_names, input_feed, run_options)
            self._look(output_names, results, input_feed, run_options)
            return results
        try:
            results = self._session.run(names, input_feed, run_options)
        except Exception:
            return self._session.run(output_names, input_feed, run_options)  # raises what it would have raised
        self._look(names, results, input_feed, run_options)
        return results[: len(output_names)]

    def run_async(
        self, output_names: Any, input_feed: Any, callback: Any, user_data: Any, run_options: Any = None
    ) -> Any:
        """As the session's own; the monitor looks before the callback is called, while the feed is still the call's."""
        names = self._fetched(output_names) or output_names

        def watched(results: Any, data: Any, error: str) -> None:
            asked = results
            if not error:
                self._look(names, results, input_feed, run_options)
                with contextlib.suppress(Exception):
                    asked = results if names is output_names else results[: len(output_names)]
            callback(asked, data, error)

        return self._session.run_async(names, input_feed, watched, user_data, run_options)

    def io_binding(self) -> Any:
        """As the session's own; remembers what is bound."""
        binding = self._session.io_binding()
        try:
            remember_bindings(binding)
        except Exception as error:
            self._complain("wrap", error)
        return binding

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> Any:
        """As the session's own; seen are bindings made by `io_binding`, with the scores among their outputs."""
        results = self._session.run_with_iobinding(iobinding, run_options)
        try:
            values = dict(zip(iobinding.onnxcam_outputs, iobinding.get_outputs(), strict=True))
            names = [name for name in self._wiring.outputs if name in values]
            parts = [to_numpy(values[n]) if n == self._wiring.scores else OnDevice(values[n]) for n in names]
            self._look(names, parts, iobinding.onnxcam_inputs, run_options)
        except Exception as error:
            self._complain("wrap", error)
        return results

    def _fetched(self, output_names: Any) -> list[str] | None:
        """The outputs asked for with those missing that the monitor reads; None where none are missing."""
        if not output_names:
            return None
        try:
            missing = [name for name in self._wiring.outputs if name not in output_names]
            return [*output_names, *missing] if missing else None
        except Exception as error:
            self._complain("wrap", error)
            return None

    def _look(self, names: Any, results: Any, feed: Any, run_options: Any) -> None:
        try:
            named = names or [output.name for output in self._session.get_outputs()]
            found = dict(zip(named, results, strict=False))
            wiring = self._wiring
            scores = found.get(wiring.scores)
            if scores is None:
                return
            features = {value: found[name] for value, name in wiring.features.items() if name in found}
            complete = features if len(features) == len(wiring.features) else None
            tag = getattr(run_options, "logid", "") or None
            requests = None if tag is None else [tag] * len(scores)
            picture = feed[wiring.image]
            tensor = OnDevice(picture) if hasattr(picture, "device_name") else np.asarray(picture)
            self._observe(scores, wiring.form, Batch(tensor=tensor, features=complete, requests=requests))
        except Exception as error:
            self._complain("wrap", error)


class OnDevice:
    """An `OrtValue` as a batch: fetched from where it is only if one of its rows is wanted."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._array: np.ndarray | None = None
        self.shape = tuple(value.shape())

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return int(self._value.tensor_size_in_bytes())

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice) -> np.ndarray:
        if self._array is None:
            self._array = np.asarray(self._value.numpy())
        return self._array[rows]


def remember_bindings(binding: Any) -> None:
    """Let an `IOBinding` keep what it was told: `onnxcam_inputs` by name, `onnxcam_outputs` in the order of binding."""
    base = type(binding)

    class Remembering(base):  # type: ignore[misc, valid-type]
        def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None:
            super().bind_cpu_input(name, arr_on_cpu)
            self.onnxcam_inputs[name] = arr_on_cpu

        def bind_input(
            self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
        ) -> None:
            super().bind_input(name, device_type, device_id, element_type, shape, buffer_ptr)
            self.onnxcam_inputs.pop(name, None)
            if device_type == "cpu" and not isinstance(element_type, int):
                self.onnxcam_inputs[name] = _view(element_type, shape, buffer_ptr)

        def bind_ortvalue_input(self, name: str, ortvalue: Any) -> None:
            super().bind_ortvalue_input(name, ortvalue)
            self.onnxcam_inputs[name] = ortvalue

        def bind_output(self, name: str, *args: Any, **kwargs: Any) -> None:
            super().bind_output(name, *args, **kwargs)
            self.onnxcam_outputs[name] = None

        def bind_ortvalue_output(self, name: str, ortvalue: Any) -> None:
            super().bind_ortvalue_output(name, ortvalue)
            self.onnxcam_outputs[name] = None

        def clear_binding_inputs(self) -> None:
            super().clear_binding_inputs()
            self.onnxcam_inputs.clear()

        def clear_binding_outputs(self) -> None:
            super().clear_binding_outputs()
            self.onnxcam_outputs.clear()

    Remembering.__name__, Remembering.__qualname__ = base.__name__, base.__qualname__
    binding.__class__ = Remembering
    binding.onnxcam_inputs = {}
    binding.onnxcam_outputs = {}


def _view(element_type: Any, shape: Sequence[int], pointer: int) -> np.ndarray:
    """Memory that the caller keeps alive as long as it is bound."""
    dtype = np.dtype(element_type)
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    return np.frombuffer((ctypes.c_byte * size).from_address(pointer), dtype).reshape(tuple(shape))
