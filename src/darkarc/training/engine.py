"""The training loop: reads top to bottom, and goes on after a kill as if nothing had happened."""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from darkarc.config import Config, TrainConfig
from darkarc.data.auxiliary import AUXILIARY
from darkarc.data.batches import ImageSource, epoch_order
from darkarc.data.store import Store
from darkarc.data.train_images import TrainImages
from darkarc.models import Grid, Regressor
from darkarc.simulation.counter import hash_indices
from darkarc.tracking.tracker import Tracker
from darkarc.training.assembly import TrainingError, new_regressor
from darkarc.training.averaging import WeightAverage, freeze_norms
from darkarc.training.checkpoints import (
    Learner,
    Progress,
    newest_checkpoint,
    restore_checkpoint,
    save_checkpoint,
    to_cpu,
)
from darkarc.training.display import Display, Silent, Terminal
from darkarc.training.fingerprint import environment, training_digest
from darkarc.training.interruption import StopRequest, TrainingInterrupted
from darkarc.training.objectives import (
    autocast,
    label_counts,
    objective,
    parts_of,
    target_nll,
    validate,
)
from darkarc.training.optimisers import build_optimiser, learning_rate
from darkarc.training.sanity import BATCH as SANITY_BATCH
from darkarc.training.sanity import LONG_TRAINING_STEPS, learn_one_batch
from darkarc.training.schedule import EpochEnd, EpochHook, replay

PRIOR_TOLERANCE_NATS = 0.3


@dataclass(frozen=True)
class TrainResult:
    """regressor: in evaluation mode, with the best epoch's weights; history: a row an epoch
    (epoch, learning_rate, train_loss, val_loss, val_mae_dex, val_class_accuracy, and with
    `train.on_nonfinite: rollback` rollbacks, how often it went back so far); best_epoch counts
    from 1; stopped_early: whether `train.early_stopping` ended it; digest: names this training.
    """

    regressor: Regressor
    history: list[dict[str, float]]
    best_epoch: int
    stopped_early: bool
    digest: str


def train(
    config: Config,
    prepared: Store,
    *,
    workdir: Path,
    tracker: Tracker,
    progress: bool = True,
    on_epoch: EpochHook | None = None,
) -> TrainResult:
    """Train a regressor on the train split of a prepared store, watching the validation split.

    Checkpoints go to `workdir/<digest>/`, where the digest stands for parameters, data and code: the
    same call after a kill goes on there, to the same bits on the same CPU; another configuration
    starts in a folder of its own. `on_epoch` is called after each epoch's checkpoint and may end the
    training there. `train.schedule` is followed.

    Raises `TrainingError` or `BatchError` for data or parameters that cannot work, and
    `TrainingInterrupted` after SIGTERM or Ctrl-C, with a checkpoint left behind.
    """
    if config.train.schedule:
        return replay(
            train,
            config,
            prepared,
            workdir=workdir,
            tracker=tracker,
            progress=progress,
            on_epoch=on_epoch,
        )
    device = choose_device(config.device)
    digest = training_digest(config, prepared)
    folder = Path(workdir) / digest[:16]
    memory_gb = config.data.memory_gb
    source = TrainImages.of(config, prepared, device)
    held_out = ImageSource(prepared, "validation", config.targets, memory_gb=memory_gb, device=device)
    with ExitStack() as stack:
        # Weights, dropout and stochastic depth draw from streams of their own; the caller's stay.
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stop = stack.enter_context(StopRequest())
        torch.manual_seed(config.seed)
        regressor = new_regressor(config, prepared)
        if config.train.auxiliary_weight > 0:
            regressor.attach_auxiliary(len(AUXILIARY))
        regressor = regressor.to(device).to(memory_format=torch.channels_last)
        plan = Plan.of(config.train, len(source))
        display: Display = Silent()
        if progress:
            display = stack.enter_context(Terminal(plan.n_steps, config.train.epochs))
        _check_prior(regressor, held_out, config.train)
        if config.train.sanity and plan.n_steps >= LONG_TRAINING_STEPS and newest_checkpoint(folder) is None:
            few = torch.arange(min(SANITY_BATCH, len(held_out)), device=device)
            learn_one_batch(regressor, held_out.batch(few), config.train)
        if config.train.auxiliary_weight > 0 and not bool(held_out.auxiliary.isfinite().any()):
            display.say(
                "train.auxiliary_weight changes nothing: the table knows neither source_x_arcsec and "
                "source_y_arcsec nor vortex_angle_rad"
            )
        learner = new_learner(regressor, config.train)
        session = Session(folder, tracker, display, stop, on_epoch)
        state = _fit(config, plan, learner, source, held_out, session)
    regressor.load_state_dict(learner.best)
    regressor.drop_auxiliary()
    return TrainResult(regressor.eval(), state.history, state.best_epoch, state.stopped_early, digest)


