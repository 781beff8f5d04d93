"""A regressor beside the floor: its numbers, its cache, and the alarm that only a leak sets off."""

import json
from pathlib import Path

import numpy as np
import pytest

from darkarc.config import parse
from darkarc.data.store import Store, StoreWriter
from darkarc.evaluation import evaluate
from darkarc.evaluation.alarms import floor_warnings
from darkarc.evaluation.floor import NoFloor, exact_posterior, floor_stage
from darkarc.evaluation.floor import store as floor_store
from darkarc.evaluation.floor.beside import Beside, expected_error, floor_by_mass, floor_numbers
from darkarc.evaluation.floor.kept import BINS
from darkarc.evaluation.floor.store import even_sample, known_form, stored_posterior
from darkarc.evaluation.metrics import score
from darkarc.models import Posterior
from darkarc.simulation import draw_scenes, render
from darkarc.tracking import NullTracker
from tests.evaluation.conftest import gaussian_posterior, posterior_and_truth

N = 10
TARGET = "log10_axion_mass_ev"


@pytest.fixture(scope="module")
def lenses() -> tuple[np.ndarray, np.ndarray]:
    """True masses and images of Model III, heavy particles, whose exact posteriors are quick."""
    scenes = draw_scenes("model_iii", "axion", 9, range(60))
    chosen = np.flatnonzero(scenes.log10_mass_ev > -22.8)[:N]
    images = render("model_iii", scenes[chosen], noise="physical", seed=9, indices=chosen).numpy()
    return scenes.log10_mass_ev[chosen], images


def store_of(folder: Path, lenses: tuple[np.ndarray, np.ndarray], noise: str = "physical") -> Store:
    truth, images = lenses
    recipe = {"preset": "model_iii", "noise": noise, "distances": "deeplense"}
    writer = StoreWriter(
        folder, name="heavy", origin="darkarc:test", instrument="HST", shape=(64, 64), dtype="float32",
        parameters={"raw": {"digest": "0" * 64, "parameters": {"simulate": recipe}}},
    )  # fmt: skip
    n = len(truth)
    rows = {
        "sample_id": [f"s{i}" for i in range(n)],
        "class": ["axion"] * n,
        TARGET: truth.tolist(),
        "group_id": [f"g{i}" for i in range(n)],
        "split": ["test"] * n,
    }
    with writer:
        writer.append(images.astype(np.float32), rows)
        return writer.commit()


