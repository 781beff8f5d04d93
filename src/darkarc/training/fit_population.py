"""After training: how much the errors on lenses of one mass have in common, from the calibration split."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from darkarc.config import DEFAULT_TARGET, TARGET_CLASS, Config
from darkarc.data.store import Store
from darkarc.models import Regressor
from darkarc.models.population_errors import KEY, fit_correlation

MOST_IMAGES = 4000
"""Of the calibration split: more would not make the correlation any better known."""


def fit_population(config: Config, regressor: Regressor, prepared: Store) -> dict[str, float]:
    """Put `population` into the regressor's statistics; returns what to log.

    The share of axion-like images in training, and the correlation of errors where the calibration split
    has images enough to fit it. Nothing for regressors without the axion mass.
    """
    if DEFAULT_TARGET not in regressor.targets:
        return {}
    samples = prepared.samples
    kind = TARGET_CLASS[DEFAULT_TARGET]
    train = samples.filter(pc.equal(samples["split"], "train"))
    axions = pc.sum(pc.equal(train["class"], kind)).as_py() or 0
    known: dict[str, float] = {"axion_share": axions / max(len(train), 1)}
    own = pc.and_(pc.equal(samples["split"], "calibration"), pc.equal(samples["class"], kind))
    own = pc.and_(own, pc.is_valid(samples[DEFAULT_TARGET])).fill_null(False)
    rows = np.flatnonzero(own.to_numpy(zero_copy_only=False))[:MOST_IMAGES]
    if len(rows):
        posterior = regressor.predict(prepared.images(rows), target=DEFAULT_TARGET)
        truth = samples[DEFAULT_TARGET].take(pa.array(rows)).to_numpy(zero_copy_only=False)
        correlation = fit_correlation(posterior, truth, config.seed)
        if correlation is not None:
            known |= {"correlation": correlation, "n": len(rows)}
    regressor.spec.statistics[KEY] = known
    return {f"population/{name}": float(value) for name, value in known.items()}
