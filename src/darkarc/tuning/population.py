"""PBT and PB2 on Ray Tune, synchronous, seeded, and able to go on after a kill.

A population trains in generations of `interval_epochs`. At the end of each, the worst go on with the
weights of the best and with changed parameters. Ray's own schedulers decide who and to what; here
are: a random stream for every generation (so that it can be decided again, to the same end), the
edges of the space, the identity of trials, and observations from before a kill.

PB2 (Parker-Holder et al., arXiv:2002.02518) sees every parameter as a coordinate in [0, 1], logarithmic
where the space is; PBT (Jaderberg et al., arXiv:1711.09846) the values themselves.
"""

import contextlib
import random
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from darkarc.tuning.space import Assignment
from darkarc.tuning.study import Study

if TYPE_CHECKING:
    from darkarc.tuning.book import StudyBook

Position = dict[str, Any]
"""Key to what the scheduler mutates: a value (pbt) or a coordinate (pb2)."""


def position_of(study: Study, assignment: Assignment) -> Position:
    if study.scheduler.name == "pbt":
        return dict(assignment)
    return {key: float(study.space[key].coordinate(float(value))) for key, value in assignment.items()}


def values_at(study: Study, position: Position) -> Assignment:
    """Parameters at a position; what lies outside of the space is put on its edge."""
    values: Assignment = {}
    for key, dimension in study.space.items():
        value = position[key]
        if dimension.choice is not None:
            values[key] = value
        elif study.scheduler.name == "pb2":
            values[key] = dimension.value_at(float(value))
        else:
            inside = min(dimension.bounds[1], max(dimension.bounds[0], value))
            values[key] = round(inside) if dimension.is_integer else float(inside)
    return values


def last_generation(study: Study, book: "StudyBook") -> int:
    """Last epoch of the last generation that the whole population has finished; 0 if there is none."""
    interval = study.scheduler.interval_epochs
    alive = [trial for trial in book.trials.values() if trial.state != "failed"]
    if len(book.trials) < study.budget.trials or not alive:
        return 0
    done = min(max(trial.positions, default=0) for trial in alive)
    return min(done, study.budget.epochs - interval) // interval * interval


def population_scheduler(study: Study, book: "StudyBook") -> Any:
    """Ray's PBT or PB2 for a study; `book` gives what happened before a kill."""
    from ray import tune
    from ray.tune.schedulers import PopulationBasedTraining
    from ray.tune.schedulers.pb2 import PB2

    ((metric, mode),) = study.objectives.items()
    settings = study.scheduler
    common: dict[str, Any] = {
        "time_attr": "epoch",
        "metric": metric,
        "mode": mode,
        "perturbation_interval": settings.interval_epochs,
        "quantile_fraction": settings.quantile,
        "log_config": False,
        "synch": True,
    }
    if settings.name == "pb2":
        bounds = {key: [0.0, 1.0] for key in study.space}
        scheduler = _generations(PB2)(**common, hyperparam_bounds=bounds)
    else:
        mutations: dict[str, Any] = {}
        for key, dimension in study.space.items():
            if dimension.choice is not None:
                mutations[key] = list(dimension.choice)
            elif dimension.is_log:
                sample = tune.lograndint if dimension.is_integer else tune.loguniform
                mutations[key] = sample(*dimension.bounds)
            else:
                sample = tune.randint if dimension.is_integer else tune.uniform
                mutations[key] = sample(*dimension.bounds)
        scheduler = _generations(PopulationBasedTraining)(
            **common,
            hyperparam_mutations=mutations,
            resample_probability=settings.resample,
            custom_explore_fn=lambda config: {**config, **values_at(study, config)},
        )
    scheduler.remember(study, book)
    return scheduler


