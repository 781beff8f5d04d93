"""Strange images are what they claim to be, and the novelty of a regressor finds them."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from darkarc.config import Config, ModelConfig
from darkarc.data.form import DataForm
from darkarc.data.store import Store, StoreWriter
from darkarc.evaluation.figures import strangers_figure
from darkarc.evaluation.ood import ORDINARY, SEED_OFFSET, confidently_wrong, strange_images, summary
from darkarc.evaluation.predictions import split_rows
from darkarc.evaluation.strangers import Studio, strange_cases
from darkarc.models import Ensemble, Posterior, Regressor, RegressorSpec
from darkarc.simulation import PRESETS, draw_scenes, render
from darkarc.training.fit_novelty import fit_novelty
from tests.evaluation.conftest import PixelReader
from tests.evaluation.test_report import metrics_of, page

PRIOR = {"log10_axion_mass_ev": (-24.0, -22.0)}
FORM = DataForm("model_iii", "physical", "deeplense")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """600 lenses to learn from, 400 to calibrate, 60 to test."""
    n = 1060
    scenes = draw_scenes("model_iii", "axion", 0, range(n))
    images = render("model_iii", scenes, noise="physical").numpy()
    recipe = {"preset": "model_iii", "noise": "physical", "distances": "deeplense"}
    with StoreWriter(
        tmp_path_factory.mktemp("ood") / "prepared", name="lenses", origin="darkarc:model_iii",
        instrument="model_iii", shape=(64, 64), dtype="float32",
        parameters={"raw": {"digest": "0" * 64, "parameters": {"simulate": recipe}}},
    ) as writer:  # fmt: skip
        split = np.repeat(["train", "calibration", "test"], [600, 400, 60])
        rows = {
            "sample_id": [str(i) for i in range(n)],
            "class": ["axion"] * n,
            "log10_axion_mass_ev": scenes.log10_mass_ev.tolist(),
            "split": split.tolist(),
        }
        writer.append(images, rows)
        return writer.commit()


def untrained(store: Store, lens_residual: str, seed: int = 0) -> Regressor:
    section = ModelConfig(width=0.25, bins=32, recalibration="none", lens_residual=lens_residual).model_dump()
    images = store.images(slice(0, 200))
    statistics = {"mean": float(images.mean()), "std": float(images.std())}
    torch.manual_seed(seed)
    spec = RegressorSpec(PRIOR, (64, 64), section, statistics, "model_iii", asdict(FORM))
    return Regressor(spec).eval()


@pytest.fixture(scope="module")
def regressor(store: Store) -> Regressor:
    """Sure of itself: what it says of any image is a narrow spike."""
    made = untrained(store, "compact")
    with torch.no_grad():
        made.target_layer.bias[5] = 20.0
        made.class_layer.bias[0] = 5.0
    fit_novelty(Config(), made, store)
    assert made.novelty is not None and made.novelty.of_blur is not None
    return made


def test_novelty_and_flags_find_what_is_strange(regressor: Regressor, store: Store):
    measured = strange_images(regressor, store, n=30, seed=0)
    rows = {item.row["case"]: item.row for item in measured}
    assert next(iter(rows)) == ORDINARY and rows[ORDINARY]["n"] == 60 and rows[ORDINARY]["auc"] is None
    assert rows[ORDINARY]["withheld"] <= 0.05
    for name in (
        "PSF × 1.5",
        "PSF × 2",
        "noise × 2",
        "pixels × 1.25",
        "lens light",
        "clumpy source",
        "galaxy",
        "pure noise",
        "shuffled",
        "constant",
    ):
        assert rows[name]["n"] == 30
        assert rows[name]["auc"] > 0.98, name
        assert rows[name]["flagged"] > 0.9, name
        assert rows[name]["withheld"] > (0.7 if name == "PSF × 1.5" else 0.9), name
        assert rows[name]["wrong_before"] > 0.8, "such a spike is wrong of every image"
        assert rows[name]["wrong_after"] < 0.1
    found = summary(measured)
    assert found["ood_auc_worst"] == min(row["auc"] for row in found["ood"][1:])
    assert len(strangers_figure(measured).axes) == len(measured) + 2
    text = page(metrics_of(**found))
    assert "Images it was not trained for" in text and "twice the noise" in text


def test_an_ensembles_disagreement_is_held_against_the_novelty(regressor: Regressor, store: Store):
    members = [untrained(store, "none", seed) for seed in range(2)]
    for member in members:
        torch.nn.init.normal_(member.target_layer.weight)
    ensemble = Ensemble.of(members)
    fit_novelty(Config(), ensemble, store)
    measured = strange_images(ensemble, store, n=20, seed=0)
    rows = {item.row["case"]: item.row for item in measured}
    assert rows[ORDINARY]["auc_disagreement"] is None
    ordinary = ensemble.predict(store.images(split_rows(store, "test"))).std_between
    for case in strange_cases(FORM, 20, SEED_OFFSET):
        both = np.concatenate([ordinary, ensemble.predict(case.images).std_between])
        expected = roc_auc_score(np.repeat([0, 1], [60, 20]), both)
        assert rows[case.name]["auc_disagreement"] == pytest.approx(expected), case.name
    assert rows["PSF × 2"]["auc_disagreement"] < rows["PSF × 2"]["auc"] - 0.05
    told = f"(of the members&#x27; disagreement {rows['PSF × 2']['auc_disagreement']:.3f})"
    assert told in page(metrics_of(**summary(measured)))
    assert "auc_disagreement" not in strange_images(regressor, store, n=2, seed=0)[1].row


def test_where_nothing_can_be_compared_nothing_is_said(regressor: Regressor, store: Store):
    assert strange_images(PixelReader(), store, n=30, seed=0) == []
    assert strange_images(regressor, store, n=0, seed=0) == []
    silent = Regressor(replace(regressor.spec, model=regressor.spec.model | {"novelty": "none"}))
    assert strange_images(silent, store, n=30, seed=0) == []
    assert summary([]) == {}


def test_each_case_changes_what_it_says():
    studio = Studio(FORM, 4, 3)
    bare = studio.model
    noise = studio.stored(bare) - bare
    np.testing.assert_allclose(studio.doubled_noise() - bare, 2 * noise, atol=1e-5)
    added = studio.lens_light() - noise - bare
    np.testing.assert_allclose(added.sum(axis=(1, 2)) / bare.sum(axis=(1, 2)), 0.5, rtol=1e-3)
    assert np.unravel_index(added[0].argmax(), (64, 64)) in {(31, 31), (31, 32), (32, 31), (32, 32)}
    galaxies = studio.galaxies() - noise
    np.testing.assert_allclose(galaxies.sum(axis=(1, 2)), bare.sum(axis=(1, 2)), rtol=1e-2)
    assert np.array_equal(np.sort(studio.shuffled(), axis=None), np.sort(studio.stored(bare), axis=None))
    camera = PRESETS["model_iii"].instrument
    wider = studio.through(replace(camera, psf_fwhm_arcsec=2 * camera.psf_fwhm_arcsec))
    assert np.all(wider.max(axis=(1, 2)) < studio.stored(bare).max(axis=(1, 2)))
    clumps = studio.clumpy_source() - noise
    assert np.all(clumps.sum(axis=(1, 2)) > 0.3 * bare.sum(axis=(1, 2)))


@pytest.mark.parametrize("preset", ["model_i", "model_ii"])
def test_every_preset_has_its_cases(preset):
    shape = PRESETS[preset].instrument.shape
    cases = list(strange_cases(DataForm(preset, "published", "deeplense"), 2, 0))
    assert len(cases) == 10
    for case in cases:
        assert case.images.shape == (2, *shape) and np.isfinite(case.images).all(), case.name
        assert np.isfinite(case.truth).all() == (
            case.name not in ("galaxy", "pure noise", "shuffled", "constant")
        )
    noisy = next(case for case in cases if case.name == "noise × 2")
    assert noisy.images[0, :8, :8].std() > 0


def test_a_confident_error_is_a_mass_given_and_missed():
    edges = np.linspace(-24, -22, 41)
    narrow = np.zeros(40)
    narrow[10] = 20.0
    flat = np.full(40, 0.5)
    doubtful = 0.6 * narrow + 0.4 * flat
    axion, other = [0.9, 0.05, 0.05], [0.1, 0.5, 0.4]
    posterior = Posterior(
        edges, np.stack([narrow, narrow, narrow, flat, flat, narrow, doubtful, doubtful]),
        np.array([axion, axion, other, axion, axion, axion, axion, axion]), "log10_axion_mass_ev",
    )  # fmt: skip
    # Of the doubtful ones half of the answer is narrow, 90% are not; the truth at 96% is within 99%.
    truth = np.array([-23.475, -22.5, -22.5, -22.5, np.nan, np.nan, -22.2, np.nan])
    assert confidently_wrong(posterior, truth).tolist() == [False, True, *[False] * 3, True, False, False]
