"""Predicting the test split batch by batch; only a row of numbers an image is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from darkarc.config import CLASSES, TARGET_CLASS
from darkarc.data.store import Store
from darkarc.evaluation.binning import cumulative_at, mass_edges
from darkarc.evaluation.metrics import EvaluationError, Scores, draw_references, score
from darkarc.models.posterior import Posterior, PosteriorError

Floats = NDArray[np.float64]


class Predictor(Protocol):
    """What an evaluation asks of a regressor (`Regressor` and `OnnxRegressor` both give it)."""

    @property
    def targets(self) -> tuple[str, ...]: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    def predict(
        self, images: NDArray[Any], *, target: str | None = None, batch_size: int = 256
    ) -> Posterior: ...


@dataclass(frozen=True, eq=False)
class Predictions:
    """N test images and what the regressor says about them.

    rows: (N,) their rows in the store. label: (N,) index into `CLASSES`, -1 where the class is unknown.
    class_probability: (N, 3). scores: target to scores, nan where an image has no true value.
    edges: target to the (K+1,) edges of its posterior's grid, which span the prior range.
    cumulative: target to (N, B+1), the posterior's probability below each edge of B equal bins of the prior.
    """

    rows: NDArray[np.intp]
    sample_id: list[str]
    label: NDArray[np.intp]
    class_probability: Floats
    scores: Mapping[str, Scores]
    edges: Mapping[str, Floats]
    cumulative: Mapping[str, Floats]

    def with_truth(self, target: str) -> NDArray[np.intp]:
        """(M,) positions, among the N, of the images that have a true value of this target."""
        return np.flatnonzero(np.isfinite(self.scores[target].truth))


def split_rows(store: Store, split: str) -> NDArray[np.intp]:
    """(N,) rows of a store that belong to a split."""
    chosen = pc.equal(store.samples["split"], split).fill_null(False).to_numpy(zero_copy_only=False)
    return np.flatnonzero(chosen)


def true_values(store: Store, rows: NDArray[np.intp], target: str) -> Floats:
    """(N,) values of a target, nan where the class does not have it or it is not known."""
    table = store.samples.select(["class", target]).take(pa.array(rows))
    values = table[target].to_numpy(zero_copy_only=False).astype(np.float64)
    has_target = pc.equal(table["class"], TARGET_CLASS[target]).fill_null(False)
    return np.where(has_target.to_numpy(zero_copy_only=False), values, np.nan)


def predict_split(
    regressor: Predictor,
    store: Store,
    split: str,
    *,
    batch_size: int,
    seed: int,
    mass_bins: int = 8,
    progress: bool = False,
) -> Predictions:
    """Predict every image of a split for every target of the regressor.

    mass_bins: B of `Predictions.cumulative`.
    Raises `EvaluationError` for an empty split, images of another size, or a prediction that is not finite.
    """
    from rich.progress import track

    rows = split_rows(store, split)
    if len(rows) == 0:
        raise EvaluationError(
            f"{store.path}: no image belongs to the split {split!r}; give prepare.{split} a share above 0"
        )
    if tuple(regressor.shape) != tuple(store.shape):
        raise EvaluationError(
            f"{store.path} holds images of {store.shape[0]} x {store.shape[1]} pixels, the regressor takes "
            f"{regressor.shape[0]} x {regressor.shape[1]}: train it on this data set or evaluate on its own"
        )
    table = store.samples.select(["sample_id", "class"]).take(pa.array(rows))
    sample_id = table["sample_id"].to_pylist()
    truths = {target: true_values(store, rows, target) for target in regressor.targets}
    references: dict[str, Floats] = {}
    edges: dict[str, Floats] = {}
    scores: dict[str, list[Scores]] = {target: [] for target in regressor.targets}
    cumulative: dict[str, list[Floats]] = {target: [] for target in regressor.targets}
    probabilities = []
    starts = range(0, len(rows), batch_size)
    for start in track(starts, description=f"Predicting {split}", disable=not progress):
        batch = slice(start, start + batch_size)
        images = store.images(rows[batch])
        for target in regressor.targets:
            posterior = _predict(regressor, images, target, batch_size, sample_id[batch])
            if target not in references:
                edges[target] = posterior.edges
                references[target] = draw_references(posterior.edges, len(rows), seed)
            scores[target].append(score(posterior, truths[target][batch], references[target][batch]))
            bins = mass_edges(float(posterior.edges[0]), float(posterior.edges[-1]), mass_bins)
            cumulative[target].append(cumulative_at(posterior, bins))
        probabilities.append(posterior.class_probability)
    labels = {name: index for index, name in enumerate(CLASSES)}
    return Predictions(
        rows=rows,
        sample_id=sample_id,
        label=np.array([labels.get(name, -1) for name in table["class"].to_pylist()], dtype=np.intp),
        class_probability=np.concatenate(probabilities),
        scores={target: Scores.concatenate(parts) for target, parts in scores.items()},
        edges=edges,
        cumulative={target: np.concatenate(parts) for target, parts in cumulative.items()},
    )


def _predict(
    regressor: Predictor, images: NDArray[Any], target: str, batch_size: int, sample_id: list[str]
) -> Posterior:
    try:
        return regressor.predict(images, target=target, batch_size=batch_size)
    except PosteriorError as error:
        raise EvaluationError(
            f"no posterior of {target} for the images {sample_id[0]} to {sample_id[-1]} "
            f"(the rows below count from the first): {error}"
        ) from error


def prediction_table(predictions: Predictions) -> pa.Table:
    """`test_predictions.parquet`: a row an image, columns of the first target plain, of others prefixed.

    `truth`, `log_prob`, `pit` and `crps` are null where an image has no true value.
    """
    columns: dict[str, Any] = {
        "sample_id": predictions.sample_id,
        "class": [CLASSES[label] if label >= 0 else None for label in predictions.label],
    }
    for position, (target, scores) in enumerate(predictions.scores.items()):
        prefix = "" if position == 0 else f"{target}_"
        for name in ("truth", "median", "mean", "std", "q05", "q16", "q84", "q95", "log_prob", "pit", "crps"):
            columns[prefix + name] = pa.array(getattr(scores, name), from_pandas=True)
    for index, name in enumerate(CLASSES):
        columns[f"p_{name}"] = predictions.class_probability[:, index]
    return pa.table(columns)


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Write `prediction_table` as Parquet."""
    pq.write_table(prediction_table(predictions), path, compression="zstd")


def read_test_errors(path: str | Path) -> Floats:
    """(M,) absolute errors, in the order of the test split, of the images that have a true value.

    path: `test_predictions.parquet`. For the paired bootstrap of a promotion. Raises `EvaluationError`.
    """
    try:
        table = pq.read_table(path, columns=["median", "truth"])
    except (OSError, pa.ArrowException) as error:
        raise EvaluationError(f"{path}: not a table of test predictions ({error}); evaluate again") from error
    known = table.filter(pc.is_valid(table["truth"]))
    return np.abs(known["median"].to_numpy() - known["truth"].to_numpy())
