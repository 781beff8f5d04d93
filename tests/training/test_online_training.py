"""Training on images straight from the simulator: deterministic, resumable, wired to the configuration."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from darkarc.config import Config
from darkarc.data.generate import generate
from darkarc.data.online import OnlineSource
from darkarc.data.prepare import prepare
from darkarc.data.store import Store
from darkarc.tracking.tracker import NullTracker
from darkarc.training import TrainingInterrupted, TrainResult, engine, train, training_digest
from tests.data.test_online import config as online_config

TRAIN = {"epochs": 2, "batch_size": 16}
MODEL = {"width": 0.25, "bins": 32, "dropout": 0.1}


def config(**tree: Any) -> Config:
    return online_config(train=TRAIN, model=MODEL, **tree)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("online")
    return prepare(generate(config(), folder / "raw", progress=False), folder / "prepared", config())


def run(settings: Config, prepared: Store, workdir: Path) -> TrainResult:
    return train(settings, prepared, workdir=workdir, tracker=NullTracker(), progress=False)


def same(a: TrainResult, b: TrainResult) -> bool:
    states = a.regressor.state_dict(), b.regressor.state_dict()
    return a.history == b.history and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_it_goes_on_after_a_signal_to_the_same_bits(
    prepared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(data={"epoch_images": 48})
    undisturbed = run(settings, prepared, tmp_path / "undisturbed")
    assert not same(undisturbed, run(config(data={"source": "simulated"}), prepared, tmp_path / "stored"))
    objective, done = engine.objective, 0

    def signalled(*args: Any) -> torch.Tensor:
        nonlocal done
        done += 1
        if done == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return objective(*args)

    monkeypatch.setattr(engine, "objective", signalled)
    with pytest.raises(TrainingInterrupted, match="SIGTERM after step 4 of 6"):
        run(settings, prepared, tmp_path / "work")
    assert same(run(settings, prepared, tmp_path / "work"), undisturbed)
    assert done == 6


def test_no_image_of_the_stores_train_split_is_read(
    prepared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each step's batch is new: the images of two epochs differ."""
    seen = []
    batches = OnlineSource.batches

    def recorded(*args: Any) -> Any:
        for indices, batch in batches(*args):
            seen.append(batch.images.clone())
            yield indices, batch

    monkeypatch.setattr(OnlineSource, "batches", recorded)
    monkeypatch.setattr(Store, "images", _refuse_train(Store.images, prepared))
    run(config(data={"epoch_images": 32}), prepared, tmp_path)
    images = torch.cat(seen)
    assert len({image.numpy().tobytes() for image in images}) == len(images) == 64


def _refuse_train(images: Any, prepared: Store) -> Any:
    train = {row for row, split in enumerate(prepared.samples["split"].to_pylist()) if split == "train"}

    def checked(self: Store, rows: Any) -> Any:
        assert not train & set(rows.tolist())
        return images(self, rows)

    return checked


def test_every_key_of_the_source_names_another_training(prepared: Store) -> None:
    plain = training_digest(config(), prepared)
    for other in (
        config(data={"epoch_images": 5}),
        config(data={"source": "simulated"}),
        config(simulate={"n_cdm": 99}),
    ):
        assert training_digest(other, prepared) != plain
    stored = config(data={"source": "simulated"})
    assert training_digest(stored, prepared) == training_digest(
        config(data={"source": "simulated", "epoch_images": 5}, simulate={"n_cdm": 99}), prepared
    )
