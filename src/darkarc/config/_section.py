"""What every section of `params.yaml` is, and the words that several of them share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

CLASSES = ("axion", "cdm", "no_sub")
"""Class order of the DeepLense classifiers: the index of a name is its label."""

DEFAULT_TARGET = "log10_axion_mass_ev"

TARGET_CLASS = {
    "log10_axion_mass_ev": "axion",
    "log10_subhalo_mass_msun": "cdm",
    "n_subhalos": "cdm",
}
"""Targets that can be regressed (columns of `samples.parquet`) and the one class that has them."""

TARGET_UNIT = {"log10_axion_mass_ev": "dex", "log10_subhalo_mass_msun": "dex", "n_subhalos": ""}
"""What errors of a target are counted in: dex if it is a log10, nothing if it is a number."""

PresetName = Literal["model_i", "model_ii", "model_iii"]

Noise = Literal["none", "published", "physical"]

Distances = Literal["deeplense", "physical"]

SEEDS = 2**63
"""Seeds are whole numbers from 0 to below this; a seed made from another one is taken modulo it."""

Share = Annotated[float, Field(ge=0, lt=1)]


def in_unit(value: str, target: str) -> str:
    """`0.012 dex`, and `0.012` for a target without a unit."""
    return f"{value} {TARGET_UNIT[target]}".rstrip()


def with_unit(label: str, target: str) -> str:
    """`MAE (dex)`, and `MAE` for a target without a unit."""
    unit = TARGET_UNIT[target]
    return f"{label} ({unit})" if unit else label


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and the remedy."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
