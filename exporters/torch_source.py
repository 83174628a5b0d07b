"""Models named on a command line: importable callables, torchvision and timm names, `.pt2` archives, pickled modules.

Files that could run code are refused unless the caller trusts them; state dicts are always read with
`weights_only=True`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onnxcam import documents, files
from onnxcam.errors import DependencyError, ModelError, TrustError, listing, nearest
from onnxcam.exporters.reasons import first_line, reason
from onnxcam.exporters.source import (
    IMAGENET,
    NONE,
    Info,
    call,
    callable_name,
    importable_here,
    imported,
    is_callable,
)
from onnxcam.exporters.torch_archive import check_archive
from onnxcam.exporters.torch_weights import fit, kind, load_data, read_weights, renamed, state_dicts, ultralytics
from onnxcam.files import FileError

Size = int | Sequence[int]
DEFAULT_SIDE = 224

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A model, an example input batch `[1, C, H, W]` for it, and what the source tells about it."""

    model: Any
    example_inputs: Tensor
    info: Info


def load(
    source: str,
    *,
    weights: str | None = None,
    trust: bool = False,
    import_file: str | None = None,
    input_size: Size | None = None,
) -> Loaded:
    """Load a model from its name or file.

    Arguments:
        source: `package.module:callable` (imported and called without arguments, with the current folder importable;
            it returns the module, or the module and example inputs), `torchvision:NAME`, `timm:NAME`, a `.pt2` archive
            of torch.export, or a file that holds a whole pickled module.
        weights: a file of a state dict or a checkpoint with one (`.safetensors` too; `FILE:KEY` names one of several),
            `none`, or `imagenet` (torchvision and timm only, there the default).
        trust: allow a file to run code while it is loaded.
        import_file: a Python file to run first, which defines the classes that a pickled module needs.
        input_size: n, (h, w) or (c, h, w) of the example input; by default what the source says, else 224.

    Raises:
        TrustError: loading would run code from a file, and `trust` is not set.
        ModelError: no such model, or weights that do not fit.
        DependencyError: torchvision or timm is missing.
    """
    if import_file is not None and not trust:
        raise TrustError(f"{import_file} would be run; if you trust it, say so with --trust-model (trust=True)")
    family, _, name = source.partition(":")
    with imported(import_file), importable_here():
        if family in ("torchvision", "timm") and name:
            return (_torchvision if family == "torchvision" else _timm)(name, weights, input_size)
        if is_callable(source):
            return from_object(call(source), source, weights, input_size)
        return _file(Path(source), weights, trust, input_size)


def from_object(model: Any, source: str, weights: str | None = None, size: Size | None = None) -> Loaded:
    """Take a callable's result as a model, and fill it with weights.

    Arguments:
        model: a module, a program, or one of these and example inputs.

    Raises:
        ModelError: neither of them.
    """
    inputs = None
    if isinstance(model, (tuple, list)) and len(model) == 2:
        model, inputs = model
    model = unwrapped(model)
    if not isinstance(model, (nn.Module, torch.export.ExportedProgram)):
        raise ModelError(f"{source} returned a {type(model).__name__}; expected a torch.nn.Module")
    _fill(model, weights, source)
    example = _example(model, size) if inputs is None or size is not None else inputs
    return Loaded(model, example, Info(callable_name(source)))


