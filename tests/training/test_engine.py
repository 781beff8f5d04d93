import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.tracking.tracker import NullTracker
from darkarc.training import TrainingError, TrainResult, engine, train
from tests.training.conftest import write_prepared

Settings = Callable[..., Config]


class Recorder(NullTracker):
    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.points.append((step, dict(metrics)))


def run(config: Config, prepared: Store, workdir: Path, **options: Any) -> TrainResult:
    return train(config, prepared, workdir=workdir, tracker=NullTracker(), progress=False, **options)


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return result.regressor.state_dict()


def same(a: TrainResult, b: TrainResult) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def test_it_learns(prepared: Store, settings: Settings, tmp_path: Path) -> None:
    recorder = Recorder()
    config = settings(epochs=40, learning_rate=1e-2, model={"dropout": 0.0, "stochastic_depth": 0.0})
    result = train(config, prepared, workdir=tmp_path, tracker=recorder, progress=False)
    # A constant guess scores 0.5 dex; the blob's width gives the target to about 0.05.
    assert min(row["val_mae_dex"] for row in result.history) < 0.25
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"] - 0.5
    losses = [row["val_loss"] for row in result.history]
    assert result.best_epoch == 1 + losses.index(min(losses))
    assert [step for step, _ in recorder.points] == list(range(1, 41))
    assert recorder.points[0][1] == result.history[0]
    assert set(result.history[0]) == {
        "epoch",
        "learning_rate",
        "train_loss",
        "val_loss",
        "val_mae_dex",
        "val_class_accuracy",
    }


def test_the_best_epochs_weights_come_back(prepared: Store, settings: Settings, tmp_path: Path) -> None:
    from darkarc.data.batches import ImageSource
    from darkarc.training.objectives import validate

    # A rate this high makes a later epoch worse than an earlier one; of some seeds, the last is not the best.
    for seed in range(8):
        config = settings(
            epochs=8, seed=seed, learning_rate=0.1, policy="plateau", plateau_patience=9, freeze_norm=0.0
        )
        result = run(config, prepared, tmp_path / str(seed))
        if result.best_epoch < len(result.history):
            break
    best = result.history[result.best_epoch - 1]["val_loss"]
    assert best == min(row["val_loss"] for row in result.history)
    source = ImageSource(prepared, "validation", config.targets)
    again = validate(result.regressor, source, config.train)["val_loss"]
    assert again == pytest.approx(best, rel=1e-5)


def test_the_same_call_gives_the_same_bits_and_leaves_torchs_generator_alone(
    prepared: Store, settings: Settings, tmp_path: Path
) -> None:
    config = settings(epochs=2)
    torch.manual_seed(1)
    first = run(config, prepared, tmp_path / "a")
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)
    torch.manual_seed(2)
    second = run(config, prepared, tmp_path / "b")
    assert same(first, second) and first.history == second.history
    mapped = config.model_copy(update={"data": config.data.model_copy(update={"memory_gb": 1e-9})})
    assert same(first, run(mapped, prepared, tmp_path / "c"))


BASE = {"epochs": 2, "policy": "one_cycle"}
FLAT = {"epochs": 4, "policy": "plateau", "learning_rate": 1e-30, "plateau_patience": 0}


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (BASE, {"epochs": 3}),
        (BASE, {"batch_size": 8}),
        (BASE, {"learning_rate": 2e-3}),
        (BASE, {"weight_decay": 0.5}),
        (BASE, {"optimiser": "sgd"}),
        (BASE, {"optimiser": "lamb"}),
        (BASE, {"optimiser": "lion"}),
        (BASE, {"optimiser": "muon"}),
        (BASE | {"optimiser": "sgd"}, {"momentum": 0.5}),
        (BASE, {"betas": [0.5, 0.9]}),
        (BASE, {"policy": "plateau"}),
        (BASE, {"policy": "cyclic"}),
        (BASE | {"warmup": 0.6}, {"policy": "cosine"}),
        (BASE, {"policy": "constant"}),
        (BASE | {"policy": "cyclic"}, {"cycles": 1}),
        (BASE, {"accumulate": 2}),
        (BASE, {"ema": 0.9}),
        (BASE, {"swa": 1.0}),
        (BASE, {"warmup": 0.9}),
        (BASE, {"label_sigma_dex": 0.2}),
        (BASE, {"class_weight": 2.0}),
        (BASE | {"precision": "float32"}, {"precision": "bfloat16"}),
        (BASE, {"gradient_clip": 1e-6}),
        (BASE, {"freeze_norm": 1.0}),
        (BASE, {"dihedral": "none"}),
        (BASE, {"dihedral": "full"}),
        (BASE, {"rotation": 5.0}),
        (BASE, {"shift_pixels": 1}),
        (FLAT, {"plateau_factor": 0.7}),
        (FLAT, {"plateau_patience": 2}),
        (FLAT, {"early_stopping": 1}),
    ],
    ids=lambda value: ",".join(value) if len(value) == 1 else "",
)
def test_every_key_of_the_train_section_changes_the_training(
    prepared: Store, settings: Settings, tmp_path: Path, base: dict, change: dict
) -> None:
    plain = run(settings(**base), prepared, tmp_path)
    changed = run(settings(**{**base, **change}), prepared, tmp_path)
    assert plain.digest != changed.digest
    rates = [[row["learning_rate"] for row in result.history] for result in (plain, changed)]
    assert rates[0] != rates[1] or not same(plain, changed)


