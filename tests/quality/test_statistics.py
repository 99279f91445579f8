import numpy as np
import pytest
from scipy import stats

from src.quality.statistics import bootstrap_mean, holm, labels_needed, mcnemar, randomization, wilson


def hits(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_mcnemar_by_hand() -> None:
    # 5 won, 1 lost: p = 2 * (C(6,0) + C(6,1)) / 2^6 = 2 * 7 / 64 = 0.21875.
    before, after = hits(0, 0, 0, 0, 0, 1, 1, 0), hits(1, 1, 1, 1, 1, 0, 1, 0)
    assert mcnemar(before, after) == pytest.approx(0.21875)
    assert mcnemar(after, before) == pytest.approx(0.21875)
    assert mcnemar(before, before) == 1.0


def test_randomization_is_exact_on_few_questions() -> None:
    # Differences 1, 2, 3, all positive: of 2^3 sign patterns only +++ and --- are as far from 0: p = 2 / 8.
    assert randomization(hits(0, 0, 0), hits(1, 2, 3)) == pytest.approx(0.25)
    assert randomization(hits(1, 2), hits(1, 2)) == 1.0
    assert randomization(hits(1, 2), hits(1, 3)) == 1.0


def test_randomization_agrees_with_the_t_test_on_many_questions() -> None:
    generator = np.random.default_rng(1)
    before = generator.random(400)
    after = before + generator.normal(0.01, 0.1, 400)
    assert randomization(before, after) == pytest.approx(stats.ttest_rel(after, before).pvalue, abs=0.02)


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made monotone: .04 .06 .06 .06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_bootstrap_interval() -> None:
    values = np.array([1.0] * 60 + [0.0] * 40)
    found = bootstrap_mean(values)
    # Normal approximation: 0.6 +- 1.96 * sqrt(0.6 * 0.4 / 100) = 0.504 .. 0.696.
    assert (found.mean, found.low, found.high) == pytest.approx((0.6, 0.504, 0.696), abs=0.011)
    assert bootstrap_mean(values) == found
    assert bootstrap_mean(np.ones(5)).low == 1.0


def test_labels_needed_by_hand() -> None:
    # p = 0.1, d = 0.03: (1.959964 * sqrt(.1) + .841621 * sqrt(.1 - .0009))^2 / .0009
    #                  = (0.619795 + 0.264943)^2 / .0009 = 0.782761 / .0009 = 869.7
    before = np.zeros(100)
    after = np.zeros(100)
    after[:10] = 1
    assert labels_needed(before, after, points=3.0) == 870
    assert labels_needed(before, before, points=3.0) is None


def test_wilson_by_hand() -> None:
    # (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) with z = 1.959964, n = 10, p = 0.5
    found = wilson(5, 10)
    assert (found.mean, round(found.low, 4), round(found.high, 4)) == (0.5, 0.2366, 0.7634)
    assert wilson(0, 3).high == pytest.approx(0.5615, abs=1e-4)