def unwrapped(model: Any) -> Any:
    """The module inside torch.compile and DataParallel, whose names are those that users know."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


def _torchvision(name: str, weights: str | None, size: Size | None) -> Loaded:
    with _quiet():
        models = _import("torchvision").models
        names = models.list_models(module=models)
        if name not in names:
            raise ModelError(f"torchvision has no classifier {name!r}; the nearest are {listing(nearest(name, names))}")
        best = models.get_model_weights(name).DEFAULT
        transforms = best.transforms()
        if weights is None or weights == IMAGENET:
            try:
                model = models.get_model(name, weights=best)
            except (OSError, RuntimeError) as error:
                raise ModelError(
                    f"the ImageNet weights of torchvision:{name} cannot be fetched from {best.url} ({reason(error)}); "
                    "fetch that file elsewhere and give it with --weights FILE, or take random ones with --weights none"
                ) from error
        else:
            model = _filled(lambda **options: models.get_model(name, weights=None, **options), weights, name)
    example = _example(model, size if size is not None else transforms.crop_size[0])
    if weights is not None and weights != IMAGENET:
        return Loaded(model, example, Info(name))
    preprocess = {
        "color": "RGB",
        "scale": 1 / 255,
        "mean": list(transforms.mean),
        "std": list(transforms.std),
        "resize": {
            "mode": "shortest",
            "size": transforms.resize_size[0],
            "interpolation": transforms.interpolation.value,
            "antialias": bool(transforms.antialias),
        },
        "crop": {"size": [transforms.crop_size[0]] * 2, "anchor": "center"},
    }
    return Loaded(model, example, Info(name, list(best.meta["categories"]), preprocess))


def _timm(name: str, weights: str | None, size: Size | None) -> Loaded:
    with _quiet():
        timm = _import("timm")
        if not timm.is_model(name):
            near = nearest(name.partition(".")[0], timm.list_models())
            raise ModelError(f"timm has no model {name!r}; the nearest are {listing(near)}")
        if weights is None or weights == IMAGENET:
            try:
                model = timm.create_model(name, pretrained=True)
            except (OSError, RuntimeError) as error:
                raise ModelError(
                    f"the pretrained weights of timm:{name} cannot be fetched ({reason(error)}); fetch them elsewhere "
                    "and give them with --weights FILE, or take random ones with --weights none"
                ) from error
        else:
            model = _filled(lambda **options: timm.create_model(name, pretrained=False, **options), weights, name)
    config = dict(model.pretrained_cfg)
    example = _example(model, size if size is not None else config.get("input_size"))
    if weights is not None and weights != IMAGENET:
        return Loaded(model, example, Info(name))
    from onnxcam.image.presets import from_timm

    return Loaded(model, example, Info(name, None, from_timm(config).to_dict()))


def _file(path: Path, weights: str | None, trust: bool, size: Size | None) -> Loaded:
    if not path.is_file():
        raise ModelError(
            f"{path}: no such file; expected package.module:callable, torchvision:NAME, timm:NAME, or a .pt2 or .pt "
            "file"
        )
    if path.suffix.lower() == ".safetensors":
        raise ModelError(_weights_only(path))
    form = kind(path)
    if form == "torchscript":
        raise ModelError(
            f"{path} is a TorchScript archive, whose layers cannot be watched; name the code that makes the module "
            "(package.module:callable --weights FILE), or export it with torch.onnx.export and give the .onnx file"
        )
    if form == "program":
        return _program(path, weights, trust, size)
    if form == "pickle":
        model = _pickled(path, trust)
        _fill(model, weights, str(path))
        return Loaded(model, _example(model, size), Info(path.stem))
    raise ModelError(
        f"{path} is not a PyTorch file; expected an archive of torch.export (.pt2) or a saved module (.pt, .pth)"
    )


def _program(path: Path, weights: str | None, trust: bool, size: Size | None) -> Loaded:
    if weights not in (None, NONE):
        raise ModelError(f"{path} holds its own weights; leave --weights out")
    if not trust:
        check_archive(path)
    try:
        with _quiet():
            program = torch.export.load(path)
    except Exception as error:
        raise ModelError(
            f"{path} cannot be loaded by PyTorch {torch.__version__}: {reason(error)}; save it again with this version"
        ) from error
    inputs: Any = program.example_inputs[0] if program.example_inputs else ()
    if size is None and len(inputs) == 1 and isinstance(inputs[0], Tensor):
        return Loaded(program, inputs[0], Info(path.stem))
    return Loaded(program, _example(program, size), Info(path.stem))


def _pickled(path: Path, trust: bool) -> Any:
    """A whole module saved with torch.save.

    Raises:
        TrustError: unpickling it runs code and `trust` is not set.
        ModelError: it does not hold a module.
    """
    try:
        content = load_data(path)
    except pickle.UnpicklingError as error:
        step = ultralytics(error)
        if step is not None:
            raise TrustError(f"{path} cannot be read without running code; {step}") from error
        if not trust:
            raise TrustError(
                f"{path} is a pickled module: loading it runs whatever code it contains. If you trust it, say so with "
                "--trust-model (trust=True); safer is package.module:callable with --weights on a saved state dict"
            ) from error
        content = _unpickled(path)
    except Exception as error:
        raise ModelError(f"{path} cannot be read by PyTorch: {reason(error)}; was the copy cut off?") from error
    if isinstance(content, nn.Module):
        return unwrapped(content)
    if state_dicts(content):
        raise ModelError(_weights_only(path))
    modules = {k: v for k, v in content.items() if isinstance(v, nn.Module)} if isinstance(content, Mapping) else {}
    if len(modules) == 1:  # a checkpoint with the whole module in it
        return unwrapped(next(iter(modules.values())))
    if modules:
        key = next(iter(modules))
        raise ModelError(
            f"{path} holds several modules: {listing(modules)}; load it in Python and save the one alone: "
            f"torch.save(torch.load(FILE, weights_only=False)[{key!r}], {key + '.pt'!r})"
        )
    if isinstance(getattr(content, "model", None), nn.Module):  # a Learner of fastai
        raise ModelError(
            f"{path} holds a {type(content).__name__}; save the module in it alone: "
            "torch.save(learner.model, 'model.pt')"
        )
    inside = f"with the keys {listing(content)}" if isinstance(content, Mapping) else ""
    raise ModelError(f"{path} holds a {type(content).__name__} {inside}; expected a torch.nn.Module".replace(" ;", ";"))


def _weights_only(path: Path) -> str:
    """The message for a file of weights given as the model, with the zoo's name where a configuration tells it."""
    step = f"package.module:callable --weights {path}"
    with contextlib.suppress(FileError, ValueError):
        config = documents.parse_json(files.read_bytes(path.with_name("config.json"), 8 << 20))
        if isinstance(config, dict) and isinstance(
            config.get("architecture"), str
        ):  # timm writes it beside the weights
            step = f"timm:{config['architecture']} --weights {path}"
    return (
        f"{path} holds only weights (a state dict), not the model; name the code that makes the model and give the "
        f"file as its weights: {step}"
    )


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{path} needs code that is not importable here ({first_line(error)}); run onnxcam in the folder of that "
            "code, or name the Python file that defines it with --import FILE.py"
        ) from error
    except Exception as error:
        raise ModelError(f"{path} cannot be unpickled: {reason(error)}") from error


