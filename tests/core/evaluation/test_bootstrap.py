"""Intervals hold the truth as often as they say."""

import numpy as np
import pytest

from zimage_studio.core.evaluation.bootstrap import interval


def test_nineteen_of_twenty_intervals_hold_the_true_mean() -> None:
    generator, truth = np.random.default_rng(5), 0.3
    samples = generator.gamma(2.0, truth / 2.0, (300, 40))
    held = [low <= truth <= high for low, high in (interval(row, resamples=2000, seed=1) for row in samples)]
    assert 0.89 <= np.mean(held) <= 0.985


def test_pairing_takes_away_what_both_sides_share() -> None:
    generator = np.random.default_rng(2)
    hard = generator.normal(0, 1, 30)
    child, parent = hard - 0.1 + generator.normal(0, 0.05, 30), hard + generator.normal(0, 0.05, 30)
    low, high = interval(child - parent)
    assert low < -0.1 < high < 0


def test_equal_values_have_a_point_and_one_value_has_none() -> None:
    assert interval(np.zeros(12)) == (0.0, 0.0)
    assert interval(np.arange(9.0), seed=3) == interval(np.arange(9.0), seed=3)
    with pytest.raises(ValueError, match="at least two"):
        interval(np.ones(1))
