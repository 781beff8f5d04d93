"""Smaller arithmetic is kept only if it is faster and as good; the numbers of the decision are there."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from darkarc.config import Config, ExportConfig, parse
from darkarc.data.store import Store, StoreWriter
from darkarc.serving import OnnxRegressor, release, variants
from darkarc.serving.comparison import TestImages, Trial, images_per_second, objections, try_out
from darkarc.serving.release import ReleaseError, export_stage
from darkarc.serving.variants import as_markdown, as_records, make_variants
from darkarc.tracking.registry import CHALLENGER, ModelVersion

TARGET = "log10_axion_mass_ev"


def written(path: Path, lenses: np.ndarray, truth: np.ndarray) -> Store:
    """The last 40 lenses to calibrate, the others to test on."""
    n = len(lenses)
    with StoreWriter(
        path, name="lenses", origin="tests", instrument="model_iii", shape=(64, 64), dtype="float32",
        parameters={},
    ) as writer:  # fmt: skip
        rows = {
            "sample_id": [str(i) for i in range(n)],
            "class": ["axion"] * n,
            TARGET: truth.tolist(),
            "split": ["test"] * (n - 40) + ["calibration"] * 40,
        }
        writer.append(lenses, rows)
        return writer.commit()


@pytest.fixture(scope="module")
def store(lenses: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """100 lenses to test on, with any masses, and 40 to calibrate."""
    truth = np.random.default_rng(0).uniform(-24, -22, 140)
    return written(tmp_path_factory.mktemp("variants") / "prepared", lenses[:140], truth)


def test_what_passes_is_a_file_and_what_does_not_has_its_numbers(
    onnx_path: Path, store, lenses, monkeypatch, tmp_path
):
    settings = ExportConfig(
        variants=("float16", "int8"), least_speedup=1.2, error_tolerance=1.0, coverage_tolerance=1.0
    )
    monkeypatch.setattr(variants, "images_per_second", lambda *_: (100.0, 150.0))
    files, table = make_variants(onnx_path, store, settings)
    float32, float16, int8 = table
    assert float32.kept and int8.kept and int8.speedup == 1.5
    assert float16.kept and set(files) == {"model.float16.onnx", "model.int8.onnx"}
    assert float16.mae_dex == pytest.approx(float32.mae_dex, abs=0.01)
    exact = OnnxRegressor(onnx_path, threads=1).predict(lenses[:20])
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        found = OnnxRegressor(tmp_path / name, threads=1).predict(lenses[:20])
        np.testing.assert_allclose(found.class_probability, exact.class_probability, atol=0.25)
        assert found.novelty is not None and np.any(found.density != exact.density), name
    operators = {node.op_type for node in onnx.load_from_string(files["model.int8.onnx"]).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    kinds = {t.data_type for t in onnx.load_from_string(files["model.float16.onnx"]).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds

    monkeypatch.setattr(variants, "images_per_second", lambda *_: (100.0, 90.0))
    files, table = make_variants(onnx_path, store, settings)
    assert files == {} and not table[2].kept
    assert table[2].refusals[0] == "0.90 times as fast, asked are 1.2"
    assert "refused: 0.90 times as fast" in as_markdown(table)
    assert json.loads(json.dumps(as_records(table)))[0]["variant"] == "float32"


def test_a_variant_that_cannot_be_made_or_is_not_finite_is_refused_with_its_reason(
    onnx_path: Path, store, monkeypatch
):
    def overflowing(fused, store, folder):
        model = onnx.load(fused)
        for tensor in model.graph.initializer:
            if tensor.name == "target_layer.weight":
                array = onnx.numpy_helper.to_array(tensor) * np.float32(np.inf)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return model

    makers = {"float16": lambda *_: None, "int8": overflowing}
    monkeypatch.setattr(variants, "MAKERS", makers)
    files, table = make_variants(onnx_path, store, ExportConfig(variants=("float16", "int8")))
    assert files == {}
    assert [row.refusals for row in table[1:]] == [(variants.NOTHING_TO_CHANGE,), (variants.NOT_FINITE,)]


def with_weights_times(factor: float):
    """Makes a variant whose answers have their logits multiplied."""

    def make(fused, store, folder):
        model = onnx.load(fused)
        for tensor in model.graph.initializer:
            if tensor.name in ("target_layer.weight", "target_layer.bias"):
                array = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return model

    return make


def test_a_faster_variant_that_is_worse_is_refused(onnx_path: Path, lenses, monkeypatch, tmp_path):
    """Truths drawn from the model's own posteriors: it is calibrated, and what says otherwise is not."""
    truth = OnnxRegressor(onnx_path, threads=1).predict(lenses[:340]).samples(1, 0)[:, 0]
    honest = written(tmp_path / "prepared", lenses[:340], truth)
    settings = ExportConfig(variants=("float16", "int8"), error_tolerance=0.02, coverage_tolerance=0.02)
    monkeypatch.setattr(variants, "images_per_second", lambda *_: (100.0, 150.0))
    makers = {"float16": with_weights_times(-1.0), "int8": with_weights_times(3.0)}
    monkeypatch.setattr(variants, "MAKERS", makers)
    files, (float32, contrary, boastful) = make_variants(onnx_path, honest, settings)
    assert files == {} and not contrary.kept and not boastful.kept
    assert float32.coverage_68 == pytest.approx(0.68, abs=4 * np.sqrt(0.68 * 0.32 / 300))
    assert contrary.speedup == 1.5 and contrary.refusals[0].startswith("mean absolute error ")
    assert contrary.mae_dex > 1.2 * float32.mae_dex
    assert any(refusal.startswith("coverage at 68% is ") for refusal in boastful.refusals)
    assert boastful.coverage_68 < float32.coverage_68 - 0.1

    makers["int8"] = with_weights_times(1.0)
    files, table = make_variants(onnx_path, honest, settings)
    assert set(files) == {"model.int8.onnx"} and table[2].kept