def _filled(make: Any, weights: str, name: str) -> nn.Module:
    """A model of a zoo with weights from a file, built for the number of classes in that file."""
    model: nn.Module = make()
    if weights == NONE:
        return model
    state = read_weights(weights)
    classes = _classes(model.state_dict(), renamed(state, model.state_dict(), weights))
    if classes is not None:
        model = make(num_classes=classes)
    fit(model, state, f"{weights} in {name}")
    return model


def _classes(model: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int | None:
    """The number of classes in a state dict that differs from the model's in the classifier's first dimension alone."""
    differing = [k for k, v in model.items() if k in state and state[k].shape != v.shape]
    rows = {(model[k].shape[0], state[k].shape[0]) for k in differing if model[k].ndim and state[k].ndim}
    alike = all(model[k].shape[1:] == state[k].shape[1:] for k in differing)
    return next(iter(rows))[1] if len(rows) == 1 and alike else None


def _fill(model: Any, weights: str | None, where: str) -> None:
    if weights is None or weights == NONE:
        return
    if weights == IMAGENET:
        raise ModelError(f"--weights imagenet is for torchvision:NAME and timm:NAME; for {where} give a file")
    if not isinstance(model, nn.Module):
        raise ModelError(f"{where} holds its own weights; leave --weights out")
    fit(model, read_weights(weights), f"{weights} in {where}")


def _example(model: Any, size: Size | None) -> Tensor:
    """A seeded standard normal picture batch `[1, C, H, W]` of the model's channels."""
    sides = [size, size] if isinstance(size, int) else list(size or ())
    channels = 3
    if isinstance(model, nn.Module):
        config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
        if not sides and isinstance(config, Mapping) and len(config.get("input_size") or ()) == 3:
            sides = list(config["input_size"])
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        channels = channels if first is None else first.in_channels
    elif not sides:
        inputs = model.graph_signature.user_inputs
        declared = next((n.meta["val"].shape for n in model.graph.nodes if n.name in inputs), ())
        sides = [int(d) for d in declared[1:] if isinstance(d, int)]
    if not sides:
        log.warning("the model does not tell its input size; %d × %d is assumed", DEFAULT_SIDE, DEFAULT_SIDE)
        sides = [DEFAULT_SIDE, DEFAULT_SIDE]
    if len(sides) not in (2, 3) or min(sides) < 1:
        raise ModelError(f"got {sides} as the input size; expected n, (h, w) or (c, h, w)")
    shape = (1, *sides) if len(sides) == 3 else (1, channels, *sides)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises RuntimeError
        raise DependencyError(
            f"{name} cannot be imported ({first_line(error)}); install the one that fits PyTorch "
            f"{torch.__version__}: pip install {name}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the libraries' deprecation warnings about themselves."""
    with warnings.catch_warnings():
        for category in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(torch|torchvision|timm|copyreg)(\.|$)")
        yield
