"""`darkarc.simulate`: images for physical parameters given by hand."""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from darkarc.simulation.imaging import render
from darkarc.simulation.presets import Preset, SimulationError, get_preset
from darkarc.simulation.scenes import Scenes, draw_scenes

IN_EV = 1e-3
"""A positive "log10 m" below this is the mass itself: as a logarithm it would be 1 eV, and no vortex."""


def simulate(
    preset: str | Preset,
    *,
    log10_mass_ev: ArrayLike | None = None,
    angle_rad: ArrayLike | None = None,
    source_arcsec: ArrayLike | None = None,
    subhalo_log10_mass_msun: ArrayLike | None = None,
    subhalo_arcsec: ArrayLike | None = None,
    exposure_s: ArrayLike | None = None,
    noise: str = "none",
    distances: str = "deeplense",
    seed: int = 0,
    dtype: str = "float64",
    device: str = "cpu",
) -> np.ndarray:
    """Images (N, H, W) float64 of N lenses; scalars and length-1 arrays are repeated.

    `log10_mass_ev` (N,), log10 of the particle mass in eV, makes the lens axion-like, with the vortex
    line at `angle_rad` (N,); `subhalo_log10_mass_msun` (N, S) at `subhalo_arcsec` (N, S, 2), nan-padded,
    makes it cdm; with neither there is no substructure. `source_arcsec` (N, 2) is the source's centre,
    `exposure_s` (N,) the total exposure time. The angle, the source and the exposure are drawn
    from DeepLense's priors with `seed` where they are not given; so is the noise.

    `noise`: "none" (the bare model, counts a second), "published" (what DeepLense's files hold: I
    double Poisson counts, II and III the doubled model) or "physical" (the instrument's noise, once).
    `distances`: "deeplense" or "physical". `dtype`: the arithmetic.

    Raises `SimulationError` for parameters that do not go together or are not finite, and for masses in eV
    where their logarithms are expected.
    """
    preset = get_preset(preset)
    given = {
        "log10_mass_ev": _array("log10_mass_ev", log10_mass_ev, 1),
        "angle_rad": _array("angle_rad", angle_rad, 1),
        "source_arcsec": _array("source_arcsec", source_arcsec, 2, last=2),
        "subhalo_log10_mass_msun": _array("subhalo_log10_mass_msun", subhalo_log10_mass_msun, 2),
        "subhalo_arcsec": _array("subhalo_arcsec", subhalo_arcsec, 3, last=2),
        "exposure_s": _array("exposure_s", exposure_s, 1),
    }
    values = {name: value for name, value in given.items() if value is not None}
    scenes = _scenes(preset, _class_of(values), values, seed)
    images = render(preset, scenes, noise=noise, distances=distances, seed=seed, dtype=dtype, device=device)
    return images.double().numpy()


def _array(name: str, value: ArrayLike | None, dimensions: int, last: int | None = None) -> np.ndarray | None:
    """A float64 array with leading axis N; a scalar (or one scene without that axis) gets one."""
    if value is None:
        return None
    array = np.asarray(value, dtype=np.float64)
    if array.ndim == dimensions - 1:
        array = array[None]
    if array.ndim != dimensions or (last is not None and array.shape[-1] != last):
        axes = ("N", "S")[: dimensions - (last is not None)]
        wanted = ", ".join([*axes, *([str(last)] if last else [])])
        raise SimulationError(f"{name}: expected an array of shape ({wanted}), found {array.shape}")
    if not name.startswith("subhalo") and not np.isfinite(array).all():
        raise SimulationError(f"{name}: expected finite numbers, found {array[~np.isfinite(array)][0]}")
    if name == "log10_mass_ev" and (in_ev := array[(array > 0) & (array < IN_EV)]).size:
        raise SimulationError(
            f"{name}: expected log10 of the mass in eV, such as -23, found {in_ev[0]:g}, evidently the mass "
            f"itself; give its logarithm, {np.log10(in_ev[0]):.6g}"
        )
    return array


def _class_of(values: dict[str, np.ndarray]) -> str:
    """The class that the given parameters describe."""
    vortex = {"log10_mass_ev", "angle_rad"} & values.keys()
    subhalos = {"subhalo_log10_mass_msun", "subhalo_arcsec"} & values.keys()
    if vortex and subhalos:
        raise SimulationError(
            f"{', '.join(sorted(vortex | subhalos))}: a lens has a vortex or subhaloes, not both"
        )
    if "angle_rad" in vortex and "log10_mass_ev" not in vortex:
        raise SimulationError("angle_rad without log10_mass_ev: give the particle mass of the vortex")
    if len(subhalos) == 1:
        raise SimulationError(f"{subhalos.pop()} alone: give both the masses and the places of subhaloes")
    if subhalos:
        shapes = values["subhalo_log10_mass_msun"].shape, values["subhalo_arcsec"].shape
        if shapes[0][1:] != shapes[1][1:-1]:
            raise SimulationError(
                f"subhalo_arcsec has shape {shapes[1]}: expected two coordinates for each of the masses,"
                f" whose shape is {shapes[0]}"
            )
    return "axion" if vortex else "cdm" if subhalos else "no_sub"


def _scenes(preset: Preset, class_name: str, values: dict[str, np.ndarray], seed: int) -> Scenes:
    """Scenes with the given values; what is not given is drawn from the priors."""
    lengths = {name: len(value) for name, value in values.items()}
    number = max(lengths.values(), default=1)
    for name, length in lengths.items():
        if length not in (1, number):
            raise SimulationError(f"{name} holds {length} lenses where other parameters hold {number}")
    if "exposure_s" in values and not (values["exposure_s"] > 0).all():
        raise SimulationError(f"exposure_s: expected times above 0, found {values['exposure_s'].min():g}")
    drawn = draw_scenes(preset, class_name, seed, range(number))
    whole = {
        name: np.broadcast_to(value, (number, *value.shape[1:])).copy() for name, value in values.items()
    }
    return replace(drawn, **whole)
