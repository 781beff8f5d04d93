"""The winner: which trial it is, and that its file changes exactly what was searched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from darkarc import config as configuration
from darkarc.config import Config
from darkarc.tuning import Study, StudyError, apply_winner, parse_study, tune_stage, winner_tags, write_winner
from darkarc.tuning.book import FAILED, FINISHED, PRUNED, StudyBook
from darkarc.tuning.winner import best_trial, no_search, pareto_front, winner_document

Tree = Callable[..., dict[str, Any]]


def book_of(path: Path, study: Study, trials: list[tuple[str, int, dict[str, float]]]) -> StudyBook:
    book = StudyBook(path / "book.jsonl", {})
    for number, (state, epochs, values) in enumerate(trials):
        book.suggest(number, {"train.learning_rate": 1e-3 * (number + 1), "model.dropout": 0.1}, {})
        if values:
            book.report(number, [{"epoch": epochs, **values}], checkpoint="")
        if state:
            book.end(number, state, "why")
    return book


def test_a_pruned_trial_does_not_win_by_a_lucky_early_epoch(tmp_path: Path, study_tree: Tree) -> None:
    study = parse_study(study_tree(), Config())
    trials = [
        (FINISHED, 2, {"val_mae_dex": 0.3}),
        (PRUNED, 1, {"val_mae_dex": 0.1}),
        (FAILED, 2, {"val_mae_dex": 0.0}),
        (FINISHED, 2, {"val_mae_dex": 0.2}),
        (FINISHED, 2, {"val_mae_dex": 0.2}),
    ]
    with book_of(tmp_path, study, trials) as book:
        best = best_trial(study, book)
        assert best is not None and best.number == 3


def test_without_a_finished_trial_the_best_of_the_farthest_wins(tmp_path: Path, study_tree: Tree) -> None:
    study = parse_study(study_tree(budget={"trials": 4, "epochs": 9}), Config())
    trials = [
        (PRUNED, 1, {"val_mae_dex": 0.1}),
        (PRUNED, 4, {"val_mae_dex": 0.3}),
        ("", 4, {"val_mae_dex": 0.2}),
    ]
    with book_of(tmp_path, study, trials) as book:
        best = best_trial(study, book)
        assert best is not None and best.number == 2


def test_accuracy_is_maximised(tmp_path: Path, study_tree: Tree) -> None:
    study = parse_study(study_tree(objectives={"val_class_accuracy": "max"}), Config())
    trials = [(FINISHED, 2, {"val_class_accuracy": 0.7}), (FINISHED, 2, {"val_class_accuracy": 0.9})]
    with book_of(tmp_path, study, trials) as book:
        best = best_trial(study, book)
        assert best is not None and best.number == 1


def test_two_objectives_give_a_front_and_its_middle(tmp_path: Path, study_tree: Tree) -> None:
    objectives = {"val_mae_dex": "min", "million_parameters": "min"}
    study = parse_study(study_tree(objectives=objectives, algorithm="nsga2"), Config())
    pairs = [(0.10, 4.0), (0.12, 1.0), (0.50, 0.5), (0.13, 1.1), (0.50, 4.0)]
    trials = [(FINISHED, 2, dict(zip(objectives, pair, strict=True))) for pair in pairs]
    with book_of(tmp_path, study, trials) as book:
        assert [trial.number for trial in pareto_front(study, book)] == [0, 1, 2]
        best = best_trial(study, book)
        assert best is not None and best.number == 1
        assert [row["trial"] for row in winner_document(Config(), study, book)["front"]] == [0, 1, 2]


def test_the_file_changes_what_was_searched_and_nothing_else(tmp_path: Path, study_tree: Tree) -> None:
    study = parse_study(study_tree(), Config())
    with book_of(tmp_path, study, [(FINISHED, 2, {"val_mae_dex": 0.3})]) as book:
        write_winner(winner_document(Config(), study, book), tmp_path / "winner.yaml")
    later = configuration.parse({"train": {"epochs": 7, "learning_rate": 0.5}, "model": {"width": 2.0}})
    applied = apply_winner(later, tmp_path / "winner.yaml")
    changed = {key: value for key, value in applied.flat().items() if later.flat()[key] != value}
    assert changed == {"train.learning_rate": 1e-3, "model.dropout": 0.1}
    document = yaml.safe_load((tmp_path / "winner.yaml").read_text())
    assert document["parameters"]["model"].keys() == Config().dump()["model"].keys()
    assert document["parameters"]["train"]["learning_rate"] == 1e-3


def test_a_population_s_winner_is_a_schedule(tmp_path: Path, study_tree: Tree) -> None:
    study = parse_study(study_tree(scheduler="pbt", budget={"trials": 4, "epochs": 6}), Config())
    schedule = [
        {"epoch": 0, "values": {"train.learning_rate": 1e-3, "model.dropout": 0.1}},
        {"epoch": 4, "values": {"train.learning_rate": 2e-3, "model.dropout": 0.2}},
    ]
    with book_of(tmp_path, study, [("", 0, {})]) as book:
        rows = [{"epoch": 6, "val_mae_dex": 0.1}]
        book.report(0, rows, checkpoint="", position={"model.dropout": 0.2}, schedule=schedule)
        write_winner(winner_document(Config(), study, book), tmp_path / "winner.yaml")
    applied = apply_winner(Config(), tmp_path / "winner.yaml")
    assert applied.train.epochs == 6
    assert (applied.train.learning_rate, applied.model.dropout) == (1e-3, 0.1)
    assert applied.train.schedule[0].epoch == 4
    assert applied.train.schedule[0].values == {"train.learning_rate": 2e-3, "model.dropout": 0.2}
    after = configuration.without_schedule(applied, 4)
    assert (after.train.learning_rate, after.model.dropout) == (2e-3, 0.2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no winner yet; run `darkarc tune`"),
        ("[", "cannot read the winner"),
        ("searched: [a.b]\nparameters: {}", "not the file of a winner"),
        ("searched: [model.widht]\nparameters: {model: {widht: 1}}", "model.widht: no such parameter"),
        ("searched: [model.width]\nparameters: {model: {width: -1}}", "model.width: .*greater than 0"),
    ],
)
def test_a_winner_that_does_not_fit_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "winner.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StudyError, match=message):
        apply_winner(Config(), path)


def test_no_study_leaves_the_parameters_alone(tmp_path: Path) -> None:
    config = configuration.parse({"tune": {"search": False}})
    assert tune_stage(config, None, tmp_path / "no store is needed", tmp_path / "winner.yaml") is None
    assert apply_winner(config, tmp_path / "winner.yaml") == config


def test_the_winner_names_its_study_and_trial_for_the_run(tmp_path: Path) -> None:
    path = tmp_path / "winner.yaml"
    write_winner({"study": "quick", "trial": 0, "searched": [], "parameters": {}}, path)
    assert winner_tags(path) == {"darkarc.study": "quick", "darkarc.trial": "0"}
    write_winner(no_search(Config()), path)
    assert winner_tags(path) == {}
    path.write_text("- 1\n")
    with pytest.raises(StudyError, match=r"winner\.yaml: not the file of a winner \(a list\)"):
        winner_tags(path)
