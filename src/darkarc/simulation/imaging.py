"""Scenes to images: the bare model, its noisy forms, and the public `simulate`."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from darkarc.config import CLASSES
from darkarc.simulation.deflection import (
    smooth_source_plane,
    subhalo_deflection,
    vortex_deflection,
)
from darkarc.simulation.noise import add_keyed_noise, add_noise
from darkarc.simulation.presets import (
    DISTANCES,
    NOISES,
    Preset,
    SimulationError,
    check_choice,
    get_preset,
)
from darkarc.simulation.scenes import Scenes, check_stream
from darkarc.simulation.source import convolve, pixel_flux, pixel_flux_with_gradient

# Pixels worked on at once: on a CPU the temporaries stay in its cache.
_BLOCK_PIXELS = {"cpu": 2**17, "cuda": 2**23}
_PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


def source_plane(
    preset: str | Preset,
    *,
    log10_mass_ev: Tensor | None = None,
    angle_rad: Tensor | None = None,
    subhalo_log10_mass_msun: Tensor | None = None,
    subhalo_arcsec: Tensor | None = None,
    distances: str = "deeplense",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    window: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Where every pixel's ray ends in the source plane: x and y, arcsec.

    Without substructure (H, W); with a vortex (`log10_mass_ev` and `angle_rad`, (B,) float64) or
    subhaloes ((B, S) and (B, S, 2) float64) each (B, H, W). Does not depend on the source: evaluate many
    source positions on one plane with `observe`. Differentiable.
    window: rows and columns (int64) of the only pixels that are wanted; H and W are their numbers then.
    """
    preset = get_preset(preset)
    x, y = smooth_source_plane(preset, distances, dtype, torch.device(device))
    if window is not None:
        x, y = (part[window[0]][:, window[1]] for part in (x, y))
    if log10_mass_ev is not None:
        if angle_rad is None:
            raise SimulationError("a vortex needs angle_rad beside log10_mass_ev")
        ax, ay = vortex_deflection(
            preset, log10_mass_ev, angle_rad, distances=distances, dtype=dtype, window=window
        )
        x, y = x - ax, y - ay
    if subhalo_log10_mass_msun is not None:
        if window is not None:
            raise SimulationError("a window is for the vortex alone: leave subhaloes or the window out")
        if subhalo_arcsec is None:
            raise SimulationError("subhaloes need subhalo_arcsec beside subhalo_log10_mass_msun")
        ax, ay = subhalo_deflection(
            preset, subhalo_log10_mass_msun, subhalo_arcsec, distances=distances, dtype=dtype
        )
        x, y = x - ax, y - ay
    return x, y


def observe(
    preset: str | Preset,
    x_arcsec: Tensor,
    y_arcsec: Tensor,
    source_arcsec: Tensor,
    *,
    psf: Tensor | None = None,
) -> Tensor:
    """Noise-free image (..., H, W) in counts a second, PSF included, of a source at `source_arcsec`.

    `x_arcsec`, `y_arcsec` (..., H, W) from `source_plane` and `source_arcsec` (..., 2) broadcast: one
    plane (H, W) and S sources (S, 2) give (S, H, W). Differentiable.
    psf: (H, H) from `psf_matrix`, for square images in an exported graph: two products with it are quicker
    there than the sum of shifted images, which ONNX Runtime does not fuse.
    """
    preset = get_preset(preset)
    flux = pixel_flux(preset, x_arcsec, y_arcsec, source_arcsec.to(x_arcsec.dtype))
    return _seen(preset, flux, psf)


