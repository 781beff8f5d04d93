"""Coverage, pulls and errors of exported regressors on simulated images that no training saw.

    python benchmarks/coverage.py models/*.onnx --images 5400 --workers 2
    python benchmarks/coverage.py models/model_iii.onnx --images 60      # a look

The images are axion lenses of each regressor's own preset, noise and distances, with masses from DeepLense's
prior, as in `experiments/published`. Their seed is no seed of a training, so none of them was in its files.
Every image counts, those that `predict` would flag too; their share is a column of its own. By true mass even
an exact posterior's coverage is not nominal (an interval knows the image, not the truth): what calibrated
posteriors as wide as these would have stands in brackets.
Prints Markdown tables; the numbers are those of `darkarc.evaluation.metrics`, with binomial errors of the
coverages and bootstrap errors of the rest.
"""

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress

from darkarc.evaluation.binning import cumulative_at, expected_coverage, tercile_edges
from darkarc.evaluation.metrics import (
    LEVELS,
    STATISTICS,
    UNIFORMITY,
    Scores,
    coverage,
    draw_references,
    score,
    standard_errors,
)
from darkarc.models.flags import Reference, unlikeness
from darkarc.serving import OnnxRegressor
from darkarc.simulation import draw_scenes, render

TARGET = "log10_axion_mass_ev"
SEED = 2**41
"""Beyond any seed that a person gives a training, and beyond `fit_population`'s own."""
BATCH = 60
TERCILE_LEVEL = 0.68
SEEN = ("mae_dex", "bias_dex", "pull_std_free", "pull_mean_free", "prior_bound_share")

_loaded: dict[str, OnnxRegressor] = {}


def answer(
    path: str, start: int, stop: int, seed: int, edges: np.ndarray
) -> tuple[Scores, np.ndarray, np.ndarray]:
    """Scores of the images start ... stop - 1, which of them are flagged, and the probability below each of
    the E edges, (N, E); runs in a worker process."""
    torch.set_num_threads(1)
    if path not in _loaded:
        _loaded[path] = OnnxRegressor(path, threads=1)
    regressor = _loaded[path]
    form = regressor.spec.form
    assert form is not None  # main asked
    numbers = np.arange(start, stop)
    scenes = draw_scenes(form["preset"], "axion", seed, numbers)
    images = render(
        form["preset"], scenes, noise=form["noise"], distances=form["distances"], seed=seed, indices=numbers
    )
    pixels = images.numpy().astype(np.float32)
    posterior = regressor.predict(pixels, target=TARGET)
    reference = draw_references(posterior.edges, stop, seed)[start:]
    seen = Reference(regressor.spec.statistics, regressor.shape).judge(pixels)
    flagged = [bool(one.flag or two.flag) for one, two in zip(seen, unlikeness(posterior), strict=True)]
    scores = score(posterior, scenes.log10_mass_ev, reference)
    return scores, np.array(flagged), cumulative_at(posterior, edges)


def true_terciles(form: dict[str, str], n: int, seed: int, prior: tuple[float, float]) -> np.ndarray:
    """(4,) edges of three parts of the prior that hold as many of the true masses each."""
    masses = draw_scenes(form["preset"], "axion", seed, np.arange(n)).log10_mass_ev
    return np.array([prior[0], *tercile_edges(masses)[1:3], prior[1]])


def measure(
    path: str, edges: np.ndarray, args: argparse.Namespace, progress: Progress
) -> tuple[Scores, np.ndarray, np.ndarray]:
    """All images of one regressor, in their order whatever the number of workers."""
    starts = range(0, args.images, BATCH)
    task = progress.add_task(Path(path).stem, total=args.images)
    parts = []
    # No fork: ONNX Runtime's and torch's threads do not survive one.
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(answer, path, start, min(start + BATCH, args.images), args.seed, edges)
            for start in starts
        ]
        for job in jobs:
            parts.append(job.result())
            progress.advance(task, len(parts[-1][0]))
    scores, flags, below = zip(*parts, strict=True)
    return Scores.concatenate(scores), np.concatenate(flags), np.concatenate(below)


def share_of(value: float, level: float, n: int) -> str:
    """In percent, with the binomial error that n images leave to a share `level`."""
    return f"{100 * value:.1f} ± {100 * np.sqrt(level * (1 - level) / n):.1f}"


def terciles(order: np.ndarray) -> list[np.ndarray]:
    """Rows (N,) in three equal parts along `order`."""
    return np.array_split(np.argsort(order, kind="stable"), 3)


def rows_of(
    name: str, scores: Scores, flags: np.ndarray, below: np.ndarray
) -> tuple[list[str], list[str], list[str]]:
    """One row of each of the three tables."""
    errors = standard_errors(scores, seed=0)
    at = [share_of(coverage(scores.pit, level), level, len(scores)) for level in LEVELS]
    by = [
        share_of(coverage(scores.pit[part], TERCILE_LEVEL), TERCILE_LEVEL, len(part))
        for along in (scores.truth, scores.median)
        for part in terciles(along)
    ]
    for third, expected in enumerate(expected_coverage(below, TERCILE_LEVEL)):
        by[third] += f" ({100 * expected:.1f})"
    values = {key: STATISTICS[key](scores) for key in SEEN}
    cells = []
    for key, value in values.items():
        error = errors[key]
        cells.append(f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}"))
    cells += [share_of(float(flags.mean()), float(flags.mean()), len(flags))]
    cells += [f"{distance(scores):.4f}" for distance in UNIFORMITY.values()]
    return [name, str(len(scores)), *at], [name, *by], [name, *cells]


def markdown(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", help="exported regressors (default: models/*.onnx)")
    parser.add_argument("--images", type=int, default=60, help="images of each regressor's kind")
    parser.add_argument("--workers", type=int, default=1, help="processes of one core each")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    if args.images < 3 or args.workers < 1:
        parser.error("--images: at least 3; --workers: at least 1")
    models = args.models or [str(p) for p in sorted(Path(__file__).parents[1].glob("models/*.onnx"))]
    tables: tuple[list[list[str]], ...] = ([], [], [])
    for path in models:
        spec = OnnxRegressor(path, threads=1).spec
        if spec.form is None or TARGET not in spec.targets:
            print(f"{path}: left out: it tells no {TARGET} or not which images it is for", file=sys.stderr)
            continue
        began = time.monotonic()
        edges = true_terciles(spec.form, args.images, args.seed, spec.targets[TARGET])
        with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
            scores, flags, below = measure(path, edges, args, progress)
        for table, row in zip(tables, rows_of(Path(path).stem, scores, flags, below), strict=True):
            table.append(row)
        print(f"{path}: {len(scores)} images, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    distance = 1.36 / np.sqrt(args.images)
    print("Coverage of central intervals (%)\n")
    print(markdown(["model", "images", *(f"{100 * level:.0f}%" for level in LEVELS)], tables[0]))
    thirds = [f"{end} {of}" for of in ("true", "median") for end in ("low", "middle", "high")]
    print(
        "Coverage of the 68% interval (%) by terciles of the true mass (in brackets: of calibrated "
        "posteriors as wide as these) and of the posterior median\n"
    )
    print(markdown(["model", *thirds], tables[1]))
    print(
        "Errors (dex); pulls of posteriors that the prior does not bound; images that `predict` flags (%);\n"
        f"distances of PIT and TARP to uniformity (chance alone exceeds {distance:.4f} once in 20)\n"
    )
    names = ["MAE", "bias", "free pull std", "free pull mean", "prior-bound share", "flagged", "PIT", "TARP"]
    print(markdown(["model", *names], tables[2]))


if __name__ == "__main__":
    main()
