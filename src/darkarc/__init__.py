"""darkarc: calibrated posteriors of dark-matter properties from images of strong lenses.

The public interface; each name is imported when it is first used:

- `simulate(preset, ...)`: images of chosen physical parameters, (N, H, W) float64.
- `load(where)`: a regressor from the registry, a file or a folder; `.predict(images)` gives a `Posterior`.
- `combine(posterior)`: one particle mass behind many lenses.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from darkarc.models import Posterior, combine
    from darkarc.serving import load
    from darkarc.simulation import simulate

__all__ = ["Posterior", "combine", "load", "simulate"]

_HOME = {"Posterior": "models", "combine": "models", "load": "serving", "simulate": "simulation"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'darkarc' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"darkarc.{_HOME[name]}"), name)
