"""Is the difference real? Intervals and paired tests over questions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported when they are first used: scipy.stats takes seconds

Values = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """A mean with its interval."""

    mean: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def bootstrap_mean(values: Values, seed: int = 0) -> Interval:
    """Mean over questions with its 95 % percentile bootstrap interval (Efron & Tibshirani 1993).

    Args:
        values: float64 [Q], one value per question.
    """
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    found = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", confidence_level=CONFIDENCE,
        rng=np.random.default_rng(seed), batch=max(1, 2_000_000 // len(values)),
    )  # fmt: skip
    return Interval(mean, float(found.confidence_interval.low), float(found.confidence_interval.high))


def wilson(hits: int, count: int) -> Interval:
    """Share of hits with its 95 % score interval (Wilson 1927), which is of use for few questions too."""
    found = scipy.stats.binomtest(hits, count).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Interval(hits / count, float(found.low), float(found.high))


def mcnemar(before: Values, after: Values) -> float:
    """Two-sided p of the exact McNemar test (1947) on paired hits, 0 or 1: a binomial test on the discordant ones."""
    won = int(((after == 1) & (before == 0)).sum())
    lost = int(((after == 0) & (before == 1)).sum())
    return 1.0 if won + lost == 0 else float(scipy.stats.binomtest(won, won + lost, 0.5).pvalue)


def randomization(before: Values, after: Values, seed: int = 0) -> float:
    """Two-sided p of the paired randomisation test on the mean difference (Smucker et al. 2007)."""
    differences = after - before
    differences = differences[differences != 0]
    if len(differences) < 2:
        return 1.0  # with one difference both signs are as far from 0; scipy wants two values
    found = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, vectorized=True,
        rng=np.random.default_rng(seed), batch=max(1, 2_000_000 // len(differences)),
    )  # fmt: skip
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number (Holm 1979), in the given order."""
    count = len(p_values)
    adjusted = [0.0] * count
    highest = 0.0
    for rank, place in enumerate(sorted(range(count), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def labels_needed(before: Values, after: Values, points: float, power: float = 0.8) -> int | None:
    """Labelled questions at which a difference in hits of ``points`` would show in a paired test.

    Connor's formula for McNemar's test (1987): n = (z_a sqrt(p) + z_b sqrt(p - d^2))^2 / d^2, with p the share of
    questions on which the two runs differ (as observed, at least d) and d the difference.

    Args:
        before, after: hits, 0 or 1.
        points: difference in percentage points.

    Returns:
        The number, or ``None`` where the runs hit the same questions, so that p cannot be told.
    """
    discordant = float((before != after).mean())
    if discordant == 0:
        return None
    difference = points / 100
    discordant = max(discordant, difference)
    z_a = float(scipy.stats.norm.ppf(1 - (1 - CONFIDENCE) / 2))
    z_b = float(scipy.stats.norm.ppf(power))
    root = z_a * math.sqrt(discordant) + z_b * math.sqrt(discordant - difference**2)
    return math.ceil(root**2 / difference**2)
