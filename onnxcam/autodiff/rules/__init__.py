"""VJP rules, one module per family of operators; importing this package registers those of every module in it."""

import importlib
import pkgutil

__all__ = sorted(module.name for module in pkgutil.iter_modules(__path__))

for _module in __all__:
    importlib.import_module(f"{__name__}.{_module}")