@pytest.fixture
def registered(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is the registry's only version."""
    version = ModelVersion("axion-mass-regressor", 3, "run", "models:/m", {}, (CHALLENGER,))
    for name, answer in {
        "champion_version": None, "get_version": version, "download_model": onnx_path, "read_card": "# Card",
    }.items():  # fmt: skip
        monkeypatch.setattr(release, name, lambda *_, answer=answer: answer)


@pytest.mark.usefixtures("registered")
def test_the_export_holds_what_passed_and_tells_of_all(store, monkeypatch, tmp_path):
    speeds = iter([(100.0, 150.0), (100.0, 90.0)])
    monkeypatch.setattr(variants, "images_per_second", lambda *_: next(speeds))
    export_stage(Config(), tmp_path / "plain", prepared=store.path)
    assert not (tmp_path / "plain" / "variants.json").exists()

    asked = {"variants": ["float16", "int8"], "error_tolerance": 1.0, "coverage_tolerance": 1.0}
    settings = parse({"export": asked | {"least_speedup": 1.2}})
    with pytest.raises(ReleaseError, match="give the store"):
        export_stage(settings, tmp_path / "exported")
    export_stage(settings, tmp_path / "exported", prepared=store.path)
    found = {path.name for path in (tmp_path / "exported").glob("*.onnx")}
    assert found == {"model.onnx", "model.float16.onnx"}
    records = json.loads((tmp_path / "exported" / "variants.json").read_text())
    assert [(row["variant"], row["kept"], row["speedup"]) for row in records] == [
        ("float32", True, 1.0), ("float16", True, 1.5), ("int8", False, 0.9),
    ]  # fmt: skip
    card = (tmp_path / "exported" / release.CARD_FILE).read_text()
    assert card.startswith("# Card\n") and "\n## Variants\n" in card
    assert f"| float16 | 1.50 | {records[1]['megabytes']:.2f} | {records[1]['mae_dex']:.4f} |" in card
    assert "| refused: 0.90 times as fast, asked are 1.2 |" in card


@pytest.mark.usefixtures("registered")
def test_a_number_that_is_not_finite_is_null(lenses: np.ndarray, monkeypatch, tmp_path):
    truth = np.random.default_rng(0).uniform(-24, -22, 60)
    truth[0] = -21.5  # outside of the prior, where no posterior has any density
    store = written(tmp_path / "prepared", lenses[:60], truth)
    monkeypatch.setattr(variants, "MAKERS", {"int8": lambda *_: None})
    export_stage(parse({"export": {"variants": ["int8"]}}), tmp_path / "exported", prepared=store.path)
    text = (tmp_path / "exported" / "variants.json").read_text()
    float32, int8 = json.loads(text, parse_constant=pytest.fail)
    assert float32["nll"] is None and 0 < float32["mae_dex"] < 2 and float32["kept"]
    assert int8["refusals"] == [variants.NOTHING_TO_CHANGE]


def test_none_are_made_unless_asked_for(onnx_path: Path, store):
    assert make_variants(onnx_path, store, ExportConfig()) == ({}, [])


def test_a_variant_may_be_neither_less_accurate_nor_less_calibrated():
    rng = np.random.default_rng(0)
    errors = np.abs(rng.normal(0, 0.1, 2000))
    good = Trial(errors, {68: 0.69, 90: 0.90}, 0.0)
    limits = {"error_tolerance": 0.02, "coverage_tolerance": 0.01}
    assert (
        objections(good, Trial(errors + rng.normal(0, 0.001, 2000), {68: 0.675, 90: 0.905}, 0.0), **limits)
        == []
    )
    (error,) = objections(good, Trial(1.05 * errors, good.coverage, 0.0), **limits)
    assert error.startswith("mean absolute error")
    (coverage,) = objections(good, Trial(errors, {68: 0.64, 90: 0.90}, 0.0), **limits)
    assert coverage == "coverage at 68% is 64.0% against 69.0%"


def test_the_comparison_measures_what_it_says(onnx_path: Path, store):
    regressor = OnnxRegressor(onnx_path, threads=1)
    test = TestImages.of(store, TARGET)
    assert len(test.truth) == 100
    trial = try_out(regressor, test, TARGET)
    posterior = regressor.predict(test.images)
    assert trial.mae == pytest.approx(np.abs(posterior.median - test.truth).mean())
    low, high = posterior.interval(0.68).T
    assert trial.coverage[68] == pytest.approx(np.mean((test.truth >= low) & (test.truth <= high)), abs=0.011)
    assert trial.nll == pytest.approx(-posterior.log_prob(test.truth).mean())
    first, second = images_per_second(regressor, regressor, test.images[:8])
    assert 0.2 < first / second < 5
