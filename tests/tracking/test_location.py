"""Where runs are kept: the default follows the project, and a new database is made once."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from darkarc.doctor.findings import OK
from darkarc.doctor.project import check_database
from darkarc.tracking import TrackingError, location, open_client, project_root, tracking_uri
from darkarc.tracking.location import experiment_id

CHILD = """
import sys
from darkarc import config
from darkarc.tracking import start_run
settings = config.parse({"tracking": {"system_metrics": False, "patience_s": 0}})
with start_run(settings, name="train", journal=f"journals/{sys.argv[1]}.jsonl") as tracker:
    tracker.log_metrics({"loss": float(sys.argv[1])}, 0)
"""


def test_the_project_is_the_nearest_folder_with_parameters(project: Path, monkeypatch: pytest.MonkeyPatch):
    below = project / "notebooks" / "first"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert project_root() == project
    assert tracking_uri() == f"sqlite:///{project}/mlflow.db"


def test_inside_a_dvc_stage_the_real_project_counts(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = tmp_path / "temporary copy"
    copy.mkdir()
    (copy / "dvc.yaml").touch()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(project))
    assert tracking_uri() == f"sqlite:///{project}/mlflow.db"


def test_without_a_project_the_working_directory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(create=False) == f"sqlite:///{tmp_path}/mlflow.db"
    assert not (tmp_path / "mlflow.db").exists()


def test_a_server_is_taken_as_it_is(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri() == "http://127.0.0.1:5000"


def test_a_relative_database_becomes_absolute(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tracking_uri(create=False) == f"sqlite:///{project}/other.db"


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "sqlite:///", "sqlite:///:memory:"])
def test_a_uri_that_cannot_work_is_refused_by_name(uri: str, project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI="):
        tracking_uri()


def test_a_truncated_database_is_named_and_not_overwritten(project: Path):
    database = project / "mlflow.db"
    content = database.read_bytes()
    database.write_bytes(content[:5000])
    with pytest.raises(TrackingError, match=r"mlflow\.db: not a complete MLflow database"):
        tracking_uri()
    assert database.read_bytes() == content[:5000]


def half_written(database: Path) -> None:
    """As a kill in the middle of a transaction leaves it: pages changed, the old ones in its journal."""
    code = f"""
import os, signal, sqlite3
c = sqlite3.connect({str(database)!r}, isolation_level=None)
c.execute("pragma cache_size = 1")
c.execute("begin")
c.execute("create table big (x)")
c.executemany("insert into big values (?)", [("y" * 4000,)] * 200)
c.execute("update alembic_version set version_num = 'torn'")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert database.with_name("mlflow.db-journal").stat().st_size > 0


def test_a_transaction_that_a_kill_cut_short_is_taken_back(project: Path):
    experiments = len(open_client(tracking_uri()).search_experiments())
    half_written(project / "mlflow.db")
    assert tracking_uri() == f"sqlite:///{project}/mlflow.db"
    assert len(open_client(tracking_uri()).search_experiments()) == experiments


def test_doctor_takes_it_back_too(project: Path):
    half_written(project / "mlflow.db")
    (finding,) = check_database(project)
    assert finding.level == OK


def test_a_database_that_another_process_holds_is_not_called_incomplete(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(location, "DATABASE_PATIENCE_S", 0.1)
    holder = sqlite3.connect(project / "mlflow.db", isolation_level=None)
    holder.execute("begin exclusive")
    with pytest.raises(TrackingError, match=r"mlflow\.db: cannot be opened \(database is locked\); leave it"):
        tracking_uri()
    holder.execute("rollback")
    holder.close()
    assert tracking_uri()


def test_a_database_that_finds_no_room_is_named_and_made_once_there_is(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    """SQLite is told that its file may have no more than a few pages: as on a full disk."""
    import sqlalchemy

    (project / "mlflow.db").unlink()

    @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "connect")
    def _small(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("pragma max_page_count = 20")

    try:
        with pytest.raises(TrackingError, match=r"mlflow\.db: .* \(database or disk is full\); make room"):
            tracking_uri()
    finally:
        sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", _small)
    assert not (project / "mlflow.db").exists()
    assert open_client(tracking_uri()).search_experiments()
    assert not list(project.glob("mlflow.db.partial*"))


def test_artifacts_lie_in_the_project_wherever_the_command_runs(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(tmp_path)
    client = open_client()
    number = experiment_id(client, tracking_uri(), "darkarc")
    run = client.create_run(number)
    client.log_text(run.info.run_id, "x", "x.txt")
    assert (project / "mlartifacts" / run.info.run_id / "artifacts" / "x.txt").is_file()
    assert not (tmp_path / "mlruns").exists()


def test_a_deleted_experiment_is_named_with_the_remedy(project: Path):
    client = open_client()
    client.delete_experiment(experiment_id(client, tracking_uri(), "darkarc"))
    with pytest.raises(TrackingError, match="mlflow experiments restore -x"):
        experiment_id(client, tracking_uri(), "darkarc")


@pytest.mark.slow
def test_four_processes_may_start_at_once_on_a_fresh_project(empty_project: Path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(number)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for number in range(4)
    ]
    for child in children:
        _, errors = child.communicate(timeout=180)
        assert (child.returncode, errors) == (0, "")
    with sqlite3.connect(empty_project / "mlflow.db") as connection:
        rows = connection.execute("select value from metrics order by value").fetchall()
        names = connection.execute("select count(*) from experiments where name='darkarc'").fetchone()
    connection.close()
    assert rows == [(0.0,), (1.0,), (2.0,), (3.0,)]
    assert names == (1,)
    assert not list(empty_project.glob("*.partial*"))
