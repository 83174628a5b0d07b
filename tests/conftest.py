"""Settings that count before a library is loaded, the order of files, and what each PyTorch export would repeat."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.abc
import os
import signal
import sys
from collections import Counter, defaultdict
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
if "PYTEST_XDIST_WORKER" in os.environ:  # there is a process for each core: threads of their own would only contend
    # NumPy's BLAS, which comes with ONNX Runtime, reads its number of threads once, as it is loaded
    for variable in (
        "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM", "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    ):  # fmt: skip
        os.environ.setdefault(variable, "1")

import onnxruntime
import pytest

from tests.support.examples import SAMPLE


def _one_thread(create: Any) -> Any:
    """Create sessions on one thread where nobody names a number; ONNX Runtime has no variable for it."""

    @functools.wraps(create)
    def created(self: Any, source: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
        options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        if getattr(options, "intra_op_num_threads", None) != 0:
            return create(self, source, sess_options, *args, **kwargs)
        options.intra_op_num_threads = 1
        try:
            create(self, source, options, *args, **kwargs)
        finally:  # a caller's options stay as they are
            options.intra_op_num_threads = 0

    return created


if os.environ.get("OMP_NUM_THREADS") == "1":
    onnxruntime.InferenceSession.__init__ = _one_thread(onnxruntime.InferenceSession.__init__)


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # what is imported stays
    # shells start jobs in the background so, and the programs that tests start would inherit it
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "not slow" in config.option.markexpr:
        os.environ[SAMPLE] = "1"


def _mark_all_but_a_sample(items: list[pytest.Item]) -> None:
    """Mark the cases of a test with `sample(N)` as slow but for N of them, spread evenly from the first to the last."""
    cases: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sample") and not item.get_closest_marker("slow"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for group in cases.values():
        marker = group[0].get_closest_marker("sample")
        assert marker is not None
        count = min(marker.args[0], len(group))
        fast = {0} if count == 1 else {k * (len(group) - 1) // (count - 1) for k in range(count)}
        for k, item in enumerate(group):
            if k not in fast:
                item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)  # before tests are left out by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow the soaks, the fleets and what samples leave out. Files with most slow tests come first.

    Processes end together so.
    """
    for item in items:
        if item.get_closest_marker("soak") or item.get_closest_marker("fleets"):
            item.add_marker("slow")
    _mark_all_but_a_sample(items)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


class _OneTable(importlib.abc.MetaPathFinder):
    """Build PyTorch's table of ONNX operators once per opset.

    torch.onnx.export parses the sources of 500 functions for its table each time: half of the time a small network
    takes. The module is private, and may be elsewhere in other versions.
    """

    NAME = "torch.onnx._internal.exporter._registration"

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self.NAME:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def executed(module: Any) -> None:
            execute(module)
            with contextlib.suppress(AttributeError):
                module.ONNXRegistry.from_torchlib = staticmethod(functools.cache(module.ONNXRegistry.from_torchlib))

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _OneTable())


def pytest_collection_finish() -> None:
    """Take what collection made out of garbage collection.

    A full collection would walk through millions of objects of frameworks and tests that stay to the end.
    """
    gc.freeze()
    gc.enable()
