"""Paired percentile bootstrap (Efron 1979): which means are plausible, given the pictures that were drawn."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from zimage_studio.records.report import CONFIDENCE, DEFAULT_RESAMPLES

CHUNK = 256

Interval = tuple[float, float]
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def mean(drawn_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, N) -> (R,)."""
    means_R: NDArray[np.float64] = drawn_RN.mean(axis=1)
    return means_R


def interval(
    values_N: NDArray[np.float64],
    statistic: Statistic = mean,
    *,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile interval of `statistic` over `values` (N, ...) resampled with replacement along the first axis.

    For a paired comparison hand in differences, or rows that hold both sides: what is drawn is the prompt, so whatever
    makes a prompt hard for both models cancels. `statistic` maps (R, N, ...) to (R,). Raises ValueError on fewer than
    two values, which say nothing about their spread.
    """
    if len(values_N) < 2:
        raise ValueError(f"{len(values_N)} values; an interval needs at least two")
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        found.append(statistic(values_N[generator.integers(0, len(values_N), (rows, len(values_N)))]))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), (tail, 1 - tail))
    return float(low), float(high)
