"""Distances and Einstein radii, with DeepLense's quirks or without them.

Lens at z = 0.5, source at z = 1.0 in FlatLambdaCDM(H0 = 70 km/s/Mpc, Om0 = 0.3), no radiation.
"""

import math
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from scipy.integrate import quad

from darkarc.simulation.presets import DISTANCES, Preset, check_choice

HUBBLE_KM_S_MPC = 70.0
OMEGA_MATTER = 0.3
REDSHIFT_LENS = 0.5
REDSHIFT_SOURCE = 1.0

# CODATA 2018 and IAU 2015, as astropy has them.
GRAVITATIONAL_CONSTANT = 6.6743e-11
SPEED_OF_LIGHT_M_S = 299792458.0
SOLAR_MASS_KG = 1.3271244e20 / GRAVITATIONAL_CONSTANT
MEGAPARSEC_M = 3.0856775814913673e22
RADIAN_ARCSEC = 206265.0  # DeepLenseSim's rounded value

Real = TypeVar("Real", float, np.ndarray, torch.Tensor)


def comoving_distance_mpc(redshift: float) -> float:
    """Line-of-sight comoving distance in Mpc (Hogg 1999, eq. 15)."""

    def inverse_expansion(z: float) -> float:
        return 1.0 / math.sqrt(OMEGA_MATTER * (1 + z) ** 3 + 1 - OMEGA_MATTER)

    integral, _ = quad(inverse_expansion, 0.0, redshift, epsabs=0.0, epsrel=1e-13)
    return SPEED_OF_LIGHT_M_S / 1000 / HUBBLE_KM_S_MPC * integral


@cache
def einstein_radius2_per_msun(distances: str) -> float:
    """Squared Einstein radius of one solar mass, arcsec^2: theta^2 = 4 G M / c^2 D_LS / (D_L D_S).

    `deeplense`: luminosity distances and D_LS = D_S - D_L, as DeepLenseSim has it;
    `physical`: angular-diameter distances, D_LS = (chi_S - chi_L) / (1 + z_S).
    """
    check_choice("distances", distances, DISTANCES)
    chi_lens = comoving_distance_mpc(REDSHIFT_LENS)
    chi_source = comoving_distance_mpc(REDSHIFT_SOURCE)
    if distances == "deeplense":
        d_lens = chi_lens * (1 + REDSHIFT_LENS)
        d_source = chi_source * (1 + REDSHIFT_SOURCE)
        d_lens_source = d_source - d_lens
    else:
        d_lens = chi_lens / (1 + REDSHIFT_LENS)
        d_source = chi_source / (1 + REDSHIFT_SOURCE)
        d_lens_source = (chi_source - chi_lens) / (1 + REDSHIFT_SOURCE)
    mass_length_m = 4 * GRAVITATIONAL_CONSTANT * SOLAR_MASS_KG / SPEED_OF_LIGHT_M_S**2
    return RADIAN_ARCSEC**2 * mass_length_m * d_lens_source / (d_lens * d_source * MEGAPARSEC_M)


def einstein_radius2_arcsec2(mass_msun: Real, distances: str = "deeplense") -> Real:
    """Squared Einstein radius of a point mass (arcsec^2), before any rescaling of deflections."""
    return mass_msun * einstein_radius2_per_msun(distances)


def deflection_rescaling(preset: Preset, distances: str) -> float:
    """Factor on every deflection of a preset: DeepLense's for its own distances, else none.

    Einstein radii of `physical` distances already belong to the source's redshift.
    """
    check_choice("distances", distances, DISTANCES)
    return preset.deflection_rescaling if distances == "deeplense" else 1.0
