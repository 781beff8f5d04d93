"""Fresh images every epoch: pure functions of (seed, epoch, index), of the store's own distribution."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkarc.config import CLASSES, Config, parse
from darkarc.data.auxiliary import auxiliary_truths
from darkarc.data.batches import BatchError, ImageSource
from darkarc.data.generate import generate
from darkarc.data.online import OnlineSource, class_of
from darkarc.data.prepare import prepare
from darkarc.data.store import Store
from darkarc.data.train_images import TrainImages
from darkarc.simulation import PRESETS, noise_moments, simulate
from tests.conftest import PROJECT
from tests.training.conftest import write_prepared

TWO = {"log10_axion_mass_ev": [-24.0, -22.0], "log10_subhalo_mass_msun": [6.0, 12.0]}


def config(seed: int = 3, **tree: Any) -> Config:
    few = {"preset": "model_iii", "noise": "physical", "n_axion": 60, "n_cdm": 30, "n_no_sub": 30}
    return parse(
        {
            "seed": seed,
            "device": "cpu",
            "targets": TWO,
            "data": {"source": "online", **tree.pop("data", {})},
            "simulate": few | tree.pop("simulate", {}),
            "prepare": {"mass_bins": 2, "outliers": {"trees": 10}},
            **tree,
        }
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("online")
    raw = generate(config(), folder / "raw", progress=False)
    return prepare(raw, folder / "prepared", config())


def test_a_sample_is_a_function_of_seed_epoch_and_index_alone(prepared: Store) -> None:
    source = OnlineSource(config(), prepared)
    order = torch.tensor([5, 70, 0, 33, 12, 71, 9])
    whole = source.batch(4, order)
    for k, index in enumerate(order):
        alone = source.batch(4, index[None])
        assert torch.equal(alone.images[0], whole.images[k])
        assert torch.equal(alone.classes[0], whole.classes[k])
        assert torch.equal(alone.truth[0].nan_to_num(7), whole.truth[k].nan_to_num(7))
    parts = [batch for _, batch in source.batches(4, order, 2)]
    assert [len(part.classes) for part in parts] == [2, 2, 2, 1]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    for other in (source.batch(5, order), OnlineSource(config(seed=4), prepared).batch(4, order)):
        assert (other.images != whole.images).flatten(1).any(dim=1).all()


def test_no_scene_comes_twice_and_none_is_the_stores(prepared: Store) -> None:
    source = OnlineSource(config(simulate={"noise": "none"}), _as_simulated_without_noise(prepared))
    images = torch.cat([source.batch(epoch, torch.arange(40)).images for epoch in range(3)])
    assert len({image.numpy().tobytes() for image in images}) == 120
    masses = source.batch(0, torch.arange(300)).truth[:, 0]
    known = masses[masses.isfinite()].double()
    store = torch.tensor(prepared.samples["log10_axion_mass_ev"].drop_null().to_pylist())
    assert float((known[:, None] - store[None]).abs().min()) > 0


def _as_simulated_without_noise(prepared: Store) -> Store:
    parameters = prepared.manifest.parameters
    simulated = parameters["raw"]["parameters"]["simulate"] | {"noise": "none"}
    raw = parameters["raw"] | {"parameters": parameters["raw"]["parameters"] | {"simulate": simulated}}
    manifest = replace(prepared.manifest, parameters=parameters | {"raw": raw})
    return Store(prepared.path, manifest)


def test_classes_come_in_the_sections_shares_in_every_stretch(prepared: Store) -> None:
    section = config().simulate
    classes = class_of(section, torch.arange(100_000))
    for start, length in ((0, 100_000), (31_337, 1000), (50_000, 64)):
        found = np.bincount(classes[start : start + length], minlength=3) / length
        assert found == pytest.approx([0.5, 0.25, 0.25], abs=4 / length)
    no_cdm = class_of(config(simulate={"n_cdm": 0}).simulate, torch.arange(1000))
    assert CLASSES.index("cdm") not in no_cdm.tolist()
    batch = OnlineSource(config(), prepared).batch(0, torch.arange(64))
    assert torch.equal(batch.classes, class_of(section, torch.arange(64)))
    assert torch.equal(batch.truth[:, 0].isfinite(), batch.classes == CLASSES.index("axion"))
    assert torch.equal(batch.truth[:, 1].isfinite(), batch.classes == CLASSES.index("cdm"))
    assert batch.auxiliary[:, :2].isfinite().all()
    assert torch.equal(batch.auxiliary[:, 3].isfinite(), batch.classes == CLASSES.index("axion"))


def test_images_have_the_model_of_their_truth_and_the_instruments_noise(prepared: Store) -> None:
    """Against `darkarc.simulate` for the parameters that the truth and the scene's deviates name."""
    source = OnlineSource(config(), prepared)
    bare = OnlineSource(config(simulate={"noise": "none"}), _as_simulated_without_noise(prepared))
    indices = torch.arange(24)
    noisy, model = source.batch(2, indices).images, bare.batch(2, indices).images
    mean, variance = noise_moments(PRESETS["model_iii"], model.double(), noise="physical", exposure_s=5400.0)
    pulls = (noisy.double() - mean) / variance.sqrt()
    assert abs(float(pulls.mean())) < 5 / np.sqrt(pulls.numel())
    assert float(pulls.square().mean()) == pytest.approx(1, abs=5 * np.sqrt(2 / pulls.numel()))
    truth, auxiliary = source.batch(2, indices).truth[:, 0], source.batch(2, indices).auxiliary
    scenes = bare._scenes("axion", _scene_keys(bare, 2, indices))
    axion = torch.nonzero(truth.isfinite()).squeeze(1).tolist()
    assert len(axion) > 5
    for row in axion[:3]:
        again = simulate(
            "model_iii",
            log10_mass_ev=float(scenes.log10_mass_ev[row]),
            angle_rad=float(scenes.angle_rad[row]),
            source_arcsec=scenes.source_arcsec[row],
        )
        assert float(truth[row]) == pytest.approx(scenes.log10_mass_ev[row], abs=1e-5)
        expected = auxiliary_truths(*scenes.source_arcsec[row, :, None], scenes.angle_rad[[row]])
        assert auxiliary[row].numpy() == pytest.approx(expected[0], abs=1e-6)
        assert model[row, 0].numpy() == pytest.approx(again[0], abs=2e-5 * again.max())


