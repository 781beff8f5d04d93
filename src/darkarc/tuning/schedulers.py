"""Schedulers of Ray Tune by name, with what they had learned before a kill."""

from types import SimpleNamespace
from typing import Any

from darkarc.tuning.book import StudyBook, TrialRecord
from darkarc.tuning.population import number_of, population_scheduler, trial_id
from darkarc.tuning.study import Study


def build_scheduler(study: Study, book: StudyBook) -> Any:
    """The scheduler of a study. ASHA, median stopping and populations know the book's results again;
    HyperBand sorts the trials that still run into new brackets."""
    from ray.tune.schedulers import FIFOScheduler

    if study.scheduler.name == "none":
        return FIFOScheduler()
    return _BUILDERS[study.scheduler.name](study, book)


def _asha(study: Study, book: StudyBook) -> Any:
    from ray.tune.schedulers import ASHAScheduler

    scheduler = _sparing_points(ASHAScheduler, study)(
        **_common(study),
        max_t=study.budget.epochs,
        grace_period=study.scheduler.grace_epochs,
        reduction_factor=study.scheduler.reduction,
    )
    for record in book.trials.values():
        stand_in = SimpleNamespace(trial_id=trial_id(record.number))
        scheduler.on_trial_add(None, stand_in)
        for row in _decided(study, record):
            scheduler.on_trial_result(None, stand_in, row)
    return scheduler


def _hyperband(study: Study, book: StudyBook) -> Any:
    from ray.tune.schedulers import HyperBandScheduler

    class HyperBand(HyperBandScheduler):
        """Looks at a bracket whenever one of its trials ends by itself. Ray's own no longer does so after the
        first halving, and what was paused would wait for ever."""

        def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
            action: str = super()._process_bracket(tune_controller, bracket)
            bracket.is_being_processed = False
            return action

    return HyperBand(**_common(study), max_t=study.budget.epochs, reduction_factor=study.scheduler.reduction)


def _median(study: Study, book: StudyBook) -> Any:
    from ray.tune.schedulers import MedianStoppingRule

    class Median(MedianStoppingRule):
        """Compares with trials of earlier sessions too."""

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            super().on_trial_add(tune_controller, trial)
            record = book.trials[trial.config["number"]]
            if record.rows:
                self._results[trial] = _decided(study, record)

    scheduler = _sparing_points(Median, study)(
        **_common(study),
        grace_period=study.scheduler.grace_epochs,
        min_samples_required=study.scheduler.samples,
    )
    for record in book.trials.values():
        if record.state and record.rows:
            scheduler._results[trial_id(record.number)] = _decided(study, record)
    return scheduler


def _sparing_points(base: type, study: Study) -> type:
    """The scheduler, under which starting points count but run to their end where the study says so."""
    if not study.keep_points:
        return base

    class Sparing(base):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> Any:
            from ray.tune.schedulers import TrialScheduler

            decision = super().on_trial_result(tune_controller, trial, result)
            number = number_of(trial.trial_id)
            is_point = number < len(study.points) and int(result["epoch"]) < study.budget.epochs
            return TrialScheduler.CONTINUE if is_point else decision

    Sparing.__name__ = base.__name__
    return Sparing


def _common(study: Study) -> dict[str, Any]:
    ((metric, mode),) = study.objectives.items()
    return {"time_attr": "epoch", "metric": metric, "mode": mode}


def _decided(study: Study, record: TrialRecord) -> list[dict[str, float]]:
    """The rows that the scheduler was shown, in order."""
    return [
        row
        for epoch, row in sorted(record.rows.items())
        if epoch % study.report_interval == 0 or epoch == record.epochs
    ]


_BUILDERS = {
    "asha": _asha,
    "hyperband": _hyperband,
    "median": _median,
    "pbt": population_scheduler,
    "pb2": population_scheduler,
}
