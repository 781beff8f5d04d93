"""`train.auxiliary_weight`: trains the backbone beside the targets, and is gone when training is over."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from darkarc.config import Config
from darkarc.data.augmentation import Augmentation
from darkarc.data.batches import Batch, ImageSource
from darkarc.data.store import Store
from darkarc.models import load_regressor, save_regressor
from darkarc.tracking.tracker import NullTracker
from darkarc.training import TrainResult, engine, new_regressor, train
from darkarc.training.checkpoints import newest_checkpoint
from darkarc.training.objectives import auxiliary_errors, label_counts, objective
from tests.training.conftest import write_prepared

Settings = Callable[..., Config]


@pytest.fixture
def lenses(tmp_path: Path) -> Store:
    """As `prepared`, with source positions, and with the angles of the axion lenses."""
    return write_prepared(tmp_path / "lenses", auxiliary=True)


def run(config: Config, prepared: Store, workdir: Path) -> TrainResult:
    return train(config, prepared, workdir=workdir, tracker=NullTracker(), progress=False)


def test_the_source_knows_positions_of_all_and_angles_of_axion_lenses(
    lenses: Store, settings: Settings
) -> None:
    source = ImageSource(lenses, "train", settings().targets)
    known = source.auxiliary.isfinite()
    assert known[:, :2].all()
    assert torch.equal(known[:, 2], source.classes == 0) and torch.equal(known[:, 3], source.classes == 0)
    batch = source.batch(torch.tensor([5, 0]))
    assert torch.equal(batch.auxiliary.nan_to_num(9.0), source.auxiliary[[5, 0]].nan_to_num(9.0))


def test_errors_are_squares_of_what_is_known() -> None:
    generator = torch.Generator().manual_seed(0)
    estimates, truth = torch.randn(2, 6, 4, generator=generator)
    truth[torch.rand(6, 4, generator=generator) < 0.4] = torch.nan
    estimates.requires_grad_()
    errors = auxiliary_errors(estimates, truth)
    expected = np.nan_to_num((estimates.detach().numpy() - truth.numpy()) ** 2)
    assert errors.detach().numpy() == pytest.approx(expected, rel=1e-6)
    errors.sum().backward()
    assert estimates.grad is not None and estimates.grad.isfinite().all()
    assert (estimates.grad[truth.isnan()] == 0).all() and (estimates.grad[~truth.isnan()] != 0).all()


def test_it_enters_the_objective_with_its_weight_and_only_while_training(
    lenses: Store, settings: Settings
) -> None:
    config = settings(auxiliary_weight=0.5)
    regressor = new_regressor(config, lenses).eval()
    source = ImageSource(lenses, "train", config.targets)
    batch = source.batch(torch.arange(16))
    without = objective(regressor, batch, config.train)
    regressor.attach_auxiliary(batch.auxiliary.shape[1])
    assert label_counts(batch)[2:].tolist() == batch.auxiliary.isfinite().sum(dim=0).tolist()
    untrained = batch.auxiliary.square().nanmean(dim=0).sum()  # the layer starts at 0
    total = objective(regressor, batch, config.train)
    assert total.item() == pytest.approx(without.item() + 0.5 * untrained.item(), rel=1e-5)
    regressor.drop_auxiliary()
    assert objective(regressor, batch, config.train).item() == without.item()


def test_it_changes_the_training_and_is_no_part_of_what_is_saved(
    lenses: Store, settings: Settings, tmp_path: Path
) -> None:
    plain = run(settings(epochs=2), lenses, tmp_path / "plain")
    result = run(settings(epochs=2, auxiliary_weight=1.0), lenses, tmp_path / "auxiliary")
    names = set(plain.regressor.state_dict())
    assert set(result.regressor.state_dict()) == names
    first = plain.regressor.backbone.state_dict(), result.regressor.backbone.state_dict()
    assert any(not torch.equal(first[0][name], first[1][name]) for name in first[0])
    # Validation and the kept weights go by the targets alone: the loss that is watched has no such term.
    assert set(result.history[0]) == set(plain.history[0])
    result.regressor.attach_auxiliary(4)
    images = torch.randn(3, 1, 12, 12)
    loaded = load_regressor(save_regressor(result.regressor, tmp_path / "saved"))
    assert set(loaded.state_dict()) == names
    assert np.array_equal(loaded.predict(images).density, result.regressor.predict(images).density)


def test_a_training_goes_on_with_the_auxiliary_layer_bit_for_bit(
    lenses: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load

    config = settings(epochs=3, auxiliary_weight=0.5)
    undisturbed = run(config, lenses, tmp_path / "undisturbed")
    original, done = engine.objective, 0

    def failing(*args: object) -> torch.Tensor:
        nonlocal done
        done += 1
        if done == 6:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(engine, "objective", failing)
    with pytest.raises(KeyboardInterrupt):
        run(config, lenses, tmp_path / "work")
    (folder,) = (tmp_path / "work").iterdir()
    newest = newest_checkpoint(folder)
    assert newest is not None
    weights = load((newest / "weights.safetensors").read_bytes())
    assert weights["auxiliary_layer.weight"].abs().sum() > 0
    monkeypatch.setattr(engine, "objective", original)
    again = run(config, lenses, tmp_path / "work")
    assert again.history == undisturbed.history
    states = again.regressor.state_dict(), undisturbed.regressor.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_truths_are_augmented_with_their_images(lenses: Store, settings: Settings) -> None:
    config = settings(dihedral="full")
    source = ImageSource(lenses, "train", config.targets)
    indices = torch.arange(40)
    fresh = source.batch(indices)
    turned = Augmentation.of(config, lenses)(fresh, indices, 3)
    radius = [batch.auxiliary[:, :2].norm(dim=1) for batch in (fresh, turned)]
    assert torch.allclose(*radius, rtol=1e-6)
    moved = (turned.images != fresh.images).flatten(1).any(dim=1)
    changed = (turned.auxiliary[:, :2] != fresh.auxiliary[:, :2]).any(dim=1)
    assert torch.equal(moved, changed) and 0 < moved.sum() < 40
    assert isinstance(turned, Batch)


def test_a_table_without_them_trains_on_and_says_so(
    prepared: Store, settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(settings(epochs=1, auxiliary_weight=0.5), prepared, tmp_path)
    assert "train.auxiliary_weight changes nothing" in capfd.readouterr().err
    assert math.isfinite(result.history[0]["train_loss"])
    plain = run(settings(epochs=1), prepared, tmp_path)
    assert "auxiliary" not in capfd.readouterr().err
    assert result.history[0]["train_loss"] == plain.history[0]["train_loss"]
