"""Does a regressor notice a point-spread function a little wider than its training's, and how wrong is it?

    python benchmarks/wider_psf.py models/*.onnx --images 200
    python benchmarks/wider_psf.py models/model_iii.onnx --images 20 --factors 1.1      # a look

The same axion lenses are rendered through each instrument; no training saw them. A confident error is a mass
that would be given although the truth lies outside of its 99% interval, so 1% is nominal.
Prints a Markdown table for each regressor.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from darkarc.data.form import DataForm
from darkarc.evaluation.ood import confidently_wrong
from darkarc.evaluation.strangers import Studio
from darkarc.models.flags import Reference, unlikeness
from darkarc.serving import OnnxRegressor

FACTORS = (1.0, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5)
SEED = 2**42
"""Beyond any seed that a person gives a training, and of `coverage.py` and `fit_population`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="exported regressors (default: models/*.onnx)")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--factors", type=float, nargs="+", default=list(FACTORS))
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for path in args.models or sorted(Path(__file__).parents[1].glob("models/*.onnx")):
        regressor = OnnxRegressor(path, threads=1)
        if regressor.spec.form is None:
            parser.error(f"{path}: it does not tell which images it is for")
        studio = Studio(DataForm(**regressor.spec.form), args.images, args.seed)
        reference = Reference(regressor.spec.statistics, regressor.shape)
        print(f"\n{path.stem}, {args.images} images each (%)\n")
        print("| PSF times | flagged | withheld | confident errors | without a flag | MAE (dex) |")
        print("|---:|---:|---:|---:|---:|---:|", flush=True)
        instrument = studio.preset.instrument
        for factor in args.factors:
            wider = replace(instrument, psf_fwhm_arcsec=factor * instrument.psf_fwhm_arcsec)
            images = studio.through(wider)
            posterior = regressor.predict(images)
            both = list(zip(reference.judge(images), unlikeness(posterior), strict=True))
            flagged = np.array([any(one.flag for one in pair) for pair in both])
            withheld = np.array([any(one.withheld for one in pair) for pair in both])
            wrong = confidently_wrong(posterior, studio.truth)
            shares = (flagged, withheld, wrong, wrong & ~flagged)
            cells = [f"{100 * share.mean():.1f}" for share in shares]
            error = np.abs(posterior.median - studio.truth).mean()
            print(f"| {factor:g} | {' | '.join(cells)} | {error:.4f} |", flush=True)


if __name__ == "__main__":
    main()
