"""The learning-rate range test (Smith, arXiv:1506.01186): a short training whose rate rises exponentially."""

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from darkarc.config import Config
from darkarc.data.batches import Batch, epoch_order
from darkarc.data.store import Store
from darkarc.data.train_images import TrainImages
from darkarc.durable import write_file
from darkarc.models import Regressor
from darkarc.tracking import start_run
from darkarc.tracking.tracker import Tracker
from darkarc.training.assembly import TrainingError, choose_device, prepared_regressor
from darkarc.training.display import Display, Silent, Terminal
from darkarc.training.distribution import Alone
from darkarc.training.engine import (
    Plan,
    step_seed,
    take_step,
)
from darkarc.training.optimisers import build_optimiser
from darkarc.training.profiling import NoClock

WORK = Path(".darkarc/lr-range")
MEMORY = 0.9
"""Of the moving average that smooths the losses: about ten steps."""
LOOK_EVERY = 10
"""Steps between two looks at whether the losses have left: each waits for the device."""


@dataclass(frozen=True)
class RangeTest:
    """rates and losses of each step; smoothed: their moving average, without its bias to 0.

    steepest: the rate at which the smoothed loss falls fastest; tenth: a tenth of the rate at which it
    is least. suggestion: the one to set, `tenth` unless the loss fell fastest above it.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float
    tenth: float

    @property
    def suggestion(self) -> float:
        return max(self.steepest, self.tenth)


def range_test(
    config: Config,
    prepared: Store,
    *,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 200,
    progress: bool = True,
) -> RangeTest:
    """Train for `steps` steps on the train split, at rates from `low` to `high`, each a fixed factor above
    the one before; stops when the loss has left for good.

    The network, optimiser, augmentation and order are those that `train` would use; nothing is kept.
    Raises `TrainingError` for a range that is none, or in which the loss never falls.
    """
    if not (0 < low < high and steps >= 2 * LOOK_EVERY):
        raise TrainingError(
            f"expected 0 < low < high and {2 * LOOK_EVERY} steps or more, found {low:g}, {high:g} and {steps}"
        )
    device = choose_device(config.device)
    source = TrainImages.of(config, prepared, device)
    rates = [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        regressor = prepared_regressor(config, prepared, device)
        if progress:
            with Terminal(1, next(iter(config.targets)), "range test") as display:
                losses = _ramp(config, regressor, source, rates, display)
        else:
            losses = _ramp(config, regressor, source, rates, Silent())
    return analyse(rates, losses)


def _ramp(
    config: Config, regressor: Regressor, source: TrainImages, rates: list[float], display: Display
) -> list[float]:
    """The loss before each step; fewer than rates where it left."""
    settings, seed = config.train, config.seed
    optimiser = build_optimiser(regressor, settings)
    losses: list[torch.Tensor] = []
    display.begin(len(rates))
    regressor.train()
    for step, (rate, batch) in enumerate(zip(rates, _batches(config, source), strict=False)):
        torch.manual_seed(step_seed(seed, step))
        losses.append(take_step(regressor, optimiser, batch, rate, settings, Alone(), NoClock()))
        display.advance(step + 1)
        if (step + 1) % LOOK_EVERY == 0 and _has_left(torch.stack(losses).tolist()):
            break
    return [float(loss) for loss in torch.stack(losses).tolist()]


def _batches(config: Config, source: TrainImages) -> Iterator[Batch]:
    """Augmented batches, epoch after epoch."""
    plan = Plan.of(config.train, len(source))
    for epoch in itertools.count():
        order = epoch_order(config.seed, epoch, len(source), source.device)
        order = order[: plan.steps_per_epoch * plan.batch_size]
        for indices, batch in source.batches(epoch, order, plan.batch_size):
            yield source.augmented(batch, indices, epoch)


def _has_left(losses: list[float]) -> bool:
    """Not finite any more, or further above the start than the start was above the best, and a nat more."""
    if not math.isfinite(sum(losses)):
        return True
    smoothed = smooth(losses)
    start, best = smoothed[0], min(smoothed)
    return smoothed[-1] > start + (start - best) + 1.0


def smooth(losses: list[float]) -> list[float]:
    """Exponential moving average over steps, divided by its weights' sum."""
    mean, smoothed = 0.0, []
    for step, loss in enumerate(losses, start=1):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        smoothed.append(mean / (1 - MEMORY**step))
    return smoothed


def analyse(rates: list[float], losses: list[float]) -> RangeTest:
    """What a ramp says; only its finite beginning counts. Raises `TrainingError` if the loss never fell."""
    finite = next((k for k, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    rates, losses = rates[:finite], losses[:finite]
    smoothed = smooth(losses)
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__) if smoothed else 0
    if lowest < 2:
        raise TrainingError(
            f"the loss rises from the first steps on, at rates from {rates[0] if rates else 0:.1e}: "
            "begin lower (--low)"
        )
    # Slopes along log(rate), over a few steps on either side.
    reach = max(1, len(rates) // 40)
    slopes = {
        k: (smoothed[min(k + reach, lowest)] - smoothed[max(k - reach, 0)])
        / math.log(rates[min(k + reach, lowest)] / rates[max(k - reach, 0)])
        for k in range(lowest + 1)
    }
    steepest = min(slopes, key=slopes.__getitem__)
    return RangeTest(rates, losses, smoothed, rates[steepest], rates[lowest] / 10)


def range_test_stage(
    config: Config,
    prepared: str | Path,
    *,
    out: Path,
    figure: Path,
    low: float,
    high: float,
    steps: int,
    work: Path = WORK,
    progress: bool = True,
) -> RangeTest:
    """Run the test as an MLflow run of its own; write its numbers to `out` (JSON) and its `figure` (PNG)."""
    from darkarc.training.range_figure import draw_range_test

    store = Store.open(prepared)
    shutil.rmtree(work, ignore_errors=True)
    with start_run(config, name="lr-range", journal=work / "journal.jsonl", dataset=store) as tracker:
        result = range_test(config, store, low=low, high=high, steps=steps, progress=progress)
        document = asdict(result) | {"suggestion": result.suggestion}
        settings = {"optimiser": config.train.optimiser, "batch_size": config.train.batch_size}
        write_file(out, json.dumps(settings | document, indent=1) + "\n")
        write_file(figure, draw_range_test(result, config))
        _log(result, tracker, out, figure)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _log(result: RangeTest, tracker: Tracker, out: Path, figure: Path) -> None:
    for step, (rate, loss, mean) in enumerate(
        zip(result.rates, result.losses, result.smoothed, strict=True), start=1
    ):
        tracker.log_metrics(
            {"range/learning_rate": rate, "range/loss": loss, "range/smoothed_loss": mean}, step=step
        )
    found = {"steepest": result.steepest, "tenth": result.tenth, "suggestion": result.suggestion}
    tracker.log_metrics({f"range/{name}_rate": rate for name, rate in found.items()}, step=len(result.rates))
    tracker.log_artifact(out)
    tracker.log_artifact(figure)