@pytest.fixture(scope="module")
def store(lenses: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_of(tmp_path_factory.mktemp("floor") / "store", lenses)


@pytest.fixture(scope="module")
def cache(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Filled once for all tests."""
    folder = tmp_path_factory.mktemp("cache")
    stored_posterior(store, np.arange(N), cache=folder)
    return folder


class Fixed:
    """A regressor whose answers were written down beforehand, by the first pixel's value."""

    targets = (TARGET,)
    shape = (64, 64)

    def __init__(self, images: np.ndarray, posterior: Posterior) -> None:
        self.place = {float(np.float32(image[0, 0])): n for n, image in enumerate(images)}
        self.posterior = posterior

    def predict(self, images: np.ndarray, *, target: str | None = None, batch_size: int = 256) -> Posterior:
        return self.posterior[np.array([self.place[float(image[0, 0])] for image in images])]


def evaluated(store: Store, regressor: Fixed, cache: Path, out: Path, **section: int) -> dict:
    config = parse(
        {"evaluate": {"mass_bins": 4, "examples": 1, "floor_images": N, "ood_images": 0, **section}}
    )
    return evaluate(config, regressor, store, out=out, tracker=NullTracker(), floor_cache=cache)


def test_an_honest_regressor_stands_beside_the_floor_without_alarm(store, lenses, cache, tmp_path):
    exact, explained = stored_posterior(store, np.arange(N), cache=cache)
    assert explained.all()
    wide = gaussian_posterior(exact.median, 1.5 * exact.std, exact.edges)
    metrics = evaluated(store, Fixed(lenses[1], wide), cache, tmp_path)
    error = np.abs(exact.median - lenses[0])
    assert metrics["floor_mae_dex"] == pytest.approx(error.mean(), rel=1e-4)
    assert metrics["floor_n_images"] == N
    assert metrics["floor_ratio"] == pytest.approx(1.0, abs=0.2)
    assert metrics["floor_expected_mae_dex"] == pytest.approx(expected_error(exact).mean(), rel=1e-4)
    assert metrics["standard_error"]["floor_mae_dex"] == pytest.approx(error.std() / np.sqrt(N), rel=0.2)
    assert sum(row["floor_n"] for row in metrics["by_mass"]) == N
    assert not any("leakage" in line for line in metrics["warnings"])
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Information floor" in page and "the information floor is" in page
    assert "floor_mae_dex" in (tmp_path / "plots/error_by_mass.csv").read_text()


def test_a_regressor_that_knows_the_answers_sets_the_alarm_off(store, lenses, cache, tmp_path):
    knowing = gaussian_posterior(lenses[0], 0.01, np.linspace(-24, -22, 257))
    metrics = evaluated(store, Fixed(lenses[1], knowing), cache, tmp_path)
    assert any("leakage" in line and f"on {N} test images" in line for line in metrics["warnings"])
    assert metrics["floor_ratio"] < 0.2


def test_an_image_that_no_lens_explains_counts_for_nothing(lenses, tmp_path):
    truth, images = lenses[0][:3], lenses[1][:3].copy()
    images[1, 20:24, 40:44] += 30 * images[1].std()
    store = store_of(tmp_path / "store", (truth, images))
    answers = gaussian_posterior(truth, 0.1)
    metrics = evaluated(store, Fixed(images, answers), tmp_path / "cache", tmp_path / "all")
    assert metrics["floor_n_images"] == 2 and metrics["floor_n_unexplained"] == 1
    exact, explained = stored_posterior(store, np.arange(3), cache=tmp_path / "cache")
    assert explained.tolist() == [True, False, True]
    error = np.abs(exact.median - truth)[explained]
    assert metrics["floor_mae_dex"] == pytest.approx(error.mean(), rel=1e-4)
    assert not any("no lens" in line for line in metrics["warnings"]), "one may be bad luck"
    found = floor_stage(store, tmp_path / "floor.json", images=3, cache=tmp_path / "cache", progress=False)
    assert found["n_images"] == 2 and found["n_unexplained"] == 1
    assert [row["sample_id"] for row in found["images"]] == ["s0", "s2"]


def test_a_store_of_another_form_than_its_manifest_says_is_a_warning(lenses, tmp_path):
    truth, images = lenses[0][:4], lenses[1][:4].copy()
    images[:3, 20:24, 40:44] += 30 * images[:3].std()
    store = store_of(tmp_path / "most", (truth, images))
    answers = gaussian_posterior(truth, 0.1)
    metrics = evaluated(store, Fixed(images, answers), tmp_path / "cache", tmp_path / "out")
    assert any("explains 3 of 4 test images" in line for line in metrics["warnings"])
    none = store_of(tmp_path / "none", (truth[:3], images[:3]))
    metrics = evaluated(none, Fixed(images[:3], answers[:3]), tmp_path / "cache", tmp_path / "out")
    assert metrics["floor_mae_dex"] is None
    assert any("explains any of 3 images" in row["reason"] for row in metrics["missing"])
    with pytest.raises(NoFloor, match="explains any of 3 images"):
        floor_stage(none, tmp_path / "floor.json", images=3, cache=tmp_path / "cache", progress=False)


def test_without_images_there_is_no_floor_and_a_reason(store, lenses, cache, tmp_path):
    posterior = gaussian_posterior(lenses[0], 0.1)
    metrics = evaluated(store, Fixed(lenses[1], posterior), cache, tmp_path, floor_images=0)
    assert metrics["floor_mae_dex"] is None
    assert any("evaluate.floor_images is 0" in row["reason"] for row in metrics["missing"])


def test_the_alarm_on_numbers_alone():
    rng = np.random.default_rng(0)
    exact = np.abs(rng.normal(0, 0.05, 24))
    assert floor_warnings(TARGET, 0.3 * exact, exact, 0) != []
    assert floor_warnings(TARGET, np.abs(exact + rng.normal(0, 0.02, 24)), exact, 0) == []
    # Half a grid's bin below, surely and on every image, is nothing that only leakage explains.
    assert floor_warnings(TARGET, 0.98 * exact, exact, 0) == []
    assert floor_warnings(TARGET, 0.9 * exact, exact, 0) != []
    honest = [
        floor_warnings(TARGET, np.abs(rng.normal(0, 0.05, 24)), np.abs(rng.normal(0, 0.05, 24)), 0)
        for _ in range(100)
    ]
    assert sum(map(bool, honest)) <= 2


def test_what_was_computed_once_is_not_computed_again(store, cache, monkeypatch):
    before, _ = stored_posterior(store, np.arange(N), cache=cache)

    def refuse(images, *_, **__):
        assert list(images) == []
        return iter(())

    monkeypatch.setattr(floor_store, "exact_answers", refuse)
    again, _ = stored_posterior(store, np.arange(N)[::-1], cache=cache)
    np.testing.assert_array_equal(again.density[::-1], before.density)


def bit_flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: kept[:40],
        lambda kept: bit_flipped(kept, kept.rindex(b"PK\1\2") + 8),  # a zip's flag: encrypted
        lambda kept: bit_flipped(kept, kept.rindex(b"PK\1\2") + 10),  # a method of compression that is none
        lambda kept: bit_flipped(kept, len(kept) // 2),
    ],
)
def test_a_damaged_entry_is_computed_again(damage, store, lenses, cache):
    (folder,) = cache.iterdir()
    kept = (folder / "2.npz").read_bytes()
    (folder / "2.npz").write_bytes(damage(kept))
    again, _ = stored_posterior(store, np.array([2]), cache=cache)
    alone = exact_posterior(lenses[1][2:3], "model_iii", "physical", bins=BINS)
    np.testing.assert_array_equal(again.density, alone.density)
    assert (folder / "2.npz").read_bytes() == kept


def beside_of(n: int) -> Beside:
    """Exact posteriors, and a regressor that errs a little more on the same images."""
    posterior, truth = posterior_and_truth(n, seed=3)
    own = gaussian_posterior(posterior.median + np.random.default_rng(4).normal(0, 0.1, n), 0.3)
    exact, worse = (score(one, truth, np.full(n, -23.0)) for one in (posterior, own))
    return Beside(exact, worse, expected_error(posterior), 3)


def test_the_floors_numbers_and_their_errors_are_those_of_the_sample():
    beside = beside_of(400)
    exact, own = np.abs(beside.exact.error), np.abs(beside.own.error)
    values, errors = floor_numbers(beside, seed=0)
    ratio = own.mean() / exact.mean()
    assert values == pytest.approx(
        {
            "floor_mae_dex": exact.mean(),
            "floor_expected_mae_dex": beside.expected.mean(),
            "floor_same_images_mae_dex": own.mean(),
            "floor_ratio": ratio,
            "floor_n_images": 400,
            "floor_n_unexplained": 3,
        }
    )
    # Of a ratio of means over the same images, by the delta method: their common luck cancels.
    assert errors == pytest.approx(
        {
            "floor_mae_dex": exact.std() / 20,
            "floor_expected_mae_dex": beside.expected.std() / 20,
            "floor_same_images_mae_dex": own.std() / 20,
            "floor_ratio": (own - ratio * exact).std() / 20 / exact.mean(),
        },
        rel=0.05,
    )
    assert errors["floor_ratio"] < 0.8 * own.std() / 20 / exact.mean()
    assert set(floor_numbers(beside_of(1), seed=0)[1].values()) == {None}


def test_the_floor_by_mass_is_the_mean_of_each_bin():
    beside = beside_of(50)
    alone, *others = np.sort(beside.exact.truth)[::-1]
    edges = np.array([-25.0, -24.5, -23.2, (alone + others[0]) / 2, -21.9])  # none, some, most, one
    rows = floor_by_mass(beside, edges)
    for row, low, high in zip(rows[1:3], edges[1:3], edges[2:4], strict=True):
        error = np.abs(beside.exact.error)[(beside.exact.truth >= low) & (beside.exact.truth < high)]
        assert row == {
            "floor_n": len(error),
            "floor_mae_dex": pytest.approx(error.mean()),
            "floor_mae_dex_se": pytest.approx(error.std(ddof=1) / len(error) ** 0.5),
        }
    assert rows[0] == {"floor_n": 0, "floor_mae_dex": None, "floor_mae_dex_se": None}
    error = np.abs(beside.exact.error[beside.exact.truth.argmax()])
    assert rows[3] == {"floor_n": 1, "floor_mae_dex": pytest.approx(error), "floor_mae_dex_se": None}


def test_a_regressor_of_another_prior_has_no_floor(store, lenses, cache, tmp_path):
    half = gaussian_posterior(lenses[0], 0.1, np.linspace(-23, -22, 65))
    metrics = evaluated(store, Fixed(lenses[1], half), cache, tmp_path)
    assert metrics["floor_mae_dex"] is None
    reason = next(row["reason"] for row in metrics["missing"] if "prior range" in row["reason"])
    assert "[-24, -22], not for the regressor's prior range [-23, -22]" in reason


def test_forms_without_a_floor_say_why(lenses, tmp_path, prepared):
    published = store_of(tmp_path / "published", (lenses[0][:2], lenses[1][:2]), noise="published")
    with pytest.raises(NoFloor, match="rounding"):
        known_form(published)
    unknown = store_of(tmp_path / "unknown", (lenses[0][:2], lenses[1][:2]), noise=None)
    with pytest.raises(NoFloor, match="not known"):
        known_form(unknown)


def test_an_even_sample_holds_a_member_of_every_slice():
    truth = np.random.default_rng(1).uniform(-24, -22, 101)
    chosen = even_sample(truth, 20)
    assert len(set(chosen.tolist())) == 20 and (np.diff(chosen) > 0).all()
    assert np.abs(np.sort(truth[chosen]) - np.linspace(-23.95, -22.05, 20)).max() < 0.15
    assert even_sample(truth, 500).tolist() == list(range(101))
    assert len(even_sample(np.array([]), 5)) == 0


def test_expected_error_is_that_of_draws():
    posterior, _ = posterior_and_truth(5)
    draws = posterior.samples(40_000, 1)
    direct = np.abs(draws - posterior.median[:, None]).mean(axis=1)
    np.testing.assert_allclose(expected_error(posterior), direct, rtol=0.02)


def test_the_stage_writes_numbers_intervals_bound_and_figure(store, cache, tmp_path):
    out = tmp_path / "floor.json"
    found = floor_stage(store, out, images=6, mass_bins=2, cache=cache, progress=False)
    assert json.loads(out.read_text()) == found
    assert found["n_images"] == 6 and len(found["images"]) == 6 and len(found["by_mass"]) == 2
    assert found["images"][0]["q05"] < found["images"][0]["median"] < found["images"][0]["q95"]
    assert 0 < found["expected_mae_dex"] < 0.2 and found["standard_error"]["expected_mae_dex"] > 0
    sigma = found["cramer_rao"]["sigma_q50_dex"]
    assert len(sigma) == len(found["cramer_rao"]["log10_mass_ev"]) and sigma[0] < 0.003 < sigma[-1]
    assert (tmp_path / "floor.png").read_bytes().startswith(b"\x89PNG")
