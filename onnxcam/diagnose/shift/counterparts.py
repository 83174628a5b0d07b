"""Operators of one network that the other has not, between layers that both have.

An operator without weights that was replaced, inserted or dropped has no counterpart: what it changes is seen at the
next layer that has one, which is innocent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from onnxcam.diagnose.shift.alignment import Match
from onnxcam.diagnose.shift.operations import RESHAPING, Operation, Operations, name_of

_MOST = 3  # operators named of each network
_FOLDED = frozenset({"BatchNormalization", "Add", "Sub", "Mul", "Div"})  # into weights and bias, by many tools


class Apart(NamedTuple):
    """What may explain that a layer gives other values though its own constants are the same.

    Attributes:
        text: which operators the networks do not share there.
        between: the layers around them, such as `'conv1' and 'conv2'`; empty where the layer itself remains suspect.
    """

    text: str
    between: str = ""


class Counterparts:
    """The operators of two networks that have no counterpart.

    Arguments:
        old, new: the networks.
        aligned: all matches.
        compared: those whose values can be compared.
    """

    def __init__(self, old: Operations, new: Operations, aligned: Sequence[Match], compared: Sequence[Match]) -> None:
        self._sides = old, new
        self._partners = {id(operation) for match in aligned for operation in (match.old, match.new)}
        self._ends = {id(operation) for match in compared for operation in (match.old, match.new)}

    def before(self, match: Match) -> Apart | None:
        """What the networks do not share between a layer and those before it; None where they share everything."""
        alone, starts = zip(
            *(self._walk(side, one.sources) for side, one in zip(self._sides, (match.old, match.new), strict=True)),
            strict=True,
        )
        computing = [[one for one in some if not _reshapes(one)] for some in alone]
        if any(computing):
            names = [repr(one.name) for one in starts[0][:_MOST]] or ["the picture"]
            return Apart(_words(*computing), f"{', '.join(names)} and {match.old.name!r}")
        if match.new.inner:
            return Apart(f"the pair {name_of(match.new.inner[0].quantize)!r} inside it may be the reason")
        ending = _ending(match)
        if ending:
            return Apart(ending)
        return Apart(f"before it {_words(*alone)}") if any(alone) else None

    def behind(self) -> str:
        """Which operators the networks do not share behind the last layers that both have; empty without any."""
        alone = [self._walk(side, [side.base(side.scores)])[0] for side in self._sides]
        computing = [[one for one in some if not _reshapes(one)] for some in alone]
        return _words(*computing) if any(computing) else ""

    def _walk(self, side: Operations, values: Iterable[str]) -> tuple[list[Operation], list[Operation]]:
        """The operations without a counterpart from values back to layers of both, and those layers."""
        waiting, visited = list(values), set()
        alone, ends = [], []
        while waiting:
            operation = side.by_value.get(waiting.pop())
            if operation is None or id(operation) in visited:
                continue
            visited.add(id(operation))
            if id(operation) in self._ends:
                ends.append(operation)
                continue
            if id(operation) not in self._partners and operation.node is not None:
                alone.append(operation)
            waiting += operation.sources
        place = {id(operation): number for number, operation in enumerate(side.all)}
        first, second = (sorted(some, key=lambda one: place[id(one)]) for some in (alone, ends))
        return first, second


def _reshapes(operation: Operation) -> bool:
    return operation.node is not None and operation.node.op_type in RESHAPING and len(operation.nodes) == 1


def _words(old: Sequence[Operation], new: Sequence[Operation]) -> str:
    first, second = (
        _several([f"{one.node.op_type} {one.name!r}" for one in some if one.node is not None]) for some in (old, new)
    )
    if not new:
        return f"the new file lacks {first} of the old one"
    return f"the new file has {second}" + (f" where the old one has {first}" if old else ", which the old one has not")


def _several(names: Sequence[str]) -> str:
    more = len(names) - _MOST
    return ", ".join(names[:_MOST]) + (f" and {more} more" if more > 0 else "")


def _ending(match: Match) -> str:
    """Other activations at the end of the layer; a pair behind it may clip in place of one."""
    if match.new.pairs:
        return ""
    old, new = (
        [node.op_type for node in one.nodes[1:] if node.op_type not in _FOLDED | RESHAPING]
        for one in (match.old, match.new)
    )
    if old == new:
        return ""
    first, second = (_several(some) or "nothing" for some in (old, new))
    return f"its values go through {second} where the old one's go through {first}"
