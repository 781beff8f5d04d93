"""Checkpoints: sealed folders `step-00000042/` of tensors (safetensors) and plain state (JSON)."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darkarc.models import SealError, read_sealed, write_sealed
from darkarc.training.optimisers import Plateau

KEEP = 2
_NAME = re.compile(r"step-(\d{8})")


@dataclass
class Progress:
    """Where a training stands; with the tensors, all that the next step depends on.

    step: optimiser steps done; train_loss_sum: of the running epoch's steps (float64, exact in JSON);
    history: a row an epoch; best_epoch counts from 1, 0 before the first.
    """

    step: int = 0
    train_loss_sum: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = float("inf")
    stopped_early: bool = False
    plateau: Plateau = field(default_factory=Plateau)
    environment: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: bytes) -> "Progress":
        tree = json.loads(text)
        return cls(**{**tree, "plateau": Plateau(**tree["plateau"])})


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: dict[str, Tensor],
) -> Path:
    """Write a checkpoint of this step below `folder`, drop all but the last `KEEP`, and say where it is."""
    from safetensors.torch import save

    files = {
        "weights.safetensors": save(to_cpu(model.state_dict())),
        "optimiser.safetensors": save(_optimiser_tensors(optimiser)),
        "best.safetensors": save(to_cpu(best)),
        "progress.json": json.dumps(asdict(progress), indent=1).encode(),
    }
    path = write_sealed(folder / f"step-{progress.step:08d}", files)
    for _, old in _checkpoints(folder)[KEEP:]:
        shutil.rmtree(old)
    return path


def restore_checkpoint(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, say: Callable[[str], None]
) -> tuple[Progress, dict[str, Tensor]] | None:
    """Load the newest sound checkpoint into model and optimiser; None if there is none.

    A damaged one is named through `say`, set aside as `….damaged`, and the one before it is used.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    for _, path in _checkpoints(folder):
        try:
            files = read_sealed(path)
            progress = Progress.from_json(files["progress.json"])
            weights, best = load(files["weights.safetensors"]), load(files["best.safetensors"])
            moments = load(files["optimiser.safetensors"])
        except (SealError, SafetensorError, KeyError, TypeError, ValueError) as error:
            say(f"checkpoint {path.name} is damaged, going back to the one before: {error}")
            damaged = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(damaged, ignore_errors=True)
            path.rename(damaged)
            continue
        model.load_state_dict(weights)
        _load_optimiser(optimiser, moments)
        return progress, best
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


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`<parameter number>.<name>` -> tensor; AdamW's state holds tensors alone."""
    state = optimiser.state_dict()["state"]
    return to_cpu({f"{number}.{name}": value for number, row in state.items() for name, value in row.items()})


def _load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
