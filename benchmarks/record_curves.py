"""Records `benchmarks/curves.csv`: validation curves of real trainings, which `benchmarks/tune.py` searches.

A scrambled Sobol sequence over five parameters, one training each of the small residual network on
simulated Model III images without noise, the smallest task that a short training learns. One core; about
half an hour.

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
from darkarc.tracking import NullTracker
from darkarc.training import TrainingError, train
from darkarc.tuning.space import Dimension
from darkarc.tuning.study import resolve

SPACE = {
    "train.learning_rate": Dimension(log_uniform=(2e-4, 2e-2)),
    "train.weight_decay": Dimension(log_uniform=(1e-4, 1.0)),
    "train.label_sigma_dex": Dimension(log_uniform=(1e-2, 0.2)),
    "model.dropout": Dimension(uniform=(0.0, 0.6)),
    "model.stochastic_depth": Dimension(uniform=(0.0, 0.5)),
}
EPOCHS = 12
TABLE = Path(__file__).with_name("curves.csv")
BASE = {
    "simulate": {"preset": "model_iii", "noise": "none", "n_axion": 2000, "n_cdm": 100, "n_no_sub": 100},
    "prepare": {"train": 0.7, "validation": 0.3, "calibration": 0.0, "test": 0.0},
    "model": {"width": 0.5},
    # A constant rate, so that an epoch says how good its parameters are, and not where in a cycle it lies.
    "train": {"epochs": EPOCHS, "batch_size": 16, "policy": "plateau", "plateau_patience": 100},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", type=int, default=80)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = configuration.parse(BASE)
    points = qmc.Sobol(len(SPACE), seed=0).random(128)[: arguments.configurations]
    with tempfile.TemporaryDirectory() as folder, TABLE.open("w", newline="") as file:
        raw = generate(base, Path(folder) / "raw", progress=False)
        store = prepare(raw, Path(folder) / "prepared", base, None)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*SPACE, *(f"epoch_{epoch + 1}" for epoch in range(EPOCHS))])
        for number, point in enumerate(points):
            values = {key: d.value_at(float(x)) for (key, d), x in zip(SPACE.items(), point, strict=True)}
            config = resolve(base, values)
            try:
                result = train(
                    config, store, workdir=Path(folder) / str(number), tracker=NullTracker(), progress=False
                )
            except TrainingError as error:
                print(f"{number}: left out: {error}", flush=True)
                continue
            curve = [row["val_mae_dex"] for row in result.history]
            writer.writerow([*(f"{value:.6g}" for value in values.values()), *(f"{v:.5f}" for v in curve)])
            file.flush()
            print(f"{number}: {curve[-1]:.4f}", flush=True)


if __name__ == "__main__":
    main()
