"""Our error beside the published ones."""

from matplotlib.figure import Figure

from darkarc.evaluation.published import Comparison
from darkarc.evaluation.style import (
    BLACK,
    BLUE,
    GREY,
    PALE,
    new_figure,
    note,
)
from darkarc.evaluation.wording import as_published, number


def published_figure(
    comparison: Comparison, mae_dex: float | None, mae_se: float | None, guess_mae_dex: float | None
) -> Figure:
    """Bars of the mean absolute error, ours first; pale and said so where the data are not the same."""
    n_bars = len(comparison.results) + 1
    figure = new_figure(5.0, 1.0 + 0.27 * max(n_bars, 4))
    axes = figure.subplots()
    if not comparison.results or mae_dex is None:
        note(axes, comparison.obstacle or "no error of ours to compare")
        return figure
    axes.barh([0], [mae_dex], xerr=[mae_se or 0.0], color=BLUE, height=0.7, error_kw={"elinewidth": 0.9})
    names = ["this regressor"]
    for position, result in enumerate(comparison.results, start=1):
        axes.barh(
            [position], [result.mae_dex], height=0.7, color=PALE if comparison.obstacle else GREY,
            hatch="///" if comparison.obstacle else None, edgecolor="white",
        )  # fmt: skip
        names.append(f"{result.name} ({result.author})")
    for position, value in enumerate([mae_dex, *(result.mae_dex for result in comparison.results)]):
        bump = (mae_se or 0.0) if position == 0 else 0.0
        axes.annotate(
            number(value) if position == 0 else as_published(value), (value + bump, position),
            xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5,
        )  # fmt: skip
    if guess_mae_dex is not None:
        axes.axvline(guess_mae_dex, color=BLACK, linestyle=":", linewidth=0.9)
        axes.annotate(
            "constant guess",
            (guess_mae_dex, 0.5 * (n_bars - 1)),
            xytext=(-2, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            rotation=90,
            fontsize=7.5,
            color=BLACK,
        )
    axes.set_yticks(range(n_bars), names)
    axes.set_ylim(n_bars - 0.3, -0.6)
    axes.set_xlabel("mean absolute error (dex)")
    axes.tick_params(axis="y", length=0)
    if comparison.obstacle:
        figure.suptitle("Not comparable: published on images of another form", x=0.01, ha="left", fontsize=9)
    return figure
