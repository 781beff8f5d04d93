"""The three noise forms: what is stored for a noise-free model image.

`none` is the model, in counts a second. `published` is what the DeepLense files hold: Model I Poisson
counts of an image that already carries Poisson and background noise, II and III twice the model and no
noise. `physical` is the instrument's own noise, once.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from darkarc.simulation.counter import hash_indices, normals
from darkarc.simulation.poisson import poissons
from darkarc.simulation.presets import NOISES, Preset, check_choice
from darkarc.simulation.scenes import NOISE_STREAM, check_stream, random_stream

_COUNTING = 1
"""Stream of the Poisson numbers of a key, apart from its normal deviates."""


def add_noise(
    preset: Preset,
    model: np.ndarray,
    exposure_s: np.ndarray,
    *,
    noise: str,
    seed: int,
    class_index: np.ndarray,
    indices: Sequence[int] | np.ndarray,
) -> np.ndarray:
    """The stored form (N, H, W) float64 of model images (N, H, W) in counts a second.

    `exposure_s`, `class_index` and `indices` are (N,). The draws of sample i depend on (seed, class, i)
    alone. Model I comes back in counts of its exposure, the others in electrons a second.
    """
    check_choice("noise", noise, NOISES)
    check_stream(seed, indices)
    if noise == "none":
        return model.astype(np.float64)
    if noise == "published" and not preset.counts:
        return preset.published_factor * model.astype(np.float64)
    noisy = np.empty(model.shape)
    for row in range(len(model)):
        stream = random_stream(seed, int(class_index[row]), int(indices[row]), NOISE_STREAM)
        image, seconds = model[row].astype(np.float64), float(exposure_s[row])
        if not preset.counts:
            noisy[row] = _rate(preset, image, seconds, stream)
        elif noise == "published":
            noisy[row] = _counts_twice(preset, image, seconds, stream)
        else:
            noisy[row] = _counts_once(preset, image, seconds, stream)
    return noisy


def add_keyed_noise(
    preset: Preset, model: Tensor, exposure_s: np.ndarray, *, noise: str, keys: Tensor
) -> Tensor:
    """The stored form (N, H, W) as `add_noise` gives it, of other random numbers: for endless samples.

    `keys` (N,) int64 fix each sample's draws whatever stands beside it. All on the model's device and in
    its dtype; for the batches of a training this is faster than a generator a sample.
    """
    check_choice("noise", noise, NOISES)
    if noise == "none":
        return model
    if noise == "published" and not preset.counts:
        return preset.published_factor * model
    background = preset.instrument.background_sigma(exposure_s)
    seconds, sigma = (torch.as_tensor(a).to(model)[:, None] for a in (exposure_s, background))
    image = model.flatten(1)
    deviates = normals(keys, image.shape[1], model.dtype)
    counting = hash_indices(_COUNTING, 0, keys)
    if not preset.counts:
        noisy = image + (sigma.square() + image.clamp_min(0.0) / seconds).sqrt() * deviates
    elif noise == "published":
        # The photon noise and the background of `_counts_twice`: two Gaussians add up to one.
        once = image + (image.abs() / seconds + sigma.square()).sqrt() * deviates
        noisy = poissons(counting, (once * seconds).clamp_min(0.0)).to(model.dtype)
    else:
        counts = poissons(counting, image.clamp_min(0.0) * seconds).to(model.dtype)
        noisy = counts + sigma * seconds * deviates
    return noisy.view_as(model)


def _rate(preset: Preset, image: np.ndarray, seconds: float, stream: np.random.Generator) -> np.ndarray:
    """lenstronomy's `noise_for_model` in e-/s: Gaussian background, and photon noise sqrt(image / t)."""
    background = preset.instrument.background_sigma(seconds)
    sigma = np.sqrt(background**2 + np.maximum(image, 0.0) / seconds)
    sigma *= stream.standard_normal(image.shape)
    return sigma + image


def _counts_once(
    preset: Preset, image: np.ndarray, seconds: float, stream: np.random.Generator
) -> np.ndarray:
    """Photon counts of the exposure and Gaussian background, each once; not integers, may be negative."""
    background = preset.instrument.background_sigma(seconds) * seconds
    counts = background * stream.standard_normal(image.shape)
    return counts + stream.poisson(np.maximum(image, 0.0) * seconds)


def _counts_twice(
    preset: Preset, image: np.ndarray, seconds: float, stream: np.random.Generator
) -> np.ndarray:
    """DeepLenseSim's Model I: Poisson(max(t (image + photon noise + background), 0)), integers."""
    photon = np.sqrt(np.abs(image) / seconds) * stream.standard_normal(image.shape)
    background = preset.instrument.background_sigma(seconds) * stream.standard_normal(image.shape)
    return stream.poisson(np.maximum(seconds * (image + photon + background), 0.0)).astype(np.float64)


def noise_moments(
    preset: Preset, model: Tensor, *, noise: str, exposure_s: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each stored pixel for model images in counts a second; differentiable.

    `exposure_s` is the total exposure time in seconds and broadcasts with `model`. For Model I's
    published form, Poisson counts of a Gaussian cut off at nought: with m1 and m2 the first two moments
    of the rectified Gaussian, mean m1 and variance m1 + m2 - m1^2.
    """
    check_choice("noise", noise, NOISES)
    if noise == "none" or (noise == "published" and not preset.counts):
        factor = preset.published_factor if noise == "published" else 1.0
        return model * factor, torch.zeros_like(model)
    seconds = torch.as_tensor(exposure_s, dtype=model.dtype, device=model.device)
    background = preset.instrument.background_sigma(seconds.detach().double().cpu().numpy())
    background2 = torch.as_tensor(np.square(background)).to(seconds)
    if not preset.counts:
        return model, background2 + model.clamp_min(0.0) / seconds
    mean, variance = model * seconds, model.abs() * seconds + background2 * seconds**2
    if noise == "physical":
        return mean, variance
    sigma = variance.sqrt()
    z = mean / sigma
    above = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    first = mean * above + sigma * density
    second = (mean**2 + variance) * above + mean * sigma * density
    return first, first + second - first**2
