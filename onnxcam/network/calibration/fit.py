"""Fit a calibration to scores of labelled pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxcam.errors import LabelsError, SettingError, listing
from onnxcam.network.calibration import conformal, thresholds
from onnxcam.network.calibration.conformal import LAC, PENALTIES, RAPS, TIE, Rule
from onnxcam.network.calibration.intervals import LEVEL, check_alpha, coverage_interval, smallest
from onnxcam.network.calibration.record import SMALLEST, Calibration
from onnxcam.network.calibration.selective_risk import guarantee
from onnxcam.network.calibration.temperature import check_truth, class_scores, fit_temperature, tempered
from onnxcam.targets.readout import Readout

CHOOSE = "choose"
SEED = 1234
# temperatures of sets to choose from, times the most likely one of the pictures that they are chosen on
MULTIPLES = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)
_FEW = 5  # classes that a message names


def fit(
    scores: np.ndarray,
    truth: np.ndarray,
    readout: Readout,
    *,
    alpha: float = 0.1,
    score: str = LAC,
    penalty: float | None = None,
    k: int | None = None,
    set_temperature: float | str = 1.0,
    never_empty: bool = False,
    split: float = 0.2,
    seed: int = SEED,
    labels: Sequence[str] | None = None,
    max_risk: float | None = None,
    confidence: float = 0.95,
    on_warning: Callable[[str], None] = lambda sentence: None,
) -> Calibration:
    """Fit temperature and quantile to scores `[N, columns]` and true classes.

    Arguments:
        scores: the model's scores as `Explainer.batch_scores` returns them.
        truth: index of each picture's class; of independent classes also bool `[N, classes]`.
        readout: the meaning of the scores.
        alpha: share of pictures whose set may miss the true class.
        score: `lac`, `aps` or `raps`.
        penalty, k: lambda and k of `raps`; None to choose them, as of `conformal.choose`.
        set_temperature: of the probabilities that sets are made from; `choose` for that of the smallest sets.
        never_empty: put the most likely class into every set: the coverage can only rise.
        split: share of the pictures, drawn with `seed`, on which is chosen what is left open; the quantile is taken of
            the others. Where nothing is left open it is taken of all.
        labels: class names, for messages.
        max_risk, confidence: as of `selective_risk.guarantee`, for the confidence of the scores as they are; None for
            no such threshold.
        on_warning: called with each sentence about what is doubtful.

    Raises:
        SettingError: a setting out of its range, too few pictures for it, or scores that are a quantity.
        LabelsError: true classes that the model does not have, or that its scores say nothing about.
        InputError: scores that are not finite.
    """
    check_settings(readout, alpha, score, penalty, k, set_temperature, split)
    values = class_scores(scores, readout)
    classes = check_truth(truth, len(values), readout)
    total = len(values)
    open_choices = (score == RAPS and (penalty is None or k is None)) or set_temperature == CHOOSE
    tuning = round(split * total) if open_choices else 0
    if total - tuning < smallest(alpha) or (open_choices and tuning < smallest(alpha)):
        raise SettingError(_too_few(total, alpha, split if open_choices else None))
    temperature = fit_temperature(scores, truth, readout)
    hits = _right(values, classes)
    if temperature.bound == "highest":
        raise LabelsError(
            f"the scores say nothing about the true classes: {_percent(hits.mean())} of {total:,} pictures are right, "
            "and no temperature makes the true classes more likely than chance; check that the truth names the classes "
            "in the model's order, and the preprocessing"
        )
    fitted = temperature.value
    if temperature.bound == "lowest":
        fitted = 1.0
        on_warning(
            f"the true class has the highest score in all of {total:,} pictures, so that the likelihood has no best "
            "temperature: it stays 1; give pictures among which the model errs"
        )
    _warn_of_unseen(classes, readout, labels, on_warning)
    order = np.random.default_rng(seed).permutation(total) if tuning else np.arange(total)
    chosen_on, rest = order[:tuning], order[tuning:]
    fixed = 1.0 if set_temperature == CHOOSE else float(set_temperature)
    rule = Rule(score, fixed, penalty or 0.0, k or 0, never_empty)
    if tuning:
        rule = conformal.choose(
            scores[chosen_on], classes[chosen_on], readout, alpha, rule,
            penalties=PENALTIES if score == RAPS and penalty is None else None, k=k,
            temperatures=_temperatures(scores[chosen_on], classes[chosen_on], readout)
            if set_temperature == CHOOSE else None,
        )  # fmt: skip
    true_values = conformal.true_conformity(conformal.conformity(scores[rest], readout, rule), classes[rest])
    threshold = conformal.threshold(true_values, alpha)
    _refuse_vanishing(threshold, rule)
    inside = conformal.sets(scores[rest], readout, rule, threshold)
    _warn_of_sets(inside, hits[rest], true_values, threshold, rule, on_warning)
    facts: dict[str, Any] = {
        "pictures": total,
        "tuning_pictures": tuning,
        "accuracy": float(hits.mean()),
        "likelihood": [temperature.before, temperature.after if temperature.bound is None else temperature.before],
        "set_size": float(inside.sum(axis=1).mean()),
        "empty_sets": float((inside.sum(axis=1) == 0).mean()),
    }
    plain = readout.probabilities(np.asarray(scores))
    facts["quantiles"] = thresholds.quantiles(thresholds.measured(plain, readout, tempered(scores, readout, fitted)))
    if max_risk is not None:
        facts["risk"] = guarantee(plain.max(axis=1), ~hits, max_risk, confidence).describe()
    interval = coverage_interval(len(rest), alpha)
    return Calibration(fitted, rule, alpha, threshold, len(rest), interval, LEVEL, facts)


def check_settings(
    readout: Readout,
    alpha: float,
    score: str,
    penalty: float | None,
    k: int | None,
    set_temperature: float | str,
    split: float,
) -> None:
    """Refuse settings before any picture is read.

    Raises:
        SettingError: out of its range, or not for this score.
    """
    class_scores(np.empty((0, readout.columns or 0)), readout)
    check_alpha(alpha)
    conformal.check_score(score, readout)
    for name, value in (("lambda", penalty), ("k", k)):
        if value is not None and score != RAPS:
            raise SettingError(f"{name}={value!r} is of score 'raps', and score={score!r}; leave it out")
    if penalty is not None and not 0 <= penalty < 1e6:
        raise SettingError(f"lambda={penalty!r}; expected a number from 0, such as 0.1")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= readout.size):
        raise SettingError(f"k={k!r}; expected 0 to {readout.size}, the number of classes")
    numeric = isinstance(set_temperature, (int, float)) and not isinstance(set_temperature, bool)
    if set_temperature != CHOOSE and not (numeric and 1e-3 <= float(set_temperature) <= 1e3):
        raise SettingError(f"set_temperature={set_temperature!r}; expected a number from 0.001 to 1000, or {CHOOSE!r}")
    if not 0 < split < 1:
        raise SettingError(f"split={split!r}; expected a share between 0 and 1, such as 0.2")


def _temperatures(scores: np.ndarray, classes: np.ndarray, readout: Readout) -> list[float]:
    """Temperatures of sets to choose from, of no other pictures than those: the quantile's must have no part in it."""
    likely = fit_temperature(scores, classes, readout)
    return [(likely.value if likely.bound is None else 1.0) * multiple for multiple in MULTIPLES]


