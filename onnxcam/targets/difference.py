"""What every target that is more than a class shares: `a - b` is the difference of two of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class Scalar:
    """One number per picture, a function of the model's outputs."""

    def __sub__(self, other: Any) -> Difference:
        return Difference(self, other)

    def __rsub__(self, other: Any) -> Difference:
        return Difference(other, self)


@dataclass(frozen=True, eq=False)
class Difference(Scalar):
    """The difference of two numbers: why the first rather than the second.

    Arguments:
        first, second: each a scalar of `onnxcam.targets`, an index, or a label.
    """

    first: Any
    second: Any
