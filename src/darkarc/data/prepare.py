"""Prepare: a raw store becomes one that is split, measured and cleared of faults, ready to train on.

Reads the raw images twice, in chunks: once to measure and fingerprint them, once to write them in the
order of the splits. docs/prepare.md explains every number it leaves behind.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from darkarc.config import Config
from darkarc.data.assessment import Assessment, PrepareError, assess, chunks
from darkarc.data.prepare_report import write_reports
from darkarc.data.quality import STATISTICS
from darkarc.data.split import SPLITS
from darkarc.data.store import Store, StoreWriter

STATISTICS_FILE = "statistics.json"
QUALITY_FILE = "quality.parquet"
_QUALITY_ROWS = 2**17
REFERENCE_QUANTILES = {"q001": 0.001, "q01": 0.01, "q50": 0.5, "q99": 0.99, "q999": 0.999}


def prepare(
    raw: Store,
    out: Path,
    config: Config,
    reports: Path | None = None,
    *,
    replace: bool = False,
    progress: bool = False,
) -> Store:
    """Split, measure and clean a raw store; the prepared store at `out`, rows sorted by split.

    Beside the images stand statistics.json (fitted on train alone) and quality.parquet (every raw
    sample with its score and reason); `reports` receives prepare.json and outliers.png. An unfinished
    run goes on where it stopped; `replace` lets it take the place of a complete store.

    Raises `PrepareError` for labels or targets that cannot be used, `SplitError` where a split would
    lack a class that has a target, `StoreError` from reading and writing.
    """
    out = Path(out)
    if out.resolve() == raw.path.resolve():
        raise PrepareError(f"{out}: the prepared store cannot take the raw store's own place; choose another")
    assessment = assess(raw, config, progress)
    if reports is not None:
        write_reports(Path(reports), raw, assessment, config)
    order = _written_order(assessment)
    with _writer(raw, out, config, replace) as writer:
        mean, std = _write_images(raw, writer, assessment, order, progress)
        statistics = _fitted_statistics(raw, assessment, mean, std)
        text = json.dumps(statistics, indent=1, sort_keys=True, allow_nan=False) + "\n"
        writer.attach(STATISTICS_FILE, text.encode())
        writer.attach(QUALITY_FILE, _quality_parquet(assessment))
        return writer.commit()


def read_statistics(path: str | Path) -> dict[str, Any]:
    """The statistics.json of a prepared store (its folder), checked against the manifest's SHA-256.

    Raises `PrepareError` if the store was never prepared or the file is damaged.
    """
    store = Store.open(path, verify=False)
    listed = {item.file: item.sha256 for item in store.manifest.files}
    if STATISTICS_FILE not in listed:
        raise PrepareError(
            f"{path}: a store without {STATISTICS_FILE}, so not a prepared one; run `darkarc prepare` on it"
        )
    content = (store.path / STATISTICS_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != listed[STATISTICS_FILE]:
        raise PrepareError(
            f"{store.path / STATISTICS_FILE}: its SHA-256 is not the manifest's; run `darkarc prepare` again"
        )
    return json.loads(content)


def _written_order(assessment: Assessment) -> NDArray[np.intp]:
    """Raw indices of the kept samples: split by split, in each as in the raw store."""
    kept = np.flatnonzero(~assessment.excluded)
    rank = np.select([assessment.split[kept] == name for name in SPLITS], range(len(SPLITS)))
    return kept[np.argsort(rank, kind="stable")]


def _writer(raw: Store, out: Path, config: Config, replace: bool) -> StoreWriter:
    source = raw.manifest
    parameters = {
        "raw": {"digest": raw.digest, "parameters": source.parameters},
        "seed": config.seed,
        "targets": config.dump()["targets"],
        "prepare": config.dump()["prepare"],
    }
    return StoreWriter(
        out,
        name=source.name,
        origin=source.origin,
        instrument=source.instrument,
        shape=raw.shape,
        dtype=source.dtype,
        parameters=parameters,
        replace=replace,
    )


def _write_images(
    raw: Store, writer: StoreWriter, assessment: Assessment, order: NDArray[np.intp], progress: bool
) -> tuple[float, float]:
    """Write what is not yet durable; mean and standard deviation of the pixels of train."""
    count, mean, squares = 0, 0.0, 0.0
    done, position = writer.n_written, 0
    for rows in chunks(raw, order, "write", progress):
        images = raw.images(rows)
        start = max(0, done - position)
        if start < len(rows):
            writer.append(images[start:], _rows(raw, assessment, rows[start:]))
        position += len(rows)
        pixels = images[assessment.split[rows] == "train"].astype(np.float64)
        if pixels.size == 0:
            continue
        # Chan, Golub & LeVeque (1983): means and squared deviations of parts add up without cancellation.
        own = float(pixels.mean())
        delta = own - mean
        squares += float(np.square(pixels - own).sum()) + delta**2 * count * pixels.size / (
            count + pixels.size
        )
        count += pixels.size
        mean += delta * pixels.size / count
    return mean, float(np.sqrt(squares / count))


def _rows(raw: Store, assessment: Assessment, rows: NDArray[np.intp]) -> dict[str, Any]:
    """Rows of `samples.parquet`: as in the raw store, with the split and the merged group."""
    table = raw.samples.take(pa.array(rows))
    columns = {name: table[name].to_pylist() for name in table.column_names if name != "pixel_sha256"}
    return columns | {"split": assessment.split[rows].tolist(), "group_id": assessment.group[rows].tolist()}


def _fitted_statistics(raw: Store, assessment: Assessment, mean: float, std: float) -> dict[str, Any]:
    if not std > 0:
        raise PrepareError(
            f"{raw.path}: every pixel of the train split is {mean:g}: there is nothing to learn"
        )
    rows = (assessment.split == "train") & ~assessment.excluded & (assessment.rule == "")
    values = {name: column[rows] for name, column in assessment.statistics.items()}
    reference = {
        name: {key: float(np.quantile(column, q)) for key, q in REFERENCE_QUANTILES.items()}
        for name, column in values.items()
    }
    return {
        "mean": mean,
        "std": std,
        "background": float(np.median(values["background"])),
        "noise_level": float(np.median(values["noise_level"])),
        "shape": list(raw.shape),
        "instrument": raw.manifest.instrument,
        "reference": reference,
    }


def _quality_parquet(assessment: Assessment) -> bytes:
    """A row a raw sample, in groups: the copies that Python makes of the columns are never all there."""
    sink = pa.BufferOutputStream()
    schema = _quality_schema(assessment)
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(assessment.rule), _QUALITY_ROWS):
            table = _quality_rows(assessment, slice(start, start + _QUALITY_ROWS), schema)
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _quality_schema(assessment: Assessment) -> pa.Schema:
    fields = [(name, pa.string()) for name in ("sample_id", "class", "split", "group")]
    fields += [("score", pa.float64()), ("reason", pa.string())]
    fields += [("rule", pa.string() if (assessment.rule != "").any() else pa.null())]
    fields += [("statistic", pa.string()), ("deviation", pa.float64())]
    fields += [("flagged", pa.bool_()), ("excluded", pa.bool_())]
    return pa.schema([*fields, *((name, pa.float64()) for name in assessment.statistics)])


def _quality_rows(assessment: Assessment, rows: slice, schema: pa.Schema) -> pa.Table:
    names = np.array(list(STATISTICS))
    rule = assessment.rule[rows]
    columns: dict[str, Any] = {
        "sample_id": assessment.sample_id[rows].tolist(),
        "class": assessment.class_name[rows].tolist(),
        "split": assessment.split[rows].tolist(),
        "group": assessment.group[rows].tolist(),
        "score": assessment.outliers.score[rows],
        "reason": [assessment.reason(row) for row in range(rows.start, rows.start + len(rule))],
        "rule": [found or None for found in rule.tolist()],
        "statistic": names[assessment.outliers.statistic[rows]].tolist(),
        "deviation": assessment.outliers.deviation[rows],
        "flagged": assessment.flagged[rows],
        "excluded": assessment.excluded[rows],
    }
    measured = {name: values[rows] for name, values in assessment.statistics.items()}
    return pa.table(columns | measured, schema=schema)
