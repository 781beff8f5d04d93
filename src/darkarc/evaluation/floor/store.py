"""Exact posteriors of a store's axion images: which images, and each computed once."""

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from darkarc.config import CLASSES, DEFAULT_TARGET
from darkarc.data.form import DataForm, data_form
from darkarc.data.store import Store
from darkarc.durable import write_file
from darkarc.evaluation.context import FLOOR_CACHE
from darkarc.evaluation.floor.likelihood import NoFloor, why_no_floor
from darkarc.evaluation.floor.posterior import ExactAnswer, exact_answers
from darkarc.models import Posterior
from darkarc.simulation import get_preset

Floats = NDArray[np.float64]

BINS = 8192
"""Of 2.4e-4 dex: the longest vortices are known to a few of them."""

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
    found: dict[int, ExactAnswer] = {}
    if folder is not None:
        found = {int(row): kept for row in rows if (kept := _read(folder, row)) is not None}
    todo = [int(row) for row in rows if int(row) not in found]
    for _ in found:
        if advance is not None:
            advance()
    answers = exact_answers(
        (store.images([row])[0] for row in todo),
        form.preset,
        form.noise,
        distances=form.distances or "deeplense",
        bins=BINS,
        workers=max(1, min(workers, len(todo) // _A_WORKER)),
        device=device,
    )
    for row, answer in zip(todo, answers, strict=True):
        found[row] = answer
        if folder is not None:
            _write(folder, row, answer)
        if advance is not None:
            advance()
    classes = np.zeros((len(rows), len(CLASSES)))
    classes[:, CLASSES.index("axion")] = 1.0
    ordered = [found[int(row)] for row in rows]
    density = np.array([answer.density for answer in ordered]).reshape(-1, BINS)
    explained = np.array([answer.explained for answer in ordered], dtype=bool)
    return Posterior(edges, density, classes, DEFAULT_TARGET), explained


def code_version() -> str:
    """SHA-256 of the sources that an exact posterior depends on: the simulator's and the floor's."""
    here = Path(__file__).parent
    own = ("bank", "compound", "crossing", "explore", "lattice", "likelihood", "nuisance", "posterior")
    files = [here / f"{name}.py" for name in own]
    files += sorted((here.parents[1] / "simulation").glob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _read(folder: Path, row: np.intp) -> ExactAnswer | None:
    """What was kept of an image; None where there is nothing, or something damaged."""
    try:
        with np.load(BytesIO((folder / f"{row}.npz").read_bytes()), allow_pickle=False) as kept:
            answer = ExactAnswer(kept["density"], float(kept["misfit"]), float(kept["worst"]))
    except (OSError, ValueError, EOFError, KeyError, TypeError, BadZipFile):
        return None
    density = answer.density
    usable = density.shape == (BINS,) and density.dtype == np.float64 and np.isfinite(density).all()
    return answer if usable else None


def _write(folder: Path, row: int, answer: ExactAnswer) -> None:
    content = BytesIO()
    np.savez(content, density=answer.density, misfit=answer.misfit, worst=answer.worst)
    write_file(folder / f"{row}.npz", content.getvalue())
