"""An exported regressor answers as the torch one, for any batch; its file says nothing of this machine."""

import json
import os
import re
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from darkarc.config import DEFAULT_TARGET
from darkarc.models import Ensemble, Posterior
from darkarc.models.recalibration import MAPS, PRIOR_SHARE
from darkarc.serving import ExportError, OnnxRegressor, export, export_onnx
from darkarc.serving.export import largest_difference, trial_images
from darkarc.simulation import draw_scenes, render

BOTH_TARGETS = {DEFAULT_TARGET: (-24.0, -22.0), "log10_subhalo_mass_msun": (6.0, 11.0)}


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ({"backbone": "small_resnet", "head": "binned", "dropout": 0.5, "stochastic_depth": 0.5}, None),
        (
            {"backbone": "small_resnet", "head": "gaussian", "normalisation": "image", "stretch": "asinh"},
            BOTH_TARGETS,
        ),
        ({"backbone": "efficientnet_b0", "head": "binned"}, None),
    ],
)
def test_onnx_equals_torch_for_any_batch(make_regressor, lenses, tmp_path, model, targets):
    regressor = make_regressor(targets, **model)
    regressor.train()
    exported = OnnxRegressor(export_onnx(regressor, tmp_path / "model.onnx"), threads=1)
    assert regressor.training, "export leaves the mode as it found it"
    regressor.eval()
    for batch in (1, 7, 256):
        images = torch.from_numpy(lenses[:batch, None])
        with torch.inference_mode():
            expected = regressor(images)
        answer = exported(images)
        for ours, theirs in zip(expected, answer, strict=True):
            if ours is None or theirs is None:
                assert ours is theirs
                continue
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert largest_difference(expected, answer, regressor) < 1e-4
    for target in regressor.targets:
        ours, theirs = (
            regressor.predict(lenses[:9], target=target),
            exported.predict(lenses[:9], target=target),
        )
        assert isinstance(theirs, Posterior) and theirs.target == target
        np.testing.assert_array_equal(theirs.edges, ours.edges)
        np.testing.assert_allclose(theirs.quantile([0.05, 0.5]), ours.quantile([0.05, 0.5]), atol=1e-4)
        assert np.ptp(ours.median) > 1e-3, "the answers must depend on the image for this to test anything"


@pytest.mark.parametrize("method", MAPS)
def test_what_recalibration_holds_possible_is_possible_in_the_file(make_regressor, lenses, tmp_path, method):
    """The optimiser of the exporter takes 1e-9 for 0 and 1 - 1e-6 for 1, and drops them."""
    regressor = make_regressor(bins=1024, recalibration=method)
    with torch.no_grad():  # sharp: most bins have less than float32 can add to 1
        regressor.recalibrations[0].temperature.fill_(1e-3)
        if method == "local":
            regressor.recalibrations[0].coldness.fill_(1e3)
    exported = OnnxRegressor(export_onnx(regressor, tmp_path / "model.onnx"))
    images = torch.from_numpy(lenses[:20, None])
    with torch.inference_mode():
        ours = regressor.eval()(images).density.numpy()
    theirs = exported(images).density.numpy()
    least = PRIOR_SHARE / (2.0 / 1024) / 1024
    assert (theirs < 2 * least).mean() > 0.5 and theirs.min() == pytest.approx(least, rel=1e-3)
    np.testing.assert_allclose(ours.min(), theirs.min(), rtol=1e-3)


def test_an_export_that_rules_out_what_torch_does_not_is_not_written(make_regressor, tmp_path, monkeypatch):
    class Blind(OnnxRegressor):
        def __call__(self, images):
            answer = super().__call__(images)
            answer.density[:, :, 0] = 0
            return answer

    monkeypatch.setattr("darkarc.serving.export.OnnxRegressor", Blind)
    with pytest.raises(ExportError, match="rules out 10 values that torch holds possible"):
        export_onnx(make_regressor(bins=512), tmp_path / "model.onnx", tolerance=1.0)
    assert list(tmp_path.iterdir()) == []


def test_the_fitted_vortex_is_in_the_file(make_regressor, tmp_path):
    """Its steps are a loop; the answers are those of torch, on lenses at every mass."""
    form = {"preset": "model_iii", "noise": "physical", "distances": "deeplense"}
    regressor = make_regressor(backbone="small_resnet", width=0.25, vortex_fit=True, bins=512, form=form)
    fit = regressor.vortex_fit
    assert fit is not None
    scenes = draw_scenes("model_iii", "axion", 4, range(24))
    images = render("model_iii", scenes, noise="physical", seed=4)[:, None]
    generator = torch.Generator().manual_seed(0)
    fit.reading.copy_(0.02 * torch.randn(fit.reading.shape, generator=generator))
    fit.second[0, -1] = 3.0  # the fit counts, whatever it is worth
    fit.fitted.fill_(1.0)
    exported = OnnxRegressor(export_onnx(regressor, tmp_path / "model.onnx", tolerance=1.0), threads=1)
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operators.count("Scan") == 2
    with torch.inference_mode():
        expected = regressor(images)
    answer = exported(images)
    # From starts far from any maximum rounding may decide which one is climbed, for a few lenses.
    away = (answer.median - expected.median).abs()[:, 0]
    assert float(away.median()) < 1e-5
    assert float(away.quantile(0.75)) < 1e-3
    regressor.vortex_fit = None
    with torch.inference_mode():
        alone = regressor(images)
    assert float((alone.median - expected.median).abs().median()) > 1e-2, "the fit must count for this"


