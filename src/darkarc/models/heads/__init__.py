"""Heads: what stands between the backbone's features and a density over the target's prior range.

A head is a class over the `model` section; enter one into `HEADS` and `model.head` knows it.
"""

from collections.abc import Callable

from darkarc.config import ModelConfig
from darkarc.models.heads.base import Head
from darkarc.models.heads.binned import BinnedHead
from darkarc.models.heads.gaussian import GaussianHead
from darkarc.models.heads.grid import Grid
from darkarc.models.heads.mixture import MixtureHead
from darkarc.models.heads.point import PointHead
from darkarc.models.heads.quantile import QuantileHead
from darkarc.models.heads.spline import SplineHead

HEADS: dict[str, Callable[[ModelConfig], Head]] = {
    "binned": BinnedHead,
    "gaussian": GaussianHead,
    "mixture": MixtureHead,
    "spline": SplineHead,
    "quantile": QuantileHead,
    "point": PointHead,
}

__all__ = [
    "HEADS",
    "BinnedHead",
    "GaussianHead",
    "Grid",
    "Head",
    "MixtureHead",
    "PointHead",
    "QuantileHead",
    "SplineHead",
]
