"""Kills of workers, nodes and drivers: no trial lost, none counted twice, the same winner, the same runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.tuning import StudyError, parse_study, run_study

Tree = Callable[..., dict[str, Any]]
DRIVER = Path(__file__).with_name("drive_study.py")
N_TRIALS = 6
N_EPOCHS = 8


class Driver:
    """A study in a process of its own."""

    def __init__(
        self, folder: Path, config: Config, study: dict[str, Any], prepared: Store, address: str | None
    ) -> None:
        self.work, self.out = folder / "work", folder / "out.json"
        folder.mkdir(exist_ok=True)
        facts = {
            "config": config.dump(),
            "study": study,
            "prepared": str(prepared.path),
            "work": str(self.work),
            "address": address,
            "out": str(self.out),
        }
        (folder / "study.json").write_text(json.dumps(facts))
        self.log = folder / "log.txt"
        self._command = [sys.executable, str(DRIVER), str(folder / "study.json")]
        self.start()

    def start(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, env=environment, stdout=log, stderr=log)

    def booked(self, kind: str) -> list[dict[str, Any]]:
        """Bodies of the book's records of a kind, as far as they are written."""
        bodies = []
        for path in self.work.glob("*/book.jsonl"):
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if record.get("kind") == kind:
                    bodies.append(record["body"])
        return bodies

    def ended(self) -> list[int]:
        """Numbers of the trials that are over."""
        return [body["number"] for body in self.booked("report") if "end" in body]

    def outcome(self) -> dict[int, tuple[str, dict[int, float]]]:
        """Number of a trial to why it ended and its curve. Every epoch must be there once."""
        reports = self.booked("report")
        rows = [
            (body["number"], int(row["epoch"]), row["val_mae_dex"])
            for body in reports
            for row in body["rows"]
        ]
        assert set(Counter((number, epoch) for number, epoch, _ in rows).values()) == {1}
        reasons = [(body["number"], body["end"]["reason"]) for body in reports if "end" in body]
        assert sorted(body["number"] for body in self.booked("suggestion")) == sorted(dict(reasons))
        assert len(dict(reasons)) == len(reasons) and self.booked("end") == []
        return {n: (reason, {e: value for m, e, value in rows if m == n}) for n, reason in reasons}

    def wait_for_reports(self, n: int) -> None:
        self._wait(lambda: len(self.booked("report")), n, "reports")

    def wait_for_ends(self, n: int) -> None:
        self._wait(lambda: len(self.ended()), n, "trials that are over")

    def _wait(self, count: Callable[[], int], n: int, what: str, timeout_s: float = 300) -> None:
        give_up_at = time.monotonic() + timeout_s
        while (there := count()) < n:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < give_up_at, f"{there} of {n} {what}"
            time.sleep(0.05)

    def result(self, timeout_s: float = 400) -> dict[str, Any]:
        assert self.process.wait(timeout_s) == 0, self.log.read_text()[-3000:]
        return dict(json.loads(self.out.read_text()))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)


def kill_a_trial(root: psutil.Process | None = None) -> None:
    """SIGKILL the process of one running trial below `root` (default: this process)."""
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        for child in (root or psutil.Process()).children(recursive=True):
            try:
                title = " ".join(child.cmdline())
            except psutil.Error:
                continue
            if title.startswith("ray::ImplicitFunc"):
                child.kill()
                return
        time.sleep(0.02)
    raise AssertionError("no trial was running")


def check_runs(uri: str, run_id: str, epochs: dict[int, int], mutated: Sequence[str]) -> None:
    """One closed run a trial (number to epochs), with one point an epoch on every curve; `mutated`:
    parameters of a population that have a curve each."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    parent = client.get_run(run_id)
    experiment = parent.info.experiment_id
    assert client.search_runs([experiment], "attributes.status = 'RUNNING'") == []
    parents = client.search_runs([experiment], "tags.`darkarc.kind` = 'study'")
    assert [run.info.run_id for run in parents] == [run_id]
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=100)
    assert sorted(int(run.data.tags["darkarc.trial"]) for run in children) == sorted(epochs)
    for run in children:
        assert run.info.status == "FINISHED"
        n_epochs = epochs[int(run.data.tags["darkarc.trial"])]
        whole = "all epochs" if n_epochs == N_EPOCHS else f"asha after epoch {n_epochs}"
        assert run.data.tags["darkarc.reason"] == whole
        curves = {"val_mae_dex", "train_loss", "train_seconds", *(f"cfg.{key}" for key in mutated)}
        assert curves <= run.data.metrics.keys()
        for curve in run.data.metrics:
            steps = Counter(point.step for point in client.get_metric_history(run.info.run_id, curve))
            assert steps == dict.fromkeys(range(1, n_epochs + 1), 1), curve


Ended = tuple[dict[str, Any], dict[int, tuple[str, dict[int, float]]]]
"""The winner's document, and how every trial went."""


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, prepared: Store, tiny_config: Config
) -> Callable[[dict[str, Any]], Ended]:
    """How a study ends that nobody kills, each study once."""
    found: dict[str, Ended] = {}

    def run(study: dict[str, Any]) -> Ended:
        key = json.dumps(study, sort_keys=True)
        if key not in found:
            folder = tmp_path_factory.mktemp("undisturbed")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
                driver = Driver(folder, tiny_config, study, prepared, None)
                found[key] = driver.result()["document"], driver.outcome()
        return found[key]

    return run


