"""`report.html`: one self-contained page, without network, scripts or dates."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from darkarc.config import in_unit
from darkarc.evaluation.ood import table_rows
from darkarc.evaluation.style import DOTS_PER_INCH, NAMES
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

BY_MASS = (
    "mae_dex",
    "floor_mae_dex",
    "rmse_dex",
    "bias_dex",
    "nll",
    "coverage_68",
    "coverage_68_expected",
    "coverage_90",
    "coverage_90_expected",
    "sharpness_dex",
)
TERCILES = (
    "coverage_50",
    "coverage_68",
    "coverage_90",
    "coverage_95",
    "pull_mean",
    "pull_std",
    "pit_ks",
    "tarp_ks",
)


@dataclass(frozen=True)
class Illustration:
    """A figure of the report: PNG bytes, and what a reader should see in it."""

    name: str
    title: str
    caption: str
    png: bytes


def report_html(
    *,
    target: str,
    prior: tuple[float, float],
    metrics: Mapping[str, Any],
    data: Mapping[str, str],
    regressor: Mapping[str, str],
    configuration: Mapping[str, Any],
    illustrations: Sequence[Illustration],
    lineage: Mapping[str, str] | None = None,
) -> str:
    """The page as text: equal arguments, equal bytes.

    metrics: content of `metrics.json`; data, regressor: `describe_data`, `describe_regressor`;
    configuration: flat (`Config.flat`). lineage: as of `model_card`.
    """
    style = files("darkarc.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    body = [
        f"<h1>How well is {escape(_spoken(target))} read from {escape(data['Instrument'])} images?</h1>",
        _lead(target, metrics),
        _warnings(metrics.get("warnings", [])),
        "<h2>What was trained on what</h2>",
        '<div class="pair">',
        _facts("Data", data),
        _facts("Regressor", regressor),
        _facts("Lineage", lineage) if lineage else "",
        "</div>",
        "<h2>How good, and how honest about it</h2>",
        _main_table(target, metrics),
        *(_section(target, metrics, prefix="")),
        *(_figure(item) for item in illustrations),
        _strangers(metrics.get("ood", [])),
        _published(metrics.get("published", [])),
        _others(metrics.get("targets", {})),
        "<h2>Limits</h2>",
        _list(limits(metrics, target, prior, data)),
        "<h2>Configuration</h2>",
        "<details><summary>Every parameter</summary>",
        _table(("Parameter", "Value"), ((key, _plain(value)) for key, value in configuration.items())),
        "</details>",
    ]
    title = f"darkarc: evaluation of {target}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _spoken(target: str) -> str:
    return f"the {NAMES[target]}"


def _lead(target: str, metrics: Mapping[str, Any]) -> str:
    mae, guess = metrics["mae_dex"], metrics["constant_guess_mae_dex"]
    if mae is None:
        return (
            '<p class="lead">No test image has a true value of this target: only the classes were tested.</p>'
        )
    error = metrics["standard_error"].get("mae_dex")
    own = in_unit(f"{mae:.4f}{f' ± {error:.4f}' if error else ''}", target)
    text = f"Mean absolute error <strong>{own}</strong>"
    if guess is not None:
        text += f" (a constant guess: {guess:.3f})"
    if metrics.get("floor_mae_dex") is not None:
        text += (
            f"; the information floor is <strong>{metrics['floor_mae_dex']:.4f}</strong> dex, and on the "
            f"same {metrics['floor_n_images']} images the regressor has {metrics['floor_ratio']:.2f} times "
            "as much"
        )
    inside = 100 * metrics["coverage_68"]
    text += f"; <strong>{inside:.1f}%</strong> of the true values lie inside the 68% interval"
    if metrics.get("class_auc") is not None:
        text += f"; the classes are told apart with an AUC of <strong>{metrics['class_auc']:.3f}</strong>"
    counts = f"{metrics['n_test']} test images, {metrics['n_scored']} with a true value."
    return f'<p class="lead">{text}. {counts}</p>'


def _warnings(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f'<section class="warning"><h2>Warnings</h2>{_list(lines)}</section>'


def _facts(title: str, facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in facts.items())
    return f'<div><h3>{escape(title)}</h3><table class="facts">{rows}</table></div>'


def _main_table(target: str, metrics: Mapping[str, Any]) -> str:
    known = {name: meaning(name, target) for name in MEANINGS if name in metrics}
    rows = [(label, with_error(metrics, name), unit, text) for name, (label, unit, text) in known.items()]
    absent = missing_reasons(metrics)
    note = f"<p>Without a value: {escape('; '.join(absent))}.</p>" if absent else ""
    return (
        _table(("", "Value ± standard error", "Unit", "Meaning"), rows, numeric=(1,))
        + "<p>Standard errors are from a bootstrap over the test images with a fixed seed; they do not "
        "hold the spread between trainings with other seeds.</p>" + note
    )


def _section(target: str, metrics: Mapping[str, Any], prefix: str) -> list[str]:
    """Tables by bin of the true value and by tercile of the prediction."""
    rows, terciles = metrics.get("by_mass", []), metrics.get("by_tercile", [])
    if not any(row["n"] for row in rows):
        return []
    parts = [
        f"<h3>{prefix}By true value</h3>",
        _binned("True value", rows, BY_MASS, target),
        f"<p>{about_true_values(rows)}</p>",
    ]
    if terciles:
        title = f"<h3>{prefix}Calibration by third of the predictions</h3>"
        parts += [title, _binned("Posterior median", terciles, TERCILES, target)]
    return parts


def _binned(of: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str], target: str) -> str:
    names = [name for name in names if name in rows[0]]
    header = (of, "Images", *(_short(name, target) for name in names))
    body = [(_range(row), str(row["n"]), *(_with_error(row, name) for name in names)) for row in rows]
    return _table(header, body, numeric=range(1, len(header)))


def _range(row: Mapping[str, Any]) -> str:
    """`−24.00 to −23.75`, kept on one line."""
    return f"{row['low']:.2f} to {row['high']:.2f}".replace(" ", "\u00a0").replace("-", "\u2212")


def _short(name: str, target: str) -> str:
    label, unit, _ = meaning(name, target)
    return f"{label.replace('Mean absolute error', 'MAE').replace('Root-mean-square error', 'RMSE')}" + (
        f" ({unit})" if unit else ""
    )


def _with_error(row: Mapping[str, Any], name: str) -> str:
    value, error = number(row[name]), row.get(f"{name}_se")
    return value if error is None or value == "–" else f"{value} ± {error:.4f}"


def _figure(item: Illustration) -> str:
    data = base64.b64encode(item.png).decode("ascii")
    # Bytes 16 to 20 of a PNG are its width; one inch of the figure is shown as 120 CSS pixels.
    width = round(int.from_bytes(item.png[16:20], "big") / DOTS_PER_INCH * 120)
    return (
        f'<figure id="{escape(item.name)}"><img width="{width}" alt="{escape(item.title)}" '
        f'src="data:image/png;base64,{data}">'
        f"<figcaption><strong>{escape(item.title)}.</strong> {escape(item.caption)}</figcaption></figure>"
    )


def _strangers(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    header = (
        "Images", "Number", "AUC of the novelty", "Novelty, median", "Flagged (%)", "Withheld (%)",
        "Confident errors without flags (%)", "…of masses given (%)", "…without a flag (%)",
    )  # fmt: skip
    return (
        "<h2>Images it was not trained for</h2><p>Rendered by the simulator with one thing changed. AUC: of "
        "the novelty against the test images. A confident error is a mass with the truth outside of its 99% "
        "interval or, where there is no vortex, with a 90% interval narrower than half the prior.</p>"
        + _table(header, table_rows(rows), numeric=range(1, len(header)))
    )


def _published(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    obstacle = next((row["not_comparable"] for row in rows if row["not_comparable"]), "")
    remark = (
        f"Not comparable with ours: {obstacle}."
        if obstacle
        else "Same preset and noise form as here; the test images need not be the same."
    )
    body = [
        (row["name"], row["author"], as_published(row["mae_dex"]), row["protocol"], row["source"])
        for row in rows
    ]
    return (
        f"<h2>Published results</h2><p>{escape(remark)} None of them comes with an uncertainty, a seed "
        "spread "
        "or the error against mass.</p>"
        + _table(("Network", "Author", "MAE (dex)", "Training", "Source"), body, numeric=(2,))
    )


def _others(targets: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for target, metrics in targets.items():
        parts += [f"<h2>{escape(_spoken(target).capitalize())}</h2>", _main_table(target, metrics)]
        parts += _section(target, metrics, prefix="")
    return "\n".join(parts)


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = ()) -> str:
    right = set(numeric)

    def cell(tag: str, index: int, text: str) -> str:
        attribute = ' class="n"' if index in right else ""
        return f"<{tag}{attribute}>{escape(text)}</{tag}>"

    head = "".join(cell("th", index, text) for index, text in enumerate(header))
    body = "".join(
        "<tr>" + "".join(cell("td", i, text) for i, text in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _plain(value: Any) -> str:
    return ", ".join(f"{item:g}" for item in value) if isinstance(value, list) else str(value)
