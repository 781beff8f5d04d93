"""From a configuration and a prepared store to an untrained regressor."""

import torch

from darkarc.config import Config
from darkarc.data.auxiliary import AUXILIARY
from darkarc.data.form import data_form
from darkarc.data.prepare import read_statistics
from darkarc.data.store import Store
from darkarc.models import BACKBONES, Regressor, RegressorSpec
from darkarc.simulation import get_preset
from darkarc.training.smooth_lenses import fit_preprocessing


class TrainingError(ValueError):
    """A training that cannot start or go on; the message says why and what to change."""


def new_regressor(config: Config, prepared: Store) -> Regressor:
    """An untrained regressor for a prepared store; its weights come from torch's current seed."""
    if config.train.dihedral == "full" and prepared.shape[0] != prepared.shape[1]:
        raise TrainingError(
            f"train.dihedral is full, but images of {prepared.shape} pixels cannot be rotated by 90 degrees: "
            "set it to flips or none"
        )
    form = known_form(prepared)
    residual = lens_residual(config, form)
    regressor = Regressor(
        RegressorSpec(
            targets=dict(config.targets),
            shape=prepared.shape,
            model=config.model.model_dump(mode="json") | {"lens_residual": residual},
            statistics=read_statistics(prepared.path),
            instrument=prepared.manifest.instrument,
            form=form,
        )
    )
    fit_preprocessing(regressor, config, prepared)
    return regressor


def known_form(prepared: Store) -> dict[str, str] | None:
    """Preset, noise and distances of a store's images, None unless all three are known."""
    form = data_form(prepared.manifest)
    if form.preset is None or form.noise is None or form.distances is None:
        return None
    if get_preset(form.preset).instrument.shape != prepared.shape:
        return None
    return {"preset": form.preset, "noise": form.noise, "distances": form.distances}


def lens_residual(config: Config, form: dict[str, str] | None) -> str:
    """What `model.lens_residual` means for these images. Raises `TrainingError` if that cannot be.

    A mirrored source is no source of the preset, and a lens that was moved stands elsewhere: neither fits.
    A backbone that must not see any orientation does not get the fitted lens's.
    """
    wanted, train = config.model.lens_residual, config.train
    mirrored = train.dihedral in ("flips", "full")
    moved = train.rotation > 0 or train.shift_pixels > 0
    if wanted == "auto":
        # An unknown backbone is the regressor's error.
        recipe = BACKBONES.get(config.model.backbone)
        oriented = recipe is None or not recipe.symmetric
        return "compact" if form is not None and oriented and not (mirrored or moved) else "none"
    if wanted != "none" and form is None:
        raise TrainingError(
            f"model.lens_residual is {wanted}, but the preset, noise and distances of these images are not "
            "known: set it to auto or none"
        )
    if wanted != "none" and mirrored:
        raise TrainingError(
            f"model.lens_residual is {wanted}, but train.dihedral: {config.train.dihedral} mirrors the "
            "sources, and the fitted lens knows none like that: set train.dihedral to half_turn or none"
        )
    if wanted != "none" and moved:
        raise TrainingError(
            f"model.lens_residual is {wanted}, which fits the lens where it stands, and train.rotation or "
            "train.shift_pixels moves it: set those to 0, or model.lens_residual to none"
        )
    return wanted


def prepared_regressor(config: Config, prepared: Store, device: torch.device) -> Regressor:
    """As `new_regressor`, with all that only training has, on the device."""
    regressor = new_regressor(config, prepared)
    if config.train.auxiliary_weight > 0:
        regressor.attach_auxiliary(len(AUXILIARY))
    return regressor.to(device).to(memory_format=torch.channels_last)


def choose_device(device: str) -> torch.device:
    """`auto` takes a GPU where there is one. Raises `TrainingError` if cuda is asked for in vain.

    On a GPU float32 then means float32, in convolutions, too: torch would compute those with ten binary
    digits (TF32), as no CPU does, and novelty and recalibration would be fitted on other features than are
    answered with.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device: cuda was asked for, but torch finds no GPU: set device to auto or cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device(device)
    torch.backends.cudnn.allow_tf32 = False
    return torch.device(device, torch.cuda.current_device())
