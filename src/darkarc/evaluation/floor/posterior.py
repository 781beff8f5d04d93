"""The exact posterior of the axion mass of images whose noise is known: no regressor can do better."""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray

from darkarc.config import CLASSES, DEFAULT_TARGET
from darkarc.data.generate import start_worker
from darkarc.evaluation.floor.bank import Bank, make_bank
from darkarc.evaluation.floor.crossing import residual
from darkarc.evaluation.floor.curve import MassCurve, bin_density
from darkarc.evaluation.floor.explore import explored
from darkarc.evaluation.floor.lattice import mass_curve
from darkarc.evaluation.floor.likelihood import NoFloor, why_no_floor
from darkarc.models import Posterior
from darkarc.simulation import get_preset

Floats = NDArray[np.float64]

MISFIT = 5.0
"""Standard deviations of chi-square, from which on no lens of the form explains an image."""
WORST = 6.0
"""Standard deviations that no pixel of an explained image reaches: 1 of 10^5 images of 4,096 pixels does."""


def exact_posterior(
    images: NDArray[np.generic] | Iterable[NDArray[np.generic]],
    preset: str,
    noise: str,
    *,
    distances: str = "deeplense",
    bins: int = 256,
    workers: int = 1,
    device: str = "cpu",
) -> Posterior:
    """Posterior of log10 m, on the simulator's prior, of axion images (N, H, W) in the form that is stored.

    The likelihood is the simulator's own; angle, source position and (Model I, whose files do not tell
    it) the exposure are integrated out over their priors. That the lens is axion-like is taken as given.
    On a CPU the same image gives the same bits whatever stands beside it and however many processes
    (`workers`) there are; a GPU (`device`, one process) refines the lattices of many images abreast.

    Raises `NoFloor` for a form without noise and for images of another size or with pixels that are no
    numbers.
    """
    edges = np.linspace(*get_preset(preset).lens.log10_axion_mass_ev, bins + 1)
    answers = exact_answers(
        images, preset, noise, distances=distances, bins=bins, workers=workers, device=device
    )
    density = np.array([answer.density for answer in answers]).reshape(-1, bins)
    classes = np.zeros((len(density), len(CLASSES)))
    classes[:, CLASSES.index("axion")] = 1.0
    return Posterior(edges, density, classes, DEFAULT_TARGET)


@dataclass(frozen=True, eq=False)
class ExactAnswer:
    """density: (K,) of the posterior; misfit: by how many of its standard deviations the chi-square of the
    best parameters is off; worst: the largest residual of a pixel, in standard deviations."""

    density: Floats
    misfit: float
    worst: float

    @property
    def explained(self) -> bool:
        """Whether a lens of the form explains the image; if not, it is of another form or the search has
        missed the maximum, and the density means nothing."""
        return abs(self.misfit) < MISFIT and self.worst < WORST


def exact_answers(
    images: NDArray[np.generic] | Iterable[NDArray[np.generic]],
    preset: str,
    noise: str,
    *,
    distances: str = "deeplense",
    bins: int = 256,
    workers: int = 1,
    device: str = "cpu",
) -> Iterator[ExactAnswer]:
    """The densities of `exact_posterior`, one image after the other as they are ready, and how well a lens of
    the form explains each."""
    reason = why_no_floor(preset, noise)
    if reason:
        raise NoFloor(reason)
    edges = np.linspace(*get_preset(preset).lens.log10_axion_mass_ev, bins + 1)
    checked = (_checked(np.asarray(image), n, preset) for n, image in enumerate(images))
    with _curves(checked, (preset, noise, distances, device), workers) as curves:
        for curve, residuals in curves:
            misfit = (float(np.mean(residuals**2)) - 1) * math.sqrt(residuals.size / 2)
            yield ExactAnswer(bin_density(curve, edges), misfit, float(np.abs(residuals).max()))


def _checked(image: NDArray[np.generic], number: int, preset: str) -> NDArray[np.generic]:
    height, width = get_preset(preset).instrument.shape
    if image.shape != (height, width):
        raise NoFloor(
            f"images of {preset} have {height} x {width} pixels, found {' x '.join(map(str, image.shape))}"
        )
    n_bad = image.size - int(np.isfinite(image).sum())
    if n_bad:
        raise NoFloor(
            f"image {number} (from 0): {n_bad} of {image.size} pixels are NaN or infinite; leave it out, or "
            "give them their values"
        )
    return image


Form = tuple[str, str, str, str]
"""Preset, noise, distances, device."""
Explanation = tuple[MassCurve, Floats]
"""The log-evidence along the mass, and the residual (H, W) of the best parameters in standard deviations."""


@cache
def _bank(preset: str, distances: str, device: str) -> Bank:
    return make_bank(preset, distances, device)


@torch.no_grad()
def _mass_curves(form: Form, images: Iterable[NDArray[np.generic]]) -> Iterator[Explanation]:
    preset, noise, distances, device = form
    bank = _bank(preset, distances, device)
    for one in explored(bank, noise, images):
        yield mass_curve(one.lattice), residual(bank, one.likelihood, one.lattice).double().cpu().numpy()


def _curve(form: Form, image: NDArray[np.generic]) -> Explanation:
    return next(_mass_curves(form, [image]))


@contextmanager
def _curves(
    images: Iterable[NDArray[np.generic]], form: Form, workers: int
) -> Iterator[Iterator[Explanation]]:
    """Curves and residuals of the images in order: here, or over processes of one thread each."""
    if workers == 1:
        # The blocks are too small for several threads, which cost more than they bring on busy cores.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield _mass_curves(form, images)
        finally:
            torch.set_num_threads(threads)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
    try:
        yield pool.map(_curve, *zip(*((form, image) for image in images), strict=True))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
