"""Equal seconds: planned epochs fill the budget, on the clock of the trial's own cores."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.tracking import NullTracker
from darkarc.training import train
from darkarc.tuning import parse_study
from darkarc.tuning.data_view import SearchView
from darkarc.tuning.study import Study, resolve
from darkarc.tuning.timing import clock, planned_epochs

Tree = Callable[..., dict[str, Any]]
SECONDS = 1.5


@pytest.fixture
def study(study_tree: Tree, tiny_config: Config) -> Study:
    budget = {"trials": 4, "epochs": 1000, "trial_seconds": SECONDS}
    return parse_study(study_tree(budget=budget), tiny_config)


def test_a_network_gets_the_epochs_that_fit(
    study: Study, tiny_config: Config, prepared: Store, tmp_path: Path
) -> None:
    view = SearchView.of(prepared)
    small = resolve(tiny_config, {"model.width": 0.25, "device": "cpu"})
    large = resolve(tiny_config, {"model.width": 4.0, "device": "cpu"})
    planned_epochs(small, view, study, tmp_path)  # what a process loads once is not the subject
    n_small = planned_epochs(small, view, study, tmp_path)
    n_large = planned_epochs(large, view, study, tmp_path)
    assert n_small > 2 * n_large >= 2
    assert not (tmp_path / "timing").exists()
    began = clock(study)
    planned = resolve(small, {"train.epochs": n_small})
    train(planned, view, workdir=tmp_path, tracker=NullTracker(), progress=False)
    assert 0.4 * SECONDS < clock(study) - began < 2.5 * SECONDS


def test_there_is_always_one_epoch_and_never_more_than_the_budget_s(
    study: Study, tiny_config: Config, prepared: Store, tmp_path: Path
) -> None:
    view, config = SearchView.of(prepared), resolve(tiny_config, {"device": "cpu"})

    def planned(**budget: float) -> int:
        changed = study.budget.model_copy(update=budget)
        return planned_epochs(config, view, study.model_copy(update={"budget": changed}), tmp_path)

    assert planned(trial_seconds=1e-3) == 1
    assert planned(trial_seconds=100.0, epochs=3) == 3


def test_waiting_for_others_is_not_counted_on_the_cpu(study: Study) -> None:
    began = clock(study)
    time.sleep(0.3)
    assert clock(study) - began < 0.2
    on_gpu = study.model_copy(update={"resources": study.resources.model_copy(update={"gpus": 0.5})})
    began = clock(on_gpu)
    time.sleep(0.05)
    assert clock(on_gpu) - began >= 0.05
