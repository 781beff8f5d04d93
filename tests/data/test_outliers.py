"""Outliers: what the score is made of, and that the train split alone decides."""

import numpy as np
import pytest

from darkarc.data.outliers import RobustScale, score_outliers
from darkarc.data.quality import STATISTICS


def test_a_deviation_counts_in_the_spread_of_its_own_side() -> None:
    scale = RobustScale(np.array([1.0, 0.0]), below=np.array([1.0, 5.0]), above=np.array([2.0, 0.5]))
    table = np.array([[5.0, 1.0], [-3.0, -1.0]])
    assert scale.deviations(table) == pytest.approx(np.array([[2.0, 2.0], [-4.0, -0.2]]))


def test_the_limit_of_a_stratum_is_that_of_its_train_images() -> None:
    """100 images outside of train, all far out: none hides another."""
    rng = np.random.default_rng(0)
    statistics = {name: 5 + rng.normal(size=500) for name in STATISTICS}
    train = np.arange(500) < 400
    statistics["flux"][~train] += 60
    found = score_outliers(
        statistics, broken=np.zeros(500, bool), train=train, strata=np.zeros(500, int),
        trees=20, contamination=0.01, largest_share=0.05, seed=0,
    )  # fmt: skip
    assert found.unusual[~train].all() and found.unusual[train].sum() <= 4
    assert {list(STATISTICS)[k] for k in found.statistic[~train]} == {"flux"}
    assert (found.deviation[~train] > 30).all()
