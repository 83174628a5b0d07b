"""The parts of one model as sessions, each made when it is first needed and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcam.graph.large_model import Serialized
    from onnxcam.network.subgraphs import Anatomy, Cut

ALONE, IN_TURN, BRIEF = "alone", "in turn", "brief"


class Parts:
    """Sessions of a model's head, tails and backward passes. Thread-safe.

    Where the scores are affine in a layer, what comes after the head is so little that one thread does it while the
    head's wait for the next picture. Elsewhere sessions take turns on all cores, and stop waiting when their run ends.

    Arguments:
        source: a classifier or an explainable model.
        open_session: makes a session from a serialized model and how it runs: `ALONE`, `IN_TURN` or `BRIEF`.
    """

    def __init__(self, source: Any, open_session: Callable[[Serialized, str], Any]) -> None:
        self._source = source
        self._open = open_session
        self._lock = threading.RLock()
        self._anatomy: Anatomy | None = None
        self._sessions: dict[tuple[str, ...], Any] = {}
        self._straight: dict[str, bool] = {}
        self._exposed: tuple[str, ...] = ()
        self._head: Any = None
        self._attention: tuple[Any, list[Any]] | None = None
        self._contributions: tuple[Any, list[tuple[str, str]]] | None = None

    @property
    def anatomy(self) -> Anatomy:
        """The model, ready to be taken apart; onnx is imported here and not before."""
        with self._lock:
            if self._anatomy is None:
                from onnxcam.network.subgraphs import Anatomy

                self._anatomy = Anatomy(self._source)
            return self._anatomy

    def cut(self, layer: str) -> Cut:
        """Where the model is cut for a layer."""
        with self._lock:
            return self.anatomy.cut(layer)

    def head(self, layers: Sequence[str]) -> Any:
        """A session that emits the scores and at least the cut values of these layers."""
        with self._lock:
            lacking = [name for name in layers if name not in self._exposed]
            if self._head is None or lacking:
                exposed = (*self._exposed, *dict.fromkeys(lacking))
                brief = all(self.anatomy.cut(name).affine for name in exposed)
                self._head = self._made(self.anatomy.head(exposed), ALONE if brief else IN_TURN)
                self._exposed = exposed
            return self._head

    def tail(self, layer: str) -> Any:
        """A session from the cut values to the scores."""
        return self._part(("tail", layer), lambda: self.anatomy.tail(layer))

    def backward(self, layer: str, relu: str, of_class: bool = False) -> Any:
        """A session from the cut values and a cotangent of the scores, or a class, to the gradient at the layer."""
        runs = BRIEF if self.cut(layer).affine else IN_TURN
        key = ("backward", layer, relu, *["of class"] * of_class)
        return self._part(key, lambda: self.anatomy.backward(layer, relu=relu, of_class=of_class), runs)

    def class_maps(self, layer: str, names: Sequence[str], repeated: bool = False) -> Any:
        """A session from the cut values and classes to maps of graph methods, with a class per row or several."""
        runs = BRIEF if self.cut(layer).affine else IN_TURN
        key = ("class maps", layer, *["repeated"] * repeated, *names)
        return self._part(key, lambda: self.anatomy.class_maps(layer, names, repeated), runs)

    def curvature(self, layer: str) -> Any:
        """A session from cut values, cotangent and direction to the curvature; None where there is none."""
        with self._lock:
            if layer not in self._straight:
                model = self.anatomy.curvature(layer)
                if model is not None:
                    self._part(("curvature", layer), lambda: model)
                self._straight[layer] = model is None
        return None if self._straight[layer] else self._sessions[("curvature", layer)]

    def aimed(self, relu: str) -> Any:
        """A session from pictures and classes to the scores and the gradient at the picture."""
        return self._part(("aimed", relu), lambda: self.anatomy.aimed(relu=relu))

    def constants(self) -> tuple[Any, list[tuple[str, str]]]:
        """A session for what the picture and every additive constant contribute; its outputs with their layouts."""
        with self._lock:
            if self._contributions is None:
                model, outputs = self.anatomy.constants()
                self._contributions = self._made(model), outputs
            return self._contributions

    def attention(self) -> tuple[Any, list[Any]]:
        """A session from pictures to each transformer block's attention and output, and the blocks."""
        with self._lock:
            if self._attention is None:
                model, blocks = self.anatomy.attention()
                self._attention = self._made(model), blocks
            return self._attention

    def attention_backward(self) -> Any:
        """A session from pictures and a cotangent per block to the gradients of the attention."""
        return self._part(("attention",), lambda: self.anatomy.attention_backward())

    def maps(self, layer: str, names: Sequence[str], terms: bool = False) -> Any:
        """A session from a layer's activations and gradients to maps of graph methods, or to what they are sums of."""
        runs = BRIEF if self.cut(layer).affine else IN_TURN

        def make() -> Any:
            from onnxcam.network.subgraphs import maps

            return maps(names, terms)

        return self._part(("terms" if terms else "maps", runs, *names), make, runs)

    def _part(self, key: tuple[str, ...], make: Callable[[], Any], runs: str = IN_TURN) -> Any:
        held = self._sessions.get(key)
        if held is None:
            with self._lock:
                held = self._sessions.get(key)
                if held is None:
                    held = self._sessions[key] = self._made(make(), runs)
        return held

    def _made(self, model: Any, runs: str = IN_TURN) -> Any:
        from onnxcam.graph.load import serialize

        return self._open(serialize(model), runs)
