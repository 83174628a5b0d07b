"""Temperature, conformal scores, quantiles and intervals, against SciPy and the papers' own arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from onnxcam.errors import InputError, LabelsError, SettingError
from onnxcam.network.calibration import conformal, intervals
from onnxcam.network.calibration.conformal import Rule
from onnxcam.network.calibration.fit import MULTIPLES, fit
from onnxcam.network.calibration.temperature import HIGHEST, LOWEST, fit_temperature, tempered
from onnxcam.targets.readout import BINARY, LOGITS, MULTILABEL, PROBABILITIES, REGRESSION, Readout


def readout(kind: str = LOGITS, size: int = 10) -> Readout:
    return Readout("scores", kind, size)


def drawn(
    n: int, size: int = 10, temperature: float = 1.0, seed: int = 0, spread: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose classes are drawn from softmax(scores / temperature), so that this is the best temperature."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=spread, size=(n, size)) * temperature
    return scores, (scores / temperature + rng.gumbel(size=scores.shape)).argmax(axis=1)


def negative_log_likelihood(kind: str, scores: np.ndarray, truth: np.ndarray, temperature: float) -> float:
    """Written anew, from SciPy's functions."""
    if kind == BINARY:
        s = np.where(truth == 1, scores[:, 0], -scores[:, 0])
        return float(-scipy.special.log_expit(s / temperature).mean())
    if kind == MULTILABEL:
        signs = np.where(truth, 1, -1)
        return float(-scipy.special.log_expit(signs * scores / temperature).sum(axis=1).mean())
    log_p = scipy.special.log_softmax(scores / temperature, axis=1)
    return float(-log_p[np.arange(len(truth)), truth].mean())


def of_kind(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    rng = np.random.default_rng(seed)
    if kind == BINARY:
        s = rng.normal(scale=4, size=(400, 1))
        return s, (rng.uniform(size=400) < scipy.special.expit(s[:, 0] / 2.5)).astype(int), 2
    if kind == MULTILABEL:
        s = rng.normal(scale=3, size=(300, 6))
        return s, rng.uniform(size=s.shape) < scipy.special.expit(s / 1.7), 6
    s, truth = drawn(400, 7, 0.4 + seed, seed)
    return (scipy.special.log_softmax(s, axis=1) if kind == PROBABILITIES else s), truth, 7


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [LOGITS, PROBABILITIES, BINARY, MULTILABEL])
def test_the_temperature_is_scipys_optimum(kind: str, seed: int) -> None:
    scores, truth, size = of_kind(kind, seed)
    fitted = fit_temperature(scores, truth, readout(kind, size))
    best = scipy.optimize.minimize_scalar(
        lambda inverse: negative_log_likelihood(kind, scores, truth, 1 / inverse),
        bounds=(1 / fitted.value / 3, 3 / fitted.value), method="bounded", options={"xatol": 1e-12},
    )  # fmt: skip
    slope = scipy.optimize.brentq(
        lambda inverse: scipy.optimize.approx_fprime(
            [inverse], lambda x: negative_log_likelihood(kind, scores, truth, 1 / x[0]), 1e-6
        )[0],
        0.5 / fitted.value, 2 / fitted.value, xtol=1e-12,
    )  # fmt: skip
    assert fitted.bound is None
    assert fitted.value == pytest.approx(1 / best.x, rel=1e-6)
    assert fitted.value == pytest.approx(1 / slope, rel=1e-5)
    assert fitted.after == pytest.approx(best.fun, rel=1e-12)
    assert fitted.before == pytest.approx(negative_log_likelihood(kind, scores, truth, 1.0), rel=1e-12)


@pytest.mark.slow
def test_known_temperatures_are_recovered() -> None:
    for temperature in (0.3, 1.0, 5.0):
        scores, truth = drawn(20_000, 10, temperature, seed=3)
        assert fit_temperature(scores, truth, readout()).value == pytest.approx(temperature, rel=0.05)


def test_a_shift_or_huge_scores_change_nothing() -> None:
    scores, truth = drawn(500, temperature=2.0)
    plain = fit_temperature(scores, truth, readout()).value
    assert fit_temperature(scores + 1e6, truth, readout()).value == pytest.approx(plain, rel=1e-6)
    assert fit_temperature(scores * 100, truth, readout()).value == pytest.approx(100 * plain, rel=1e-9)


def test_bounds_are_said() -> None:
    scores, _ = drawn(200)
    separable = fit_temperature(scores, scores.argmax(axis=1), readout())
    assert (separable.bound, separable.value) == ("lowest", LOWEST)
    against = fit_temperature(scores, scores.argmin(axis=1), readout())
    assert (against.bound, against.value) == ("highest", HIGHEST)


