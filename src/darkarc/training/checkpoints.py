"""Checkpoints: sealed folders `step-00000042/` of tensors (safetensors) and plain state (JSON)."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darkarc.models import Regressor, SealError, read_sealed, write_sealed
from darkarc.training.averaging import WeightAverage
from darkarc.training.optimisers import Plateau

KEEP = 2
_NAME = re.compile(r"step-(\d{8})")


@dataclass
class Progress:
    """Where a training stands; with the tensors, all that the next step depends on.

    step: optimiser steps done; train_loss_sum: of the running epoch's steps (float64, exact in JSON);
    history: a row an epoch; best_epoch counts from 1, 0 before the first; rollbacks: how often the
    training went back and lowered its rate because a loss was not finite.
    """

    step: int = 0
    train_loss_sum: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = float("inf")
    stopped_early: bool = False
    rollbacks: int = 0
    plateau: Plateau = field(default_factory=Plateau)
    environment: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: bytes) -> "Progress":
        tree = json.loads(text)
        return cls(**{**tree, "plateau": Plateau(**tree["plateau"])})


@dataclass
class Learner:
    """What a training changes: the regressor, its optimiser, and the average of weights that answers.

    best: weights of the best epoch so far, as they answered.
    """

    regressor: Regressor
    optimiser: torch.optim.Optimizer
    average: WeightAverage
    best: dict[str, Tensor]


def save_checkpoint(folder: Path, progress: Progress, learner: Learner) -> Path:
    """Write a checkpoint of this step below `folder`, drop all but the last `KEEP`, and say where it is."""
    from safetensors.torch import save

    moments, facts = optimiser_state(learner.optimiser)
    files = {
        "weights.safetensors": save(to_cpu(learner.regressor.state_dict())),
        "average.safetensors": save(to_cpu(learner.average.state)),
        "optimiser.safetensors": save(moments),
        "optimiser.json": json.dumps(facts).encode(),
        "best.safetensors": save(to_cpu(learner.best)),
        "progress.json": json.dumps(asdict(progress), indent=1).encode(),
    }
    path = write_sealed(folder / f"step-{progress.step:08d}", files)
    for _, old in _checkpoints(folder)[KEEP:]:
        shutil.rmtree(old)
    return path


def restore_checkpoint(folder: Path, learner: Learner, say: Callable[[str], None]) -> Progress | None:
    """Load the newest sound checkpoint into the learner; None if there is none.

    A damaged one is named through `say`, set aside as `….damaged`, and the one before it is used.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    for _, path in _checkpoints(folder):
        try:
            files = read_sealed(path)
            progress = Progress.from_json(files["progress.json"])
            weights, best = load(files["weights.safetensors"]), load(files["best.safetensors"])
            average = load(files["average.safetensors"])
            moments, facts = load(files["optimiser.safetensors"]), json.loads(files["optimiser.json"])
        except (SealError, SafetensorError, KeyError, TypeError, ValueError) as error:
            say(f"checkpoint {path.name} is damaged, going back to the one before: {error}")
            damaged = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(damaged, ignore_errors=True)
            path.rename(damaged)
            continue
        learner.regressor.load_state_dict(weights)
        learner.average.load(average)
        load_optimiser(learner.optimiser, moments, facts)
        learner.best = best
        return progress
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint written below `folder`."""
    return next((path for _, path in _checkpoints(folder)), None)


def epochs_done(folder: Path) -> int:
    """Whole epochs behind the newest checkpoint; 0 without one."""
    newest = newest_checkpoint(folder)
    return 0 if newest is None else len(json.loads(read_sealed(newest)["progress.json"])["history"])


def to_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU, as safetensors wants them."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path), newest first."""
    if not folder.is_dir():
        return []
    found = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain values by `<parameter number>.<name>`, or `group<number>.<name>` where an
    optimiser keeps something for a group (LAMB counts its steps there)."""
    state = optimiser.state_dict()
    tree = {
        f"{number}.{name}": value for number, row in state["state"].items() for name, value in row.items()
    }
    for number, group in enumerate(state["param_groups"]):
        tree |= {f"group{number}.{name}": value for name, value in group.items() if isinstance(value, Tensor)}
    facts = {key: value for key, value in tree.items() if not isinstance(value, Tensor)}
    return to_cpu({key: value for key, value in tree.items() if isinstance(value, Tensor)}), facts


def load_optimiser(
    optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Undo `optimiser_state`. Moments take the strides of their parameters: sums over them then run in the
    order of an undisturbed training."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    groups = optimiser.state_dict()["param_groups"]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **facts}.items():
        owner, name = key.split(".", 1)
        if owner.startswith("group"):
            groups[int(owner.removeprefix("group"))][name] = value
            continue
        parameter = parameters[int(owner)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(owner), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": groups})
