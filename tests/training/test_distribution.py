"""Two workers against one: the same bits of work, the same result to rounding."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from darkarc.config import Config, ConfigError
from darkarc.data.store import Store
from darkarc.tracking.tracker import NullTracker
from darkarc.training import TrainingError, TrainResult, train, workers
from darkarc.training.distribution import Workers
from darkarc.training.schedule import EpochEnd, EpochHook

Settings = Callable[..., Config]
PLAIN = {"dropout": 0.0, "stochastic_depth": 0.0}


class Recorder(NullTracker):
    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.points.append((step, dict(metrics)))


@pytest.fixture
def lonely_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """A group of one process: all of the machinery, nobody else."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # torch puts its own before it
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield Workers(torch.device("cpu"))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 5, 4)])
def test_the_norm_over_all_workers_is_torchs_with_its_gradients(
    lonely_group: Workers, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape) * 3 + 5
    results = []
    for whole in (False, True):
        inputs = x.clone().requires_grad_()
        weight, bias = torch.tensor([1.0, 2.0, -1.0]).requires_grad_(), torch.ones(3).requires_grad_()
        mean, variance = torch.zeros(3), torch.ones(3)
        arguments = (inputs, mean, variance, weight, bias, True, 0.3, 1e-5)
        if whole:
            with lonely_group.whole_batch():
                output = functional.batch_norm(*arguments)
        else:
            output = functional.batch_norm(*arguments)
        (output**3).sum().backward()
        results.append([output, mean, variance, inputs.grad, weight.grad, bias.grad])
    for theirs, ours in zip(*results, strict=True):
        assert torch.allclose(theirs, ours, rtol=1e-4, atol=1e-4)


def test_norms_that_are_frozen_or_have_no_weights_are_left_alone(lonely_group: Workers) -> None:
    x = torch.randn(4, 3, 2, 2)
    frozen, bare = nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3, affine=False, track_running_stats=False)
    expected = frozen(x), bare(x)
    with lonely_group.whole_batch():
        found = frozen(x), bare(x)
    assert torch.equal(expected[0], found[0]) and torch.allclose(expected[1], found[1], atol=1e-5)


def test_what_rank_0_decides_comes_back(lonely_group: Workers) -> None:
    row = {"loss": 0.1 + 0.2, "nan": float("inf")}
    assert lonely_group.agree(lambda: row) == row
    order = torch.arange(12)
    lonely_group.size = 3
    shares = []
    for lonely_group.rank in range(3):
        share, n = lonely_group.share(order, 6)
        assert n == 2
        shares.append(share)
    assert torch.stack(shares).T.reshape(2, 2, 3).transpose(1, 2).flatten().tolist() == order.tolist()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_workers_are_one_to_rounding(
    prepared: Store, settings: Settings, tmp_path: Path, ray_here: None, capfd: Any
) -> None:
    """Batch norms, masked targets, clipping, a moving average, resumption: two halves make the whole."""
    options: dict[str, Any] = {
        "epochs": 2,
        "ema": 0.9,
        "optimiser": "sgd",
        "learning_rate": 0.05,
        "freeze_norm": 0.5,
    }
    options["precision"] = "float32"  # bfloat16 rounds a thousand times as much
    one = train(
        settings(PLAIN, **options), prepared, workdir=tmp_path / "1", tracker=NullTracker(), progress=False
    )
    recorder = Recorder()
    config = settings(PLAIN, workers=2, **options)
    two = train(config, prepared, workdir=tmp_path / "2", tracker=recorder)
    assert len(two.history) == 2 and recorder.points == [(k + 1, row) for k, row in enumerate(two.history)], (
        "rank 0 alone tracks"
    )
    for ours, theirs in zip(two.history, one.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert close(one, two, 2e-5) and not equal(one, untrained(config, prepared))
    assert "epoch 2/2" in capfd.readouterr().err
    checkpoints = sorted(path.name for path in (tmp_path / "2").glob("*/step-*"))
    assert checkpoints == ["step-00000004", "step-00000008"]
    # Without its last epoch it goes on from the one before, to the same bits.
    (last,) = (tmp_path / "2").glob("*/step-00000008")
    (last / "weights.safetensors").write_bytes(b"damaged")
    again = train(config, prepared, workdir=tmp_path / "2", tracker=NullTracker())
    assert "going on after step 4" in " ".join(capfd.readouterr().err.split())
    assert equal(again, two) and again.history == two.history


@pytest.mark.slow
@pytest.mark.drill
@pytest.mark.timeout(500)
def test_a_killed_worker_is_replaced_and_training_goes_on_from_its_checkpoint(
    prepared: Store, settings: Settings, tmp_path: Path, ray_here: None
) -> None:
    config = settings(PLAIN, workers=2, epochs=3, precision="float32")
    struck = tmp_path / "struck"

    def strike(end: EpochEnd) -> bool:
        if end.row["epoch"] == 2 and not struck.exists():
            struck.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    def trained(name: str, on_epoch: EpochHook | None) -> tuple[TrainResult, Recorder]:
        recorder = Recorder()
        result = train(
            config, prepared, workdir=tmp_path / name, tracker=recorder, progress=False, on_epoch=on_epoch
        )
        return result, recorder

    result, recorder = trained("struck-work", strike)
    assert struck.read_text() != str(os.getpid()), "a worker of its own"
    undisturbed, _ = trained("undisturbed", None)
    assert equal(result, undisturbed) and result.history == undisturbed.history
    assert [step for step, _ in recorder.points] == [1, 2, 3], "no epoch again"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_mistake_in_the_workers_is_told_here(
    prepared: Store, settings: Settings, tmp_path: Path, ray_here: None
) -> None:
    config = settings(PLAIN, workers=2, label_sigma_dex=20.0)
    config = config.model_copy(update={"model": config.model.model_copy(update={"head": "gaussian"})})
    with pytest.raises(TrainingError, match=r"untrained, the loss should be about the prior's 0.69 nats"):
        train(config, prepared, workdir=tmp_path, tracker=NullTracker(), progress=False)


def test_more_workers_than_cores_are_refused(
    prepared: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever the other tests have started
    config = settings(PLAIN, workers=512, batch_size=512)
    with pytest.raises(TrainingError, match=r"train.workers is 512, but this machine has \d+ cores"):
        train(config, prepared, workdir=tmp_path, tracker=NullTracker(), progress=False)


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for the second one for ever."""
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(workers, "start_local_ray", lambda *arguments: None)
    with (
        pytest.raises(TrainingError, match=r"train.workers is 2, but this machine has 1 GPUs"),
        workers._ray(2, on_gpu=True),
    ):
        pass
    with workers._ray(2, on_gpu=False):
        pass


def test_batches_that_cannot_be_shared_are_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="batch_size 16 cannot be shared equally by 3 workers"):
        settings(workers=3)


def untrained(config: Config, prepared: Store) -> Any:
    from darkarc.training import new_regressor

    return TrainResult(new_regressor(config, prepared), [], 0, False, "")


def close(a: TrainResult, b: TrainResult, tolerance: float) -> bool:
    return all(torch.allclose(x, y, rtol=tolerance, atol=tolerance) for x, y in pairs(a, b))


def equal(a: TrainResult, b: TrainResult) -> bool:
    return all(torch.equal(x, y) for x, y in pairs(a, b))


def pairs(a: TrainResult, b: TrainResult) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    states = a.regressor.state_dict(), b.regressor.state_dict()
    return zip(states[0].values(), states[1].values(), strict=True)
