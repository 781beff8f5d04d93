"""How the training went."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from darkarc.config import with_unit
from darkarc.evaluation.style import (
    BLUE,
    GREEN,
    PAGE_INCHES,
    VERMILLION,
    new_figure,
    note,
)

History = Sequence[Mapping[str, float]]
"""A row an epoch: `epoch`, `train_<name>`, `val_<name>`, `learning_rate`; extra names are welcome."""

SIDES = {"train": (BLUE, "train"), "val": (VERMILLION, "validation")}
FIRST = ("loss", "nll", "mae_dex")
LABELS = {"loss": "loss", "nll": "negative log-likelihood", "class_accuracy": "class accuracy"}
ERRORS = {"mae_dex": "MAE", "rmse_dex": "RMSE"}
"""Of the first target, in its unit."""


def curve_names(history: History) -> list[str]:
    """Names that appear as `train_<name>` or `val_<name>`, the most telling first."""
    found: list[str] = []
    for row in history:
        for key in row:
            side, _, name = key.partition("_")
            if side in SIDES and name and name not in found:
                found.append(name)
    return sorted(
        found, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), found.index(name))
    )


def learning_figure(history: History, target: str) -> Figure:
    """Losses and errors of both splits over the epochs, and the learning rate; the best epoch marked.

    target: the first one, whose errors they are.
    """
    labels = LABELS | {name: with_unit(label, target) for name, label in ERRORS.items()}
    names = curve_names(history)[:3]
    has_rate = any("learning_rate" in row for row in history)
    n_panels = max(1, len(names) + has_rate)
    figure = new_figure(min(PAGE_INCHES, 2.4 * max(2, n_panels)), 2.3)
    panels = figure.subplots(1, n_panels, squeeze=False)[0]
    if not names and not has_rate:
        note(panels[0], "no learning curves were recorded")
        return figure
    epochs = np.array([row.get("epoch", index + 1) for index, row in enumerate(history)], dtype=np.float64)
    for axes, name in zip(panels, names, strict=False):
        for side, (colour, label) in SIDES.items():
            _curve(axes, epochs, history, f"{side}_{name}", colour, label)
        lowest = _mark_lowest(axes, epochs, history, f"val_{name}")
        axes.set_title(labels.get(name, name.replace("_", " ")) + lowest)
        values = [row[key] for row in history for key in (f"train_{name}", f"val_{name}") if key in row]
        if "mae" in name or "rmse" in name:
            axes.set_ylim(0, 1.1 * float(np.nanmax(values)))
    if has_rate:
        _curve(panels[-1], epochs, history, "learning_rate", GREEN, None)
        panels[-1].set_title("learning rate")
        panels[-1].set_ylim(bottom=0)
        panels[-1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    handles = {
        label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=len(handles))
    return figure


def _curve(
    axes: Axes, epochs: np.ndarray, history: History, key: str, colour: str, label: str | None
) -> None:
    values = np.array([row.get(key, np.nan) for row in history], dtype=np.float64)
    if np.isfinite(values).any():
        marker = "o" if len(values) < 3 else None
        axes.plot(epochs, values, color=colour, label=label, marker=marker, markersize=3)


def _mark_lowest(axes: Axes, epochs: np.ndarray, history: History, key: str) -> str:
    """Mark the lowest validation value of a quantity that is better when smaller; words for the title."""
    values = np.array([row.get(key, np.nan) for row in history], dtype=np.float64)
    if not np.isfinite(values).any() or "accuracy" in key:
        return ""
    lowest = int(np.nanargmin(values))
    axes.plot([epochs[lowest]], [values[lowest]], "o", color=VERMILLION, markersize=4, label="lowest")
    return f", lowest {values[lowest]:.3g}"
