"""`darkarc floor`: exact posteriors of a store's axion images, the error that nobody gets below."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.progress import Progress

from darkarc.config import DEFAULT_TARGET
from darkarc.data.store import Store
from darkarc.durable import why_unwritable, write_file
from darkarc.evaluation.binning import by_bin, mass_edges
from darkarc.evaluation.context import FLOOR_CACHE
from darkarc.evaluation.floor.beside import expected_error
from darkarc.evaluation.floor.cramer_rao import CramerRao, cramer_rao
from darkarc.evaluation.floor.likelihood import NoFloor
from darkarc.evaluation.floor.store import even_sample, known_form, stored_posterior
from darkarc.evaluation.metrics import Scores, draw_references, score, standard_errors, summarise

INTERVALS = ("truth", "median", "mean", "std", "q05", "q16", "q84", "q95", "pit")


def floor_stage(
    store: Store,
    out: Path,
    *,
    images: int,
    mass_bins: int = 8,
    seed: int = 0,
    workers: int = 1,
    cache: Path | None = FLOOR_CACHE,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Exact posteriors of `images` axion images (of the test split, if there is one), evenly over the masses.

    Writes `out` (JSON): the numbers of `evaluate` over these posteriors, `mae_dex` among them, with their
    standard errors; `expected_mae_dex`, the error that the posteriors themselves expect; all of it by mass;
    each image's median and intervals; and the Cramer-Rao bound along the mass. And its figure, `out` as .png.

    Images that no lens of the store's form explains are counted and left out: the search has missed the
    maximum, or they are of another form. A killed call goes on where it stopped. Raises `NoFloor` where the
    store's preset or noise form is not known or has no floor, and for an `out` that does not end in .json.
    """
    from darkarc.evaluation.tables import tidy

    if out.suffix.lower() != ".json":
        raise NoFloor(f"{out}: expected a file that ends in .json; the figure goes beside it as .png")
    if reason := why_unwritable(out):
        raise NoFloor(f"--out {out}: nothing can be written there ({reason}); give a file of yours")
    form = known_form(store)
    assert form.preset is not None and form.noise is not None
    rows, truth = _axion_rows(store)
    chosen = even_sample(truth, images)
    if not len(chosen):
        raise NoFloor(f"{store.path}: there is no axion image with a known mass in it")
    rows, truth = rows[chosen], truth[chosen]
    with Progress(disable=not progress) as bar:
        task = bar.add_task("floor", total=len(rows))
        posterior, explained = stored_posterior(
            store,
            rows,
            cache=cache,
            workers=workers,
            device=device,
            advance=lambda: bar.advance(task),
        )
    if not explained.any():
        raise NoFloor(f"{store.path}: no lens of the form in its manifest explains any of {len(rows)} images")
    posterior, rows, truth = posterior[explained], rows[explained], truth[explained]
    scores = score(posterior, truth, draw_references(posterior.edges, len(rows), seed))
    prior = (float(posterior.edges[0]), float(posterior.edges[-1]))
    bound = cramer_rao(form.preset, form.noise, distances=form.distances or "deeplense", seed=seed)
    values, _ = summarise(scores)
    expected = expected_error(posterior)
    errors = standard_errors(scores, seed)
    errors["expected_mae_dex"] = float(expected.std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else None
    ids = store.samples["sample_id"].take(pa.array(rows)).to_pylist()
    document: dict[str, Any] = tidy(
        {
            "preset": form.preset,
            "noise": form.noise,
            "n_images": len(rows),
            "n_unexplained": int((~explained).sum()),
            **values,
            "expected_mae_dex": float(expected.mean()),
            "standard_error": errors,
            "by_mass": by_bin(scores, scores.truth, mass_edges(*prior, mass_bins), seed),
            "cramer_rao": {
                "log10_mass_ev": bound.log10_mass_ev.tolist(),
                **{f"sigma_q{100 * q:.0f}_dex": bound.quantile(q).tolist() for q in (0.16, 0.5, 0.84)},
            },
            "images": [
                {"sample_id": ids[n], **{name: float(getattr(scores, name)[n]) for name in INTERVALS}}
                for n in range(len(rows))
            ],
        }
    )
    write_file(out.with_suffix(".png"), _figure(scores, prior, bound))
    write_file(out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return document


def _axion_rows(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the axion images with a known mass, of the test split if there is one, and their masses."""
    samples = store.samples
    own = pc.equal(samples["class"], "axion")
    if "test" in set(samples["split"].to_pylist()):
        own = pc.and_(own, pc.equal(samples["split"], "test"))
    own = pc.and_(own, pc.is_valid(samples[DEFAULT_TARGET])).fill_null(False)
    rows = np.flatnonzero(own.to_numpy(zero_copy_only=False))
    return rows, samples[DEFAULT_TARGET].take(pa.array(rows)).to_numpy(zero_copy_only=False)


def _figure(scores: Scores, prior: tuple[float, float], bound: CramerRao) -> bytes:
    from darkarc.evaluation.figures.floor import floor_figure
    from darkarc.evaluation.style import style, to_png

    quantiles = (bound.quantile(0.16), bound.quantile(0.5), bound.quantile(0.84))
    with style():
        return to_png(floor_figure(DEFAULT_TARGET, scores, prior, bound.log10_mass_ev, quantiles))
