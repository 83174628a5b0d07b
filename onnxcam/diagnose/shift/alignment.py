"""Which operation of one network is which of another: by name, by structure, by weights.

Names are kept by most quantization and graph tools and lost by most converters; structure (the same operator on the
same predecessors, with weights of the same shape) is kept by both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxcam.diagnose.shift import weights as kernels
from onnxcam.diagnose.shift.operations import CONVOLUTION, LINEAR, PICTURE, Operation, Operations
from onnxcam.diagnose.shift.weights import Weights

Dims = tuple[int, ...]
Order = tuple[int, ...] | None  # None: axes of length 1 come or go

_SIMILAR = 0.9  # cosine of two kernels that are one but for rounding


@dataclass(frozen=True, eq=False)
class Match:
    """An operation of both networks.

    Attributes:
        old, new: the operations.
        by: what says so: `name`, `weights` or `structure`.
    """

    old: Operation
    new: Operation
    by: str


def align(
    old: Operations, new: Operations, old_weights: Mapping[str, Weights], new_weights: Mapping[str, Weights]
) -> list[Match]:
    """Match operations, in the order of the new network.

    Arguments:
        old, new: the networks.
        old_weights, new_weights: of the operations, by their value.
    """
    first = Match(old.all[0], new.all[0], "structure")
    matches = [first]
    partner = {new.all[0].value: old.all[0].value}
    free: dict[tuple[object, ...], list[Operation]] = {}
    for operation in old.all[1:]:
        free.setdefault(_signature(operation, old_weights), []).append(operation)
    old_places = {operation.value: place for place, operation in enumerate(old.all)}
    new_count, old_count = len(new.all), len(old.all)
    for place, operation in enumerate(new.all[1:], 1):
        candidates = free.get(_signature(operation, new_weights), [])
        if not candidates:
            continue
        before = {partner.get(origin.value) for origin in new.origins(operation)} - {None}
        expected = place * old_count / new_count

        def grade(
            candidate: Operation,
            before: set[str | None] = before,
            expected: float = expected,
            operation: Operation = operation,
        ) -> tuple[float, ...]:
            origins = {origin.value for origin in old.origins(candidate)}
            shared = len(origins & before) / max(1, len(origins | before))
            similar = 0.0
            if operation.value in new_weights and candidate.value in old_weights:
                similar = kernels.alike(new_weights[operation.value].kernel, old_weights[candidate.value].kernel)
            named = float(_same_name(candidate, operation))
            return named, float(similar > _SIMILAR), shared, -abs(old_places[candidate.value] - expected)

        best = max(candidates, key=grade)
        named, similar, shared, _ = grade(best)
        weighted = operation.kind in (LINEAR, CONVOLUTION)
        if not (named or similar or shared or weighted):
            continue
        if not weighted and not named and shared < 0.5:
            continue
        candidates.remove(best)
        partner[operation.value] = best.value
        matches.append(Match(best, operation, "name" if named else "weights" if similar else "structure"))
    return matches


def _same_name(old: Operation, new: Operation) -> bool:
    names = {name for node in old.nodes for name in node.output}
    return bool(names & ({new.value} | {name for node in new.nodes for name in node.output}))


def _signature(operation: Operation, weights: Mapping[str, Weights]) -> tuple[object, ...]:
    entry = weights.get(operation.value)
    if operation.kind == PICTURE or entry is None:
        return (operation.kind,)
    kernel = entry.kernel
    # a dense layer and a convolution of 1 x 1 are one; a depthwise kernel is not
    return operation.kind, len(kernel), kernel.size, kernel.shape[2:] if operation.kind == CONVOLUTION else ()


class Axes:
    """How a value of the new network becomes one of the old: axes reordered, axes of length 1 left out or added.

    Arguments:
        old, new: shapes.
    """

    def __init__(self, old: Dims, new: Dims) -> None:
        self._old, self._new = tuple(old), tuple(new)
        self._choices = list(_orders(self._old, self._new))

    @property
    def possible(self) -> bool:
        """Whether there is a way."""
        return bool(self._choices)

    def settle(self, old: np.ndarray, new: np.ndarray) -> None:
        """Choose the way under which two values are closest, where the shapes allow several."""
        if len(self._choices) > 1:
            distances = [_norm(old - _apply(new, order, self._old)) for order in self._choices]
            self._choices = [self._choices[int(np.argmin(distances))]]

    def to_old(self, new: np.ndarray) -> np.ndarray:
        """A value of the new network as one of the old."""
        return _apply(new, self._choices[0], self._old)

    def to_new(self, old: np.ndarray) -> np.ndarray:
        """A value of the old network as one of the new."""
        order = self._choices[0]
        if order is None:
            return old.reshape(self._new)
        inverse = [order.index(axis) for axis in range(len(order))]
        return np.ascontiguousarray(old.transpose(inverse))


def _norm(difference: np.ndarray) -> float:
    return float(np.linalg.norm(difference.astype(np.float64)))


def _apply(new: np.ndarray, order: Order, shape: Dims) -> np.ndarray:
    return new.reshape(shape) if order is None else new.transpose(order)


def _orders(old: Dims, new: Dims) -> Iterator[Order]:
    """Ways to reorder the axes; None for a mere change of axes of length 1."""
    if len(old) == len(new) and old[:1] == new[:1]:
        if old == new:
            yield tuple(range(len(old)))
        orders: list[Dims] = [(0, 3, 1, 2), (0, 2, 3, 1)] if len(old) == 4 else [(0, 2, 1)] if len(old) == 3 else []
        for order in orders:
            if tuple(new[axis] for axis in order) == old:
                yield order
    elif [side for side in old if side != 1] == [side for side in new if side != 1]:
        yield None
