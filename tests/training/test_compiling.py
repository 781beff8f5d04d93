"""torch.compile: only where asked, with a word where it cannot, and gone afterwards."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from darkarc.config import Config, ConfigError
from darkarc.data.store import Store
from darkarc.tracking.tracker import NullTracker
from darkarc.training import compiling, new_regressor, train
from darkarc.training.compiling import compiled, why_not

Settings = Callable[..., Config]
CPU = torch.device("cpu")


def test_the_backbone_is_compiled_inside_and_as_it_was_afterwards(
    prepared: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "why_not", lambda device: "")
    asked: list[Any] = []
    monkeypatch.setattr(
        torch, "compile", lambda call, **options: asked.append(options) or (lambda *a, **k: call(*a, **k) + 1)
    )
    regressor = new_regressor(settings(), prepared).eval()
    images = torch.randn(2, 1, 12, 12)
    plain = regressor.features(images)
    with compiled(regressor, settings(compile=True).train, CPU, print):
        assert torch.allclose(regressor.features(images), plain + 1) and asked == [{"dynamic": False}]
        average = copy.deepcopy(regressor)  # as the averages of weights are made
        assert torch.equal(average.features(images), plain)
    assert torch.equal(regressor.features(images), plain)
    with compiled(regressor, settings().train, CPU, print):
        assert torch.equal(regressor.features(images), plain)


def test_without_a_compiler_training_says_so_and_goes_on(
    prepared: Store,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C++ compiler found\nand a long trace")

    monkeypatch.setattr(torch, "compile", missing)
    assert why_not(CPU) == "no C++ compiler found"
    result = train(
        settings(epochs=1, compile=True), prepared, workdir=tmp_path, tracker=NullTracker(), progress=False
    )
    assert len(result.history) == 1
    said = " ".join(capfd.readouterr().err.split())
    assert "train.compile: nothing is compiled, training goes on without: no C++ compiler found" in said


@pytest.mark.slow
def test_a_compiled_training_learns_the_same(prepared: Store, settings: Settings, tmp_path: Path) -> None:
    if why_not(CPU):
        pytest.skip("no compiler here")
    options = {"epochs": 1, "precision": "float32", "model": {"dropout": 0.0, "stochastic_depth": 0.0}}
    runs = [
        train(
            settings(compile=how, **options),
            prepared,
            workdir=tmp_path,
            tracker=NullTracker(),
            progress=False,
        )
        for how in (False, True)
    ]
    losses = [run.history[0]["val_loss"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_with_several_workers_it_is_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="compile does not go with more than one worker"):
        settings(compile=True, workers=2)