def test_masked_classes_take_no_part() -> None:
    scores, truth = drawn(300, 8)
    masked = np.concatenate([scores, np.full((300, 2), -np.inf)], axis=1)
    expected = fit_temperature(scores, truth, readout(size=8)).value
    assert fit_temperature(masked, truth, readout()).value == pytest.approx(expected, rel=1e-12)
    with pytest.raises(InputError, match="probability 0"):
        fit_temperature(masked, np.where(np.arange(300) == 7, 9, truth), readout())


@pytest.mark.parametrize("n, alpha", [(19, 0.05), (20, 0.1), (100, 0.1), (999, 0.001), (1000, 0.1), (50_000, 0.02)])
def test_beta_intervals_are_scipys(n: int, alpha: float) -> None:
    short = intervals.miscovered(n, alpha)
    reference = scipy.stats.beta(n + 1 - short, short)
    assert intervals.coverage_interval(n, alpha) == pytest.approx(reference.interval(0.95), abs=1e-9)
    for count in {0, 1, n // 3, n}:
        exact = scipy.stats.binomtest(count, n).proportion_ci(0.9, "exact")
        assert intervals.share_interval(count, n, 0.9) == pytest.approx(tuple(exact), abs=1e-9)


@pytest.mark.parametrize("n, alpha, m", [(100, 0.1, 500), (1000, 0.05, 200), (39, 0.1, 37)])
def test_beta_binomial_intervals_are_scipys(n: int, alpha: float, m: int) -> None:
    short = intervals.miscovered(n, alpha)
    low, high = scipy.stats.betabinom(m, n + 1 - short, short).interval(0.95)
    assert intervals.observed_coverage_interval(n, alpha, m) == pytest.approx((low / m, high / m), abs=1e-12)


def test_ranks_are_exact_where_floats_round() -> None:
    assert intervals.miscovered(9, 0.3) == 3  # 10 (1 - 0.7) is 3.0000000000000004
    assert intervals.miscovered(9, 0.7) == 7
    assert [intervals.smallest(alpha) for alpha in (0.1, 0.05, 0.3, 0.5)] == [9, 19, 3, 1]
    for alpha in (0.01, 0.05, 0.1, 0.2, 0.37):
        n = intervals.smallest(alpha)
        assert intervals.miscovered(n, alpha) == 1 and intervals.miscovered(n - 1, alpha) == 0


def nonconformity(score: str, p: np.ndarray, label: int, penalty: float, k: int) -> float:
    """One picture's E of one class, as the papers write it: a loop over classes from the most likely one."""
    if score == "lac":
        return float(1 - p[label])
    total = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda index: (-p[index], index)), start=1):
        total += float(p[index])
        if index == label:
            return total + (penalty * max(0, rank - k) if score == "raps" else 0.0)
    raise AssertionError


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("score, penalty, k", [("lac", 0, 0), ("aps", 0, 0), ("raps", 0.1, 2), ("raps", 0.01, 5)])
def test_quantile_and_sets_are_the_papers(score: str, penalty: float, k: int, alpha: float) -> None:
    scores, truth = drawn(400, 8, 1.5, seed=7)
    rule = Rule(score, 1.3, penalty, k)
    p = scipy.special.softmax(scores / 1.3, axis=1)
    table = np.array([[nonconformity(score, row, label, penalty, k) for label in range(8)] for row in p])
    cal, test = slice(0, 200), slice(200, 400)
    true = np.sort(table[cal][np.arange(200), truth[cal]])
    q = true[int(np.ceil(round(201 * (1 - alpha), 9))) - 1]
    values = conformal.conformity(scores, readout(size=8), rule)
    assert values == pytest.approx(1 - table, abs=1e-12)
    limit = conformal.threshold(conformal.true_conformity(values[cal], truth[cal]), alpha)
    assert 1 - limit == pytest.approx(q, abs=1e-12)
    inside = conformal.sets(scores[test], readout(size=8), rule, limit)
    assert (inside == (table[test] <= q + 1e-12)).all()
    assert 0 < inside.sum() < inside.size


def test_an_empty_set_is_possible_and_avoidable() -> None:
    scores, truth = drawn(500, 6, 0.5, seed=2, spread=4)
    empty = {}
    for score in ("lac", "aps"):
        for never_empty in (False, True):
            rule = Rule(score, never_empty=never_empty)
            true = conformal.true_conformity(conformal.conformity(scores, readout(size=6), rule), truth)
            inside = conformal.sets(scores, readout(size=6), rule, conformal.threshold(true, 0.3))
            empty[score, never_empty] = int((inside.sum(axis=1) == 0).sum())
            if never_empty:
                assert inside[np.arange(500), scores.argmax(axis=1)].all()
    assert empty["lac", False] > 0 and empty["aps", False] > 0
    assert empty["lac", True] == empty["aps", True] == 0


