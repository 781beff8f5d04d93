"""Super-convergence: one-cycle at the rate that the range test suggests, against reduce-on-plateau.

Run: python benchmarks/policies.py [--images 3000] [--width 0.5] [--short 12] [--long 40] [--figure FILE].
Both policies start from the same weights, see the same images in the same order, and have the same highest
rate; plateau also gets a tenth of it. Epochs are counted until the validation error (MAE, dex) is as low as
one-cycle's at its end. Prints the table; the figure shows the range test and the curves.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from darkarc import config as configuration
from darkarc.config import Config
from darkarc.data.generate import generate
from darkarc.data.prepare import prepare
from darkarc.data.store import Store
from darkarc.tracking.tracker import NullTracker
from darkarc.training import train
from darkarc.training.range_test import RangeTest, range_test

Curve = list[float]


def data(folder: Path, n_images: int, width: float) -> tuple[Config, Store]:
    """Model III axion lenses with the instrument's noise; a quarter of them validates."""
    share = n_images // 12
    tree = {
        "simulate": {"n_axion": n_images - 2 * share, "n_cdm": share, "n_no_sub": share},
        "prepare": {"train": 0.7, "validation": 0.25, "calibration": 0.03, "test": 0.02, "mass_bins": 5},
        "model": {"width": width},
    }
    config = configuration.parse(tree)
    raw = generate(config, folder / "raw", workers=1, progress=False)
    return config, prepare(raw, folder / "prepared", config, None)


def curve(config: Config, prepared: Store, folder: Path, **settings: Any) -> tuple[Curve, float]:
    """Validation MAE of every epoch, and the processor seconds spent."""
    tree = config.dump()
    tree["train"] |= settings
    began = time.process_time()
    result = train(configuration.parse(tree), prepared, workdir=folder, tracker=NullTracker(), progress=False)
    return [row["val_mae_dex"] for row in result.history], time.process_time() - began


def epochs_until(errors: Curve, error: float) -> int | None:
    """The first epoch (from 1) with at most this error; None if there is none."""
    return next((epoch for epoch, found in enumerate(errors, start=1) if found <= error), None)


def draw(test: RangeTest, curves: dict[str, Curve], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(test.rates, test.losses, color="#b9c2cc", linewidth=0.8)
    left.plot(test.rates, test.smoothed, color="#222222", linewidth=1.8)
    left.axvline(test.suggestion, color="#c4572e", linestyle="--", label=f"suggestion {test.suggestion:.1e}")
    low, high = min(test.smoothed), max(test.smoothed[: len(test.smoothed) // 2])
    left.set(
        xscale="log", ylim=(low - 0.4, high + 0.4), xlabel="learning rate", ylabel="training loss (nats)"
    )
    for (name, errors), colour in zip(curves.items(), ("#c4572e", "#1f6f8b", "#7a8b99"), strict=True):
        right.plot(range(1, len(errors) + 1), errors, color=colour, marker=".", label=name)
    right.set(yscale="log", xlabel="epoch", ylabel="validation MAE (dex)")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--short", type=int, default=12, help="epochs of one-cycle")
    parser.add_argument("--long", type=int, default=40, help="epochs of plateau")
    parser.add_argument("--figure", type=Path, default=Path("reports/super_convergence.png"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config, prepared = data(folder, arguments.images, arguments.width)
        test = range_test(config, prepared, progress=False)
        rate = test.suggestion
        print(f"range test: steepest {test.steepest:.1e}, tenth {test.tenth:.1e}, suggestion {rate:.1e}")
        one_cycle = {"policy": "one_cycle", "learning_rate": rate, "epochs": arguments.short}
        plateau = {"policy": "plateau", "learning_rate": rate, "epochs": arguments.long}
        trainings = {
            f"one-cycle, {rate:.1e}": one_cycle,
            f"plateau, {rate:.1e}": plateau,
            f"plateau, {rate / 10:.1e}": plateau | {"learning_rate": rate / 10},
        }
        curves: dict[str, Curve] = {}
        print(f"{'policy and rate':28s} {'epochs':>6s} {'best MAE':>9s} {'reached at':>10s} {'CPU s':>6s}")
        for name, settings in trainings.items():
            curves[name], seconds = curve(config, prepared, folder / "work", **settings)
            wanted = min(next(iter(curves.values())))
            reached = epochs_until(curves[name], wanted)
            print(
                f"{name:28s} {len(curves[name]):6d} {min(curves[name]):9.4f} {reached or 'never':>10} "
                f"{seconds:6.0f}",
                flush=True,
            )
    draw(test, curves, arguments.figure)
    print(arguments.figure)


if __name__ == "__main__":
    main()
