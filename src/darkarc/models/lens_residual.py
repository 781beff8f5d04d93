"""What an image shows beyond its smooth lens: the residual of a fit, as input channels beside the image.

The mass of an axion-like particle moves the pixels of an arc by parts in a thousand and less, beneath a
smooth image that varies with the source's position by its whole range. Both the lens and the source are
known up to that position (DeepLense fixes them), so it is fitted here, inside the model, by a few steps
of Gauss and Newton, and the network looks at what is left, in units of the noise.

Two smooth lenses can be fitted: the main halo with the vortex's mass in its centre (`compact`: the limit of
a heavy particle, whose vortex is a point; what is left is the vortex's length), or the main halo alone
(`bare`: what is left is any substructure).

The `full` fit knows two things more. Where there is no noise it frees the lens's strength, a factor on all
deflections, which DeepLense's sets differ in by parts in a thousand (it follows from the cosmology of the
pyHalo that was installed). And of the compact lens's residual it says what that tells of a short vortex
(`models.vortex_evidence`), as numbers beside the image.

The `robust` fit is the full one, and of noise-free images it draws lone rays in (`models.lone_rays`) before
its last step and adds the source's position to the numbers: how much a vortex moves the arc, and so how well
its length can be told, depends on it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from darkarc.models.lone_rays import LoneRays
from darkarc.models.vortex_evidence import (
    POINT_MASS_LOG10_EV,
    VortexEvidence,
    central,
    quadrupole_fields,
    reach_pixels,
)
from darkarc.models.weighted_fit import fit_pair, orthogonal, share
from darkarc.simulation import (
    NOISES,
    PRESETS,
    Preset,
    get_preset,
    observe,
    observe_with_gradient,
    pixel_axis_arcsec,
    psf_matrix,
    source_plane,
)

LENSES: dict[str, tuple[str, ...]] = {
    "auto": (),
    "none": (),
    "compact": ("compact",),
    "bare": ("bare",),
    "both": ("compact", "bare"),
}
"""`model.lens_residual` -> the smooth lenses that are fitted, each of which gives `CHANNELS` channels.