def test_the_fitted_lens_is_in_the_file(make_regressor, lenses, tmp_path):
    form = {"preset": "model_iii", "noise": "physical", "distances": "deeplense"}
    regressor = make_regressor(form=form, lens_residual="compact")
    exported = OnnxRegressor(export_onnx(regressor, tmp_path / "model.onnx"), threads=1)
    images = torch.from_numpy(lenses[:40, None])
    with torch.inference_mode():
        expected = regressor(images)
    assert largest_difference(expected, exported(images), regressor) < 1e-3  # its channels reach 10 and more
    assert exported.spec.form == form
    parts = [exported(images[:24]).density, exported(images[24:]).density]
    assert torch.equal(exported(images).density, torch.cat(parts)), "four at a time, whatever the batch"
    sizes = []
    run = exported._session.run
    exported._session = SimpleNamespace(
        run=lambda names, fed: sizes.append(len(fed["images"])) or run(names, fed)
    )
    exported(images[:10])
    assert sizes == [4, 4, 2]
    for threads, n in ((2, 10), (3, 2), (2, 0)):
        beside = OnnxRegressor(tmp_path / "model.onnx", threads=threads)
        for theirs, ours in zip(beside(images[:n]), exported(images[:n]), strict=True):
            assert theirs is ours is None or torch.allclose(theirs, ours, rtol=1e-3, atol=1e-4)
    blind = make_regressor(form=form, lens_residual="none")
    assert regressor.standardise(images).shape[1] == 4 and blind.standardise(images).shape[1] == 1


def test_the_novelty_is_in_the_file(wary, lenses, tmp_path):
    exported = OnnxRegressor(export_onnx(wary, tmp_path / "model.onnx"), threads=1)
    strange = np.concatenate([lenses[:20], lenses[20:40] * 1.5, np.zeros_like(lenses[:2])])
    ours, theirs = wary.predict(strange).novelty, exported.predict(strange).novelty
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3)
    assert np.median(ours[:20]) < 1 and np.all(ours[20:] > 3)


def test_what_recalibration_makes_of_the_novelty_is_in_the_file(wary, lenses, tmp_path):
    told = deepcopy(wary)
    told.recalibrations[0].by_novelty = torch.tensor([[0.0, 1.0, 2.0], [1.4, 0.8, 0.3]])
    exported = OnnxRegressor(export_onnx(told, tmp_path / "model.onnx"), threads=1)
    # Up to twice the last score, as the width at infinity is the prior's.
    shown = np.concatenate(
        [lenses[:40], lenses[:40] * np.linspace(1, 1.5, 40, dtype=np.float32)[:, None, None]]
    )
    ours, theirs, blind = told.predict(shown), exported.predict(shown), wary.predict(shown)
    np.testing.assert_allclose(theirs.median, ours.median, atol=1e-3)
    np.testing.assert_allclose(theirs.std, ours.std, rtol=3e-3)
    assert np.abs(ours.std / blind.std - 1).max() > 0.2 and np.ptp(ours.novelty) > 2


def test_an_ensemble_is_one_file(make_regressor, lenses, tmp_path):
    ensemble = Ensemble.of([make_regressor(seed=seed, bins=32) for seed in (0, 1)])
    exported = OnnxRegressor(export_onnx(ensemble, tmp_path / "model.onnx"), threads=1)
    ours, theirs = ensemble.predict(lenses[:6]), exported.predict(lenses[:6])
    np.testing.assert_allclose(theirs.median, ours.median, atol=1e-4)
    np.testing.assert_allclose(theirs.std_between, ours.std_between, atol=1e-4)
    assert np.all(ours.std_between > 1e-2)


@pytest.fixture
def traced(monkeypatch, onnx_path):
    """Tracing takes seconds; what comes after it is tried on a graph that is there already."""

    def trace(regressor, opset):
        model = onnx.load(onnx_path)
        del model.metadata_props[:]
        return model

    monkeypatch.setattr(export, "_trace", trace)


def test_same_weights_give_the_same_bytes(make_regressor, onnx_path, tmp_path):
    again = export_onnx(make_regressor(), tmp_path / "again.onnx")
    assert again.read_bytes() == onnx_path.read_bytes()


