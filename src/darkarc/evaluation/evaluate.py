"""`evaluate`: a trained regressor and a prepared store in, all the evidence out."""

import csv
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from darkarc.config import DEFAULT_TARGET, TARGET_CLASS, Config
from darkarc.data.form import data_form
from darkarc.data.store import Store
from darkarc.durable import sync
from darkarc.evaluation.alarms import leakage_warnings, target_warnings
from darkarc.evaluation.binning import add_expected_coverage, by_bin, mass_edges, tercile_edges
from darkarc.evaluation.classes import ClassScores, class_standard_errors, score_classes
from darkarc.evaluation.context import describe_data, describe_regressor, train_median
from darkarc.evaluation.metrics import EvaluationError, Scores, standard_errors, summarise
from darkarc.evaluation.ood import StrangeImages, strange_images, summary
from darkarc.evaluation.predictions import Predictions, Predictor, predict_split, write_predictions
from darkarc.evaluation.published import Comparison, compare

if TYPE_CHECKING:
    from darkarc.evaluation.figures.training import History
    from darkarc.evaluation.report import Illustration
    from darkarc.tracking import Tracker

OWN_FOLDERS = ("figures", "plots")
METRICS_FILE = "metrics.json"


@dataclass(frozen=True, eq=False)
class TargetResult:
    """Everything measured about one target; `scores` holds the images that have a true value."""

    target: str
    scores: Scores
    guess: float | None
    comparison: Comparison
    metrics: dict[str, Any]


