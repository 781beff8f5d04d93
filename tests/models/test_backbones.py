"""Every backbone keeps the same promises, and what it cannot honour it refuses by name."""

import hashlib
from collections import Counter
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from darkarc.config import ModelConfig
from darkarc.models import BACKBONES, Backbone, BackboneError
from darkarc.models.backbones._layers import DropBlock, SubsampledPointwise

NAMES = list(BACKBONES)


def build(name: str, side: int = 64, in_channels: int = 1, **options: Any) -> Backbone:
    torch.manual_seed(3)
    model = ModelConfig(backbone=name, **{"width": 0.25, **options})
    return BACKBONES[name](model, (side, side), in_channels)


def disturbed(backbone: Backbone) -> Backbone:
    """Every weight moved a little, so that none is hidden behind a scale that starts at zero."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return backbone


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_in_float32_and_bfloat16_and_answers_the_same_twice(name: str) -> None:
    backbone = disturbed(build(name)).to(memory_format=torch.channels_last).train()
    images, direction = torch.randn(4, 1, 64, 64), torch.randn(4, backbone.n_features)

    def loss() -> Tensor:
        features = backbone(images)
        assert features.shape == (4, backbone.n_features)
        return (features.float() * direction).mean() + (features.float() ** 2).mean()

    before = loss()
    before.backward()
    gradients = {key: parameter.grad for key, parameter in backbone.named_parameters()}
    unreached = [key for key, g in gradients.items() if g is None or not bool((g != 0).any())]
    assert not unreached
    slope = sum(float((g**2).sum()) for g in gradients.values() if g is not None)
    with torch.no_grad():
        for key, parameter in backbone.named_parameters():
            parameter -= 1e-2 * before.detach().abs() / slope * gradients[key]
        assert loss() < before, "a step down the gradient lowers the loss"
    backbone.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in backbone.parameters())
    with torch.inference_mode():
        answer = backbone.eval()(images)
        assert answer.isfinite().all() and torch.equal(answer, backbone(images))
        alone = backbone(images[:1])
    torch.testing.assert_close(alone, answer[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_rates_draw_in_training_only_and_change_no_weight(name: str) -> None:
    recipe, images = BACKBONES[name], torch.randn(4, 1, 32, 32)
    plain = disturbed(build(name, 32))
    offered = [("stochastic_depth", 0.9)] * recipe.stochastic_depth + [
        ("drop_block", 0.4)
    ] * recipe.drop_block
    for key, rate in offered:
        dropping = disturbed(build(name, 32, **{key: rate}))
        for (a, ours), (b, theirs) in zip(plain.named_parameters(), dropping.named_parameters(), strict=True):
            assert a == b and torch.equal(ours, theirs)
        assert plain.state_dict().keys() == dropping.state_dict().keys()
        with torch.no_grad():
            assert torch.equal(plain.eval()(images), dropping.eval()(images)), key
            assert not torch.equal(dropping.train()(images), dropping(images)), key
    with torch.no_grad():
        plain.train()
        assert torch.equal(plain(images), plain(images))


def norms_of(backbone: Backbone) -> set[str]:
    return {
        "batch"
        if isinstance(module, _BatchNorm)
        else "group"
        if isinstance(module, nn.GroupNorm)
        else "layer"
        for module in backbone.modules()
        if isinstance(module, _BatchNorm | nn.GroupNorm | nn.LayerNorm)
        or type(module).__name__ == "_PixelNorm"
    }


@pytest.mark.parametrize("name", [name for name in NAMES if len(BACKBONES[name].norms) > 1])
def test_the_normalisation_is_the_chosen_one(name: str) -> None:
    images = torch.randn(2, 1, 32, 32)
    assert norms_of(build(name, 32)) == {"batch"}
    answers = []
    for norm in BACKBONES[name].norms:
        backbone = build(name, 32, norm=norm).train()
        expected = {norm, "group"} if (name, norm) == ("resnet18_cbam", "layer") else {norm}
        assert norms_of(backbone) == expected
        with torch.no_grad():
            answers.append(backbone(images))
    for i, answer in enumerate(answers):
        assert answer.isfinite().all()
        assert all(not torch.allclose(answer, other) for other in answers[:i])


@pytest.mark.parametrize("name", ["vit_tiny", "swin_tiny", "convnext_femto"])
def test_transformers_normalise_layers(name: str) -> None:
    assert norms_of(build(name)) == norms_of(build(name, norm="layer")) == {"layer"}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vit_tiny", {"drop_block": 0.1}, r"model\.drop_block: vit_tiny has no .* set it to 0, found 0\.1"),
        ("arc_graph", {"drop_block": 0.1}, r"model\.drop_block: arc_graph"),
        ("swin_tiny", {"norm": "batch"}, r"model\.norm: swin_tiny cannot have batch.* native or layer"),
        ("convnext_tiny", {"norm": "group"}, r"model\.norm: convnext_tiny cannot have group"),
        ("arc_graph", {"norm": "group"}, r"model\.norm: arc_graph .* native or batch or layer"),
        (
            "maxvit_pico",
            {"norm": "layer"},
            r"model\.norm: maxvit_pico cannot have layer .* set it to native$",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BackboneError, match=said):
        build(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_any_shape_and_number_of_channels(name: str) -> None:
    shape = (37, 37) if BACKBONES[name].symmetric else (33, 47)
    backbone = BACKBONES[name](ModelConfig(backbone=name, width=0.25), shape, 3).eval()
    images = torch.randn(2, 3, *shape)
    with torch.inference_mode():
        answer = backbone(images)
        assert answer.shape == (2, backbone.n_features) and answer.isfinite().all()
        images[:, 2] += torch.randn(shape)
        assert not torch.equal(backbone(images), answer), "every channel counts"
    if BACKBONES[name].symmetric:
        with pytest.raises(BackboneError, match="square images, found 33 x 47 pixels"):
            BACKBONES[name](ModelConfig(backbone=name), (33, 47))


def shapes(module: nn.Module) -> Counter[tuple[int, ...]]:
    return Counter(tuple(p.shape) for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("resnet18", (64, 1, 7, 7)),
        ("resnet34", (64, 1, 7, 7)),
        ("resnet50", (64, 1, 7, 7)),
        ("efficientnet_b0", (32, 1, 3, 3)),
        ("efficientnet_v2_s", (24, 1, 3, 3)),
        ("mobilenet_v3_small", (16, 1, 3, 3)),
        ("mobilenet_v3_large", (16, 1, 3, 3)),
        ("regnet_y_400mf", (32, 1, 3, 3)),
    ],
)
def test_weights_are_torchvisions_but_for_the_stem(name: str, stem: tuple[int, ...]) -> None:
    ours = shapes(build(name, width=1.0))
    theirs = getattr(torchvision.models, name)()
    for head in ("fc", "classifier"):
        setattr(theirs, head, nn.Identity())
    assert list((ours - shapes(theirs)).elements()) == [stem]
    assert list((shapes(theirs) - ours).elements()) == [(stem[0], 3, *stem[2:])]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("vit_tiny", "vit_tiny_patch16_224"),
        ("swin_tiny", "swin_tiny_patch4_window7_224"),
        ("coatnet_pico", "coatnet_pico_rw_224"),
        ("maxvit_pico", "maxvit_pico_rw_256"),
        ("convnext_femto", "convnext_femto"),
        ("convnext_tiny", "convnext_tiny"),
        ("resnet18_d", "resnet18d"),
        ("resnet50_d", "resnet50d"),
    ],
)
def test_blocks_are_timms(name: str, published: str) -> None:
    """The image's size changes the stem, the positions, and nothing else."""
    import timm

    def blocks(network: nn.Module) -> dict[str, tuple[int, ...]]:
        named = {key: tuple(p.shape) for key, p in network.named_parameters() if "position" not in key}
        return {key: s for key, s in named.items() if key.startswith(("blocks.", "stages.", "layer"))}

    ours = blocks(build(name, width=1.0).network)
    assert len(ours) > 40
    # Of this one timm writes the same matrices as 1x1 convolutions.
    linear = {"conv_mlp": False} if name == "convnext_femto" else {}
    assert ours == blocks(timm.create_model(published, pretrained=False, num_classes=0, **linear))


