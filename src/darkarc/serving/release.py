"""The stages `register` and `export`: a measured regressor to the registry, the champion to a file."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from darkarc.config import TARGET_CLASS, Config
from darkarc.data.store import Store
from darkarc.durable import write_file
from darkarc.evaluation import describe_data, model_card
from darkarc.evaluation.evaluate import METRICS_FILE
from darkarc.evaluation.predictions import split_rows, true_values
from darkarc.models import load_regressor, sealed_sha256
from darkarc.models.sealed import write_sealed
from darkarc.serving.export import CARD_FILE, MODEL_FILE, export_onnx
from darkarc.serving.variants import Decision as VariantDecision
from darkarc.serving.variants import as_markdown, as_records, make_variants
from darkarc.tracking import RegistryError, read_run, run_lineage
from darkarc.tracking.lineage import DATA_TAG, ORIGIN_TAGS
from darkarc.tracking.promotion import Decision, Gates, promote, rollback, was_rolled_back
from darkarc.tracking.registration import read_card, register_onnx
from darkarc.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    ModelVersion,
    champion_version,
    download_model,
    get_version,
    resolve,
)
from darkarc.tracking.runs import run_tags

REGISTERED_FILE = "registered.json"
VARIANTS_FILE = "variants.json"
COVERAGE_LEVELS = (50, 68, 90, 95)


class ReleaseError(ValueError):
    """A regressor that cannot be registered; the message says which stage has to run first."""


def register_stage(
    config: Config,
    *,
    trained: Path,
    prepared: Path,
    run_file: Path,
    reports: Path,
    force: str | None = None,
) -> tuple[ModelVersion, Decision]:
    """Register the regressor in `trained` with its evidence in `reports`, and decide who is champion.

    Registering the same regressor of the same run again gives the same version. Writes
    `reports/registered.json`. Raises `ReleaseError`, `RegistryError`.
    """
    run = read_run(run_file)
    metrics = read_metrics(reports / METRICS_FILE)
    if run.run_id is None:
        raise ReleaseError(
            f"{run_file}: the run has no id, because the tracking server did not answer during training; "
            "train again (`dvc repro --force train`) when it does"
        )
    store = Store.open(prepared, verify=False)
    regressor = load_regressor(trained)
    _check_measured(metrics, reports / METRICS_FILE, trained, store)
    target = next(iter(regressor.spec.targets))
    errors = absolute_errors(reports / "test_predictions.parquet", store, target)
    order, test_digest = compared_images(store, target)
    card = model_card(regressor.spec, metrics, data=describe_data(store), lineage=run_lineage(run))
    of_run = run_tags(run.run_id)
    origin = {name: value for name, value in of_run.items() if name in ORIGIN_TAGS}
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = export_onnx(regressor, Path(folder) / MODEL_FILE)
        version = register_onnx(
            onnx_path,
            name=config.register_.name,
            run_id=run.run_id,
            input_example=_example(store),
            card=card,
            tags={**origin, DATA_TAG: store.digest, "darkarc.training_digest": run.training_digest},
            metrics={name: value for name, value in metrics.items() if isinstance(value, int | float)},
            test_errors=errors[order],
            test_digest=test_digest,
        )
    coverage = {level: float(metrics.get(f"coverage_{level}") or "nan") for level in COVERAGE_LEVELS}
    decision = promote(
        version.name,
        version.version,
        coverage=coverage,
        gates=Gates.of(config.register_),
        force=force,
        objections=[*map(str, metrics.get("leaks", [])), *_other_training_data(of_run, store)],
        earlier={store.digest: errors},  # what versions were registered with before
    )
    version = get_version(version.name, version.version)
    _write_record(reports, version, decision.reason)
    return version, decision


def rollback_stage(config: Config, reason: str, *, reports: Path) -> ModelVersion:
    """Make the previous champion the champion again, and bring `reports/registered.json` up to date.

    The export depends on that file, so that the next `dvc repro` exports the new champion. Raises
    `RegistryError`.
    """
    name = config.register_.name
    champion = _rolled_back_already(name, reason, reports) or rollback(name, reason)
    if (reports / REGISTERED_FILE).exists():
        _write_record(reports, champion, f"champion again: {reason.strip()}")
    return champion


def _rolled_back_already(name: str, reason: str, reports: Path) -> ModelVersion | None:
    """The champion of today, if the same command brought it back but was killed before it wrote that down."""
    try:
        uri = json.loads((reports / REGISTERED_FILE).read_text())["champion_uri"]
        recorded, now = resolve(uri), champion_version(name)
    except (OSError, ValueError, KeyError, TypeError, RegistryError):
        return None
    if now is None or recorded.name != name or not was_rolled_back(recorded, now, reason):
        return None
    return now


def _other_training_data(tags: Mapping[str, str], store: Store) -> list[str]:
    """An objection, if a run was trained on another store than this one, on which it was tested."""
    trained_on = tags.get(DATA_TAG, store.digest)
    if trained_on == store.digest:
        return []
    return [
        f"it was trained on another prepared store ({trained_on[:12]}) than it was tested on "
        f"({store.digest[:12]}), and may have seen its test images; train and evaluate on one store"
    ]


def _write_record(reports: Path, version: ModelVersion, reason: str) -> None:
    """The version at hand and the champion, which the stage `export` exports whenever this file changes."""
    champion = champion_version(version.name)
    record = {
        "name": version.name,
        "version": version.version,
        "uri": version.uri,
        "sha256": version.sha256,
        "champion": CHAMPION in version.aliases,
        "reason": reason,
        "champion_uri": None if champion is None else champion.uri,
    }
    write_file(reports / REGISTERED_FILE, json.dumps(record, indent=2) + "\n")


def export_stage(
    config: Config, out: Path, *, alias: str | None = None, prepared: Path | None = None
) -> ModelVersion:
    """Write a registered model, with its model card, into the folder `out`.

    alias: default the champion, or the challenger as long as there is no champion.
    prepared: the store whose test split judges the variants of `export.variants`; those that pass lie beside
    the model, and `variants.json` and the card tell of all.
    The file's SHA-256 is checked against the registry first. Raises `RegistryError`, `ReleaseError`.
    """
    name = config.register_.name
    if alias is None:
        alias = CHAMPION if champion_version(name) else CHALLENGER
    version = get_version(name, alias)
    path = download_model(version.uri)
    variants, table = _variants(config, path, prepared)
    aliases = ", ".join(version.aliases)
    label = f"Version {version.version} ({aliases}) of `{name}`, SHA-256 `{version.sha256}`."
    card = f"{read_card(version)}\n{label}\n"
    files = {MODEL_FILE: path.read_bytes(), **variants}
    if table:
        from darkarc.evaluation.tables import tidy  # needs matplotlib, which takes a second to import

        card += "\n" + as_markdown(table)
        records = json.dumps(tidy(as_records(table)), indent=1, allow_nan=False)
        files[VARIANTS_FILE] = f"{records}\n".encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(out, {**files, CARD_FILE: card.encode()})
    return version


def _variants(
    config: Config, model: Path, prepared: Path | None
) -> tuple[dict[str, bytes], list[VariantDecision]]:
    if not config.export.variants:
        return {}, []
    if prepared is None:
        raise ReleaseError(
            "export.variants: the test split of a prepared store decides; give the store, or leave it empty"
        )
    return make_variants(model, Store.open(prepared), config.export)


def compared_images(store: Store, target: str) -> tuple[np.ndarray, str]:
    """Order (N,) and digest of the test images that have a true value, by pixels and truth alone.

    Neither depends on the rest of the store, on the images' order in it or on their names: two versions with
    the same digest were tested on the same images, and in this order their errors are pairs.
    """
    rows, truth = _scored(store, target)
    pixels = store.samples["pixel_sha256"].take(pa.array(rows)).to_pylist()
    facts = [f"{pixel} {value!r}" for pixel, value in zip(pixels, truth.tolist(), strict=True)]
    order = np.argsort(np.array(facts, dtype=np.str_), kind="stable")
    listed = "\n".join([target, *(facts[place] for place in order)])
    return order, hashlib.sha256(listed.encode()).hexdigest()


def _scored(store: Store, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N,) of the test images that have a true value, and these values."""
    rows = split_rows(store, "test")
    truth = true_values(store, rows, target)
    known = np.isfinite(truth)
    return rows[known], truth[known]


