"""Images a second that training takes: our loop beside a plain PyTorch loop over one .npy a file.

Run: python benchmarks/train.py [--images 1920] [--width 1.0] [--batch 64] [--rounds 3]. Same network, loss
and batch, in turns. The plain loop is the textbook's: a Dataset that reads and flips an image, a DataLoader
with two processes, float32, `loss.item()` every step. Ours is timed whole, with validation and checkpoints.
Also prints the share of a step that loading and augmentation take. On a GPU: images a second of a step of
`--backbone`, and its share of the bfloat16 rate of a product of matrices there.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from darkarc import config as configuration
from darkarc.config import Config
from darkarc.data.batches import Batch, ImageSource
from darkarc.data.store import Store, StoreWriter
from darkarc.tracking.tracker import NullTracker
from darkarc.training import choose_device, new_regressor
from darkarc.training.display import Silent
from darkarc.training.distribution import Alone
from darkarc.training.engine import Session, prepared_regressor, take_step, train_here
from darkarc.training.interruption import StopRequest
from darkarc.training.objectives import objective
from darkarc.training.optimisers import build_optimiser
from darkarc.training.profiling import NoClock, StepProfile

SIDE = 64


def write_store(path: Path, n_images: int) -> Store:
    """Rings with noise, and their radius for a mass; a small validation split."""
    rng = np.random.default_rng(0)
    n_validation = 64
    n = n_images + n_validation
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    mass = rng.uniform(-24, -22, n)
    ring = np.exp(-0.5 * ((np.hypot(x, y) - 8 * (mass + 25)[:, None, None]) / 3) ** 2)
    images = (ring + 0.02 * rng.normal(size=ring.shape)).astype(np.float32)
    writer = StoreWriter(
        path, name="rings", origin="benchmark", instrument="none", shape=(SIDE, SIDE), dtype="float32",
        parameters={},
    )  # fmt: skip
    columns = {
        "sample_id": [str(k) for k in range(n)],
        "class": ["axion"] * n,
        "log10_axion_mass_ev": mass,
        "split": ["train"] * n_images + ["validation"] * n_validation,
    }
    writer.append(images, columns)
    statistics = {
        "mean": float(images.mean()), "std": float(images.std()), "background": 0.0, "noise_level": 0.02,
        "shape": [SIDE, SIDE], "instrument": "none", "reference": {},
    }  # fmt: skip
    writer.attach("statistics.json", json.dumps(statistics).encode())
    return writer.commit()


class Files(Dataset[tuple[torch.Tensor, int, torch.Tensor]]):
    """One .npy a file, flipped at random: how such a set is usually read."""

    def __init__(self, folder: Path, truth: torch.Tensor) -> None:
        self.paths, self.truth = sorted(folder.glob("*.npy")), truth

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, torch.Tensor]:
        image = torch.from_numpy(np.load(self.paths[index]))[None]
        for axis in (1, 2):
            if torch.rand(()) < 0.5:
                image = image.flip(axis)
        return image, 0, self.truth[index]


def plain_seconds(config: Config, prepared: Store, files: Files) -> float:
    """Wall-clock seconds of one epoch of the plain loop, its processes started before."""
    device = choose_device(config.device)
    regressor = new_regressor(config, prepared).to(device).train()
    optimiser = build_optimiser(regressor, config.train)
    loader = DataLoader(
        files, config.train.batch_size, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )
    for epoch in range(2):
        began = time.perf_counter()
        for images, classes, truth in loader:
            auxiliary = torch.full((len(images), 4), torch.nan, device=device)
            batch = Batch(images.to(device), classes.to(device), truth.to(device), auxiliary)
            optimiser.zero_grad()
            loss = objective(regressor, batch, config.train)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(regressor.parameters(), config.train.gradient_clip)
            optimiser.step()
            loss.item()
            if epoch == 0:
                break
    return time.perf_counter() - began


def our_seconds(config: Config, prepared: Store, folder: Path) -> tuple[float, StepProfile]:
    """Wall-clock seconds of the second epoch, validation and checkpoint included; and the parts of a step."""
    ends: list[float] = []
    device = choose_device(config.device)
    profile = StepProfile(folder / "trace.json", device, lambda message: None)
    for clock in (profile, NoClock()):
        session = Session(
            folder / f"{time.monotonic_ns()}", NullTracker(), Silent(), StopRequest(),
            lambda end: ends.append(time.perf_counter()) or False, clock, Alone(),
        )  # fmt: skip
        train_here(config, prepared, device, session)
    return ends[-1] - ends[-2], profile


def gpu_share(config: Config, prepared: Store, device: torch.device) -> None:
    """Images a second of training steps at large batches, against a matrix product's bfloat16 rate."""
    from torch.utils.flop_counter import FlopCounterMode

    regressor = prepared_regressor(config, prepared, device).train()
    optimiser = build_optimiser(regressor, config.train)
    source = ImageSource(prepared, "train", config.targets, device=device)
    batch = source.batch(torch.arange(config.train.batch_size, device=device) % len(source))
    with FlopCounterMode(display=False) as counter:
        take_step(regressor, optimiser, batch, 1e-4, config.train, Alone(), NoClock())
    step = seconds_of(
        lambda: take_step(regressor, optimiser, batch, 1e-4, config.train, Alone(), NoClock()), device
    )
    square = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    peak = 2 * 8192**3 / seconds_of(lambda: square @ square, device)
    achieved = counter.get_total_flops() / step
    print(
        f"{config.model.backbone}: {config.train.batch_size / step:.0f} images/s, "
        f"{achieved / 1e12:.1f} TFLOP/s, {achieved / peak:.0%} of the {peak / 1e12:.0f} of a matrix product"
    )


def seconds_of(work: object, device: torch.device, repeats: int = 20) -> float:
    """Mean over repeats after a warm-up, with the device waited for."""
    assert callable(work)
    for _ in range(5):
        work()
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1920)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="small_resnet")
    arguments = parser.parse_args()
    tree = {
        "model": {"width": arguments.width, "backbone": arguments.backbone},
        "train": {"epochs": 2, "batch_size": arguments.batch, "freeze_norm": 0.0},
    }
    config = configuration.parse(tree)
    single = configuration.parse({**tree, "train": {**tree["train"], "precision": "float32"}})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepared = write_store(folder / "store", arguments.images)
        source = ImageSource(prepared, "train", config.targets)
        (folder / "files").mkdir()
        for k, image in enumerate(source.batch(torch.arange(len(source))).images):
            np.save(folder / "files" / f"axion_sim_{k:06d}.npy", image[0].numpy())
        files = Files(folder / "files", source.truth)
        n = arguments.images // arguments.batch * arguments.batch
        seconds: dict[str, list[float]] = {"plain": [], "ours": [], "ours, float32": []}
        for _ in range(arguments.rounds):
            seconds["plain"].append(plain_seconds(config, prepared, files))
            ours, profile = our_seconds(config, prepared, folder)
            seconds["ours"].append(ours)
            seconds["ours, float32"].append(our_seconds(single, prepared, folder)[0])
        for name, found in seconds.items():
            ratio = min(seconds["plain"]) / min(found)
            print(f"{name:14s} {n / min(found):7.0f} images/s   ratio {ratio:.2f}")
        print(profile.table())
        share = (profile.seconds["loading"] + profile.seconds["augmentation"]) / profile.total_seconds
        print(f"loading and augmentation: {share:.1%} of a step")
        device = choose_device("auto")
        if device.type == "cuda":
            gpu_share(config, prepared, device)


if __name__ == "__main__":
    main()
