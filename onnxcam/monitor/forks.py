"""What a forked child has to set right before anything else: locks held by threads that it does not have."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

_actions: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def after_fork(held: Any, action: Callable[[Any], None]) -> None:
    """Call `action(held)` in every forked child for as long as `held` lives."""
    _actions[held] = action


def _in_child() -> None:
    for held, action in list(_actions.items()):
        action(held)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
