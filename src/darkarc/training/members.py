"""Deep ensembles: the same training with other seeds, one after the other, then one regressor."""

from collections.abc import Mapping
from pathlib import Path

from darkarc.config import SEEDS, Config
from darkarc.data.store import Store
from darkarc.models.ensemble import Ensemble
from darkarc.tracking.tracker import NullTracker, Tracker
from darkarc.training.engine import TrainResult, train
from darkarc.training.fingerprint import training_digest


def train_members(
    config: Config,
    prepared: Store,
    *,
    workdir: Path,
    tracker: Tracker,
    progress: bool = True,
    profile: Path | None = None,
) -> TrainResult:
    """Train `train.members` regressors with the seeds seed, seed + 1, … and join them.

    After a kill the same call goes on in the member that was interrupted. The history's rows are means over
    the members that reached the epoch; each member's own curves go to the tracker as `member_<k>/…`.
    `profile` as of `train`, of the first member.
    """
    if config.train.members == 1:
        return train(config, prepared, workdir=workdir, tracker=tracker, progress=progress, profile=profile)
    results = [
        train(
            member_config(config, k),
            prepared,
            workdir=workdir,
            tracker=_MemberTracker(tracker, k),
            progress=progress,
            profile=profile if k == 0 else None,
        )
        for k in range(config.train.members)
    ]
    history = _mean_history([result.history for result in results])
    best = min(history, key=lambda row: row["val_loss"])
    return TrainResult(
        regressor=Ensemble.of([result.regressor for result in results]),
        history=history,
        best_epoch=int(best["epoch"]),
        stopped_early=any(result.stopped_early for result in results),
        digest=training_digest(config, prepared),
    )


def member_config(config: Config, k: int) -> Config:
    """The parameters of member k: a single training with a seed of its own."""
    train_section = config.train.model_copy(update={"members": 1})
    return config.model_copy(update={"seed": (config.seed + k) % SEEDS, "train": train_section})


class _MemberTracker(NullTracker):
    """Puts the curves of one member below a name of its own; the rest is the ensemble's."""

    def __init__(self, tracker: Tracker, k: int) -> None:
        self._tracker, self._k = tracker, k

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._tracker.log_metrics({f"member_{self._k}/{name}": x for name, x in metrics.items()}, step)


def _mean_history(histories: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """Row by row the mean over the histories that have it."""
    rows = []
    for position in range(max(len(history) for history in histories)):
        own = [history[position] for history in histories if len(history) > position]
        rows.append({name: sum(row[name] for row in own) / len(own) for name in own[0]})
    return rows
