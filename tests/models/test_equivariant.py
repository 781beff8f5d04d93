"""The answer of the D4 net knows nothing of how an image is turned or mirrored, to rounding."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from darkarc.config import ModelConfig
from darkarc.models import BACKBONES, Backbone, Regressor, RegressorError, RegressorSpec
from darkarc.models.backbones.equivariant import FieldConvolution, act, halve

ELEMENTS = range(8)


def trained(backbone: Backbone, images: Tensor) -> Backbone:
    """Random weights, and batch statistics of the images, in evaluation mode."""
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for module in backbone.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = 1.0
        backbone.train()(images)
    return backbone.eval()


def test_the_eight_symmetries_are_a_group_and_all_different() -> None:
    square = torch.arange(9).reshape(3, 3)
    images = [act(element, square) for element in ELEMENTS]
    assert len({tuple(image.flatten().tolist()) for image in images}) == 8
    for image in images:
        again = [act(element, image) for element in ELEMENTS]
        assert all(any(torch.equal(a, b) for b in images) for a in again)


@pytest.mark.parametrize("side", [32, 33, 75])
@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
def test_features_are_invariant_to_rounding(norm: str, side: int) -> None:
    model = ModelConfig(backbone="d4_resnet", width=0.5, norm=norm)
    images = torch.randn(2, 1, side, side, dtype=torch.float64)
    backbone = trained(BACKBONES["d4_resnet"](model, (side, side)).double(), images)
    with torch.inference_mode():
        features = backbone(images)
        for element in ELEMENTS:
            difference = (backbone(act(element, images)) - features).abs().max()
            assert difference < 1e-12 * features.abs().max()
    assert (features[0] - features[1]).abs().max() > 1e-3, "different images have different features"


def test_another_backbone_is_not_invariant() -> None:
    images = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    backbone = trained(BACKBONES["small_resnet"](ModelConfig(), (32, 32)).double(), images)
    with torch.inference_mode():
        assert (backbone(act(1, images)) - backbone(images)).abs().max() > 1e-2


def test_fields_turn_with_the_image() -> None:
    """Equivariance inside: turned input, turned maps, permuted symmetries."""
    torch.manual_seed(0)
    lift = FieldConvolution(1, 2, 6, group=1, stride=2, padding=2).double()
    convolve = FieldConvolution(2, 3, 3, padding=1).double()
    images = torch.randn(1, 1, 16, 16, dtype=torch.float64)

    def maps(turned: Tensor) -> Tensor:
        return halve(torch.relu(convolve(torch.relu(lift(turned))))).unflatten(1, (3, 8))

    with torch.inference_mode():
        expected = maps(images)
        for element in ELEMENTS:
            found = maps(act(element, images))
            for g in ELEMENTS:
                turned = act(element, expected[:, :, g])
                matches = [bool((found[:, :, h] - turned).abs().max() < 1e-12) for h in ELEMENTS]
                assert sum(matches) == 1


def test_a_regressors_posterior_is_the_same_for_a_turned_image(regressor: Callable[..., Regressor]) -> None:
    made = regressor(backbone="d4_resnet", width=1.0, shape=(64, 64), bins=64, recalibration="none")
    images = torch.randn(3, 1, 64, 64) * 2 + 1
    trained(made.backbone, made.standardise(images))
    posterior = made.predict(images)
    assert np.ptp(posterior.median) > 1e-3
    for element in ELEMENTS:
        turned = made.predict(act(element, images))
        np.testing.assert_allclose(turned.density, posterior.density, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(turned.median, posterior.median, atol=1e-5)
        np.testing.assert_allclose(turned.class_probability, posterior.class_probability, atol=1e-5)


def test_the_residual_of_an_oriented_lens_stays_out() -> None:
    from darkarc.config import Config
    from darkarc.training.assembly import lens_residual

    def chosen(backbone: str) -> str:
        config = Config()
        model = config.model.model_copy(update={"backbone": backbone})
        train = config.train.model_copy(update={"dihedral": "none"})
        form = {"preset": "model_iii", "noise": "physical", "distances": "deeplense"}
        return lens_residual(config.model_copy(update={"model": model, "train": train}), form)

    assert chosen("d4_resnet") == "none" and chosen("small_resnet") == "compact"


@pytest.mark.parametrize("option", [{"lens_residual": "compact"}, {"residual": 2}, {"vortex_fit": True}])
def test_what_has_a_lenss_orientation_is_refused(spec: Callable[..., RegressorSpec], option: dict) -> None:
    name = next(iter(option))
    with pytest.raises(RegressorError, match=rf"model\.{name}: .* take another model\.backbone"):
        Regressor(spec(backbone="d4_resnet", **option))


def test_a_vortex_fitted_behind_an_upright_lens_is_not_invariant() -> None:
    """Why `vortex_fit` is among them: turned, the very image gets another fit."""
    from darkarc import simulate
    from darkarc.models import Grid
    from darkarc.models.vortex_fit import VortexFit

    images = simulate("model_iii", log10_mass_ev=[-23.3], angle_rad=[1.0], source_arcsec=[[0.1, 0.1]], seed=0)
    form = {"preset": "model_iii", "noise": "physical", "distances": "deeplense"}
    fit = VortexFit(4, form, (64, 64), Grid(-24.0, -22.0, 64))
    upright, turned = (
        fit.measure(act(element, torch.from_numpy(images)[:, None]), torch.zeros(1, 4), torch.zeros(1, 64))
        for element in (0, 1)
    )
    assert abs(upright[0, 0] - turned[0, 0]) > 0.01, "log10 of the fitted mass"
