"""The information floor against plain Monte Carlo, its coverage, and images a minute.

    python benchmarks/floor.py                                    # 20 images of model_iii, both ways
    python benchmarks/floor.py --preset model_i --noise published --images 4
    python benchmarks/floor.py --images 0 --coverage 200          # are the exact posteriors calibrated?
    python benchmarks/floor.py --images 0 --coverage 200 --model models/model_iii_physical.onnx

Monte Carlo is self-normalised importance sampling of all parameters (log10 m, angle, source, Model I's
exposure) with the full likelihood in float64: no grid, no Laplace approximation, no interpolation. Its
proposal comes from the floor's lattice, so that a mode that the lattice missed is missed by both: that is
what the coverage is for. Densities are computed in bins much finer than a `Posterior`'s usual 256. With
--keep FOLDER a killed run goes on, and more images are added to those that are there. With --model the
regressor answers the same images, and its error is divided by that of the exact posteriors: the truths'
errors, and those expected by the exact posteriors, which leaves out the luck of the draw. Images whose best
lens does not explain them (`darkarc predict --exact` says so too: the search missed the maximum) count for
neither.
"""

import argparse
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from darkarc.durable import write_file
from darkarc.evaluation.floor.bank import make_bank
from darkarc.evaluation.floor.beside import expected_error
from darkarc.evaluation.floor.explore import explored
from darkarc.evaluation.floor.lattice import mass_curve
from darkarc.evaluation.floor.posterior import ExactAnswer, bin_density, exact_answers
from darkarc.evaluation.floor.store import even_sample
from darkarc.evaluation.metrics import LEVELS, coverage, uniform_distance
from darkarc.models import Posterior
from darkarc.serving import OnnxRegressor
from darkarc.simulation import draw_scenes, render
from tests.evaluation.floor_oracle import sample

TARGET = "log10_axion_mass_ev"
FINE = 8192
RANGE = (-24.0, -22.0)


@torch.no_grad()
def against_monte_carlo(preset: str, noise: str, images: int, samples: int, seed: int) -> None:
    """Print median and 68% width of both, image by image, and the largest differences."""
    scenes = draw_scenes(preset, "axion", seed, range(images))
    pixels = render(preset, scenes, noise=noise, seed=seed)
    bank = make_bank(preset, "deeplense")
    print(f"{preset}, {noise}: exact posterior against importance sampling of {samples} draws")
    print("  truth    median      MC   differ   width     MC    ratio  effective draws")
    rows = []
    for n, one in enumerate(explored(bank, noise, pixels.numpy())):
        curve = mass_curve(one.lattice)
        reach = 2 * curve.spacing
        low, high = (
            max(RANGE[0], curve.log10_mass_ev[0] - reach),
            min(RANGE[1], curve.log10_mass_ev[-1] + reach),
        )
        edges = np.linspace(low, high, 2049)
        found = Posterior(edges, bin_density(curve, edges)[None], np.array([[1.0, 0, 0]]), TARGET)
        drawn = sample(bank, noise, one, pixels[n].double().numpy(), samples, n)
        q16, median, q84 = (drawn.quantile(q) for q in (0.16, 0.5, 0.84))
        width = float(np.diff(found.interval(0.68))[0, 0])
        rows.append((found.median[0] - median, width / (q84 - q16)))
        print(
            f"{scenes.log10_mass_ev[n]:8.3f} {found.median[0]:9.4f} {median:9.4f} {rows[-1][0]:8.4f} "
            f"{width:7.4f} {q84 - q16:7.4f} {rows[-1][1]:6.3f} {drawn.effective:8.0f}",
            flush=True,
        )
    differ, ratio = np.array(rows).T
    print(f"largest difference of medians {np.abs(differ).max():.4f} dex (goal 0.02)")
    print(f"widths {ratio.min():.3f} to {ratio.max():.3f} times Monte Carlo's (goal 0.9 to 1.1)")


def calibration(
    preset: str, noise: str, images: int, seed: int, keep: Path | None, model: Path | None
) -> None:
    """Print coverage, PIT and error of exact posteriors of images spread evenly over the masses."""
    scenes = draw_scenes(preset, "axion", seed, range(20 * images))
    chosen = even_sample(scenes.log10_mass_ev, images)
    density, truth, seconds, explained = [], [], [], []
    order = np.random.default_rng(1).permutation(chosen)
    for k in order:
        file = None if keep is None else keep / f"{preset}-{noise}-{seed}-{k}.npz"
        kept = np.load(file, allow_pickle=False) if file is not None and file.exists() else {}
        if "misfit" in kept:
            seconds.append(float(kept["seconds"]))
            answer = ExactAnswer(
                kept["density"].astype(np.float64), float(kept["misfit"]), float(kept["worst"])
            )
        else:
            image = render(preset, scenes[np.array([k])], noise=noise, seed=seed, indices=np.array([k]))
            started = time.process_time()
            answer = next(exact_answers(image.numpy(), preset, noise, bins=FINE))
            seconds.append(time.process_time() - started)
            if file is not None:
                content = BytesIO()
                narrow = answer.density.astype(np.float32)
                np.savez(
                    content, density=narrow, seconds=seconds[-1], misfit=answer.misfit, worst=answer.worst
                )
                write_file(file, content.getvalue())
        truth.append(float(scenes.log10_mass_ev[k]))
        density.append(answer.density)
        explained.append(answer.explained)
    report(preset, noise, np.array(density), np.array(truth), np.array(seconds))
    if model is not None:
        pixels = render(preset, scenes[order], noise=noise, seed=seed, indices=order).numpy()
        good = np.array(explained)
        beside(model, pixels[good], np.array(density)[good], np.array(truth)[good], preset, noise)


