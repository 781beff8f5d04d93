"""Whole images: golden and real files, lenstronomy, bits, gradients."""

from dataclasses import replace
from pathlib import Path

import lenstronomy_oracle as oracle
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from darkarc.data.deeplense import read_deeplense
from darkarc.simulation import (
    PRESETS,
    Scenes,
    SimulationError,
    draw_scenes,
    model_image,
    observe,
    observe_with_gradient,
    render,
    simulate,
    source_plane,
)

CLASSES = ("axion", "cdm", "no_sub")
TOLERANCE = {"float64": 1e-11, "float32": 2e-5}


def joined(*parts: Scenes) -> Scenes:
    """Scenes of several classes in one batch, subhaloes padded with nan."""
    most = max(part.subhalo_log10_mass_msun.shape[1] for part in parts)

    def padded(array: np.ndarray) -> np.ndarray:
        widths = [(0, 0), (0, most - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]
        return np.pad(array, widths, constant_values=np.nan)

    fields = {}
    for name in Scenes.__dataclass_fields__:
        arrays = [getattr(part, name) for part in parts]
        fields[name] = np.concatenate([padded(a) if name.startswith("subhalo") else a for a in arrays])
    return Scenes(**fields)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("class_name", CLASSES)
def test_fifty_scenes_against_lenstronomy(preset: str, class_name: str) -> None:
    """Largest relative difference of any pixel, however faint, from lenstronomy's value there."""
    scenes = draw_scenes(preset, class_name, 11, range(50))
    expected = np.stack([oracle.single_plane_image(preset, scenes, row) for row in range(50)])
    for dtype, tolerance in TOLERANCE.items():
        ours = render(preset, scenes, dtype=dtype).double().numpy()
        assert np.abs(ours / expected - 1).max() < tolerance


@pytest.mark.filterwarnings("ignore:Cosmology is provided")
@pytest.mark.parametrize("preset", ["model_ii", "model_iii"])
def test_rescaling_is_deeplenses(preset: str) -> None:
    """lenstronomy as DeepLenseSim calls it: redshifts, z_source_convention 2.5, pyHalo's cosmology."""
    for class_name in CLASSES:
        scenes = draw_scenes(preset, class_name, 12, range(2))
        expected = np.stack([oracle.deeplense_image(preset, scenes, row) for row in range(2)])
        assert np.abs(render(preset, scenes, dtype="float64").numpy() / expected - 1).max() < 1e-11


@pytest.mark.parametrize("preset", PRESETS)
def test_physical_distances_against_lenstronomy(preset: str) -> None:
    scenes = joined(*(draw_scenes(preset, name, 13, range(2)) for name in CLASSES))
    ours = render(preset, scenes, distances="physical", dtype="float64").numpy()
    for row in range(len(scenes)):
        part = scenes[row : row + 1]
        if part.class_index[0] != 1:
            part = replace(part, subhalo_log10_mass_msun=np.empty((1, 0)), subhalo_arcsec=np.empty((1, 0, 2)))
        expected = oracle.single_plane_image(preset, part, 0, "physical")
        assert np.abs(ours[row] / expected - 1).max() < 1e-11


@pytest.mark.shared
def test_golden_files(shared: Path) -> None:
    axion = simulate(
        "model_iii",
        log10_mass_ev=[-23.841796459742202],
        angle_rad=[2.7770049525093032],
        source_arcsec=[[-0.06561635832087043, 0.07501358795409431]],
    )[0]
    no_sub = simulate("model_iii", source_arcsec=[[-0.06169957, 0.08446788]])[0]
    for image, name, tolerance in [(axion, "axion", 1e-13), (no_sub, "nosub", 1e-8)]:
        golden = np.load(shared / "golden" / f"model_iii_{name}.npy", allow_pickle=False)
        assert np.sqrt(np.mean((image / image.max() - golden) ** 2)) < tolerance


@pytest.mark.shared
def test_real_model_ii_files_are_reproduced(shared: Path) -> None:
    """Only angle and source of a published file are unknown: fitted, nothing but rounding is left.

    Those files were made with another cosmology behind the rescaling of deflections.
    """
    preset = replace(PRESETS["model_ii"], deflection_rescaling=0.6334579710123897)
    rng = np.random.default_rng(0)
    starts = rng.uniform(size=(400, 3)) * [np.pi, 0.7, 0.7] - [0, 0.35, 0.35]
    for path in sorted((shared / "deeplense_sample/Model_II/axion").glob("*.npy"))[:3]:
        sample = read_deeplense(path)
        mass = torch.tensor([sample.log10_mass_ev], dtype=torch.float64)

        def residual(p: np.ndarray, image=sample.image, mass=mass) -> np.ndarray:
            parameters = torch.from_numpy(np.atleast_2d(p))
            model = model_image(
                preset,
                parameters[:, 1:],
                log10_mass_ev=mass.expand(len(parameters)),
                angle_rad=parameters[:, 0],
            )
            return (2 * model.numpy() - image).reshape(len(parameters), -1)

        best = np.argsort((residual(starts) ** 2).sum(1))[:3]
        fits = [
            least_squares(lambda p: residual(p)[0], starts[k], xtol=1e-15, ftol=1e-15, gtol=1e-15)
            for k in best
        ]
        rms = min(np.sqrt(np.mean(fit.fun**2)) for fit in fits)
        assert rms / sample.image.max() < 1e-13


@pytest.mark.parametrize("preset", ["model_i", "model_iii"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("noise", ["none", "physical"])
def test_bits_do_not_depend_on_the_batch(preset: str, dtype: str, noise: str) -> None:
    """Alone, in an odd batch, beside other classes, shuffled: the same bits."""
    scenes = joined(*(draw_scenes(preset, name, 2, range(37)) for name in CLASSES))
    numbers = np.tile(np.arange(37), 3)
    arguments = {"noise": noise, "dtype": dtype, "seed": 2}
    whole = render(preset, scenes, indices=numbers, **arguments)
    order = np.random.default_rng(0).permutation(len(scenes))
    shuffled = render(preset, scenes[order], indices=numbers[order], **arguments)
    assert torch.equal(shuffled, whole[torch.from_numpy(order)])
    for rows in ([0], [36], [36, 37], [40], [80, 5, 3, 74, 75, 110]):
        assert torch.equal(
            render(preset, scenes[np.array(rows)], indices=numbers[rows], **arguments), whole[rows]
        )
    unpadded = draw_scenes(preset, "axion", 2, [7])
    assert torch.equal(render(preset, unpadded, indices=[7], **arguments)[0], whole[7])


def test_bits_do_not_depend_on_threads() -> None:
    scenes = draw_scenes("model_ii", "axion", 4, range(40))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = render("model_ii", scenes)
        torch.set_num_threads(2)
        assert torch.equal(render("model_ii", scenes), one)
    finally:
        torch.set_num_threads(threads)


def test_one_plane_serves_many_sources() -> None:
    plane = source_plane(
        "model_iii",
        log10_mass_ev=torch.tensor([-23.5], dtype=torch.float64),
        angle_rad=torch.tensor([0.3], dtype=torch.float64),
    )
    sources = torch.tensor([[0.1, 0.2], [-0.3, 0.05], [0.0, 0.0]], dtype=torch.float64)
    images = observe("model_iii", plane[0][0], plane[1][0], sources)
    assert images.shape == (3, 64, 64)
    for image, source in zip(images, sources, strict=True):
        alone = simulate("model_iii", log10_mass_ev=-23.5, angle_rad=0.3, source_arcsec=source)
        assert np.array_equal(image.numpy(), alone[0])


@pytest.mark.parametrize("preset", ["model_i", "model_iii"])
def test_gradient_of_the_image(preset: str) -> None:
    """Autograd against central differences, for mass, angle and source."""
    start = torch.tensor([-23.4, 0.8, 0.12, -0.2], dtype=torch.float64)

    def image(p: torch.Tensor) -> torch.Tensor:
        return model_image(preset, p[None, 2:], log10_mass_ev=p[:1], angle_rad=p[1:2])[0]

    weights = torch.randn(PRESETS[preset].instrument.shape, dtype=torch.float64)
    leaf = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((image(leaf) * weights).sum(), leaf)
    for k, step in enumerate(1e-6 * torch.eye(4, dtype=torch.float64)):
        difference = (image(start + step) - image(start - step)) / 2e-6
        assert difference.abs().max() > 1e-4
        error = gradient[k] - (difference * weights).sum()
        assert error.abs() < 1e-5 * torch.linalg.vector_norm(difference)


def test_gradient_of_subhaloes() -> None:
    mass = torch.tensor([[9.3, 8.8, torch.nan]], dtype=torch.float64, requires_grad=True)
    place = torch.tensor([[[0.61, 0.5], [-0.7, 0.33], [torch.nan] * 2]], dtype=torch.float64)
    source = torch.tensor([[0.1, -0.1]], dtype=torch.float64)
    image = model_image("model_iii", source, subhalo_log10_mass_msun=mass, subhalo_arcsec=place)
    (gradient,) = torch.autograd.grad(image[0, 40, 38], mass)
    assert gradient[0, 2] == 0 and (gradient[0, :2].abs() > 0).all() and torch.isfinite(gradient).all()


@pytest.mark.gpu
def test_gpu_gives_the_cpus_images() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    scenes = joined(*(draw_scenes("model_iii", name, 2, range(5)) for name in CLASSES))
    for dtype, tolerance in TOLERANCE.items():
        cpu, gpu = (
            render("model_iii", scenes, dtype=dtype, device=device).double() for device in ("cpu", "cuda")
        )
        assert (gpu / cpu - 1).abs().max() < tolerance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": "some"}, "noise='some'.*none, published, physical"),
        ({"distances": "near"}, "distances='near'"),
        ({"dtype": "float16"}, "dtype='float16'.*float32, float64"),
        ({"dtype": torch.float16}, "float32 or float64"),
        ({"indices": [1]}, "1 indices for 2 scenes"),
    ],
)
def test_bad_requests_are_named(arguments, message: str) -> None:
    scenes = draw_scenes("model_ii", "no_sub", 0, range(2))
    with pytest.raises(SimulationError, match=message):
        render("model_ii", scenes, **arguments)


@pytest.mark.parametrize("name", PRESETS)
def test_the_closed_form_gradient_of_the_source_is_autograds(name: str) -> None:
    scenes = draw_scenes(name, "axion", 4, range(2))
    plane = source_plane(
        name,
        log10_mass_ev=torch.from_numpy(scenes.log10_mass_ev),
        angle_rad=torch.from_numpy(scenes.angle_rad),
    )
    place = torch.from_numpy(scenes.source_arcsec)
    image, gradient = observe_with_gradient(name, *plane, place)
    assert (image - observe(name, *plane, place)).abs().max() < 1e-12 * image.max()
    for axis in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[axis] = 1.0
        _, expected = torch.func.jvp(lambda s: observe(name, *plane, s), (place,), (step.expand(2, 2),))
        assert (gradient[:, axis] - expected).abs().max() < 1e-10 * expected.abs().max()


def test_a_window_holds_the_rays_of_the_whole_plane_and_refuses_subhaloes() -> None:
    rows, columns = torch.tensor([0, 31, 32, 63]), torch.tensor([5, 6, 40])
    vortex = {
        "log10_mass_ev": torch.tensor([-22.4, -23.6]).double(),
        "angle_rad": torch.tensor([0.3, 2.0]).double(),
    }
    whole = source_plane("model_iii", **vortex)
    part = source_plane("model_iii", **vortex, window=(rows, columns))
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(other, one[:, rows][:, :, columns], rtol=0, atol=1e-12)
    with pytest.raises(SimulationError, match="window"):
        source_plane(
            "model_iii",
            subhalo_log10_mass_msun=torch.zeros(1, 1).double(),
            subhalo_arcsec=torch.ones(1, 1, 2).double(),
            window=(rows, columns),
        )
