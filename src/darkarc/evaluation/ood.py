"""Does the regressor know what it was not trained for? Novelty and flags on strange images.

A confident wrong answer is a mass that is given although the truth lies outside of its 99% interval; or,
where there is no vortex, one whose 90% interval is narrower than half the prior.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darkarc.config import CLASSES, DEFAULT_TARGET, SEEDS, TARGET_CLASS
from darkarc.data.form import data_form
from darkarc.data.store import Store
from darkarc.evaluation.classes import rank_area
from darkarc.evaluation.predictions import split_rows, true_values
from darkarc.evaluation.strangers import Case, strange_cases
from darkarc.models.flags import FlagError, Reference, unlikeness
from darkarc.models.posterior import Posterior
from darkarc.models.regressor import Regressor
from darkarc.simulation import PRESETS

Floats = NDArray[np.float64]

MOST_TEST_IMAGES = 400
GATE = 0.5
"""Below this probability of its class an image gets no mass, as in `darkarc predict`."""
ORDINARY = "test images"
SEED_OFFSET = 1 << 40
"""Scenes of this check share no random stream with the data set, whatever its seed."""


@dataclass(frozen=True, eq=False)
class StrangeImages:
    """One case: numbers for the table, the novelty (N,) of its images and an example for the figure."""

    row: dict[str, Any]
    novelty: Floats
    example: NDArray[np.float32]
    disagreement: Floats | None = None
    """(N,) an ensemble's `std_between`."""


def strange_images(regressor: object, prepared: Store, *, n: int, seed: int) -> list[StrangeImages]:
    """The test images first, then each case of `strange_cases`, n images each.

    Empty if there is nothing to compare with: the preset of the images is not known or is not drawn in this
    size, axion masses are not the regressor's target, or its novelty was not fitted.
    """
    form = data_form(prepared.manifest)
    if not isinstance(regressor, Regressor) or regressor.novelty is None or n < 1:
        return []
    known = form.preset in PRESETS and form.noise is not None and form.distances is not None
    if not known or DEFAULT_TARGET not in regressor.targets:
        return []
    assert form.preset is not None
    if tuple(PRESETS[form.preset].instrument.shape) != tuple(prepared.shape):
        return []
    ordinary = _test_images(prepared)
    if ordinary is None:
        return []
    judge = _Judge(regressor)
    measured = [judge(ordinary)]
    reference = measured[0]
    for case in strange_cases(form, n, (seed + SEED_OFFSET) % SEEDS):
        measured.append(judge(case, reference))
    return measured


def summary(measured: Sequence[StrangeImages]) -> dict[str, Any]:
    """What goes into `metrics.json`: a row a case, and the worst of each."""
    if not measured:
        return {}
    rows = [item.row for item in measured]
    return {
        "ood_auc_worst": min(row["auc"] for row in rows[1:]),
        "ood_flagged_least": min(row["flagged"] for row in rows[1:]),
        "ood_wrong_most": max(row["wrong_after"] for row in rows[1:]),
        "ood": rows,
    }


def _test_images(prepared: Store) -> Case | None:
    """Test images of the axion class, at most `MOST_TEST_IMAGES`, evenly spaced."""
    rows = split_rows(prepared, "test")
    truth = true_values(prepared, rows, DEFAULT_TARGET)
    rows, truth = rows[np.isfinite(truth)], truth[np.isfinite(truth)]
    if not len(rows):
        return None
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_TEST_IMAGES)).round().astype(int))
    images = prepared.images(rows[chosen]).astype(np.float32)
    return Case(ORDINARY, "as in training", images, truth[chosen])


class _Judge:
    """Predicts and flags a case as `darkarc predict` would."""

    def __init__(self, regressor: Regressor) -> None:
        self.regressor = regressor
        self.reference: Reference | None = None
        # A regressor may lack these statistics: then the novelty alone flags.
        with suppress(FlagError):
            self.reference = Reference(regressor.spec.statistics, regressor.shape)

    def __call__(self, case: Case, ordinary: StrangeImages | None = None) -> StrangeImages:
        posterior = self.regressor.predict(case.images, target=DEFAULT_TARGET)
        assert posterior.novelty is not None
        novelty = np.nan_to_num(posterior.novelty, nan=np.inf)
        flagged, withheld = self._doubts(case, posterior)
        wrong = confidently_wrong(posterior, case.truth)
        area = None if ordinary is None else _area(ordinary.novelty, novelty)
        row = {
            "case": case.name,
            "meaning": case.meaning,
            "n": len(case.images),
            "auc": area,
            "novelty_median": float(np.median(novelty)),
            "flagged": float(flagged.mean()),
            "withheld": float(withheld.mean()),
            "wrong_before": float(wrong.mean()),
            "wrong_given": float((wrong & ~withheld).mean()),
            "wrong_after": float((wrong & ~flagged).mean()),
        }
        between = posterior.std_between
        if between is not None:
            before = None if ordinary is None else ordinary.disagreement
            row["auc_disagreement"] = None if before is None else _area(before, between)
        return StrangeImages(row, novelty, case.images[0], between)

    def _doubts(self, case: Case, posterior: Posterior) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(N,) whether an image is flagged, and whether its mass is withheld."""
        verdicts = [unlikeness(posterior)]
        if self.reference is not None:
            verdicts.append(self.reference.judge(case.images))
        by_image = list(zip(*verdicts, strict=True))
        flagged = np.array([any(one.flag for one in both) for both in by_image])
        return flagged, np.array([any(one.withheld for one in both) for both in by_image])


def _areas(row: Mapping[str, Any]) -> str:
    if row["auc"] is None:
        return "–"
    other = row.get("auc_disagreement")
    return f"{row['auc']:.3f}" + ("" if other is None else f" (of the members' disagreement {other:.3f})")


def _area(ordinary: Floats, strange: Floats) -> float:
    """Area under the ROC curve of a score that should be higher for strange images."""
    is_strange = np.repeat([False, True], [len(ordinary), len(strange)])
    return rank_area(is_strange, np.concatenate([ordinary, strange]))


def confidently_wrong(posterior: Posterior, truth: Floats) -> NDArray[np.bool_]:
    """(N,) whether a mass would be given, and be a confident error; truth is nan where there is no vortex."""
    given = posterior.class_probability[:, CLASSES.index(TARGET_CLASS[DEFAULT_TARGET])] >= GATE
    lens = np.isfinite(truth)
    below = posterior.cdf(np.where(lens, truth, posterior.edges[0]))
    missed = np.abs(below - 0.5) > 0.495
    low, high = posterior.interval(0.90).T
    claimed = high - low < 0.5 * (posterior.edges[-1] - posterior.edges[0])
    return given & np.where(lens, missed, claimed)


def table_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Cells of the report's table."""
    for row in rows:
        shares = ("flagged", "withheld", "wrong_before", "wrong_given", "wrong_after")
        yield (
            f"{row['case']}: {row['meaning']}",
            str(row["n"]),
            _areas(row),
            f"{row['novelty_median']:.2g}",
            *(f"{100 * row[share]:.1f}" for share in shares),
        )
