"""A prepared store of small images that carry their truth in pixels, and a reader that sees it blurred."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from darkarc.config import CLASSES, Config, parse
from darkarc.data.store import Store, StoreWriter
from darkarc.models import Posterior

EDGES = np.linspace(-24.0, -22.0, 129)
SIDE = 8


def gaussian_posterior(
    centre: NDArray[np.float64], sigma: NDArray[np.float64] | float, edges: NDArray[np.float64] = EDGES
) -> Posterior:
    """Normal densities cut off at the prior's ends, on the grid."""
    sigma = np.broadcast_to(sigma, centre.shape)
    cdf = norm.cdf((edges[None] - centre[:, None]) / sigma[:, None])
    probability = np.diff(cdf, axis=1) + 1e-12
    probability /= probability.sum(axis=1, keepdims=True)
    classes = np.tile([0.8, 0.1, 0.1], (len(centre), 1))
    return Posterior(edges, probability / np.diff(edges), classes, "log10_axion_mass_ev")


def posterior_and_truth(n: int, seed: int = 0, stated: float = 1.0) -> tuple[Posterior, NDArray[np.float64]]:
    """Exact posteriors: the truth is drawn from each; `stated` multiplies the width that is then claimed."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(-24.0, -22.0, n)
    sigma = rng.uniform(0.05, 0.4, n)
    truth = gaussian_posterior(centre, sigma).samples(1, seed + 1000)[:, 0]
    return gaussian_posterior(centre, sigma * stated), truth


class PixelReader:
    """Reads (centre, class) from the pixels of `make_store`; its stated width is `sigma * stated`."""

    targets = ("log10_axion_mass_ev",)
    shape = (SIDE, SIDE)

    def __init__(self, sigma: float = 0.1, stated: float = 1.0, ignorant: bool = False) -> None:
        self.sigma, self.stated, self.ignorant = sigma, stated, ignorant
        self.largest_batch = 0

    def predict(self, images: NDArray[Any], *, target: str | None = None, batch_size: int = 256) -> Posterior:
        self.largest_batch = max(self.largest_batch, len(images))
        centre = images[:, 0, 0].astype(np.float64)
        if self.ignorant:
            centre, self.sigma = np.full(len(images), -23.0), 100.0
        posterior = gaussian_posterior(centre, self.sigma * self.stated)
        logits = 2.0 * images[:, 1, :3].astype(np.float64)
        classes = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return Posterior(posterior.edges, posterior.density, classes, posterior.target)


def make_store(
    path: Path,
    *,
    per_class: dict[str, int],
    sigma: float = 0.1,
    seed: int = 0,
    group_of: Callable[[int], str] = lambda index: f"g{index}",
    origin: str = "darkarc:test",
    noise: str = "published",
    splits: tuple[str, ...] = ("train", "test"),
    repeat: bool = False,
) -> Store:
    """Noise images; the first pixel is the centre of the exact posterior of the mass. Splits alternate."""
    rng = np.random.default_rng(seed)
    names = np.repeat(list(per_class), list(per_class.values()))
    n = len(names)
    centre = rng.uniform(-24.0, -22.0, n)
    images = rng.normal(size=(n, SIDE, SIDE)).astype(np.float32)
    images[:, 0, 0] = centre
    truth = gaussian_posterior(images[:, 0, 0].astype(np.float64), sigma).samples(1, seed + 1000)[:, 0]
    images[np.arange(n), 1, [CLASSES.index(name) for name in names]] += 2.0
    if repeat:
        images[1::2] = images[::2]
    recipe = {"preset": "model_iii", "noise": noise, "distances": "deeplense"}
    parameters = {"raw": {"digest": "0" * 64, "parameters": {"simulate": recipe}}}
    rows = {
        "sample_id": [f"s{i:05d}" for i in range(n)],
        "class": names.tolist(),
        "log10_axion_mass_ev": np.where(names == "axion", truth, None).tolist(),
        "log10_subhalo_mass_msun": np.where(names == "cdm", truth, None).tolist(),
        "group_id": [group_of(i) for i in range(n)],
        "split": [splits[i % len(splits)] for i in range(n)],
    }
    writer = StoreWriter(
        path,
        name="small",
        origin=origin,
        instrument="model_iii",
        shape=(SIDE, SIDE),
        dtype="float32",
        parameters=parameters,
    )
    with writer:
        writer.append(images, rows)
        return writer.commit()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(
        tmp_path_factory.mktemp("stores") / "prepared", per_class={"axion": 600, "cdm": 120, "no_sub": 80}
    )


@pytest.fixture
def config() -> Config:
    return parse({"evaluate": {"batch_size": 64, "examples": 4, "mass_bins": 5}})


HISTORY = [
    {
        "epoch": float(i + 1),
        "train_loss": 3 / (i + 1),
        "val_loss": 3.3 / (i + 1),
        "val_mae_dex": 0.5 / (i + 1),
        "learning_rate": 1e-3 * (6 - i),
    }
    for i in range(6)
]
