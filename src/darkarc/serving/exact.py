"""Exact posteriors in place of a regressor's, for images whose noise the simulator knows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from darkarc.config import DEFAULT_TARGET
from darkarc.evaluation.floor import exact_answers, why_no_floor
from darkarc.models import Posterior, Regressor
from darkarc.serving.onnx_regressor import OnnxRegressor
from darkarc.serving.predict import Answers, PredictError, Sharpened

BINS = 8192
"""Of 2.4e-4 dex: the longest vortices are known to a few of them."""
MISFIT = 5.0
"""Standard deviations of chi-square, from which on no lens of the form explains an image."""
WORST = 6.0
"""Standard deviations that no pixel of an explained image reaches: 1 of 10^5 images of 4,096 pixels does."""


class ExactAnswers(Answers):
    """As `Answers`; images that get a mass get the posterior that the simulator's own likelihood gives.

    The regressor still says which class an image is of and whether it may be judged. An image that no lens of
    its training's form explains keeps the regressor's posterior, and the flag says so. Raises `PredictError`
    for a regressor whose form is unknown or without noise, or another target than the axion mass.
    """

    def __init__(
        self, regressor: Regressor | OnnxRegressor, target: str, gate: float, workers: int = 1
    ) -> None:
        super().__init__(regressor, target, gate)
        form = regressor.spec.form
        if target != DEFAULT_TARGET:
            raise PredictError(f"--exact: exact posteriors are of {DEFAULT_TARGET}, not of {target}")
        if form is None:
            raise PredictError(
                "--exact: this regressor does not say which preset, noise and distances its images had"
            )
        if reason := why_no_floor(form["preset"], form["noise"]):
            raise PredictError(f"--exact: there is no exact posterior: {reason}")
        self._form, self._workers = form, workers

    def _sharpened(
        self, images: NDArray[np.float32], posterior: Posterior, wanted: Sequence[int]
    ) -> dict[int, Sharpened]:
        answers = exact_answers(
            images[list(wanted)],
            self._form["preset"],
            self._form["noise"],
            distances=self._form["distances"],
            bins=BINS,
            workers=min(self._workers, len(wanted)),
        )
        edges = np.linspace(posterior.edges[0], posterior.edges[-1], BINS + 1)
        found: dict[int, Sharpened] = {}
        for k, answer in zip(wanted, answers, strict=True):
            if abs(answer.misfit) < MISFIT and answer.worst < WORST:
                density, classes = answer.density[None], posterior.class_probability[k : k + 1]
                found[k] = Sharpened(Posterior(edges, density, classes, self.target), "")
            else:
                reason = f"chi-square off by {answer.misfit:+.1f} sigma, worst pixel {answer.worst:.1f} sigma"
                found[k] = Sharpened(None, f"not exact: no lens of this form explains it ({reason})")
        return found
