"""darkarc: calibrated posteriors of dark-matter properties from images of strong lenses.

The public interface; each name is imported when it is first used:

- `simulate(preset, ...)`: images of chosen physical parameters, (N, H, W) float64.
- `load(where)`: a regressor from the registry, a file or a folder; `.predict(images)` gives a `Posterior`.
- `combine(posterior)`: one particle mass behind many lenses.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from darkarc.models import Posterior, combine
    from darkarc.serving import load
    from darkarc.simulation import simulate

__all__ = ["Posterior", "combine", "load", "simulate"]

# ONNX Runtime sends usage statistics to its makers, on Linux too, unless this is there before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOME = {"Posterior": "models", "combine": "models", "load": "serving", "simulate": "simulation"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'darkarc' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"darkarc.{_HOME[name]}"), name)
