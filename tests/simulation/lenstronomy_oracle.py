"""The same scenes through lenstronomy: the oracle of the simulator's tests and of its benchmark.

The numbers are written out here once more, from DeepLenseSim and lenstronomy 1.9.2, on purpose: they
must not come from the code under test. Einstein radii come from astropy.
"""

from functools import cache

import numpy as np
from astropy import constants
from astropy import units as u
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.SimulationAPI.sim_api import SimAPI

BANDS = {
    "model_i": {
        "pixel_scale": 0.05,
        "seeing": 0.087,
        "truncation": 3,
        "exposure_time": 1000.0,
        "magnitude_zero_point": 0.0,
        "background_noise": 1e-2,
    },
    "model_ii": {
        "pixel_scale": 0.101,
        "seeing": 0.16,
        "exposure_time": 565.0,
        "num_exposures": 4,
        "sky_brightness": 22.35,
        "magnitude_zero_point": 24.0,
        "read_noise": 4.2,
        "ccd_gain": 3.1,
    },
    "model_iii": {
        "pixel_scale": 0.08,
        "seeing": 0.08,
        "exposure_time": 5400.0,
        "num_exposures": 1,
        "sky_brightness": 22.3,
        "magnitude_zero_point": 25.96,
        "read_noise": 4.0,
        "ccd_gain": 2.5,
    },
}
PIXELS = {"model_i": 150, "model_ii": 64, "model_iii": 64}
PYHALO_COSMOLOGY = FlatLambdaCDM(H0=69.7, Om0=0.2814, Ob0=0.0464)
SERSIC = {"R_sersic": 0.25, "n_sersic": 1, "e1": -0.1, "e2": 0.1}


def distance_ratio(cosmology, z_source):
    chi_lens, chi_source = cosmology.comoving_distance([0.5, z_source])
    return float((chi_source - chi_lens) / chi_source)


@cache
def rescaling(preset):
    """[D_LS / D_S](z = 1.0) / [D_LS / D_S](z = 2.5), which lenstronomy applies for models II and III."""
    if preset == "model_i":
        return 1.0
    return distance_ratio(PYHALO_COSMOLOGY, 1.0) / distance_ratio(PYHALO_COSMOLOGY, 2.5)


@cache
def unit_einstein_radius(distances="deeplense"):
    """Einstein radius of a solar mass in arcsec, as DeepLenseSim's `mass_to_radius` has it."""
    cosmology = FlatLambdaCDM(H0=70, Om0=0.3, Ob0=0.05)
    if distances == "deeplense":
        lens, source = (cosmology.luminosity_distance(z).to(u.m) for z in (0.5, 1.0))
        lens_source = source - lens
    else:
        lens, source = (cosmology.angular_diameter_distance(z).to(u.m) for z in (0.5, 1.0))
        lens_source = source - lens * 1.5 / 2.0
    mass_length = 4 * constants.G * constants.M_sun / constants.c**2
    return float(np.sqrt(mass_length * lens_source / (lens * source))) * 206265


def deflectors(scenes, row, distances="deeplense"):
    """Names and keywords of one scene's lens models, not rescaled."""
    unit = unit_einstein_radius(distances)
    models = [
        ("SIE", {"theta_E": unit * 1e6, "e1": 0.1, "e2": 0.0, "center_x": 0.0, "center_y": 0.0}),
        ("SHEAR", {"gamma1": 0.05, "gamma2": 0.0}),
    ]
    if np.isfinite(scenes.log10_mass_ev[row]):
        half_length = 0.06 / (2 * 10.0 ** scenes.log10_mass_ev[row]) * 1e-22
        masses = np.full(100, 3e8)
        along = np.linspace(-half_length, half_length, 100)
        angle = scenes.angle_rad[row]
        places = np.stack([along * np.cos(angle), along * np.sin(angle)], axis=1)
    else:
        masses, places = 10.0 ** scenes.subhalo_log10_mass_msun[row], scenes.subhalo_arcsec[row]
    for mass, (x, y) in zip(masses, places, strict=True):
        models.append(("POINT_MASS", {"theta_E": unit * np.sqrt(mass), "center_x": x, "center_y": y}))
    return models


def rescaled(models, factor):
    """The same deflectors, every deflection multiplied by `factor`, in a single plane."""
    power = {"SIE": 1.0, "POINT_MASS": 0.5}
    out = []
    for name, keywords in models:
        keywords = dict(keywords)
        if name == "SHEAR":
            keywords |= {k: keywords[k] * factor for k in ("gamma1", "gamma2")}
        else:
            keywords["theta_E"] *= factor ** power[name]
        out.append((name, keywords))
    return out


def single_plane_image(preset, scenes, row, distances="deeplense"):
    """Noise-free image with rescaled deflectors: lenstronomy driven directly."""
    image_model, lens, source = single_plane_model(preset, scenes, row, distances)
    return image_model.image(lens, source)


def single_plane_model(preset, scenes, row, distances="deeplense"):
    """lenstronomy's ImageModel with rescaled deflectors, and the keywords of lenses and source."""
    factor = rescaling(preset) if distances == "deeplense" else 1.0
    models = rescaled(deflectors(scenes, row, distances), factor)
    api = SimAPI(
        PIXELS[preset],
        BANDS[preset],
        {"lens_model_list": [name for name, _ in models], "source_light_model_list": ["SERSIC_ELLIPSE"]},
    )
    return _image_model(preset, api, models, scenes, row)


def deeplense_image(preset, scenes, row):
    """Noise-free image as DeepLenseSim makes it for models II and III: Einstein radii declared for
    z = 2.5 and lenstronomy's own multi-plane rescaling."""
    models = deflectors(scenes, row)
    api = SimAPI(
        PIXELS[preset],
        BANDS[preset],
        {
            "lens_model_list": [name for name, _ in models],
            "lens_redshift_list": [0.5] * len(models),
            "source_light_model_list": ["SERSIC_ELLIPSE"],
            "source_redshift_list": [1.0],
            "cosmo": PYHALO_COSMOLOGY,
            "z_source_convention": 2.5,
            "z_source": 1.0,
        },
    )
    image_model, lens, source = _image_model(preset, api, models, scenes, row)
    return image_model.image(lens, source)


def noise_api(preset, exposure_s):
    """lenstronomy's own noise: `noise_for_model`, `background_noise`, `flux_noise`."""
    band = BANDS[preset] | {"exposure_time": exposure_s / BANDS[preset].get("num_exposures", 1)}
    return SimAPI(PIXELS[preset], band, {})


def _image_model(preset, api, models, scenes, row):
    x, y = scenes.source_arcsec[row]
    source = {**SERSIC, "center_x": x, "center_y": y}
    if preset == "model_i":
        source["amp"] = 20.0
    else:
        _, (source,), _ = api.magnitude2amplitude(None, [{**source, "magnitude": 20.0}])
    image_model = api.image_model_class({"supersampling_factor": 1, "supersampling_convolution": False})
    return image_model, [keywords for _, keywords in models], [source]