def test_small_images_keep_their_resolution() -> None:
    def first(name: str, side: int) -> Tensor:
        backbone = build(name, side).eval()
        stage = next(m for key, m in backbone.named_modules() if key in ("network.layer1", "features.0"))
        seen: list[Tensor] = []
        stage.register_forward_hook(lambda module, inputs, output: seen.append(output))
        with torch.inference_mode():
            backbone(torch.zeros(1, 1, side, side))
        return seen[0].shape[2:]

    assert first("efficientnet_b0", 64) == (64, 64) and first("efficientnet_b0", 150) == (75, 75)
    assert first("resnet18", 64) == (32, 32) and first("resnet18", 150) == (38, 38)


@pytest.mark.parametrize(
    ("name", "small", "large"),
    [
        ("vit_tiny", 8, 10),
        ("swin_tiny", 2, 4),
        ("coatnet_pico", 1, 2),
        ("maxvit_pico", 1, 2),
        ("cvt_13", 2, 4),
        ("convnext_femto", 2, 4),
    ],
)
def test_large_images_get_the_coarser_stem(name: str, small: int, large: int) -> None:
    for side, step in ((64, small), (150, large)):
        backbone = disturbed(build(name, side)).eval()
        stem = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 1)
        assert stem.stride == (step, step)
    assert answers_large_images(backbone)


