"""The training loop: reads top to bottom, and goes on after a kill as if nothing had happened."""

import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from darkarc.config import Config, TrainConfig
from darkarc.data.batches import Batch, ImageSource, epoch_order
from darkarc.data.store import Store
from darkarc.data.train_images import TrainImages
from darkarc.models import Regressor
from darkarc.simulation.counter import hash_indices
from darkarc.tracking.tracker import Tracker
from darkarc.training.assembly import TrainingError, choose_device, prepared_regressor
from darkarc.training.averaging import WeightAverage, freeze_norms
from darkarc.training.checkpoints import (
    Learner,
    Progress,
    newest_checkpoint,
    restore_checkpoint,
    save_checkpoint,
    to_cpu,
)
from darkarc.training.compiling import compiled
from darkarc.training.display import Display, Silent, Terminal
from darkarc.training.distillation import Teacher, teacher_of
from darkarc.training.distribution import Alone, World
from darkarc.training.fingerprint import environment, training_digest
from darkarc.training.interruption import StopRequest, TrainingInterrupted
from darkarc.training.nonfinite import held_out_trouble, training_trouble
from darkarc.training.objectives import (
    autocast,
    label_counts,
    objective,
    parts_of,
    validate,
)
from darkarc.training.optimisers import build_optimiser, learning_rate
from darkarc.training.profiling import Clock, NoClock, StepProfile
from darkarc.training.sanity import BATCH as SANITY_BATCH
from darkarc.training.sanity import LONG_TRAINING_STEPS, check_prior, learn_one_batch
from darkarc.training.schedule import EpochEnd, EpochHook, replay


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
    profile: Path | None = None,
) -> TrainResult:
    """Train a regressor on the train split of a prepared store, watching the validation split.

    Checkpoints go to `workdir/<digest>/`, where the digest stands for parameters, data and code: the
    same call after a kill goes on there, to the same bits on the same CPU; another configuration
    starts in a folder of its own. `on_epoch` is called after each epoch's checkpoint and may end the
    training there. `profile` is a file for a trace of a few steps; where their time goes is said as a table.
    `train.schedule` is followed. `train.workers` processes of Ray Train share every batch where it is more
    than 1; `on_epoch` then runs in one of them.

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
            profile=profile,
        )
    device = choose_device(config.device)
    digest = training_digest(config, prepared)
    folder = Path(os.path.abspath(workdir)) / digest[:16]
    with ExitStack() as stack:
        display: Display = Silent()
        if progress:
            display = stack.enter_context(Terminal(config.train.epochs, next(iter(config.targets))))
        if config.train.workers > 1:
            from darkarc.training.workers import train_in_workers

            regressor, state = train_in_workers(
                config, prepared, device, folder, tracker, display, on_epoch, profile
            )
        else:
            stop = stack.enter_context(StopRequest())
            clock: Clock = NoClock()
            if profile is not None:
                clock = stack.enter_context(StepProfile(profile, device, display.say))
            session = Session(folder, tracker, display, stop, on_epoch, clock, Alone())
            regressor, state = train_here(config, prepared, device, session)
    return TrainResult(regressor, state.history, state.best_epoch, state.stopped_early, digest)


def train_here(
    config: Config, prepared: Store, device: torch.device, session: "Session"
) -> tuple[Regressor, Progress]:
    """Train in this process, alone or as one of several workers; the regressor with the best weights."""
    memory_gb = config.data.memory_gb
    source = TrainImages.of(config, prepared, device)
    held_out = ImageSource(prepared, "validation", config.targets, memory_gb=memory_gb, device=device)
    # Weights, dropout and stochastic depth draw from streams of their own; the caller's stay.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        regressor = prepared_regressor(config, prepared, device)
        plan = Plan.of(config.train, len(source))
        session.display.begin(plan.n_steps)
        check_prior(regressor, held_out, config.train)
        if (
            config.train.sanity
            and plan.n_steps >= LONG_TRAINING_STEPS
            and newest_checkpoint(session.folder) is None
        ):
            few = torch.arange(min(SANITY_BATCH, len(held_out)), device=device)
            learn_one_batch(regressor, held_out.batch(few), config.train)
        if config.train.auxiliary_weight > 0 and not bool(held_out.auxiliary.isfinite().any()):
            session.display.say(
                "train.auxiliary_weight changes nothing: the table knows neither source_x_arcsec and "
                "source_y_arcsec nor vortex_angle_rad"
            )
        learner = new_learner(regressor, config.train)
        with compiled(regressor, config.train, device, session.display.say):
            state = _fit(config, plan, learner, source, held_out, session)
    return answering_regressor(learner), state


@dataclass(frozen=True)
class Plan:
    """How a training divides: an epoch leaves out what does not fill a batch."""

    batch_size: int
    steps_per_epoch: int
    n_steps: int

    @classmethod
    def of(cls, settings: TrainConfig, n_images: int) -> "Plan":
        batch_size = min(settings.batch_size, n_images)
        batch_size -= batch_size % settings.workers
        if batch_size == 0:
            raise TrainingError(f"{n_images} train images cannot be shared by {settings.workers} workers")
        steps_per_epoch = n_images // batch_size
        return cls(batch_size, steps_per_epoch, settings.epochs * steps_per_epoch)


@dataclass(frozen=True)
class Session:
    """Where a training keeps its state, who watches it, and who shares the work."""

    folder: Path
    tracker: Tracker
    display: Display
    stop: StopRequest
    on_epoch: EpochHook | None
    clock: Clock
    world: World


def _fit(
    config: Config, plan: Plan, learner: Learner, source: TrainImages, held_out: ImageSource, session: Session
) -> Progress:
    """The loop. Leaves the best epoch's weights in `learner.best`."""
    settings, seed, device = config.train, config.seed, source.device
    regressor, world, clock = learner.regressor, session.world, session.clock
    teacher = teacher_of(settings, regressor)
    state = _start(learner, settings, session)
    loss_sum = torch.full((), state.train_loss_sum, dtype=torch.float64, device=device)

    while state.step < plan.n_steps and not state.stopped_early:
        epoch, position = divmod(state.step, plan.steps_per_epoch)
        order = epoch_order(seed, epoch, len(source), device)
        left = order[position * plan.batch_size : plan.steps_per_epoch * plan.batch_size]
        _training_mode(regressor, epoch, settings)
        for indices, fresh in clock.iterate(
            "loading", source.batches(epoch, *world.share(left, plan.batch_size))
        ):
            with clock.part("augmentation"):
                batch = source.augmented(fresh, indices, epoch)
            rate = settings.rollback_factor**state.rollbacks
            rate *= learning_rate(settings, state.step, plan.n_steps, state.plateau)
            torch.manual_seed(step_seed(seed, state.step, world.rank))  # dropout knows no history
            # Stays on the device: no synchronisation inside an epoch (tests/training/test_device_waits.py).
            loss_sum += take_step(regressor, learner.optimiser, batch, rate, settings, world, clock, teacher)
            state.step += 1
            learner.average.after_step(regressor, state.step)
            session.display.advance(state.step)
            clock.step()
            if session.stop.name and state.step % plan.steps_per_epoch:
                break
        epoch_is_over = state.step % plan.steps_per_epoch == 0
        if epoch_is_over:
            row = {"epoch": epoch + 1, "learning_rate": rate}
            row |= {"train_loss": world.total(loss_sum).item() / plan.steps_per_epoch}
            loss_sum.zero_()
            found = world.agree(partial(training_trouble, row, regressor))
            if not found:
                answering = _answering(learner, source, order, epoch, plan, world)
                row |= world.agree(partial(validate, answering, held_out, settings))
                found = held_out_trouble(row)
            if found:
                state = _go_back(found, state, learner, settings, session)
                continue
            if _end_epoch(state, row, settings):
                learner.best = to_cpu(answering.state_dict())
            _tell(row, session)
        state.train_loss_sum = loss_sum.item()
        path = _keep(state, learner, session)
        if epoch_is_over and session.on_epoch is not None:
            is_last = state.stopped_early or state.step == plan.n_steps
            end = EpochEnd(row, path, answering, is_last, state.stopped_early)
            if world.agree(partial(session.on_epoch, end)):
                break
        if session.stop.name:
            raise TrainingInterrupted(
                f"{session.stop.name} after step {state.step} of {plan.n_steps}: "
                "the same command goes on from there"
            )
    return state


