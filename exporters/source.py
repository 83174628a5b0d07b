"""Models named by the code that makes them, `package.module:callable`, and what a source tells about its model."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcam.errors import ModelError, OnnxcamError, listing, nearest
from onnxcam.exporters import frameworks
from onnxcam.exporters.reasons import first_line, reason

CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
# values of `weights` that are not a file: pretrained on ImageNet, and random
IMAGENET, NONE = "imagenet", "none"


@dataclass(frozen=True)
class Info:
    """What a source tells about its model.

    Attributes:
        name: for the manifest.
        labels: class names by index, None where the source has none.
        preprocess: the manifest's `preprocess` entry, None where the source does not tell.
    """

    name: str
    labels: list[str] | None = None
    preprocess: dict[str, Any] | None = None


def is_callable(source: str) -> bool:
    """Whether a source reads `package.module:callable` and is not a file of that name."""
    return CALLABLE.fullmatch(source) is not None and not Path(source).exists()


def call(source: str) -> Any:
    """Import `package.module:callable` and call it without arguments; naming it is consent to run it.

    Returns:
        the callable's result, or the object itself where that already is a model.

    Raises:
        ModelError: it cannot be imported, does not exist, needs arguments, or fails.
    """
    path, _, attribute = source.partition(":")
    try:
        target: Any = importlib.import_module(path)
    except ImportError as error:
        raise ModelError(
            f"{source}: cannot import {path!r} ({first_line(error)}); it is looked for on sys.path and in {Path.cwd()}"
        ) from error
    except SystemExit as error:
        raise ModelError(f"{source}: importing {path!r} {_ended(error)}") from error
    except Exception as error:
        raise ModelError(f"{source}: importing {path!r} failed: {reason(error)}") from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            near = nearest(part, [n for n in dir(target) if not n.startswith("_")])
            raise ModelError(f"{source}: {path!r} has no {part!r}; the nearest are {listing(near)}")
        target = getattr(target, part)
    if frameworks.of_model(target) is not None:
        return target
    if not callable(target):
        raise ModelError(f"{source} is a {type(target).__name__}; expected a callable that returns a model")
    try:
        inspect.signature(target).bind()
    except TypeError as error:
        raise ModelError(
            f"{source} cannot be called without arguments ({error}); write a function that takes none and returns the "
            "model"
        ) from error
    except ValueError:
        pass  # built-in callables have no signature to check
    try:
        return target()
    except OnnxcamError:
        raise
    except SystemExit as error:
        raise ModelError(f"{source}() {_ended(error)}") from error
    except Exception as error:
        raise ModelError(f"{source}() failed: {reason(error)}") from error


def _ended(error: SystemExit) -> str:
    """What code did that called `exit`, and what to do."""
    status = 0 if error.code is None else error.code
    return f"ended the program (exit status {status}); expected a model: name code that returns one and does not exit"


def callable_name(source: str) -> str:
    """A model's name from `package.module:callable`: the callable's, or the module's where that is just `model`."""
    path, _, attribute = source.partition(":")
    return attribute if attribute != "model" else path.rpartition(".")[2]


@contextmanager
def importable_here() -> Iterator[None]:
    """Make the current folder importable, as it is for `python` but not for an installed command."""
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


@contextmanager
def imported(file: str | None) -> Iterator[dict[str, Any]]:
    """Run a Python file under the name of its stem, so that loading a model finds the classes in it.

    Yields:
        the names it defines.
    """
    if file is None:
        yield {}
        return
    path = Path(file)
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise ModelError(f"{file} cannot be imported; expected a Python file (.py)")
    previous = sys.modules.get(path.stem)
    main = sys.modules["__main__"]
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    added: list[str] = []
    try:
        try:
            spec.loader.exec_module(module)
        except SystemExit as error:
            raise ModelError(f"running {file} {_ended(error)}") from error
        except Exception as error:
            raise ModelError(f"running {file} failed: {reason(error)}") from error
        # a module saved by a script says that its classes live in __main__
        for name, value in vars(module).items():
            if isinstance(value, type) and not hasattr(main, name):
                setattr(main, name, value)
                added.append(name)
        yield dict(vars(module))
    finally:
        for name in added:
            delattr(main, name)
        if previous is None:
            sys.modules.pop(path.stem, None)
        else:
            sys.modules[path.stem] = previous
