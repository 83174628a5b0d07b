"""State dicts: read without running any code in them, and loaded into a model completely or not at all."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxcam.errors import ModelError, TrustError, listing
from onnxcam.exporters import torch_safetensors
from onnxcam.exporters.reasons import first_line, reason

# keys under which training scripts save a state dict; of several the caller names one, `FILE:KEY`
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "weights", "params", "module", "network"),
    *("ema", "ema_state_dict", "model_ema", "state_dict_ema", "params_ema", "ema_model", "model_ema_state_dict"),
)
# torch.compile puts this before the names of what it wraps
_COMPILED = "_orig_mod."
_YOLO = "use its ONNX export instead: `yolo export model=FILE format=onnx`, and give the .onnx file"


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """The tensors of a state dict file, read without running any code in it.

    Arguments:
        source: the file; `FILE:KEY` names one of several state dicts in a checkpoint, or the prefix of its names.

    Raises:
        TrustError: it holds more than tensors.
        ModelError: it cannot be read, or holds no state dict, or several.
    """
    path, key = _split(str(source))
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected a state dict (torch.save(model.state_dict(), ...))")
    if path.suffix.lower() == ".safetensors":
        content: Any = torch_safetensors.read(path)
    elif kind(path) != "pickle":
        raise ModelError(
            f"{path} is not a saved state dict; expected the output of torch.save(model.state_dict(), ...)"
        )
    else:
        try:
            content = load_data(path)
        except pickle.UnpicklingError as error:
            raise TrustError(
                f"{path} holds more than weights (or is damaged), and reading it would run code; "
                + (ultralytics(error) or "save the weights alone: torch.save(model.state_dict(), ...)")
            ) from error
        except Exception as error:
            raise ModelError(f"{path} cannot be read by PyTorch: {reason(error)}; was the copy cut off?") from error
    candidates = state_dicts(content)
    if key is not None:
        return _named(candidates, key, path)
    if not candidates:
        inside = f"with the keys {listing(content)}" if isinstance(content, Mapping) else "that is not a state dict"
        raise ModelError(f"{path} holds a {type(content).__name__} {inside}; expected a state dict of tensors")
    if len(candidates) > 1:
        raise ModelError(
            f"{path} holds several state dicts: {listing(candidates)}; name one, for example "
            f"--weights {path}:{next(iter(candidates))}"
        )
    return next(iter(candidates.values()))


def fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict into a model: every parameter, and nothing else of the model.

    Raises:
        ModelError: parameters are missing, unexpected or of another shape.
    """
    expected = model.state_dict()
    state = renamed(state, expected, where)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        missing = [k for k in expected if k not in state]
        unexpected = [k for k in state if k not in expected]
        sizes = [
            f"{k} is {list(state[k].shape)} instead of {list(expected[k].shape)}"
            for k in expected
            if k in state and state[k].shape != expected[k].shape
        ]
        faults = [
            f"{len(names)} {what}: {listing(names, 3)}"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        faults += [f"{len(sizes)} of another shape: {'; '.join(sizes[:3])}"] if sizes else []
        reasons = ", ".join(faults) or first_line(error)
        raise ModelError(f"the weights do not fit ({where}): {reasons}; give the file saved from this model") from error


def renamed(state: Mapping[str, Tensor], expected: Mapping[str, Any], where: str = "these") -> dict[str, Tensor]:
    """A state dict under a model's own names: without the prefix of a wrapper, and what is not below it.

    DataParallel writes `module.`, torch.compile `_orig_mod.`, a Lightning module the name of its attribute.

    Arguments:
        expected: the model's own state dict.
        where: what is loaded, for the message.

    Raises:
        ModelError: two prefixes fit, as where a copy of the model is averaged during training.
    """
    plain = dict(state)
    if not any(_COMPILED in name for name in expected):
        plain = {name.replace(_COMPILED, ""): value for name, value in plain.items()}
    if not expected or any(name in plain for name in expected):
        return plain
    first = next(iter(expected))
    prefixes = [name.removesuffix(first) for name in plain if name.endswith(f".{first}")]
    fitting = [prefix for prefix in prefixes if all(f"{prefix}{name}" in plain for name in expected)]
    if len(fitting) > 1:
        raise ModelError(
            f"{where}: the weights hold the model several times, under {listing(fitting)}; name one, for example "
            f"--weights FILE:{fitting[0].rstrip('.')}"
        )
    if not fitting:
        return plain
    return {name.removeprefix(fitting[0]): value for name, value in plain.items() if name.startswith(fitting[0])}


def load_data(path: Path) -> Any:
    """Read a file of torch.save that holds only tensors, plain containers, numbers of NumPy and recorded arguments.

    Raises:
        pickle.UnpicklingError: it holds anything else, or is not a pickle.
    """
    with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_types()):
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def _plain_types() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Types beside weights in the checkpoints of training scripts; making one runs no code of the file's."""
    numbers = [np.float64, np.float32, np.int64, np.int32, np.bool_]
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    return [
        argparse.Namespace,
        pathlib.PosixPath,
        np.dtype,
        *(type(np.dtype(number)) for number in numbers),
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),  # as NumPy 1 wrote it
    ]


