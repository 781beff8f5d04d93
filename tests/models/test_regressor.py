import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from darkarc.models import (
    BACKBONES,
    HEADS,
    QUANTILE_LEVELS,
    Posterior,
    Regressor,
    RegressorError,
    RegressorSpec,
    load_regressor,
    save_regressor,
)

Make = Callable[..., Regressor]
TWO = {"log10_axion_mass_ev": (-24.0, -22.0), "log10_subhalo_mass_msun": (7.0, 11.0)}


@pytest.mark.parametrize("head", list(HEADS))
def test_quantiles_in_the_network_are_the_posteriors(regressor: Make, head: str) -> None:
    made = regressor(head=head)
    made.target_layer.weight.data *= 100  # peaked and ragged densities too
    images = torch.randn(40, 1, 16, 16)
    prediction = made(images)
    posterior = made.predict(images)
    density = prediction.density[:, 0].detach().numpy()
    again = Posterior(made.edges(), density, posterior.class_probability, made.targets[0])
    assert prediction.median[:, 0].detach().numpy() == pytest.approx(again.median, abs=1e-5)
    expected = again.quantile(QUANTILE_LEVELS)
    assert prediction.quantiles[:, 0].detach().numpy() == pytest.approx(expected, abs=1e-5)
    assert posterior.median == pytest.approx(again.median, abs=1e-9)
    assert posterior.median.std() > 0.01


def test_untrained_it_answers_with_the_prior(spec: Callable[..., RegressorSpec]) -> None:
    posterior = Regressor(spec()).predict(np.random.default_rng(0).normal(size=(3, 16, 16)))
    assert posterior.density == pytest.approx(np.full((3, 256), 0.5))
    assert posterior.median == pytest.approx(np.full(3, -23.0))
    assert posterior.class_probability == pytest.approx(np.full((3, 3), 1 / 3))


def test_two_targets_have_their_own_grids(regressor: Make) -> None:
    made = regressor(targets=TWO)
    images = torch.randn(3, 1, 16, 16)
    prediction = made(images)
    assert prediction.density.shape == (3, 2, 256) and prediction.quantiles.shape == (3, 2, 4)
    subhalo = made.predict(images, target="log10_subhalo_mass_msun")
    assert subhalo.edges[[0, -1]].tolist() == [7.0, 11.0]
    assert subhalo.median == pytest.approx(prediction.median[:, 1].detach().numpy(), abs=1e-4)
    with pytest.raises(RegressorError, match="not 'spin'"):
        made.predict(images, target="spin")


@pytest.mark.parametrize(
    "dtype", ["int16", "uint8", "uint32", "float16", "float32", "float64", ">f4", "bool"]
)
def test_any_real_pixel_type_is_taken(regressor: Make, dtype: str) -> None:
    images = np.random.default_rng(0).integers(0, 2, size=(2, 16, 16))
    made = regressor()
    if dtype == "bool":
        with pytest.raises(RegressorError, match="real numbers"):
            made.predict(images.astype(dtype))
        return
    expected = made.predict(images.astype(np.float64))
    assert np.array_equal(made.predict(images.astype(dtype)).density, expected.density)


def test_every_layout_gives_the_same_answer_and_batches_do_not_matter(regressor: Make) -> None:
    made = regressor()
    images = np.random.default_rng(0).normal(size=(5, 16, 16))
    whole = made.predict(images)
    assert made.predict(images[:, None], batch_size=2).median == pytest.approx(whole.median, abs=1e-5)
    assert made.predict(torch.from_numpy(images)).median == pytest.approx(whole.median, abs=1e-5)
    assert made.predict(images[3]).median == pytest.approx(whole.median[[3]], abs=1e-5)


