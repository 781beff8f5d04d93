"""Combinations of algorithm, scheduler and space that cannot work: the reason, and the way out."""

from collections.abc import Callable, Iterator

from darkarc.config import SCHEDULABLE, Config
from darkarc.tuning.space import grid
from darkarc.tuning.study import Study

LARGEST_GRID = 100_000


def refusals(study: Study, config: Config) -> list[str]:
    """Everything that is wrong with the combination; empty where it can run."""
    return [line for check in _CHECKS for line in check(study, config)]


def _objectives(study: Study, config: Config) -> Iterator[str]:
    if study.algorithm.name == "nsga2" and len(study.objectives) != 2:
        yield (
            "objectives: nsga2 weighs two objectives against each other, found one; add a second one, such "
            "as million_parameters: min, or search with algorithm: tpe"
        )
    if study.algorithm.name != "nsga2" and len(study.objectives) != 1:
        yield (
            f"objectives: {study.algorithm.name} searches for one objective, found {len(study.objectives)}; "
            "keep one, or write algorithm: nsga2"
        )
    if len(study.objectives) == 2 and study.scheduler.name != "none":
        yield (
            f"scheduler: {study.scheduler.name} stops trials by one objective, but there are two; write "
            "scheduler: none"
        )


def _population(study: Study, config: Config) -> Iterator[str]:
    if not study.is_population:
        return
    name, interval = study.scheduler.name, study.scheduler.interval_epochs
    if study.algorithm.name != "random":
        yield (
            f"algorithm: {name} is itself the search, and Ray refuses a second one: write algorithm: random "
            f"(the first population is drawn at random), or {study.algorithm.name} with scheduler: asha"
        )
    for key, dimension in study.space.items():
        if key not in SCHEDULABLE:
            yield (
                f"space: {key}: {name} copies the weights of the best trials, and this parameter cannot "
                f"change under them; search it with bayesian.yaml first and set the winner in params.yaml. "
                f"Can mutate: {', '.join(SCHEDULABLE)}"
            )
        if dimension.when:
            yield f"space: {key}: {name} mutates every parameter on its own; leave `when` away"
        if name == "pb2" and (not dimension.is_numeric or dimension.is_integer):
            yield f"space: {key}: pb2 models real numbers; use uniform or log_uniform, or scheduler: pbt"
    if study.budget.trials < 4:
        yield f"budget.trials: a population of {study.budget.trials} leaves none to copy; use at least 4"
    if study.budget.epochs < 2 * interval:
        yield (
            f"budget.epochs: {study.budget.epochs} epochs hold no exchange every {interval}; use at least "
            f"{2 * interval}, or a smaller scheduler.interval_epochs"
        )
    if study.budget.epochs % interval:
        yield (
            f"budget.epochs: {study.budget.epochs} is no multiple of scheduler.interval_epochs ({interval}), "
            "where a population exchanges and leaves checkpoints; make it one"
        )
    if config.train.early_stopping > 0:
        yield (
            f"train.early_stopping is {config.train.early_stopping} in params.yaml: a trial that ends alone "
            f"leaves the population waiting; run with -S train.early_stopping=0"
        )