def test_the_graph_of_large_images_has_more_nodes() -> None:
    assert [build("arc_graph", side).n_nodes for side in (64, 150)] == [256, 512]
    assert answers_large_images(disturbed(build("arc_graph", 150)).eval())


def answers_large_images(backbone: Backbone) -> bool:
    with torch.inference_mode():
        features = backbone(torch.randn(2, 1, 150, 150))
    whole = features.shape == (2, backbone.n_features) and bool(features.isfinite().all())
    return whole and not torch.allclose(features[0], features[1])


@pytest.mark.parametrize("name", NAMES)
def test_width_scales_the_parameters(name: str) -> None:
    narrow, wide = (count(build(name, width=width)) for width in (0.25, 0.5))
    assert 2.0 < wide / narrow < 5


@pytest.mark.parametrize(
    ("name", "n_features", "keys"),
    [("small_resnet", 96, "7158183156a417f4"), ("efficientnet_b0", 1280, "516804d46cf336f7")],
)
def test_weights_of_older_versions_fit(name: str, n_features: int, keys: str) -> None:
    """Names and shapes of the weights, as regressors on disk have them."""
    backbone = build(name, width=1.0)
    lines = "\n".join(f"{key} {tuple(value.shape)}" for key, value in backbone.state_dict().items())
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == keys
    assert backbone.n_features == n_features


def test_drop_block_blanks_its_share_in_patches() -> None:
    torch.manual_seed(0)
    layer, maps = DropBlock(0.2), torch.ones(64, 8, 14, 14)
    dropped = layer.train()(maps)
    blank = dropped == 0
    assert 0.14 < blank.float().mean() < 0.22, "overlapping patches blank a little less than the rate"
    assert dropped.mean() == pytest.approx(1.0, abs=1e-3)
    patches = nn.functional.avg_pool2d(blank.float(), 5, 1) > 0.99
    covered = nn.functional.max_pool2d(nn.functional.pad(patches.float(), [4] * 4), 5, 1)
    assert torch.equal(covered > 0, blank), "every blank pixel lies in a blank 5x5 patch"
    assert layer.eval()(maps) is maps


def test_a_subsampled_pointwise_convolution_is_the_strided_one() -> None:
    strided = nn.Conv2d(4, 6, 1, 2)
    for side in (8, 9):
        images = torch.randn(2, 4, side, side)
        torch.testing.assert_close(SubsampledPointwise(strided)(images), strided(images))