def observe_with_gradient(
    preset: str | Preset,
    x_arcsec: Tensor,
    y_arcsec: Tensor,
    source_arcsec: Tensor,
    deflections_arcsec: Tensor | None = None,
    *,
    psf: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`observe` (..., H, W) and its derivatives (..., 2, H, W) with respect to the source's x and y.

    With further deflections (D, 2, H, W), (..., 2 + D, H, W): the others with respect to a factor on each.
    """
    preset = get_preset(preset)
    flux, gradient = pixel_flux_with_gradient(preset, x_arcsec, y_arcsec, source_arcsec.to(x_arcsec.dtype))
    parts = [flux.unsqueeze(-3), gradient]
    if deflections_arcsec is not None:  # they move the plane by minus what moves the source by plus
        parts += [(gradient * field).sum(dim=-3, keepdim=True) for field in deflections_arcsec.unbind(0)]
    images = _seen(preset, torch.cat(parts, dim=-3), psf)
    return images.select(-3, 0), images.narrow(-3, 1, images.shape[-3] - 1)


def _seen(preset: Preset, flux: Tensor, psf: Tensor | None) -> Tensor:
    if psf is None:
        return convolve(preset.instrument, flux)
    psf = psf.to(flux.dtype)
    return psf @ flux @ psf.T


def model_image(
    preset: str | Preset,
    source_arcsec: Tensor,
    *,
    log10_mass_ev: Tensor | None = None,
    angle_rad: Tensor | None = None,
    subhalo_log10_mass_msun: Tensor | None = None,
    subhalo_arcsec: Tensor | None = None,
    distances: str = "deeplense",
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Noise-free images (B, H, W) in counts a second for float64 parameters (B, ...) on one device.

    Differentiable with respect to every parameter. All B at once: for large batches use `render`.
    """
    x, y = source_plane(
        preset,
        log10_mass_ev=log10_mass_ev,
        angle_rad=angle_rad,
        subhalo_log10_mass_msun=subhalo_log10_mass_msun,
        subhalo_arcsec=subhalo_arcsec,
        distances=distances,
        dtype=dtype,
        device=source_arcsec.device,
    )
    return observe(preset, x, y, source_arcsec)


@torch.no_grad()
def render(
    preset: str | Preset,
    scenes: Scenes,
    *,
    noise: str = "none",
    distances: str = "deeplense",
    seed: int = 0,
    indices: Sequence[int] | np.ndarray | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Images (N, H, W) of scenes, on the CPU, in `dtype`; the model is computed on `device`.

    `indices` (N,) are the samples' numbers, which key their noise (default 0 ... N-1). Every image is
    the same bits whatever stands beside it. Units: see `add_noise`.
    Raises `SimulationError` for an unknown preset, noise form or distance.
    """
    preset = get_preset(preset)
    check_choice("noise", noise, NOISES)
    check_choice("distances", distances, DISTANCES)
    precision = _precision(dtype)
    numbers = np.arange(len(scenes)) if indices is None else np.asarray(indices)
    if len(numbers) != len(scenes):
        raise SimulationError(f"{len(numbers)} indices for {len(scenes)} scenes: expected one each")
    check_stream(seed, numbers)
    images = torch.empty((len(scenes), *preset.instrument.shape), dtype=precision)
    for rows in _blocks(preset, scenes, torch.device(device).type):
        part = scenes[rows]
        model = _class_images(preset, part, distances, precision, device).cpu()
        if noise != "none":
            stored = add_noise(
                preset,
                model.numpy(),
                part.exposure_s,
                noise=noise,
                seed=seed,
                class_index=part.class_index,
                indices=numbers[rows],
            )
            model = torch.from_numpy(stored).to(precision)
        images.index_copy_(0, torch.from_numpy(rows), model)
    return images


@torch.no_grad()
def render_keyed(
    preset: str | Preset,
    scenes: Scenes,
    keys: Tensor,
    *,
    noise: str = "none",
    distances: str = "deeplense",
    dtype: torch.dtype | str = torch.float32,
) -> Tensor:
    """Images (N, H, W) of scenes on the device of `keys`, (N,) int64, which fix each sample's noise.

    As `render` for a data set whose samples need no numbers; every image is the same bits on one device
    whatever stands beside it. Raises `SimulationError` as `render`.
    """
    preset = get_preset(preset)
    check_choice("noise", noise, NOISES)
    check_choice("distances", distances, DISTANCES)
    precision = _precision(dtype)
    images = torch.empty((len(scenes), *preset.instrument.shape), dtype=precision, device=keys.device)
    for rows in _blocks(preset, scenes, keys.device.type):
        part, where = scenes[rows], torch.from_numpy(rows).to(keys.device)
        model = _class_images(preset, part, distances, precision, keys.device)
        stored = add_keyed_noise(preset, model, part.exposure_s, noise=noise, keys=keys[where])
        images.index_copy_(0, where, stored)
    return images


def _precision(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, str):
        check_choice("dtype", dtype, tuple(_PRECISIONS))
        return _PRECISIONS[dtype]
    if dtype not in _PRECISIONS.values():
        raise SimulationError(f"dtype={dtype}: the simulator computes in float32 or float64")
    return dtype


def _blocks(preset: Preset, scenes: Scenes, device_type: str) -> Iterator[np.ndarray]:
    """Row numbers of blocks of one class, each small enough for the cache."""
    height, width = preset.instrument.shape
    size = max(1, _BLOCK_PIXELS.get(device_type, _BLOCK_PIXELS["cuda"]) // (height * width))
    for number in range(len(CLASSES)):
        rows = np.flatnonzero(scenes.class_index == number)
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def _class_images(
    preset: Preset, scenes: Scenes, distances: str, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Model images of scenes that are all of one class."""
    name = CLASSES[scenes.class_index[0]]
    used = {
        "axion": ("log10_mass_ev", "angle_rad"),
        "cdm": ("subhalo_log10_mass_msun", "subhalo_arcsec"),
        "no_sub": (),
    }[name]
    parameters = {field: torch.from_numpy(getattr(scenes, field)).to(device) for field in used}
    source = torch.from_numpy(scenes.source_arcsec).to(device)
    return model_image(preset, source, **parameters, distances=distances, dtype=dtype)
