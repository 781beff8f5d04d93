"""Figures of a study: history, parallel coordinates, importances, curves, Pareto front; most by Optuna.

A trial that was stopped early has no final value: its last epoch is a value of another age. History marks it
as such, parallel coordinates show where it was and no objective, and importances compare all trials at the
last epoch that each of them has seen.
"""

import logging
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkarc.tuning.book import FAILED, FINISHED, StudyBook, TrialRecord
from darkarc.tuning.proposer import distribution, new_optuna_study
from darkarc.tuning.space import Assignment
from darkarc.tuning.study import Study

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes

STOPPED = "stopped early"
UNUSED = -0.12
"""Height of a parameter that does not count in a trial, where 0 and 1 are the ends of its axis."""

_logger = logging.getLogger(__name__)


def draw_figures(study: Study, book: StudyBook, folder: Path) -> list[Path]:
    """PNG files in `folder`. What cannot be drawn (importances of two trials) is left out and logged."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    wanted: dict[str, Callable[[], Any]] = {}
    names = list(study.objectives)
    if len(names) > 1:
        wanted["pareto_front"] = lambda: plots.plot_pareto_front(as_optuna(study, book), target_names=names)
    else:
        wanted["history"] = lambda: history(study, book)
        wanted["curves"] = lambda: plots.plot_intermediate_values(as_optuna(study, book))
    for name in names:
        suffix = f"_{name}" if len(names) > 1 else ""
        wanted[f"importances{suffix}"] = partial(importances, study, book, name)
        wanted[f"parallel_coordinates{suffix}"] = partial(parallel_coordinates, study, book, name)
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


def history(study: Study, book: StudyBook) -> "Axes":
    """Values over trials and the best so far, of finished trials; those stopped early beside them."""
    from optuna.visualization.matplotlib import plot_optimization_history

    (name,) = study.objectives
    axes = plot_optimization_history(as_optuna(study, book), target_name=name)
    stopped = [trial for trial in _known(study, book) if trial.state != FINISHED]
    if stopped:
        axes.scatter(
            [trial.number for trial in stopped],
            [trial.last[name] for trial in stopped],
            marker="x",
            color="grey",
            label=f"{STOPPED}: at its last epoch",
        )
        axes.legend()
    return axes


def importances(study: Study, book: StudyBook, name: str) -> "Axes":
    """Importances for an objective, over all trials, at the last epoch that each of them has seen."""
    from optuna.visualization.matplotlib import plot_param_importances

    known = _known(study, book)
    whole = all(trial.state == FINISHED for trial in known)
    epoch = 0 if whole else min(trial.epochs for trial in known)
    result = new_optuna_study(study.model_copy(update={"objectives": {name: study.objectives[name]}}))
    for trial in known:
        row = trial.last if whole else trial.rows[epoch]
        result.add_trial(_frozen(study, trial, "COMPLETE", values=[row[name]]))
    shown = name if whole else f"{name} after epoch {epoch}"
    axes = plot_param_importances(result, target_name=shown)
    axes.set_title(f"Importances for {name}, {len(known)} trials" + ("" if whole else f", epoch {epoch}"))
    return axes


def parallel_coordinates(study: Study, book: StudyBook, name: str) -> "Axes":
    """A line a trial over its parameters; that of a finished one begins at its objective and has its colour.

    A parameter that does not count in a trial is passed below its axis.
    """
    from matplotlib import pyplot
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    keys = list(study.space)
    known = _known(study, book)
    values = [trial.last[name] for trial in known if trial.state == FINISHED]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    colours = ScalarMappable(
        Normalize(low, high), "viridis" if study.objectives[name] == "max" else "viridis_r"
    )
    figure, axes = pyplot.subplots()
    for trial in sorted(known, key=lambda trial: trial.state == FINISHED):
        heights = [_height(study, _parameters(study, trial), key) for key in keys]
        if trial.state == FINISHED:
            value = trial.last[name]
            start = 0.5 if high == low else (value - low) / (high - low)
            axes.plot(
                [start, *heights],
                color=colours.cmap(start),
                alpha=0.8,
                label=str(trial.number),
            )
        else:
            axes.plot(
                [math.nan, *heights], "--", color="lightgrey", zorder=0, label=f"{trial.number} {STOPPED}"
            )
    for place, key in enumerate(keys, start=1):
        dimension = study.space[key]
        axes.axvline(place, color="black", linewidth=0.5)
        for example in dimension.examples:
            shown = f"{example:g}" if dimension.is_numeric else str(example)
            axes.annotate(shown, (place, _height(study, {key: example}, key)), fontsize="x-small")
        if dimension.when:
            axes.annotate("not used", (place, UNUSED), fontsize="x-small", color="grey")
    axes.axvline(0, color="black", linewidth=0.5)
    axes.set_xticks(range(len(keys) + 1), [name, *keys], rotation=30, ha="right")
    axes.set_yticks([0, 1], [f"{low:.4g}", f"{high:.4g}"])
    axes.set_title(
        f"{len(values)} trials finished; dashed: {len(known) - len(values)} {STOPPED}, no final value"
    )
    figure.colorbar(colours, ax=axes, label=name)
    return axes


def as_optuna(study: Study, book: StudyBook) -> "optuna.Study":
    """The book as an Optuna study, with its numbers of trials; only a finished trial has a value."""
    result = new_optuna_study(study)
    names = list(study.objectives)
    known = {trial.number for trial in _known(study, book)}
    for record in sorted(book.trials.values(), key=lambda record: record.number):
        if record.number not in known:
            result.add_trial(_frozen(study, record, "FAIL"))
        elif record.state == FINISHED:
            result.add_trial(_frozen(study, record, "COMPLETE", values=[record.last[name] for name in names]))
        else:
            result.add_trial(_frozen(study, record, "PRUNED"))
    return result


def _known(study: Study, book: StudyBook) -> list[TrialRecord]:
    """Trials with a result, by number."""
    return [
        record
        for record in sorted(book.trials.values(), key=lambda record: record.number)
        if record.state != FAILED and record.rows and all(name in record.last for name in study.objectives)
    ]


def _frozen(
    study: Study, record: TrialRecord, state: str, values: list[float] | None = None
) -> "optuna.trial.FrozenTrial":
    import optuna

    parameters = _parameters(study, record)
    curve: dict[int, float] = {}
    if len(study.objectives) == 1:
        (name,) = study.objectives
        curve = {epoch: row[name] for epoch, row in sorted(record.rows.items()) if name in row}
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[state],
        values=values,
        params=parameters,
        distributions={key: distribution(study.space[key]) for key in parameters},
        intermediate_values=curve,
    )


def _parameters(study: Study, record: TrialRecord) -> Assignment:
    """Of a trial; of a population's member those that it ended with."""
    if study.is_population and record.schedule:
        return dict(record.schedule[-1]["values"])
    return dict(record.assignment)


def _height(study: Study, parameters: Assignment, key: str) -> float:
    """Of a trial's line at a parameter's axis."""
    dimension = study.space[key]
    if key not in parameters:
        return UNUSED
    if dimension.choice is not None:
        return dimension.choice.index(parameters[key]) / (len(dimension.choice) - 1)
    return dimension.coordinate(float(parameters[key]))
