"""Every algorithm and every scheduler runs a real study: real training, Ray's workers, MLflow."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.tuning import StudyResult, parse_study, run_study
from darkarc.tuning.book import StudyBook
from darkarc.tuning.schedulers import build_scheduler
from darkarc.tuning.trial import Trainable, TrialSettings, make_trainable

Tree = Callable[..., dict[str, Any]]
TWO = {"val_calibration": "min", "million_parameters": "min"}
CHOICES = {"train.dihedral": {"choice": ["none", "flips"]}, "model.dropout": {"choice": [0.0, 0.2]}}

CONDITIONAL = {
    "train.policy": {"choice": ["one_cycle", "plateau"]},
    "train.warmup": {"uniform": [0.0, 0.5], "when": {"train.policy": "one_cycle"}},
}

STUDIES: dict[str, dict[str, Any]] = {
    "random": {},
    "grid": {"algorithm": "grid", "space": CHOICES, "budget": {"trials": 4, "epochs": 1}},
    "points": {
        "algorithm": "points",
        "points": [{"model.dropout": 0.1}, {"model.dropout": 0.2}],
        "space": {"model.dropout": {"uniform": [0, 0.5]}},
        "budget": {"trials": 2, "epochs": 1},
    },
    "tpe": {
        "algorithm": {"name": "tpe", "startup_trials": 2},
        "points": [{"train.policy": "plateau"}],
        "space": CONDITIONAL,
    },
    "gp": {"algorithm": {"name": "gp", "startup_trials": 2}, "space": CONDITIONAL},
    "cmaes": {"algorithm": {"name": "cmaes", "startup_trials": 1}},
    "nsga2": {
        "algorithm": {"name": "nsga2", "population": 2},
        "objectives": TWO,
        "space": {"model.width": {"uniform": [0.3, 0.6]}, "model.dropout": {"uniform": [0, 0.3]}},
    },
    "asha": {
        "scheduler": {"name": "asha", "grace_epochs": 2, "reduction": 2},
        "budget": {"trials": 4, "epochs": 5},
        "report_epochs": 2,
    },
    "hyperband": {"scheduler": {"name": "hyperband", "reduction": 2}, "budget": {"trials": 4, "epochs": 3}},
    "median": {"scheduler": {"name": "median", "samples": 1}, "budget": {"trials": 4, "epochs": 3}},
    "tpe with hyperband": {
        "algorithm": {"name": "tpe", "startup_trials": 2},
        "scheduler": {"name": "hyperband", "reduction": 2},
        "budget": {"trials": 5, "epochs": 3},
    },
    "pbt": {"scheduler": "pbt", "budget": {"trials": 4, "epochs": 3}},
    "pb2": {"scheduler": "pb2", "budget": {"trials": 4, "epochs": 4}},
}


def run(tree: dict[str, Any], config: Config, prepared: Store, work: Path) -> StudyResult:
    return run_study(config, parse_study(tree, config), prepared, work=work, progress=False)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs(
    name: str,
    study_tree: Tree,
    tiny_config: Config,
    prepared: Store,
    tmp_path: Path,
    tracked: str,
    ray_here: None,
) -> None:
    from mlflow import MlflowClient

    tree = study_tree(**STUDIES[name])
    result = run(tree, tiny_config, prepared, tmp_path)
    n = tree["budget"]["trials"]
    assert result.finished + result.pruned == n and result.failed == 0
    assert result.finished >= 1
    if tree.get("scheduler", "none") in ("none", "pbt", "pb2"):
        assert result.finished == n
        assert result.epochs >= n * tree["budget"]["epochs"]
    if name != "random":  # without a scheduler reports are a second apart
        records = [
            json.loads(line)
            for book in tmp_path.glob("*/book.jsonl")
            for line in book.read_text().splitlines()
        ]
        reports = [record["body"] for record in records if record.get("kind") == "report"]
        every, last = tree.get("report_epochs", 1), tree["budget"]["epochs"]
        assert reports and all(body["epoch"] % every == 0 or body["epoch"] == last for body in reports)
    client = MlflowClient(tracked)
    assert result.run_id is not None
    parent = client.get_run(result.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["study_epochs"] == result.epochs
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.run_id}'", max_results=100
    )
    assert sorted(int(child.data.tags["darkarc.trial"]) for child in children) == list(range(n))
    assert {child.info.status for child in children} == {"FINISHED"}
    assert all(child.data.tags["darkarc.reason"] for child in children)
    assert {"val_mae_dex", "val_loss", "train_seconds"} <= children[0].data.metrics.keys()
    best = min if name != "nsga2" else None
    if best is not None:
        winner = result.document["trial"]
        (own,) = [child for child in children if child.data.tags["darkarc.trial"] == str(winner)]
        assert own.data.metrics["val_mae_dex"] == result.document["objectives"]["val_mae_dex"]
    figures = {Path(file.path).name for file in client.list_artifacts(result.run_id, "figures")}
    assert "parallel_coordinates" in " ".join(figures)
    assert ("pareto_front.png" if name == "nsga2" else "history.png") in figures


@pytest.mark.parametrize("patience_s", [None, 1])
def test_a_worker_that_lets_the_next_trial_wait_loses_none(
    patience_s: int | None,
    study_tree: Tree,
    tiny_config: Config,
    prepared: Store,
    tmp_path: Path,
    tracked: str,
    ray_here: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """HyperBand's paused trials leave a worker to others, and take their time about it. Ray waits for them
    for a while, then drops the next trial and tells nobody."""

    def lingering(settings: TrialSettings) -> Trainable:
        run_trial = make_trainable(settings)

        def run(trial: dict[str, Any]) -> None:
            if patience_s is not None:
                os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(patience_s)
            try:
                run_trial(trial)
            finally:
                time.sleep(2.5)  # Ray's own patience is 2 seconds

        return run

    study = parse_study(study_tree(**STUDIES["hyperband"]), tiny_config)
    result = run_study(tiny_config, study, prepared, work=tmp_path, progress=False, trainable=lingering)
    assert result.finished >= 1 and result.finished + result.pruned == 4
    assert ("dropped trials" in caplog.text) == (patience_s is not None)


def test_hyperband_goes_on_when_a_trial_ends_by_itself(
    study_tree: Tree, tiny_config: Config, tmp_path: Path, ray_here: None
) -> None:
    """A trial that stops early in a bracket's second rung, where the others are paused: they go on."""
    from ray import tune

    scheduler = {"name": "hyperband", "reduction": 2}
    study = parse_study(study_tree(scheduler=scheduler, budget={"trials": 14, "epochs": 8}), tiny_config)

    def trial(config: dict[str, Any]) -> None:
        checkpoint = tune.get_checkpoint()
        done = json.loads((Path(checkpoint.path) / "epoch").read_text()) if checkpoint else 0
        # Brackets of 4, 4 and 6 trials: the last one is halved after epochs 2 and 4.
        last = 3 if config["number"] == 8 else 8
        for epoch in range(done + 1, last + 1):
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "epoch").write_text(str(epoch))
                tune.report(
                    {"epoch": epoch, "val_mae_dex": 1 + config["number"]},
                    checkpoint=tune.Checkpoint.from_directory(folder),
                )
        if last == 3:
            time.sleep(4)  # the others are at epoch 4 by then

    with StudyBook(tmp_path / "book.jsonl", {}) as book:
        analysis = tune.run(
            trial,
            config={"number": tune.grid_search(list(range(14)))},
            scheduler=build_scheduler(study, book),
            storage_path=str(tmp_path),
            resources_per_trial={"cpu": 1},
            reuse_actors=True,
            verbose=0,
        )
    epochs = {one.config["number"]: one.last_result["epoch"] for one in analysis.trials}
    assert epochs[8] == 3
    assert sorted(epochs[number] for number in range(9, 14)) == [2, 2, 2, 8, 8]