def evaluate(
    config: Config,
    regressor: Predictor,
    prepared: Store,
    *,
    out: Path,
    tracker: "Tracker",
    history: "History | None" = None,
    floor_cache: Path | None = None,
    lineage: Mapping[str, str] | None = None,
    regressor_sha256: str | None = None,
    workers: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a regressor on the test split and write the evidence into `out`; returns the metrics.

    Writes `figures/*.png`, `plots/*.csv`, `by_mass.csv`, `test_predictions.parquet`, `report.html` and, last,
    `metrics.json`; logs the numbers (prefix `test/`), the figures and the report to the tracker.
    history: a row an epoch, for the learning curves (default: `out/history.csv` where training left it).
    lineage: name to value, where the regressor comes from, for the report.
    regressor_sha256: of the regressor's folder (`sealed_sha256`), so that `register` knows whose numbers they
    are.
    floor_cache, workers: where exact posteriors of these data are kept, and processes that compute them.
    Raises `EvaluationError` for an empty test split, images of another size or predictions that are no
    probability densities.
    """
    out.mkdir(parents=True, exist_ok=True)
    if history is None:
        history = read_history(out / "history.csv")
    predictions = predict_split(
        regressor,
        prepared,
        "test",
        batch_size=config.evaluate.batch_size,
        seed=config.seed,
        mass_bins=config.evaluate.mass_bins,
        progress=progress,
    )
    results = [_measure(config, prepared, predictions, target) for target in regressor.targets]
    if DEFAULT_TARGET in predictions.scores:
        from darkarc.evaluation.floor.report import add_floor

        metrics_of = {result.target: result.metrics for result in results}
        add_floor(
            metrics_of[DEFAULT_TARGET],
            prepared,
            predictions,
            config.evaluate.floor_images,
            seed=config.seed,
            cache=floor_cache,
            workers=workers,
            progress=progress,
        )
    known = predictions.label >= 0
    labels, probability = predictions.label[known], predictions.class_probability[known]
    classes = score_classes(labels, probability)
    class_errors = class_standard_errors(labels, probability, config.seed)
    strange = strange_images(regressor, prepared, n=config.evaluate.ood_images, seed=config.seed)
    leaks = leakage_warnings(prepared)
    metrics = _document(results, predictions, classes, class_errors, strange, leaks)
    metrics["tested_on"] = [{"digest": prepared.digest}]
    if regressor_sha256 is not None:
        metrics["regressor"] = [{"sha256": regressor_sha256}]
    illustrations = _illustrate(config, regressor, prepared, predictions, results, classes, strange, history)
    report = _report(config, regressor, prepared, results[0], metrics, lineage or {}, illustrations)
    _write(out, predictions, results, metrics, illustrations, report)
    _track(tracker, out, metrics)
    return metrics


def read_history(path: Path) -> "History":
    """Rows of the learning curves that training wrote, without empty fields; none without the file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        except (ValueError, TypeError) as error:
            raise EvaluationError(f"{path}: not a table of learning curves: {error}; train again") from error


def _measure(config: Config, prepared: Store, predictions: Predictions, target: str) -> TargetResult:
    known = predictions.with_truth(target)
    scores = predictions.scores[target][known]
    edges = predictions.edges[target]
    low, high = float(edges[0]), float(edges[-1])
    values, reasons = summarise(scores)
    errors = standard_errors(scores, config.seed)
    guess = train_median(prepared, target, TARGET_CLASS[target])
    comparison = compare(target, data_form(prepared.manifest))
    metrics: dict[str, Any] = {"n_scored": len(scores), **values}
    away = scores.truth - guess if guess is not None and len(scores) else None
    metrics["constant_guess_mae_dex"] = None if away is None else float(np.mean(np.abs(away)))
    metrics["constant_guess_rmse_dex"] = None if away is None else float(np.sqrt(np.mean(away**2)))
    if comparison.comparable and comparison.best is not None:
        metrics["published_best_mae_dex"] = comparison.best.mae_dex
    metrics["standard_error"] = errors
    if len(scores) and scores.std_between.any():
        between = float(np.mean(scores.std_between**2))
        metrics["std_within"] = float(np.sqrt(max(float(np.mean(scores.std**2)) - between, 0.0)))
        metrics["std_between"] = float(np.sqrt(between))
    bins = mass_edges(low, high, config.evaluate.mass_bins)
    metrics["by_mass"] = by_bin(scores, scores.truth, bins, config.seed)
    add_expected_coverage(metrics["by_mass"], predictions.cumulative[target][known])
    metrics["by_tercile"] = []
    if len(scores) >= 3:
        thirds = tercile_edges(scores.median)
        metrics["by_tercile"] = by_bin(scores, scores.median, thirds, config.seed)
    metrics["published"] = [
        {**vars(result), "not_comparable": comparison.obstacle} for result in comparison.results
    ]
    metrics["missing"] = [{"metric": name, "reason": reason} for name, reason in reasons.items()]
    metrics["warnings"] = target_warnings(
        target,
        scores,
        values,
        errors,
        constant_guess=metrics["constant_guess_mae_dex"],
        prior=(low, high),
        coverage_tolerance=config.register_.coverage_tolerance,
    )
    return TargetResult(target, scores, guess, comparison, metrics)


def _document(
    results: list[TargetResult],
    predictions: Predictions,
    classes: ClassScores,
    class_errors: Mapping[str, float | None],
    strange: list[StrangeImages],
    leaks: list[str],
) -> dict[str, Any]:
    """The content of `metrics.json`: the first target and the classes flat, other targets under `targets`.

    What `dvc metrics` should not show as a column of its own (bins, reasons, warnings, whose numbers these
    are) stands in lists.
    """
    from darkarc.evaluation.tables import tidy

    first = results[0].metrics
    document = {"n_test": len(predictions.rows), **first, **classes.values, **summary(strange)}
    document["standard_error"] = {**first["standard_error"], **class_errors}
    document["confusion"] = classes.confusion.tolist()
    document["missing"] = first["missing"] + [
        {"metric": name, "reason": reason} for name, reason in classes.reasons.items()
    ]
    document["leaks"] = leaks + first.get("leaks", [])
    document["warnings"] = leaks + [line for result in results for line in result.metrics["warnings"]]
    others = {result.target: {**result.metrics} for result in results[1:]}
    if others:
        document["targets"] = others
    tidied: dict[str, Any] = tidy(document)
    return tidied


def _illustrate(
    config: Config,
    regressor: Predictor,
    prepared: Store,
    predictions: Predictions,
    results: list[TargetResult],
    classes: ClassScores,
    strange: list[StrangeImages],
    history: "History",
) -> list["Illustration"]:
    from darkarc.evaluation import gallery

    drawn = []
    for position, result in enumerate(results):
        suffix = "" if position == 0 else f"_{result.target}"
        edges = predictions.edges[result.target]
        drawn += gallery.target_illustrations(
            result.target, suffix, result.scores, edges, result.metrics, result.guess, result.comparison
        )
        drawn.append(
            gallery.examples_illustration(
                result.target, suffix, regressor, prepared, predictions, config.evaluate.examples
            )
        )
    known = predictions.label >= 0
    drawn.append(
        gallery.classes_illustration(predictions.label[known], predictions.class_probability[known], classes)
    )
    if strange:
        drawn.append(gallery.strangers_illustration(strange))
    drawn.append(gallery.learning_illustration(history, results[0].target))
    if results[0].comparison.results:
        drawn.append(gallery.published_illustration(results[0].comparison, results[0].metrics))
    return drawn


def _report(
    config: Config,
    regressor: Predictor,
    prepared: Store,
    first: TargetResult,
    metrics: Mapping[str, Any],
    lineage: Mapping[str, str],
    illustrations: list["Illustration"],
) -> str:
    from darkarc.evaluation.report import report_html

    return report_html(
        target=first.target,
        prior=config.targets[first.target],
        metrics=metrics,
        data=describe_data(prepared),
        regressor=describe_regressor(config, regressor),
        lineage=lineage,
        configuration=config.flat(),
        illustrations=illustrations,
    )


def _write(
    out: Path,
    predictions: Predictions,
    results: list[TargetResult],
    metrics: Mapping[str, Any],
    illustrations: list["Illustration"],
    report: str,
) -> None:
    """Everything beside its place first, then renamed; `metrics.json` goes first and comes back last."""
    from darkarc.evaluation import tables

    partial = out / ".evaluation.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for folder in OWN_FOLDERS:
        (partial / folder).mkdir(parents=True)
    for item in illustrations:
        (partial / "figures" / f"{item.name}.png").write_bytes(item.png)
    for position, result in enumerate(results):
        suffix = "" if position == 0 else f"_{result.target}"
        rows = result.metrics["by_mass"]
        texts = {
            f"by_mass{suffix}.csv": tables.by_mass_csv(rows),
            f"plots/error_by_mass{suffix}.csv": tables.error_by_mass_csv(rows),
            f"plots/coverage{suffix}.csv": tables.coverage_csv(result.scores),
            f"plots/pit{suffix}.csv": tables.pit_csv(result.scores),
            f"plots/prediction{suffix}.csv": tables.prediction_csv(result.scores),
        }
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8", newline="\n")
    (partial / "report.html").write_text(report, encoding="utf-8", newline="\n")
    write_predictions(predictions, partial / "test_predictions.parquet")
    text = json.dumps(metrics, indent=1, allow_nan=False) + "\n"
    (partial / METRICS_FILE).write_text(text, encoding="utf-8", newline="\n")
    _move_into_place(partial, out)


def _move_into_place(partial: Path, out: Path) -> None:
    for path in partial.rglob("*"):
        if path.is_file():
            sync(path)
    (out / METRICS_FILE).unlink(missing_ok=True)
    names = sorted(path.name for path in partial.iterdir() if path.name != METRICS_FILE)
    for name in [*names, METRICS_FILE]:
        if name in OWN_FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        os.replace(partial / name, out / name)
    partial.rmdir()


def _track(tracker: "Tracker", out: Path, metrics: Mapping[str, Any]) -> None:
    numbers = {
        f"test/{name}": float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    tracker.log_metrics(numbers, step=0)
    for folder in OWN_FOLDERS:
        tracker.log_artifact(out / folder, f"evaluation/{folder}")
    for name in (METRICS_FILE, "report.html", "by_mass.csv", "test_predictions.parquet"):
        tracker.log_artifact(out / name, "evaluation")
