"""What a regressor is made of: `model`."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from darkarc.config._section import Section


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
    lens_fit: Literal["source", "full", "robust"] = Field(
        "robust",
        description="what that fit frees: the source's position; full: the vortex's quadrupole too, and the "
        "strength of noise-free lenses; robust: and draws lone rays of noise-free lenses in",
    )
    vortex_fit: bool = Field(
        False,
        description="fit the vortex itself, from the network's answer on: sharper for light particles, at "
        "ten times the cost; model_ii and model_iii with noise: physical",
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
    free_bins: int = Field(
        0, ge=0, le=4096, description="head: binned: free probabilities, each of equally many bins; 0: all"
    )
    smooth_bins: bool = Field(
        True,
        description="head: binned: before a recalibration or a vortex_fit, smooth its bins as the "
        "calibration split says",
    )
    recalibration: Literal["none", "temperature", "isotonic", "conformal", "local"] = Field(
        "local", description="how the calibration split mends the widths of the posteriors"
    )
    novelty: Literal["none", "mixture", "full"] = Field(
        "full",
        description="a score in the model for images unlike the training's; full: sees blur by a fitted lens",
    )

    @field_validator("free_bins")
    @classmethod
    def _divides(cls, value: int, info: ValidationInfo) -> int:
        bins = info.data.get("bins")
        if value and bins is not None and bins % value:
            raise ValueError(f"expected a divisor of bins ({bins})")
        return value
