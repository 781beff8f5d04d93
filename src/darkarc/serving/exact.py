"""Exact posteriors in place of a regressor's, for images whose noise the simulator knows."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from darkarc.config import DEFAULT_TARGET
from darkarc.durable import hold
from darkarc.evaluation.floor import ExactAnswer, exact_answers, why_no_floor
from darkarc.evaluation.floor.kept import BINS, code_version, kept_or_computed
from darkarc.models import Posterior, Regressor
from darkarc.serving.onnx_regressor import OnnxRegressor
from darkarc.serving.predict import Answers, PredictError, Sharpened
from darkarc.simulation import get_preset

MISSED = 0.02
"""Share of images in which the best of many narrow maxima is not found: 4 of 440 (`benchmarks/floor.py`), and
a margin."""


class ExactPosteriors:
    """The simulator's own posteriors of the axion mass, of images of the form that a regressor has learnt.

    workers: processes. keep: a folder for what was found, by the pixels, so that a killed call goes on; None:
    nothing is kept. Raises `PredictError` for a regressor whose form is unknown or without noise, or another
    target than the axion mass.
    """

    def __init__(
        self,
        regressor: Regressor | OnnxRegressor,
        target: str,
        workers: int = 1,
        keep: Path | None = None,
    ) -> None:
        form = regressor.spec.form
        if target != DEFAULT_TARGET:
            raise PredictError(f"--exact: exact posteriors are of {DEFAULT_TARGET}, not of {target}")
        if form is None:
            raise PredictError(
                "--exact: this regressor does not say which preset, noise and distances its images had"
            )
        if reason := why_no_floor(form["preset"], form["noise"]):
            raise PredictError(f"--exact: there is no exact posterior: {reason}")
        low, high = get_preset(form["preset"]).lens.log10_axion_mass_ev
        self.edges = np.linspace(low, high, BINS + 1)
        self._form, self._workers = form, workers
        facts = f"{code_version()} {sorted(form.items())}"
        self._kept = None if keep is None else keep / hashlib.sha256(facts.encode()).hexdigest()[:16]

    def of(self, images: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float64] | None, str]]:
        """Of each image (N, H, W) the density (BINS,); or None, and why: no lens of the form explains it."""

        def compute(todo: list[int]) -> Iterator[ExactAnswer]:
            return exact_answers(
                images[todo],
                self._form["preset"],
                self._form["noise"],
                distances=self._form["distances"],
                bins=BINS,
                workers=max(1, min(self._workers, len(todo))),
            )

        for answer in kept_or_computed(self._kept, [pixels_digest(image) for image in images], compute):
            if answer.explained:
                yield answer.density, ""
            else:
                reason = f"chi-square off by {answer.misfit:+.1f} sigma, worst pixel {answer.worst:.1f} sigma"
                yield None, f"not exact: no lens of this form explains it ({reason})"

    def guarded(self, density: NDArray[np.float64], own: Posterior) -> NDArray[np.float64]:
        """(BINS,) a mixture with the regressor's posterior of the image (of length 1), for products of many:
        one missed maximum must not rule the truth out."""
        below = np.concatenate([[0.0], np.cumsum(own.density[0] * own.widths)])
        wide = np.diff(np.interp(self.edges, own.edges, below)) / np.diff(self.edges)
        return (1 - MISSED) * density + MISSED * wide


@contextmanager
def kept_beside(out: Path) -> Iterator[Path]:
    """A folder for the exact posteriors behind `out`, held by this process and deleted when all went well.

    Hidden, for `out` may lie among the lenses, and what is kept is none. Raises `PredictError` if another
    process is at work on the same result.
    """
    folder = out.with_name(f".{out.name}.exact")
    folder.mkdir(exist_ok=True)
    try:
        descriptor = hold(folder)
    except BlockingIOError as error:
        raise PredictError(f"--out {out}: another process is computing this result; wait for it") from error
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
        with suppress(OSError):  # there may be something to go on with
            folder.rmdir()


def pixels_digest(image: NDArray[np.float32]) -> str:
    """BLAKE2b of the pixels of an image, the same whatever type of number its file holds them in."""
    return hashlib.blake2b((image + np.float32(0)).tobytes(), digest_size=16).hexdigest()  # -0.0 becomes 0.0


class ExactAnswers(Answers):
    """As `Answers`; images that get a mass get their exact posterior.

    The regressor still says which class an image is of and whether it may be judged. An image that no lens of
    its training's form explains keeps the regressor's posterior, and the flag says so. Raises `PredictError`
    as `ExactPosteriors`.
    """

    at_once = 1

    def __init__(
        self, regressor: Regressor | OnnxRegressor, target: str, gate: float, workers: int = 1
    ) -> None:
        super().__init__(regressor, target, gate)
        self._exact = ExactPosteriors(regressor, target, workers)

    def _sharpened(
        self, images: NDArray[np.float32], posterior: Posterior, wanted: Sequence[int]
    ) -> Iterator[Sharpened]:
        if not wanted:
            return
        for k, (density, why_not) in zip(wanted, self._exact.of(images[list(wanted)]), strict=True):
            classes = posterior.class_probability[k : k + 1]
            sharp = None
            if density is not None:
                sharp = Posterior(self._exact.edges, density[None], classes, self.target)
            yield Sharpened(sharp, why_not)
