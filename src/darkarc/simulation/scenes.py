"""Physical parameters of lenses and their priors: what is drawn, and from which random stream.

Every sample has random streams of its own, keyed by (seed, class, index): nothing that is computed
beside it can change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from darkarc.config import CLASSES
from darkarc.simulation.presets import Lens, Preset, SimulationError, get_preset

SCENE_STREAM, NOISE_STREAM = 0, 1
_MAX_INDEX = 2**48


@dataclass(frozen=True)
class Scenes:
    """Parameters of N lenses (numpy, float64 but the class); nan where a class has no such thing.

    Shapes: class_index (N,) int64, an index into `CLASSES`; log10_mass_ev, angle_rad, exposure_s (N,);
    source_arcsec (N, 2); subhalo_log10_mass_msun (N, S) and subhalo_arcsec (N, S, 2), nan-padded.
    `exposure_s` is the total of all exposures.
    """

    class_index: np.ndarray
    log10_mass_ev: np.ndarray
    angle_rad: np.ndarray
    source_arcsec: np.ndarray
    subhalo_log10_mass_msun: np.ndarray
    subhalo_arcsec: np.ndarray
    exposure_s: np.ndarray

    def __len__(self) -> int:
        return len(self.class_index)

    def __getitem__(self, which: slice | np.ndarray) -> "Scenes":
        return Scenes(*(getattr(self, field.name)[which] for field in fields(self)))


def random_stream(seed: int, class_index: int, index: int, stream: int) -> np.random.Generator:
    """numpy's Philox keyed by (seed, stream, class, index): counter-based, so streams cannot overlap."""
    key = np.array([seed, stream << 56 | class_index << 48 | index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def class_number(class_name: str) -> int:
    """Index of a class name; raises `SimulationError` for an unknown one."""
    if class_name not in CLASSES:
        raise SimulationError(f"unknown class {class_name!r}: expected one of {', '.join(CLASSES)}")
    return CLASSES.index(class_name)


def draw_scenes(
    preset: str | Preset, class_name: str, seed: int, indices: Sequence[int] | np.ndarray
) -> Scenes:
    """Draw from DeepLense's priors the scenes of the given indices, which need not be consecutive.

    Scene i depends on (seed, class, i) alone; two presets with the same lens share it.
    Raises `SimulationError` for an unknown preset or class, a negative index or seed.
    """
    preset = get_preset(preset)
    number = class_number(class_name)
    check_stream(seed, indices)
    uniform = np.empty((len(indices), n_deviates(preset, class_name)))
    for row, index in enumerate(indices):
        uniform[row] = random_stream(seed, number, int(index), SCENE_STREAM).random(uniform.shape[1])
    return scenes_of_deviates(preset, class_name, uniform)


def n_deviates(preset: str | Preset, class_name: str) -> int:
    """Uniform deviates that a scene of this class takes."""
    return 5 + 3 * (get_preset(preset).lens.subhalos if class_name == "cdm" else 0)


def scenes_of_deviates(preset: str | Preset, class_name: str, uniform: np.ndarray) -> Scenes:
    """Scenes of DeepLense's priors for uniform deviates (N, `n_deviates`) in [0, 1)."""
    preset = get_preset(preset)
    number, lens = class_number(class_name), preset.lens
    n, axion = len(uniform), class_name == "axion"
    subhalos = (uniform.shape[1] - 5) // 3
    low, high = preset.source.position_arcsec
    nowhere = np.full(n, np.nan)
    masses, positions = _subhalos(lens, uniform[:, 5:].reshape(n, 3, subhalos))
    return Scenes(
        class_index=np.full(n, number, dtype=np.int64),
        log10_mass_ev=_between(uniform[:, 3], lens.log10_axion_mass_ev) if axion else nowhere,
        angle_rad=2 * np.pi * uniform[:, 4] if axion else nowhere.copy(),
        source_arcsec=low + (high - low) * uniform[:, :2],
        subhalo_log10_mass_msun=masses,
        subhalo_arcsec=positions,
        exposure_s=total_exposure_s(preset, uniform[:, 2]),
    )


def scene_columns(scenes: Scenes, class_name: str) -> dict[str, np.ndarray]:
    """Columns (N,) of the sample table that scenes of one class fix; nan, or absent, where null."""
    columns = {
        "log10_axion_mass_ev": scenes.log10_mass_ev,
        "vortex_angle_rad": scenes.angle_rad,
        "source_x_arcsec": scenes.source_arcsec[:, 0],
        "source_y_arcsec": scenes.source_arcsec[:, 1],
    }
    if class_name == "cdm":
        masses = scenes.subhalo_log10_mass_msun
        columns["log10_subhalo_mass_msun"] = np.log10((10.0**masses).sum(axis=1))
        columns["n_subhalos"] = np.full(len(masses), masses.shape[1])
    return columns


def total_exposure_s(preset: Preset, uniform: np.ndarray) -> np.ndarray:
    """Total exposure time in seconds for uniform deviates (N,)."""
    return preset.instrument.exposures * 10 ** _between(uniform, preset.instrument.log10_exposure_s)


def check_stream(seed: int, indices: Sequence[int] | np.ndarray) -> None:
    """Raise `SimulationError` for a seed or an index that the random streams cannot hold."""
    if not 0 <= seed < 2**63:
        raise SimulationError(f"seed={seed}: expected an integer from 0 to 2^63 - 1")
    if len(indices) and not (int(np.min(indices)) >= 0 and int(np.max(indices)) < _MAX_INDEX):
        raise SimulationError(f"sample indices must lie in 0 ... {_MAX_INDEX - 1}")


def _between(uniform: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    return ends[0] + (ends[1] - ends[0]) * uniform


def _subhalos(lens: Lens, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log10 masses (N, S) and positions (N, S, 2) from deviates (N, 3, S): mass, radius, angle."""
    power = 1 + lens.subhalo_slope
    low, high = (mass**power for mass in lens.subhalo_mass_msun)
    log10_mass = np.log10(_between(uniform[:, 0], (low, high))) / power
    radius, angle = _between(uniform[:, 1], lens.subhalo_radius_arcsec), 2 * np.pi * uniform[:, 2]
    return log10_mass, np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=-1)
