"""Kills, signals and damaged checkpoints: the weights come out the same, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.tracking.tracker import NullTracker
from darkarc.training import TrainingInterrupted, TrainResult, engine, train

Settings = Callable[..., Config]

KILLED_RUN = """
import os, signal, sys
from pathlib import Path
import yaml
from darkarc.config import parse
from darkarc.data.store import Store
from darkarc.tracking.tracker import NullTracker
from darkarc.training import engine, train

config, store, workdir, steps = yaml.safe_load(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
objective, done = engine.objective, 0

def dying(*args):
    global done
    done += 1
    if done > steps:
        os.kill(os.getpid(), signal.SIGKILL)
    return objective(*args)

engine.objective = dying
train(parse(config), Store.open(store), workdir=Path(workdir), tracker=NullTracker(), progress=False)
"""


def run(config: Config, prepared: Store, workdir: Path) -> TrainResult:
    return train(config, prepared, workdir=workdir, tracker=NullTracker(), progress=False)


def same(a: TrainResult, b: TrainResult) -> bool:
    states = a.regressor.state_dict(), b.regressor.state_dict()
    return a.history == b.history and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def kill_after(steps: int, config: Config, prepared: Store, workdir: Path) -> None:
    arguments = [json.dumps(config.dump()), str(prepared.path), str(workdir), str(steps)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_after_kill_9_the_final_weights_are_those_of_an_undisturbed_run(
    prepared: Store, settings: Settings, tmp_path: Path
) -> None:
    config = settings(epochs=4)  # 4 steps an epoch
    undisturbed = run(config, prepared, tmp_path / "undisturbed")
    kill_after(2, config, prepared, tmp_path / "work")  # before any checkpoint
    assert not list((tmp_path / "work").glob("*/step-*"))
    kill_after(10, config, prepared, tmp_path / "work")  # in the third epoch
    assert [path.name for path in sorted((tmp_path / "work").glob("*/step-*"))] == [
        "step-00000004",
        "step-00000008",
    ]
    assert same(run(config, prepared, tmp_path / "work"), undisturbed)


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (4, {"policy": "one_cycle"}),
        (6, {"policy": "one_cycle"}),
        (6, {"policy": "plateau", "plateau_patience": 0}),
        (6, {"optimiser": "sgd", "policy": "cyclic", "ema": 0.9}),
        (6, {"optimiser": "lamb", "policy": "cosine", "weight_decay": 0.1}),
        (6, {"optimiser": "lion", "swa": 1.0}),
        (8, {"optimiser": "muon", "swa": 0.7}),
        (6, {"policy": "constant"}),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(map(str, value.values())),
)
def test_a_signal_leaves_a_state_to_go_on_from(
    prepared: Store,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    options: dict[str, Any],
) -> None:
    config = settings(epochs=3, **options)
    undisturbed = run(config, prepared, tmp_path / "undisturbed")
    objective, done = engine.objective, 0

    def signalled(*args: Any) -> torch.Tensor:
        nonlocal done
        done += 1
        if done == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return objective(*args)

    monkeypatch.setattr(engine, "objective", signalled)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match=f"SIGTERM after step {steps} of 12"):
        run(config, prepared, tmp_path / "work")
    assert signal.getsignal(signal.SIGTERM) == before
    assert same(run(config, prepared, tmp_path / "work"), undisturbed)
    assert done == 12


def test_a_kill_after_a_rollback_changes_nothing(
    prepared: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(epochs=3, on_nonfinite="rollback", ema=0.5)
    objective = engine.objective

    def breaking(at: int, killed_at: int) -> Callable[..., torch.Tensor]:
        done = 0

        def broken(*args: Any) -> torch.Tensor:
            nonlocal done
            done += 1
            if done == killed_at:
                raise KeyboardInterrupt
            return objective(*args) * (float("nan") if done == at else 1.0)

        return broken

    monkeypatch.setattr(engine, "objective", breaking(at=6, killed_at=-1))
    undisturbed = run(config, prepared, tmp_path / "undisturbed")
    assert [row["rollbacks"] for row in undisturbed.history] == [0, 1, 1]
    monkeypatch.setattr(engine, "objective", breaking(at=6, killed_at=10))  # in the second try of epoch 2
    with pytest.raises(KeyboardInterrupt):
        run(config, prepared, tmp_path / "work")
    monkeypatch.setattr(engine, "objective", objective)
    assert same(run(config, prepared, tmp_path / "work"), undisturbed)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    prepared: Store, settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = settings(epochs=3)
    undisturbed = run(config, prepared, tmp_path)
    (newest,) = tmp_path.glob("*/step-00000012")
    (newest / "weights.safetensors").write_bytes(b"truncated")
    again = run(config, prepared, tmp_path)
    message = " ".join(capfd.readouterr().err.split())
    assert "checkpoint step-00000012 is damaged" in message and "weights.safetensors" in message
    assert "going on after step 8" in message
    assert same(again, undisturbed)


def test_a_finished_training_is_not_done_twice(
    prepared: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(epochs=2, early_stopping=1)
    first = run(config, prepared, tmp_path)
    monkeypatch.setattr(engine, "objective", lambda *args: pytest.fail("trained again"))
    assert same(run(config, prepared, tmp_path), first)


def test_another_number_of_threads_is_said(
    prepared: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    config = settings(epochs=1)
    run(config, prepared, tmp_path)
    monkeypatch.setattr(engine, "environment", lambda: {"threads": 999, "cpu": "other"})
    run(config, prepared, tmp_path)
    assert "not the same to the last bit" in capfd.readouterr().err


def test_changed_code_starts_over(
    prepared: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from darkarc.training import fingerprint

    config = settings()
    before = fingerprint.training_digest(config, prepared)
    assert before == fingerprint.training_digest(config, prepared)
    monkeypatch.setattr(fingerprint, "_code_digest", lambda: "another code")
    assert fingerprint.training_digest(config, prepared) != before


def test_code_in_folders_of_folders_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from darkarc.training import fingerprint

    deep = tmp_path / "laboratory" / "nets"
    deep.mkdir(parents=True)
    for folder in (deep.parent, deep):
        (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fingerprint, "_SOURCES", ("laboratory",))
    before = fingerprint._code_digest()
    (deep / "__init__.py").write_text("depth = 18")
    assert fingerprint._code_digest() != before
