"""A wrapper of an onnxruntime session: it predicts as before, and the monitor observes the predictions."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from onnxcam.errors import InputError, SerializationError, listing
from onnxcam.monitor.interruptions import attempt, interruption
from onnxcam.monitor.predictions import Batch, to_numpy
from onnxcam.network.manifest import Manifest
from onnxcam.targets.readout import Readout

# scores, their form, the inputs
Observe = Callable[[np.ndarray, str, Batch], int]


@dataclass(frozen=True)
class ValueNames:
    """Names of the session's inputs and outputs that the monitor reads.

    Attributes:
        image: the input that is the picture.
        scores: the output that holds the scores; `form` is `logits`, `probabilities` or `auto`.
        features: outputs by the name of the tail's input they are; empty unless every input of the tail is an output.
        parts: of a detector or segmentation all outputs that carry it, in order; empty of a classifier.
    """

    image: str
    scores: str
    form: str
    features: Mapping[str, str]
    parts: tuple[str, ...] = ()

    @property
    def score_outputs(self) -> tuple[str, ...]:
        """Names of the outputs that hold the scores."""
        return self.parts or (self.scores,)

    @property
    def outputs(self) -> list[str]:
        """Names of all outputs that are read."""
        return [*self.score_outputs, *self.features.values()]

    def scores_in(self, values: Mapping[str, Any]) -> Any:
        """The observed scores among outputs by name, None where they were not fetched."""
        if len(self.parts) < 2:
            return values.get(self.score_outputs[0])
        present = {name: values[name] for name in self.parts if name in values}
        return present if len(present) == len(self.parts) else None


def find_values(
    session: Any, manifest: Manifest, form: str, tail: Callable[[], Sequence[str]], entry: Mapping[str, Any]
) -> ValueNames:
    """Find the picture, the scores and, if present, the target layer's value among a session's inputs and outputs.

    Arguments:
        manifest: of the model that explains; `entry` is its entry for the target layer.
        form: the monitor's `scores` setting.
        tail: returns the inputs of the layer's tail; called only if the session outputs the layer's value.

    Raises:
        InputError: the session does not serve the same kind of model.
    """
    inputs = {i.name: list(i.shape) for i in session.get_inputs()}
    outputs = {o.name: list(o.shape) for o in session.get_outputs()}
    image = manifest["input"]["name"]
    if image not in inputs:
        pictures = [name for name, shape in inputs.items() if len(shape) == 4]
        if len(pictures) != 1:
            raise InputError(
                f"the session has inputs {listing(inputs)}; expected {image!r}, the picture of the explained model"
            )
        image = pictures[0]
    if manifest["scores"].get("task") is not None:
        parts = _parts(outputs, manifest)
        return ValueNames(image, parts[0], form, {}, parts)
    scores, output_form = _scores(outputs, manifest)
    features: dict[str, str] = {}
    layer = next((n for n in (entry["value"], entry["activations"]) if n in outputs), None)
    if layer is not None:
        names = {value: layer if value == entry["value"] else value for value in tail()}
        if all(name in outputs for name in names.values()):
            features = names
    return ValueNames(image, scores, form if form != "auto" else output_form, features)


def _parts(outputs: Mapping[str, list[Any]], manifest: Manifest) -> tuple[str, ...]:
    """The outputs that carry the task: those of the model that was augmented, or its columns."""
    columns = str(manifest["scores"]["name"])
    names = tuple(str(name) for name in (manifest.get("source") or {}).get("values", ()))
    if columns in outputs:
        return (columns,)
    if not names or any(name not in outputs for name in names):
        raise InputError(
            f"the session has outputs {listing(outputs)}; expected {listing(names or (columns,))}, which carry the "
            "boxes or cells of the explained model"
        )
    return names


def _scores(outputs: Mapping[str, list[Any]], manifest: Manifest) -> tuple[str, str]:
    readout = Readout.from_manifest(manifest["scores"])
    columns = readout.columns
    wide = {name: shape for name, shape in outputs.items() if len(shape) in (2, 4)}
    for key, form in (("name", "logits"), ("probabilities", "probabilities")):
        name = manifest["scores"].get(key)
        if name in wide and (wide[name][1] == columns or not isinstance(wide[name][1], int)):
            return str(name), form
    if readout.stepped_over:  # the plain model's output is something else: percentages, ranks, bytes
        raise InputError(
            f"the session has outputs {listing(outputs)}, which are neither the scores of the explained model nor its "
            f"probabilities, but what {listing(readout.stepped_over)} made of them; watch a session of the explainable "
            f"file, whose output {readout.value!r} holds the scores"
        )
    fitting = [name for name, shape in wide.items() if shape[1] == columns]
    if len(fitting) == 1:
        return fitting[0], "auto"
    classes = manifest["scores"]["classes"]
    raise InputError(f"the session has outputs {listing(outputs)}; expected one with scores of {classes} classes")


class WatchedSession:
    """An `onnxruntime.InferenceSession` whose `run`, `run_async` and `run_with_iobinding` are observed.

    Results are those of the session, everything else is forwarded to it, and `isinstance` treats the wrapper as one.
    Outputs that the monitor reads and the caller did not request are fetched too (the runtime computes them anyway)
    and removed from the results.
    """

    __slots__ = ("__weakref__", "_monitor", "_names", "_observe", "_report_error", "_session")

    def __init__(
        self,
        session: Any,
        names: ValueNames,
        monitor: object,
        observe: Observe,
        report_error: Callable[[str, BaseException], None],
    ) -> None:
        set_attribute = object.__setattr__  # `__setattr__` forwards to the session
        set_attribute(self, "_monitor", monitor)
        set_attribute(self, "_session", session)
        set_attribute(self, "_names", names)
        set_attribute(self, "_observe", observe)
        set_attribute(self, "_report_error", report_error)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._session)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_session"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._session, name, value)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise SerializationError(
            "a session that a monitor observes cannot be pickled: session and monitor belong to this process; open and "
            "wrap one in each process"
        )

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """Run the session and observe the prediction."""
        names = self._with_read_outputs(output_names)
        if names is None:
            results = self._session.run(output_names, input_feed, run_options)
            self._observe_run(output_names, results, input_feed, _logid(run_options))
            return results
        try:
            results = self._session.run(names, input_feed, run_options)
        except Exception as error:
            failure = error
        else:
            self._observe_run(names, results, input_feed, _logid(run_options))
            return results[: len(output_names)]
        if (passing := interruption(failure)) is not None:
            raise passing
        return self._session.run(output_names, input_feed, run_options)  # raises the session's own error

    def run_async(
        self, output_names: Any, input_feed: Any, callback: Any, user_data: Any, run_options: Any = None
    ) -> Any:
        """Run the session asynchronously; the prediction is observed before the callback may reuse the inputs."""
        names = self._with_read_outputs(output_names) or output_names
        context, logid = copy_context(), _logid(run_options)  # the callback runs in a thread of the session

        def observe_then_call(results: Any, data: Any, error: str) -> None:
            requested = results
            if not error:
                context.run(self._observe_run, names, results, input_feed, logid)
                with contextlib.suppress(Exception):
                    requested = results if names is output_names else results[: len(output_names)]
            callback(requested, data, error)

        return self._session.run_async(names, input_feed, observe_then_call, user_data, run_options)

    def io_binding(self) -> Any:
        """Return a binding of the session that records the bound values."""
        binding = self._session.io_binding()
        self._try(lambda: record_bindings(binding))
        return binding

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> Any:
        """Run the session; observed if the binding was made by `io_binding` and has the scores among its outputs."""
        results = self._session.run_with_iobinding(iobinding, run_options)

        def observe() -> None:
            values = dict(zip(iobinding.onnxcam_outputs, iobinding.get_outputs(), strict=True))
            names = [name for name in self._names.outputs if name in values]
            scores = self._names.score_outputs
            parts = [to_numpy(values[n]) if n in scores else OnDevice(values[n]) for n in names]
            self._observe_run(names, parts, iobinding.onnxcam_inputs, _logid(run_options))

        self._try(observe)
        return results

    def _with_read_outputs(self, output_names: Any) -> list[str] | None:
        """Return the requested outputs plus those the monitor reads; None if nothing has to be added."""
        if not output_names:
            return None

        missing: list[str] = []
        self._try(lambda: missing.extend(name for name in self._names.outputs if name not in output_names))
        return [*output_names, *missing] if missing else None

    def _try(self, function: Callable[[], object]) -> None:
        """Call a function; an error of its own is logged."""
        if (failure := attempt(function)) is not None:
            self._report_error("wrap", failure)

    def _observe_run(self, names: Any, results: Any, feed: Any, logid: str | None) -> None:
        def observe() -> None:
            all_names = names or [output.name for output in self._session.get_outputs()]
            values = dict(zip(all_names, results, strict=False))
            read = self._names
            scores = read.scores_in(values)
            if scores is None:
                return
            features = {value: values[name] for value, name in read.features.items() if name in values}
            complete = features if len(features) == len(read.features) else None
            picture = feed[read.image]
            requests = None if logid is None else [logid] * len(picture if read.parts else scores)
            tensor = OnDevice(picture) if hasattr(picture, "device_name") else np.asarray(picture)
            self._observe(scores, read.form, Batch(tensor=tensor, features=complete, requests=requests))

        self._try(observe)


def watcher_of(session: WatchedSession) -> object:
    """Return the monitor that observes a session."""
    return object.__getattribute__(session, "_monitor")


def wrapped_in(session: WatchedSession) -> Any:
    """Return the session that a wrapper forwards to."""
    return object.__getattribute__(session, "_session")


def _logid(run_options: Any) -> str | None:
    return getattr(run_options, "logid", "") or None


class OnDevice:
    """An `OrtValue` as a batch: copied from its device only when a row is read."""

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


def record_bindings(binding: Any) -> None:
    """Make an `IOBinding` record its inputs and, in order of binding, outputs: `onnxcam_inputs`, `onnxcam_outputs`."""
    base = type(binding)

    class RecordingBinding(base):  # type: ignore[misc, valid-type]
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

    RecordingBinding.__name__, RecordingBinding.__qualname__ = base.__name__, base.__qualname__
    binding.__class__ = RecordingBinding
    binding.onnxcam_inputs = {}
    binding.onnxcam_outputs = {}


def _view(element_type: Any, shape: Sequence[int], pointer: int) -> np.ndarray:
    """View memory that the caller keeps alive as long as it is bound."""
    dtype = np.dtype(element_type)
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    return np.frombuffer((ctypes.c_byte * size).from_address(pointer), dtype).reshape(tuple(shape))
