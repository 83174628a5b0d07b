"""Models named by the code that makes them: `package.module:callable`, whichever framework they turn out to be of."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxcam.errors import ModelError, OnnxcamError, listing, nearest

CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def framework_of(model: Any) -> str | None:
    """`torch`, `keras` or `tf_keras`, told without importing any of them; None where the object is no model."""
    for base in type(model).__mro__:
        package = base.__module__.partition(".")[0]
        if package == "torch" and base.__name__ in ("Module", "ExportedProgram"):
            return package
        if package in ("keras", "tf_keras") and base.__name__ == "Layer":
            return package
    return None


def call(source: str) -> Any:
    """Import `package.module:callable` and call it without arguments; naming it is consent to run it.

    Returns:
        what it returned, or the object itself where that already is a model.

    Raises:
        ModelError: it cannot be imported, does not exist, needs arguments, or fails.
    """
    path, _, attribute = source.partition(":")
    try:
        found: Any = importlib.import_module(path)
    except ImportError as error:
        raise ModelError(
            f"{source}: cannot import {path!r} ({first_line(error)}); it is looked for on sys.path and in {Path.cwd()}"
        ) from error
    except Exception as error:
        raise ModelError(f"{source}: importing {path!r} failed: {told(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = nearest(part, [n for n in dir(found) if not n.startswith("_")])
            raise ModelError(f"{source}: {path!r} has no {part!r}; the nearest are {listing(near)}")
        found = getattr(found, part)
    if framework_of(found) is not None:
        return found
    if not callable(found):
        raise ModelError(f"{source} is a {type(found).__name__}; expected a callable that returns a model")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise ModelError(
            f"{source} cannot be called without arguments ({error}); write a function that takes none and returns the "
            "model"
        ) from error
    except ValueError:
        pass  # built-in callables have no signature to check
    try:
        return found()
    except OnnxcamError:
        raise
    except Exception as error:
        raise ModelError(f"{source}() failed: {told(error)}") from error


@contextmanager
def importable_here() -> Iterator[None]:
    """The current folder importable, as `python` has it and an installed command has not."""
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
    """A Python file run under the name of its stem, so that loading a model finds the classes in it.

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
    held = sys.modules.get(path.stem)
    main = sys.modules["__main__"]
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    lent: list[str] = []
    try:
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise ModelError(f"running {file} failed: {told(error)}") from error
        # a module saved by a script says that its classes live in __main__
        for name, value in vars(module).items():
            if isinstance(value, type) and not hasattr(main, name):
                setattr(main, name, value)
                lent.append(name)
        yield dict(vars(module))
    finally:
        for name in lent:
            delattr(main, name)
        if held is None:
            sys.modules.pop(path.stem, None)
        else:
            sys.modules[path.stem] = held


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)


def told(error: BaseException) -> str:
    """An error's type and what it says, in one line."""
    return f"{type(error).__name__}: {first_line(error)}"
