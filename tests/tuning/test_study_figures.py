"""A trial that was stopped early is in the figures, and never as if it had ended."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darkarc.config import Config
from darkarc.tuning import Study, parse_study
from darkarc.tuning.book import FAILED, FINISHED, PRUNED, StudyBook
from darkarc.tuning.figures import as_optuna, draw_figures, history, importances, parallel_coordinates

Tree = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
N_TRIALS, N_EPOCHS = 16, 4
SPACE = {
    "train.policy": {"choice": ["one_cycle", "plateau"]},
    "model.dropout": {"uniform": [0.0, 0.4]},
    "train.warmup": {"uniform": [0.0, 0.5], "when": {"train.policy": "one_cycle"}},
}


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield
    pyplot.close("all")


@pytest.fixture
def study(study_tree: Tree) -> Study:
    budget = {"trials": N_TRIALS, "epochs": N_EPOCHS}
    return parse_study(study_tree(space=SPACE, budget=budget, scheduler="asha", algorithm="tpe"), Config())


@pytest.fixture
def book(study: Study, tmp_path: Path) -> Iterator[StudyBook]:
    """The error is the dropout, and rises with the epochs: a trial that stops early looks best. Every fourth
    trial finishes, number 1 fails."""
    with StudyBook(tmp_path / "book.jsonl", {}) as book:
        for number in range(N_TRIALS):
            dropout = 0.1 + 0.2 * ((7 * number) % N_TRIALS) / N_TRIALS
            assignment: dict[str, Any] = {"train.policy": "plateau", "model.dropout": dropout}
            if number % 2:
                assignment |= {"train.policy": "one_cycle", "train.warmup": 0.1}
            book.suggest(number, assignment, {})
            finished = number % 4 == 0
            last = N_EPOCHS if finished else 1 + number % 2
            rows = [{"epoch": e, "val_mae_dex": dropout * e} for e in range(1, last + 1)]
            state = FAILED if number == 1 else FINISHED if finished else PRUNED
            book.report(number, rows, checkpoint="", end=(state, "why"))
        yield book


def stopped(book: StudyBook) -> list[int]:
    return [number for number, trial in book.trials.items() if trial.state == PRUNED]


def test_history_s_best_is_of_finished_trials(study: Study, book: StudyBook) -> None:
    axes = history(study, book)
    (best,) = [line for line in axes.lines if len(line.get_xdata()) > 1]
    ends = [trial.last["val_mae_dex"] for trial in book.trials.values() if trial.state == FINISHED]
    assert np.nanmin(np.asarray(best.get_ydata(), dtype=float)) == min(ends)
    points = [np.asarray(group.get_offsets()) for group in axes.collections]
    finished, early = points[0], points[-1]
    np.testing.assert_allclose(finished[:, 1], ends)
    assert finished[:, 0].tolist() == [0, 4, 8, 12], "trials keep their numbers beside one that failed"
    assert early[:, 0].tolist() == stopped(book)
    assert early[:, 1].min() < min(ends), "the trap is set"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "stopped early: at its last epoch" in labels


def test_only_a_finished_trial_has_a_value(study: Study, book: StudyBook) -> None:
    trials = as_optuna(study, book).get_trials()
    assert [t.state.name for t in trials[:5]] == ["COMPLETE", "FAIL", "PRUNED", "PRUNED", "COMPLETE"]
    assert as_optuna(study, book).best_trial.number == 0
    assert all((trial.values is None) == (trial.number % 4 != 0) for trial in trials)


def test_parallel_coordinates_give_a_stopped_trial_no_objective(study: Study, book: StudyBook) -> None:
    axes = parallel_coordinates(study, book, "val_mae_dex")
    lines = {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert set(lines) == {"0", "4", "8", "12", *(f"{number} stopped early" for number in stopped(book))}
    for label, line in lines.items():
        number = int(label.split()[0])
        objective, policy, dropout, warmup = np.asarray(line.get_ydata(), dtype=float)
        assert np.isnan(objective) == (number in stopped(book))
        assert policy == (0.0 if number % 2 else 1.0)
        assert dropout == pytest.approx(float(book.trials[number].assignment["model.dropout"]) / 0.4)
        assert warmup == pytest.approx(0.2) if number % 2 else warmup < 0, "not used"
    assert "4 trials finished; dashed: 11 stopped early" in axes.get_title()
    ends = [lines[str(number)].get_ydata()[0] for number in (0, 4, 8, 12)]
    assert (min(ends), max(ends)) == (0.0, 1.0)


def test_importances_compare_all_trials_at_one_age(study: Study, book: StudyBook) -> None:
    """By their last values the dropout would count little: those of different ages are not alike."""
    axes = importances(study, book, "val_mae_dex")
    assert axes.get_title() == "Importances for val_mae_dex, 15 trials, epoch 1"
    labels = [label.get_text() for label in axes.get_yticklabels()]
    width = dict(zip(labels, [bar.get_width() for bar in axes.patches], strict=False))
    assert width["model.dropout"] > 0.6
    again = importances(study, book, "val_mae_dex")
    assert [bar.get_width() for bar in again.patches] == [bar.get_width() for bar in axes.patches]


def test_all_figures_are_drawn(study: Study, book: StudyBook, tmp_path: Path) -> None:
    names = {path.stem for path in draw_figures(study, book, tmp_path / "figures")}
    assert names == {"history", "curves", "importances", "parallel_coordinates"}
