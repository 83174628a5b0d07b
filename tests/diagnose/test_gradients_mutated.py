"""`check` finds mistakes planted by machine in emitted gradients, all of them, and accuses no right file."""

from __future__ import annotations

import pytest

from onnxcam.diagnose.gradients import check
from onnxcam.errors import OnnxcamError
from tests.support import wrong_gradients as planted

CPU = ["CPUExecutionProvider"]
# a mistake that changes gradients by less than this is none that finite differences in float32 can be asked to find
SMALLEST = 0.1
# differences count jumps, gradients do not: there only large mistakes can be told from right files
JUMPS = "jumps"
NAMES = [name for name in planted.ARCHITECTURES if name != JUMPS]
QUICK = ("plain", "tokens")
every = pytest.mark.parametrize("name", NAMES)


def found_of(name: str, each: int) -> int:
    """How many mistakes `check` finds in one architecture; it has to find every one that changes a gradient."""
    model = planted.explainable(name)
    right = planted.gradients(model)
    assert right is not None
    detected, missed = 0, []
    for plant in planted.some(planted.plants(model), each):
        wrong = planted.gradients(plant.model)
        if wrong is None or planted.change(right, wrong) < SMALLEST:
            continue
        try:
            report = check(plant.model, providers=CPU)
        except OnnxcamError:  # it runs at no other batch size
            detected += 1
            continue
        if report.passed:
            missed.append(f"{plant.kind}: {plant.node}, off by {planted.change(right, wrong):.2f}: {report.lines()}")
        detected += not report.passed
    assert not missed, "\n".join(missed)
    return detected


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", QUICK)
def test_some_mistakes_of_every_kind_are_found(name: str) -> None:
    assert found_of(name, 2) >= 10


@pytest.mark.slow
@every
def test_more_mistakes_of_every_kind_are_found(name: str) -> None:
    assert found_of(name, 5) >= 20


@pytest.mark.soak
@every
def test_all_mistakes_are_found(name: str) -> None:
    assert found_of(name, 1000) >= 25


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", planted.ARCHITECTURES)
@pytest.mark.parametrize("seed", range(4))
def test_right_files_are_not_accused(name: str, seed: int) -> None:
    report = check(planted.explainable(name, seed), providers=CPU, seed=seed)
    assert report.passed, report.lines()
    status = next(finding.status for finding in report.findings if finding.name.startswith("gradients"))
    assert status == "ok" or name == JUMPS, report.lines()


@pytest.mark.slow
def test_what_jumps_hides_no_large_mistake() -> None:
    model = planted.explainable(JUMPS)
    statuses = {}
    for plant in planted.plants(model):
        if plant.kind in ("sign", "dropped term"):
            report = check(plant.model, providers=CPU)
            statuses[plant.node] = [f.status for f in report.findings if f.name.startswith("gradients")]
    assert len(statuses) >= 5 and set(map(tuple, statuses.values())) == {("failed",)}, statuses
