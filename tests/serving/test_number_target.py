"""A target that is a number and no logarithm: trained, evaluated, reported, and answered on the web page."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darkarc.config import TARGET_CLASS, TARGET_UNIT, Config, in_unit, parse, with_unit
from darkarc.data.store import Store, StoreWriter
from darkarc.evaluation import Scores, describe_data, evaluate, model_card, predict_split, summarise
from darkarc.evaluation.alarms import target_warnings
from darkarc.evaluation.benchmark import Table, TableRow
from darkarc.evaluation.binning import by_bin, mass_edges
from darkarc.evaluation.figures import error_figure, learning_figure, prediction_figure
from darkarc.evaluation.figures.frontier import frontier_figure
from darkarc.evaluation.metrics import STATISTICS
from darkarc.evaluation.predictions import split_rows
from darkarc.evaluation.published import Comparison
from darkarc.evaluation.style import NAMES, SYMBOLS, axis_label, style
from darkarc.models import Regressor
from darkarc.serving.variants import Decision, as_markdown
from darkarc.serving.web.answers import UNITS, FileAnswers, model_facts
from darkarc.serving.web.worker import _answer
from darkarc.tracking.tracker import NullTracker
from darkarc.training import train
from darkarc.training.display import Terminal
from darkarc.training.recalibrate import recalibrate

SIDE = 16
NUMBER = "n_subhalos"
SPLITS = {"train": 120, "validation": 40, "calibration": 80, "test": 60}
MOST = 40


def write_store(path: Path, fitted_statistics: Callable[[np.ndarray], dict[str, Any]]) -> Store:
    """Squares (cdm) whose width tells how many subhaloes there are, and round blobs without any."""
    rng = np.random.default_rng(0)
    n = sum(SPLITS.values())
    classes = np.array([("cdm", "cdm", "no_sub")[i % 3] for i in range(n)])
    number = rng.integers(0, MOST + 1, n)
    x = np.abs(np.arange(SIDE) - (SIDE - 1) / 2)
    width = 1 + 3 * number[:, None, None] / MOST
    shape = np.where((classes == "cdm")[:, None, None], np.maximum(x, x[:, None]), np.hypot(x, x[:, None]))
    images = np.exp(-(shape**2) / (2 * width**2))
    images = (images + 0.02 * rng.normal(size=images.shape)).astype(np.float32)
    split = rng.permutation(np.repeat(list(SPLITS), list(SPLITS.values())))
    writer = StoreWriter(
        path, name="numbers", origin="t", instrument="t", shape=(SIDE, SIDE), dtype="float32", parameters={}
    )
    writer.append(
        images,
        {
            "sample_id": [f"{i}" for i in range(n)],
            "class": list(classes),
            NUMBER: [int(k) if kind == "cdm" else None for k, kind in zip(number, classes, strict=True)],
            "split": list(split),
        },
    )
    statistics = fitted_statistics(images[split == "train"]) | {"background": 0.0, "noise_level": 0.02}
    writer.attach(
        "statistics.json", json.dumps(statistics | {"shape": [SIDE, SIDE], "instrument": "t"}).encode()
    )
    return writer.commit()


@pytest.fixture(scope="module")
def config() -> Config:
    return parse(
        {
            "device": "cpu",
            "targets": {NUMBER: [0, MOST]},
            "model": {"width": 0.25, "bins": 40, "novelty": "none"},
            "train": {"epochs": 12, "batch_size": 20, "learning_rate": 1e-2, "label_sigma_dex": 1.0},
            "evaluate": {"mass_bins": 2, "examples": 1},
        }
    )


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, fitted_statistics: Callable[[np.ndarray], dict[str, Any]]
) -> Store:
    return write_store(tmp_path_factory.mktemp("number") / "prepared", fitted_statistics)


@pytest.fixture(scope="module")
def regressor(config: Config, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Regressor:
    work = tmp_path_factory.mktemp("work")
    trained = train(config, store, workdir=work, tracker=NullTracker(), progress=False).regressor
    recalibrate(config, trained, store)
    return trained


def test_every_target_has_a_name_a_symbol_and_a_unit() -> None:
    for known in (NAMES, SYMBOLS, UNITS, TARGET_UNIT):
        assert set(known) == set(TARGET_CLASS)


def test_it_is_evaluated_and_no_text_calls_its_unit_dex(
    config: Config, store: Store, regressor: Regressor, tmp_path: Path
) -> None:
    metrics = evaluate(config, regressor, store, out=tmp_path, tracker=NullTracker())
    rows = split_rows(store, "test")
    truth = store.samples[NUMBER].to_numpy()[rows]
    known = np.isfinite(truth)
    error = np.abs(regressor.predict(store.images(rows)).median[known] - truth[known])
    assert metrics["n_scored"] == known.sum() < metrics["n_test"]
    assert metrics["mae_dex"] == pytest.approx(error.mean(), rel=1e-4)
    assert metrics["mae_dex"] < 0.7 * metrics["constant_guess_mae_dex"]
    page = re.sub(r"base64,[^\"]*", "", (tmp_path / "report.html").read_text())
    card = model_card(regressor.spec, metrics, data=describe_data(store))
    mae = f"{metrics['mae_dex']:.4f} ± {metrics['standard_error']['mae_dex']:.4f}"
    assert "How well is the number of subhaloes read" in page and f"error <strong>{mae}</strong>" in page
    assert f"| Mean absolute error | {mae} |" in card
    for text in (page, card):
        assert "The mean absolute error goes from" in text
        assert re.findall(r".{0,60}\bdex\b", text) == []


def test_the_page_s_worker_answers_with_a_number(store: Store, regressor: Regressor, tmp_path: Path) -> None:
    chosen = [row for row in split_rows(store, "test") if store.samples["class"][int(row)].as_py() == "cdm"]
    np.save(tmp_path / "lenses.npy", store.images(chosen[:3]))
    facts = model_facts(regressor, "squares", gate=0.0)
    assert (facts["target_name"], facts["unit"], facts["prior"]) == ("number of subhaloes", "N", [0, MOST])
    asked = [{"name": "lenses.npy", "path": str(tmp_path / "lenses.npy"), "reason": ""}]
    (answered,) = _answer(FileAnswers(regressor, 0.0, 10), asked)["files"]
    medians = regressor.predict(store.images(chosen[:3])).median
    for image, median in zip(answered["images"], medians, strict=True):
        assert image["row"]["log10_mass_median"] == pytest.approx(median, abs=1e-3)
        assert (image["posterior"]["low"], image["posterior"]["high"]) == (0, MOST)


def test_a_unit_is_written_where_there_is_one(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    mass = "log10_axion_mass_ev"
    assert (in_unit("0.1", mass), in_unit("0.1", NUMBER)) == ("0.1 dex", "0.1")
    assert (with_unit("MAE", mass), with_unit("MAE", NUMBER)) == ("MAE (dex)", "MAE")
    assert axis_label(NUMBER, "true") == r"true $N_\mathrm{sub}$"
    row = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "val_mae_dex": 2.0}
    for target, said in ((mass, "val MAE 2.0000 dex\n"), (NUMBER, "val MAE 2.0000\n")):
        Terminal(1, target).epoch(row)
        assert capsys.readouterr().err.endswith(said)
        table = [Decision("float32", True, (), target=target)]
        assert f"| MB | {with_unit('MAE', target)} | coverage" in as_markdown(table)


def test_axes_carry_the_unit_of_their_target(config: Config, store: Store, regressor: Regressor) -> None:
    scores, rows = scored(config, store, regressor)
    nothing = Comparison((), "nothing is published")
    run = {"val_mae_dex": 3.0, "million_parameters": 0.1}
    table = Table("t", "1 epochs", "million_parameters", [TableRow({"a": "1"}, {0: run})], target=NUMBER)
    with style():
        figures = [
            prediction_figure(NUMBER, scores, regressor.edges(NUMBER)),
            error_figure(NUMBER, scores, rows, 20.0, nothing),
            learning_figure([{"epoch": 1, "val_mae_dex": 3.0, "learning_rate": 0.1}], NUMBER),
            frontier_figure(table),
        ]
    labels = [
        text
        for figure in figures
        for axes in figure.axes
        for text in (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left"))
    ]
    assert {"residual", "absolute error", "validation MAE", r"true $N_\mathrm{sub}$"} <= set(labels)
    assert not any("dex" in text or "log" in text for text in labels)


def test_an_alarm_has_the_unit_of_its_target(config: Config, store: Store, regressor: Regressor) -> None:
    scores, _ = scored(config, store, regressor)
    values, errors = summarise(scores)[0], dict.fromkeys(STATISTICS, 0.0)
    asked = {"constant_guess": 0.001, "prior": (0.0, float(MOST)), "coverage_tolerance": 1.0}
    (line,) = target_warnings(NUMBER, scores, values, errors, **asked)
    assert line.startswith(f"{NUMBER}: the mean absolute error {values['mae_dex']:.4f} is no better")
    assert "dex" not in line


def scored(config: Config, store: Store, regressor: Regressor) -> tuple[Scores, list[dict[str, Any]]]:
    """Scores of the test images with a number, and the same by bin of it."""
    predictions = predict_split(regressor, store, "test", batch_size=64, seed=0)
    scores = predictions.scores[NUMBER][predictions.with_truth(NUMBER)]
    return scores, by_bin(scores, scores.truth, mass_edges(0.0, float(MOST), 2), seed=0)