Training decides what "auto" means for its data and writes that into the specification.
"""

CHANNELS = 3
STEPS = 4
"""Steps of Gauss and Newton, from a node of the grid."""

_NODES = 15  # a side of the grid of source positions that the fit starts from
_COARSE = 16  # pixels a side of the images compared with the grid
_LONGEST_STEP_ARCSEC = 0.05
_STRENGTH = 0.1
"""A fitted factor on the deflections is at most so far from one: a compact lens fitted to an image without
its central mass wants 5% less of all, and is to get it."""
_NOISE_FREE = 1e-4
"""Unit of the residual where the images carry no noise, as a share of the brightest model pixel."""


class LensResidualError(ValueError):
    """A smooth lens that cannot be fitted to such images; the message says what to change."""


class LensResidual(nn.Module):
    """Raw images (B, 1, H, W) of one preset and noise form -> (B, 3, H', W') and facts (B, n_facts) or None.

    Channels: asinh of the residual in units of each pixel's noise, halved; the residual over its own root
    mean square; the natural logarithm of that root mean square, the same in every pixel. Facts: those of
    `VortexEvidence`, with `fit: full` or `robust` and the compact lens; with `robust` and without noise the
    source's position too, in units of the farthest one of the preset. `seen` > 0 fits only that central
    square and as much around it as the point-spread function reaches.
    Raises `LensResidualError` if preset, noise form and shape are not those of known images.
    """

    plane: Tensor
    deflections: Tensor
    nodes: Tensor
    coarse: Tensor
    psf: Tensor

    def __init__(
        self,
        preset: str,
        noise: str,
        distances: str,
        shape: tuple[int, int],
        lens: str = "compact",
        fit: str = "robust",
        seen: int = 0,
    ) -> None:
        super().__init__()
        if preset not in PRESETS or noise not in NOISES or get_preset(preset).instrument.shape != shape:
            raise LensResidualError(
                f"model.lens_residual: expected images of a preset ({', '.join(PRESETS)}) in its own shape "
                f"and a known noise form, found {preset!r}, {noise!r}, {shape[0]} x {shape[1]} pixels: "
                "set it to none"
            )
        self.preset, self.noise = get_preset(preset), noise
        self.counts = self.preset.counts and noise != "none"
        self.factor = self.preset.published_factor if noise == "published" else 1.0
        pixels = self.preset.instrument.pixels
        self.side = min(seen + 2 * reach_pixels(self.preset), pixels) if seen else pixels
        axis = pixel_axis_arcsec(self.preset)
        rays = central(torch.stack(torch.meshgrid(axis, axis, indexing="xy")), self.side)  # x along a row
        plane = central(_smooth_plane(self.preset, distances, lens), self.side)
        # Without noise the residual reaches down to float32's rounding: the last step is in float64.
        self.exact = noise == "none" or (noise == "published" and not self.preset.counts)
        self.register_buffer("plane", plane if self.exact else plane.float(), persistent=False)
        psf = psf_matrix(self.preset.instrument, self.side)
        self.register_buffer("psf", psf if self.exact else psf.float(), persistent=False)
        self.strength_is_free = fit != "source" and self.exact
        self.lone_rays = LoneRays(psf) if fit == "robust" and self.exact else None
        self.evidence: VortexEvidence | None = None
        if fit != "source" and lens == "compact":
            core = not (self.exact or self.counts)
            self.evidence = VortexEvidence(self.preset, distances, self.side, exact=self.exact, core=core)
        self.n_facts = self.evidence.n_facts if self.evidence is not None else 0
        if self.lone_rays is not None and self.n_facts:
            self.n_facts += 2
        # What may be free beside the source: the lens's strength; the quadrupole's two parts at the end.
        fields = torch.cat([(rays - plane)[None], quadrupole_fields(self.preset, distances, self.side)])
        self.register_buffer("deflections", fields if self.exact else fields.float(), persistent=False)
        low, high = self.preset.source.position_arcsec
        self.low, self.high = low - 0.05, high + 0.05
        axis = torch.linspace(low, high, _NODES, dtype=torch.float64)
        nodes = torch.cartesian_prod(axis, axis)
        templates = observe(self.preset, plane[0], plane[1], nodes)
        self.peak = float(templates.max())
        self.register_buffer("nodes", nodes.float(), persistent=False)
        pooled = functional.adaptive_avg_pool2d(templates[:, None], _COARSE).flatten(1)
        self.register_buffer("coarse", pooled.float(), persistent=False)
        self.pool = (
            nn.AdaptiveAvgPool2d(_COARSE)
            if self.side % _COARSE == 0
            else _Pool((self.side, self.side), _COARSE)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        residual, _, facts = self._fit(images)
        rms = residual.square().mean(dim=(1, 2), keepdim=True).clamp_min(1e-12).sqrt()
        level = torch.log(rms).expand_as(residual)
        return torch.stack([_asinh(residual) / 2, residual / rms, level], dim=1), facts

    def fit(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W) -> residual (B, H, W) in units of the noise, and what was fitted, (B, 2) or (B, 3).

        That is the source's position in arcsec, and the lens's strength where that is free.
        """
        residual, fitted, _ = self._fit(images)
        return residual, fitted

    def _fit(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        data = central(images[:, 0], self.side).float() / self.factor  # (B, H, W)
        source, scale = self._start(data)
        strength = torch.ones_like(source[:, :1])
        for step in range(STEPS):
            if step == STEPS - 1 and self.exact:
                data, source, scale, strength = (x.double() for x in (data, source, scale, strength))
            model, slopes = self._model(source, strength, 1 if self.strength_is_free else 0)
            scale, weight = self._scale_and_weight(data, model, scale)
            if step == STEPS - 1 and self.lone_rays is not None:
                data = data - self.lone_rays(data - scale * model)
            change = self._step(data, model, slopes, scale, weight)
            source = (source + change[:, :2]).clamp(self.low, self.high)
            if self.strength_is_free:
                strength = (strength + change[:, 2:]).clamp(1 - _STRENGTH, 1 + _STRENGTH)
        model, slopes = self._model(source, strength, 0 if self.evidence is None else 3)
        scale, weight = self._scale_and_weight(data, model, scale)
        rest, facts = data - scale * model, None
        if self.evidence is not None:
            along_x, along_y, stronger, *unit = (scale[:, None] * slopes).unbind(1)
            free = [along_x, along_y, *([model] if self.counts else [])]
            free += [stronger] if self.strength_is_free else []
            facts = self.evidence(rest, weight, source, free, (unit[0], unit[1]))
            if self.lone_rays is not None:
                facts = torch.cat([facts, source.to(facts.dtype) / self.preset.source.position_arcsec[1]], 1)
        fitted = torch.cat([source, strength], dim=1) if self.strength_is_free else source
        return (rest * weight.sqrt()).float(), fitted.float(), facts

    def _model(self, source: Tensor, strength: Tensor, n_fields: int) -> tuple[Tensor, Tensor]:
        """Images of sources (B, 2) behind lenses of strengths (B, 1), and their (B, 2 + n_fields) slopes."""
        plane, fields = self.plane.to(source.dtype), self.deflections.to(source.dtype)
        x, y = plane[0], plane[1]
        if self.strength_is_free:
            moved = plane - (strength[:, :, None, None] - 1) * fields[0]
            x, y = moved[:, 0], moved[:, 1]
        psf = self.psf if torch.compiler.is_exporting() else None
        return observe_with_gradient(
            self.preset, x, y, source, fields[:n_fields] if n_fields else None, psf=psf
        )

    def _start(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """The best node (B, 2) of the grid, and the scale (B, 1, 1) between model and data there."""
        pooled = self.pool(data[:, None]).flatten(1)  # (B, P)
        overlap, power = pooled @ self.coarse.T, self.coarse.square().sum(dim=1)
        if self.counts:
            best = (overlap.clamp_min(0).square() / power).argmax(dim=1)
            # At least one count, as in every step that follows: an empty image has a fit, too.
            scale = (overlap.gather(1, best[:, None]) / power[best][:, None]).clamp_min(1.0)
        else:
            best = (power - 2 * overlap).argmin(dim=1)
            scale = torch.ones_like(overlap[:, :1])
        return self.nodes[best], scale[:, :, None]

    def _scale_and_weight(self, data: Tensor, model: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Counts a unit of flux (B, 1, 1), fitted where the exposure is not known, and 1 / variance."""
        weight = 1 / self._variance(model, scale)
        if not self.counts:
            return scale, weight
        top, bottom = (weight * data * model).sum(dim=(1, 2)), (weight * model * model).sum(dim=(1, 2))
        return (top / bottom)[:, None, None].clamp_min(1.0), weight

    def _variance(self, model: Tensor, scale: Tensor) -> Tensor:
        """Of each stored pixel (see `simulation.noise`), for model images in counts a second."""
        instrument = self.preset.instrument
        if self.counts:
            photons = 2.0 if self.noise == "published" else 1.0
            assert instrument.background_rms is not None
            return photons * scale * model + (instrument.background_rms * scale).square()
        if self.noise == "physical":
            seconds = instrument.exposures * 10 ** instrument.log10_exposure_s[0]
            return float(instrument.background_sigma(seconds)) ** 2 + model / seconds
        return torch.full_like(model, (_NOISE_FREE * self.peak) ** 2)

    def _step(self, data: Tensor, model: Tensor, slopes: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        """Gauss and Newton's (B, 2), at most `_LONGEST_STEP_ARCSEC`; (B, 3) where the strength is free."""
        rest, (along_x, along_y, *stronger) = data - scale * model, (scale[:, None] * slopes).unbind(1)
        free = [model] if self.counts else []  # the scale: leave what it cannot mend
        step = fit_pair(rest, along_x, along_y, orthogonal([*free, *stronger], weight), weight).found
        step = step.clamp(-_LONGEST_STEP_ARCSEC, _LONGEST_STEP_ARCSEC)
        if not stronger:
            return step
        rest = rest - step[:, :1, None] * along_x - step[:, 1:, None] * along_y
        return torch.cat([step, share(rest, stronger[0], weight)[:, None]], dim=1)


def _asinh(x: Tensor) -> Tensor:
    """The inverse hyperbolic sine; in an exported graph by a logarithm, for runtimes are slow at it.

    Near nought that is good to 1e-7, which is nothing beside noise of one.
    """
    if not torch.compiler.is_exporting():
        return torch.asinh(x)
    size = x.abs()
    return torch.sign(x) * torch.log(size + torch.sqrt(size * size + 1))


class _Pool(nn.Module):
    """Means over about equal squares, for sizes that are no multiple: two matrix products, fit for ONNX."""

    rows: Tensor
    columns: Tensor

    def __init__(self, shape: tuple[int, int], side: int) -> None:
        super().__init__()
        for name, size in zip(("rows", "columns"), shape, strict=True):
            identity = torch.eye(size)[None]
            self.register_buffer(name, functional.adaptive_avg_pool1d(identity, side)[0].T, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.rows @ images @ self.columns.T


def _smooth_plane(preset: Preset, distances: str, lens: str) -> Tensor:
    """(2, H, W) float64 source-plane positions behind a smooth lens, arcsec."""
    if lens == "bare":
        return torch.stack(source_plane(preset, distances=distances))
    x, y = source_plane(
        preset,
        log10_mass_ev=torch.tensor([POINT_MASS_LOG10_EV], dtype=torch.float64),
        angle_rad=torch.zeros(1, dtype=torch.float64),
        distances=distances,
    )
    return torch.stack([x[0], y[0]])
