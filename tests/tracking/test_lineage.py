"""What is known of a run's origin: said where it is, and no error where it is not."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from darkarc.tracking import RunRecord, dvc_revision, run_lineage
from darkarc.tracking.lineage import describe_lineage, git_commit

FOLDER_MD5 = "2294f14445a3f87d68f3d5179195d4fe.dir"
"""As `dvc add` names the folder below."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "prepared"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "images.npy").write_bytes(bytes(range(256)))
    return folder


def lock(project: Path, path: str = "data/prepared", md5: str = FOLDER_MD5) -> None:
    stage = {"cmd": "x", "deps": [{"path": "raw", "md5": "0"}], "outs": [{"path": path, "md5": md5}]}
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"prepare": stage}}))


def test_the_lock_is_believed_only_where_the_data_are_still_the_same(folder: Path, tmp_path: Path) -> None:
    assert dvc_revision(folder) is None
    lock(tmp_path)
    assert dvc_revision(folder) == FOLDER_MD5
    shutil.copytree(folder, folder.with_name("copy"))
    assert dvc_revision(folder.with_name("copy")) is None, "the lock speaks of another folder"
    (folder / "manifest.json").write_text("{ }")
    assert dvc_revision(folder) is None


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\nstages: [\n", "", "schema: '2.0'\n", "stages: {a: 1}\n"])
def test_a_damaged_lock_is_no_error(folder: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.lock").write_text(text)
    assert dvc_revision(folder) is None


def test_what_is_not_recorded_is_said() -> None:
    none = describe_lineage({})
    assert none == dict.fromkeys(("Git commit", "DVC revision", "Study"), "none recorded")
    some = describe_lineage({"darkarc.git_commit": "abc", "darkarc.data_digest": "5f0c"})
    assert some["Git commit"] == "abc"
    assert some["DVC revision"] == "none recorded; the data's SHA-256 is 5f0c"


def test_a_store_that_does_not_answer_is_no_error(
    empty_project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    facts = run_lineage(RunRecord("0123abcd", "1", "5f0c"))
    assert facts["Git commit"] == "none recorded" and facts["MLflow run"] == "0123abcd"
    assert "cannot read run 0123abcd" in caplog.text
    assert "MLflow run" not in run_lineage(RunRecord(None, None, "5f0c"))


def test_what_dvc_writes_as_it_runs_is_no_change_of_the_project(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    inner = tmp_path / "sources" / "simulated"
    inner.mkdir(parents=True)
    files = [tmp_path / "dvc.lock", inner / "dvc.lock", tmp_path / "params.yaml"]
    for file in files:
        file.write_text("before\n")
    git("init", "-q", ".")
    git("add", ".")
    git("commit", "-q", "-m", "First")
    for file in files[:2]:
        file.write_text("after\n")
    found = git_commit(inner)
    assert found is not None and found[1] is False
    files[2].write_text("after\n")
    assert git_commit(inner) == (found[0], True)
