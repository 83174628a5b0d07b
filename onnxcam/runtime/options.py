"""Session options by what the session is for. All of them keep ONNX Runtime's own messages off standard error."""

from __future__ import annotations

from typing import Any

from onnxcam.runtime.library import import_onnxruntime

# an entry of our own: the options belong to a single session
_SINGLE_USE = "onnxcam.single_use"


def serving(threads: int = 0, *, single_use: bool = False) -> Any:
    """Make options for a session that has the machine to itself.

    Arguments:
        threads: threads per run; 0 for one per core.
        single_use: the options are passed to one session only, so they may hold the weights of a large model
            (ONNX Runtime keeps weights passed through options for every session made with them).
    """
    options = import_onnxruntime().SessionOptions()
    # ONNX Runtime warns at each load that the input `target` has a default, which is intended; what fails, it both
    # prints and raises
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if single_use:
        options.add_session_config_entry(_SINGLE_USE, "1")
    return options


def proving() -> Any:
    """Make options for a session whose numbers are compared with finite differences or with a training framework.

    Where int8 weights are dequantized for a MatMul or Gemm, ONNX Runtime rounds the activations to 8 bits too
    (MatMulNBits at its accuracy level 4): scores become a staircase, whose finite differences mean nothing. Accuracy
    level 0 keeps the activations in float32.
    """
    options = serving(single_use=True)
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    return options


def unoptimized() -> Any:
    """Make options for a session that runs the graph as it is written, node by node."""
    ort = import_onnxruntime()
    options = serving(single_use=True)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def in_turn(*, single_use: bool = False) -> Any:
    """Make options for sessions that run one after another on the same cores.

    A session's threads stop spinning when its run ends, before the next session needs the cores: two methods on
    ResNet-50 take 1.06 instead of 1.66 forward passes. Waking the threads costs a small model up to half its forward
    pass, so a session that runs alone uses `serving`.
    """
    options = serving(single_use=single_use)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def side_by_side(threads: int) -> Any:
    """Make options for a session that shares the cores with other working threads and computes on `threads` of them.

    Its threads sleep between runs: spinning takes 10 to 19 % of all processor time, explaining a folder on two cores.
    """
    options = serving(threads)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def one_thread(*, single_use: bool = False) -> Any:
    """Make options for a session that computes on the calling thread and starts none of its own.

    For models so small that waking other threads costs more than they save, and for a guest in a serving process.
    """
    options = serving(1, single_use=single_use)
    options.inter_op_num_threads = 1
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    return options


def is_single_use(options: Any) -> bool:
    """Whether `options` were made for a single session, by one of the functions here."""
    try:
        return bool(options.get_session_config_entry(_SINGLE_USE))
    except RuntimeError:  # no such entry
        return False