def _refuse_vanishing(threshold: float, rule: Rule) -> None:
    """Refuse a quantile that float32 cannot tell from 1, so that every class would be in every set of the file.

    Raises:
        SettingError: as said.
    """
    if (threshold <= SMALLEST) if rule.score == LAC else (0 < threshold <= SMALLEST):
        raise SettingError(
            f"the quantile is 1 - {threshold:.2g}, which float32 cannot tell from 1: the model is so sure of wrong "
            "classes, or so sure at all, that the sets of the file would hold every class. Check the preprocessing and "
            "the truth; or take a temperature for the sets above 1 (set_temperature=10, --set-temperature 10)"
        )


def _too_few(total: int, alpha: float, split: float | None) -> str:
    fewest = smallest(alpha)
    if split is None:
        what = f"{total:,} pictures are too few for alpha={alpha:g}: at least {fewest:,} are needed"
    else:
        count = int(np.ceil(fewest / min(split, 1 - split)))
        what = (
            f"{total:,} pictures are too few for alpha={alpha:g} where {split:g} of them choose what is left open (k, "
            f"lambda or the temperature of the sets): at least {count:,} are needed, or name these"
        )
    return f"{what}; add labelled pictures, or take a larger alpha"


def _right(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Whether each picture's best class is a true one, bool `[N]`."""
    best = values.argmax(axis=1)
    return np.asarray(classes[np.arange(len(values)), best] if classes.ndim == 2 else classes == best)


def _warn_of_unseen(
    classes: np.ndarray, readout: Readout, labels: Sequence[str] | None, on_warning: Callable[[str], None]
) -> None:
    """Say which classes no picture belongs to."""
    counts = classes.sum(axis=0) if classes.ndim == 2 else np.bincount(classes, minlength=readout.size)
    absent = [int(index) for index in np.flatnonzero(counts == 0)]
    if absent:
        names = [labels[index] if labels is not None else str(index) for index in absent]
        on_warning(
            f"{len(absent)} of {readout.size} classes have no picture ({listing(names, _FEW)}): the coverage is that "
            "of pictures distributed like these, and says nothing about those classes"
        )
    if classes.ndim == 2 and len(classes) and (classes.sum(axis=1) == 1).all():
        on_warning(
            "each picture has exactly one true class, and the classes of this model are independent: all others count "
            "as absent; name every class that a picture shows, or the temperature is wrong"
        )


def _warn_of_sets(
    inside: np.ndarray,
    hits: np.ndarray,
    true_values: np.ndarray,
    threshold: float,
    rule: Rule,
    on_warning: Callable[[str], None],
) -> None:
    """Say what is unusual about the sets of the calibration pictures."""
    empty = inside.sum(axis=1) == 0
    if empty.mean() > 0.01 and hits[empty].mean() > 0.5:
        on_warning(
            f"{_percent(empty.mean())} of the sets are empty, which counts as unsure, although the best class is right "
            f"on {_percent(hits[empty].mean())} of those pictures: take a smaller alpha, or put the best class into "
            "every set (never_empty=True, --never-empty)"
        )
    ties = int((np.abs(true_values - threshold) <= TIE * abs(threshold)).sum())
    if ties > max(1, len(true_values) // 100):
        on_warning(
            f"{ties:,} of {len(true_values):,} pictures lie on the quantile exactly: the coverage is at least what the "
            "interval says, and can be higher"
        )
    if rule.score != LAC and 0 < threshold < 1e-30:
        on_warning(
            f"the model is so confident that the quantile is 1 - {threshold:.2g}, which float32 cannot tell from 1: "
            "sets in the file are larger than needed; use score 'lac', or a temperature for the sets above 1"
        )


def _percent(share: float) -> str:
    return f"{100 * float(share):.3g} %"