def test_equal_scores_enter_together() -> None:
    scores = np.array([[3.0, 1.0, 1.0, 0.0]])
    for score in ("aps", "raps"):
        rule = Rule(score, penalty=0.01, k=1)
        limit = float(conformal.conformity(scores, readout(size=4), rule)[0, 1])
        assert conformal.sets(scores, readout(size=4), rule, limit).tolist() == [[True, True, True, False]]


def test_a_confident_network_keeps_its_ranks() -> None:
    """Masses of 1e-20 are lost in a cumulated sum near 1, and are not here."""
    scores = np.array([[60.0, 10.0, 0.0], [60.0, 30.0, 0.0]])
    values = conformal.conformity(scores, readout(size=3), Rule("aps"))
    assert values[0, 0] == pytest.approx(np.exp(-50.0), rel=1e-6)
    assert values[1, 0] == pytest.approx(np.exp(-30.0), rel=1e-6)
    inside = conformal.sets(scores, readout(size=3), Rule("aps"), float(values[1, 0]))
    assert inside.tolist() == [[False, False, False], [True, False, False]]


@pytest.mark.parametrize("score, penalty, k", [("lac", 0, 0), ("aps", 0, 0), ("raps", 0.02, 3)])
def test_coverage_over_splits_is_what_is_promised(score: str, penalty: float, k: int) -> None:
    """200 splits of 300 + 500 pictures; the full one runs with `make fleets`."""
    scores, truth = drawn(40_000, 6, 2.0, seed=11)
    rule, rng, alpha, n, m = Rule(score, 1.0, penalty, k), np.random.default_rng(5), 0.1, 300, 500
    values = conformal.true_conformity(conformal.conformity(scores, readout(size=6), rule), truth)
    low, high = intervals.observed_coverage_interval(n, alpha, m)
    shares = []
    for _ in range(200):
        order = rng.choice(len(scores), n + m, replace=False)
        limit = conformal.threshold(values[order[:n]], alpha)
        shares.append(float((values[order[n:]] >= limit).mean()))
    expected = 1 - intervals.miscovered(n, alpha) / (n + 1)
    assert abs(np.mean(shares) - expected) < 3 * np.std(shares, ddof=1) / np.sqrt(200)
    assert 0.92 <= np.mean([(low <= share <= high) for share in shares]) <= 0.98


def test_independent_classes_are_covered_together() -> None:
    rng = np.random.default_rng(4)
    scores = rng.normal(scale=2, size=(4000, 5))
    truth = rng.uniform(size=scores.shape) < scipy.special.expit(scores)
    of = readout(MULTILABEL, 5)
    values = conformal.true_conformity(conformal.conformity(scores, of, Rule()), truth)
    assert np.isposinf(values[~truth.any(axis=1)]).all()
    limit = conformal.threshold(values[:2000], 0.1)
    inside = conformal.sets(scores[2000:], of, Rule(), limit)
    share = conformal.covered(inside, truth[2000:]).mean()
    low, high = intervals.observed_coverage_interval(2000, 0.1, 2000, 0.999)
    assert low <= share <= high


def test_a_rule_is_chosen_as_stated() -> None:
    scores, truth = drawn(600, 20, 1.0, seed=9)
    start = Rule("raps")
    best = conformal.choose(scores, truth, readout(size=20), 0.1, start, penalties=conformal.PENALTIES)
    order = np.argsort(-scores, axis=1)
    ranks = np.sort([list(row).index(label) + 1 for row, label in zip(order, truth, strict=True)])
    assert best.k == ranks[int(np.ceil(601 * 0.9)) - 1]
    sizes = {}
    for penalty in conformal.PENALTIES:
        rule = Rule("raps", 1.0, penalty, best.k)
        limit = conformal.threshold(
            conformal.true_conformity(conformal.conformity(scores, readout(size=20), rule), truth), 0.1
        )
        sizes[penalty] = np.maximum(1, conformal.sets(scores, readout(size=20), rule, limit).sum(axis=1)).mean()
    assert sizes[best.penalty] == min(sizes.values())