@dataclass(frozen=True)
class Plan:
    """How a training divides: an epoch leaves out what does not fill a batch."""

    batch_size: int
    steps_per_epoch: int
    n_steps: int

    @classmethod
    def of(cls, settings: TrainConfig, n_images: int) -> "Plan":
        batch_size = min(settings.batch_size, n_images)
        steps_per_epoch = n_images // batch_size
        return cls(batch_size, steps_per_epoch, settings.epochs * steps_per_epoch)


@dataclass(frozen=True)
class Session:
    """Where a training keeps its state, and who watches it."""

    folder: Path
    tracker: Tracker
    display: Display
    stop: StopRequest
    on_epoch: EpochHook | None


def _fit(
    config: Config, plan: Plan, learner: Learner, source: TrainImages, held_out: ImageSource, session: Session
) -> Progress:
    """The loop. Leaves the best epoch's weights in `learner.best`."""
    settings, seed, device = config.train, config.seed, source.device
    regressor, optimiser = learner.regressor, learner.optimiser
    state = _start(learner, settings, session)
    loss_sum = torch.full((), state.train_loss_sum, dtype=torch.float64, device=device)

    while state.step < plan.n_steps and not state.stopped_early:
        epoch, position = divmod(state.step, plan.steps_per_epoch)
        order = epoch_order(seed, epoch, len(source), device)
        left = order[position * plan.batch_size : plan.steps_per_epoch * plan.batch_size]
        _training_mode(regressor, epoch, settings)
        for indices, fresh in source.batches(epoch, left, plan.batch_size):
            batch = source.augmented(fresh, indices, epoch)
            counts = label_counts(batch)
            rate = settings.rollback_factor**state.rollbacks
            rate *= learning_rate(settings, state.step, plan.n_steps, state.plateau)
            for group in optimiser.param_groups:
                group["lr"] = rate
            torch.manual_seed(_step_seed(seed, state.step))  # dropout knows no history
            optimiser.zero_grad(set_to_none=True)
            for part in parts_of(batch, settings.accumulate):
                with autocast(device, settings.precision):
                    loss = objective(regressor, part, settings, counts)
                loss.backward()
                loss_sum += loss.detach()  # stays on the device: no synchronisation inside an epoch
            if settings.gradient_clip > 0:
                nn.utils.clip_grad_norm_(regressor.parameters(), settings.gradient_clip)
            optimiser.step()
            state.step += 1
            learner.average.after_step(regressor, state.step)
            session.display.advance(state.step)
            if session.stop.name and state.step % plan.steps_per_epoch:
                break
        epoch_is_over = state.step % plan.steps_per_epoch == 0
        if epoch_is_over:
            row = {"epoch": epoch + 1, "learning_rate": rate}
            row |= {"train_loss": loss_sum.item() / plan.steps_per_epoch}
            loss_sum.zero_()
            if trouble := _trouble(row, regressor):
                state = _go_back(trouble, state, learner, settings, session)
                continue
            seen = source.batches(epoch, order, plan.batch_size)
            images = (source.augmented(batch, i, epoch).images for i, batch in seen)
            answering = learner.average.after_epoch(regressor, epoch, images)
            row |= validate(answering, held_out, settings)
            if _end_epoch(state, row, settings):
                learner.best = to_cpu(answering.state_dict())
            _tell(row, session)
        state.train_loss_sum = loss_sum.item()
        path = save_checkpoint(session.folder, state, learner)
        if epoch_is_over and session.on_epoch is not None:
            is_last = state.stopped_early or state.step == plan.n_steps
            if session.on_epoch(EpochEnd(row, path, answering, is_last, state.stopped_early)):
                break
        if session.stop.name:
            raise TrainingInterrupted(
                f"{session.stop.name} after step {state.step} of {plan.n_steps}: "
                "the same command goes on from there"
            )
    return state


def new_learner(regressor: Regressor, settings: TrainConfig) -> Learner:
    """An untrained regressor with its optimiser and its average of weights."""
    average = WeightAverage(regressor, settings)
    best = to_cpu(regressor.state_dict())
    return Learner(regressor, build_optimiser(regressor, settings), average, best)


def _start(learner: Learner, settings: TrainConfig, session: Session) -> Progress:
    """The newest sound checkpoint of this training, or its beginning."""
    state = restore_checkpoint(session.folder, learner, session.display.say)
    if state is None:
        state = Progress(environment=environment())
        if settings.on_nonfinite == "rollback":
            save_checkpoint(session.folder, state, learner)  # what the first epoch goes back to
        return state
    session.display.say(f"going on after step {state.step} from {session.folder.name}")
    if state.environment != environment():
        session.display.say(
            f"this training began with {state.environment} and goes on with {environment()}: "
            "the weights will be as good, but not the same to the last bit"
        )
        state.environment = environment()
    return state


