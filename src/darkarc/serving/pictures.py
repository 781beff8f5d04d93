"""`darkarc predict --pictures`: a picture for each lens, of the image and of what was said about it."""

import re
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from darkarc.config import CLASSES
from darkarc.durable import write_file
from darkarc.evaluation.style import (
    BLACK,
    BLUE,
    CLASS_COLOURS,
    CLASS_LABELS,
    GREY,
    PAGE_INCHES,
    SKY,
    VERMILLION,
    new_figure,
    note,
    style,
    to_png,
)
from darkarc.evaluation.zoom import set_shown_range, significant_digits
from darkarc.models import Posterior
from darkarc.serving.table import PROBABILITIES, Row

HEIGHT_INCHES = 2.5
LINE_CHARACTERS = 118
LONGEST_NAME = 60


class Album:
    """A folder of pictures, `0000012_lens.png`: the row of the table (from 0) and the name of the image.

    Each is complete or absent. Images that could not be read have none.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, number: int, row: Row, image: NDArray[Any] | None, posterior: Posterior | None) -> None:
        """Draw row `number` of the table; posterior: of length 1, None where no mass is given."""
        if image is not None and image.ndim == 2:
            write_file(self.folder / picture_name(number, row["path"]), picture(row, image, posterior))


def picture_name(number: int, path: str) -> str:
    """File name of a picture: letters, digits, `.`, `-` and `_` of the image's name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", path.rsplit("/", 1)[-1]).strip("._")
    return f"{number:07d}_{name[-LONGEST_NAME:] or 'image'}.png"


def picture(row: Row, image: NDArray[Any], posterior: Posterior | None) -> bytes:
    """PNG: the image, its posterior with the 68 and 90% intervals, its class probabilities, its flag."""
    with style():
        lines = fill(row["flag"], LINE_CHARACTERS) if row["flag"] else ""
        figure = new_figure(PAGE_INCHES, HEIGHT_INCHES + 0.16 * (lines.count("\n") + bool(lines)))
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.0, 1.65, 0.9))
        _image(left, image)
        if posterior is None:
            note(middle, "no mass is given")
        else:
            _posterior(middle, posterior)
        if row[PROBABILITIES[0]] is None:
            note(right, "no answer")
        else:
            _classes(right, [row[name] for name in PROBABILITIES])
        title = row["path"] if len(row["path"]) <= LINE_CHARACTERS else "…" + row["path"][-LINE_CHARACTERS:]
        figure.suptitle(_plain(title), x=0.01, ha="left", fontsize=8, color=GREY)
        if lines:
            figure.supxlabel(_plain(lines), x=0.01, ha="left", fontsize=7.5, color=VERMILLION)
        return to_png(figure)


def _plain(text: str) -> str:
    """Text in which matplotlib sees no formulas."""
    return text.replace("$", r"\$")


def _image(axes: Axes, image: NDArray[Any]) -> None:
    pixels = np.nan_to_num(image.astype(np.float64), posinf=0, neginf=0)
    low, high = np.quantile(pixels, [0.002, 0.998])
    axes.imshow(
        pixels,
        cmap="magma",
        origin="lower",
        interpolation="nearest",
        vmin=low,
        vmax=high if high > low else None,
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _posterior(axes: Axes, posterior: Posterior) -> None:
    edges, density = posterior.edges, posterior.density[0]
    median, (low, high) = float(posterior.median[0]), posterior.interval(0.68)[0]
    digits = significant_digits(high - low)
    axes.stairs(density, edges, color=BLUE, linewidth=1.0)
    for level, alpha in ((0.90, 0.35), (0.68, 0.9)):
        low, high = posterior.interval(level)[0]
        inside = (edges[1:] > low) & (edges[:-1] < high)
        axes.stairs(
            np.where(inside, density, 0), edges, color=SKY, fill=True, alpha=alpha, linewidth=0,
            label=f"{100 * level:.0f}%: {low:.{digits}f} to {high:.{digits}f}",
        )  # fmt: skip
    top = float(density.max())
    axes.plot(
        [median, median], [0, 1.05 * top], color=BLACK, linewidth=0.9, linestyle="--",
        label=f"median {median:.{digits}f}",
    )  # fmt: skip
    set_shown_range(axes, posterior)
    axes.set_ylim(0, 1.45 * top)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.legend(loc="upper left", ncols=2, fontsize=6.5, columnspacing=1.0, borderaxespad=0.1)


def _classes(axes: Axes, probabilities: list[float]) -> None:
    positions = range(len(CLASSES))
    axes.barh(positions, probabilities, color=[CLASS_COLOURS[name] for name in CLASSES], height=0.62)
    for y, value in zip(positions, probabilities, strict=True):
        axes.text(min(value, 0.72) + 0.03, y, f"{value:.2f}", va="center", fontsize=7)
    axes.set_yticks(list(positions), [CLASS_LABELS[name].replace(" ", "\n") for name in CLASSES])
    axes.tick_params(axis="y", length=0, labelsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("class probability")