DAY_S = 86_400.0


def clock_that_jumps(monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    """From the first report of a trial on, the time of day is another for the whole of the driver."""
    from darkarc.tuning.callback import StudyCallback

    real, report = time.time, StudyCallback.log_trial_result

    def jump(self: StudyCallback, *arguments: Any) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + by_s)
        report(self, *arguments)

    monkeypatch.setattr(StudyCallback, "log_trial_result", jump)


def test_a_clock_that_jumps_forwards_ends_no_study(
    study_tree: Tree,
    tiny_config: Config,
    prepared: Store,
    tmp_path: Path,
    tracked: str,
    ray_here: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock_that_jumps(monkeypatch, DAY_S)
    tree = study_tree(budget={"trials": 4, "epochs": 2, "seconds": 3600})
    result = run(tree, tiny_config, prepared, tmp_path)
    assert (result.finished, result.pruned, result.failed) == (4, 0, 0)


@pytest.mark.slow
@pytest.mark.drill
def test_a_clock_that_jumps_back_lets_no_study_run_on(
    study_tree: Tree,
    tiny_config: Config,
    prepared: Store,
    tmp_path: Path,
    tracked: str,
    ray_here: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock_that_jumps(monkeypatch, -DAY_S)
    tree = study_tree(budget={"trials": 2, "epochs": 2_000, "seconds": 20}, concurrent=2)
    began = time.monotonic()
    result = run(tree, tiny_config, prepared, tmp_path)
    assert result.finished == 0 and result.epochs > 0
    assert 20 < time.monotonic() - began < 400


def test_a_population_s_schedule_is_replayed_to_the_bit(
    study_tree: Tree, tiny_config: Config, prepared: Store, tmp_path: Path, tracked: str, ray_here: None
) -> None:
    """What the winner of PBT measured, `train` measures again from its file alone."""
    import torch

    from darkarc.tracking import NullTracker
    from darkarc.training import train
    from darkarc.tuning import apply_winner, write_winner

    tree = study_tree(scheduler={"name": "pbt", "quantile": 0.5}, budget={"trials": 4, "epochs": 4}, seed=1)
    result = run(tree, tiny_config, prepared, tmp_path / "work")
    write_winner(result.document, tmp_path / "winner.yaml")
    config = apply_winner(tiny_config, tmp_path / "winner.yaml")
    assert config.train.schedule, (
        "with half of the population replaced at each exchange the winner has mutated"
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        replayed = train(config, prepared, workdir=tmp_path / "train", tracker=NullTracker(), progress=False)
    finally:
        torch.set_num_threads(threads)
    assert len(replayed.history) == 4
    assert replayed.history[-1]["val_mae_dex"] == result.document["objectives"]["val_mae_dex"]


def test_the_same_seed_gives_the_same_winner_at_any_concurrency(
    study_tree: Tree, tiny_config: Config, prepared: Store, tmp_path: Path, tracked: str, ray_here: None
) -> None:
    one = run(study_tree(concurrent=1), tiny_config, prepared, tmp_path / "one")
    two = run(study_tree(concurrent=2), tiny_config, prepared, tmp_path / "two")
    assert one.document == two.document


def test_a_trial_that_diverges_fails_alone(
    study_tree: Tree, tiny_config: Config, prepared: Store, tmp_path: Path, tracked: str, ray_here: None
) -> None:
    from mlflow import MlflowClient

    space = {"train.learning_rate": {"choice": [1e-2, 1e30]}, "train.gradient_clip": {"choice": [0.0, 1e-6]}}
    tree = study_tree(space=space, algorithm="grid", budget={"trials": 4, "epochs": 2})
    result = run(tree, tiny_config, prepared, tmp_path)
    assert result.failed >= 1 and result.finished >= 1
    assert result.document["parameters"]["train"]["learning_rate"] == 1e-2
    runs = MlflowClient(tracked).search_runs(["1"], "attributes.status = 'FAILED'")
    assert len(runs) == result.failed
    assert "lower train.learning_rate" in runs[0].data.tags["darkarc.reason"]


def test_a_finished_study_is_not_run_again_unless_asked(
    study_tree: Tree, tiny_config: Config, prepared: Store, tmp_path: Path, tracked: str, ray_here: None
) -> None:
    study = parse_study(study_tree(budget={"trials": 2, "epochs": 1}), tiny_config)
    first = run_study(tiny_config, study, prepared, work=tmp_path, progress=False)
    again = run_study(tiny_config, study, prepared, work=tmp_path, resume=True, progress=False)
    assert again == first
    anew = run_study(tiny_config, study, prepared, work=tmp_path, progress=False)
    assert anew.run_id != first.run_id and anew.document == first.document
