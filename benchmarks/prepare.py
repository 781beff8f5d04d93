"""Images a second that `prepare` measures and fingerprints on one core, beside an image at a time in numpy.

Run: python benchmarks/prepare.py [--n 8192] [--side 64]. Wall-clock and processor time are both printed:
on a busy machine only the second says something about the code.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.ndimage import convolve

from darkarc.data.quality import image_statistics
from darkarc.data.twins import fingerprints

_MASK = np.outer([1, -2, 1], [1, -2, 1])


def images(n: int, side: int) -> np.ndarray:
    """Rings with noise, (n, side, side) float32."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    ring = np.exp(-0.5 * ((np.hypot(x, y) - side / 4) / (side / 20)) ** 2)
    return (ring + 0.02 * rng.normal(size=(n, side, side))).astype(np.float32)


def one_by_one(batch: np.ndarray) -> None:
    """The core of the statistics as one would first write it: an image at a time."""
    side = batch.shape[1]
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    radius = np.hypot(x, y)
    for image in batch:
        corner = side // 8
        background = np.median(
            image[[*range(corner), *range(-corner, 0)]][:, [*range(corner), *range(-corner, 0)]]
        )
        noise = 1.4826 / 6 * np.median(np.abs(convolve(image, _MASK)))
        light = np.where(image - background > 3 * noise, image - background, 0)
        flux = light.sum()
        _ = (image.max(), (light * radius).sum() / flux, np.abs(light - light[::-1, ::-1]).sum() / 2 / flux)


def rate(work: Callable[[np.ndarray], Any], batch: np.ndarray, repeats: int = 3) -> tuple[float, float]:
    """Best images a second of some runs: by the wall clock, by processor time."""
    wall, processor = [], []
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        work(batch)
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - busy)
    return len(batch) / min(wall), len(batch) / min(processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--side", type=int, default=64)
    arguments = parser.parse_args()
    batch = images(arguments.n, arguments.side)
    rows = {
        "statistics, ours": rate(image_statistics, batch),
        "statistics, an image at a time": rate(one_by_one, batch[: arguments.n // 16]),
        "fingerprints": rate(fingerprints, batch),
    }
    slow = rows["statistics, an image at a time"][1]
    print(f"{arguments.side} x {arguments.side} pixels, images a second: wall clock, processor, ratio")
    for name, (wall, processor) in rows.items():
        print(f"{name:32s} {wall:9.0f} {processor:9.0f} {processor / slow:7.1f}x")


if __name__ == "__main__":
    main()
