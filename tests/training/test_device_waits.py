"""Within an epoch nothing goes between the host and the device, in whose place stands torch's `meta` here.

A `meta` tensor has no content: to look at one raises, as a GPU would have to wait. A copy from the host, for
which a GPU waits as well, is seen by the operations and constructors that make one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from darkarc.config import Config
from darkarc.data.augment import dihedral
from darkarc.data.augmentation import Augmentation, Background
from darkarc.data.batches import Batch, epoch_order
from darkarc.data.store import Store
from darkarc.data.train_images import TrainImages
from darkarc.models import Regressor, RegressorSpec
from darkarc.simulation import get_preset
from darkarc.training import distribution
from darkarc.training.assembly import prepared_regressor
from darkarc.training.averaging import WeightAverage
from darkarc.training.distillation import Teacher
from darkarc.training.distribution import Alone, _WholeBatchNorms
from darkarc.training.engine import take_step
from darkarc.training.objectives import objective
from darkarc.training.optimisers import build_optimiser
from darkarc.training.profiling import NoClock
from tests.training.conftest import write_prepared

DEVICE = torch.device("meta")
FROM_HOST = [(torch, "tensor"), (torch, "as_tensor"), (torch, "from_numpy"), (Tensor, "new_tensor")]


class Watch(TorchDispatchMode):
    """Names of the operations that take a tensor of the host and give one of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # Single numbers travel with the operation that uses them.
        if "meta" in kinds(out) and "cpu" in kinds((args, kwargs)):
            self.copies.append(str(func))
        return out


def kinds(tree: Any) -> set[str]:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    return {tensor.device.type for tensor in tensors}


class InStep(Alone):
    """One process whose batch norms are those of several."""

    def whole_batch(self) -> AbstractContextManager[Any]:
        return _WholeBatchNorms()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Also notes constructors that take the host's numbers to the device."""
    made = Watch()

    def noting(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make(*args: Any, **options: Any) -> Tensor:
            tensor = real(*args, **options)
            if tensor.device.type == "meta" and _get_current_dispatch_mode():
                made.copies.append(real.__name__)
            return tensor

        return make

    for owner, name in FROM_HOST:
        monkeypatch.setattr(owner, name, noting(getattr(owner, name)))
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # knows no `meta`
    monkeypatch.setattr(distribution, "_sum", Tensor.clone)
    return made


def two_steps(config: Config, prepared: Store, watch: Watch, *, taught: bool, world: Alone) -> None:
    source = TrainImages.of(config, prepared, DEVICE)
    regressor = prepared_regressor(config, prepared, DEVICE)
    teacher = Teacher(deepcopy(regressor).eval(), 0.5) if taught else None
    optimiser, average = build_optimiser(regressor, config.train), WeightAverage(regressor, config.train)
    order = epoch_order(0, 0, len(source), DEVICE)[:32]
    regressor.train()
    with watch:
        for step, (indices, fresh) in enumerate(source.batches(0, order, 16)):
            batch = source.augmented(fresh, indices, 0)
            take_step(regressor, optimiser, batch, 1e-3, config.train, world, NoClock(), teacher)
            average.after_step(regressor, step + 1)


@pytest.mark.parametrize(
    ("model", "train", "taught", "world"),
    [
        ({}, {}, False, Alone()),
        ({"drop_block": 0.1}, {"mixup": 0.2, "label_smoothing": 0.1, "ema": 0.9}, False, Alone()),
        ({}, {"dihedral": "full", "rotation": 5.0, "shift_pixels": 1, "accumulate": 2}, True, Alone()),
        (
            {"residual": 2},
            {"dihedral": "flips", "auxiliary_weight": 1.0, "optimiser": "lamb"},
            False,
            InStep(),
        ),
        ({"head": "quantile"}, {"objective": "pinball", "optimiser": "muon"}, False, Alone()),
        ({"head": "point"}, {"objective": "huber", "optimiser": "lion"}, False, Alone()),
        ({"head": "spline", "background": "border_median"}, {"objective": "crps"}, False, Alone()),
        ({"head": "mixture", "stretch": "asinh"}, {"optimiser": "sgd"}, False, Alone()),
        ({"backbone": "swin_tiny"}, {}, False, Alone()),
        ({"backbone": "arc_graph", "stochastic_depth": 0.0}, {}, False, Alone()),
    ],
)
def test_a_step_copies_nothing_from_the_host(
    settings: Callable[..., Config],
    tmp_path: Any,
    watch: Watch,
    model: dict[str, Any],
    train: dict[str, Any],
    taught: bool,
    world: Alone,
) -> None:
    prepared = write_prepared(tmp_path / "prepared", auxiliary=True)
    config = settings(model=model, **train)
    two_steps(config, prepared, watch, taught=taught, world=world)
    assert watch.copies == []


@pytest.mark.parametrize("noise", ["physical", "none"])
def test_nor_do_a_fitted_lens_and_extra_noise(
    settings: Callable[..., Config], watch: Watch, noise: str
) -> None:
    model = settings(model={"lens_residual": "both"}).model.model_dump(mode="json")
    form = {"preset": "model_iii", "noise": noise, "distances": "deeplense"}
    statistics = {"mean": 0.1, "std": 1.0}
    spec = RegressorSpec({"log10_axion_mass_ev": (-24.0, -22.0)}, (64, 64), model, statistics, "lsst", form)
    regressor, train = Regressor(spec).to(DEVICE).train(), settings(noise_augmentation=0.1).train
    augmentation = Augmentation(train, 0, Background(get_preset("model_iii").instrument, 1.0))
    indices, truth = torch.arange(4, device=DEVICE), torch.zeros(4, 5, device=DEVICE)
    batch = Batch(torch.zeros(4, 1, 64, 64, device=DEVICE), indices, truth[:, :1], truth[:, 1:])
    with watch:
        objective(regressor, augmentation(batch, indices, 0), train).backward()
    assert watch.copies == []


def test_flips_of_oblong_images_are_not_looked_at() -> None:
    images = torch.zeros(4, 1, 3, 5, device=DEVICE)
    assert dihedral(images, torch.arange(4, device=DEVICE)).shape == images.shape
