"""The whole evaluation on small stores: what it writes, what it says, what it refuses."""

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from darkarc.config import Config, parse
from darkarc.data.store import Store
from darkarc.evaluation import EvaluationError, evaluate
from darkarc.evaluation.evaluate import read_history
from darkarc.evaluation.floor.beside import NAMES as FLOOR_NAMES
from darkarc.evaluation.gallery import best_and_worst
from darkarc.evaluation.metrics import score
from darkarc.evaluation.predictions import predict_split, read_test_errors, split_rows, true_values
from darkarc.models import Posterior, Regressor, RegressorSpec
from darkarc.tracking import NullTracker
from tests.evaluation.conftest import HISTORY, SIDE, PixelReader, make_store, posterior_and_truth


class Notebook(NullTracker):
    """Remembers what was logged."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.artifacts: list[tuple[str, str]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics |= metrics

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        assert Path(path).exists()
        self.artifacts.append((Path(path).name, folder))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def evaluated(
    prepared: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], Notebook]:
    out = tmp_path_factory.mktemp("evaluated") / "reports"
    tracker = Notebook()
    config = parse({"evaluate": {"batch_size": 64, "examples": 4, "mass_bins": 5}})
    metrics = evaluate(config, PixelReader(), prepared, out=out, tracker=tracker, history=HISTORY)
    return out, metrics, tracker


def test_numbers_are_those_of_an_exact_reader(evaluated: tuple[Path, dict[str, Any], Notebook]) -> None:
    _, metrics, _ = evaluated
    # The mean absolute deviation of a normal distribution of width 0.1.
    assert metrics["mae_dex"] == pytest.approx(0.1 * np.sqrt(2 / np.pi), abs=0.012)
    assert metrics["coverage_68"] == pytest.approx(0.68, abs=0.1)
    assert metrics["constant_guess_mae_dex"] == pytest.approx(0.5, abs=0.06)
    assert metrics["constant_guess_rmse_dex"] == pytest.approx(0.577, abs=0.06)
    assert metrics["n_test"] == 400 and metrics["n_scored"] == 300
    assert metrics["class_auc"] > 0.9
    assert metrics["published_best_mae_dex"] == 0.1262
    assert "std_between" not in metrics and "std_within" not in metrics
    assert metrics["warnings"] == []
    assert [row["metric"] for row in metrics["missing"]] == ["floor_mae_dex"]
    assert "only rounding limits it" in metrics["missing"][0]["reason"]
    assert sum(row["n"] for row in metrics["by_mass"]) == 300 and len(metrics["by_mass"]) == 5
    assert [row["n"] for row in metrics["by_tercile"]] == [100, 100, 100]
    for row in metrics["by_mass"]:
        for level in (50, 68, 90, 95):
            expected = row[f"coverage_{level}_expected"]
            error = np.sqrt(expected * (1 - expected) / row["n"])
            assert abs(row[f"coverage_{level}"] - expected) < 4 * error + 0.02


def test_the_file_holds_what_was_returned_and_only_finite_numbers(
    evaluated: tuple[Path, dict[str, Any], Notebook],
) -> None:
    out, metrics, _ = evaluated
    text = (out / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(text) == metrics
    assert "NaN" not in text and "Infinity" not in text
    scalars = [value for value in metrics.values() if not isinstance(value, list | dict)]
    assert all(isinstance(value, int | float) or value is None for value in scalars)
    assert {name for name, value in metrics.items() if value is None} >= set(FLOOR_NAMES)


def test_every_file_is_there_and_nothing_else(evaluated: tuple[Path, dict[str, Any], Notebook]) -> None:
    out, _, _ = evaluated
    figures = (
        "calibration",
        "classes",
        "error_by_mass",
        "examples",
        "learning_curves",
        "prediction",
        "published",
    )
    plots = ("coverage", "error_by_mass", "pit", "prediction")
    assert set(digests(out)) == {
        "metrics.json", "report.html", "by_mass.csv", "test_predictions.parquet",
        *(f"figures/{name}.png" for name in figures), *(f"plots/{name}.csv" for name in plots),
    }  # fmt: skip


def test_prediction_table(evaluated: tuple[Path, dict[str, Any], Notebook], prepared: Store) -> None:
    out, metrics, _ = evaluated
    table = pq.read_table(out / "test_predictions.parquet")
    assert table.column_names == [
        "sample_id", "class", "truth", "median", "mean", "std", "q05", "q16", "q84", "q95", "log_prob", "pit",
        "crps", "p_axion", "p_cdm", "p_no_sub",
    ]  # fmt: skip
    rows = split_rows(prepared, "test")
    assert table["sample_id"].to_pylist() == [prepared.samples["sample_id"][int(i)].as_py() for i in rows]
    assert table["truth"].null_count == table["pit"].null_count == 100
    assert table["median"].null_count == 0
    error = np.abs(np.array(table["median"]) - np.array(table["truth"], dtype=float))
    assert np.nanmean(error) == pytest.approx(metrics["mae_dex"], rel=1e-5)
    np.testing.assert_array_equal(
        read_test_errors(out / "test_predictions.parquet"), error[np.isfinite(error)]
    )


def test_a_broken_prediction_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(EvaluationError, match=r"t\.parquet.*evaluate again"):
        read_test_errors(tmp_path / "t.parquet")


def test_tracker_gets_numbers_figures_and_report(evaluated: tuple[Path, dict[str, Any], Notebook]) -> None:
    _, metrics, tracker = evaluated
    assert tracker.metrics["test/mae_dex"] == metrics["mae_dex"]
    assert tracker.metrics["test/class_auc"] == metrics["class_auc"]
    names = [name for name, _ in tracker.artifacts]
    assert {"figures", "plots", "report.html", "metrics.json", "test_predictions.parquet"} <= set(names)


def test_same_input_same_bytes_whatever_was_there_before(
    evaluated: tuple[Path, dict[str, Any], Notebook], prepared: Store, config: Config, tmp_path: Path
) -> None:
    out, _, _ = evaluated
    again = tmp_path / "reports"
    (again / "figures").mkdir(parents=True)
    (again / "figures" / "stale.png").write_bytes(b"old")
    (again / "metrics.json").write_text("{}")
    # This time the learning curves come from the file that training leaves there.
    with (again / "history.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(HISTORY[0]))
        writer.writeheader()
        writer.writerows(HISTORY)
    evaluate(config, PixelReader(), prepared, out=again, tracker=NullTracker())
    (again / "history.csv").unlink()
    assert digests(again) == digests(out)


def test_a_damaged_table_of_learning_curves_is_named(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    assert read_history(path) == []
    path.write_text("epoch,train_loss\n1,nonsense\n")
    with pytest.raises(EvaluationError, match=r"history\.csv.*train again"):
        read_history(path)


def test_batches_bound_what_is_read_at_once(prepared: Store) -> None:
    reader = PixelReader()
    small = predict_split(reader, prepared, "test", batch_size=7, seed=0)
    assert reader.largest_batch == 7
    whole = predict_split(PixelReader(), prepared, "test", batch_size=1000, seed=0)
    target = reader.targets[0]
    np.testing.assert_allclose(small.scores[target].tarp, whole.scores[target].tarp, rtol=1e-12)
    np.testing.assert_allclose(small.class_probability, whole.class_probability, rtol=1e-12)


def test_options_change_the_result(
    evaluated: tuple[Path, dict[str, Any], Notebook], prepared: Store, tmp_path: Path
) -> None:
    out, before, _ = evaluated
    config = parse({"evaluate": {"mass_bins": 3, "examples": 1}, "seed": 7})
    metrics = evaluate(config, PixelReader(), prepared, out=tmp_path, tracker=NullTracker(), history=HISTORY)
    assert len(metrics["by_mass"]) == 3 and len(before["by_mass"]) == 5
    images = [(folder / "figures" / "examples.png").read_bytes() for folder in (tmp_path, out)]
    assert images[0] != images[1]
    assert metrics["mae_dex"] == before["mae_dex"]
    assert metrics["standard_error"]["mae_dex"] != before["standard_error"]["mae_dex"]


class TwoMinds(PixelReader):
    """An ensemble whose members disagree by a part of the width that they state together."""

    def predict(self, images: NDArray[Any], *, target: str | None = None, batch_size: int = 256) -> Posterior:
        own = super().predict(images, target=target, batch_size=batch_size)
        share = np.linspace(0.2, 0.6, len(own))
        return Posterior(
            own.edges, own.density, own.class_probability, own.target, std_between=share * own.std
        )


def test_an_ensembles_spread_is_split_in_two(config: Config, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", per_class={"axion": 60})
    metrics = evaluate(config, TwoMinds(), store, out=tmp_path / "r", tracker=NullTracker())
    posterior = TwoMinds().predict(store.images(split_rows(store, "test")))
    between = np.sqrt(np.mean(posterior.std_between**2))
    assert metrics["std_between"] == pytest.approx(between, rel=1e-5)
    assert metrics["std_within"] == pytest.approx(np.sqrt(np.mean(posterior.std**2) - between**2), rel=1e-5)
    assert "Spread between members" in (tmp_path / "r" / "report.html").read_text("utf-8")


def test_no_axion_images_give_nulls_with_reasons(config: Config, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", per_class={"cdm": 30, "no_sub": 30})
    metrics = evaluate(config, PixelReader(), store, out=tmp_path / "r", tracker=NullTracker())
    assert metrics["mae_dex"] is None and metrics["constant_guess_mae_dex"] is None
    reasons = {row["metric"]: row["reason"] for row in metrics["missing"]}
    assert reasons["mae_dex"] == "no images with a true value"
    assert reasons["class_auc"] == "the test split has no axion images"
    assert metrics["auc_cdm"] is not None and metrics["class_accuracy"] is not None
    assert "only the classes were tested" in (tmp_path / "r" / "report.html").read_text("utf-8")


def test_axion_images_alone_and_a_single_one(config: Config, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", per_class={"axion": 2})
    metrics = evaluate(config, PixelReader(), store, out=tmp_path / "r", tracker=NullTracker())
    assert metrics["n_scored"] == 1 and metrics["mae_dex"] is not None
    assert metrics["r2"] is None and metrics["standard_error"]["mae_dex"] is None
    assert metrics["class_auc"] is None and metrics["by_tercile"] == []


def test_an_untrained_regressor_sets_the_alarm_off(config: Config, tmp_path: Path) -> None:
    store = make_store(
        tmp_path / "store", per_class={"axion": 120, "cdm": 40, "no_sub": 40}, noise="physical"
    )
    statistics = {"mean": 0.0, "std": 1.0, "background": 0.0, "noise_level": 1.0}
    spec = RegressorSpec(
        targets={"log10_axion_mass_ev": (-24.0, -22.0)},
        shape=(SIDE, SIDE),
        model=config.model.model_dump(),
        statistics=statistics,
        instrument="model_iii",
    )
    metrics = evaluate(config, Regressor(spec), store, out=tmp_path / "r", tracker=NullTracker())
    assert any("constant guess" in line for line in metrics["warnings"])
    assert metrics["nll"] == pytest.approx(np.log(2.0), abs=1e-4)
    assert "published_best_mae_dex" not in metrics
    assert all(
        "noise: published there, physical here" in row["not_comparable"] for row in metrics["published"]
    )
    page = (tmp_path / "r" / "report.html").read_text("utf-8")
    assert 'class="warning"' in page and "Not comparable with ours" in page


class TwoTargets(PixelReader):
    targets = ("log10_axion_mass_ev", "log10_subhalo_mass_msun")  # type: ignore[assignment]  # one more


def test_a_second_target_has_its_own_numbers_and_files(config: Config, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", per_class={"axion": 60, "cdm": 60, "no_sub": 20})
    config = config.model_copy(
        update={"targets": {"log10_axion_mass_ev": (-24.0, -22.0), "log10_subhalo_mass_msun": (-24.0, -22.0)}}
    )
    metrics = evaluate(config, TwoTargets(), store, out=tmp_path / "r", tracker=NullTracker())
    other = metrics["targets"]["log10_subhalo_mass_msun"]
    assert other["n_scored"] == 30 and metrics["n_scored"] == 30
    assert other["mae_dex"] != metrics["mae_dex"]
    assert (tmp_path / "r" / "figures" / "prediction_log10_subhalo_mass_msun.png").exists()
    assert (tmp_path / "r" / "plots" / "coverage_log10_subhalo_mass_msun.csv").exists()
    table = pq.read_table(tmp_path / "r" / "test_predictions.parquet")
    assert table["log10_subhalo_mass_msun_truth"].null_count == 40
    assert "subhalo mass" in (tmp_path / "r" / "report.html").read_text("utf-8").lower()


def test_a_target_counts_for_its_own_class_only(prepared: Store) -> None:
    rows = np.arange(len(prepared))
    values = true_values(prepared, rows, "log10_axion_mass_ev")
    axion = np.array(prepared.samples["class"].to_pylist()) == "axion"
    np.testing.assert_array_equal(np.isfinite(values), axion)


def test_refusals_name_the_remedy(prepared: Store, config: Config, tmp_path: Path) -> None:
    without = make_store(tmp_path / "store", per_class={"axion": 4}, splits=("train",))
    with pytest.raises(EvaluationError, match=r"no image belongs to the split 'test'.*prepare\.test"):
        evaluate(config, PixelReader(), without, out=tmp_path / "r", tracker=NullTracker())

    class Wide(PixelReader):
        shape = (SIDE, SIDE + 1)

    with pytest.raises(EvaluationError, match=r"8 x 8 pixels, the regressor takes 8 x 9"):
        evaluate(config, Wide(), prepared, out=tmp_path / "r", tracker=NullTracker())

    class Broken(PixelReader):
        def predict(self, images: Any, *, target: str | None = None, batch_size: int = 256) -> Any:
            images = images.copy()
            images[1, 0, 0] = np.nan
            return super().predict(images, target=target, batch_size=batch_size)

    with pytest.raises(EvaluationError, match=r"no posterior of log10_axion_mass_ev.*s00001"):
        evaluate(config, Broken(), prepared, out=tmp_path / "r", tracker=NullTracker())
    assert not (tmp_path / "r" / "metrics.json").exists()


def test_best_ones_span_the_masses_and_worst_ones_are_the_worst() -> None:
    posterior, truth = posterior_and_truth(200)
    scores = score(posterior, truth, truth)
    best, worst = best_and_worst(scores, 4)
    assert np.histogram(truth[best], bins=np.quantile(truth, [0, 0.25, 0.5, 0.75, 1]))[0].tolist() == [1] * 4
    assert scores.log_prob[worst].tolist() == sorted(scores.log_prob)[:4]
    few_best, few_worst = best_and_worst(scores[:2], 4)
    assert len(few_best) == len(few_worst) == 2


def test_importing_the_package_draws_nothing() -> None:
    heavy = ("matplotlib", "sklearn", "mlflow", "ray")
    code = f"import sys, darkarc.evaluation; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