def test_file_holds_no_path_and_no_trace(onnx_path):
    content = onnx_path.read_bytes()
    strings = re.findall(rb"[\x20-\x7e]{8,}", content)
    assert strings
    suspicious = (b".py", b"stack_trace", b"site-packages", b"/home", b"/usr", b"/tmp", os.getcwd().encode())
    assert not [text for text in strings if any(mark in text for mark in suspicious)]
    model = onnx.load(onnx_path)
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_metadata_describe_the_regressor_in_plain_form(regressor, onnx_path):
    entries = {entry.key: entry.value for entry in onnx.load(onnx_path).metadata_props}
    spec = json.loads(entries["darkarc.regressor"])
    assert spec["shape"] == [64, 64] and spec["instrument"] == "model_iii"
    assert spec["statistics"]["reference"].keys() == regressor.spec.statistics["reference"].keys()
    np.testing.assert_array_equal(json.loads(entries["edges"])[DEFAULT_TARGET], regressor.edges())
    assert json.loads(entries["classes"]) == ["axion", "cdm", "no_sub"]
    assert json.loads(entries["quantile_levels"]) == [0.05, 0.16, 0.84, 0.95]


def test_plain_onnxruntime_needs_nothing_of_ours(regressor, onnx_path, lenses):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    (median,) = session.run(["median"], {"images": lenses[:3, None]})
    np.testing.assert_allclose(median[:, 0], regressor.predict(lenses[:3]).median, atol=1e-4)


def test_an_export_that_differs_is_not_written(regressor, traced, tmp_path, monkeypatch):
    true_answer = export._answer

    def shifted(*arguments):
        prediction = true_answer(*arguments)
        return prediction._replace(class_probability=prediction.class_probability + 3e-4)

    monkeypatch.setattr(export, "_answer", shifted)
    target = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=r"differs from torch by 0\.0003"):
        export_onnx(regressor, target)
    assert list(tmp_path.iterdir()) == []


def test_other_weights_than_the_graphs_are_noticed(make_regressor, traced, tmp_path):
    with pytest.raises(ExportError, match="differs from torch by"):
        export_onnx(make_regressor(seed=1), tmp_path / "model.onnx")
    broken = make_regressor()
    with torch.no_grad():
        broken.class_layer.bias[0] = float("nan")
    with pytest.raises(ExportError, match="differs from torch by nan"):
        export_onnx(broken, tmp_path / "model.onnx")


@pytest.mark.parametrize("part", ["density", "median", "quantiles", "class_probability", "novelty"])
def test_an_answer_that_is_no_number_is_no_match(regressor, part):
    images = torch.from_numpy(trial_images(regressor.spec))
    with torch.inference_mode():
        answer = regressor(images)._replace(novelty=torch.ones(len(images)))
    assert largest_difference(answer, answer, regressor) < 1e-6
    broken = getattr(answer, part).clone()
    broken.view(-1)[-1] = float("nan")
    assert largest_difference(answer, answer._replace(**{part: broken}), regressor) == float("inf")


def test_quantiles_are_compared_by_the_probability_between_them(regressor):
    """Between two far peaks a quantile may move at no cost; elsewhere it may not."""
    images = torch.from_numpy(trial_images(regressor.spec))
    with torch.inference_mode():
        answer = regressor(images)
    density = torch.zeros_like(answer.density)
    density[:, 0, 8] = density[:, 0, 56] = 0.5 / (2.0 / 64)
    low, high = torch.full_like(answer.median, -23.7), torch.full_like(answer.median, -22.3)
    bimodal = answer._replace(density=density, median=low)
    assert largest_difference(bimodal, bimodal._replace(median=high), regressor) < 1e-6
    inside = bimodal._replace(median=torch.full_like(low, -23.74), density=density)
    assert largest_difference(inside, inside._replace(median=high), regressor) > 0.1


def test_trial_images_are_like_those_of_training(make_regressor, statistics):
    """In mean and deviation, where nothing else is known; else they are lenses of the preset."""
    images = trial_images(make_regressor().spec)
    assert images.shape == (10, 1, 64, 64) and images.dtype == np.float32
    np.testing.assert_allclose(images[5:].std(axis=(1, 2, 3)), statistics["std"], rtol=1e-3)
    np.testing.assert_allclose(images[5:].mean(axis=(1, 2, 3)), statistics["mean"], rtol=1e-3)
    form = {"preset": "model_iii", "noise": "none", "distances": "deeplense"}
    lenses = trial_images(make_regressor(form=form).spec)
    assert lenses.shape == (10, 1, 64, 64) and (lenses > 0).all()


def test_threads_must_not_be_negative(onnx_path: Path):
    with pytest.raises(ValueError, match="threads: expected 0"):
        OnnxRegressor(onnx_path, threads=-1)
