"""How a regressor is searched and trained: `tune`, `train`."""

from typing import Literal

from pydantic import Field, model_validator

from darkarc.config._section import Section, Share

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
    epochs: int = Field(12, ge=1)
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
    compile: bool = Field(
        False, description="compile the backbone (torch.compile), which takes minutes first"
    )
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


class TuneConfig(Section):
    search: bool = Field(True, description="false: train with params.yaml as it is")
    study: str = Field("experiments/quick.yaml", description="the search before training")
