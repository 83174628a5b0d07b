"""The registry of CAM methods: one decorated function per method, emitting ONNX nodes.

    @cam_method("hirescam")
    def hirescam(op, a, da):
        '''sum_c dA * A. ...'''
        return channel_sum(op, op.Mul(da, a))

`a` and `da` are the activations and gradients, float32 `[N, C, h, w]` whatever the model's own layout is. The function
returns the map before its ReLU, `[N, h, w]`; the ReLU is added once, for every method.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxcam.errors import MethodError, listing, nearest
from onnxcam.graph.builder import Builder

Method = Callable[[Builder, str, str], str]

_methods: dict[str, Method] = {}


def cam_method(name: str) -> Callable[[Method], Method]:
    """Register a method under its name in the literature, lower case.

    Raises:
        ValueError: the name is taken.
    """

    def register(method: Method) -> Method:
        if name in _methods:
            raise ValueError(f"there already is a method {name!r}")
        _methods[name] = method
        return method

    return register


def methods() -> list[str]:
    """Names of all methods, in the order they were registered."""
    return list(_methods)


def find(name: str) -> Method:
    """A method by name.

    Raises:
        MethodError: no such method.
    """
    if name not in _methods:
        raise MethodError(f"no method {name!r}; there are {listing(nearest(name, _methods))}")
    return _methods[name]
