"""Study files: every shipped one is valid, and each mistake is named with its key and the way out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darkarc import config as configuration
from darkarc.config import Config
from darkarc.tuning import StudyError, load_study, parse_study
from darkarc.tuning.study import starting_point

STUDIES = Path(__file__).resolve().parents[2] / "experiments"
Tree = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("name", ["quick", "bayesian", "population", "evolutionary", "paper"])
def test_shipped_studies_are_valid(name: str) -> None:
    study = load_study(STUDIES / f"{name}.yaml", Config())
    assert study.name == name
    assert starting_point(study, Config(), 0).keys() <= Config().flat().keys()


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"absent\.yaml: cannot read"):
        load_study(tmp_path / "absent.yaml", Config())
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(StudyError, match=r"broken\.yaml: not valid YAML"):
        load_study(tmp_path / "broken.yaml", Config())
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(StudyError, match="expected keys"):
        load_study(tmp_path / "list.yaml", Config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"budget": {"trials": 4, "epochs": 2, "epoks": 2}},
            "budget.epoks: unknown key; did you mean epochs",
        ),
        ({"budget": {"trials": 4}}, "budget.epochs: is missing"),
        ({"nam": "x"}, "nam: unknown key; did you mean name"),
        ({"algorithm": "tpee"}, "algorithm.name: .*found 'tpee'"),
        ({"objectives": {"val_mae": "min"}}, "objectives.val_mae: no such metric; did you mean val_mae_dex"),
        ({"objectives": {"val_loss": "max"}}, "max searches for the worst; write min"),
        ({"space": {"train.learning_rat": {"uniform": [0.1, 1]}}}, "did you mean train.learning_rate"),
        ({"space": {"train.batch_size": {"integer": [1, 32]}}}, "train.batch_size: .*found 1"),
        ({"space": {"model.dropout": {"uniform": [0, 1]}}}, "model.dropout: .*less than 1"),
        ({"space": {"model.backbone": {"choice": ["small_resnet", "vgg"]}}}, "no such backbone 'vgg'"),
        ({"space": {"model.head": {"choice": ["binned", "bin"]}}}, "model.head: .*found 'bin'"),
        ({"space": {"prepare.mass_bins": {"integer": [1, 4]}}}, "only model and train can vary"),
        ({"space": {"train.epochs": {"integer": [1, 4]}}}, "budget.epochs is the length"),
        ({"space": {"train.members": {"integer": [1, 4]}}}, "a trial trains one member; set it in params"),
        (
            {"space": {"model.recalibration": {"choice": ["none", "local"]}}},
            "it mends a model that is trained",
        ),
        ({"space": {"model.smooth_bins": {"choice": [True, False]}}}, "it mends a model that is trained"),
        ({"space": {"model.vortex_fit": {"choice": [True, False]}}}, "its weight is fitted to a model"),
        ({"space": {"train.epochs": {"uniform": [2, 1]}}}, r"found \[2, 1\]"),
        ({"points": [{"model.width": 1.0}]}, r"points\[0\]: model.width is not in the space"),
        ({"points": [{"model.dropout": 0.7}]}, r"points\[0\]: model.dropout: 0.7 is outside"),
        ({"points": [{}]}, r"points\[0\]: train.learning_rate: 1.0 \(its value in params.yaml\)"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str, study_tree: Tree) -> None:
    config = configuration.parse({"train": {"learning_rate": 1.0}})
    with pytest.raises(StudyError, match=f"my.yaml: .*{message}"):
        parse_study(study_tree(**changes), config, "my.yaml")


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ({"choice": [0.1, 0.2], "when": {"model.head": "binned"}}, "must be a `choice` of this space"),
        ({"choice": [0.1, 0.2], "when": {"train.policy": "cosine"}}, "train.policy never is 'cosine'"),
        ({"choice": [0.1, 0.2], "when": {"train.policy": []}}, "train.policy: .* found an empty list"),
        (
            {"choice": [0.1, 0.2], "when": {"train.warmup": 0.1}},
            "train.warmup depend on each other in a circle",
        ),
    ],
)
def test_conditions_must_be_reachable(dimension: dict[str, Any], message: str, study_tree: Tree) -> None:
    space = {"train.policy": {"choice": ["one_cycle", "plateau"]}, "train.warmup": dimension}
    with pytest.raises(StudyError, match=message):
        parse_study(study_tree(space=space), Config())


def test_conditions_that_exclude_each_other_are_named(study_tree: Tree) -> None:
    space = {
        "train.policy": {"choice": ["one_cycle", "plateau"]},
        "train.optimiser": {"choice": ["sgd", "lion"], "when": {"train.policy": "plateau"}},
        "train.momentum": {
            "uniform": [0.8, 0.9],
            "when": {"train.policy": ["one_cycle"], "train.optimiser": "sgd"},
        },
    }
    with pytest.raises(StudyError, match=r"momentum: when: never searched, .* values of train\.policy"):
        parse_study(study_tree(space=space), Config())
    space["train.momentum"]["when"]["train.policy"] = ["one_cycle", "plateau"]
    assert parse_study(study_tree(space=space), Config()).space["train.momentum"].when


def test_ends_behind_a_chain_of_conditions_are_checked_too(study_tree: Tree) -> None:
    """The only way to the last key is the second value of the first one."""
    space = {
        "train.policy": {"choice": ["one_cycle", "plateau"]},
        "train.optimiser": {"choice": ["sgd", "lion"], "when": {"train.policy": "plateau"}},
        "train.momentum": {
            "uniform": [0.8, 7.0],
            "when": {"train.optimiser": "sgd", "train.policy": ["one_cycle", "plateau"]},
        },
    }
    with pytest.raises(StudyError, match=r"train\.momentum: .*found 7\.0"):
        parse_study(study_tree(space=space), Config())


def test_a_starting_point_sets_nothing_that_does_not_count(study_tree: Tree) -> None:
    points = [{"train.policy": "plateau", "train.warmup": 0.1}]
    with pytest.raises(
        StudyError, match=r"points\[0\]: train\.warmup counts only where train\.policy is one_cy"
    ):
        parse_study(study_tree(space=WHEN, points=points), Config())


def test_a_starting_point_takes_its_gaps_from_the_parameters(study_tree: Tree) -> None:
    space = {
        "train.policy": {"choice": ["one_cycle", "plateau"]},
        "train.warmup": {"uniform": [0.0, 0.5], "when": {"train.policy": "one_cycle"}},
        "train.plateau_patience": {"integer": [1, 5], "when": {"train.policy": "plateau"}},
    }
    study = parse_study(study_tree(space=space, points=[{}, {"train.policy": "plateau"}]), Config())
    assert starting_point(study, Config(), 0) == {"train.policy": "one_cycle", "train.warmup": 0.25}
    assert starting_point(study, Config(), 1) == {"train.policy": "plateau", "train.plateau_patience": 3}


NUMBERS = {"model.dropout": {"uniform": [0, 0.5]}, "train.weight_decay": {"uniform": [0, 0.5]}}
WHEN = {
    "train.policy": {"choice": ["one_cycle", "plateau"]},
    "train.warmup": {"uniform": [0.0, 0.5], "when": {"train.policy": "one_cycle"}},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": "pbt", "algorithm": "tpe"}, "Ray refuses a second one: write algorithm: random"),
        (
            {"scheduler": "pbt", "space": {"model.width": {"uniform": [1, 2]}}},
            "model.width: pbt copies the weights .* cannot change under them",
        ),
        (
            {"scheduler": "pb2", "space": {"train.dihedral": {"choice": ["flips", "none"]}}},
            "pb2 models real numbers",
        ),
        ({"scheduler": "pbt", "budget": {"trials": 2, "epochs": 4}}, "leaves none to copy; use at least 4"),
        ({"scheduler": {"name": "pbt", "interval_epochs": 3}}, "hold no exchange every 3; use at least 6"),
        (
            {"scheduler": {"name": "pbt", "interval_epochs": 2}, "budget": {"trials": 4, "epochs": 5}},
            "5 is no multiple|5 epochs is no multiple",
        ),
        ({"algorithm": "nsga2"}, "nsga2 weighs two objectives"),
        (
            {"objectives": {"val_mae_dex": "min", "million_parameters": "min"}},
            "searches for one objective, found 2",
        ),
        (
            {
                "algorithm": "nsga2",
                "scheduler": "asha",
                "objectives": {"val_mae_dex": "min", "million_parameters": "min"},
            },
            "asha stops trials by one objective",
        ),
        ({"scheduler": "asha", "budget": {"trials": 4, "epochs": 1}}, "asha compares epochs"),
        ({"scheduler": {"name": "asha", "grace_epochs": 2}}, "leaves nothing of 2 epochs to stop"),
        ({"scheduler": "asha", "report_epochs": 2}, "nothing to decide on within 2 epochs"),
        (
            {
                "scheduler": {"name": "asha", "grace_epochs": 3},
                "report_epochs": 2,
                "budget": {"trials": 4, "epochs": 6},
            },
            "asha decides first after 3, .* every 2 epochs .* make it a multiple",
        ),
        ({"scheduler": "asha", "objectives": {"train_seconds": "min"}}, "cannot compare trials by a cost"),
        (
            {"scheduler": "hyperband", "budget": {"trials": 4, "epochs": 3, "seconds": 9}},
            "a time limit ends most of them undecided",
        ),
        ({"algorithm": "grid"}, "a grid needs values, not a range"),
        (
            {"algorithm": "grid", "space": {"model.dropout": {"choice": [0, 0.1, 0.2]}}},
            "3 points, but 4 trials",
        ),
        ({"algorithm": "cmaes", "space": WHEN}, "train.warmup: cmaes needs one space for all trials"),
        (
            {"scheduler": "pbt", "space": WHEN, "budget": {"trials": 4, "epochs": 4}},
            "train.warmup: pbt mutates every parameter on its own; leave `when` away",
        ),
        ({"algorithm": "cmaes", "space": WHEN}, "cmaes searches numbers, and a choice has no order"),
        (
            {"algorithm": "cmaes", "space": {"model.dropout": {"uniform": [0, 0.5]}}},
            "at least two parameters",
        ),
        (
            {"algorithm": "cmaes", "scheduler": "asha", "space": NUMBERS},
            "cmaes learns only from finished ones",
        ),
        ({"algorithm": "points", "points": [{"model.dropout": 0.1}]}, "write trials: 1, or another"),
        (
            {"points": [{"model.dropout": 0.1}], "labels": ["a", "b"]},
            "labels: 2 names for 1 points; name each or none",
        ),
        (
            {"budget": {"trials": 4, "epochs": 4, "trial_seconds": 3}, "scheduler": "asha"},
            "budget.trial_seconds: asha compares trials at the same epoch",
        ),
        ({"points": [{"model.dropout": 0.1}] * 5}, "5 starting points, but budget.trials is 4"),
    ],
)
def test_combinations_that_cannot_work_are_refused(
    changes: dict[str, Any], message: str, study_tree: Tree
) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study(study_tree(**changes), Config())


def test_equal_seconds_refuse_a_schedule_of_epochs(study_tree: Tree) -> None:
    step = {"epoch": 1, "values": {"model.dropout": 0.1}}
    config = configuration.parse({"train": {"epochs": 3, "schedule": [step]}})
    with pytest.raises(StudyError, match=r"train\.schedule in params\.yaml belongs to one number of epochs"):
        parse_study(study_tree(budget={"trials": 4, "epochs": 3, "trial_seconds": 3}), config)


def test_a_population_refuses_early_stopping(study_tree: Tree) -> None:
    config = configuration.parse({"train": {"early_stopping": 3}})
    with pytest.raises(StudyError, match=r"-S train\.early_stopping=0"):
        parse_study(study_tree(scheduler="pbt", budget={"trials": 4, "epochs": 4}), config)
