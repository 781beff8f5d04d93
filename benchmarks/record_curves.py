"""Records `benchmarks/curves.csv`: validation curves of real trainings, which `benchmarks/tune.py` searches.

A scrambled Sobol sequence over five parameters, one training each of the small residual network on
simulated Model III images without noise, binned to 32 x 32 pixels: the smallest task that a short training
learns. One core, about fifteen minutes; a second start goes on where the first has stopped.

    python benchmarks/record_curves.py
"""

import argparse
import csv
import tempfile
from pathlib import Path

import torch
from scipy.stats import qmc

from darkarc import config as configuration
from darkarc.data.generate import generate
from darkarc.data.prepare import prepare
from darkarc.data.store import SAMPLE_COLUMNS, Store, StoreWriter
from darkarc.tracking import NullTracker
from darkarc.training import train
from darkarc.tuning.space import Dimension
from darkarc.tuning.study import resolve

SPACE = {
    "train.learning_rate": Dimension(log_uniform=(4e-4, 2e-2)),
    "train.weight_decay": Dimension(log_uniform=(1e-4, 1.0)),
    "train.label_sigma_dex": Dimension(log_uniform=(1e-2, 0.2)),
    "model.dropout": Dimension(uniform=(0.0, 0.6)),
    "model.stochastic_depth": Dimension(uniform=(0.0, 0.5)),
}
EPOCHS = 12
TABLE = Path(__file__).with_name("curves.csv")
BASE = {
    "simulate": {"preset": "model_iii", "noise": "none", "n_axion": 3000, "n_cdm": 100, "n_no_sub": 100},
    "prepare": {"train": 0.7, "validation": 0.3, "calibration": 0.0, "test": 0.0},
    "model": {"width": 0.35},
    # A constant rate, so that an epoch says how good its parameters are, and not where in a cycle it lies.
    "train": {"epochs": EPOCHS, "batch_size": 32, "policy": "plateau", "plateau_patience": 100},
}


def binned(raw: Store, path: Path) -> Store:
    """The same images with sums of 2 x 2 pixels."""
    height, width = raw.shape[0] // 2, raw.shape[1] // 2
    manifest = raw.manifest
    with StoreWriter(
        path,
        name=manifest.name,
        origin=manifest.origin,
        instrument=manifest.instrument,
        shape=(height, width),
        dtype=manifest.dtype,
        parameters={"binned": 2},
    ) as writer:
        rows = {name: raw.samples[name].to_pylist() for name in SAMPLE_COLUMNS if name != "pixel_sha256"}
        writer.append(raw.images().reshape(-1, height, 2, width, 2).sum(axis=(2, 4)), rows)
        return writer.commit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = configuration.parse(BASE)
    points = qmc.Sobol(len(SPACE), seed=0).random(128)[: arguments.configurations]
    done = max(0, len(TABLE.read_text().splitlines()) - 1) if TABLE.exists() else 0
    with tempfile.TemporaryDirectory() as folder, TABLE.open("a", newline="") as file:
        raw = generate(base, Path(folder) / "raw", progress=False)
        store = prepare(binned(raw, Path(folder) / "binned"), Path(folder) / "prepared", base, None)
        writer = csv.writer(file, lineterminator="\n")
        if not done:
            writer.writerow([*SPACE, *(f"epoch_{epoch + 1}" for epoch in range(EPOCHS))])
        for number, point in enumerate(points[done:], start=done):
            values = {key: d.value_at(float(x)) for (key, d), x in zip(SPACE.items(), point, strict=True)}
            config = resolve(base, values)
            workdir = Path(folder) / str(number)
            result = train(config, store, workdir=workdir, tracker=NullTracker(), progress=False)
            curve = [row["val_mae_dex"] for row in result.history]
            writer.writerow([*(f"{value:.6g}" for value in values.values()), *(f"{v:.5f}" for v in curve)])
            file.flush()
            print(f"{number}: {curve[-1]:.4f}", flush=True)


if __name__ == "__main__":
    main()
