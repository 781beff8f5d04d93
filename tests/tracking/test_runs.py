"""Runs: what they carry, how they end, how they go on, and that nothing is written twice."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.protos.databricks_pb2 import BAD_REQUEST, TEMPORARILY_UNAVAILABLE

from darkarc import config
from darkarc.data.store import Store
from darkarc.tracking import (
    NullTracker,
    RegistryError,
    RunRecord,
    Tracker,
    TrackingError,
    find_run,
    open_client,
    read_run,
    replay,
    start_run,
    write_run,
)
from darkarc.tracking import _sender as sender
from darkarc.tracking._sender import Sender, batches
from darkarc.tracking.journal import Journal, Record
from darkarc.tracking.registry import list_versions
from darkarc.tracking.runs import run_tags

JOURNAL = "work/journal.jsonl"

KILLED_BETWEEN_SEND_AND_ACKNOWLEDGE = """
import os, signal, sys
from darkarc import config
from darkarc.tracking import start_run
from darkarc.tracking.journal import Journal

acknowledge = Journal.acknowledge
def die_instead(self, seq, run_id):
    if self.records and self.records[seq - 1].kind == "metrics" and self.records[seq - 1].body["step"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    acknowledge(self, seq, run_id)
Journal.acknowledge = die_instead

settings = config.parse({"seed": 7, "tracking": {"system_metrics": False}})
with start_run(settings, name="train", journal="work/journal.jsonl") as tracker:
    for epoch in range(5):
        tracker.log_metrics({"loss": 1 / (1 + epoch), "odd": float("nan")}, epoch)
"""

WAITS = """
import sys, time
from darkarc import config
from darkarc.tracking import start_run
settings = config.parse({"tracking": {"system_metrics": False}})
with start_run(settings, name="train", journal="work/journal.jsonl") as tracker:
    tracker.log_metrics({"loss": 1.0}, 0)
    print(tracker.run_id, flush=True)
    time.sleep(60)
"""


def _run(run_id: str | None) -> Any:
    assert run_id is not None
    return open_client().get_run(run_id)


def _curve(run_id: str | None, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in open_client().get_metric_history(str(run_id), key))


def test_a_run_carries_its_lineage(
    project: Path, settings: config.Config, store: Store, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {
        "DVC_EXP_NAME": "bold-lens",
        "DVC_EXP_BASELINE_REV": "0123",
        "DVC_STAGE": "train",
    }.items():
        monkeypatch.setenv(name, value)
    subprocess.run(["git", "init", "-q", "."], check=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "add", "params.yaml"], check=True)
    subprocess.run(["git", *identity, "commit", "-q", "-m", "First"], check=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (project / "params.yaml").write_text("seed: 7\n")

    with start_run(
        settings, name="train", journal=JOURNAL, tags={"note": "x" * 9000}, dataset=store
    ) as tracker:
        tracker.log_params({"long": "y" * 9000})
    run = _run(tracker.run_id)

    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert tags["mlflow.source.git.commit"] == commit
    assert tags["darkarc.git_commit"] == f"{commit}+dirty"
    assert (tags["DVC_EXP_NAME"], tags["DVC_EXP_BASELINE_REV"], tags["DVC_STAGE"]) == (
        "bold-lens",
        "0123",
        "train",
    )
    assert (tags["darkarc.seed"], tags["darkarc.data_digest"]) == ("7", store.digest)
    assert len(tags["note"]) == 8000 and tags["note"].endswith("…")
    assert len(run.data.params["long"]) == 6000
    parameters = {key: value for key, value in run.data.params.items() if key.startswith("cfg.")}
    assert parameters == {f"cfg.{key}": str(value) for key, value in settings.flat().items()}

    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("small", store.digest[:36])
    assert json.loads(given.dataset.profile)["n_samples"] == 3
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]


def test_the_artifacts_hold_the_configuration_and_what_is_logged(project: Path, settings: config.Config):
    (project / "figures").mkdir()
    (project / "figures" / "loss.csv").write_text("epoch,loss\n")
    with start_run(settings, name="train", journal=JOURNAL) as tracker:
        tracker.log_artifact(project / "figures", "plots")
        tracker.log_artifact(project / "figures" / "loss.csv")
        tracker.log_dict({"edges": [1, 2], "where": {"a": None}}, "posterior/grid.json")
    folder = project / "mlartifacts" / str(tracker.run_id) / "artifacts"
    assert config.load(folder / "config.yaml") == settings
    assert (folder / "plots" / "loss.csv").is_file() and (folder / "loss.csv").is_file()
    assert json.loads((folder / "posterior" / "grid.json").read_text()) == {
        "edges": [1, 2],
        "where": {"a": None},
    }


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("bad"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(3), "FAILED"),
        (SystemExit(0), "FINISHED"),
    ],
)
def test_a_run_ends_as_its_body_does(
    error: BaseException, status: str, project: Path, settings: config.Config
):
    with pytest.raises(type(error)), start_run(settings, name="train", journal=JOURNAL) as tracker:
        raise error
    assert _run(tracker.run_id).info.status == status


def test_sigterm_ends_the_run_as_killed(project: Path):
    child = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        run_id = child.stdout.readline().strip()
        child.terminate()
        assert child.wait(timeout=30) == 128 + signal.SIGTERM
    assert _run(run_id).info.status == "KILLED"


def test_a_killed_process_goes_on_in_its_run_and_writes_nothing_twice(project: Path, settings: config.Config):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BETWEEN_SEND_AND_ACKNOWLEDGE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    journal = Journal(JOURNAL)
    run_id, pending = journal.run_id, journal.pending
    journal.close()
    assert len(pending) == 1  # MLflow has it, the journal does not know
    assert _curve(run_id, "loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert _run(run_id).info.status == "RUNNING"

    # Training resumes from the checkpoint of epoch 1: it does epochs 1 and 2 again.
    with start_run(settings, name="train", journal=JOURNAL) as tracker:
        for epoch in range(1, 5):
            tracker.log_metrics({"loss": 1 / (1 + epoch), "odd": float("nan")}, epoch)
    assert tracker.run_id == run_id
    assert _run(run_id).info.status == "FINISHED"
    assert _curve(run_id, "loss") == [(epoch, 1 / (1 + epoch)) for epoch in range(5)]
    assert [step for step, _ in _curve(run_id, "odd")] == [0, 1, 2, 3, 4]


def test_a_whole_journal_sent_again_changes_nothing(project: Path, settings: config.Config, store: Store):
    with start_run(settings, name="train", journal=JOURNAL, dataset=store) as tracker:
        for step in range(3):
            tracker.log_metrics({"a": float(step), "b": float("nan"), "c": float("inf")}, step)
    before = repr(_run(tracker.run_id).to_dictionary())  # repr, because NaN is not equal to itself
    points = {key: _curve(tracker.run_id, key) for key in "abc"}
    lines = Path(JOURNAL).read_bytes().splitlines(keepends=True)
    Path(JOURNAL).write_bytes(b"".join(line for line in lines if not line.startswith(b'{"ack"')))
    assert replay(JOURNAL) > 3
    assert repr(_run(tracker.run_id).to_dictionary()) == before
    assert [len(_curve(tracker.run_id, key)) for key in "abc"] == [3, 3, 3]
    assert points["a"] == _curve(tracker.run_id, "a")


def test_replay_ends_a_run_that_nobody_ended(project: Path):
    child = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        run_id = child.stdout.readline().strip()
        child.kill()
    assert _run(run_id).info.status == "RUNNING"
    assert replay(JOURNAL) == 1
    assert _run(run_id).info.status == "KILLED"


def test_a_stage_joins_a_run_and_leaves_what_it_finds(project: Path, settings: config.Config, store: Store):
    with start_run(settings, name="train", journal=JOURNAL, dataset=store) as training:
        pass
    changed = config.parse(settings.dump() | {"seed": 8})
    with start_run(
        changed,
        name="evaluate",
        journal="work/evaluate.jsonl",
        run_id=training.run_id,
        dataset=store,
        context="evaluation",
    ) as evaluation:
        evaluation.log_metrics({"mae_dex": 0.07}, 0)
    run = _run(training.run_id)
    assert evaluation.run_id == training.run_id
    assert (run.info.status, run.info.run_name) == ("FINISHED", "train")
    assert (run.data.params["cfg.seed"], run.data.tags["darkarc.seed"]) == ("7", "7")
    assert run.data.metrics == {"mae_dex": 0.07}
    contexts = {tag.value for given in run.inputs.dataset_inputs for tag in given.tags}
    assert contexts == {"training", "evaluation"}
    folder = project / "mlartifacts" / str(run.info.run_id) / "artifacts"
    assert config.load(folder / "config.yaml").seed == 7
    assert config.load(folder / "config.evaluate.yaml").seed == 8


def test_a_journal_of_another_run_is_sent_there_first(
    project: Path, settings: config.Config, finished_run: str
):
    client = open_client()
    other = client.create_run("0").info.run_id
    with start_run(settings, name="evaluate", journal=JOURNAL, run_id=finished_run) as tracker:
        tracker.log_metrics({"mae_dex": 1.0}, 0)
    with start_run(settings, name="evaluate", journal=JOURNAL, run_id=other) as tracker:
        tracker.log_metrics({"mae_dex": 1.0}, 0)
    assert _curve(finished_run, "mae_dex") == _curve(other, "mae_dex") == [(0, 1.0)]


def test_mlflow_run_names_the_run_and_workers_do_not_inherit_it(
    project: Path, settings: config.Config, finished_run: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_RUN_ID", finished_run)
    with start_run(settings, name="train", journal=JOURNAL) as tracker:
        assert "MLFLOW_RUN_ID" not in os.environ
    assert tracker.run_id == finished_run


def test_resumed_by_another_mlflow_run_the_whole_curve_moves(
    project: Path, settings: config.Config, finished_run: str, monkeypatch: pytest.MonkeyPatch
):
    child = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        interrupted = child.stdout.readline().strip()
        child.kill()
    monkeypatch.setenv("MLFLOW_RUN_ID", finished_run)
    with start_run(settings, name="train", journal=JOURNAL) as tracker:
        tracker.log_metrics({"loss": 0.5}, 1)
    assert _curve(finished_run, "loss") == [(0, 1.0), (1, 0.5)]
    assert _run(interrupted).info.status == "KILLED"
    assert _run(interrupted).data.tags["darkarc.continued_in"] == finished_run


def test_a_run_that_was_deleted_is_recorded_again(project: Path, settings: config.Config):
    with start_run(settings, name="train", journal=JOURNAL) as first:
        first.log_metrics({"loss": 1.0}, 0)
    open_client().delete_run(str(first.run_id))
    with start_run(settings, name="train", journal=JOURNAL) as second:
        second.log_metrics({"loss": 0.5}, 1)
    assert second.run_id != first.run_id
    assert _curve(second.run_id, "loss") == [(0, 1.0), (1, 0.5)]
    assert _run(second.run_id).info.status == "FINISHED"


def test_a_run_id_that_is_not_there_is_refused_by_name(project: Path, settings: config.Config):
    with (
        pytest.raises(TrackingError, match="0123abcd"),
        start_run(settings, name="evaluate", journal=JOURNAL, run_id="0123abcd" * 4),
    ):
        pass


def test_a_nested_run_hangs_under_its_parent(project: Path, settings: config.Config):
    with (
        start_run(settings, name="study", journal="work/study.jsonl") as parent,
        start_run(
            settings, name="trial", journal="work/trial.jsonl", tags={"mlflow.parentRunId": parent.run_id}
        ) as trial,
    ):
        trial.log_metrics({"loss": 1.0}, 0)
    found = open_client().search_runs(
        [str(parent.experiment_id)], f"tags.mlflow.parentRunId = '{parent.run_id}'"
    )
    assert [run.info.run_id for run in found] == [trial.run_id]


def test_one_bad_value_costs_only_itself(
    project: Path, settings: config.Config, caplog: pytest.LogCaptureFixture
):
    with start_run(settings, name="train", journal=JOURNAL) as tracker:
        tracker.log_metrics({"loss": 1.0, "what": "high", "coverage 68 %": 0.7}, 0)  # type: ignore[dict-item]
        tracker.log_artifact(project / "missing.png")
    assert _run(tracker.run_id).data.metrics == {"loss": 1.0, "coverage 68 _": 0.7}
    assert "metric what at step 0 is not a number" in caplog.text
    assert "missing.png is no longer there" in caplog.text


def test_what_the_store_refuses_does_not_block_the_rest(
    project: Path, settings: config.Config, caplog: pytest.LogCaptureFixture
):
    with start_run(settings, name="train", journal=JOURNAL) as tracker:
        tracker._journal.append("metrics", {"step": 0, "values": {"../outside": 1.0}})
        tracker.log_metrics({"loss": 1.0}, 0)
    assert "refuses to record metrics" in caplog.text
    assert _run(tracker.run_id).data.metrics == {"loss": 1.0}
    assert _run(tracker.run_id).data.tags["darkarc.refused"].startswith("metrics: ")
    assert _run(tracker.run_id).info.status == "FINISHED"


def test_a_database_that_is_being_restarted_costs_no_record(
    project: Path, settings: config.Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """MLflow calls some of its database's troubles a bad request."""
    from mlflow.exceptions import MlflowException

    send, refusals = MlflowClient.log_batch, [3]

    def log_batch(self: MlflowClient, run_id: str, **batch: Any) -> Any:
        if batch.get("metrics") and refusals[0]:
            refusals[0] -= 1
            raise MlflowException("(psycopg2.InterfaceError) connection already closed", BAD_REQUEST)
        return send(self, run_id, **batch)

    def set_tag(self: MlflowClient, run_id: str, key: str, value: str) -> None:
        if refusals[0]:
            refusals[0] -= 1
            raise MlflowException("the database system is starting up", TEMPORARILY_UNAVAILABLE)
        tag(self, run_id, key, value)

    tag = MlflowClient.set_tag
    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    monkeypatch.setattr(MlflowClient, "set_tag", set_tag)
    monkeypatch.setattr(sender, "FIRST_PAUSE_S", 0.01)
    patient = config.parse({"tracking": {"system_metrics": False, "patience_s": 20}})
    with start_run(patient, name="train", journal=JOURNAL) as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
    assert refusals == [0]
    assert _curve(tracker.run_id, "loss") == [(0, 1.0)]
    assert "refuses to record" not in caplog.text
    assert "darkarc.refused" not in _run(tracker.run_id).data.tags


def test_a_database_that_fails_is_one_warning_and_no_traceback(
    project: Path,
    settings: config.Config,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    patient = config.parse({"tracking": {"system_metrics": False, "patience_s": 20}})
    with start_run(patient, name="train", journal=JOURNAL) as tracker:
        with sqlite3.connect(project / "mlflow.db") as database:
            database.execute("ALTER TABLE metrics RENAME TO gone")
        for step in range(3):
            tracker.log_metrics({"loss": 1.0}, step)
            assert not tracker.flush()
        with sqlite3.connect(project / "mlflow.db") as database:
            database.execute("ALTER TABLE gone RENAME TO metrics")
    assert _curve(tracker.run_id, "loss") == [(step, 1.0) for step in range(3)]
    told = capsys.readouterr().err + caplog.text
    assert "Traceback" not in told and "SQLAlchemy database error" not in told
    assert caplog.text.count("does not take records") == 1


def test_a_clock_that_jumps_moves_no_point(
    project: Path, settings: config.Config, monkeypatch: pytest.MonkeyPatch
):
    """Forwards by an hour, back by two days, and forwards again, also between two sessions of one run."""
    time_ns, hours = time.time_ns, [0]
    monkeypatch.setattr(time, "time_ns", lambda: time_ns() + hours[0] * 3600 * 10**9)
    monkeypatch.setattr(time, "time", lambda: time.time_ns() / 1e9)
    for session in ([0, 1, -48], [-48, 5, -1]):
        with start_run(settings, name="train", journal=JOURNAL) as tracker:
            for epoch, hours[0] in enumerate(session, start=0 if session[0] == 0 else 2):
                tracker.log_metrics({"loss": 1 / (1 + epoch)}, epoch)
    assert _curve(tracker.run_id, "loss") == [(epoch, 1 / (1 + epoch)) for epoch in range(5)]
    run = _run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss": 0.2}, "the last epoch's, whatever the clock said"


def test_system_metrics_are_sampled_and_go_on_counting(project: Path, monkeypatch: pytest.MonkeyPatch):
    settings = config.parse({"tracking": {"system_metrics_interval_s": 0.1, "patience_s": 0}})
    with start_run(settings, name="train", journal=JOURNAL) as tracker:
        _wait_for_samples(tracker._journal, 3)
    first = _curve(tracker.run_id, "system/cpu_utilization_percentage")
    with start_run(
        settings, name="evaluate", journal="work/evaluate.jsonl", run_id=tracker.run_id
    ) as tracker:
        _wait_for_samples(tracker._journal, 2)
    both = _curve(tracker.run_id, "system/cpu_utilization_percentage")
    assert [step for step, _ in both] == list(range(1, len(both) + 1))
    assert len(both) >= len(first) + 2 >= 5


def _wait_for_samples(journal: Journal, n: int) -> None:
    for _ in range(200):
        if (journal.last_step("system/cpu") or 0) - _first_step(journal) + 1 >= n:
            return
        time.sleep(0.05)
    raise AssertionError("no system metrics")


def _first_step(journal: Journal) -> int:
    steps = [record.body["step"] for record in journal.records if record.kind == "metrics"]
    return min(steps, default=0)


def test_metrics_travel_in_batches_of_at_most_a_thousand():
    def record(seq: int, kind: str, n: int) -> Record:
        return Record(seq, kind, 0, {"step": seq, "values": {f"m{i}": 0.0 for i in range(n)}})

    records = [
        record(1, "tags", 1),
        *(record(seq, "metrics", 400) for seq in range(2, 8)),
        record(8, "status", 1),
    ]
    kinds = [[item.seq for item in batch] for batch in batches(records)]
    assert kinds == [[1], [2, 3], [4, 5], [6, 7], [8]]


def test_more_metrics_than_one_call_takes_all_arrive(project: Path, settings: config.Config):
    with start_run(settings, name="train", journal=JOURNAL) as tracker:
        tracker.log_metrics({f"m{i}": float(i) for i in range(2500)}, 0)
    assert len(_run(tracker.run_id).data.metrics) == 2500


def test_no_reply_means_no_haste(project: Path, settings: config.Config, monkeypatch: pytest.MonkeyPatch):
    """While the store is out of reach, epochs do not wait for it: tries are spaced out."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    tries = []
    attempt = Sender._ensure_run
    monkeypatch.setattr(Sender, "_ensure_run", lambda self: (tries.append(1), attempt(self)))
    with start_run(settings, name="train", journal=JOURNAL) as tracker:
        for epoch in range(50):
            tracker.log_metrics({"loss": 1.0 / (1 + epoch)}, epoch)
    assert tracker.run_id is None
    assert len(tries) < 6

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert replay(JOURNAL) > 50
    (run,) = open_client().search_runs([open_client().get_experiment_by_name("darkarc").experiment_id])
    assert (run.info.status, len(_curve(run.info.run_id, "loss"))) == ("FINISHED", 50)


def test_trackers_have_one_interface(project: Path, settings: config.Config, tmp_path: Path):
    def use(tracker: Tracker) -> None:
        tracker.log_params({"a": 1})
        tracker.log_metrics({"loss": 1.0}, 0)
        tracker.set_tags({"b": 2})
        tracker.log_dict({"c": 3}, "c.json")
        tracker.log_artifact(project / "params.yaml")

    use(NullTracker())
    assert NullTracker().run_id is None
    with start_run(settings, name="train", journal=JOURNAL) as tracker:
        use(tracker)
    run = _run(tracker.run_id)
    assert (run.data.params["a"], run.data.tags["b"], run.data.metrics["loss"]) == ("1", "2", 1.0)


def test_what_a_dead_server_missed_is_sent_by_the_next_run(
    project: Path, settings: config.Config, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    with start_run(settings, name="train", journal=JOURNAL) as missed:
        missed.log_metrics({"loss": 1.0}, 1)
    shutil.rmtree("work")  # as a stage does when its own files are written
    write_run(Path("run.json"), RunRecord(missed.run_id, missed.experiment_id, "d" * 64, missed.token))
    assert read_run(Path("run.json")).run_id is None

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with start_run(settings, name="train", journal=JOURNAL):
        pass
    found = find_run(missed.token)
    assert found is not None
    assert (_run(found[0]).info.status, _curve(found[0], "loss")) == ("FINISHED", [(1, 1.0)])
    assert not list(Path(".darkarc/unsent").iterdir())
    record = read_run(Path("run.json"))
    assert (record.run_id, record.experiment_id) == found


def test_what_a_dead_server_missed_is_what_its_run_wrote(
    project: Path, settings: config.Config, monkeypatch: pytest.MonkeyPatch
):
    """Not what a later run has written in the same places."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    tokens = []
    for number in (1, 2):
        Path("figures/small").mkdir(parents=True, exist_ok=True)
        for name in ("metrics.json", "figures/small/a.png"):
            Path(name).write_text(f"of run {number}")
        with start_run(settings, name="train", journal=JOURNAL) as missed:
            missed.log_artifact("metrics.json")
            missed.log_artifact("figures", "pictures")
            tokens.append(missed.token)
        shutil.rmtree("work")
    shutil.rmtree("figures")

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with start_run(settings, name="train", journal=JOURNAL):
        pass
    for number, token in enumerate(tokens, 1):
        found = find_run(token)
        assert found is not None
        folder = Path(open_client().download_artifacts(found[0], "", str(project / "got")))
        assert (folder / "metrics.json").read_text() == f"of run {number}"
        assert (folder / "pictures/small/a.png").read_text() == f"of run {number}"
    assert not list(Path(".darkarc/unsent").iterdir())


def test_a_run_that_finds_no_place_keeps_no_other_from_its_own(
    project: Path, settings: config.Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    gone = config.parse({"tracking": {"system_metrics": False, "patience_s": 0, "experiment": "gone"}})
    tokens = []
    for own in (gone, settings, settings):
        with start_run(own, name="train", journal=JOURNAL) as missed:
            tokens.append(missed.token)
        shutil.rmtree("work")
    assert len(list(Path(".darkarc/unsent").glob("*.jsonl"))) == 3
    first = Path(".darkarc/unsent/0.jsonl")  # the first in line
    Path(f".darkarc/unsent/{tokens[0]}.jsonl").rename(first)

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    open_client().delete_experiment(open_client().create_experiment("gone"))
    caplog.clear()
    with start_run(settings, name="train", journal=JOURNAL):
        pass
    assert [path.name for path in Path(".darkarc/unsent").glob("*.jsonl")] == ["0.jsonl"]
    assert find_run(tokens[1]) is not None and find_run(tokens[2]) is not None
    assert "'gone' is deleted" in caplog.text


def test_a_damaged_or_missing_run_file_is_named(project: Path):
    with pytest.raises(TrackingError, match=r"run\.json: not there; run `darkarc train`"):
        read_run(Path("run.json"))
    Path("run.json").write_text('{"run": 1}')
    with pytest.raises(TrackingError, match=r"run\.json: damaged"):
        read_run(Path("run.json"))


def test_no_message_shows_a_password(
    project: Path, settings: config.Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    with start_run(settings, name="train", journal=JOURNAL):
        pass
    with pytest.raises(TrackingError, match="does not take the records") as refusal:
        replay(JOURNAL, patience_s=0)
    assert run_tags("0" * 32) == {} and find_run("token") is None
    with pytest.raises(RegistryError, match="model registry in") as unknown:
        list_versions("axion-mass-regressor")
    assert "127.0.0.1:9" in caplog.text
    assert "secret" not in caplog.text + str(refusal.value) + str(unknown.value)
