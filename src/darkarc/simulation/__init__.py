"""Physical parameters to images: deflection fields, substructure, source, instrument, presets.

`simulate` makes images for given parameters, `draw_scenes` and `render` a data set, `model_image`,
`source_plane` and `observe` are the differentiable parts.
"""

from darkarc.simulation.deflection import (
    pixel_axis_arcsec,
    smooth_source_plane,
    subhalo_deflection,
    vortex_deflection,
    vortex_half_length_arcsec,
    vortex_point_arcsec2,
)
from darkarc.simulation.imaging import (
    model_image,
    observe,
    observe_with_gradient,
    render,
    render_keyed,
    source_plane,
)
from darkarc.simulation.interface import simulate
from darkarc.simulation.line_slopes import line_slopes
from darkarc.simulation.noise import add_keyed_noise, add_noise, noise_moments
from darkarc.simulation.presets import (
    DISTANCES,
    NOISES,
    PRESETS,
    Instrument,
    Lens,
    Preset,
    SimulationError,
    Source,
    get_preset,
)
from darkarc.simulation.scenes import Scenes, draw_scenes, n_deviates, scene_columns, scenes_of_deviates
from darkarc.simulation.source import log_peak_flux, psf_matrix

__all__ = [
    "DISTANCES",
    "NOISES",
    "PRESETS",
    "Instrument",
    "Lens",
    "Preset",
    "Scenes",
    "SimulationError",
    "Source",
    "add_keyed_noise",
    "add_noise",
    "draw_scenes",
    "get_preset",
    "line_slopes",
    "log_peak_flux",
    "model_image",
    "n_deviates",
    "noise_moments",
    "observe",
    "observe_with_gradient",
    "pixel_axis_arcsec",
    "psf_matrix",
    "render",
    "render_keyed",
    "scene_columns",
    "scenes_of_deviates",
    "simulate",
    "smooth_source_plane",
    "source_plane",
    "subhalo_deflection",
    "vortex_deflection",
    "vortex_half_length_arcsec",
    "vortex_point_arcsec2",
]
