"""The figure of a learning-rate range test."""

import io

from darkarc.config import Config
from darkarc.training.range_test import RangeTest

INK, FAINT, FALL, LEAST = "#222222", "#b9c2cc", "#1f6f8b", "#c4572e"


def draw_range_test(result: RangeTest, config: Config) -> bytes:
    """PNG: loss against rate, with the two rates that are read from it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(result.rates, result.losses, color=FAINT, linewidth=0.8, label="loss of each step")
    axes.plot(result.rates, result.smoothed, color=INK, linewidth=1.8, label="moving average")
    marks = (
        (result.steepest, FALL, "steepest fall"),
        (result.tenth, LEAST, "a tenth of the rate of the least loss"),
    )
    for rate, colour, name in marks:
        axes.axvline(rate, color=colour, linewidth=1.4, linestyle="--", label=f"{name}: {rate:.1e}")
    low, high = min(result.smoothed), max(result.smoothed[: len(result.smoothed) // 2])
    margin = 0.25 * (high - low) + 0.1
    axes.set(
        xscale="log",
        ylim=(low - margin, high + margin),
        xlabel="learning rate",
        ylabel="training loss (nats)",
        title=f"range test: {config.train.optimiser}, batches of {config.train.batch_size}",
    )
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    # Without the version of matplotlib, so that the same test gives the same bytes.
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
