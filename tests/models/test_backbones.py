import pytest
import torch
import torchvision
from torch import Tensor, nn

from darkarc.config import ModelConfig
from darkarc.models import BACKBONES


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", list(BACKBONES))
@pytest.mark.parametrize("shape", [(64, 64), (33, 47)])
def test_features_have_the_promised_shape(name: str, shape: tuple[int, int]) -> None:
    backbone = BACKBONES[name](ModelConfig(width=0.5), shape).eval()
    assert backbone(torch.randn(2, 1, *shape)).shape == (2, backbone.n_features)


def test_efficientnet_b0_is_torchvisions_but_for_the_stem() -> None:
    ours = BACKBONES["efficientnet_b0"](ModelConfig(), (64, 64))
    theirs = torchvision.models.efficientnet_b0().features
    ours_shapes = [tuple(p.shape) for p in ours.parameters()]
    theirs_shapes = [tuple(p.shape) for p in theirs.parameters()]
    assert ours_shapes[0] == (32, 1, 3, 3) and theirs_shapes[0] == (32, 3, 3, 3)
    assert ours_shapes[1:] == theirs_shapes[1:]


def test_small_images_keep_their_resolution_in_efficientnets_stem() -> None:
    def stem(side: int) -> Tensor:
        backbone = BACKBONES["efficientnet_b0"](ModelConfig(width=0.25), (side, side)).eval()
        return backbone.features[0](torch.zeros(1, 1, side, side))

    assert stem(64).shape[2:] == (64, 64)
    assert stem(150).shape[2:] == (75, 75)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_width_scales_the_parameters(name: str) -> None:
    narrow, wide = (count(BACKBONES[name](ModelConfig(width=w), (64, 64))) for w in (0.5, 1.0))
    assert 2.5 < wide / narrow < 5


@pytest.mark.parametrize("name", list(BACKBONES))
def test_stochastic_depth_draws_in_training_only(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name](ModelConfig(width=0.5, stochastic_depth=0.9), (32, 32))
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            module.momentum = 0.0
    images = torch.randn(4, 1, 32, 32)
    assert not torch.equal(backbone.train()(images), backbone(images))
    assert torch.equal(backbone.eval()(images), backbone(images))
