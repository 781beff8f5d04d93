"""How a regressor is judged, kept and asked: `evaluate`, `register`, `export`, `tracking`, `serve`."""

from typing import Literal

from pydantic import Field

from darkarc.config._section import Section


class EvaluateConfig(Section):
    mass_bins: int = Field(8, ge=1, description="bins of the true target in the tables and figures")
    examples: int = Field(6, ge=1, description="best and worst images to show, each")
    batch_size: int = Field(256, ge=1)
    ood_images: int = Field(
        100, ge=0, description="images of each case that the regressor was not trained for; 0: no such check"
    )
    floor_images: int = Field(
        24, ge=0, description="test images whose exact posterior is computed, the information floor; 0: none"
    )


class RegisterConfig(Section):
    name: str = Field("axion-mass-regressor", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    coverage_tolerance: float = Field(
        0.03,
        gt=0,
        le=1,
        description="a champion's coverage is this close to nominal at 68 and 90%, chance set aside",
    )


class ExportConfig(Section):
    variants: tuple[Literal["float16", "int8"], ...] = Field(
        (),
        description="smaller arithmetic, kept only if faster, as accurate and as calibrated: float16, int8",
    )
    least_speedup: float = Field(
        1.05, ge=1, description="a variant answers at least so many times as fast, on one core"
    )
    error_tolerance: float = Field(
        0.02, ge=0, le=1, description="a variant's mean error grows by at most this share, at 95% confidence"
    )
    coverage_tolerance: float = Field(
        0.01, ge=0, le=1, description="a variant's coverage is at most this much further from nominal"
    )


class TrackingConfig(Section):
    experiment: str = Field("darkarc", min_length=1, description="name of the MLflow experiment")
    tensorboard: bool = Field(
        False, description="curves of train also for TensorBoard, in .darkarc/tensorboard"
    )
    system_metrics: bool = Field(True, description="CPU, memory and GPU use beside each run")
    system_metrics_interval_s: float = Field(10.0, ge=0.1, description="seconds between two samples of them")
    patience_s: float = Field(
        20.0, ge=0, description="seconds that the end of a run waits for a server that does not answer"
    )


class ServeConfig(Section):
    port: int = Field(8000, ge=1024, le=65535, description="where `darkarc serve` listens")
    max_files: int = Field(200, ge=1, le=10_000, description="files on one page, and in one request")
    max_file_mb: float = Field(64.0, gt=0, description="largest file")
    max_request_mb: float = Field(256.0, gt=0, description="all files of one request together")
    max_images: int = Field(100, ge=1, le=10_000, description="images of one file that are answered")
    workers: int = Field(1, ge=1, le=64, description="processes that read files and answer")
    waiting: int = Field(8, ge=0, le=1000, description="requests that may wait for one; others are sent away")
    timeout_s: float = Field(60.0, gt=0, description="for an upload, and again for its answer")
    memory_mb: int = Field(
        2048, ge=64, description="of a worker, beyond what its model needs; a file that wants more is refused"
    )
