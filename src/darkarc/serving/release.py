"""The stages `register` and `export`: a measured regressor to the registry, the champion to a file."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from darkarc.config import TARGET_CLASS, Config
from darkarc.data.store import Store
from darkarc.durable import write_file
from darkarc.evaluation import describe_data, model_card
from darkarc.models import load_regressor
from darkarc.models.sealed import write_sealed
from darkarc.serving.export import CARD_FILE, MODEL_FILE, export_onnx
from darkarc.serving.variants import Decision as VariantDecision
from darkarc.serving.variants import as_markdown, as_records, make_variants
from darkarc.tracking import read_run
from darkarc.tracking.promotion import Decision, Gates, promote
from darkarc.tracking.registration import read_card, register_onnx
from darkarc.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    ModelVersion,
    champion_version,
    download_model,
    get_version,
)

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
    metrics = read_metrics(reports / "metrics.json")
    if run.run_id is None:
        raise ReleaseError(
            f"{run_file}: the run has no id, because the tracking server did not answer during training; "
            "train again (`dvc repro --force train`) when it does"
        )
    store = Store.open(prepared, verify=False)
    regressor = load_regressor(trained)
    target = next(iter(regressor.spec.targets))
    card = model_card(
        regressor.spec,
        metrics,
        data=describe_data(store),
        lineage={"MLflow run": run.run_id, "Training digest": run.training_digest},
    )
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = export_onnx(regressor, Path(folder) / MODEL_FILE)
        version = register_onnx(
            onnx_path,
            name=config.register_.name,
            run_id=run.run_id,
            input_example=_example(store),
            card=card,
            tags={"darkarc.data_digest": store.digest, "darkarc.training_digest": run.training_digest},
            metrics={name: value for name, value in metrics.items() if isinstance(value, int | float)},
            test_errors=absolute_errors(reports / "test_predictions.parquet", target),
            test_digest=store.digest,
        )
    coverage = {level: float(metrics.get(f"coverage_{level}") or "nan") for level in COVERAGE_LEVELS}
    decision = promote(
        version.name,
        version.version,
        coverage=coverage,
        gates=Gates.of(config.register_),
        force=force,
        objections=[str(line) for line in metrics.get("leaks", [])],
    )
    version = get_version(version.name, version.version)
    record = {
        "name": version.name,
        "version": version.version,
        "uri": version.uri,
        "sha256": version.sha256,
        "champion": decision.promote,
        "reason": decision.reason,
    }
    write_file(reports / "registered.json", json.dumps(record, indent=2) + "\n")
    return version, decision


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
        card += "\n" + as_markdown(table)
        files[VARIANTS_FILE] = (json.dumps(as_records(table), indent=1) + "\n").encode()
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


def absolute_errors(predictions: Path, target: str) -> np.ndarray:
    """Errors (N,) of the posterior medians on the test images that have a true value, in their order."""
    if not predictions.is_file():
        raise ReleaseError(f"{predictions}: not there; run `darkarc evaluate` first")
    table = pq.read_table(predictions)
    own = table.filter(pc.and_(pc.equal(table["class"], TARGET_CLASS[target]), pc.is_valid(table["truth"])))
    if not len(own):
        raise ReleaseError(
            f"{predictions}: no test image has a true {target}, so nothing is known of the error; "
            "register a regressor that was tested"
        )
    return np.abs(own["median"].to_numpy() - own["truth"].to_numpy())


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
