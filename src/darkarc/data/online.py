"""`data.source: online`: training images straight from the simulator, a new one for every sample.

The prepared store, simulated with the same section `simulate`, still gives the statistics and the
splits that are held out; only its train split's images are not looked at.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darkarc.config import CLASSES, TARGET_CLASS, Config, SimulateConfig
from darkarc.data.auxiliary import AUXILIARY, auxiliary_truths
from darkarc.data.batches import Batch, BatchError, split_rows, within_prior
from darkarc.data.generate import RECIPE
from darkarc.data.store import Store
from darkarc.simulation import (
    Scenes,
    get_preset,
    n_deviates,
    render_keyed,
    scene_columns,
    scenes_of_deviates,
)
from darkarc.simulation.counter import hash_indices, seed_for, uniforms

RENDERED_AT_ONCE = {"cpu": 256, "cuda": 4096}
"""Images made together, whole batches of them: enough to fill a device, few enough for its memory."""

_GOLDEN = 0.6180339887498949  # the fractional part of the golden ratio


class OnlineSource:
    """Endless simulated images: sample (epoch, index) is a pure function of (seed, epoch, index).

    Classes come in the shares of the section `simulate`, in every stretch of an epoch; parameters from
    DeepLense's priors. Neither seeds nor generator are those of a store's scenes, so none of them is in
    validation, calibration or test.
    """

    def __init__(self, config: Config, prepared: Store, *, device: torch.device | str = "cpu") -> None:
        """Raises `BatchError` unless the store was simulated as `config.simulate` says."""
        require_simulated_alike(config, prepared)
        self.device = torch.device(device)
        self.section, self.targets = config.simulate, config.targets
        self.n_images = config.data.epoch_images or len(split_rows(prepared, "train"))
        self._scene_seed = seed_for(config.seed, "online scenes")
        self._noise_seed = seed_for(config.seed, "online noise")

    def __len__(self) -> int:
        return self.n_images

    def batches(self, epoch: int, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Batch]]:
        """Batches of an epoch's samples `order`, each with its indices (B,); rendered several at once."""
        at_once = max(1, RENDERED_AT_ONCE.get(self.device.type, 256) // batch_size) * batch_size
        for chunk in order.split(at_once):
            made = self.batch(epoch, chunk)
            parts = [part.split(batch_size) for part in made]
            yield from zip(chunk.split(batch_size), map(Batch._make, zip(*parts, strict=True)), strict=True)

    def batch(self, epoch: int, indices: Tensor) -> Batch:
        """Samples (B,) of an epoch."""
        numbers = indices.cpu()
        classes = class_of(self.section, numbers)
        noise_keys = hash_indices(self._noise_seed, epoch, indices)
        scene_keys = hash_indices(self._scene_seed, epoch, numbers)
        height, width = get_preset(self.section.preset).instrument.shape
        images = torch.empty(len(indices), 1, height, width, device=self.device)
        truth = np.full((len(indices), len(self.targets)), np.nan, dtype=np.float32)
        auxiliary = torch.empty(len(indices), len(AUXILIARY))
        for number, name in enumerate(CLASSES):
            rows = (classes == number).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            where = rows.to(self.device)
            scenes = self._scenes(name, scene_keys[rows])
            images[where, 0] = render_keyed(
                self.section.preset,
                scenes,
                noise_keys[where],
                noise=self.section.noise,
                distances=self.section.distances,
                dtype=self.section.precision,
            ).float()
            columns = scene_columns(scenes, name)
            places = (columns[key] for key in ("source_x_arcsec", "source_y_arcsec", "vortex_angle_rad"))
            auxiliary[rows] = torch.from_numpy(auxiliary_truths(*places))
            for t, (target, prior) in enumerate(self.targets.items()):
                if TARGET_CLASS[target] == name:
                    values = columns[target].astype(np.float64)
                    truth[rows.numpy(), t] = within_prior(values, target, prior, f"online {name} images")
        tables = (classes, torch.from_numpy(truth), auxiliary)
        return Batch(images, *(table.to(self.device) for table in tables))

    def _scenes(self, name: str, keys: Tensor) -> Scenes:
        deviates = uniforms(keys, n_deviates(self.section.preset, name))
        return scenes_of_deviates(self.section.preset, name, deviates.numpy())


def class_of(section: SimulateConfig, indices: Tensor) -> Tensor:
    """(B,) class of each index, in the shares of the section: any m indices in a row hold each class's
    share of m to within a few (Kronecker's sequence of the golden ratio)."""
    counts = torch.tensor([getattr(section, f"n_{name}") for name in CLASSES], dtype=torch.float64)
    ends = (counts / counts.sum()).cumsum(0)
    place = (indices.double() * _GOLDEN) % 1.0
    return torch.bucketize(place, ends[:-1], right=True)


def require_simulated_alike(config: Config, prepared: Store) -> None:
    """Raise `BatchError` unless the store's raw images were simulated as `config.simulate` says."""
    found = prepared.manifest.parameters.get("raw", {}).get("parameters", {})
    again = "run `darkarc simulate` and `darkarc prepare` again"
    where = f"{prepared.path}: data.source is online, but the store of the held-out splits was"
    if "simulate" not in found:
        raise BatchError(
            f"{where} not simulated (its origin is {prepared.manifest.origin}): set data.source otherwise "
            f"or {again}"
        )
    section: dict[str, Any] = config.simulate.model_dump(mode="json")
    for key in ("preset", "noise", "distances"):
        if found["simulate"][key] != section[key]:
            raise BatchError(
                f"{where} simulated with simulate.{key}: {found['simulate'][key]}, and simulate.{key} is now "
                f"{section[key]}: change it back or {again}"
            )
    ours = {"preset": json.loads(json.dumps(get_preset(section["preset"]).as_dict())), "recipe": RECIPE}
    for key, value in ours.items():
        if found[key] != value:
            raise BatchError(f"{where} simulated by a darkarc with another {key}: {again}")