def check_ended(driver: Driver, study: dict[str, Any], expected: Ended, uri: str) -> None:
    """The disturbed study has the winner, the trials and the curves of the undisturbed one."""
    result, outcome = driver.result(), driver.outcome()
    assert (result["document"], outcome) == expected
    assert sorted(outcome) == list(range(N_TRIALS))
    mutated = list(study["space"]) if "pb" in str(study.get("scheduler")) else []
    check_runs(uri, result["run_id"], {n: len(curve) for n, (_, curve) in outcome.items()}, mutated)


STUDIES: dict[str, dict[str, Any]] = {
    "random": {},
    "tpe": {"algorithm": {"name": "tpe", "startup_trials": 2}, "concurrent": 1},
    "asha": {"scheduler": {"name": "asha", "reduction": 2}, "concurrent": 1},
    "pbt": {"scheduler": {"name": "pbt", "interval_epochs": 2, "quantile": 0.34}},
    "pb2": {"scheduler": {"name": "pb2", "interval_epochs": 2, "quantile": 0.34}},
}


def study_of(study_tree: Tree, name: str) -> dict[str, Any]:
    """Long enough for kills to fall between."""
    return study_tree(budget={"trials": N_TRIALS, "epochs": N_EPOCHS}, **STUDIES[name])


@pytest.mark.slow
@pytest.mark.drill
@pytest.mark.parametrize("name", ["tpe", "asha", "pbt", "pb2"])
def test_a_killed_driver_goes_on_to_the_same_winner(
    name: str,
    study_tree: Tree,
    tiny_config: Config,
    prepared: Store,
    tmp_path: Path,
    tracked: str,
    undisturbed: Callable[[dict[str, Any]], Ended],
) -> None:
    study = study_of(study_tree, name)
    driver = Driver(tmp_path / "driver", tiny_config, study, prepared, None)
    driver.wait_for_reports(3)
    kill_a_trial(psutil.Process(driver.process.pid))
    driver.wait_for_reports(4)
    driver.kill()
    driver.start()
    driver.wait_for_reports(N_TRIALS + 3)  # in a population: of the second generation
    driver.kill()
    driver.start()
    check_ended(driver, study, undisturbed(study), tracked)


@pytest.mark.slow
@pytest.mark.drill
def test_a_cluster_of_three_nodes_survives_the_loss_of_a_node_a_trial_and_the_driver(
    study_tree: Tree,
    tiny_config: Config,
    prepared: Store,
    tmp_path: Path,
    tracked: str,
    undisturbed: Callable[[dict[str, Any]], Ended],
    start_cluster: Callable[..., Any],
) -> None:
    study = {**study_of(study_tree, "random"), "concurrent": 3}
    cluster, nodes = start_cluster(1, 1, 1)
    driver = Driver(tmp_path / "driver", tiny_config, study, prepared, cluster.address)
    driver.wait_for_reports(2)
    cluster.remove_node(nodes[0], allow_graceful=False)
    driver.wait_for_ends(1)
    kill_a_trial()
    driver.wait_for_ends(2)
    driver.kill()
    driver.start()
    check_ended(driver, study, undisturbed(study), tracked)


@pytest.mark.slow
@pytest.mark.drill
@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_a_population_survives_the_loss_of_a_node(
    name: str,
    study_tree: Tree,
    tiny_config: Config,
    prepared: Store,
    tmp_path: Path,
    tracked: str,
    undisturbed: Callable[[dict[str, Any]], Ended],
    start_cluster: Callable[..., Any],
) -> None:
    """All members end, each epoch once, with the exchanges of a population that lost nothing."""
    study = study_of(study_tree, name)
    cluster, nodes = start_cluster(1, 1, 1)
    driver = Driver(tmp_path / "driver", tiny_config, study, prepared, cluster.address)
    driver.wait_for_reports(N_TRIALS + 1)  # in the second generation: some wait, some train, some are due
    cluster.remove_node(nodes[0], allow_graceful=False)
    check_ended(driver, study, undisturbed(study), tracked)
    assert {body["epoch"] for body in driver.booked("exchange")} == {2, 4, 6}


@pytest.mark.slow
@pytest.mark.drill
def test_ctrl_c_leaves_a_study_that_resumes(
    study_tree: Tree,
    tiny_config: Config,
    prepared: Store,
    tmp_path: Path,
    tracked: str,
    undisturbed: Callable[[dict[str, Any]], Ended],
) -> None:
    from mlflow import MlflowClient

    study = study_of(study_tree, "random")
    driver = Driver(tmp_path / "driver", tiny_config, study, prepared, None)
    driver.wait_for_reports(3)
    driver.process.send_signal(signal.SIGINT)
    assert driver.process.wait(60) != 0
    assert "--resume" in driver.log.read_text()
    assert MlflowClient(tracked).search_runs(["1"], "attributes.status = 'RUNNING'") == []
    with pytest.raises(StudyError, match=r"was interrupted; go on with `--resume`"):
        run_study(tiny_config, parse_study(study, tiny_config), prepared, work=driver.work, progress=False)
    driver.start()
    check_ended(driver, study, undisturbed(study), tracked)
