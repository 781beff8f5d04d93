"""Super-convergence: one-cycle at the rate that the range test suggests, against reduce-on-plateau.

Run: python benchmarks/policies.py [--images 3000] [--width 0.5] [--short 12] [--long 40] [--seeds 3]
[--figure FILE]. With each seed all policies start from the same weights, see the same images in the same
order, and have the same highest rate; plateau also gets a tenth of it. Epochs are counted until the
validation error (MAE, dex) is as low as one-cycle's least with that seed. Prints the table, means and
standard deviations over the seeds; the figure shows the range test and the curves of all seeds.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

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


def curve(config: Config, prepared: Store, folder: Path, seed: int, **settings: Any) -> tuple[Curve, float]:
    """Validation MAE of every epoch, and the processor seconds spent."""
    tree = config.dump() | {"seed": seed}
    tree["train"] |= settings
    began = time.process_time()
    result = train(configuration.parse(tree), prepared, workdir=folder, tracker=NullTracker(), progress=False)
    return [row["val_mae_dex"] for row in result.history], time.process_time() - began


def epochs_until(errors: Curve, error: float) -> int | None:
    """The first epoch (from 1) with at most this error; None if there is none."""
    return next((epoch for epoch, found in enumerate(errors, start=1) if found <= error), None)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and, of several, standard deviation."""
    found = f"{np.mean(values):.{digits}f}"
    return found if len(values) == 1 else f"{found} ± {np.std(values, ddof=1):.{digits}f}"


def draw(test: RangeTest, curves: dict[str, list[Curve]], path: Path) -> None:
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
    for (name, found), colour in zip(curves.items(), ("#c4572e", "#1f6f8b", "#7a8b99"), strict=True):
        for seed, errors in enumerate(found):
            epochs, label = range(1, len(errors) + 1), name if seed == 0 else None
            right.plot(epochs, errors, color=colour, marker=".", markersize=3, linewidth=1, label=label)
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
    parser.add_argument("--seeds", type=int, default=3)
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
        curves: dict[str, list[Curve]] = {name: [] for name in trainings}
        seconds: dict[str, list[float]] = {name: [] for name in trainings}
        for seed in range(arguments.seeds):
            for name, settings in trainings.items():
                errors, spent = curve(config, prepared, folder / "work", seed, **settings)
                curves[name].append(errors)
                seconds[name].append(spent)
                print(f"seed {seed}, {name}: {min(errors):.4f} in {len(errors)} epochs", flush=True)
    wanted = [min(errors) for errors in next(iter(curves.values()))]
    print("| policy, highest rate | epochs | best validation MAE (dex) | reached after | core-seconds |")
    print("|---|---|---|---|---|")
    for name, found in curves.items():
        reached = [epochs_until(errors, error) for errors, error in zip(found, wanted, strict=True)]
        after = ", ".join("never" if epoch is None else str(epoch) for epoch in reached)
        best = spread([min(errors) for errors in found], 4)
        print(f"| {name} | {len(found[0])} | {best} | {after} | {np.mean(seconds[name]):.0f} |")
    draw(test, curves, arguments.figure)
    print(arguments.figure)


if __name__ == "__main__":
    main()
