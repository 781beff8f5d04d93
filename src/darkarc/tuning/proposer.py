"""What to try next: Optuna's samplers behind one call, without state of their own.

Each suggestion has a sampler of its own, seeded by (study seed, trial number), and learns from the trials
in the book alone. So a search goes on after a kill as it would have, and where the algorithm does not
learn (random, grid) trial n is the same whatever ran before it.
"""

import hashlib
import itertools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from darkarc.config import Config
from darkarc.tuning.book import FAILED, FINISHED, TrialRecord
from darkarc.tuning.space import Assignment, Dimension, Value, grid, in_order
from darkarc.tuning.study import Study, starting_point

if TYPE_CHECKING:
    import optuna


ONE_SPACE = ("gp",)
"""Algorithms whose model has a value of every parameter in every trial, whether it counts there or not."""

IDLE = "idle"
"""The hint that holds those values that do not count."""


class Proposer:
    """Suggests assignments and is told how they went. Numbers of trials count from 0, without gaps."""

    def __init__(self, study: Study, config: Config) -> None:
        self._study = study
        self._config = config
        self._grid = grid(study.space) if study.algorithm.name == "grid" else None
        self._grid_passed = 0
        self.optuna = new_optuna_study(study)

    def suggest(self, number: int) -> tuple[Assignment, dict[str, Any]]:
        """Assignment of trial `number`, and hints that `recall` needs to take it in again."""
        import optuna

        if self._grid is not None:
            assignment = next(itertools.islice(self._grid, number - self._grid_passed, None))
            self._grid_passed = number + 1
            self.recall(TrialRecord(number, assignment, {}))
            return assignment, {}
        fixed = number < len(self._study.points)
        seed = _seed(self._study.seed, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.optuna.sampler = SAMPLERS[self._study.algorithm.name](self._study, seed)
            if fixed:
                self.optuna.enqueue_trial(starting_point(self._study, self._config, number))
            trial = self.optuna.ask()
            assert trial.number == number, (trial.number, number)
            assignment, idle = _ask(self._study, trial)
        hints = {k: v for k, v in self._frozen(number).system_attrs.items() if k != "fixed_params"}
        return assignment, hints | ({IDLE: idle} if idle else {})

    def recall(self, record: TrialRecord) -> None:
        """Take in a trial that was suggested earlier, as one that still runs."""
        import optuna

        params = {**record.assignment, **record.hints.get(IDLE, {})}
        self.optuna.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=params,
                distributions={key: distribution(self._study.space[key]) for key in params},
                system_attrs={key: value for key, value in record.hints.items() if key != IDLE},
            )
        )

    def tell(self, record: TrialRecord) -> None:
        """Learn from a trial that is over."""
        import optuna

        states = optuna.trial.TrialState
        names = list(self._study.objectives)
        if record.state == FAILED or not record.rows:
            self.optuna.tell(record.number, state=states.FAIL)
        elif record.state == FINISHED:
            self._report(record)
            self.optuna.tell(record.number, [record.last[name] for name in names])
        elif len(names) > 1:
            self.optuna.tell(record.number, state=states.FAIL)
        else:
            self._report(record)
            self.optuna.tell(record.number, state=states.PRUNED)

    def _frozen(self, number: int) -> "optuna.trial.FrozenTrial":
        """One trial; without a copy of all others, which thousands of trials would pay for."""
        return self.optuna.get_trials(deepcopy=False)[number]

    def _report(self, record: TrialRecord) -> None:
        """Values by epoch: TPE ranks a pruned trial by how far it came, then by its value there."""
        import optuna

        if len(self._study.objectives) > 1:
            return
        (name,) = self._study.objectives
        trial = optuna.trial.Trial(self.optuna, self._frozen(record.number)._trial_id)
        for epoch, row in sorted(record.rows.items()):
            trial.report(row[name], epoch)


def new_optuna_study(study: Study) -> "optuna.Study":
    """An empty Optuna study in memory with the study's directions."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        study_name=study.name,
        directions=["minimize" if mode == "min" else "maximize" for mode in study.objectives.values()],
    )


def distribution(dimension: Dimension) -> "optuna.distributions.BaseDistribution":
    from optuna import distributions

    if dimension.choice is not None:
        return distributions.CategoricalDistribution(dimension.choice)
    low, high = dimension.bounds
    if dimension.is_integer:
        return distributions.IntDistribution(int(low), int(high), log=dimension.is_log)
    return distributions.FloatDistribution(low, high, log=dimension.is_log)


def _ask(study: Study, trial: "optuna.Trial") -> tuple[Assignment, Assignment]:
    """Define by run: a parameter is suggested where its condition holds. The second assignment holds those
    that a model of one space for all trials needs as well."""
    assignment: Assignment = {}
    idle: Assignment = {}
    for key in in_order(study.space):
        counts = study.space[key].holds(assignment)
        if counts or study.algorithm.name in ONE_SPACE:
            (assignment if counts else idle)[key] = _suggest(trial, key, study.space[key])
    return assignment, idle


def _suggest(trial: "optuna.Trial", key: str, dimension: Dimension) -> Value:
    if dimension.choice is not None:
        return cast(Value, trial.suggest_categorical(key, dimension.choice))
    low, high = dimension.bounds
    if dimension.is_integer:
        return trial.suggest_int(key, int(low), int(high), log=dimension.is_log)
    return trial.suggest_float(key, low, high, log=dimension.is_log)


def _seed(seed: int, number: int) -> int:
    """31 bits for one suggestion."""
    content = hashlib.blake2b(f"suggestion:{seed}:{number}".encode(), digest_size=4).digest()
    return int.from_bytes(content, "big") >> 1


def _random(study: Study, seed: int) -> "optuna.samplers.BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def _tpe(study: Study, seed: int) -> "optuna.samplers.BaseSampler":
    """Multivariate (Falkner et al. 2018), grouped so that conditional parameters are modelled too."""
    from optuna.samplers import TPESampler

    return TPESampler(
        n_startup_trials=study.algorithm.startup_trials,
        multivariate=True,
        group=True,
        constant_liar=study.concurrent > 1,
        seed=seed,
    )


def _gp(study: Study, seed: int) -> "optuna.samplers.BaseSampler":
    from optuna.samplers import GPSampler

    return GPSampler(n_startup_trials=study.algorithm.startup_trials, deterministic_objective=True, seed=seed)


def _cmaes(study: Study, seed: int) -> "optuna.samplers.BaseSampler":
    from optuna.samplers import CmaEsSampler

    return CmaEsSampler(n_startup_trials=study.algorithm.startup_trials, seed=seed)


def _nsga2(study: Study, seed: int) -> "optuna.samplers.BaseSampler":
    from optuna.samplers import NSGAIISampler

    class InOrder(NSGAIISampler):
        """Optuna gives parents in another order when it has just chosen them than ever after."""

        def get_parent_population(
            self, study: "optuna.Study", generation: int
        ) -> list["optuna.trial.FrozenTrial"]:
            return sorted(super().get_parent_population(study, generation), key=lambda trial: trial.number)

    return InOrder(population_size=study.algorithm.population, seed=seed)


SAMPLERS: dict[str, Callable[[Study, int], "optuna.samplers.BaseSampler"]] = {
    "random": _random,
    "points": _random,  # never asked: every trial is a starting point
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "nsga2": _nsga2,
}