def test_probabilities_at_a_temperature() -> None:
    scores, _ = drawn(5, 4)
    assert tempered(scores, readout(size=4), 2.0) == pytest.approx(scipy.special.softmax(scores / 2, axis=1))
    assert tempered(scores[:, :1], readout(BINARY, 2), 2.0)[:, 1] == pytest.approx(
        scipy.special.expit(scores[:, 0] / 2)
    )
    assert tempered(scores, readout(MULTILABEL, 4), 2.0) == pytest.approx(scipy.special.expit(scores / 2))


@pytest.mark.parametrize("score", conformal.SCORES)
def test_the_temperature_of_sets_is_chosen_without_the_pictures_of_the_quantile(score: str) -> None:
    scores, truth = drawn(400, 8, seed=4)
    options: dict[str, Any] = {"score": score, "set_temperature": "choose", "split": 0.25, "seed": 3, "alpha": 0.2}
    rest = np.random.default_rng(3).permutation(400)[100:]
    before = fit(scores, truth, readout(size=8), **options)
    changed = scores.copy()
    changed[rest] *= 3
    after = fit(changed, truth, readout(size=8), **options)
    assert after.temperature > 1.5 * before.temperature and after.rule == before.rule
    likely = fit_temperature(np.delete(scores, rest, 0), np.delete(truth, rest), readout(size=8)).value
    assert min(abs(before.rule.temperature / likely - multiple) for multiple in MULTIPLES) < 1e-9


@pytest.mark.parametrize(
    ("score", "kind", "scale"),
    [("lac", LOGITS, 60), ("lac", LOGITS, 600), ("lac", MULTILABEL, 300), ("aps", LOGITS, 0)],
)
def test_a_quantile_that_the_file_cannot_hold_is_refused(score: str, kind: str, scale: float) -> None:
    """All probabilities are 0 or 1 in float32: a temperature of the sets makes them numbers again."""
    scores, truth = drawn(300, 5, seed=6)
    if scale:
        scores *= scale
    else:  # always right but for a few, with a mass of the others of 1e-44
        scores = np.where(np.arange(5) == truth[:, None], 100.0, 0.0) + scores * 1e-3
        scores[:5] *= -1
    with pytest.raises(SettingError, match=r"float32 cannot tell from 1.*preprocessing.*--set-temperature") as caught:
        fit(scores, truth, readout(kind, 5), score=score)
    assert "bug" not in str(caught.value)
    assert fit(scores, truth, readout(kind, 5), score=score, set_temperature=1000.0).threshold > 1e-30


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 2, True, "0.1"])
def test_alpha_is_a_share(alpha: object) -> None:
    with pytest.raises(SettingError, match="between 0 and 1"):
        conformal.threshold(np.ones(100), alpha)  # type: ignore[arg-type]


def test_too_few_pictures_are_refused_with_the_number_needed() -> None:
    with pytest.raises(SettingError, match=r"8 calibration pictures are too few for alpha=0.1: at least 9"):
        conformal.threshold(np.ones(8), 0.1)
    with pytest.raises(SettingError, match="at least 19"):
        intervals.coverage_interval(18, 0.05)


def test_what_does_not_fit_is_refused() -> None:
    scores, truth = drawn(30, 4)
    with pytest.raises(SettingError, match="quantity"):
        fit_temperature(scores[:, :1], truth, readout(REGRESSION, 1))
    with pytest.raises(InputError, match=r"\[N, 5\]"):
        fit_temperature(scores, truth, readout(size=5))
    with pytest.raises(LabelsError, match="true class 4 is none"):
        fit_temperature(scores, np.where(truth == 0, 4, truth), readout(size=4))
    with pytest.raises(LabelsError, match="29"):
        fit_temperature(scores, truth[:29], readout(size=4))
    with pytest.raises(LabelsError, match="float64"):
        fit_temperature(scores, truth.astype(float), readout(size=4))
    with pytest.raises(InputError, match="1 of 30 pictures are not finite"):
        fit_temperature(np.where(np.arange(30)[:, None] == 3, np.nan, scores), truth, readout(size=4))
    with pytest.raises(SettingError, match="use 'lac'"):
        conformal.conformity(scores, readout(MULTILABEL, 4), Rule("aps"))
    with pytest.raises(SettingError, match="expected one of lac, aps, raps"):
        conformal.conformity(scores, readout(size=4), Rule("top"))


def test_a_row_that_is_not_finite_has_an_empty_set() -> None:
    scores = np.array([[np.nan, 1.0, 2.0], [0.0, 1.0, 5.0]])
    for score in ("lac", "aps"):
        inside = conformal.sets(scores, readout(size=3), Rule(score), 1e-9)
        assert not inside[0].any() and inside[1].any()
