"""Where images come from and how they are made ready: `data`, `simulate`, `ingest`, `prepare`."""

from typing import Literal

from pydantic import Field, model_validator

from darkarc.config._section import Distances, Noise, PresetName, Section


class DataConfig(Section):
    source: Literal["simulated", "online", "deeplense"] = Field(
        "simulated",
        description="our simulator (online: new training images every epoch) or a folder of DeepLense files",
    )
    epoch_images: int = Field(
        0, ge=0, description="source: online: training images an epoch; 0: as many as the store's train split"
    )
    path: str = Field(
        "data/deeplense_files", description="folder or .tgz of DeepLense files (source: deeplense)"
    )
    memory_gb: float = Field(
        4.0, gt=0, description="a split up to this size is held in memory, a larger one memory-mapped"
    )


class SimulateConfig(Section):
    preset: PresetName = "model_iii"
    noise: Noise = "physical"
    distances: Distances = Field(
        "deeplense", description="DeepLense's luminosity-distance quirk, or angular-diameter distances"
    )
    n_axion: int = Field(7000, ge=0, description="images of the axion class")
    n_cdm: int = Field(1000, ge=0, description="images of the cdm class")
    n_no_sub: int = Field(1000, ge=0, description="images of the no_sub class")
    precision: Literal["float32", "float64"] = Field("float32", description="arithmetic of the simulator")

    @model_validator(mode="after")
    def _something_to_simulate(self) -> "SimulateConfig":
        if self.n_axion + self.n_cdm + self.n_no_sub == 0:
            raise ValueError("n_axion, n_cdm and n_no_sub are all 0: ask for at least one image")
        return self


class IngestConfig(Section):
    on_bad: Literal["stop", "skip"] = Field(
        "stop", description="a bad file stops the ingest, or goes to rejected.csv with its reason"
    )


class OutlierConfig(Section):
    action: Literal["exclude", "flag"] = Field(
        "flag", description="leave outliers out of the prepared store, or only name them in quality.parquet"
    )
    contamination: float = Field(
        0.002, gt=0, lt=0.5, description="share of train images the IsolationForest calls outliers"
    )
    trees: int = Field(200, ge=10, description="trees of the IsolationForest")
    largest_share: float = Field(
        0.05, gt=0, lt=1, description="the forest calls at most this share of a class and mass bin outliers"
    )


class PrepareConfig(Section):
    train: float = Field(0.7, ge=0, le=1, description="share of groups")
    validation: float = Field(0.05, ge=0, le=1)
    calibration: float = Field(0.1, ge=0, le=1)
    test: float = Field(0.15, ge=0, le=1, description="ignored share if a published test set is there")
    mass_bins: int = Field(10, ge=1, description="bins of the target that the split is stratified by")
    outliers: OutlierConfig = OutlierConfig()

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> "PrepareConfig":
        total = self.train + self.validation + self.calibration + self.test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"train + validation + calibration + test is {total:g}; it must be 1")
        return self