def _scene_keys(source: OnlineSource, epoch: int, indices: torch.Tensor) -> torch.Tensor:
    from darkarc.simulation.counter import hash_indices

    return hash_indices(source._scene_seed, epoch, indices)


def test_the_source_is_what_the_configuration_says(prepared: Store) -> None:
    online = TrainImages.of(config(), prepared, "cpu").source
    stored = TrainImages.of(config(data={"source": "simulated"}), prepared, "cpu").source
    assert isinstance(online, OnlineSource) and isinstance(stored, ImageSource)
    assert len(online) == len(stored) == int((np.asarray(prepared.samples["split"]) == "train").sum())
    assert len(TrainImages.of(config(data={"epoch_images": 17}), prepared, "cpu").source) == 17
    order = torch.tensor([3, 1, 2])
    ((indices, first), (_, second)) = stored.batches(9, order, 2)
    assert torch.equal(indices, order[:2]) and torch.equal(first.images, stored.batch(order[:2]).images)
    assert torch.equal(second.images, stored.batch(order[2:]).images)


@pytest.mark.parametrize(
    ("simulate", "said"),
    [
        ({"preset": "model_ii"}, r"simulate.preset: model_iii, and simulate.preset is now model_ii"),
        ({"noise": "none"}, r"simulate.noise: physical, and simulate.noise is now none"),
        ({"distances": "physical"}, r"change it back or run `darkarc simulate`"),
    ],
    ids=["preset", "noise", "distances"],
)
def test_a_store_simulated_otherwise_is_refused(prepared: Store, simulate: dict, said: str) -> None:
    with pytest.raises(BatchError, match=said):
        OnlineSource(config(simulate=simulate), prepared)


def test_a_store_that_was_not_simulated_or_by_another_simulator_is_refused(
    prepared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BatchError, match=r"not simulated \(its origin is tests\)"):
        OnlineSource(config(), write_prepared(tmp_path / "blobs"))
    monkeypatch.setattr("darkarc.data.online.RECIPE", 99)
    with pytest.raises(BatchError, match="by a darkarc with another recipe"):
        OnlineSource(config(), prepared)


def test_truths_outside_of_the_prior_are_refused(prepared: Store) -> None:
    source = OnlineSource(config(targets={"log10_axion_mass_ev": [-23.5, -22.0]}), prepared)
    with pytest.raises(BatchError, match=r"online axion images: .* widen targets.log10_axion_mass_ev"):
        source.batch(0, torch.arange(64))


def test_the_command_line_and_the_pipeline_put_its_store_where_prepare_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml
    from typer.testing import CliRunner

    from darkarc.cli import app

    online, simulated = (
        yaml.safe_load((PROJECT / "sources" / name / "dvc.yaml").read_text())["stages"]["simulate"]
        for name in ("online", "simulated")
    )
    assert online.pop("outs") == ["data/online"] and simulated.pop("outs") == ["data/simulated"]
    assert online.pop("cmd").endswith("--out data/online") and simulated.pop("cmd")
    assert online == simulated
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(config(simulate={"n_axion": 2, "n_cdm": 0}).dump()))
    result = CliRunner().invoke(app, ["simulate", "--workers", "1", "--quiet"])
    assert result.exit_code == 0, result.output
    assert len(Store.open("data/online")) == 32
