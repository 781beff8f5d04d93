"""Averages of weights against torch's own, and what validation and the saved model use."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from darkarc.config import Config, ConfigError
from darkarc.data.batches import ImageSource
from darkarc.data.store import Store
from darkarc.models import Regressor
from darkarc.tracking.tracker import NullTracker
from darkarc.training import new_regressor, train
from darkarc.training.averaging import WeightAverage, estimate_statistics
from darkarc.training.objectives import validate

Settings = Callable[..., Config]


def shaken(regressor: Regressor, step: int) -> None:
    torch.manual_seed(step)
    with torch.no_grad():
        for name, value in regressor.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value += 1
            elif "running" in name or name in dict(regressor.named_parameters()):
                value += 0.1 * torch.randn_like(value)


def close(a: nn.Module, b: nn.Module) -> bool:
    """Tensors of real numbers agree to rounding."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in pairs if x.is_floating_point())


def test_the_moving_average_is_torchs_once_it_is_warm(prepared: Store, settings: Settings) -> None:
    regressor = new_regressor(settings(), prepared)
    ours = WeightAverage(regressor, settings(ema=0.6).train)
    theirs = AveragedModel(regressor, multi_avg_fn=_lerp(0.6), use_buffers=True)
    theirs.update_parameters(regressor)  # its first call copies
    for step in range(14, 20):  # from 14 steps on, 14 / 23 > 0.6
        shaken(regressor, step)
        ours.after_step(regressor, step)
        theirs.update_parameters(regressor)
    assert ours.average is not None and close(ours.average, theirs.module)
    assert not close(ours.average, regressor)
    early = WeightAverage(regressor, settings(ema=0.999).train)
    shaken(regressor, 1)
    early.after_step(regressor, 1)  # of the untrained weights a tenth is left
    assert early.average is not None
    weight, new = early.average.target_layer.weight, regressor.target_layer.weight
    old = ours.average.target_layer.weight
    assert (weight - new).abs().max() < 0.2 * (new - old).abs().max()


def _lerp(decay: float) -> Callable[..., None]:
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    return get_ema_multi_avg_fn(decay)


def test_stochastic_weight_averaging_is_torchs_with_its_norms_estimated_anew(
    prepared: Store, settings: Settings
) -> None:
    regressor = new_regressor(settings(model={"dropout": 0.0, "stochastic_depth": 0.0}), prepared)
    ours = WeightAverage(regressor, settings(epochs=4, swa=0.75).train)
    theirs = AveragedModel(regressor)
    images = list(torch.randn(3, 16, 1, 12, 12))
    for epoch in range(4):
        shaken(regressor, epoch)
        answering = ours.after_epoch(regressor, epoch, iter(images))
        assert (answering is regressor) == (epoch == 0)
        if epoch > 0:
            theirs.update_parameters(regressor)
    update_bn([(batch,) for batch in images], theirs)
    assert answering is ours.average and not answering.training
    assert close(answering, theirs.module)


def test_without_an_average_the_weights_answer(prepared: Store, settings: Settings) -> None:
    regressor = new_regressor(settings(), prepared)
    plain = WeightAverage(regressor, settings().train)
    plain.after_step(regressor, 1)
    assert plain.after_epoch(regressor, 0, []) is regressor and plain.state == {}


def test_estimated_statistics_are_those_of_the_images(prepared: Store, settings: Settings) -> None:
    regressor = new_regressor(settings(), prepared)
    images = torch.randn(64, 1, 12, 12) * 3 + 1
    estimate_statistics(regressor, images.split(16))
    stem = regressor.backbone.stem
    activations = stem[0](regressor.standardise(images))
    assert stem[1].running_mean == pytest.approx(activations.mean(dim=(0, 2, 3)).detach(), abs=1e-5)
    assert not regressor.training or not stem[1].training


@pytest.mark.parametrize("average", [{"ema": 0.9}, {"swa": 0.5}])
def test_validation_and_the_result_use_the_average(
    prepared: Store, settings: Settings, tmp_path: Path, average: dict[str, float]
) -> None:
    config = settings(epochs=4, **average)
    answered = []
    result = train(
        config,
        prepared,
        workdir=tmp_path,
        tracker=NullTracker(),
        progress=False,
        on_epoch=lambda end: answered.append(end.regressor) or False,
    )
    source = ImageSource(prepared, "validation", config.targets)
    again = validate(result.regressor, source, config.train)["val_loss"]
    assert again == pytest.approx(result.history[result.best_epoch - 1]["val_loss"], rel=1e-5)
    plain = train(settings(epochs=4), prepared, workdir=tmp_path, tracker=NullTracker(), progress=False)
    assert [row["train_loss"] for row in plain.history] == [row["train_loss"] for row in result.history]
    assert plain.history[-1]["val_loss"] != result.history[-1]["val_loss"]
    assert answered[-1] is not None and not answered[-1].training


def test_two_averages_at_once_are_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"ema is 0.9 and swa 0.5: one average answers, set one to 0"):
        settings(ema=0.9, swa=0.5)
