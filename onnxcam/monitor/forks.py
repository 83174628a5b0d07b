"""Callbacks in forked children, which must replace locks that threads of the parent hold."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

_actions: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def after_fork(instance: Any, action: Callable[[Any], None]) -> None:
    """Call `action(instance)` in every forked child, as long as `instance` is alive."""
    _actions[instance] = action


def _run_actions() -> None:
    for instance, action in list(_actions.items()):
        action(instance)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_run_actions)
