"""`darkarc floor`: exact posteriors of a store's axion images, the error that nobody gets below."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from rich.progress import Progress

from darkarc.config import DEFAULT_TARGET
from darkarc.data.form import data_form
from darkarc.data.store import Store
from darkarc.durable import write_file
from darkarc.evaluation.floor.likelihood import NoFloor
from darkarc.evaluation.floor.posterior import exact_posterior
from darkarc.evaluation.metrics import draw_references, score, standard_errors, summarise


def floor_stage(
    store: Store, out: Path, *, images: int, seed: int = 0, workers: int = 1, progress: bool = True
) -> dict[str, Any]:
    """Exact posteriors of the first `images` axion images (of the test split, if there is one) of a store.

    Writes `out` (JSON): the numbers of `evaluate` over these posteriors, `mae_dex` among them, with their
    standard errors. Raises `NoFloor` where the store's preset or noise form is not known or has no floor.
    """
    form = data_form(store.manifest)
    if form.preset is None or form.noise is None:
        raise NoFloor(
            f"{store.path}: its manifest names no preset and noise form, so the likelihood is not known"
        )
    samples = store.samples
    own = pc.equal(samples["class"], "axion")
    if "test" in set(samples["split"].to_pylist()):
        own = pc.and_(own, pc.equal(samples["split"], "test"))
    rows = np.flatnonzero(own.to_numpy())[:images]
    if not len(rows):
        raise NoFloor(f"{store.path}: there is no axion image in it")
    with Progress(disable=not progress) as bar:
        task = bar.add_task("floor", total=len(rows))
        posterior = exact_posterior(
            (store.images([row])[0] for row in rows),
            form.preset,
            form.noise,
            distances=form.distances or "deeplense",
            workers=workers,
            advance=lambda: bar.advance(task),
        )
    truth = samples[DEFAULT_TARGET].to_numpy()[rows]
    scores = score(posterior, truth, draw_references(posterior.edges, len(rows), seed))
    values, _ = summarise(scores)
    document = {
        "preset": form.preset,
        "noise": form.noise,
        "n_images": len(rows),
        **values,
        "standard_error": standard_errors(scores, seed),
    }
    write_file(out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return document