def take_step(
    regressor: Regressor,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    rate: float,
    settings: TrainConfig,
    world: World,
    clock: Clock,
    teacher: Teacher | None = None,
) -> Tensor:
    """One step of the optimiser on this worker's share of a batch; returns its share of the loss."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    counts = world.total(label_counts(batch))
    total = torch.zeros((), dtype=torch.float64, device=counts.device)
    for part in parts_of(batch, settings.accumulate):
        with clock.part("forward"), autocast(counts.device, settings.precision), world.whole_batch():
            loss = objective(regressor, part, settings, counts, teacher)
        with clock.part("backward"):
            loss.backward()
        total += loss.detach()
    with clock.part("optimiser"):
        world.add_gradients(regressor)
        if settings.gradient_clip > 0:
            nn.utils.clip_grad_norm_(regressor.parameters(), settings.gradient_clip)
        optimiser.step()
    return total


def _answering(
    learner: Learner,
    source: TrainImages,
    order: Tensor,
    epoch: int,
    plan: Plan,
    world: World,
) -> Regressor:
    """The regressor that answers after an epoch; only rank 0 asks it."""
    if world.rank > 0:
        return learner.regressor
    seen = source.batches(epoch, order, plan.batch_size)
    images = (source.augmented(batch, i, epoch).images for i, batch in seen)
    return learner.average.after_epoch(learner.regressor, epoch, images)


def _keep(state: Progress, learner: Learner, session: Session) -> Path:
    """Where the checkpoint of this step lies, once it is there."""
    world = session.world
    return Path(world.agree(lambda: str(save_checkpoint(session.folder, state, learner))))


def new_learner(regressor: Regressor, settings: TrainConfig) -> Learner:
    """An untrained regressor with its optimiser and its average of weights."""
    average = WeightAverage(regressor, settings)
    best = to_cpu(regressor.state_dict())
    return Learner(regressor, build_optimiser(regressor, settings), average, best)


def answering_regressor(learner: Learner) -> Regressor:
    """The regressor with the best weights so far, in evaluation mode, without what only training has."""
    learner.regressor.load_state_dict(learner.best)
    learner.regressor.drop_auxiliary()
    # As it will be loaded: with another layout a convolution may round otherwise, on some processors.
    return learner.regressor.to(memory_format=torch.contiguous_format).eval()


def _start(learner: Learner, settings: TrainConfig, session: Session) -> Progress:
    """The newest sound checkpoint of this training, or its beginning."""
    state = _restore(learner, session)
    if state is None:
        state = Progress(environment=environment())
        if settings.on_nonfinite == "rollback":
            _keep(state, learner, session)  # what the first epoch goes back to
        return state
    session.display.say(f"going on after step {state.step} from {session.folder.name}")
    if state.environment != environment():
        session.display.say(
            f"this training began with {state.environment} and goes on with {environment()}: "
            "the weights will be as good, but not the same to the last bit"
        )
        state.environment = environment()
    return state


def _restore(learner: Learner, session: Session) -> Progress | None:
    """As `restore_checkpoint`. Rank 0 looks first, because it may have to set a damaged checkpoint aside, and
    nobody goes on (to write the next one) before all have read."""
    world, state = session.world, None
    if world.rank == 0:
        state = restore_checkpoint(session.folder, learner, session.display.say)
    is_there = world.agree(lambda: state is not None)
    if world.rank > 0 and is_there:
        state = restore_checkpoint(session.folder, learner, session.display.say)
    world.wait()
    return state


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
    restored = _restore(learner, session)
    if restored is None:
        raise TrainingError(f"{trouble}, and no sound checkpoint is left in {session.folder} to go back to")
    restored.rollbacks = rollbacks
    _keep(restored, learner, session)
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


def _training_mode(regressor: Regressor, epoch: int, settings: TrainConfig) -> None:
    """Training mode; in the last epochs batch norms keep the statistics they will answer with.

    Else the widths of the posteriors allow for the noise of batch statistics, which answers do not have.
    """
    regressor.train()
    if epoch >= round((1 - settings.freeze_norm) * settings.epochs):
        freeze_norms(regressor)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """What a step's dropout and stochastic depth draw from, in one of the workers."""
    return int(hash_indices(seed, -1 - rank, torch.tensor([step])).item())