def beside(
    model: Path, pixels: np.ndarray, density: np.ndarray, truth: np.ndarray, preset: str, noise: str
) -> None:
    """Print a regressor's error on the images, as a multiple of the exact posteriors' own."""
    regressor = OnnxRegressor(model, threads=1)
    if regressor.spec.form != {"preset": preset, "noise": noise, "distances": "deeplense"}:
        sys.exit(f"{model}: trained on {regressor.spec.form}, not on {preset} with {noise} noise")
    median = regressor.predict(pixels.astype(np.float32), target=TARGET).median
    exact = Posterior(np.linspace(*RANGE, FINE + 1), density, np.tile([1.0, 0, 0], (len(truth), 1)), TARGET)
    own = np.abs(median - truth), np.abs(exact.median - truth)
    centres = (exact.edges[1:] + exact.edges[:-1]) / 2
    mass = density / density.sum(axis=1, keepdims=True)
    expected = np.sum(mass * np.abs(centres - median[:, None]), axis=1), expected_error(exact)
    print(f"  {model}: mean absolute error {own[0].mean():.4f} dex on the {len(truth)} explained images")
    for what, (numerator, denominator) in (("errors", own), ("expected errors", expected)):
        drawn = np.random.default_rng(0).integers(len(truth), size=(4000, len(truth)))
        ratios = numerator[drawn].sum(axis=1) / denominator[drawn].sum(axis=1)
        ratio = numerator.sum() / denominator.sum()
        print(f"  {what}: {ratio:.3f} +- {ratios.std():.3f} times those of the exact posteriors")
    for low in np.arange(-24, -22, 0.5):
        inside = (truth >= low) & (truth < low + 0.5)
        if inside.any():
            its, best = (part[inside].mean() for part in expected)
            print(f"  {low:.1f} to {low + 0.5:.1f}: expected errors, exact {best:.5f}, its own {its:.5f}")


def report(preset: str, noise: str, density: np.ndarray, truth: np.ndarray, seconds: np.ndarray) -> None:
    """Print what the exact posteriors of M images say."""
    edges = np.linspace(*RANGE, FINE + 1)
    found = Posterior(edges, density, np.tile([1.0, 0, 0], (len(density), 1)), TARGET)
    pit = found.cdf(truth)
    error, expected = np.abs(found.median - truth), expected_error(found)
    n = len(truth)

    def with_error(values: np.ndarray) -> str:
        return f"{values.mean():.4f} +- {values.std(ddof=1) / np.sqrt(n):.4f}"

    print(f"{preset}, {noise}: {n} images, {60 / seconds[1:].mean():.0f} a minute and core (CPU time)")
    print(f"  mean absolute error {with_error(error)} dex; expected by the posteriors {with_error(expected)}")
    said = ", ".join(
        f"{100 * level:.0f}%: {coverage(pit, level):.3f} +- {np.sqrt(level * (1 - level) / n):.3f}"
        for level in LEVELS
    )
    print(f"  coverage {said}")
    critical = 1.36 / np.sqrt(n)
    distance = uniform_distance(pit)
    print(f"  PIT: distance to uniform {distance:.3f} (95% of calibrated ones are below {critical:.3f})")
    extreme = int(np.sum((pit < 5e-4) | (pit > 1 - 5e-4)))
    print(f"  truths in the outer 0.1%: {extreme}")
    for low in np.arange(-24, -22, 0.5):
        inside = (truth >= low) & (truth < low + 0.5)
        if inside.any():
            print(
                f"  {low:.1f} to {low + 0.5:.1f}: {inside.sum():3d} images, error {error[inside].mean():.5f},"
                f" expected {expected[inside].mean():.5f}, 68% coverage {coverage(pit[inside], 0.68):.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="model_iii")
    parser.add_argument("--noise", default="physical")
    parser.add_argument("--images", type=int, default=20, help="to compare with Monte Carlo")
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--coverage", type=int, default=0, help="images whose calibration is tested")
    parser.add_argument("--keep", type=Path, default=None, help="folder of exact posteriors")
    parser.add_argument("--model", type=Path, default=None, help="an exported regressor of the same form")
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.images:
        against_monte_carlo(args.preset, args.noise, args.images, args.samples, args.seed)
    if args.coverage:
        calibration(args.preset, args.noise, args.coverage, args.seed, args.keep, args.model)


if __name__ == "__main__":
    main()
