"""What was trained on what: the facts that a report and a model card state about data and regressor."""

from pathlib import Path

import pyarrow.compute as pc

from darkarc.config import SEEDS, Config
from darkarc.data.form import data_form
from darkarc.data.store import Store

FLOOR_CACHE = Path(".darkarc/floor")
"""Where exact posteriors wait for the next evaluation of the same data."""


def describe_data(store: Store) -> dict[str, str]:
    """Facts about a prepared store, name to text; nothing in it depends on time or machine."""
    manifest = store.manifest
    form = data_form(manifest)
    height, width = manifest.shape
    facts = {
        "Data set": manifest.name,
        "Origin": manifest.origin,
        "Instrument": manifest.instrument,
        "Shape": f"{height} × {width} pixels, {manifest.dtype}",
        "Preset": form.preset or "–",
        "Noise": form.noise or "–",
        "Distances": form.distances or "–",
        "Digest": store.digest,
    }
    counts = store.samples.group_by(["split", "class"]).aggregate([([], "count_all")]).to_pylist()
    for split in ("train", "validation", "calibration", "test"):
        rows = sorted((row for row in counts if row["split"] == split), key=lambda row: str(row["class"]))
        total = sum(row["count_all"] for row in rows)
        parts = ", ".join(f"{row['count_all']} {row['class'] or 'of unknown class'}" for row in rows)
        facts[f"Images in {split}"] = f"{total} ({parts})" if total else "0"
    return facts


def describe_regressor(config: Config, regressor: object) -> dict[str, str]:
    """Facts about the regressor and its training, name to text."""
    model, train = config.model, config.train
    facts = {
        "Backbone": f"{model.backbone}, width {model.width:g}",
        "Head": f"{model.head}, {model.bins} bins",
        "Normalisation": f"{model.normalisation}, stretch {model.stretch}",
    }
    parameters = getattr(regressor, "parameters", None)
    size = sum(weight.numel() for weight in parameters()) if parameters is not None else 0
    if size:
        facts["Parameters"] = f"{size:,}"
    facts |= {
        "Optimiser": f"{train.optimiser}, {train.policy}, learning rate {train.learning_rate:g}, "
        f"weight decay {train.weight_decay:g}",
        "Training": f"at most {train.epochs} epochs in batches of {train.batch_size}",
        "Seed": str(config.seed),
    }
    if train.members > 1:
        last = (config.seed + train.members - 1) % SEEDS
        facts["Ensemble"] = f"{train.members} members, seeds {config.seed} to {last}"
    return facts


def train_median(store: Store, target: str, target_class: str) -> float | None:
    """Median of a target over the train split: the best constant guess. None without such images."""
    chosen = pc.and_(
        pc.equal(store.samples["split"], "train"), pc.equal(store.samples["class"], target_class)
    )
    values = store.samples.filter(chosen)[target].drop_null()
    return float(pc.quantile(values, q=0.5)[0].as_py()) if len(values) else None
