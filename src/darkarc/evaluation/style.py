"""The look of every figure: fonts, sizes, colours that colour-blind readers tell apart, labels with units."""

from contextlib import AbstractContextManager
from io import BytesIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe & Ito's palette.
BLACK = "#222222"
BLUE = "#0072B2"
VERMILLION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREY = "#8A8A8A"
PALE = "#D9D9D9"

CLASS_COLOURS = {"axion": BLUE, "cdm": VERMILLION, "no_sub": GREEN}
CLASS_LABELS = {"axion": "axion", "cdm": "CDM", "no_sub": "no substructure"}

COLUMN_INCHES = 3.5
PAGE_INCHES = 7.2
DOTS_PER_INCH = 200

SYMBOLS = {
    "log10_axion_mass_ev": r"\log_{10}(m_\mathrm{a}\,/\,\mathrm{eV})",
    "log10_subhalo_mass_msun": r"\log_{10}(M_\mathrm{sub}\,/\,M_\odot)",
    "n_subhalos": r"N_\mathrm{sub}",
}

NAMES = {
    "log10_axion_mass_ev": "axion mass",
    "log10_subhalo_mass_msun": "subhalo mass",
    "n_subhalos": "number of subhaloes",
}

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "lines.linewidth": 1.4,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "savefig.facecolor": "white",
}


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure that needs no display and touches no global state of pyplot."""
    figure = Figure(figsize=(width_inches, height_inches), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style() -> AbstractContextManager[None]:
    """Context within which figures are made and drawn, whatever a user's matplotlibrc says."""
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **RC}
    del settings["backend"]  # figures carry their own canvas
    return matplotlib.rc_context(settings)


def to_png(figure: Figure) -> bytes:
    """The figure as PNG: equal figures give equal bytes (no date, no version)."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def axis_label(target: str, what: str = "") -> str:
    """Label with its unit, such as "true log10 (m_a / eV)"; a number has none."""
    return f"{what} ${SYMBOLS[target]}$".strip()


def note(axes: Axes, text: str) -> None:
    """A grey sentence in the middle of axes that have nothing to show."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=axes.transAxes, wrap=True)
