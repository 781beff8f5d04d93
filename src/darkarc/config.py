"""Configuration: `params.yaml` to and from frozen, validated sections.

Every key of `params.yaml` is a field here, with its meaning and its bounds; an unknown or misspelt
key is an error that names it and proposes the nearest one. `load` reads a file and applies
overrides (`train.epochs=3`); `Config.model_dump()` gives it back.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

CLASSES = ("axion", "cdm", "no_sub")
"""Class order of the DeepLense classifiers: the index of a name is its label."""

DEFAULT_TARGET = "log10_axion_mass_ev"

TARGET_CLASS = {
    "log10_axion_mass_ev": "axion",
    "log10_subhalo_mass_msun": "cdm",
    "n_subhalos": "cdm",
}
"""Targets that can be regressed (columns of `samples.parquet`) and the one class that has them."""

PresetName = Literal["model_i", "model_ii", "model_iii"]
Noise = Literal["none", "published", "physical"]
Distances = Literal["deeplense", "physical"]


Share = Annotated[float, Field(ge=0, lt=1)]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and the remedy."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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


class ModelConfig(Section):
    backbone: str = Field("small_resnet", description="a name of darkarc.models.BACKBONES")
    width: float = Field(1.0, gt=0, le=8, description="multiplies every channel count of the backbone")
    dropout: float = Field(0.0, ge=0, lt=1, description="before the heads")
    stochastic_depth: float = Field(0.0, ge=0, lt=1, description="drop rate of the last residual branch")
    drop_block: float = Field(
        0.0, ge=0, le=0.5, description="share of the last stages' maps that DropBlock blanks, in patches"
    )
    norm: Literal["native", "batch", "group", "layer"] = Field(
        "native", description="normalisation inside the backbone; native: its paper's own"
    )
    normalisation: Literal["image", "dataset"] = Field(
        "dataset", description="standardise by each image's own mean and deviation, or by the train split's"
    )
    background: Literal["none", "border_median"] = Field(
        "none", description="what becomes nought: that mean, or the median of each image's outermost pixels"
    )
    stretch: Literal["none", "asinh", "log", "sqrt"] = Field(
        "none", description="compression of the bright arc, after standardisation"
    )
    lens_residual: Literal["auto", "none", "compact", "bare", "both"] = Field(
        "auto",
        description="smooth lens whose residual stands beside the image; auto: compact if it is known",
    )
    stretch_scale: float = Field(
        1.0, gt=0, description="deviations above nought from which on the stretch compresses"
    )
    crop_pixels: int = Field(
        0, ge=0, le=4096, description="the backbone sees the central square of so many pixels; 0: all"
    )
    residual: int = Field(
        0,
        ge=0,
        le=256,
        description="one more channel: what so many principal components of smooth lenses leave; 0: none",
    )
    head: Literal["binned", "gaussian", "mixture", "spline", "quantile", "point"] = Field(
        "binned", description="how the density over the prior range is parametrised; see docs/objectives.md"
    )
    components: int = Field(5, ge=2, le=64, description="head: mixture: number of normal distributions")
    knots: int = Field(16, ge=2, le=256, description="head: spline: pieces of the spline")
    quantiles: int = Field(31, ge=3, le=255, description="head: quantile: number of quantiles")
    bins: int = Field(256, ge=8, le=4096, description="bins of the posterior's grid over the prior range")
    recalibration: Literal["none", "temperature", "isotonic", "conformal", "local"] = Field(
        "local", description="how the calibration split mends the widths of the posteriors"
    )
    novelty: Literal["none", "mixture"] = Field(
        "mixture", description="a score inside the model for images unlike the training's"
    )


OBJECTIVE_HEADS = {
    "nll": ("binned", "gaussian", "mixture", "spline"),
    "crps": ("binned", "gaussian", "mixture", "spline"),
    "beta_nll": ("gaussian",),
    "pinball": ("quantile",),
    "mse": ("point",),
    "rmse": ("point",),
    "mae": ("point",),
    "huber": ("point",),
}
"""`train.objective` and the heads that it trains."""

SCHEDULABLE = (
    "model.dropout",
    "model.stochastic_depth",
    "model.drop_block",
    "train.learning_rate",
    "train.weight_decay",
    "train.label_sigma_dex",
    "train.class_weight",
    "train.beta",
    "train.huber_delta",
    "train.label_smoothing",
    "train.mixup",
    "train.gradient_clip",
    "train.noise_augmentation",
)
"""Keys that may change between epochs: none changes the shape of a weight or the order of the data.

