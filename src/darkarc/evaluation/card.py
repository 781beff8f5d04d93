"""The model card: what a registered or exported regressor is, how good it is, and where it stops."""

from collections.abc import Mapping
from typing import Any

from darkarc.evaluation.wording import (
    MEANINGS,
    about_true_values,
    as_published,
    limits,
    meaning,
    missing_reasons,
    number,
    with_error,
)
from darkarc.models import QUANTILE_LEVELS, RegressorSpec

BY_MASS = (
    "mae_dex",
    "floor_mae_dex",
    "bias_dex",
    "coverage_68",
    "coverage_68_expected",
    "coverage_90",
    "coverage_90_expected",
    "sharpness_dex",
)


def model_card(
    spec: RegressorSpec,
    metrics: Mapping[str, Any] | None = None,
    *,
    data: Mapping[str, str] | None = None,
    lineage: Mapping[str, str] | None = None,
    title: str = "",
) -> str:
    """Markdown; the same input, the same text.

    metrics: content of `metrics.json` (`evaluate`); without it the card says that nothing was measured.
    data: `describe_data` of the prepared store. lineage: name to value, such as the git commit and the run.
    """
    target = next(iter(spec.targets))
    parts = [f"# {title or f'Regressor of {target} from {spec.instrument} images'}", _what(spec)]
    parts += ["## Input and output", _interface(spec)]
    if data:
        parts += ["## Data", _table(("", ""), data.items())]
    if metrics:
        parts += ["## Test results", _results(metrics, target), *_by_mass(metrics), *_published(metrics)]
        warnings = metrics.get("warnings", [])
        if warnings:
            parts += ["## Warnings", "\n".join(f"- {line}" for line in warnings)]
    else:
        parts += ["## Test results", "Not evaluated: there are no measured errors and no measured coverage."]
    facts = data or {"Instrument": spec.instrument, "Shape": f"{spec.shape[0]} × {spec.shape[1]} pixels"}
    parts += [
        "## Limits",
        "\n".join(f"- {line}" for line in limits(metrics or {}, target, spec.targets[target], facts)),
    ]
    if lineage:
        parts += ["## Lineage", _table(("", ""), lineage.items())]
    return "\n\n".join(parts) + "\n"


def _what(spec: RegressorSpec) -> str:
    targets = ", ".join(f"`{name}` on [{low:g}, {high:g}]" for name, (low, high) in spec.targets.items())
    model = spec.model
    ensemble = f"An ensemble of {spec.members} trainings. " if spec.members > 1 else ""
    return (
        f"{ensemble}"
        f"Posterior of {targets} and the probabilities of the classes {', '.join(spec.classes)}, from "
        "one image of "
        f"a strong lens. Backbone {model['backbone']} (width {float(model['width']):g}), "
        f"{model['head']} head on "
        f"{model['bins']} bins."
    )


def _interface(spec: RegressorSpec) -> str:
    height, width = spec.shape
    levels = ", ".join(f"{level:g}" for level in QUANTILE_LEVELS)
    more = meaning = ""
    if spec.model["novelty"] != "none":
        more = ", `novelty` (batch,)"
        meaning = " One in 100 images like the training's has a novelty above 2, one in 1,000 above 3."
    if spec.members > 1:
        more += f", `std_between` (batch, {len(spec.targets)})"
        meaning += " `std_between` is how far the trainings disagree."
    return (
        f"Images (batch, 1, {height}, {width}), raw pixels of `{spec.instrument}`: all normalisation "
        "is inside.\n\n"
        f"`density` (batch, {len(spec.targets)}, {spec.model['bins']}) per unit of the target, "
        "`median`, `quantiles` "
        f"at {levels}, `class_probability` (batch, {len(spec.classes)}){more}.{meaning}\n\n"
        "`path` is the .onnx file that this card goes with, or `models:/NAME/VERSION` in a registry:\n\n"
        "```python\nimport darkarc\n\nposterior = darkarc.load(path).predict(images)\n```"
    )


def _results(metrics: Mapping[str, Any], target: str) -> str:
    known = {name: meaning(name, target) for name in MEANINGS if metrics.get(name) is not None}
    rows = [
        (f"{label}{f' ({unit})' if unit else ''}", with_error(metrics, name))
        for name, (label, unit, _) in known.items()
    ]
    counted = (
        f"{metrics.get('n_test', 0)} test images, {metrics.get('n_scored', 0)} of them with a true value. "
    )
    text = f"{counted}Errors are bootstrap standard errors.\n\n{_table(('', 'Value'), rows)}"
    absent = missing_reasons(metrics)
    return text + (f"\n\nNot available: {'; '.join(absent)}." if absent else "")


def _by_mass(metrics: Mapping[str, Any]) -> list[str]:
    rows = metrics.get("by_mass", [])
    if not any(row["n"] for row in rows):
        return []
    names = [name for name in BY_MASS if name in rows[0]]
    header = ("True value", "Images", *(MEANINGS[name][0] for name in names))
    body = [
        (f"{row['low']:.2f} to {row['high']:.2f}", str(row["n"]), *(_binned(row, name) for name in names))
        for row in rows
    ]
    return ["### By true value", _table(header, body), about_true_values(rows)]


def _binned(row: Mapping[str, Any], name: str) -> str:
    """A number of a bin; the floor's, which is of a few images, with its error and their number."""
    text, error = number(row[name]), row.get(f"{name}_se")
    if name != "floor_mae_dex" or row[name] is None:
        return text
    return f"{text}{'' if error is None else f' ± {error:.4f}'} ({row['floor_n']})"


def _published(metrics: Mapping[str, Any]) -> list[str]:
    rows = metrics.get("published", [])
    if not rows:
        return []
    obstacle = next((row["not_comparable"] for row in rows if row["not_comparable"]), "")
    text = (
        f"Not comparable: {obstacle}."
        if obstacle
        else "Same preset and noise form; the test images need not be the same."
    )
    body = [(f"{row['name']} ({row['author']})", as_published(row["mae_dex"])) for row in rows]
    return ["### Published results", text, _table(("Published", "MAE (dex)"), body)]


def _table(header: tuple[str, ...], rows: Any) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += [
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
        for row in rows
    ]
    return "\n".join(lines)
