"""An ensemble is the mixture of its members, with its variance split in two."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from darkarc.models import Ensemble, Regressor, RegressorError, load_regressor, save_regressor

MakeRegressor = Callable[..., Regressor]


def members(regressor: MakeRegressor, n: int = 3, **options) -> list[Regressor]:
    made = []
    for seed in range(n):
        member = regressor(**options)
        torch.manual_seed(seed)
        torch.nn.init.normal_(member.target_layer.bias, std=1.0)
        made.append(member)
    return made


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(0.4, 1.3, size=(5, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("head", ["binned", "gaussian"])
def test_it_is_the_mixture_of_its_members(regressor, images, head):
    trained = members(regressor, head=head, bins=32, recalibration="none")
    answers = [member.predict(images) for member in trained]
    joint = Ensemble.of(trained).predict(images)
    np.testing.assert_allclose(joint.density, np.mean([a.density for a in answers], axis=0), atol=2e-5)
    np.testing.assert_allclose(
        joint.class_probability, np.mean([a.class_probability for a in answers], axis=0), atol=1e-6
    )
    # The law of total variance.
    between = np.std([a.mean for a in answers], axis=0)
    within = np.sqrt(np.mean([a.std**2 for a in answers], axis=0))
    np.testing.assert_allclose(joint.std_between, between, atol=2e-4)
    np.testing.assert_allclose(joint.std_within, within, rtol=2e-3)
    assert np.all(joint.std_between > 0.01)


def test_recalibration_widens_both_parts_alike(regressor, images):
    ensemble = Ensemble.of(members(regressor, bins=32, recalibration="temperature"))
    before = ensemble.predict(images)
    ensemble.recalibrations[0].temperature.fill_(3.0)
    after = ensemble.predict(images)
    assert np.all(after.std > before.std)
    np.testing.assert_allclose(after.std_between / after.std, before.std_between / before.std, rtol=1e-3)
    assert all(float(m.recalibrations[0].temperature) == 1.0 for m in ensemble.members)


def test_recalibration_knows_the_mixture_s_novelty(regressor, images):
    ensemble = Ensemble.of(members(regressor, bins=32))
    given = torch.from_numpy(images)[:, None]
    with torch.inference_mode():
        shown = torch.from_numpy(np.random.default_rng(1).normal(0.4, 1.3, (300, 1, 16, 16))).float()
        parts = shown[:200], shown[200:]
        ensemble.novelty.fit(*(ensemble.novelty.measure(part, *ensemble.seen(part)) for part in parts))
    recalibration = ensemble.recalibrations[0]
    recalibration.by_novelty = torch.tensor([[0.0, 1.0, 2.0], [1.4, 0.8, 0.3]])
    strange = torch.cat([given, 3 * given])
    with torch.inference_mode():
        answer = ensemble(strange)
        logits = ensemble.network_logits(ensemble.answers(ensemble.features(strange))[0])[0]
        told, blind = recalibration(logits, answer.novelty), recalibration(logits)
    assert bool(answer.novelty.isfinite().all())
    torch.testing.assert_close(answer.density[:, 0], told / ensemble.grids[0].width)
    assert not torch.allclose(told, blind)


def test_equal_members_do_not_disagree(regressor, images):
    ensemble = Ensemble.of([regressor(bins=32)] * 2)
    np.testing.assert_allclose(ensemble.predict(images).std_between, 0, atol=2e-4)


def test_it_is_saved_and_loaded_as_one(regressor, images, tmp_path):
    ensemble = Ensemble.of(members(regressor, bins=32))
    save_regressor(ensemble, tmp_path / "saved")
    loaded = load_regressor(tmp_path / "saved")
    assert isinstance(loaded, Ensemble) and loaded.spec.members == 3
    np.testing.assert_array_equal(loaded.predict(images).density, ensemble.predict(images).density)
    chosen = loaded.predict(images)[1:3]
    assert chosen.std_between is not None and len(chosen.std_between) == 2


def test_members_of_different_kinds_are_refused(regressor):
    with pytest.raises(RegressorError, match="members of an ensemble share"):
        Ensemble.of([regressor(bins=32), regressor(bins=16)])
    with pytest.raises(RegressorError, match="at least 2"):
        Ensemble(replace(regressor(bins=32).spec, members=1))