Not `train.dihedral`: mirrored images take the fitted lens away (`model.lens_residual`), and with it channels.
"""


class ScheduleStep(Section):
    epoch: int = Field(ge=1, description="the values hold once so many epochs are done")
    values: dict[str, bool | int | float | str] = Field(
        min_length=1, description="dotted keys, such as train.learning_rate"
    )


class TrainConfig(Section):
    epochs: int = Field(24, ge=1)
    members: int = Field(
        1, ge=1, le=64, description="trainings with seeds of their own that answer as one (deep ensemble)"
    )
    batch_size: int = Field(64, ge=2)
    accumulate: int = Field(1, ge=1, description="parts in which a batch passes the network, to save memory")
    optimiser: Literal["adamw", "sgd", "lamb", "lion", "muon"] = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd, muon: Nesterov momentum")
    betas: tuple[Share, Share] = Field(
        (0.9, 0.99), description="adamw, lamb, lion, muon's AdamW: memory of the two moments"
    )
    learning_rate: float = Field(4e-3, gt=0, description="the highest rate of the policy")
    weight_decay: float = Field(0.01, ge=0)
    policy: Literal["one_cycle", "cyclic", "cosine", "plateau", "constant"] = "one_cycle"
    warmup: float = Field(0.25, ge=0, lt=1, description="one_cycle, cosine: share of the steps spent rising")
    cycles: int = Field(4, ge=1, description="cyclic: triangles from a 25th of the rate up and down again")
    plateau_factor: float = Field(0.3, gt=0, lt=1, description="plateau: the rate is multiplied by this")
    plateau_patience: int = Field(3, ge=0, description="plateau: epochs without gain before that")
    early_stopping: int = Field(0, ge=0, description="epochs without gain before training stops; 0: never")
    objective: Literal["nll", "crps", "beta_nll", "pinball", "mse", "rmse", "mae", "huber"] = Field(
        "nll", description="what a target's answer is scored by; see docs/objectives.md"
    )
    beta: float = Field(0.5, ge=0, le=1, description="objective: beta_nll: power of the variance")
    huber_delta: float = Field(
        0.1, gt=0, description="objective: huber: errors up to this are squared, in units of the target"
    )
    label_sigma_dex: float = Field(
        0.008, gt=0, description="width of the soft histogram target, in units of the target"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="objective: nll: share of the uniform prior in the label"
    )
    mixup: float = Field(
        0.0, ge=0, description="images and losses are mixed in pairs, shares from Beta(mixup, mixup); 0: off"
    )
    target_weight: dict[str, float] = Field(
        {}, description="weight of a target's loss, by its name; 1 for those not named"
    )
    class_weight: float = Field(0.2, ge=0, description="weight of the class loss beside the target's")
    auxiliary_weight: float = Field(
        0.0, ge=0, description="weight of learning source position and vortex angle beside the targets"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic of a training step; auto: bfloat16 where the hardware has it"
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the moving average of the weights, which answers; 0: off"
    )
    swa: float = Field(
        0.0, ge=0, le=1, description="share of the epochs, the last ones, whose weights are averaged; 0: off"
    )
    compile: bool = Field(False, description="compile the backbone (torch.compile); pays in long trainings")
    workers: int = Field(
        1, ge=1, description="processes of Ray Train that share every batch; it must divide batch_size"
    )
    freeze_norm: float = Field(
        0.3, ge=0, le=1, description="share of the epochs, the last ones, with fixed batch-norm statistics"
    )
    sanity: bool = Field(True, description="before a long training, a few images must be learnt by heart")
    gradient_clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0: no clipping")
    on_nonfinite: Literal["stop", "rollback"] = Field(
        "stop", description="a loss that is not finite stops, or goes back to the checkpoint at a lower rate"
    )
    rollback_factor: float = Field(0.5, gt=0, lt=1, description="rollback: the rate is multiplied by this")
    rollback_limit: int = Field(3, ge=1, description="rollback: so many times, then stop")
    dihedral: Literal["none", "half_turn", "flips", "full"] = Field(
        "half_turn",
        description="drawn a sample and epoch: half turns keep lens and source, the 4 flips the lens",
    )
    rotation: float = Field(
        0.0, ge=0, le=180, description="largest angle in degrees that images are turned by, bilinear"
    )
    shift_pixels: int = Field(
        0, ge=0, le=64, description="largest shift of images along each axis, whole pixels"
    )
    noise_augmentation: float = Field(
        0.0, ge=0, description="largest extra noise, PSF-smoothed, in units of the instrument's background's"
    )
    teacher: str | None = Field(
        None, description="folder of a trained regressor whose densities are learnt too (distillation)"
    )
    distillation_weight: float = Field(
        0.7, ge=0, le=1, description="share of the teacher's answers in the loss, the rest is the truths'"
    )
    schedule: tuple[ScheduleStep, ...] = Field(
        (), description="changes of parameters between epochs, as a population search (pbt, pb2) finds them"
    )

    @model_validator(mode="after")
    def _one_average(self) -> "TrainConfig":
        if self.ema and self.swa:
            raise ValueError(f"ema is {self.ema:g} and swa {self.swa:g}: one average answers, set one to 0")
        return self

    @model_validator(mode="after")
    def _parts_of_a_batch(self) -> "TrainConfig":
        if self.batch_size % self.workers:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared equally by {self.workers} workers"
            )
        if self.workers > 1 and self.compile:
            raise ValueError("compile does not go with more than one worker: set it to false")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate {self.accumulate} is more than batch_size {self.batch_size}")
        for name, n in (("accumulate", self.accumulate), ("workers", self.workers)):
            if n > 1 and self.objective == "rmse":
                raise ValueError(
                    f"{name} is {n}, but the roots of parts do not sum to the root of all: "
                    f"set {name} to 1, or objective to mse"
                )
        return self


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


class RegisterConfig(Section):
    name: str = Field("axion-mass-regressor", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    coverage_tolerance: float = Field(
        0.03,
        gt=0,
        le=1,
        description="a champion's coverage is this close to nominal at 68 and 90%, chance set aside",
    )


class TuneConfig(Section):
    search: bool = Field(True, description="false: train with params.yaml as it is")
    study: str = Field("experiments/quick.yaml", description="the search before training")


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


class Config(Section):
    """All of `params.yaml`."""

    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    data: DataConfig = DataConfig()
    simulate: SimulateConfig = SimulateConfig()
    ingest: IngestConfig = IngestConfig()
    prepare: PrepareConfig = PrepareConfig()
    targets: dict[str, tuple[float, float]] = Field(
        {DEFAULT_TARGET: (-24.0, -22.0)}, min_length=1, description="columns to regress, each on its prior"
    )
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    register_: RegisterConfig = Field(RegisterConfig(), alias="register")
    export: ExportConfig = ExportConfig()
    tracking: TrackingConfig = TrackingConfig()
    serve: ServeConfig = ServeConfig()

    @model_validator(mode="after")
    def _targets_exist(self) -> "Config":
        for name, (low, high) in self.targets.items():
            if name not in TARGET_CLASS:
                raise ValueError(f"targets.{name}: no such target; known are {', '.join(TARGET_CLASS)}")
            if not low < high:
                raise ValueError(f"targets.{name}: the prior range [{low:g}, {high:g}] is empty")
        return self

    @model_validator(mode="after")
    def _objective_fits_the_head(self) -> "Config":
        objective, head = self.train.objective, self.model.head
        heads = OBJECTIVE_HEADS[objective]
        if head not in heads:
            others = [name for name, fits in OBJECTIVE_HEADS.items() if head in fits]
            raise ValueError(
                f"train.objective: {objective} does not train model.head: {head}; set model.head to "
                f"{' or '.join(heads)}, or train.objective to {' or '.join(others)}"
            )
        if self.train.label_smoothing and objective != "nll":
            raise ValueError(
                f"train.label_smoothing is {self.train.label_smoothing:g}, but {objective} has no label to "
                "smooth: set it to 0, or train.objective to nll"
            )
        return self

    @model_validator(mode="after")
    def _weighted_targets_exist(self) -> "Config":
        for name, weight in self.train.target_weight.items():
            if name not in self.targets:
                raise ValueError(
                    f"train.target_weight.{name}: no such target here; targets has {', '.join(self.targets)}"
                )
            if not 0 <= weight < float("inf"):
                raise ValueError(f"train.target_weight.{name}: {weight:g} is no weight: set it to 0 or more")
        return self

    @model_validator(mode="after")
    def _schedule_can_be_followed(self) -> "Config":
        before = 0
        for step in self.train.schedule:
            if not before < step.epoch < self.train.epochs:
                raise ValueError(
                    f"train.schedule: epoch {step.epoch} must come after {before} and before train.epochs "
                    f"({self.train.epochs})"
                )
            for key in step.values:
                if key not in SCHEDULABLE:
                    raise ValueError(
                        f"train.schedule: {key} cannot change between epochs; {', '.join(SCHEDULABLE)} can"
                    )
            before = step.epoch
            try:
                without_schedule(self, step.epoch)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self

    def dump(self) -> dict[str, Any]:
        """The plain nested dictionary that `params.yaml` would hold."""
        return self.model_dump(mode="json", by_alias=True)

    def flat(self) -> dict[str, Any]:
        """Dotted key to value, as in `train.epochs`."""
        return flatten(self.dump())


def without_schedule(config: Config, epochs_done: int) -> Config:
    """The configuration as `train.schedule` leaves it after so many epochs, with nothing more to come."""
    tree = config.dump()
    steps = tree["train"].pop("schedule")
    for step in steps:
        if step["epoch"] <= epochs_done:
            for key, value in step["values"].items():
                section, _, leaf = key.partition(".")
                tree[section][leaf] = value
    return parse(tree, "train.schedule")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def load(path: str | Path = "params.yaml", overrides: Iterable[str] = ()) -> Config:
    """Read a parameter file and apply `key.sub=value` overrides (values are YAML).

    Raises `ConfigError` that names the file and the key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the parameters: {error}") from error
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as `train:`, found a {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    return parse(tree, str(path))


def parse(tree: Mapping[str, Any], origin: str = "parameters") -> Config:
    """Validate a nested mapping; `origin` names it in errors."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, origin)) from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: expected KEY=VALUE, such as train.epochs=3")
    *parents, leaf = key.strip().split(".")
    node: Any = tree
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise ConfigError(f"--set {override!r}: {'.'.join(parents)} is a value, not a section")
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from error


def _explain(error: ValidationError, origin: str) -> str:
    known = Config().flat()
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, [*known, *Config().dump()], n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else "; see docs/parameters.md for every key"
            lines.append(f"{origin}: {key}: unknown key{hint}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            found = "" if isinstance(item["input"], dict) else f", found {item['input']!r}"
            lines.append(f"{origin}: {key}: {message}{found}")
    return "\n".join(lines)


def template() -> str:
    """`params.yaml` as shipped: every key with its default and its meaning. `make params` writes it."""
    head = (
        "# Everything that can be chosen; docs/parameters.md explains each key. "
        "`dvc repro` re-runs what a change concerns."
    )
    return "\n".join([head, "", *_template_lines(Config, 0)]) + "\n"


def _template_lines(section: type[BaseModel], depth: int) -> list[str]:
    lines: list[str] = []
    indent = "  " * depth
    for name, field in section.model_fields.items():
        key, kind, default = field.alias or name, field.annotation, field.default
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines += ["", f"{key}:"] if depth == 0 else [f"{indent}{key}:"]
            lines += _template_lines(kind, depth + 1)
        elif isinstance(default, dict) and default:
            lines += ["", f"{key}:"]
            lines += [f"  {k}: [{low}, {high}]  # prior range" for k, (low, high) in default.items()]
        else:
            choices = " | ".join(option for option in get_args(kind) if isinstance(option, str))
            meaning = field.description or choices
            lines.append(
                f"{indent}{key}: {json.dumps(default).strip(chr(34))}" + f"  # {meaning}" * bool(meaning)
            )
    return lines
