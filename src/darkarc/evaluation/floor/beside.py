"""A regressor beside the floor: exact posteriors of a sample of its test images, and what they show of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from darkarc.config import DEFAULT_TARGET
from darkarc.data.store import Store
from darkarc.evaluation.binning import members
from darkarc.evaluation.floor.likelihood import NoFloor
from darkarc.evaluation.floor.store import even_sample, known_form, stored_posterior
from darkarc.evaluation.metrics import Scores, draw_references, score
from darkarc.evaluation.predictions import Predictions
from darkarc.models import Posterior
from darkarc.simulation import get_preset

Floats = NDArray[np.float64]

NAMES = ("floor_mae_dex", "floor_expected_mae_dex", "floor_same_images_mae_dex", "floor_ratio")
RESAMPLES = 4000


@dataclass(frozen=True, eq=False)
class Beside:
    """M images: scores of their exact posteriors and of the regressor's, and each one's expected error.

    n_unexplained: further images that no lens of their form explains; they count for nothing.
    """

    exact: Scores
    own: Scores
    expected: Floats
    n_unexplained: int

    def __len__(self) -> int:
        return len(self.exact)


def compute_beside(
    store: Store,
    predictions: Predictions,
    images: int,
    *,
    seed: int,
    cache: Path | None,
    workers: int = 1,
    progress: bool = False,
) -> Beside:
    """Exact posteriors of `images` of the predicted axion images, evenly over the true masses.

    Raises `NoFloor` where there is none, in words for a reader of the report.
    """
    from rich.progress import Progress

    if images == 0:
        raise NoFloor("evaluate.floor_images is 0")
    if DEFAULT_TARGET not in predictions.scores:
        raise NoFloor(f"the regressor does not answer {DEFAULT_TARGET}")
    form = known_form(store)
    assert form.preset is not None
    low, high = get_preset(form.preset).lens.log10_axion_mass_ev
    edges = predictions.edges[DEFAULT_TARGET]
    if not np.allclose([edges[0], edges[-1]], [low, high]):
        raise NoFloor(
            f"it holds for the masses that were simulated, [{low:g}, {high:g}], not for the regressor's "
            f"prior range [{edges[0]:g}, {edges[-1]:g}]"
        )
    known = predictions.with_truth(DEFAULT_TARGET)
    scores = predictions.scores[DEFAULT_TARGET][known]
    chosen = even_sample(scores.truth, images)
    if not len(chosen):
        raise NoFloor("no test image has a true axion mass")
    with Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task("Information floor", total=len(chosen))
        exact, explained = stored_posterior(
            store,
            predictions.rows[known[chosen]],
            cache=cache,
            workers=workers,
            advance=lambda: bar.advance(task),
        )
    if not explained.any():
        raise NoFloor(f"no lens of the form in the manifest explains any of {len(chosen)} images")
    exact, chosen = exact[explained], chosen[explained]
    truth = scores.truth[chosen]
    scored = score(exact, truth, draw_references(exact.edges, len(truth), seed))
    return Beside(scored, scores[chosen], expected_error(exact), int((~explained).sum()))


def expected_error(posterior: Posterior) -> Floats:
    """(N,) mean absolute distance of a posterior from its own median: the error that it expects to make."""
    low, high = posterior.edges[:-1], posterior.edges[1:]
    median = posterior.median[:, None]
    cut = np.clip(median, low, high)
    inside = ((cut - low) ** 2 + (high - cut) ** 2) / 2
    beyond = np.abs(median - cut) * (high - low)
    return np.sum(posterior.density * (inside + beyond), axis=1)


def floor_numbers(beside: Beside, seed: int) -> tuple[dict[str, float | int], dict[str, float | None]]:
    """The numbers of `NAMES`, and their standard errors by a bootstrap that keeps images together."""
    exact, own = np.abs(beside.exact.error), np.abs(beside.own.error)
    resampled = np.random.default_rng(seed).integers(len(exact), size=(RESAMPLES, len(exact)))
    means = [values[resampled].mean(axis=1) for values in (exact, beside.expected, own)]
    draws = dict(zip(NAMES, [*means, means[2] / means[0]], strict=True))
    values: dict[str, float | int] = {
        "floor_mae_dex": float(exact.mean()),
        "floor_expected_mae_dex": float(beside.expected.mean()),
        "floor_same_images_mae_dex": float(own.mean()),
        "floor_ratio": float(own.mean() / exact.mean()),
        "floor_n_images": len(exact),
        "floor_n_unexplained": beside.n_unexplained,
    }
    errors = {name: float(draw.std(ddof=1)) if len(exact) > 1 else None for name, draw in draws.items()}
    return values, errors


def floor_by_mass(beside: Beside, edges: Floats) -> list[dict[str, float | int | None]]:
    """A row a bin of the true mass: `floor_n`, `floor_mae_dex`, its standard error; null without images."""
    error = np.abs(beside.exact.error)
    bins = members(beside.exact.truth, edges)
    rows: list[dict[str, float | int | None]] = []
    for index in range(len(edges) - 1):
        inside = error[bins == index]
        spread = float(inside.std(ddof=1) / np.sqrt(len(inside))) if len(inside) > 1 else None
        mean = float(inside.mean()) if len(inside) else None
        rows.append({"floor_n": len(inside), "floor_mae_dex": mean, "floor_mae_dex_se": spread})
    return rows


NO_ROW: dict[str, float | int | None] = {"floor_n": 0, "floor_mae_dex": None, "floor_mae_dex_se": None}
"""Of a mass bin without a floor."""
