"""Training on images straight from the simulator: deterministic, resumable, wired to the configuration."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkarc.config import Config
from darkarc.data.batches import BatchError
from darkarc.data.generate import generate
from darkarc.data.online import OnlineSource
from darkarc.data.prepare import prepare
from darkarc.data.store import Store
from darkarc.tracking.tracker import NullTracker
from darkarc.training import (
    TrainingError,
    TrainingInterrupted,
    TrainResult,
    engine,
    new_regressor,
    train,
    training_digest,
)
from tests.data.test_online import config as online_config

TRAIN = {"epochs": 2, "batch_size": 16}
MODEL = {"width": 0.25, "bins": 32, "dropout": 0.1}


def config(**tree: Any) -> Config:
    return online_config(**({"train": TRAIN, "model": MODEL} | tree))


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


@pytest.mark.parametrize(
    "change",
    [
        {"train": TRAIN | {"epochs": 1, "noise_augmentation": 3.0}},
        {"train": TRAIN | {"epochs": 1, "rotation": 4.0, "shift_pixels": 2}},
        {"model": MODEL | {"residual": 3}},
    ],
    ids=["noise", "geometry", "residual"],
)
def test_augmentation_and_residual_change_training_and_not_evaluation(
    prepared: Store, tmp_path: Path, change: dict[str, Any]
) -> None:
    base = {"data": {"source": "simulated"}, "train": TRAIN | {"epochs": 1}, "model": MODEL}
    plain = run(online_config(**base), prepared, tmp_path / "plain")
    changed = run(online_config(**(base | change)), prepared, tmp_path / "changed")
    assert plain.digest != changed.digest
    assert plain.history[0]["train_loss"] != changed.history[0]["train_loss"]
    images = prepared.images(np.arange(4))
    answers = [changed.regressor.predict(images).density for _ in range(2)]
    assert np.array_equal(*answers)


def test_the_residual_channel_is_fitted_to_the_train_splits_smooth_lenses(prepared: Store) -> None:
    settings = config(
        model=MODEL | {"residual": 3}, train=TRAIN | {"dihedral": "none"}, data={"source": "simulated"}
    )
    made = new_regressor(settings, prepared).standardise
    table = prepared.samples.to_pandas()
    train = (table["split"] == "train").to_numpy()
    smooth = torch.from_numpy(prepared.images(np.flatnonzero(train & (table["class"] == "no_sub"))))[:, None]
    every = torch.from_numpy(prepared.images(np.flatnonzero(train)))[:, None]
    rest, whole = (made(every)[:, k].square().mean() for k in (-1, 0))
    assert float(rest) == pytest.approx(1, rel=1e-3)
    # Three components leave a small part of the brightness.
    assert made.residual is not None
    assert float(made(smooth)[:, -1].std() * made.residual.deviation) < 0.5 * float(whole.sqrt())
    assert torch.equal(
        new_regressor(settings, prepared).standardise.residual.components, made.residual.components
    )
    too_many = config(model=MODEL | {"residual": 100})
    with pytest.raises(
        BatchError, match=r"give it more of them \(simulate.n_no_sub\), or set model.residual"
    ):
        new_regressor(too_many, prepared)


@pytest.mark.parametrize("moved", [{"rotation": 3.0}, {"shift_pixels": 1}], ids=["rotation", "shift"])
def test_a_lens_that_is_moved_is_not_fitted_where_it_stood(prepared: Store, moved: dict[str, Any]) -> None:
    lenses = [
        new_regressor(config(train=TRAIN | train), prepared).spec.model["lens_residual"]
        for train in ({}, moved, {"noise_augmentation": 1.0})
    ]
    assert lenses == ["compact", "none", "compact"]
    with pytest.raises(TrainingError, match=r"train.rotation or train.shift_pixels moves it: set those to 0"):
        new_regressor(config(train=TRAIN | moved, model=MODEL | {"lens_residual": "compact"}), prepared)
