"""Whether the attention moved more than a null that the user names: the tests, and what they assume."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxcam.errors import SettingError

FALSE_ALARMS = 0.05  # the declared rate
SEEDS, AUGMENT = "seeds", "augment"
FEWEST_SEEDS = 5
_EXACT = 20_000  # ranks up to which their sum's distribution is computed exactly
_TINY = 1e-12  # a distance of 0 has no logarithm
_WEIGHT = 0.5  # of distances beside gathering
_CORRELATION = 0.5  # of the two at least: what a few trainings show is mostly chance
_SAME = 1e-9  # of p-values and logarithms: nothing but rounding


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to whether the attention moved.

    Attributes:
        null: `seeds` or `augment`.
        size: other trainings, or augmentations of each picture.
        moved: whether the null was rejected at the declared rate.
        p: the p-value.
        false_alarms: the declared rate.
        distance: the statistic of OLD and NEW.
        usual: the same under the null, on average.
        sentence: the verdict in words, and what it speaks of.
        farther: pictures that NEW moves farther than each of their augmentations does; None for `seeds`.
        gathered: how strongly NEW's attention gathers at places where that of the other trainings does not
            (`gathering.Gathering`), and theirs on average; None for `augment`, or where it cannot be told.
    """

    null: str
    size: int
    moved: bool
    p: float
    false_alarms: float
    distance: float
    usual: float
    sentence: str
    farther: int | None = None
    gathered: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict ready for JSON."""
        return asdict(self)


def judge_retraining(
    distances: np.ndarray, strengths: np.ndarray | None = None, false_alarms: float = FALSE_ALARMS
) -> Verdict:
    """Judge NEW among OLD and k other trainings of it, by the distances of all pairs and by gathering attention.

    Let T_i be the logarithm of the mean distance of training i from the other k, and y that of NEW from all k + 1.
    Where distances are mu + u_i + u_j + e_ij, the T_i vary by (1 - 1/k) u_i, and y - mean(T) by u sqrt(1 + 1/(k + 1)).
    So t = (y - mean(T)) (1 - 1/k) / (sd(T) sqrt(1 + 1/(k + 1))) has Student's t with k degrees of freedom. With the
    logarithms of the strengths, of which each training has its own, t' is the same without 1 - 1/k.

    The verdict is one-sided, by max(t / 2, 0) + max(t', 0), divided by sqrt(1 + 1/4 + r): r is the correlation of the
    two over the trainings, at least 1/2, which makes up for what their estimates have in common by chance. What speaks
    against a movement does not take away from what speaks for it. Without strengths it is by t alone.

    It assumes that NEW is trained as the others are, up to the seed, and that effects of trainings are about normal;
    the false alarms that it really gives were measured (benchmarks/compare.md). Pictures are not the unit: all
    trainings share them, and only means over them enter.

    Arguments:
        distances: mean distances of pairs, `[k + 2, k + 2]`: OLD, NEW, and the k trainings.
        strengths: of the same, `[k + 2]` (`gathering.Gathering.strengths`).

    Raises:
        SettingError: fewer than five trainings, or trainings that do not differ.
    """
    count = len(distances) - 2
    require_seeds(count)
    rest = np.delete(np.arange(count + 2), 1)
    among = distances[np.ix_(rest, rest)].sum(axis=1) / count
    distance, usual = float(distances[1, rest].mean()), float(among.mean())
    others, new = np.log(np.maximum(among, _TINY)), math.log(max(distance, _TINY))
    if float(np.ptp(others)) <= _SAME:
        raise SettingError(
            f"null seeds: OLD and its {count} other trainings are all {usual:.2g} of the picture's side from each "
            "other, so that nothing says how much chance moves maps; name trainings of other seeds, not copies of one "
            "file"
        )
    t = _deviation(new, others) * (1 - 1 / count)
    gathered = None
    also = ""
    if strengths is not None and np.isfinite(strengths).all() and float(np.ptp(strengths[rest])) > _SAME:
        of_others = np.log(strengths[rest])
        gathered = float(strengths[1]), float(strengths[rest].mean())
        other = _deviation(math.log(gathered[0]), of_others)
        both = max(float(np.corrcoef(others, of_others)[0, 1]), _CORRELATION)
        if max(t, other) > 0:
            t, other = max(t, 0.0), max(other, 0.0)
        t = (_WEIGHT * t + other) / math.sqrt(1 + _WEIGHT**2 + 2 * _WEIGHT * both)
        also = f", and gathers at places where the others do not by {gathered[0]:.2g}, they by {gathered[1]:.2g}"
    p = student_tail(t, count)
    moved = p <= false_alarms
    what = "more than" if moved else "no more than"
    return Verdict(
        SEEDS, count, moved, p, false_alarms, distance, usual,
        f"the attention moved {what} retraining moves it: NEW is {distance:.1%} of the picture's side from OLD and its "
        f"{count} other trainings, they {usual:.1%} from each other{also} (p = {p:.2g}, false alarms "
        f"{false_alarms:.0%})",
        gathered=gathered,
    )  # fmt: skip


def _deviation(new: float, others: np.ndarray) -> float:
    """How far a value is from the mean of others, in standard deviations of what it may be."""
    return (new - float(others.mean())) / (float(others.std(ddof=1)) * math.sqrt(1 + 1 / len(others)))


def require_seeds(count: int) -> None:
    """Refuse a verdict on retraining from fewer than five trainings.

    Raises:
        SettingError: fewer.
    """
    if count < FEWEST_SEEDS:
        raise SettingError(
            f"null seeds: has {count} other trainings of OLD; a verdict on retraining "
            f"needs at least {FEWEST_SEEDS}: train OLD again with other seeds, or name no null for effect sizes"
        )


def judge_augmentation(
    new: np.ndarray, augmented: np.ndarray, false_alarms: float = FALSE_ALARMS
) -> tuple[Verdict, np.ndarray]:
    """Judge NEW among small changes of each picture under OLD; return the verdict and a p-value per picture.

    For each picture NEW's distance from OLD's map is ranked among those of M changed copies. Where NEW changes maps as
    one more such change would, its rank is any of the M + 1 alike, and pictures are independent. Two statistics are
    taken: the sum of the ranks, for a shift of all pictures, and the number of largest ranks, for one of a part of
    them, which ranks of zero on the other pictures cannot make up for. The p-value is that of the smaller of their two
    p-values (`either_tail`). Ties count against NEW having moved.

    Arguments:
        new: distances of OLD and NEW, `[n]`.
        augmented: of OLD and its maps of changed copies, `[M, n]`.

    Raises:
        SettingError: too few pictures for a verdict at this rate.
    """
    count, pictures = augmented.shape
    require_pictures(pictures, count, false_alarms)
    ranks = (augmented < new).sum(axis=0)
    farther = int((ranks == count).sum())
    p = either_tail(int(ranks.sum()), farther, pictures, count)
    each = (1 + count - ranks) / (count + 1)
    moved = p <= false_alarms * (1 + _SAME)
    distance, usual = float(new.mean()), float(augmented.mean())
    what = "more than" if moved else "no more than"
    verdict = Verdict(
        AUGMENT, count, moved, p, false_alarms, distance, usual,
        f"the attention moved {what} {count} small changes of each picture move it: by {distance:.1%} of the picture's "
        f"side, {usual:.1%} under the changes, and farther than all {count} of them on {farther} of {pictures} "
        f"pictures, {pictures / (count + 1):.2g} by chance (p = {p:.2g}, false alarms {false_alarms:.0%}); this speaks "
        "of the same training in another form (quantization, conversion, another runtime), not of a retraining",
        farther,
    )  # fmt: skip
    return verdict, each


def require_pictures(pictures: int, count: int, false_alarms: float = FALSE_ALARMS) -> None:
    """Refuse a verdict that no outcome could give.

    Raises:
        SettingError: even the largest ranks are likelier than the declared rate.
    """
    if pictures * math.log(count + 1) < -math.log(false_alarms):
        raise SettingError(
            f"null augment:{count} on {pictures} {'picture' if pictures == 1 else 'pictures'} can never give a p-value "
            f"of {false_alarms:g}; compare more pictures, or name more augmentations"
        )


def ranks_tail(total: int, pictures: int, count: int) -> float:
    """Return P(sum >= total) of `pictures` independent ranks, each of 0 to `count` alike."""
    if total <= 0:
        return 1.0
    if pictures * count <= _EXACT:
        distribution = _power(np.full(count + 1, 1 / (count + 1)), pictures)
        return float(min(1.0, distribution[total:].sum()))
    mean, variance = pictures * count / 2, pictures * count * (count + 2) / 12
    return 0.5 * math.erfc((total - 0.5 - mean) / math.sqrt(2 * variance))


def largest_tail(farther: int, pictures: int, count: int) -> float:
    """Return P(number of largest ranks >= farther) of `pictures` independent ranks, each of 0 to `count` alike."""
    if farther <= 0:
        return 1.0
    return min(1.0, math.fsum(_largest(k, pictures, count) for k in range(farther, pictures + 1)))


def either_tail(total: int, farther: int, pictures: int, count: int) -> float:
    """Return how likely chance makes one of two p-values as small as the smaller: of ranks' sum and of largest ranks.

    Exact where the distribution of the sum is: P(sum >= s or largest >= k), where s and k are the least whose p-values
    are as small. Given k largest ranks, the others are alike from 0 to `count` - 1. Beyond, twice the smaller p-value.

    Arguments:
        total: sum of the ranks.
        farther: how many of them are the largest.
        pictures, count: as of `ranks_tail`.
    """
    p = min(ranks_tail(total, pictures, count), largest_tail(farther, pictures, count))
    if p >= 1 or pictures * count > _EXACT:
        return min(1.0, 2 * p)
    bound = p * (1 + _SAME)  # the same p-value but for rounding
    least_total = _least(lambda value: ranks_tail(value, pictures, count) <= bound, pictures * count)
    least_farther = _least(lambda value: largest_tail(value, pictures, count) <= bound, pictures)
    chance = largest_tail(least_farther, pictures, count)
    die = np.full(count, 1 / count)
    sums = _power(die, pictures - least_farther + 1)  # of the ranks that are not the largest
    for k in range(least_farther - 1, -1, -1):
        start = max(0, least_total - k * count)
        chance += _largest(k, pictures, count) * float(sums[start:].sum())
        if k:
            sums = np.convolve(sums, die)
    return min(1.0, chance, 2 * p)


def _least(enough: Callable[[int], bool], most: int) -> int:
    """The least of 0 to `most` + 1 that is enough, of a condition that holds from some value on."""
    low, high = 0, most + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _largest(k: int, pictures: int, count: int) -> float:
    """The probability that exactly k of the ranks are the largest."""
    ways = math.lgamma(pictures + 1) - math.lgamma(k + 1) - math.lgamma(pictures - k + 1)
    return math.exp(ways - k * math.log(count + 1) + (pictures - k) * math.log(count / (count + 1)))


def _power(die: np.ndarray, times: int) -> np.ndarray:
    """The distribution of the sum of independent draws, by repeated squaring."""
    distribution, power = np.ones(1), die
    while times:
        if times & 1:
            distribution = np.convolve(distribution, power)
        times >>= 1
        if times:
            power = np.convolve(power, power)
    return distribution


def student_tail(t: float, freedom: int) -> float:
    """Return P(T >= t) of Student's t with an integer number of degrees of freedom (Abramowitz and Stegun 26.7.3-4)."""
    if not math.isfinite(t):
        return 0.0 if t > 0 else 1.0
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    term = total = cosine if freedom % 2 else 1.0
    for n in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= (n - 1) / n * cosine**2
        total += term
    if freedom == 1:
        within = 2 * angle / math.pi
    elif freedom % 2:
        within = 2 / math.pi * (angle + sine * total)
    else:
        within = sine * total
    tail = max(0.0, (1 - within) / 2)
    return tail if t >= 0 else 1 - tail
