"""A training whose parameters change between epochs, in stretches that go on from each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.tracking.tracker import NullTracker
from darkarc.training import TrainResult, train
from darkarc.training.fingerprint import training_digest
from darkarc.training.schedule import EpochEnd, EpochHook, replay
from tests import unpickling

Settings = Callable[..., Config]
RATE = 2e-3


def steps(*changes: tuple[int, float]) -> list[dict[str, object]]:
    return [{"epoch": epoch, "values": {"train.learning_rate": rate}} for epoch, rate in changes]


class Killed(Exception):
    pass


def run(
    config: Config, prepared: Store, workdir: Path, *, until: int = 99, killed_after: int = 99
) -> tuple[TrainResult | None, list[int]]:
    """The result, None of a killed training, and the epochs that were trained; a hook ends it at `until`."""
    trained: list[int] = []

    def hook(end: EpochEnd) -> bool:
        trained.append(int(end.row["epoch"]))
        if trained[-1] == killed_after:
            raise Killed
        return trained[-1] >= until

    try:
        result = train(
            config, prepared, workdir=workdir, tracker=NullTracker(), progress=False, on_epoch=hook
        )
    except Killed:
        return None, trained
    return result, trained


def curves(result: TrainResult | None, column: str) -> list[float]:
    assert result is not None
    return [row[column] for row in result.history]


def test_a_schedule_without_a_change_is_the_plain_training(
    prepared: Store, settings: Settings, tmp_path: Path
) -> None:
    plain, _ = run(settings(epochs=4, learning_rate=RATE), prepared, tmp_path / "plain")
    config = settings(epochs=4, learning_rate=RATE, schedule=steps((1, RATE), (3, RATE)))
    found, trained = run(config, prepared, tmp_path / "schedule")
    assert trained == [1, 2, 3, 4]
    assert curves(found, "val_loss") == curves(plain, "val_loss")
    assert plain is not None and found is not None
    states = plain.regressor.state_dict(), found.regressor.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert found.digest == training_digest(config, prepared) != plain.digest


def test_a_change_holds_from_its_epoch_to_the_next_one(
    prepared: Store, settings: Settings, tmp_path: Path
) -> None:
    plain, _ = run(settings(epochs=4, learning_rate=RATE), prepared, tmp_path / "plain")
    config = settings(epochs=4, learning_rate=RATE, schedule=steps((1, RATE / 10), (3, RATE / 100)))
    found, _ = run(config, prepared, tmp_path / "schedule")
    assert plain is not None and found is not None
    expected = [
        rate / share for rate, share in zip(curves(plain, "learning_rate"), (1, 10, 10, 100), strict=True)
    ]
    assert curves(found, "learning_rate") == pytest.approx(expected)
    assert found.history[0]["val_loss"] == plain.history[0]["val_loss"]
    assert found.history[1]["train_loss"] != plain.history[1]["train_loss"]


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_after_a_kill_a_schedule_goes_on_where_it_was(
    killed_after: int, prepared: Store, settings: Settings, tmp_path: Path
) -> None:
    """Within a stretch or at the end of one; and once it is over, nothing is trained again."""
    config = settings(epochs=4, learning_rate=RATE, schedule=steps((1, RATE / 10), (3, RATE)))
    undisturbed, _ = run(config, prepared, tmp_path / "undisturbed")
    _, trained = run(config, prepared, tmp_path / "work", killed_after=killed_after)
    assert trained == list(range(1, killed_after + 1))
    again, trained = run(config, prepared, tmp_path / "work")
    assert trained == list(range(killed_after + 1, 5))
    assert curves(again, "val_loss") == curves(undisturbed, "val_loss")
    assert run(config, prepared, tmp_path / "work")[1] == []


def test_a_hook_that_runs_in_another_process_ends_it_too(
    prepared: Store, settings: Settings, tmp_path: Path
) -> None:
    """As with `train.workers`: what the hook has in memory there never comes back."""
    from ray import cloudpickle

    def elsewhere(config: Config, prepared: Store, *, on_epoch: EpochHook, **options: Any) -> TrainResult:
        sent = cloudpickle.dumps(on_epoch)
        return train(config, prepared, on_epoch=lambda end: cloudpickle.loads(sent)(end), **options)

    config = settings(epochs=4, schedule=steps((1, RATE), (3, RATE)))
    options = {"workdir": tmp_path, "tracker": NullTracker(), "progress": False, "profile": None}
    ended = replay(elsewhere, config, prepared, on_epoch=lambda end: end.row["epoch"] == 3, **options)
    assert curves(ended, "epoch") == [1, 2, 3]
    unpickling.found.clear()  # this test has, not the package
    again = replay(train, config, prepared, on_epoch=None, **options)
    assert curves(again, "epoch") == [1, 2, 3, 4], "another call asks its own hook"


@pytest.mark.parametrize("until", [1, 2, 3])
def test_a_hook_may_end_it_within_a_stretch_and_at_the_end_of_one(
    until: int, prepared: Store, settings: Settings, tmp_path: Path
) -> None:
    config = settings(epochs=4, schedule=steps((1, RATE), (3, RATE)))
    ended, trained = run(config, prepared, tmp_path / "work", until=until)
    assert trained == curves(ended, "epoch") == list(range(1, until + 1)), "and none that follows is begun"
