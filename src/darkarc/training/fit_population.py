"""After training: what the errors on lenses of one mass have in common, from lenses training never saw."""

from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from darkarc.config import DEFAULT_TARGET, SEEDS, TARGET_CLASS, Config
from darkarc.data.form import DataForm, data_form
from darkarc.data.store import Store
from darkarc.models import Ensemble, Posterior, Regressor
from darkarc.models.population_errors import KEY, fit_correlation, fit_correlations_of_pools
from darkarc.simulation import draw_scenes, get_preset, render

MASSES = 41
MOST_LENSES, LEAST_LENSES = 133, 30
"""Simulated at each mass: as many in all as there are axion images in training, within these."""
MOST_IMAGES = 4000
"""Of the calibration split: more would not make the correlation any better known."""


def fit_population(config: Config, regressor: Regressor | Ensemble, prepared: Store) -> dict[str, float]:
    """Put `population` into the regressor's statistics; returns what to log.

    The share of axion-like images in training; the correlation of errors, from
    simulated lenses of single masses where the form of the images is known and training had enough of them,
    else the correlation alone, from the calibration split, where that has enough. Nothing for regressors
    without the axion mass.
    """
    if DEFAULT_TARGET not in regressor.targets:
        return {}
    samples = prepared.samples
    kind = TARGET_CLASS[DEFAULT_TARGET]
    train = samples.filter(pc.equal(samples["split"], "train"))
    axions = pc.sum(pc.equal(train["class"], kind)).as_py() or 0
    known: dict[str, Any] = {"axion_share": axions / max(len(train), 1)}
    found = _from_simulation(config, regressor, prepared, axions)
    known |= found if found is not None else _from_calibration(config, regressor, prepared)
    regressor.spec.statistics[KEY] = known
    return {
        f"population/{name}": float(value) for name, value in known.items() if isinstance(value, int | float)
    }


def _from_simulation(
    config: Config, regressor: Regressor | Ensemble, prepared: Store, axions: int
) -> dict[str, Any] | None:
    form = data_form(prepared.manifest)
    lenses = min(axions // MASSES, MOST_LENSES)
    if form.preset is None or form.noise is None or lenses < LEAST_LENSES:
        return None
    if get_preset(form.preset).instrument.shape != tuple(regressor.shape):
        return None
    # Numbers of their own, far beyond those of any data set.
    return errors_of_simulated(
        regressor,
        DataForm(form.preset, form.noise, form.distances or "deeplense"),
        prior=config.targets[DEFAULT_TARGET],
        lenses=lenses,
        seed=(config.seed + 2**40) % SEEDS,
    )


class Answering(Protocol):
    """What answers images: a regressor, an ensemble, an exported one."""

    def predict(self, images: NDArray[Any], *, target: str | None = None) -> Posterior: ...


def errors_of_simulated(
    regressor: Answering, form: DataForm, *, prior: tuple[float, float], lenses: int, seed: int
) -> dict[str, Any]:
    """What `statistics["population"]` holds of common errors, from `lenses` simulated at each of `MASSES`.

    form: which images, with nothing unknown. prior: range of log10 of the mass in eV.
    """
    assert form.preset is not None and form.noise is not None and form.distances is not None
    margin = (prior[1] - prior[0]) / (2 * MASSES)
    masses = np.linspace(prior[0] + margin, prior[1] - margin, MASSES)
    pools: list[Posterior] = []
    for k, mass in enumerate(masses):
        numbers = np.arange(k * lenses, (k + 1) * lenses)
        scenes = draw_scenes(form.preset, "axion", seed, numbers)
        scenes.log10_mass_ev[:] = mass
        images = render(
            form.preset, scenes, noise=form.noise, distances=form.distances, seed=seed, indices=numbers
        )
        pools.append(regressor.predict(images.numpy(), target=DEFAULT_TARGET))
    # The bias at each mass is allowed for, not corrected: measured, it changes within a tenth of a dex, and
    # shifting by its interpolation made populations of light particles worse.
    errors = fit_correlations_of_pools(pools, masses, seed)
    return {
        "correlation": errors.correlation,
        "correlation_mass": list(errors.correlation_mass),
        "correlation_size": list(errors.correlation_size),
        "correlation_at": [list(row) for row in errors.correlation_at],
        "n": lenses * MASSES,
    }


def _from_calibration(config: Config, regressor: Regressor | Ensemble, prepared: Store) -> dict[str, Any]:
    samples = prepared.samples
    own = pc.and_(
        pc.equal(samples["split"], "calibration"), pc.equal(samples["class"], TARGET_CLASS[DEFAULT_TARGET])
    )
    own = pc.and_(own, pc.is_valid(samples[DEFAULT_TARGET])).fill_null(False)
    rows = np.flatnonzero(own.to_numpy(zero_copy_only=False))[:MOST_IMAGES]
    if not len(rows):
        return {}
    posterior = regressor.predict(prepared.images(rows), target=DEFAULT_TARGET)
    truth = samples[DEFAULT_TARGET].take(pa.array(rows)).to_numpy(zero_copy_only=False)
    correlation = fit_correlation(posterior, truth, config.seed)
    return {} if correlation is None else {"correlation": correlation, "n": len(rows)}