def _generations(base: type) -> type:
    class Generations(base):
        def remember(self, study: Study, book: "StudyBook") -> None:
            self._study = study
            self._book = book
            self._gone: list[Any] = []
            done = last_generation(study, book)
            if done:
                self._next_perturbation_sync = done
            if hasattr(self, "data"):
                self.data = observations(study, book, done)

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> Any:
            from ray.tune.schedulers import TrialScheduler

            epoch = int(result["epoch"])
            if epoch >= self._study.budget.epochs:
                return TrialScheduler.CONTINUE  # nothing is left to train after an exchange
            for lost in self._gone:
                self._trial_state[lost].last_train_time = self._next_perturbation_sync
            if self._missing(tune_controller) and epoch >= self._next_perturbation_sync:
                self._save_trial_state(self._trial_state[trial], epoch, result, trial)
                return TrialScheduler.PAUSE
            with _stream(self._study.seed, epoch), warnings.catch_warnings():
                # PB2's Gaussian process tells of bounds that nobody here has set.
                warnings.simplefilter("ignore")
                return super().on_trial_result(tune_controller, trial, result)

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            super().on_trial_error(tune_controller, trial)
            if self._book.will_return(trial, self._study.max_failures):
                self._trial_state[trial].last_score = None
            else:
                self._without(tune_controller, trial)

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            super().on_trial_complete(tune_controller, trial, result)
            self._without(tune_controller, trial)

        def _missing(self, tune_controller: Any) -> set[int]:
            """Members that are not there yet, or not there again."""
            lost = {trial.config["number"] for trial in self._gone}
            there = {trial.config["number"] for trial in tune_controller.get_live_trials()}
            failed = {trial.number for trial in self._book.trials.values() if trial.state == "failed"}
            return set(range(self._study.budget.trials)) - there - lost - failed

        def _without(self, tune_controller: Any, trial: Any) -> None:
            """Go on without a trial; if all others waited for it alone, their exchange is due now."""
            state = self._trial_state[trial]
            state.last_score = None
            self._gone.append(trial)
            waiting = [other for other in tune_controller.get_live_trials() if other not in self._gone]
            states = [self._trial_state[other] for other in waiting]
            if (
                waiting
                and not self._missing(tune_controller)
                and all(
                    other.status == "PAUSED" and held.last_train_time >= self._next_perturbation_sync
                    for other, held in zip(waiting, states, strict=True)
                )
            ):
                self.on_trial_result(tune_controller, waiting[0], states[0].last_result)

        def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            if hasattr(self, "data"):
                # In the order of trials, not in that of their arrival: the fit depends on it.
                self.data = self.data.sort_values(["Time", "Trial"]).reset_index(drop=True)
            config, operations = super()._get_new_config(trial, trial_to_clone)
            number, donor = trial.config["number"], trial_to_clone.config["number"]
            config = {**config, "number": number, "start": "", "announce": False}
            position = {key: config[key] for key in self._study.space}
            self._book.exchange(self._trial_state[trial_to_clone].last_train_time, number, donor, position)
            return config, operations

    Generations.__name__ = base.__name__
    return Generations


def observations(study: Study, book: "StudyBook", before: int) -> Any:
    """PB2's table of what was seen before an epoch: Trial, Time, coordinates, Reward; exchanges included."""
    import pandas as pd  # type: ignore[import-untyped]  # its types are a package of their own

    ((metric, mode),) = study.objectives.items()
    sign = -1.0 if mode == "min" else 1.0
    rows = []
    for epoch in range(study.scheduler.interval_epochs, before, study.scheduler.interval_epochs):
        for trial in book.trials.values():
            if epoch not in trial.positions:
                continue  # it had failed by then
            reward = sign * trial.rows[epoch][metric]
            rows.append([trial_id(trial.number), epoch, *trial.positions[epoch].values(), reward])
        for event in book.exchanges:
            # PB2 adds no row for a copy whose parameters it could not choose yet.
            moved = event["position"] != book.trials[event["donor"]].positions.get(epoch)
            if event["epoch"] == epoch and moved:
                reward = sign * book.trials[event["donor"]].rows[epoch][metric]
                rows.append([trial_id(event["number"]), epoch, *event["position"].values(), reward])
    return pd.DataFrame(rows, columns=["Trial", "Time", *study.space, "Reward"]) if rows else pd.DataFrame()


def trial_id(number: int, times_lost: int = 0) -> str:
    """Ray's identifier of a trial: the same in every session of a study, another one each time it is lost."""
    return f"trial-{number:05d}" + (f"-{times_lost}" if times_lost else "")


def number_of(identifier: str) -> int:
    """The trial's number in its identifier."""
    return int(identifier.split("-")[1])


@contextlib.contextmanager
def _stream(seed: int, epoch: int) -> Iterator[None]:
    """Ray draws from the global streams: inside, they depend on (seed, epoch) alone; outside, they go on."""
    kept = random.getstate(), np.random.get_state()
    random.seed(f"{seed}:{epoch}")
    np.random.seed(random.getrandbits(32))
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