@pytest.mark.parametrize("head", ["binned", "gaussian"])
@pytest.mark.parametrize("seed", [0, 9])
def test_seed_and_head_reach_the_weights(
    prepared: Store, settings: Settings, tmp_path: Path, head: str, seed: int
) -> None:
    result = run(settings(epochs=1, seed=seed, model={"head": head}), prepared, tmp_path)
    other = run(settings(epochs=1, seed=seed + 1, model={"head": head}), prepared, tmp_path)
    assert not same(result, other)
    assert math.isfinite(result.history[0]["val_loss"])


def test_early_stopping_ends_and_says_so(prepared: Store, settings: Settings, tmp_path: Path) -> None:
    result = run(settings(**{**FLAT, "epochs": 50, "early_stopping": 3}), prepared, tmp_path)
    assert result.stopped_early
    assert len(result.history) == result.best_epoch + 3
    assert not run(settings(**FLAT), prepared, tmp_path).stopped_early


def test_a_loss_that_is_not_finite_stops_with_the_reason(
    prepared: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.objective
    monkeypatch.setattr(engine, "objective", lambda *args: real(*args) * float("nan"))
    with pytest.raises(TrainingError, match=r"loss became nan in epoch 1 .* lower train.learning_rate"):
        run(settings(), prepared, tmp_path)
    assert not list(tmp_path.glob("*/step-*"))


def breaks(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The loss of these steps, counted over the whole process, is not finite."""
    real, done = engine.objective, 0

    def breaking(*args: Any) -> torch.Tensor:
        nonlocal done
        done += 1
        return real(*args) * (float("inf") if done in steps else 1.0)

    monkeypatch.setattr(engine, "objective", breaking)


ROLLBACK = {"epochs": 3, "policy": "constant", "on_nonfinite": "rollback"}


@pytest.mark.parametrize("broken", [2, 7])
def test_a_rollback_goes_on_from_the_checkpoint_at_a_lower_rate(
    prepared: Store,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    broken: int,
) -> None:
    config = settings(**ROLLBACK, rollback_factor=0.1)
    with monkeypatch.context() as patch:
        breaks(patch, broken)
        result = run(config, prepared, tmp_path / "broken")
    said = " ".join(capfd.readouterr().err.split())
    epoch = 1 + (broken - 1) // 4
    assert f"became inf in epoch {epoch}" in said or f"became nan in epoch {epoch}" in said
    assert f"going back to step {4 * (epoch - 1)}, with the rate times 0.1 (rollback 1 of at most 3)" in said
    rates = [row["learning_rate"] / 4e-3 for row in result.history]
    assert rates == pytest.approx([1.0] * (epoch - 1) + [0.1] * (4 - epoch))
    assert [row["rollbacks"] for row in result.history] == [0.0] * (epoch - 1) + [1.0] * (4 - epoch)
    assert all(value.isfinite().all() for value in weights(result).values())
    # From the checkpoint on it is a training at that rate: nothing of the broken epoch is left.
    if epoch == 1:
        plain = run(settings(**{**ROLLBACK, "learning_rate": 4e-4}), prepared, tmp_path / "plain")
        assert same(plain, result)


def test_after_too_many_rollbacks_it_stops(
    prepared: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch, *range(6, 99))
    with pytest.raises(TrainingError, match=r"in epoch 2 at a learning rate of 0.001 after 2 rollbacks"):
        run(settings(**ROLLBACK, rollback_limit=2), prepared, tmp_path)


def breaks_held_out(monkeypatch: pytest.MonkeyPatch, *passes: int) -> None:
    """The validation loss of these passes, counted over the whole process, is not finite."""
    real, done = engine.validate, 0

    def breaking(*args: Any) -> dict[str, float]:
        nonlocal done
        done += 1
        return real(*args) | ({"val_loss": float("nan")} if done in passes else {})

    monkeypatch.setattr(engine, "validate", breaking)


def test_a_validation_loss_that_is_not_finite_stops_with_the_reason(
    prepared: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks_held_out(monkeypatch, 2, 3)
    with pytest.raises(TrainingError, match=r"validation loss became nan in epoch 2 .* train.learning_rate"):
        run(settings(), prepared, tmp_path)
    assert [path.name for path in tmp_path.glob("*/step-*")] == ["step-00000004"], "the epoch before is kept"


def test_a_validation_loss_that_is_not_finite_is_rolled_back(
    prepared: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        breaks_held_out(patch, 1)
        result = run(settings(**ROLLBACK, rollback_factor=0.1, ema=0.5), prepared, tmp_path / "broken")
    assert [row["rollbacks"] for row in result.history] == [1.0, 1.0, 1.0]
    plain = settings(**ROLLBACK | {"learning_rate": 4e-4}, ema=0.5)
    assert same(run(plain, prepared, tmp_path / "plain"), result)
    assert result.best_epoch > 0


def test_a_weight_that_breaks_in_the_last_step_is_noticed(
    prepared: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(parameters: Any, limit: float) -> None:
        for parameter in parameters:
            parameter.grad.fill_(float("inf"))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflowing)
    with pytest.raises(TrainingError, match=r"a weight became infinite or nan in epoch 1"):
        run(settings(epochs=1, batch_size=70), prepared, tmp_path)


def test_a_label_wider_than_the_prior_is_noticed_before_training(
    prepared: Store, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"untrained, the loss should be about the prior's 0.69 nats"):
        run(settings(label_sigma_dex=20.0, model={"head": "gaussian"}), prepared, tmp_path)


def test_an_unusable_device_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(TrainingError, match="set device to auto or cpu"):
        engine.choose_device("cuda")
    assert engine.choose_device("auto") == torch.device("cpu")


def test_float32_is_float32_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    engine.choose_device("cpu")
    assert torch.backends.cudnn.allow_tf32
    assert engine.choose_device("auto") == torch.device("cuda", 1)
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.gpu
def test_it_trains_on_a_gpu(prepared: Store, settings: Settings, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    config = settings(epochs=2).model_copy(update={"device": "cuda"})
    result = run(config, prepared, tmp_path)
    assert next(result.regressor.parameters()).is_cuda and len(result.history) == 2


def test_other_data_is_another_training(settings: Settings, tmp_path: Path) -> None:
    config = settings(epochs=1)
    first = run(config, write_prepared(tmp_path / "one", seed=1), tmp_path / "work")
    second = run(config, write_prepared(tmp_path / "two", seed=2), tmp_path / "work")
    assert first.digest != second.digest and not same(first, second)


def test_into_a_pipe_it_says_one_line_an_epoch(
    prepared: Store, settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(settings(epochs=2), prepared, workdir=tmp_path, tracker=NullTracker())
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2/2") and "val MAE" in lines[1]


def test_batch_norm_statistics_stay_in_the_last_epochs(
    prepared: Store, settings: Settings, tmp_path: Path
) -> None:
    """A prefix of epochs ends with the statistics that the whole training keeps."""
    frozen = run(settings(epochs=4, freeze_norm=1.0), prepared, tmp_path)
    moved = run(settings(epochs=4, freeze_norm=0.0), prepared, tmp_path)
    means = {
        name: [v for key, v in result.regressor.state_dict().items() if key.endswith("running_mean")]
        for name, result in (("frozen", frozen), ("moved", moved))
    }
    assert means["frozen"] and all(bool((mean == 0).all()) for mean in means["frozen"])
    assert all(bool((mean != 0).any()) for mean in means["moved"])
