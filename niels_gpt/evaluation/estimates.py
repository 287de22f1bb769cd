"""Estimate ratios and shares, and how uncertain they are.

The losses of the tokens of a text depend on each other, so the tokens are not a sample. The sample is of clusters,
whose totals hardly do: documents, pieces of several thousand bytes, dialogues. Shapes: N clusters, which are the
units of `score_windows`.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from niels_gpt.evaluation.scoring import BYTES, ENDS, NATS, TOKENS, Sums

Z = 1.959964  # the quantile 0.975 of the normal distribution


class Estimate(NamedTuple):
    """A value, its standard error, and the ends of its 95 % interval, nan with fewer than two clusters."""

    value: float
    error: float
    low: float
    high: float


def estimate_ratio(numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> Estimate:
    """Return the ratio of two totals of clusters (N), such as nats per token.

    The error is that of a ratio of totals (Cochran, Sampling Techniques, 1977). The interval is Student's, with
    the degrees of freedom of `count_clusters`, so that a few large clusters make it wide. Its quantile is
    Wallace's (1959), which is a little too high: by 0.5 % at 4 degrees, by 4 % at 2.
    """
    count, total = np.count_nonzero(denominators), denominators.sum()
    value, freedom = float(numerators.sum() / total), max(1.0, count_clusters(denominators) - 1)
    if count < 2:
        return Estimate(value, math.nan, math.nan, math.nan)
    error = math.sqrt(count / (count - 1) * float(((numerators - value * denominators) ** 2).sum())) / float(total)
    z = Z * (8 * freedom + 3) / (8 * freedom + 1)
    margin = error * math.sqrt(freedom * math.expm1(z * z / freedom))
    return Estimate(value, error, value - margin, value + margin)


def count_clusters(sizes: NDArray[np.float64]) -> float:
    """Return how many clusters of equal size would tell as much as these (Kish, Survey Sampling, 1965)."""
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if sizes.any() else 0.0


def estimate_share(hits: int, count: int) -> Estimate:
    """Return a share with Wilson's interval, which holds near 0 and 1 too (Brown, Cai and DasGupta, 2001)."""
    share, z2 = hits / count, Z * Z / count
    middle, margin = share + z2 / 2, math.sqrt(share * (1 - share) * z2 + z2 * z2 / 4)
    ends = ((middle - margin) / (1 + z2), (middle + margin) / (1 + z2))
    return Estimate(share, math.sqrt(share * (1 - share) / count), *ends)


def estimate_losses(sums: Sums) -> dict[str, Estimate]:
    """Return nats per token, their perplexity or, of dialogues, nats per answer, and bits per byte."""
    losses = {"loss_per_token": (loss := estimate_ratio(sums[:, NATS], sums[:, TOKENS]))}
    if sums[:, ENDS].any():
        losses["loss_per_answer"] = estimate_ratio(sums[:, NATS], sums[:, ENDS])
    else:
        value, low, high = (math.exp(min(nats, 700)) for nats in (loss.value, loss.low, loss.high))
        losses["perplexity"] = Estimate(value, value * loss.error, low, high)
    return losses | {"bits_per_byte": estimate_ratio(sums[:, NATS] / math.log(2), sums[:, BYTES])}


def estimate_difference(sums: Sums, base: Sums) -> Estimate:
    """Return the bits per byte that a model needs more than another for the same units.

    Its error is that of paired differences: what makes a unit hard for both models drops out.
    """
    return estimate_ratio((sums - base)[:, NATS] / math.log(2), base[:, BYTES])
