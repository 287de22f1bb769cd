"""Standard errors and intervals: they hold as often as they say, on texts whose truth is known."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from niels_gpt.evaluation.estimates import Estimate, estimate_difference, estimate_ratio, estimate_share
from niels_gpt.evaluation.scoring import BYTES, COLUMNS, NATS

TRIALS = 2000


def count_hits(draw: Callable[[], Estimate], truth: float) -> float:
    """The share of trials whose interval holds the truth."""
    return sum(found.low <= truth <= found.high for found in (draw() for _ in range(TRIALS))) / TRIALS


@pytest.mark.parametrize("clusters", [6, 40])
def test_a_ratio_of_dependent_tokens_is_as_uncertain_as_it_says(clusters: int) -> None:
    """All tokens of a cluster share a part of their loss, so their number makes it no more certain."""
    random = np.random.default_rng(clusters)

    def draw() -> Estimate:
        tokens = random.integers(300, 600, clusters).astype(float)
        level = 3 + 0.5 * random.standard_normal(clusters)
        return estimate_ratio(tokens * level + 2 * np.sqrt(tokens) * random.standard_normal(clusters), tokens)

    estimates = [draw() for _ in range(TRIALS)]
    spread = float(np.std([found.value for found in estimates]))
    assert np.mean([found.error for found in estimates]) == pytest.approx(spread, rel=0.1)
    assert 0.93 < count_hits(draw, 3.0) < 0.97


def test_a_paired_difference_is_seen_where_the_models_own_intervals_overlap() -> None:
    random = np.random.default_rng(0)

    def draw_pair() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sums = np.zeros((2, 30, len(COLUMNS)))
        sums[:, :, BYTES] = 1000.0
        sums[:, :, NATS] = 1000 * (1 + 0.2 * random.standard_normal(30))
        sums[1, :, NATS] += 20 + 30 * random.standard_normal(30)
        return sums[1], sums[0]

    assert 0.93 < count_hits(lambda: estimate_difference(*draw_pair()), 0.02 / math.log(2)) < 0.97
    worse, base = draw_pair()
    assert estimate_difference(worse, base).low > 0
    own = [estimate_ratio(sums[:, NATS], sums[:, BYTES]) for sums in (base, worse)]
    assert own[0].high > own[1].low
    assert estimate_difference(base, base.copy()) == Estimate(0, 0, 0, 0)


STUDENT = [(2, 12.7062), (3, 4.30265), (5, 2.77645), (10, 2.26216), (100, 1.98422)]  # SciPy's t.ppf(0.975, N - 1)


@pytest.mark.parametrize(("clusters", "quantile"), STUDENT)
def test_an_interval_of_a_few_clusters_is_students_or_wider(clusters: int, quantile: float) -> None:
    found = estimate_ratio(np.arange(float(clusters)), np.ones(clusters))
    margins = [found.value - found.low, found.high - found.value]
    assert margins == pytest.approx([margins[0]] * 2)
    assert 0.9999 * quantile < margins[0] / found.error < (1 + 4 / clusters**3) * quantile


def test_a_single_cluster_has_no_error() -> None:
    found = estimate_ratio(np.array([6.0, 0.0]), np.array([2.0, 0.0]))
    assert found.value == 3 and all(map(math.isnan, found[1:]))


WILSON = [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (263, 400, 0.60969, 0.70231)]  # SciPy's binomtest


@pytest.mark.parametrize(("hits", "count", "low", "high"), WILSON)
def test_a_share_has_wilsons_interval(hits: int, count: int, low: float, high: float) -> None:
    found = estimate_share(hits, count)
    assert (found.value, found.low, found.high) == pytest.approx((hits / count, low, high), abs=1e-5)
