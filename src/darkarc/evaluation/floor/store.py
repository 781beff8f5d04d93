"""Exact posteriors of a store's axion images: which images, and each computed once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from darkarc.config import CLASSES, DEFAULT_TARGET
from darkarc.data.form import DataForm, data_form
from darkarc.data.store import Store
from darkarc.evaluation.context import FLOOR_CACHE
from darkarc.evaluation.floor.kept import BINS, code_version, kept_or_computed
from darkarc.evaluation.floor.likelihood import NoFloor, why_no_floor
from darkarc.evaluation.floor.posterior import ExactAnswer, exact_answers
from darkarc.models import Posterior
from darkarc.simulation import get_preset

Floats = NDArray[np.float64]

_A_WORKER = 8
"""Images that pay for the start of another process."""


def known_form(store: Store) -> DataForm:
    """The form of a store's images. Raises `NoFloor` where it has no floor or is not known."""
    form = data_form(store.manifest)
    if form.preset is None or form.noise is None:
        raise NoFloor(
            f"{store.path}: its manifest names no preset and noise form, so the likelihood of its images is "
            "not known"
        )
    reason = why_no_floor(form.preset, form.noise)
    if reason:
        raise NoFloor(reason)
    shape = get_preset(form.preset).instrument.shape
    if tuple(store.shape) != shape:
        raise NoFloor(
            f"images of {form.preset} have {shape[0]} x {shape[1]} pixels, those of {store.path} "
            f"{store.shape[0]} x {store.shape[1]}"
        )
    return form


def even_sample(truth: Floats, n: int) -> NDArray[np.intp]:
    """At most n positions, rising: the middle one of each of n equal slices of the true values in order.

    Every mass has its share, so that the mean over them is steadier than that of a random sample.
    """
    order = np.argsort(truth, kind="stable")
    slices = np.array_split(order, min(n, len(order))) if len(order) else []
    return np.sort(np.array([part[len(part) // 2] for part in slices], dtype=np.intp))


def stored_posterior(
    store: Store,
    rows: NDArray[np.intp],
    *,
    cache: Path | None = FLOOR_CACHE,
    workers: int = 1,
    device: str = "cpu",
    advance: Callable[[], object] | None = None,
) -> tuple[Posterior, NDArray[np.bool_]]:
    """Exact posteriors of N rows of a store, all of them axion images, and (N,) whether a lens of the
    store's form explains each: the others count for nothing.

    cache: folder that keeps each one under the data's digest and the code's version, so that a killed
        call goes on and another evaluation of the same data computes nothing; None: none is kept.
    Raises `NoFloor`.
    """
    form = known_form(store)
    assert form.preset is not None and form.noise is not None
    edges = np.linspace(*get_preset(form.preset).lens.log10_axion_mass_ev, BINS + 1)
    folder = None if cache is None else cache / f"{store.digest[:16]}-{code_version()[:16]}"
    preset, noise, distances = form.preset, form.noise, form.distances or "deeplense"

    def compute(todo: list[int]) -> Iterator[ExactAnswer]:
        return exact_answers(
            (store.images([rows[k]])[0] for k in todo),
            preset,
            noise,
            distances=distances,
            bins=BINS,
            workers=max(1, min(workers, len(todo) // _A_WORKER)),
            device=device,
        )

    ordered = []
    for answer in kept_or_computed(folder, [str(row) for row in rows], compute):
        ordered.append(answer)
        if advance is not None:
            advance()
    classes = np.zeros((len(rows), len(CLASSES)))
    classes[:, CLASSES.index("axion")] = 1.0
    density = np.array([answer.density for answer in ordered]).reshape(-1, BINS)
    explained = np.array([answer.explained for answer in ordered], dtype=bool)
    return Posterior(edges, density, classes, DEFAULT_TARGET), explained
