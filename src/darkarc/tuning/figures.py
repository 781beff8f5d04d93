"""Figures of a study, drawn by Optuna: history, parallel coordinates, importances, curves, Pareto front."""

import logging
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkarc.tuning.book import FAILED, FINISHED, StudyBook
from darkarc.tuning.proposer import distribution, new_optuna_study
from darkarc.tuning.study import Study

if TYPE_CHECKING:
    import optuna

_logger = logging.getLogger(__name__)


def draw_figures(study: Study, book: StudyBook, folder: Path) -> list[Path]:
    """PNG files in `folder`. What cannot be drawn (importances of two trials) is left out and logged."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    finished = as_optuna(study, book)
    wanted: dict[str, Callable[[], Any]] = {}
    if len(study.objectives) > 1:
        names = list(study.objectives)
        wanted["pareto_front"] = lambda: plots.plot_pareto_front(finished, target_names=names)
    else:
        (name,) = study.objectives
        wanted["history"] = lambda: plots.plot_optimization_history(finished, target_name=name)
        wanted["curves"] = lambda: plots.plot_intermediate_values(finished)
    for index, name in enumerate(study.objectives):
        suffix = f"_{name}" if len(study.objectives) > 1 else ""
        of: dict[str, Any] = {"target_name": name}
        if len(study.objectives) > 1:
            of["target"] = _objective(index)
        wanted[f"importances{suffix}"] = partial(plots.plot_param_importances, finished, **of)
        wanted[f"parallel_coordinates{suffix}"] = partial(plots.plot_parallel_coordinate, finished, **of)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for label, draw in wanted.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental interfaces, and layouts of crowded axes
            try:
                draw()
                pyplot.gcf().set_size_inches(10, 6)
                path = folder / f"{label}.png"
                pyplot.gcf().savefig(path, dpi=120, bbox_inches="tight")
                paths.append(path)
            except Exception as error:
                _logger.info("the figure %s of the study %s was not drawn: %s", label, study.name, error)
            finally:
                pyplot.close("all")
    return paths


def as_optuna(study: Study, book: StudyBook) -> "optuna.Study":
    """The book as an Optuna study; a pruned trial has the value of its last epoch."""
    import optuna

    result = new_optuna_study(study)
    names = list(study.objectives)
    for record in sorted(book.trials.values(), key=lambda record: record.number):
        known = record.state != FAILED and all(name in record.last for name in names)
        if not known:
            continue
        params = dict(record.assignment)
        if study.is_population and record.schedule:
            params = dict(record.schedule[-1]["values"])
        state = (
            optuna.trial.TrialState.COMPLETE if record.state == FINISHED else optuna.trial.TrialState.PRUNED
        )
        result.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=[record.last[name] for name in names]
                if record.state == FINISHED or len(names) == 1
                else None,
                params=params,
                distributions={key: distribution(study.space[key]) for key in params},
                intermediate_values={}
                if len(names) > 1
                else {epoch: row[names[0]] for epoch, row in sorted(record.rows.items()) if names[0] in row},
            )
        )
    return result


def _objective(index: int) -> Callable[["optuna.trial.FrozenTrial"], float]:
    return lambda trial: float(trial.values[index])
