"""Coverage of joint posteriors: populations of 1 to 100 lenses at five masses, by a regressor and exactly.

    python benchmarks/populations.py --model models/model_iii_physical.onnx
    python benchmarks/populations.py --model data/trained --prepared data/prepared
    python benchmarks/populations.py --exact --pool 120 --sizes 1 3 10 30 --masses -22.5 -22.2

For each mass a pool of lenses is simulated and answered once; each population is drawn from it without
repeats (two of 100 lenses share 100 / pool of them on average). With a regressor, the joint posterior is
computed twice: as the plain product, and mended by what its training found out about common errors
(`darkarc.models.population_errors`). Every lens is axion-like here, and said to be.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from darkarc.config import parse
from darkarc.data.form import DataForm, data_form
from darkarc.data.store import Store
from darkarc.evaluation.floor import exact_posterior
from darkarc.models import PopulationErrors, Posterior, Regressor, combine
from darkarc.models.population_errors import KEY
from darkarc.serving import load
from darkarc.simulation import simulate
from darkarc.training.fit_population import fit_population

MASSES = (-23.8, -23.4, -23.0, -22.6, -22.2)
SIZES = (1, 3, 10, 30, 100)
LEVELS = (0.68, 0.95)
FINE = 8192
"""Bins of exact posteriors: those of many light lenses are far narrower than a 256th of the prior."""


def table(
    name: str, pool: Posterior, mass: float, args: argparse.Namespace, errors: PopulationErrors
) -> None:
    """Print coverage and width for every number of lenses."""
    rng = np.random.default_rng(args.seed)
    for size in args.sizes:
        if size > len(pool):
            continue
        inside, width = [], []
        for _ in range(args.populations):
            chosen = rng.choice(len(pool), size, replace=False)
            joint = combine(pool[chosen], axion_share=1.0, errors=errors)
            intervals = [joint.interval(level)[0] for level in LEVELS]
            inside.append([low <= mass <= high for low, high in intervals])
            width.append(intervals[0][1] - intervals[0][0])
        share = np.mean(inside, axis=0)
        print(
            f"{name:12s} {mass:7.2f} {size:5d}   {share[0]:.3f}   {share[1]:.3f}   {np.median(width):.5f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="data/trained", help="what darkarc.load takes")
    parser.add_argument(
        "--prepared", type=Path, default=Path("data/prepared"), help="what an older model was trained on"
    )
    parser.add_argument("--exact", action="store_true", help="exact posteriors instead of a regressor's")
    parser.add_argument("--preset", default="model_iii", help="with --exact")
    parser.add_argument("--noise", default="physical", help="with --exact")
    parser.add_argument("--pool", type=int, default=1000, help="lenses simulated for each mass")
    parser.add_argument("--populations", type=int, default=200)
    parser.add_argument("--masses", type=float, nargs="+", default=list(MASSES))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    preset, noise, errors, regressor = args.preset, args.noise, PopulationErrors(), None
    if not args.exact:
        regressor = load(args.model, threads=1)  # several spin while they wait, and others pay for it
        known = regressor.spec.form
        form = DataForm(**known) if known else data_form(Store.open(args.prepared).manifest)
        preset, noise = form.preset or preset, form.noise or noise
        if "correlation" not in regressor.spec.statistics.get(KEY, {}) and isinstance(regressor, Regressor):
            fit_population(parse({}), regressor, Store.open(args.prepared))
        errors = PopulationErrors.of(regressor.spec.statistics[KEY])
        print(f"correlation of errors {errors.correlation:.4f}", flush=True)
    sigma = [np.sqrt(level * (1 - level) / args.populations) for level in LEVELS]
    print(f"{args.populations} populations each: chance +- {sigma[0]:.3f} at 68%, +- {sigma[1]:.3f} at 95%")
    print("posterior       mass lenses   68%     95%   width of 68% (dex)")
    for k, mass in enumerate(args.masses):
        images = simulate(
            preset, log10_mass_ev=np.full(args.pool, mass), noise=noise, seed=1000 + k, dtype="float32"
        )
        if regressor is None:
            table("exact", exact_posterior(images, preset, noise, bins=FINE), mass, args, errors)
            continue
        pool = regressor.predict(images.astype(np.float32))
        table("product", pool, mass, args, PopulationErrors())
        table("mended", pool, mass, args, errors)


if __name__ == "__main__":
    main()