def absolute_errors(predictions: Path, store: Store, target: str) -> np.ndarray:
    """Errors (N,) of the posterior medians on the test images that have a true value, in the store's order.

    Raises `ReleaseError` if there are none, or if the predictions are not of the store's test images.
    """
    if not predictions.is_file():
        raise ReleaseError(f"{predictions}: not there; run `darkarc evaluate` first")
    table = pq.read_table(predictions)
    own = table.filter(pc.and_(pc.equal(table["class"], TARGET_CLASS[target]), pc.is_valid(table["truth"])))
    if not len(own):
        raise ReleaseError(
            f"{predictions}: no test image has a true {target}, so nothing is known of the error; "
            "register a regressor that was tested"
        )
    rows, truth = _scored(store, target)
    names = store.samples["sample_id"].take(pa.array(rows)).to_pylist()
    if own["sample_id"].to_pylist() != names or not np.array_equal(own["truth"].to_numpy(), truth):
        raise ReleaseError(
            f"{predictions}: not of the test images of {store.path} (other names or true values); "
            "run `darkarc evaluate` again"
        )
    return np.abs(own["median"].to_numpy() - truth)


def _check_measured(metrics: Mapping[str, Any], path: Path, trained: Path, store: Store) -> None:
    """Raise `ReleaseError` unless `metrics`, the content of `path`, are of that regressor on that store."""
    measured, own = metrics.get("regressor"), sealed_sha256(trained)
    if measured is None:
        raise ReleaseError(
            f"{path}: does not say which regressor was measured, as an earlier darkarc wrote it; "
            "run `darkarc evaluate` again"
        )
    if metrics.get("tested_on") != [{"digest": store.digest}]:
        raise ReleaseError(
            f"{path}: measured on other images than those of {store.path} now, or by an earlier darkarc; "
            "run `darkarc evaluate` again"
        )
    if measured != [{"sha256": own}]:
        raise ReleaseError(
            f"{path}: of another regressor than the one in {trained} (its manifest.json has SHA-256 {own}, "
            f"measured was {measured}); run `darkarc evaluate` again"
        )


def _example(store: Store) -> np.ndarray:
    """One image of the test split, (1, 1, H, W) float32."""
    splits = store.samples["split"].to_pylist()
    return store.images([splits.index("test")])[:, None].astype(np.float32)


def read_metrics(path: Path) -> Mapping[str, Any]:
    """What `darkarc evaluate` measured."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReleaseError(f"{path}: not there; run `darkarc evaluate` first") from error
    except ValueError as error:
        raise ReleaseError(f"{path}: damaged ({error}); run `darkarc evaluate` again") from error
    if not isinstance(content, dict):
        raise ReleaseError(f"{path}: expected an object, found a {type(content).__name__}")
    return content