def _trouble(row: dict[str, float], regressor: Regressor) -> str:
    """What became of an epoch whose loss or weights are not finite; empty if all is well."""
    if math.isfinite(row["train_loss"]):
        if all(bool(tensor.isfinite().all()) for tensor in regressor.state_dict().values()):
            return ""
        what = "a weight became infinite or nan"
    else:
        what = f"the training loss became {row['train_loss']}"
    return f"{what} in epoch {row['epoch']:.0f} at a learning rate of {row['learning_rate']:.2g}"


def _go_back(
    trouble: str, state: Progress, learner: Learner, settings: TrainConfig, session: Session
) -> Progress:
    """Back to the last checkpoint, at a lower rate from there on.

    Raises `TrainingError` where `train.on_nonfinite` is stop, or after too many times. The lowered rate is
    on the disk before training goes on, so that a kill changes nothing.
    """
    if settings.on_nonfinite == "stop" or state.rollbacks >= settings.rollback_limit:
        again = f" after {state.rollbacks} rollbacks" if state.rollbacks else ""
        raise TrainingError(
            f"{trouble}{again}: lower train.learning_rate or set train.gradient_clip; the checkpoint of the "
            "epoch before is kept"
        )
    rollbacks = state.rollbacks + 1
    restored = restore_checkpoint(session.folder, learner, session.display.say)
    if restored is None:
        raise TrainingError(f"{trouble}, and no sound checkpoint is left in {session.folder} to go back to")
    restored.rollbacks = rollbacks
    save_checkpoint(session.folder, restored, learner)
    session.display.say(
        f"{trouble}: going back to step {restored.step}, with the rate times {settings.rollback_factor:g} "
        f"(rollback {rollbacks} of at most {settings.rollback_limit})"
    )
    return restored


def _tell(row: dict[str, float], session: Session) -> None:
    finite = {name: value for name, value in row.items() if math.isfinite(value)}
    session.tracker.log_metrics(finite, step=int(row["epoch"]))
    session.display.epoch(row)


def _end_epoch(state: Progress, row: dict[str, float], settings: TrainConfig) -> bool:
    """Book an epoch: history, plateau, early stopping. Returns whether it is the best so far."""
    if settings.on_nonfinite == "rollback":
        row["rollbacks"] = state.rollbacks
    state.history.append(row)
    better = row["val_loss"] < state.best_loss
    if better:
        state.best_loss, state.best_epoch = row["val_loss"], int(row["epoch"])
    state.plateau.observe(row["val_loss"], settings.plateau_patience)
    waited = int(row["epoch"]) - state.best_epoch
    state.stopped_early = 0 < settings.early_stopping <= waited
    return better


def choose_device(device: str) -> torch.device:
    """`auto` takes a GPU where there is one. Raises `TrainingError` if cuda is asked for in vain."""
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device: cuda was asked for, but torch finds no GPU: set device to auto or cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)


@torch.inference_mode()
def _check_prior(regressor: Regressor, source: ImageSource, settings: TrainConfig) -> None:
    """Untrained, every target scores its prior, log(range): anything else is a wrong scale or shape."""
    batch = source.batch(torch.arange(min(256, len(source)), device=source.device))
    outputs, _ = regressor.eval().head_outputs(batch.images)
    if not bool(outputs.isfinite().all()):
        raise TrainingError(
            f"the {source.split} images give outputs that are not finite: look for NaN or infinite pixels"
        )
    losses = target_nll(regressor, outputs, batch.truth, settings)
    known = batch.truth.isfinite()
    for t, (name, grid) in enumerate(zip(regressor.targets, regressor.grids, strict=True)):
        prior = math.log(cast(Grid, grid).high - cast(Grid, grid).low)
        scores = losses[:, t][known[:, t]]
        if len(scores) and abs(scores.mean().item() - prior) > PRIOR_TOLERANCE_NATS:
            raise TrainingError(
                f"targets.{name}: untrained, the loss should be about the prior's {prior:.2f} nats, but it "
                f"is {scores.mean().item():.2f}: is train.label_sigma_dex far wider than the prior range?"
            )


def _training_mode(regressor: Regressor, epoch: int, settings: TrainConfig) -> None:
    """Training mode; in the last epochs batch norms keep the statistics they will answer with.

    Else the widths of the posteriors allow for the noise of batch statistics, which answers do not have.
    """
    regressor.train()
    if epoch >= round((1 - settings.freeze_norm) * settings.epochs):
        freeze_norms(regressor)


def _step_seed(seed: int, step: int) -> int:
    return int(hash_indices(seed, -1, torch.tensor([step])).item())
