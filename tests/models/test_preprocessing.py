"""Preprocessing against closed forms, numpy and scikit-learn."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from darkarc.config import ModelConfig
from darkarc.models import Regressor, RegressorSpec, load_regressor, save_regressor
from darkarc.models.preprocessing import STRETCHES, Standardise, StatisticsError
from darkarc.models.smooth_residual import SmoothResidual, principal_components
from darkarc.serving.export import export_onnx

STATISTICS = {"mean": 0.4, "std": 1.3}


def standardise(shape: tuple[int, int] = (16, 16), **model: object) -> Standardise:
    return Standardise(ModelConfig.model_validate(model), STATISTICS, shape)


@pytest.mark.parametrize(
    ("stretch", "formula"),
    [
        ("none", lambda x: x),
        ("asinh", np.arcsinh),
        ("log", lambda x: np.sign(x) * np.log(1 + np.abs(x))),
        ("sqrt", lambda x: np.sign(x) * 2 * (np.sqrt(1 + np.abs(x)) - 1)),
    ],
)
def test_a_stretch_is_its_formula_in_units_of_its_scale(stretch: str, formula: Callable) -> None:
    images = torch.randn(3, 1, 16, 16) * 20
    x = (images.double().numpy() - 0.4) / 1.3
    for scale in (1.0, 3.0):
        found = standardise(stretch=stretch, stretch_scale=scale)(images).numpy()
        assert found == pytest.approx(scale * formula(x / scale), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("stretch", list(STRETCHES))
def test_a_stretch_is_odd_and_leaves_faint_pixels_alone(stretch: str) -> None:
    x = torch.tensor([1e-4, 1.0, 30.0], dtype=torch.float64)
    y = STRETCHES[stretch](x)
    assert torch.equal(STRETCHES[stretch](-x), -y)
    assert float(y[0] / x[0]) == pytest.approx(1, abs=1e-3)
    assert (y <= x).all() and (y.diff() > 0).all()


def test_the_backbone_sees_the_central_square_of_what_was_prepared_whole() -> None:
    images = torch.randn(3, 1, 16, 20)
    options = {"normalisation": "image", "background": "border_median", "stretch": "asinh"}
    whole, made = standardise((16, 20), **options), standardise((16, 20), crop_pixels=12, **options)
    assert torch.equal(made(images), whole(images)[:, :, 2:14, 4:16])
    assert made.seen == (12, 12) and whole.seen == (16, 20)


@pytest.mark.parametrize("side", [18, 13])
def test_a_crop_out_of_the_middle_or_the_image_is_refused(side: int) -> None:
    with pytest.raises(StatisticsError, match=rf"model.crop_pixels is {side}: .* 16 x 20 pixels"):
        standardise((16, 20), crop_pixels=side)


@pytest.mark.parametrize("normalisation", ["dataset", "image"])
def test_the_border_median_becomes_nought(normalisation: str) -> None:
    images = torch.randn(3, 1, 70, 66) * 2 + torch.tensor([0.0, 5.0, -9.0])[:, None, None, None]
    made = standardise((70, 66), background="border_median", normalisation=normalisation)
    found = made(images)[:, 0].double().numpy()
    pixels = images[:, 0].double().numpy()
    border = np.ones((70, 66), dtype=bool)
    border[2:-2, 2:-2] = False  # 1/32 of the shorter side
    for image, standard in zip(pixels, found, strict=True):
        deviation = 1.3 if normalisation == "dataset" else image.std()
        assert standard == pytest.approx((image - np.median(image[border])) / deviation, abs=1e-5)
    lifted = made(images + 17)[:, 0].double().numpy()
    assert lifted == pytest.approx(found, abs=1e-4)


def smooth_images(n: int, rank: int = 4, noise: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randn(rank, 256, generator=generator)
    flat = torch.randn(n, rank, generator=generator) @ patterns + 2
    return (flat + noise * torch.randn(n, 256, generator=generator)).view(n, 1, 16, 16)


def test_the_residual_is_scikit_learns_and_idempotent() -> None:
    from sklearn.decomposition import PCA

    smooth, others = smooth_images(60), torch.randn(30, 1, 16, 16)
    made = SmoothResidual(4, (16, 16))
    made.fit(smooth, others)
    flat = smooth.flatten(1).double().numpy()
    theirs = PCA(4, svd_solver="full").fit(flat)
    x = others.flatten(1).double().numpy()
    rest = x - theirs.inverse_transform(theirs.transform(x))
    deviation = np.sqrt(np.mean(rest**2))
    assert made(others).flatten(1).double().numpy() == pytest.approx(rest / deviation, abs=1e-4)
    assert float(made(others).square().mean()) == pytest.approx(1, abs=1e-4)
    once = made(others) * made.deviation
    twice = made(once + made.centre.view(16, 16)) * made.deviation
    assert twice.numpy() == pytest.approx(once.numpy(), abs=1e-5)
    # Of smooth images only the noise is left, and of the components themselves nothing.
    assert float((made(smooth) * made.deviation).std()) == pytest.approx(0.1, rel=0.1)
    shown = (made.components * 50 + made.centre).view(4, 1, 16, 16)
    assert float(made(shown).abs().max()) < 1e-4


def test_images_of_fewer_dimensions_than_components_are_taken_away_whole() -> None:
    smooth = smooth_images(40, rank=3, noise=0.0).double()
    centred = smooth.flatten(1) - smooth.flatten(1).mean(dim=0)
    components = principal_components(centred, 8)
    assert components.shape[0] < 8
    gram = components @ components.T
    assert gram.numpy() == pytest.approx(np.eye(len(components)), abs=1e-10)
    made = SmoothResidual(8, (16, 16))
    made.fit(smooth, torch.randn(30, 1, 16, 16))
    assert float((made(smooth.float()) * made.deviation).abs().max()) < 1e-4
    assert made.components.shape == (8, 256)  # what weights are loaded into


def test_too_few_smooth_images_are_refused() -> None:
    with pytest.raises(ValueError, match="4 components need more than 4 images"):
        SmoothResidual(4, (16, 16)).fit(smooth_images(4), smooth_images(4))


EVERYTHING = {
    "background": "border_median",
    "stretch": "log",
    "stretch_scale": 2.0,
    "residual": 3,
    "novelty": "none",
}


@pytest.mark.parametrize("normalisation", ["dataset", "image"])
def test_saved_and_exported_the_preprocessing_answers_alike(
    regressor: Callable[..., Regressor], tmp_path: Path, normalisation: str
) -> None:
    from darkarc.serving.onnx_regressor import OnnxRegressor

    made = regressor(normalisation=normalisation, **EVERYTHING)
    assert made.standardise.residual is not None
    made.standardise.residual.fit(smooth_images(20), torch.randn(20, 1, 16, 16))
    images = torch.randn(5, 1, 16, 16) * 3
    answer = made(images)
    loaded = load_regressor(save_regressor(made, tmp_path / "trained"))
    assert torch.equal(loaded(images).density, answer.density)
    exported = OnnxRegressor(export_onnx(made, tmp_path / "model.onnx"))
    assert exported(images).median.numpy() == pytest.approx(answer.median.detach().numpy(), abs=1e-4)


def test_a_regressor_from_before_these_keys_still_loads(spec: Callable[..., RegressorSpec]) -> None:
    tree = json.loads(spec().to_json())
    for key in ("background", "stretch_scale", "residual"):
        del tree["model"][key]
    old = Regressor(RegressorSpec.from_json(json.dumps(tree)))
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(old.standardise(images), (images - 0.4) / 1.3)