def _pruning(study: Study, config: Config) -> Iterator[str]:
    name, epochs = study.scheduler.name, study.budget.epochs
    if name in ("none", "pbt", "pb2"):
        return
    if epochs < 2:
        yield f"scheduler: {name} compares epochs, but budget.epochs is 1; raise it, or write scheduler: none"
    elif name in ("asha", "median") and study.scheduler.grace_epochs >= epochs:
        yield (
            f"scheduler.grace_epochs: {study.scheduler.grace_epochs} leaves nothing of {epochs} epochs to "
            "stop; make it smaller than budget.epochs"
        )
    if study.report_epochs >= epochs > 1:
        yield (
            f"report_epochs: {study.report_epochs} gives {name} nothing to decide on within {epochs} epochs; "
            "make it smaller"
        )
    if name == "asha" and study.scheduler.grace_epochs % study.report_epochs:
        yield (
            f"scheduler.grace_epochs: asha decides first after {study.scheduler.grace_epochs}, and trials "
            f"report every {study.report_epochs} epochs (report_epochs); make it a multiple of that"
        )
    if name == "hyperband" and study.budget.seconds is not None:
        yield (
            "budget.seconds: hyperband holds trials back until a whole rung is there, so that a time limit "
            "ends most of them undecided; write scheduler: asha, or leave seconds away"
        )
    if study.algorithm.name == "cmaes":
        yield (
            f"scheduler: {name} stops trials, and cmaes learns only from finished ones; write scheduler: "
            "none, or algorithm: tpe"
        )
    if any(metric in ("million_parameters", "train_seconds") for metric in study.objectives):
        yield f"scheduler: {name} cannot compare trials by a cost early; write scheduler: none"


def _trial_seconds(study: Study, config: Config) -> Iterator[str]:
    if study.budget.trial_seconds is None:
        return
    if study.scheduler.name != "none":
        yield (
            f"budget.trial_seconds: {study.scheduler.name} compares trials at the same epoch, and their "
            "schedules now have different lengths; write scheduler: none, or leave trial_seconds away"
        )
    if config.train.schedule:
        yield (
            "budget.trial_seconds: train.schedule in params.yaml belongs to one number of epochs; empty it, "
            "or leave trial_seconds away"
        )


def _grid(study: Study, config: Config) -> Iterator[str]:
    if study.algorithm.name != "grid":
        return
    endless = [key for key, d in study.space.items() if d.is_numeric and not d.is_integer]
    for key in endless:
        yield f"space: {key}: a grid needs values, not a range; write choice: [...] or another algorithm"
    if study.points:
        yield "points: a grid visits every point anyway; leave `points` away"
    if endless:
        return
    size = 0
    for size, _ in enumerate(grid(study.space), start=1):
        if size > LARGEST_GRID:
            break
    if size != study.budget.trials:
        shown = f"more than {LARGEST_GRID}" if size > LARGEST_GRID else str(size)
        yield (
            f"budget.trials: the grid has {shown} points, but {study.budget.trials} trials are asked for; "
            "make them equal"
        )


def _numbers_only(study: Study, config: Config) -> Iterator[str]:
    name = study.algorithm.name
    conditional = [key for key, dimension in study.space.items() if dimension.when]
    if name == "cmaes" and conditional:
        yield (
            f"space: {', '.join(conditional)}: {name} needs one space for all trials, without `when`; write "
            "algorithm: tpe, or search one branch only"
        )
    if name == "cmaes":
        for key, dimension in study.space.items():
            if not dimension.is_numeric:
                yield f"space: {key}: cmaes searches numbers, and a choice has no order; write algorithm: tpe"
        if len(study.space) < 2:
            yield "space: cmaes needs at least two parameters; write algorithm: gp"


def _points(study: Study, config: Config) -> Iterator[str]:
    if study.keep_points and study.scheduler.name not in ("asha", "median"):
        yield (
            f"keep_points: scheduler {study.scheduler.name} cannot spare trials; leave it away, or write "
            "scheduler: asha"
        )
    if study.algorithm.name == "points" and len(study.points) != study.budget.trials:
        yield (
            f"budget.trials: algorithm points runs the {len(study.points)} starting points and nothing else; "
            f"write trials: {len(study.points)}, or another algorithm"
        )
    if study.labels and len(study.labels) != len(study.points):
        yield f"labels: {len(study.labels)} names for {len(study.points)} points; name each or none"
    if len(study.points) > study.budget.trials:
        yield (
            f"points: {len(study.points)} starting points, but budget.trials is {study.budget.trials}; leave "
            "some away or raise it"
        )


_CHECKS: tuple[Callable[[Study, Config], Iterator[str]], ...] = (
    _objectives,
    _population,
    _pruning,
    _trial_seconds,
    _grid,
    _numbers_only,
    _points,
)
