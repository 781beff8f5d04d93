"""Learn anew what an exported regressor's errors on lenses of one mass have in common; nothing else changes.

    python experiments/published/refit_population.py models/*.onnx

For files exported before the correlation depended on the mass, or with one learned at 21 masses. 41 x 133
lenses of the file's own preset and noise are simulated and answered: minutes a file. The file is replaced
only when all is done.
"""

import argparse
from pathlib import Path

import torch

from darkarc.config import DEFAULT_TARGET
from darkarc.data.form import DataForm
from darkarc.durable import write_file
from darkarc.models.population_errors import KEY
from darkarc.serving import OnnxRegressor
from darkarc.serving.onnx_file import SPEC_KEY
from darkarc.serving.onnx_seal import seal
from darkarc.training.fit_population import MOST_LENSES, errors_of_simulated


def refit(path: Path, lenses: int, seed: int) -> None:
    """Replace the file at `path` by one that holds what was found."""
    import onnx

    regressor = OnnxRegressor(path, threads=1)
    spec = regressor.spec
    if spec.form is None or DEFAULT_TARGET not in spec.targets:
        raise SystemExit(f"{path}: it tells no {DEFAULT_TARGET}, or not which images it is for")
    known = spec.statistics.get(KEY, {})
    found = errors_of_simulated(
        regressor, DataForm(**spec.form), prior=spec.targets[DEFAULT_TARGET], lenses=lenses, seed=seed
    )
    spec.statistics[KEY] = {key: known[key] for key in ("axion_share",) if key in known} | found
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == SPEC_KEY:
            entry.value = spec.to_json()
    write_file(path, seal(model))
    print(f"{path}: correlation {known.get('correlation')} -> {found['correlation']:.4f}, by mass and lenses")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--lenses", type=int, default=MOST_LENSES, help="at each of 41 masses, at least 30")
    parser.add_argument("--seed", type=int, default=2**40)
    args = parser.parse_args()
    if args.lenses < 30:
        parser.error("--lenses: at least 30")
    torch.set_num_threads(1)
    for path in args.models:
        refit(path, args.lenses, args.seed)


if __name__ == "__main__":
    main()
