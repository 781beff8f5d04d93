"""Files a second of `ingest`, beside numpy's own loader; images a second of a store, beside a file an image.

Run: python benchmarks/ingest.py [--n 4000] [--side 64]. The files, axion ones of DeepLense, are written here
and so in a warm cache. On a busy machine only the processor time says something about the code.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from darkarc.data.deeplense import read_deeplense
from darkarc.data.ingest import ingest


def write_files(folder: Path, n: int, side: int) -> list[Path]:
    """`[image, mass in eV]` files, images (side, side) float64."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = []
    for i in range(n):
        pair = np.empty(2, dtype=object)
        pair[0], pair[1] = rng.normal(size=(side, side)), np.float64(10 ** rng.uniform(-24, -22))
        paths.append(folder / f"axion_sim_{i}.npy")
        np.save(paths[-1], pair, allow_pickle=True)
    return paths


def timed(label: str, n: int, unit: str, task: Callable[[], Any]) -> float:
    """Print and return `unit` a wall-clock second."""
    wall, processor = time.perf_counter(), time.process_time()
    task()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(f"{label:44s} {n / wall:10,.0f} {unit}/s {n / processor:10,.0f} {unit} a processor second")
    return n / wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--side", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_files(folder / "Model_II" / "axion", options.n, options.side)
        n = len(paths)
        # The files were written just now: numpy may read these pickles.
        theirs = timed(
            "numpy.load(allow_pickle=True)",
            n,
            "files",
            lambda: [np.load(p, allow_pickle=True) for p in paths],
        )
        ours = timed("read_deeplense (allow-list)", n, "files", lambda: [read_deeplense(p) for p in paths])
        print(f"  ratio {ours / theirs:.2f}")
        timed(
            "ingest: read, check, hash, store",
            n,
            "files",
            lambda: ingest(folder / "Model_II", folder / "store", progress=False),
        )
        store = ingest(folder / "Model_II", folder / "store", progress=False, replace=True).store
        batches = np.random.default_rng(1).integers(0, n, size=(100, 256))
        store.images()
        packed = timed(
            "store, random batches of 256", batches.size, "images", lambda: list(map(store.images, batches))
        )
        single = timed(
            "a file an image, the same batches",
            2560,
            "images",
            lambda: [read_deeplense(paths[i]) for i in batches[:10].flat],
        )
        print(f"  ratio {packed / single:.1f}")


if __name__ == "__main__":
    main()
