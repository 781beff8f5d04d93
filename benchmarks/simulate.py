"""Speed of the simulator against lenstronomy driven directly, on one core, in one run.

lenstronomy gets the same scenes with its image model built beforehand: only the evaluation is timed.
Ours is timed as a data set is made, in batches, without noise; "with noise" includes it.
The ratios are lenstronomy's time to ours in float32, and to ours in float64 ("64 bit").

    python benchmarks/simulate.py [--images 200] [--classes axion cdm no_sub]
"""

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "simulation"))

from darkarc.config import CLASSES
from darkarc.simulation import PRESETS, draw_scenes, render

REPEATS = 5


def fastest(run: Callable[[], object]) -> float:
    """CPU seconds of the fastest of a few runs, after one to warm up."""
    run()
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def lenstronomy_ms(preset: str, class_name: str, images: int) -> float:
    import lenstronomy_oracle as oracle

    scenes = draw_scenes(preset, class_name, 0, range(images))
    models = [oracle.single_plane_model(preset, scenes, row) for row in range(images)]
    return fastest(lambda: [m.image(lens, source) for m, lens, source in models]) / images * 1e3


def ours_ms(preset: str, class_name: str, images: int, noise: str, dtype: str) -> float:
    scenes = draw_scenes(preset, class_name, 0, range(images))
    return fastest(lambda: render(preset, scenes, noise=noise, dtype=dtype)) / images * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=256, help="images of ours a measurement")
    parser.add_argument("--classes", nargs="+", choices=CLASSES, default=["axion"])
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="lenstronomy")
    table = Table(title="Milliseconds an image on one core")
    for heading in ("preset", "class", "float32", "with noise", "float64", "lenstronomy", "ratio", "64 bit"):
        table.add_column(heading, justify="left" if heading in ("preset", "class") else "right")
    for preset in PRESETS:
        for class_name in arguments.classes:
            single = ours_ms(preset, class_name, arguments.images, "none", "float32")
            noisy = ours_ms(preset, class_name, arguments.images, "physical", "float32")
            double = ours_ms(preset, class_name, arguments.images, "none", "float64")
            theirs = lenstronomy_ms(preset, class_name, 20)
            cells = [f"{value:.3f}" for value in (single, noisy, double, theirs)]
            table.add_row(preset, class_name, *cells, f"{theirs / single:.1f}", f"{theirs / double:.1f}")
    Console(width=max(100, Console().width)).print(table)


if __name__ == "__main__":
    main()
