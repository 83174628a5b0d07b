"""Keras models named on a command line: `.keras` and `.h5` files, names of Keras Applications, importable callables.

Files that would run code (Lambda layers, custom classes) are refused unless the caller trusts them.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnxcam import documents, models
from onnxcam.errors import DependencyError, ModelError, TrustError, listing, nearest
from onnxcam.exporters import frameworks
from onnxcam.exporters.keras_capture import quiet
from onnxcam.exporters.keras_module import import_tensorflow
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
from onnxcam.graph import file
from onnxcam.network import manifest

# of a configuration: bytes, bytes once parsed, and levels, of which a nested model takes four
_LARGEST_CONFIG, _CONFIG_MEMORY, _DEEPEST_CONFIG = 32 << 20, 256 << 20, 200
_LEGACY = "pip install 'onnxcam[keras-legacy]'"
_OWN_PACKAGES = {"keras", "tf_keras"}
# classes of Keras that are not among keras.layers
_BUILT_IN = {"Functional", "Model", "Sequential", "TFOpLambda", "SlicingOpLambda", "ModuleWrapper", "Policy"}


class Loaded(NamedTuple):
    """A model, and what the source tells about it."""

    model: Any
    info: Info


def load(
    source: str,
    *,
    weights: str | None = None,
    trust: bool = False,
    import_file: str | None = None,
    input_size: int | Sequence[int] | None = None,
) -> Loaded:
    """Load a model from its name or file.

    Arguments:
        source: a `.keras` or `.h5` file, `keras:NAME` of Keras Applications, or `package.module:callable` (imported and
            called without arguments, with the current folder importable; it returns the model).
        weights: a weights file, `none`, or `imagenet` (Keras Applications only, there the default).
        trust: allow a file to run code while it is loaded.
        import_file: a Python file to run first, which defines the classes that the model needs.
        input_size: n, (h, w) or (c, h, w) of the picture, for Keras Applications without ImageNet weights.

    Raises:
        TrustError: loading would run code from a file, and `trust` is not set.
        ModelError: no such model, or weights that do not fit.
        DependencyError: TensorFlow is missing, or tf_keras for a file that only it reads.
    """
    if import_file is not None and not trust:
        raise TrustError(f"{import_file} would be run; if you trust it, say so with --trust-model (trust=True)")
    import_tensorflow()
    family, _, name = source.partition(":")
    with imported(import_file) as definitions, importable_here(), quiet():
        if family == "keras" and name and not Path(source).exists():
            return _application(name, weights, input_size)
        if is_callable(source):
            return from_object(call(source), source, weights)
        _import_keras()
        classes = {key: value for key, value in definitions.items() if not key.startswith("_")}
        model = _file(Path(source), trust, classes)
        if weights not in (None, NONE):
            _fill(model, str(weights), source)
        return Loaded(model, Info(Path(source).stem))


def from_object(model: Any, source: str, weights: str | None = None) -> Loaded:
    """Take a callable's result as a model, and fill it with weights.

    Raises:
        ModelError: it is not a Keras model.
    """
    if frameworks.of_model(model) != "Keras":
        raise ModelError(f"{source} returned a {type(model).__name__}; expected a Keras model")
    if weights not in (None, NONE):
        with quiet():
            _fill(model, str(weights), source)
    return Loaded(model, Info(callable_name(source)))


# -- Keras Applications -----------------------------------------------------------------------------------------------


def _application(name: str, weights: str | None, size: int | Sequence[int] | None) -> Loaded:
    keras = _import_keras()
    builders = {
        key.lower(): value
        for key, value in vars(keras.applications).items()
        if inspect.isfunction(value) and key[0] != "_"
    }
    plain = name.lower().replace("_", "").replace("-", "")
    if plain not in builders:
        raise ModelError(f"Keras has no application {name!r}; the nearest are {listing(nearest(plain, builders))}")
    build = builders[plain]
    options: dict[str, Any] = {}
    if size is not None:
        sides = [size, size] if isinstance(size, int) else list(size)
        options["input_shape"] = (*sides[-2:], sides[0] if len(sides) == 3 else 3)
    if weights in (None, IMAGENET):
        try:
            with redirect_stdout(sys.stderr):  # Keras prints there that it fetches a file
                model = build(weights=IMAGENET, **options)
        except Exception as error:
            raise ModelError(
                f"the ImageNet weights of keras:{name} cannot be fetched ({reason(error)}); fetch the weights file "
                "elsewhere and give it with --weights FILE, or take random ones with --weights none"
            ) from error
    else:
        model = _built(build, name, weights, options)
    module = sys.modules[build.__module__]
    classes = int(model.output_shape[-1])
    labels = imagenet_labels() if classes == 1000 else None
    geometry = {
        "mode": "stretch",
        "size": list(model.input_shape[1:3]),
        "interpolation": "bilinear",
        "antialias": False,
    }
    return Loaded(model, Info(plain, labels, as_preprocess(module.preprocess_input) | {"resize": geometry}))


def _built(build: Callable[..., Any], name: str, weights: str | None, options: dict[str, Any]) -> Any:
    try:
        model = build(weights=None, **options)
    except Exception as error:
        raise ModelError(f"keras:{name} cannot be built: {reason(error)}") from error
    if weights == NONE or weights is None:
        return model
    classes = _classes_in(Path(weights), model)
    if classes not in (None, int(model.output_shape[-1])):
        model = build(weights=None, classes=classes, **options)
    _fill(model, weights, f"keras:{name}")
    return model


def as_preprocess(function: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """A `preprocess_input` in the manifest's form, measured on a few pixels.

    Raises:
        ModelError: it is not a change of channel order, one factor and one offset per channel.
    """

    def apply(pixel: Sequence[float]) -> np.ndarray:
        return np.asarray(function(np.asarray(pixel, np.float32).reshape(1, 1, 1, 3)), np.float64).reshape(3)

    offset = apply((0, 0, 0))
    turns = np.stack([(apply([255.0 * (k == c) for k in range(3)]) - offset) / 255 for c in range(3)], axis=1)
    straight = np.abs(turns - np.diag(np.diag(turns))).max() < 1e-6
    slopes = np.diag(turns) if straight else np.diag(turns[:, ::-1])
    probe = (31.0, 127.0, 200.0)
    expected = slopes * (np.asarray(probe) if straight else np.asarray(probe)[::-1]) + offset
    if np.abs(apply(probe) - expected).max() > 1e-3:
        raise ModelError(
            "this preprocess_input is not one factor and offset per channel; give a JSON file with --preprocess"
        )
    spec: dict[str, Any] = {"color": "RGB" if straight else "BGR"}
    if np.ptp(slopes) < 1e-7:
        scale = float(slopes[0])
        exact = next((usual for usual in (1.0, 1 / 255, 1 / 127.5) if abs(scale - usual) < 1e-6), scale)
        return spec | {"scale": exact, "mean": [round(float(-o), 6) for o in offset], "std": 1.0}
    deviation = 1 / (255 * slopes)
    return spec | {
        "scale": 1 / 255,
        "mean": [round(float(m), 6) for m in -offset * deviation],
        "std": [round(float(s), 6) for s in deviation],
    }


def imagenet_labels() -> list[str] | None:
    """The 1,000 ImageNet names, from the bundled model."""
    record = manifest.parse(file.metadata(models.path(models.MODEL)).get(manifest.KEY))
    return None if record is None else record.get("labels")


# -- weights ----------------------------------------------------------------------------------------------------------


def _fill(model: Any, weights: str, where: str) -> None:
    """Load a weights file into a model, completely.

    Every weight is set to NaN first, so that one missing from the file is noticed: Keras only warns about some.

    Raises:
        ModelError: no such file, or its weights do not fit.
    """
    path = Path(weights)
    if not path.is_file():
        raise ModelError(f"{weights}: no such file; expected weights that Keras saved (.weights.h5, .h5, .keras)")
    values = [np.asarray(value) for value in model.get_weights()]
    model.set_weights([np.full_like(v, np.nan) if np.issubdtype(v.dtype, np.floating) else v for v in values])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.load_weights(str(path))
    except Exception as error:
        raise ModelError(
            f"the weights do not fit ({weights} in {where}): {_keras_reason(error)}; give the file saved from this "
            "model"
        ) from error
    empty = [str(getattr(v, "path", v.name)) for v in model.weights if not np.isfinite(np.asarray(v, np.float64)).all()]
    if empty:
        raise ModelError(
            f"the weights do not fit ({weights} in {where}): {len(empty)} of {len(values)} are missing or not finite: "
            f"{listing(empty, 3)}; give the file saved from this model"
        )


def _classes_in(path: Path, model: Any) -> int | None:
    """The number of classes of the final layer in a weights file, None where it is not clear."""
    import h5py

    features = int(model.layers[-1].get_weights()[0].shape[0]) if model.layers[-1].get_weights() else 0
    counts: set[int] = set()

    def see(_: str, item: Any) -> None:
        shape: tuple[int, ...] = getattr(item, "shape", ())
        if len(shape) == 2 and shape[0] == features:
            counts.add(int(shape[1]))

    try:
        with h5py.File(path) as archive:
            archive.visititems(see)
    except OSError:
        return None
    return next(iter(counts)) if len(counts) == 1 else None


# -- files ------------------------------------------------------------------------------------------------------------


def _file(path: Path, trust: bool, classes: Mapping[str, Any]) -> Any:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected a Keras model (.keras, .h5), keras:NAME or module:callable")
    config = _config(path)
    if not trust:
        _require_harmless(path, config)
    _require_classes(path, config, classes)
    keras = _import_keras()
    try:
        return _load_model(keras, path, trust, classes)
    except MemoryError:
        raise
    except Exception as error:
        refusal = _keras_reason(error)
    # what Keras 3 refuses may have been saved by Keras 2
    try:
        import tf_keras
    except ImportError:
        raise ModelError(
            f"{path} cannot be loaded by Keras {keras.__version__}: {refusal}; if it was saved by Keras 2, tf_keras "
            f"may read it: {_LEGACY}"
        ) from None
    try:
        return _load_model(tf_keras, path, trust, classes)
    except Exception as error:
        raise ModelError(
            f"{path} cannot be loaded, neither by Keras {keras.__version__} ({refusal}) nor by tf_keras "
            f"{tf_keras.__version__} ({_keras_reason(error)}); load it where it was trained and save it again as .keras"
        ) from error


def _load_model(keras: Any, path: Path, trust: bool, classes: Mapping[str, Any]) -> Any:
    with keras.utils.custom_object_scope(dict(classes)), _well_named(path) as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return keras.models.load_model(name, compile=False, safe_mode=not trust)


@contextmanager
def _well_named(path: Path) -> Iterator[str]:
    """The file under a name with the suffix of its format: Keras reads HDF5 only as .h5."""
    if path.suffix.lower() != ".keras" or not _is_hdf5(path):
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="onnxcam-") as folder:
        renamed = Path(folder) / "model.h5"
        renamed.symlink_to(path.absolute())
        yield str(renamed)


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(8) == b"\x89HDF\r\n\x1a\n"


def _config(path: Path) -> Any:
    """The model's configuration, read without building anything.

    Raises:
        ModelError: the file is not a Keras model, or holds only weights.
    """
    if _is_hdf5(path):
        import h5py

        with h5py.File(path) as archive:
            text = archive.attrs.get("model_config")
        if text is None:
            raise ModelError(
                f"{path} holds only weights, not the model; name what makes the model and give the file as its "
                f"weights: keras:NAME --weights {path}, or package.module:callable --weights {path}"
            )
        return _parsed(path, text.encode() if isinstance(text, str) else bytes(text))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if "config.json" in archive.namelist():
                size = archive.getinfo("config.json").file_size
                if size > _LARGEST_CONFIG:
                    raise ModelError(f"{path} has a configuration of {size:,} bytes; is it a Keras model?")
                return _parsed(path, archive.read("config.json"))
    with path.open("rb") as stream:
        start = stream.read(4)
    if not start:
        raise ModelError(f"{path} is empty (0 bytes); was the copy cut off?")
    raise ModelError(
        f"{path} is not a Keras model file (it starts with {start!r}); expected what model.save() wrote: a .keras "
        "archive or HDF5 (.h5). Was the copy cut off, or is it a pointer to the file?"
    )


def _parsed(path: Path, text: bytes) -> Any:
    """A configuration from its JSON.

    Raises:
        ModelError: not JSON, or larger or deeper than those of models.
    """
    try:
        documents.check_json(text, memory=_CONFIG_MEMORY, deepest=_DEEPEST_CONFIG)
        return json.loads(text)  # a layer's limits may be infinite
    except documents.DocumentError as error:
        raise ModelError(f"{path} has a configuration that {error}; is it a Keras model?") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} has a configuration that is not JSON ({error}); was the copy cut off?") from error


def _layers_in(config: Any) -> Iterator[dict[str, Any]]:
    """The entries of a configuration that describe layers: those with a class and a name."""
    if isinstance(config, dict):
        settings = config.get("config")
        if isinstance(config.get("class_name"), str) and isinstance(settings, dict) and "name" in settings:
            yield config
        for key, value in config.items():
            if key != "compile_config":  # losses and metrics are not loaded
                yield from _layers_in(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _layers_in(value)


def _require_harmless(path: Path, config: Any) -> None:
    """Refuse Lambda layers: they hold code."""
    names = [part["config"]["name"] for part in _layers_in(config) if part["class_name"] == "Lambda"]
    if names or "__lambda__" in json.dumps(config):
        raise TrustError(
            f"{path} has a Lambda layer ({listing(names or ['inside another'], 3)}), and loading it runs the code it "
            "contains. If you trust the file, say so with --trust-model (trust=True)"
        )


def _require_classes(path: Path, config: Any, classes: Mapping[str, Any]) -> None:
    """Refuse a file that needs classes nobody has defined, before Keras looks for them anywhere else."""
    keras = _import_keras()
    registered = keras.saving.get_custom_objects()
    missing = []
    for part in _layers_in(config):
        name, module, alias = part["class_name"], part.get("module"), part.get("registered_name")
        if isinstance(module, str) and module.partition(".")[0] in _OWN_PACKAGES:
            continue
        builtin = hasattr(keras.layers, name) or name in _BUILT_IN
        if not builtin and name not in classes and alias not in registered and name not in registered:
            missing.append(name)
    if missing:
        raise ModelError(
            f"{path} needs {listing(dict.fromkeys(missing), 3)}, which Keras does not have; name the Python file that "
            "defines it: --import FILE.py --trust-model"
        )


def _keras_reason(error: BaseException) -> str:
    """The line of Keras' message that says what went wrong: the first or, after pages of configuration, the last."""
    text = str(error)
    for mark in ("Exception encountered:", "Error message:", "Example error message"):
        if mark in text:
            text = text.partition(mark)[2]
    line = first_line(Exception(text.strip()))
    return f"{type(error).__name__}: {line[:200]}"


def _import_keras() -> Any:
    """Keras 3 on TensorFlow.

    Raises:
        DependencyError: it is missing, or runs on another framework here.
    """
    named = os.environ.get("KERAS_BACKEND")
    where = f"KERAS_BACKEND={named} is set" if named else "Keras' own configuration (~/.keras/keras.json) says so"
    step = "run the same command with KERAS_BACKEND=tensorflow; files of Keras do not depend on it"
    try:
        import keras
    except Exception as error:  # a backend that is missing or unknown raises any of several
        if named not in (None, "", "tensorflow"):
            raise DependencyError(f"Keras cannot be imported ({first_line(error)}), and {where}: {step}") from error
        raise DependencyError(
            f"exporting a Keras model needs Keras 3 ({first_line(error)}): pip install 'onnxcam[keras]'"
        ) from error
    running = keras.backend.backend()
    if running != "tensorflow":
        raise DependencyError(f"Keras runs on {running} here ({where}), and the exporter needs TensorFlow: {step}")
    return keras
