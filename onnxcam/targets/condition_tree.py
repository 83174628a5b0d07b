"""The tree of a condition: what its text becomes, see `onnxcam.targets.conditions` for the grammar."""

from __future__ import annotations

from dataclasses import dataclass

LABEL = "label"
QUANTITIES = ("confidence", "margin", "entropy", LABEL)
CALIBRATED, SET, RISK, TOP = "calibrated", "set", "risk", "top"
RANKED = ("confidence", "margin", "entropy", CALIBRATED)  # quantities that `top` ranks rows by
COMPARED = (*QUANTITIES, CALIBRATED, SET, RISK)
OPERATORS = ("<", "<=", ">", ">=", "==", "!=")


@dataclass(frozen=True)
class Comparison:
    """`quantity operator value`; a label's value is its index once `parse` knows the model."""

    quantity: str
    operator: str
    value: float | str


@dataclass(frozen=True)
class Not:
    """True where the condition is not."""

    condition: Condition


@dataclass(frozen=True)
class AllOf:
    """True where every condition is."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """True where at least one condition is."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Top:
    """True for the share of traffic that is the least sure by one quantity; `bind` makes it a comparison.

    Attributes:
        share: 0 to 1, exclusive.
        by: one of `RANKED`.
    """

    share: float
    by: str = "confidence"

    @property
    def key(self) -> str:
        """The condition as text, and its name among the quantities where it was decided from recent traffic."""
        return f"{TOP} {100 * self.share:.10g}% by {self.by}"


@dataclass(frozen=True)
class Risk:
    """True for the rows beyond, or within, those of which at most a share is wrong; `bind` makes it a comparison.

    Attributes:
        most: the share.
        beyond: whether it is true beyond them.
    """

    most: float
    beyond: bool


Condition = Comparison | Not | AllOf | AnyOf | Top | Risk
