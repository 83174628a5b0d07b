"""Session options by name: threads, spinning and warnings are as their names say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest

from onnxcam.runtime import options

MAKERS = {
    "serving": options.serving,
    "in_turn": options.in_turn,
    "side_by_side": lambda: options.side_by_side(2),
    "one_thread": options.one_thread,
}
SPINNING, STOP = "session.intra_op.allow_spinning", "session.force_spinning_stop"


def entries(settings: Any) -> dict[str, str]:
    """The configuration entries that are present."""
    present = {}
    for key in (SPINNING, STOP, "session.inter_op.allow_spinning"):
        try:
            present[key] = settings.get_session_config_entry(key)
        except RuntimeError:
            continue
    return present


@pytest.mark.parametrize(
    ("name", "threads", "configuration"),
    [
        ("serving", 0, {}),
        ("in_turn", 0, {STOP: "1"}),
        ("side_by_side", 2, {SPINNING: "0"}),
        ("one_thread", 1, {SPINNING: "0", "session.inter_op.allow_spinning": "0"}),
    ],
)
def test_threads_and_spinning(name: str, threads: int, configuration: dict[str, str]) -> None:
    settings = MAKERS[name]()
    assert settings.intra_op_num_threads == threads
    assert entries(settings) == configuration


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_warnings_are_off_and_options_may_be_shared(make: Callable[[], Any]) -> None:
    settings = make()
    assert settings.log_severity_level == 4
    assert not options.is_single_use(settings)


@pytest.mark.parametrize("make", [options.serving, options.in_turn, options.one_thread])
def test_single_use(make: Callable[..., Any]) -> None:
    assert options.is_single_use(make(single_use=True))


def test_options_of_a_caller_may_be_shared() -> None:
    assert not options.is_single_use(onnxruntime.SessionOptions())