def state_dicts(content: Any) -> dict[str, dict[str, Tensor]]:
    """The state dicts in what a file holds, by a training script's key; by "" where it is one itself."""
    if not isinstance(content, Mapping):
        return {}
    tensors = _tensors(content)
    if tensors is not None:
        return {"": tensors}
    inside = {key: _tensors(content[key]) for key in _WRAPPERS if isinstance(content.get(key), Mapping)}
    # timm's and other averages keep the weights one level deeper
    for key, value in list(inside.items()):
        if value is None:
            inside[key] = next((t for k in _WRAPPERS if (t := _tensors(content[key].get(k))) is not None), None)
    return {key: value for key, value in inside.items() if value is not None}


def _tensors(content: Any) -> dict[str, Tensor] | None:
    """A state dict's tensors, None where it is not a state dict."""
    if not isinstance(content, Mapping):
        return None
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return tensors if tensors and len(tensors) == len(content) else None


def _split(text: str) -> tuple[Path, str | None]:
    """File and key of `FILE:KEY`."""
    path, colon, key = text.rpartition(":")
    if colon and key and not Path(text).is_file() and Path(path).is_file():
        return Path(path), key
    return Path(text), None


def _named(candidates: Mapping[str, dict[str, Tensor]], key: str, path: Path) -> dict[str, Tensor]:
    """The state dict under a key, or the part of the only one below a prefix."""
    if key in candidates:
        return candidates[key]
    prefix = f"{key.rstrip('.')}."
    for state in candidates.values():
        part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if part and len(candidates) == 1:
            return part
    places = [name for name in candidates if name]
    raise ModelError(f"{path} holds no weights under {key!r}" + (f"; it has {listing(places)}" if places else ""))


def ultralytics(error: BaseException) -> str | None:
    """The next step with a file of Ultralytics, whose models are pickled objects; None for any other."""
    return f"it is a model of Ultralytics: {_YOLO}" if "ultralytics." in str(error) else None


def kind(path: Path) -> str | None:
    """The format of a file: `program` (torch.export), `torchscript`, `pickle` (torch.save), or None."""
    with path.open("rb") as stream:
        start = stream.read(2)
    if not zipfile.is_zipfile(path):
        return "pickle" if start[:1] == b"\x80" or path.suffix == ".tar" else None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/models/" in n and n.endswith(".json") for n in names) or "serialized_exported_program.json" in names:
        return "program"
    if any(n.endswith("constants.pkl") for n in names) and any("/code/" in n for n in names):
        return "torchscript"
    return "pickle" if any(n.endswith("data.pkl") for n in names) else None
