"""What a diagnosis returns: findings, as text and as JSON, and whether anything failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# `unsure`: the measurement is too noisy to decide; `note`: nothing to pass or fail
Status = Literal["ok", "failed", "unsure", "note"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: what was checked.
        status: `failed` makes the report fail; the others do not.
        detail: the result in one sentence.
        figures: the measured numbers by name.
        remedy: a shell command that repairs what failed, or advice.
    """

    name: str
    status: Status
    detail: str
    figures: dict[str, float] = field(default_factory=dict)
    remedy: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the check did not fail."""
        return self.status != "failed"

    def to_dict(self) -> dict[str, Any]:
        """Return the finding ready for JSON."""
        return {"name": self.name, "status": self.status, "detail": self.detail, "figures": self.figures}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The findings of one diagnosis; subclasses add what they measured."""

    findings: Sequence[Finding] = ()

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [finding.name for finding in self.findings if not finding.ok]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    def lines(self) -> list[str]:
        """Return the report as text, one line per finding."""
        return [f"{finding.status:>6}  {finding.name}: {finding.detail}" for finding in self.findings]

    def to_dict(self) -> dict[str, Any]:
        """Return the report ready for JSON."""
        return {"passed": self.passed, "findings": [finding.to_dict() for finding in self.findings]}
