"""State dicts: read without running any code in them, and loaded into a model completely or not at all."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onnxcam.errors import DependencyError, ModelError, TrustError, listing
from onnxcam.exporters.reasons import first_line, reason

# keys under which training scripts save a state dict
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict file, read without running any code in it.

    Raises:
        TrustError: it holds more than tensors.
        ModelError: it cannot be read, or holds no state dict.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected a state dict (torch.save(model.state_dict(), ...))")
    if path.suffix == ".safetensors":
        content: Any = _safetensors(path)
    elif kind(path) != "pickle":
        raise ModelError(
            f"{path} is not a saved state dict; expected the output of torch.save(model.state_dict(), ...)"
        )
    else:
        try:
            content = load_data(path)
        except pickle.UnpicklingError as error:
            raise TrustError(
                f"{path} holds more than weights (or is damaged), and reading it would run code; save the weights "
                "alone: torch.save(model.state_dict(), ...)"
            ) from error
        except Exception as error:
            raise ModelError(f"{path} cannot be read by PyTorch: {reason(error)}; was the copy cut off?") from error
    state = tensors_in(content)
    if state is None:
        inside = f"with the keys {listing(content)}" if isinstance(content, Mapping) else "that is not a state dict"
        raise ModelError(f"{path} holds a {type(content).__name__} {inside}; expected a state dict of tensors")
    return state


def fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict into a model: every parameter, and nothing else.

    Raises:
        ModelError: parameters are missing, unexpected or of another shape.
    """
    expected = model.state_dict()
    if state and all(k.startswith("module.") for k in state) and not any(k.startswith("module.") for k in expected):
        state = {k.removeprefix("module."): v for k, v in state.items()}  # saved from inside DataParallel
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


def load_data(path: Path) -> Any:
    """Read a file of torch.save that holds only tensors and plain containers.

    Raises:
        pickle.UnpicklingError: it holds anything else, or is not a pickle.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def tensors_in(content: Any) -> dict[str, Tensor] | None:
    """A state dict's tensors, unwrapped from a training script's checkpoint; None where it is not a state dict."""
    if not isinstance(content, Mapping):
        return None
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return tensors if tensors and len(tensors) == len(content) else None


def _safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise DependencyError("reading .safetensors needs that package: pip install safetensors") from error
    try:
        return load_file(path, device="cpu")
    except Exception as error:
        raise ModelError(f"{path} is not a readable safetensors file: {reason(error)}") from error


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
