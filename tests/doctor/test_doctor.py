"""Each finding of `darkarc doctor`, provoked."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from darkarc.config import Config
from darkarc.doctor import CHECKS, examine
from darkarc.doctor.findings import LEVELS, NOTE, OK, WRONG
from darkarc.doctor.machine import available_memory, check_cores, check_disk, check_gpu, check_memory
from darkarc.doctor.network import Listener, check_ports, check_reach, listeners
from darkarc.doctor.packages import check_packages, check_python, differing
from darkarc.doctor.permissions import check_permissions
from darkarc.doctor.privacy import check_phoning_home, check_pickle
from darkarc.doctor.project import check_database, check_dvc, check_git, check_leftovers

PROJECT = Path(__file__).resolve().parents[2]


def only(findings):
    (found,) = findings
    return found


def test_an_old_python_is_wrong():
    assert only(check_python((3, 10))).level == WRONG
    assert only(check_python()).level == OK


def test_packages_are_held_against_requirements_and_lock(tmp_path, monkeypatch):
    from importlib import metadata

    # A branch may be ahead of the environment's lock, never out of its ranges.
    assert {finding.level for finding in check_packages(PROJECT)} <= {OK, NOTE}
    assert only(check_packages(tmp_path)).level == OK
    (tmp_path / "requirements.lock").write_text("# a lock\nnumpy==1.0.0 \\\n    --hash=sha256:00\n")
    other = only(check_packages(tmp_path))
    assert other.level == NOTE
    assert "numpy" in other.found and "lock: 1.0.0" in other.found and "--require-hashes" in other.remedy
    wanted = ["numpy>=99", "no-such-package>=1", "tomli; python_version < '3'"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    said = [finding.found for finding in check_packages(tmp_path) if finding.level == WRONG]
    assert len(said) == 2
    assert "expected >=99" in said[0] and "no-such-package is missing" in said[1]


def test_a_lock_line_counts_on_its_platform_only():
    lock = "a==1.0 \\\n    --hash=x\nb[extra]==2.0 ; sys_platform == 'nowhere' \\\n    --hash=y\nc==3.0\n"
    assert differing(lock, {"a": "1.0+cu130", "b": "9", "c": "4"}) == [("c", "4", "3.0")]


def test_a_gpu_that_is_wanted_or_there_must_work(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", "")
    assert "device: cuda" in only(check_gpu("cuda")).found
    assert only(check_gpu("auto")).level == (WRONG if Path("/dev/nvidia0").exists() else OK)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    assert "cannot use it" in only(check_gpu("auto")).found


@pytest.mark.parametrize(("threads", "level"), [("64", NOTE), ("1", OK), ("", OK), ("many", OK)])
def test_more_threads_than_cores_are_noted(threads, level):
    assert only(check_cores({"OMP_NUM_THREADS": threads}, 2)).level == level


@pytest.mark.parametrize(("available", "level"), [(0.5e9, WRONG), (2e9, NOTE), (16e9, OK)])
def test_memory(available, level):
    assert only(check_memory(available)).level == level
    assert available_memory() > 0


def test_a_full_disk_is_wrong_and_a_closed_folder_too(tmp_path, monkeypatch):
    full = [finding.level for finding in check_disk(tmp_path, least_gb=1e9)]
    assert full == [WRONG, WRONG]
    assert [finding.level for finding in check_disk(tmp_path, 0, 1e9)] == [NOTE, NOTE]
    assert {finding.level for finding in check_disk(tmp_path, 0, 0)} == {OK}
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written" in list(check_disk(tmp_path, 0, 0))[-1].found


def git(folder: Path, *words: str) -> None:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_git_clean_changed_held_and_none(tmp_path):
    assert "no git repository" in only(check_git(tmp_path)).found
    git(tmp_path, "init", "-q")
    assert only(check_git(tmp_path)).level == OK
    (tmp_path / "new").touch()
    assert "1 files differ" in only(check_git(tmp_path)).found
    lock = tmp_path / ".git/index.lock"
    lock.touch()
    os.utime(lock, (0, 0))
    held = only(check_git(tmp_path))
    assert held.level == WRONG and "index.lock" in held.remedy
    (tmp_path / ".git/HEAD").write_text("nonsense")
    assert "git does not answer" in only(check_git(tmp_path)).found


def test_every_truncation_of_dvc_lock_within_a_stage_is_noticed(tmp_path):
    lock = (PROJECT / "dvc.lock").read_text()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "dvc.lock").write_text(lock)
    assert only(check_dvc(tmp_path)).level == OK
    noticed = 0
    cuts = [lock.index("stages:") + 8, lock.index("cmd:") - 1, lock.index("cmd:") + 2, 0]
    for cut in cuts:
        (tmp_path / "dvc.lock").write_text(lock[:cut])
        damaged = only(check_dvc(tmp_path))
        noticed += damaged.level == WRONG and "git checkout -- dvc.lock" in damaged.remedy
    assert noticed == len(cuts)
    (tmp_path / "dvc.lock").write_bytes(b"\x00" * 100)
    assert only(check_dvc(tmp_path)).level == WRONG


def test_a_dead_process_that_holds_dvc_is_named(tmp_path):
    assert "no dvc.yaml" in only(check_dvc(tmp_path)).found
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    held = tmp_path / ".dvc/tmp/rwlock"
    held.parent.mkdir(parents=True)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    entry = {"/data": {"write": {"pid": gone.pid, "cmd": "dvc repro"}}}
    held.write_text(json.dumps(entry))
    found = only(check_dvc(tmp_path))
    assert found.level == WRONG and str(gone.pid) in found.found and "rm .dvc/tmp/rwlock" in found.remedy
    entry["/data"]["write"]["pid"] = os.getpid()
    held.write_text(json.dumps(entry))
    assert only(check_dvc(tmp_path)).level == OK
    held.write_text('{"/data": {"wri')
    assert "rwlock is damaged" in only(check_dvc(tmp_path)).found


def test_a_damaged_tracking_database_is_wrong(tmp_path):
    assert only(check_database(tmp_path)).level == OK
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table runs (a text)")
        connection.executemany("insert into runs values (?)", [("x" * 500,)] * 200)
    connection.close()
    assert only(check_database(tmp_path)).level == OK
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"no database at all" * 100):
        path.write_bytes(damaged)
        found = only(check_database(tmp_path))
        assert found.level == WRONG and "damaged" in found.found


def test_what_killed_commands_left_is_named(tmp_path):
    assert only(check_leftovers(tmp_path)).level == OK
    (tmp_path / "data/prepared.partial").mkdir(parents=True)
    assert only(check_leftovers(tmp_path)).level == OK, "someone may be at it"
    later = only(check_leftovers(tmp_path, now=time.time() + 4000))
    assert later.level == NOTE and "data/prepared.partial" in later.found
    (tmp_path / ".darkarc/unsent").mkdir(parents=True)
    (tmp_path / ".darkarc/unsent/a.jsonl").touch()
    assert "1 runs wait" in only(check_leftovers(tmp_path)).found


def test_secrets_and_writable_folders(tmp_path):
    root, home = tmp_path / "project", tmp_path / "home"
    for folder in (root, home):
        folder.mkdir(mode=0o755)
    assert only(check_permissions(root, home)).level == OK
    (home / ".ray").mkdir()
    token = home / ".ray/auth_token"
    token.touch(0o600)
    token.chmod(0o644)
    (root / "mlserver").mkdir()
    (root / "mlserver").chmod(0o755)
    (root / "src").mkdir()
    (root / "src").chmod(0o777)
    found = list(check_permissions(root, home))
    assert {finding.level for finding in found} == {WRONG}
    remedies = {finding.remedy for finding in found}
    assert remedies == {f"chmod 700 {root / 'mlserver'}", f"chmod 600 {token}", f"chmod o-w {root / 'src'}"}


MLFLOW = "python -m mlflow server --host 0.0.0.0"
RAYLET = "/x/ray/core/src/ray/raylet/raylet --socket"


@pytest.mark.parametrize(
    ("listener", "environment", "level", "said"),
    [
        (Listener("0.0.0.0", 5000, MLFLOW), {}, WRONG, "MLflow listens on 0.0.0.0, port 5000"),
        (Listener("::", 5000, f"{MLFLOW} --app-name basic-auth"), {}, NOTE, "asks for a login"),
        (Listener("127.0.0.1", 5000, MLFLOW), {}, OK, ""),
        (Listener("::1", 5000, MLFLOW), {}, OK, ""),
        (Listener("::ffff:127.0.0.1", 5000, RAYLET), {}, OK, ""),
        (Listener("192.0.2.7", 6379, RAYLET), {}, WRONG, "runs code for whoever"),
        (Listener("::", 8265, "python ray/dashboard/dashboard.py"), {}, WRONG, "Ray listens on ::"),
        (Listener("::", 6379, RAYLET), {"RAY_AUTH_MODE": "token"}, NOTE, "Ray listens"),
        (Listener("0.0.0.0", 8000, "python -m darkarc serve model.onnx --host 0.0.0.0"), {}, NOTE, "serve"),
        (Listener("0.0.0.0", 22, "sshd"), {}, OK, ""),
    ],
)
def test_what_other_machines_reach(listener, environment, level, said):
    found = only(check_reach([listener], environment))
    assert found.level == level
    assert said in f"{found.found} {found.remedy}"


def test_a_real_listener_is_seen_with_its_process():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (mine,) = [item for item in listeners() if item.port == port]
    assert mine.address == "127.0.0.1" and "python" in mine.command.lower()


def test_ports_in_use_are_named():
    used = only(check_ports([Listener("127.0.0.1", 5000, MLFLOW), Listener("127.0.0.1", 1, "x")]))
    assert used.level == NOTE and "5000 is in use by MLflow" in used.found and "--port" in used.remedy
    assert only(check_ports([])).level == OK


@pytest.mark.parametrize(
    ("environment", "level", "said"),
    [
        ({"MLFLOW_DISABLE_TELEMETRY": "False"}, WRONG, "unset MLFLOW_DISABLE_TELEMETRY"),
        ({"RAY_USAGE_STATS_ENABLED": "1"}, WRONG, "makers of Ray"),
        ({"DVC_NO_ANALYTICS": "false"}, WRONG, "makers of DVC"),
        ({"ORT_DISABLE_TELEMETRY": "0"}, WRONG, "makers of ONNX Runtime"),
        ({}, NOTE, "typed by hand"),
        ({"MLFLOW_DISABLE_TELEMETRY": "true"}, OK, "off"),
    ],
)
def test_phoning_home(environment, level, said, tmp_path):
    found = only(check_phoning_home(tmp_path, environment))
    assert found.level == level and said in f"{found.found} {found.remedy}"


def test_dvc_must_be_told(tmp_path):
    (tmp_path / ".dvc").mkdir()
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true"}
    assert only(check_phoning_home(tmp_path, quiet)).remedy == "dvc config core.analytics false"
    (tmp_path / ".dvc/config").write_text("[core]\n    analytics = false\n")
    assert only(check_phoning_home(tmp_path, quiet)).level == OK
    (tmp_path / ".dvc/config.local").write_text("[core]\n    analytics = true\n")
    assert only(check_phoning_home(tmp_path, quiet)).level == WRONG
    assert only(check_phoning_home(PROJECT, quiet)).level == OK, "the project as it ships"


def test_pickled_models():
    assert only(check_pickle({"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "True"})).level == WRONG
    assert only(check_pickle({})).level == OK


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(root, config, environment):
        raise OSError("no such device")

    monkeypatch.setitem(CHECKS, "git", broken)
    found = examine(tmp_path, Config(), {})
    assert {finding.check for finding in found} >= {"python", "pickle", "git", "disk"}
    (git_finding,) = [finding for finding in found if finding.check == "git"]
    assert git_finding.level == WRONG and "no such device" in git_finding.found
    for finding in found:
        assert finding.level in LEVELS and finding.found
        assert finding.level == OK or finding.remedy, finding


def test_as_a_command(tmp_path):
    (tmp_path / "params.yaml").write_text("device: cpu\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages:\n  prep")
    environment = {key: value for key, value in os.environ.items() if key != "DVC_ROOT"}
    environment["RAY_USAGE_STATS_ENABLED"] = "1"
    command = [sys.executable, "-m", "darkarc", "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "wrong" in done.stderr and "Traceback" not in done.stderr
    wrong = {finding["check"] for finding in json.loads(done.stdout) if finding["level"] == WRONG}
    assert {"dvc", "phoning home"} <= wrong
