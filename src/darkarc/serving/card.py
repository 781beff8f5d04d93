"""The model card: what an exported regressor is, on which data, how good, and where it stops."""

from collections.abc import Mapping
from typing import Any

from darkarc.config import ModelConfig
from darkarc.models import QUANTILE_LEVELS, RegressorSpec

METRICS = {
    "mae_dex": "mean absolute error of the median (dex)",
    "rmse_dex": "root-mean-square error (dex)",
    "r2": "coefficient of determination",
    "bias_dex": "mean error (dex)",
    "nll": "negative log-likelihood (nats)",
    "coverage_50": "coverage of the 50 % interval",
    "coverage_68": "coverage of the 68 % interval",
    "coverage_90": "coverage of the 90 % interval",
    "coverage_95": "coverage of the 95 % interval",
    "class_auc": "area under the curve of the classes",
    "floor_mae_dex": "error of the exact posterior on the same images (dex)",
}


def model_card(
    spec: RegressorSpec,
    *,
    metrics: Mapping[str, Any] | None = None,
    lineage: Mapping[str, str] | None = None,
) -> str:
    """Markdown; `metrics` as in `reports/metrics.json`, `lineage` name -> value; a pure function of both."""
    model = ModelConfig.model_validate(spec.model)
    height, width = spec.shape
    targets = ", ".join(f"`{name}` on [{low:g}, {high:g}]" for name, (low, high) in spec.targets.items())
    levels = ", ".join(f"{level:g}" for level in QUANTILE_LEVELS)
    parts = [
        f"# Regressor of {', '.join(spec.targets)} from {spec.instrument} images",
        f"Posterior of {targets} and the probabilities of the classes {', '.join(spec.classes)}, from one "
        f"image of a strong lens. Backbone {model.backbone} (width {model.width:g}), {model.head} head on "
        f"{model.bins} bins.",
        "## Input and output",
        f"`images`: float32 (batch, 1, {height}, {width}), raw pixels as the instrument `{spec.instrument}` "
        "gives them; nothing is to be normalised outside.\n\n"
        f"`density` (batch, {len(spec.targets)}, {model.bins}) per unit of the target; `median`; `quantiles` "
        f"at {levels}; `class_probability` (batch, {len(spec.classes)}).\n\n"
        '```python\nimport darkarc\nposterior = darkarc.load("this folder").predict(images)\n```',
        "## Test results",
        _table(metrics),
        "## Limits",
        f"- Trained on `{spec.instrument}` images of {height} x {width} pixels; pixels of mean "
        f"{float(spec.statistics['mean']):.4g} and deviation {float(spec.statistics['std']):.4g}. "
        "`darkarc predict` flags images outside of the training's range, and gives no numbers far outside.\n"
        "- A mass means something only where the lens is axion-like: look at `class_probability` first.\n"
        "- The posterior lies within the prior range by construction; one that leans on its end is a limit.",
    ]
    if lineage:
        parts += ["## Lineage", "\n".join(f"- {name}: {value}" for name, value in lineage.items())]
    return "\n\n".join(parts) + "\n"


def _table(metrics: Mapping[str, Any] | None) -> str:
    found = {key: metrics[key] for key in METRICS if metrics and isinstance(metrics.get(key), int | float)}
    if not found:
        return "Not evaluated."
    rows = [f"| {METRICS[key]} | {float(value):.4f} |" for key, value in found.items()]
    return "\n".join(["| | |", "|---|---|", *rows])