@pytest.mark.parametrize("shape", [(2, 16, 15), (2, 3, 16, 16), (16,), (2, 1, 1, 16, 16)])
def test_images_of_another_shape_are_refused(regressor: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(RegressorError, match="16 x 16 pixels"):
        regressor().predict(np.zeros(shape))


@pytest.mark.parametrize("rate", [{"dropout": 0.9}, {"stochastic_depth": 0.9}, {"drop_block": 0.4}], ids=str)
def test_predict_leaves_the_mode_alone_and_never_drops_out(regressor: Make, rate: dict[str, float]) -> None:
    made = disturbed(regressor(**rate))
    images = torch.randn(2, 1, 16, 16)
    made.train()
    first, second = made.predict(images), made.predict(images)
    assert made.training
    assert np.array_equal(first.density, second.density)
    assert not torch.equal(made(images).density, made(images).density), "training draws"


def test_answers_know_what_is_known_of_populations(regressor: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made, images = regressor(), torch.randn(2, 1, 16, 16)
    assert made.predict(images).population is None
    monkeypatch.setitem(made.spec.statistics, "population", {"correlation": 0.2})
    assert made.predict(images)[0].population == {"correlation": 0.2}


def disturbed(made: Regressor) -> Regressor:
    """Residual branches start at zero: moved a little, they count."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in made.backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def changed(make: Make, **options: object) -> bool:
    """Whether an option changes what the network answers, in evaluation or in training mode."""
    images = torch.randn(4, 1, 16, 16) * 5 + 2
    answers = []
    for options_now in ({}, options):
        made = disturbed(make(**options_now))
        torch.manual_seed(7)
        answers.append([made.eval()(images).density, made.train()(images).density])
    before, after = answers
    return any(a.shape != b.shape or not torch.allclose(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "option",
    [
        {"backbone": "efficientnet_b0"},
        {"width": 0.5},
        {"dropout": 0.5},
        {"stochastic_depth": 0.9},
        {"drop_block": 0.4},
        {"norm": "group"},
        {"normalisation": "image"},
        {"background": "border_median"},
        {"stretch": "asinh"},
        {"stretch": "log", "stretch_scale": 0.1},
        {"residual": 2},
        {"crop_pixels": 12},
        {"head": "gaussian"},
        {"bins": 64},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_key_of_the_model_section_changes_the_answer(regressor: Make, option: dict) -> None:
    assert not changed(regressor)
    assert changed(regressor, **option)


def test_image_normalisation_ignores_scale_and_offset_but_dataset_does_not(regressor: Make) -> None:
    images = torch.randn(3, 16, 16)
    scaled = 7 * images + 40
    per_image = regressor(normalisation="image")
    assert per_image.predict(scaled).median == pytest.approx(per_image.predict(images).median, abs=1e-4)
    assert per_image.predict(torch.full((1, 16, 16), 3.0)).density.min() >= 0
    dataset = regressor(normalisation="dataset")
    assert np.abs(dataset.predict(scaled).median - dataset.predict(images).median).max() > 1e-3


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_saved_and_loaded_it_answers_bit_for_bit(regressor: Make, tmp_path: Path, backbone: str) -> None:
    made = regressor(backbone=backbone, targets=TWO, bins=32)
    images = torch.randn(2, 16, 16)
    save_regressor(made, tmp_path / "trained")
    loaded = load_regressor(tmp_path / "trained")
    assert loaded.spec == made.spec and not loaded.training
    for target in TWO:
        ours, theirs = made.predict(images, target=target), loaded.predict(images, target=target)
        assert np.array_equal(ours.density, theirs.density)
        assert np.array_equal(ours.class_probability, theirs.class_probability)


def test_damaged_folders_are_refused_by_name(regressor: Make, tmp_path: Path) -> None:
    folder = save_regressor(regressor(), tmp_path / "trained")
    weights = folder / "regressor.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RegressorError, match=r"regressor\.safetensors.*truncated or changed"):
        load_regressor(folder)
    with pytest.raises(RegressorError, match="nothing complete"):
        load_regressor(tmp_path / "absent")


def test_a_specification_of_another_kind_is_refused(spec: Callable[..., RegressorSpec]) -> None:
    tree = json.loads(spec().to_json())
    assert RegressorSpec.from_json(json.dumps(tree)) == spec()
    for change, message in [
        ({"schema_version": 99}, "schema version 99"),
        ({"targets": {"colour": [0, 1]}}, "colour"),
        ({"classes": ["a", "b", "c"]}, "classes"),
        ({"shape": None}, "specification"),
    ]:
        with pytest.raises(RegressorError, match=message):
            RegressorSpec.from_json(json.dumps(tree | change))
    with pytest.raises(RegressorError, match="backbone"):
        Regressor(spec(backbone="vgg"))
    with pytest.raises(RegressorError, match=r"model\.drop_block: vit_tiny"):
        Regressor(spec(backbone="vit_tiny", drop_block=0.1))
