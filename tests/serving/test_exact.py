"""`predict --exact`, `combine --exact`: the simulator's own likelihood, where a lens explains the image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from darkarc.config import DEFAULT_TARGET
from darkarc.evaluation.floor import ExactAnswer, exact_posterior
from darkarc.models import PopulationError, Posterior
from darkarc.serving import PredictError, load, predict_files
from darkarc.serving import exact as serving_exact
from darkarc.serving.combine import combine_files
from darkarc.serving.exact import ExactPosteriors, kept_beside
from darkarc.serving.table import QUANTILES, Journal, Row
from darkarc.simulation import draw_scenes, render, simulate

MODELS = Path(__file__).resolve().parents[2] / "models"
CHOSEN = np.array([3, 4, 7])  # of log10 m -23.79, -22.99 and -23.21


@pytest.fixture(scope="module")
def truth() -> NDArray[np.float64]:
    return np.asarray(draw_scenes("model_iii", "axion", 77, CHOSEN).log10_mass_ev)


@pytest.fixture(scope="module")
def images() -> NDArray[np.float64]:
    """Three lenses with a vortex; the second again, brighter by a percent; a smooth one; a flat frame."""
    scenes = draw_scenes("model_iii", "axion", 77, CHOSEN)
    lenses = render("model_iii", scenes, noise="physical", seed=77, indices=CHOSEN).numpy()
    smooth = draw_scenes("model_iii", "no_sub", 77, range(1))
    none = render("model_iii", smooth, noise="physical", seed=78).numpy()
    return np.concatenate([lenses, 1.01 * lenses[1:2], none, np.ones_like(none)])


@pytest.fixture(scope="module")
def exact(images: NDArray[np.float64]) -> Posterior:
    return exact_posterior(images[:3], "model_iii", "physical", bins=8192)


def table(path: Path) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize("workers", [1, 2])
def test_lenses_get_the_posterior_of_the_simulator(
    workers: int,
    images: NDArray[np.float64],
    truth: NDArray[np.float64],
    exact: Posterior,
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "lenses.npy", images)
    regressor, out = load(str(MODELS / "model_iii_physical.onnx")), tmp_path / "exact.parquet"
    summary = predict_files(
        regressor, [tmp_path / "lenses.npy"], out, exact=True, workers=workers, progress=False
    )
    assert (summary.n_mass, summary.n_other_class, summary.n_withheld) == (4, 1, 1)
    rows = table(out)
    own = regressor.predict(images.astype(np.float32))
    medians = np.array([row["log10_mass_median"] for row in rows[:3]])
    np.testing.assert_allclose(medians, exact.median, atol=2e-6)
    # It is the likelihood's answer, not the regressor's, which has fitted the vortex itself: that one is as
    # good as the best (13% wider) at the heaviest of the three and at its worst 20 times as wide.
    assert np.all(np.abs(medians - truth) < np.minimum(0.004, 3 * exact.std))
    assert np.all(np.abs(medians - own.median[:3]) > 5e-6)
    ratio = np.sort(exact.std / own.std[:3])
    assert ratio[2] < 1 and ratio[1] < 0.5 and ratio[0] < 0.1
    low, high = (np.array([row[name] for row in rows[:3]]) for name in ("q16", "q84"))
    np.testing.assert_allclose(np.stack([low, high], axis=1), exact.interval(0.68), atol=2e-6)
    assert [row["flag"] for row in rows[:3]] == [""] * 3
    # No lens of this preset is a percent brighter: what the regressor says stands, and says so.
    assert "not exact: no lens of this form explains it (chi-square off by +" in rows[3]["flag"]
    np.testing.assert_allclose(rows[3]["log10_mass_median"], own.median[3], atol=2e-6)
    assert all(row[name] is None for row in rows[4:] for name in QUANTILES)
    assert rows[4]["p_no_sub"] is not None and rows[5]["p_no_sub"] is None


def test_a_kill_costs_the_lenses_that_were_being_computed(
    images: NDArray[np.float64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the whole batch, which takes minutes; and what is left gives the undisturbed table."""
    images = images[[4, 0, 1, 5, 2]]
    np.save(tmp_path / "lenses.npy", images)
    regressor = load(str(MODELS / "model_iii_physical.onnx"))
    options = {"exact": True, "workers": 2, "progress": False}
    paths, undisturbed, out = [tmp_path / "lenses.npy"], tmp_path / "a.csv", tmp_path / "b.csv"
    predict_files(regressor, paths, undisturbed, **options)
    append, kept = Journal.append, []

    def killed(journal: Journal, rows: list[Row], digest: str) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append([row["path"] for row in rows])
        append(journal, rows, digest)

    monkeypatch.setattr(Journal, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_files(regressor, paths, out, **options)
    monkeypatch.undo()
    assert kept == [[f"{paths[0]}#0"], [f"{paths[0]}#1"]]
    # Neither the number of processes nor that of images in memory changes the work.
    summary = predict_files(regressor, paths, out, **options | {"workers": 1, "batch_size": 4})
    assert (summary.n_resumed, summary.n_images) == (2, len(images))
    assert out.read_bytes() == undisturbed.read_bytes()


def test_a_population_is_the_product_of_exact_posteriors(tmp_path: Path) -> None:
    """Of three lenses of one particle; a fourth, a percent too bright for the preset, does not count."""
    mass = -23.1
    images = simulate("model_iii", log10_mass_ev=np.full(4, mass), noise="physical", seed=12)
    images[3] *= 1.01
    np.save(tmp_path / "lenses.npy", images)
    regressor = load(str(MODELS / "model_iii_physical.onnx"))
    found = {
        exact: combine_files(
            regressor, [tmp_path / "lenses.npy"], tmp_path / "joint.json", axion_share=1.0, exact=exact
        )
        for exact in (False, True)
    }
    sharp = found[True]
    assert sharp["exact"] and not found[False]["exact"]
    assert sharp["n_lenses"] == 3 and sharp["left_out"][0]["path"].endswith("lenses.npy#3")
    assert sharp["left_out"][0]["reason"].startswith("not exact: no lens of this form explains it")
    assert sharp["correlation"] == 0 and sharp["power"] == 1 and "notice" not in sharp
    density = exact_posterior(images[:3], "model_iii", "physical", bins=8192)
    product = np.log(np.maximum(density.density, 1e-300)).sum(axis=0)
    peak = float(density.centres[product.argmax()])
    assert sharp["median"] == pytest.approx(peak, abs=5e-4)
    low, high = sharp["interval_95"]
    assert low - 1e-4 < mass < high + 1e-4
    weight = np.exp(product - product.max()) / np.exp(product - product.max()).sum()
    mean = weight @ density.centres
    width = np.sqrt(weight @ (density.centres - mean) ** 2)  # before the guard against missed maxima
    assert sharp["std"] == pytest.approx(width, rel=0.15)
    assert sharp["std"] < 0.75 * found[False]["std"]


def test_a_killed_population_goes_on(
    images: NDArray[np.float64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the files are called by then: what is known is known by the pixels."""
    regressor = load(str(MODELS / "model_iii_physical.onnx"))
    np.save(tmp_path / "a.npy", images[[0, 1, 3]])  # the last is explained by no lens
    np.save(tmp_path / "b.npy", images[[2]])
    paths, out = [tmp_path / "a.npy", tmp_path / "b.npy"], tmp_path / "joint.json"
    undisturbed = combine_files(regressor, paths, out, exact=True, batch_size=2)
    assert sorted(path.name for path in tmp_path.glob("joint*")) == ["joint.json", "joint.png"]
    asked: list[int] = []
    compute = serving_exact.exact_answers

    def killed(todo: NDArray[np.float32], *form: str, **options: Any) -> Iterator[ExactAnswer]:
        for answer in compute(todo, *form, **options):
            if len(asked) == 2:
                raise KeyboardInterrupt
            asked.append(1)
            yield answer

    monkeypatch.setattr(serving_exact, "exact_answers", killed)
    out.unlink()
    with pytest.raises(KeyboardInterrupt):
        combine_files(regressor, paths, out, exact=True, batch_size=2)
    assert len(list(tmp_path.glob(".joint.json.exact/*/*.npz"))) == 2 and not out.exists()
    asked.clear()
    paths[0].rename(tmp_path / "a2.npy")
    (tmp_path / ".joint.json.exact" / "of-older-code").mkdir()
    monkeypatch.undo()
    again = combine_files(regressor, [tmp_path], out, exact=True, workers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a2.npy", "b.npy", "joint.json", "joint.png"]
    told = ("path", "lenses", "left_out", "passed_over")
    assert {k: v for k, v in again.items() if k not in told} == {
        k: v for k, v in undisturbed.items() if k not in told
    }
    assert again["left_out"][0]["reason"] == undisturbed["left_out"][0]["reason"]


def test_what_is_kept_is_no_lens(images: NDArray[np.float64], tmp_path: Path) -> None:
    """The result among the lenses, found in the middle of the search, the first ones already kept."""
    for name, row in (("a", 0), ("b", 1), ("z", 2)):
        np.save(tmp_path / f"{name}.npy", images[[row]])
    (tmp_path / "results").mkdir()
    found = combine_files(
        load(str(MODELS / "model_iii_physical.onnx")),
        [tmp_path],
        tmp_path / "results" / "joint.json",
        exact=True,
        batch_size=2,
    )
    assert (found["n_lenses"], found["n_left_out"], found["passed_over"]) == (3, 0, {})


def test_one_result_is_computed_by_one_process(tmp_path: Path) -> None:
    regressor, out = load(str(MODELS / "model_iii_physical.onnx")), tmp_path / "joint.json"
    with kept_beside(out) as folder:
        (folder / "found.npz").write_text("")
        with pytest.raises(PredictError, match=r"joint\.json: another process is computing this result"):
            combine_files(regressor, [tmp_path], out, exact=True)
        assert (folder / "found.npz").exists()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PopulationError, match="no usable lens"):
        combine_files(regressor, [tmp_path], out, exact=True)
    assert list(tmp_path.iterdir()) == [], "nothing to go on with"


def test_one_missed_maximum_does_not_rule_the_truth_out() -> None:
    exact = ExactPosteriors(load(str(MODELS / "model_iii_physical.onnx")), DEFAULT_TARGET)
    centres = 0.5 * (exact.edges[1:] + exact.edges[:-1])
    wrong = np.exp(-0.5 * ((centres + 23.10) / 5e-4) ** 2)
    wrong /= wrong.sum() * np.diff(exact.edges)[0]
    edges = np.linspace(-24, -22, 65)
    wide = np.exp(-0.5 * ((0.5 * (edges[1:] + edges[:-1]) + 23.0) / 0.1) ** 2)
    own = Posterior(edges, (wide / (wide @ np.diff(edges)))[None], np.array([[1.0, 0, 0]]), DEFAULT_TARGET)
    mixed = exact.guarded(wrong, own)
    assert mixed @ np.diff(exact.edges) == pytest.approx(1)
    truth = int(np.searchsorted(exact.edges, -23.0))
    assert wrong[truth] < 1e-300 and mixed[truth] == pytest.approx(0.02 * own.density[0].max(), rel=0.1)
    assert mixed.max() == pytest.approx(0.98 * wrong.max(), rel=0.01)


@pytest.mark.parametrize("name", ["model_ii", "model_iii"])
def test_a_form_without_noise_has_no_exact_posterior(name: str, tmp_path: Path) -> None:
    regressor = load(str(MODELS / f"{name}.onnx"))
    with pytest.raises(
        PredictError, match=r"--exact: there is no exact posterior: .*only rounding limits it"
    ):
        predict_files(regressor, [tmp_path], tmp_path / "out.csv", exact=True)


def test_a_regressor_that_does_not_know_its_form_is_refused(make_regressor, lenses, tmp_path: Path) -> None:
    np.save(tmp_path / "lens.npy", lenses[0])
    with pytest.raises(PredictError, match="--exact: this regressor does not say which preset"):
        predict_files(make_regressor(), [tmp_path], tmp_path / "out.csv", exact=True)
