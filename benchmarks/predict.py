"""Images a second: the exported regressor on ONNX Runtime against eager torch, on the CPU, in one run.

    python benchmarks/predict.py --threads 1 --batch-sizes 1 8 64 256
    python benchmarks/predict.py --threads 1 --batch-sizes 64 --trained data/trained

Each pair is timed in turn, several times, and the best of each is compared, so that another process on the
machine disturbs both alike (OMP_WAIT_POLICY=passive, as darkarc's commands set it, keeps the threads of one
from spinning while the other is timed). Without `--trained` the regressors are untrained networks without a
fitted lens (speed does not depend on the weights); with it they are a training's, fitted lens and vortex and
all, and the images are lenses of its form.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from darkarc.config import DEFAULT_TARGET, ModelConfig
from darkarc.models import Prediction, Regressor, RegressorSpec
from darkarc.serving import OnnxRegressor, export_onnx, load
from darkarc.simulation import draw_scenes, render

BACKBONES = ("small_resnet", "efficientnet_b0")
SEED = 2**43


def untrained(backbone: str, shape: tuple[int, int]) -> Regressor:
    """A regressor whose answers depend on the image, so that equality means something."""
    torch.manual_seed(0)
    model = ModelConfig(backbone=backbone).model_dump()
    spec = RegressorSpec(
        {DEFAULT_TARGET: (-24.0, -22.0)}, shape, model, {"mean": 0.0, "std": 1.0}, "benchmark"
    )
    regressor = Regressor(spec)
    for name, weight in regressor.named_parameters():
        if name.startswith(("target_layer", "class_layer")):
            torch.nn.init.normal_(weight, 0.0, 0.1)
    return regressor.eval()


def best_seconds(tasks: list[Callable[[], object]], budget_s: float) -> list[float]:
    """Shortest time of each task, run in turn until `budget_s` seconds have passed (at least 3 rounds)."""
    best = [float("inf")] * len(tasks)
    for task in tasks:
        task()
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - start < budget_s:
        for k, task in enumerate(tasks):
            begin = time.perf_counter()
            task()
            best[k] = min(best[k], time.perf_counter() - begin)
        rounds += 1
    return best


def largest_differences(a: Prediction, b: Prediction) -> tuple[float, float]:
    """In medians, quantiles and class probabilities, and in the novelty (a logarithm of a share).

    The density is left out: its unit is that of one over the target's.
    """
    apart = {
        name: float((x - y).abs().max())
        for name, x, y in zip(Prediction._fields, a, b, strict=True)
        if x is not None and y is not None and name != "density"
    }
    novelty = apart.pop("novelty", 0.0)
    return max(apart.values()), novelty


def lenses(form: dict[str, str], n: int) -> torch.Tensor:
    """(n, 1, H, W) simulated axion lenses in the form that a regressor was trained on."""
    scenes = draw_scenes(form["preset"], "axion", SEED, range(n))
    images = render(form["preset"], scenes, noise=form["noise"], distances=form["distances"], seed=SEED)
    return images[:, None].float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--pixels", type=int, default=64, help="side of the image")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of both")
    parser.add_argument("--seconds", type=float, default=4.0, help="time spent on one batch size")
    parser.add_argument("--trained", type=Path, nargs="+", default=[], help="folders of trained regressors")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} thread(s), images/s\n")
    print(
        "| regressor | batch | eager torch | ONNX Runtime | ratio | answers differ by | novelty by |\n"
        + "|---" * 7
        + "|"
    )
    shape = (arguments.pixels, arguments.pixels)
    named = {str(path): load(path) for path in arguments.trained}
    for name, regressor in (
        named or {backbone: untrained(backbone, shape) for backbone in BACKBONES}
    ).items():
        with tempfile.TemporaryDirectory() as folder:
            exported = OnnxRegressor(
                export_onnx(regressor, Path(folder) / "model.onnx"), threads=arguments.threads
            )
        for batch in arguments.batch_sizes:
            form = regressor.spec.form
            if form:
                images = lenses(form, batch)
            else:
                images = torch.from_numpy(
                    np.random.default_rng(0).normal(size=(batch, 1, *regressor.shape)).astype(np.float32)
                )
            with torch.inference_mode():
                eager, onnx = best_seconds(
                    [lambda r=regressor, x=images: r(x), lambda r=exported, x=images: r(x)], arguments.seconds
                )
                answers, novelty = largest_differences(regressor(images), exported(images))
            print(
                f"| {name} | {batch} | {batch / eager:.0f} | {batch / onnx:.0f} | {eager / onnx:.2f} | "
                f"{answers:.1e} | {novelty:.1e} |"
            )


if __name__ == "__main__":
    main()
