"""torch.compile for a training, where a compiler is there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from darkarc.config import TrainConfig
from darkarc.models import Regressor


@contextmanager
def compiled(
    regressor: Regressor, train: TrainConfig, device: torch.device, say: Callable[[str], None]
) -> Iterator[None]:
    """Inside, the backbone runs compiled if `train.compile` asks for it; afterwards it is as it was.

    Where torch finds no compiler that is said, and training goes on without. Averages of weights (copies)
    answer uncompiled, and so does everything that is saved: only the kernels of the steps differ.
    """
    if not train.compile:
        yield
        return
    reason = why_not(device)
    if reason:
        say(f"train.compile: nothing is compiled, training goes on without: {reason}")
        yield
        return
    regressor.backbone.compile(dynamic=False)
    try:
        yield
    finally:
        regressor.backbone._compiled_call_impl = None


def why_not(device: torch.device) -> str:
    """What keeps torch.compile from working on the device, found out by trying; empty if nothing."""
    try:
        torch.compile(_probe, fullgraph=True)(torch.ones(16, device=device))
    except Exception as error:  # whatever the toolchain raises
        return str(error).strip().split("\n")[0]
    return ""


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (2 * x + 1).relu()
