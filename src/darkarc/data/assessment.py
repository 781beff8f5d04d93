"""What is known of each raw sample before anything is written: its group, split, statistics and faults."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from darkarc.config import CLASSES, TARGET_CLASS, Config
from darkarc.data.batches import PRIOR_TOLERANCE
from darkarc.data.outliers import Outliers, score_outliers
from darkarc.data.quality import STATISTICS, broken_rules, image_statistics
from darkarc.data.split import PUBLISHED, SPLITS, drawn_shares, require_classes, split_groups
from darkarc.data.store import Store
from darkarc.data.twins import fingerprints, merge_groups

CONFLICT = "conflicting_label"
"""Rule of prepare alone: the same pixels carry another class or another target elsewhere in the data."""

_CHUNK_BYTES = 16 << 20


class PrepareError(ValueError):
    """A raw store that cannot be prepared as asked; the message names the row or key and the remedy."""


@dataclass(frozen=True)
class Assessment:
    """What is known of each of N raw samples; arrays (N,).

    published: the raw store named its split. moved: it follows a published member of its group.
    """

    sample_id: NDArray[np.str_]
    class_name: NDArray[np.str_]
    group: NDArray[np.str_]
    split: NDArray[np.str_]
    published: NDArray[np.bool_]
    moved: NDArray[np.bool_]
    statistics: dict[str, NDArray[np.float64]]
    rule: NDArray[np.str_]
    outliers: Outliers
    excluded: NDArray[np.bool_]
    n_raw_groups: int

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Breaks a rule, or unusual to the forest."""
        return (self.rule != "") | self.outliers.unusual

    def reason(self, row: int) -> str:
        """Why the sample has its score: the rule it breaks, or its most unusual statistic."""
        if self.rule[row]:
            return str(self.rule[row])
        name = list(STATISTICS)[self.outliers.statistic[row]]
        return f"{name} z={self.outliers.deviation[row]:+.1f}"


def assess(raw: Store, config: Config, progress: bool = False) -> Assessment:
    """Read a raw store once and decide the split, the score and the fate of each sample.

    Raises `PrepareError` for labels or targets that cannot be used, `SplitError` where a split would
    lack a class that has a target.
    """
    samples = raw.samples
    sample_id = np.asarray(samples["sample_id"].to_pylist(), np.str_)
    class_name = _classes(raw)
    targets = {name: _target(raw, class_name, name, config.targets[name]) for name in config.targets}
    statistics, prints = _measure(raw, progress)
    # Flat frames are all alike without being one scene: they join no groups.
    flat = statistics["saturation"] == 1
    joining = np.where(flat, np.arange(len(raw)).astype("S32"), prints)
    groups, names = samples["group_id"].to_pylist(), sample_id.tolist()
    n_raw_groups = len(np.unique(merge_groups(groups, names)))
    group = merge_groups(groups, names, joining)
    del groups, names, joining  # of a million rows some hundred megabytes
    strata = _strata(class_name, targets, config)
    published = samples["split"].to_pylist()
    settings = config.prepare
    shares = {name: getattr(settings, name) for name in SPLITS}
    split = split_groups(group, strata, shares=shares, seed=config.seed, published=published)
    rule = broken_rules(statistics)
    rule = np.where((rule == "") & _conflicts(prints, class_name, targets), CONFLICT, rule)
    wanted = _wanted_splits(shares, published)
    needed = [TARGET_CLASS[name] for name, values in targets.items() if np.isfinite(values).any()]
    require_classes(split, class_name, wanted, needed)
    if not np.any((split == "train") & (rule == "")):
        raise PrepareError(
            "every image of the train split breaks a rule (docs/prepare.md): check the raw store"
        )
    outliers = score_outliers(
        statistics,
        broken=rule != "",
        train=split == "train",
        strata=strata,
        trees=settings.outliers.trees,
        contamination=settings.outliers.contamination,
        largest_share=settings.outliers.largest_share,
        seed=config.seed,
    )
    is_published = np.array([name in PUBLISHED for name in published])
    moved = np.isin(group, group[is_published]) & ~is_published
    excluded = _excluded(rule, outliers, split, is_published, settings.outliers.action)
    require_classes(split[~excluded], class_name[~excluded], wanted, needed)
    return Assessment(
        sample_id, class_name, group, split, is_published, moved, statistics, rule, outliers, excluded,
        n_raw_groups=n_raw_groups,
    )  # fmt: skip


def _classes(raw: Store) -> NDArray[np.str_]:
    names = raw.samples["class"].to_pylist()
    for row, name in enumerate(names):
        if name not in CLASSES:
            raise PrepareError(
                f"{raw.path}: row {row}: class is {name!r}; expected one of {', '.join(CLASSES)}"
            )
    return np.asarray(names, np.str_)


def _target(
    raw: Store, class_name: NDArray[np.str_], target: str, prior: tuple[float, float]
) -> NDArray[np.float64]:
    """The target of each sample (N,), nan where its class has none; refuses values outside the prior."""
    values = raw.samples[target].to_numpy(zero_copy_only=False).astype(np.float64)
    values = np.where(class_name == TARGET_CLASS[target], values, np.nan)
    known = np.isfinite(values)
    if not known.any():
        raise PrepareError(
            f"{raw.path}: no {TARGET_CLASS[target]} image has a {target}; "
            f"take targets.{target} out of the parameters or add such images"
        )
    low, high = prior
    outside = known & ((values < low - PRIOR_TOLERANCE) | (values > high + PRIOR_TOLERANCE))
    if outside.any():
        smallest, largest = values[known].min(), values[known].max()
        raise PrepareError(
            f"{raw.path}: {outside.sum()} images have {target} outside targets.{target} = "
            f"[{low:g}, {high:g}]; found {smallest:g} to {largest:g}, first at row {np.argmax(outside)}: "
            "widen the range"
        )
    return values


def _measure(raw: Store, progress: bool) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bytes_]]:
    statistics = {name: np.empty(len(raw)) for name in STATISTICS}
    prints = np.empty(len(raw), "S32")
    for rows in chunks(raw, np.arange(len(raw)), "measure", progress):
        images = raw.images(rows)
        prints[rows] = fingerprints(images)
        for name, values in image_statistics(images).items():
            statistics[name][rows] = values
    return statistics, prints


def _strata(
    class_name: NDArray[np.str_], targets: dict[str, NDArray[np.float64]], config: Config
) -> NDArray[np.int64]:
    """Class and bin of the class's own target as one integer; bin 0 where there is no target."""
    bins = config.prepare.mass_bins
    strata = np.zeros(len(class_name), np.int64)
    for label, name in enumerate(CLASSES):
        strata[class_name == name] = label * (bins + 1)
    for target, values in targets.items():
        low, high = config.targets[target]
        known = np.isfinite(values)
        position = np.floor((values[known] - low) / (high - low) * bins).astype(np.int64)
        strata[known] += 1 + np.clip(position, 0, bins - 1)
    return strata


def _wanted_splits(shares: dict[str, float], published: list[str | None]) -> list[str]:
    """Splits that must hold every class with a target: train, those drawn, and a published test set."""
    taken = set(published)
    drawn = drawn_shares(shares, published) if taken - set(PUBLISHED) else {}
    return [name for name in SPLITS if name == "train" or name in taken or drawn.get(name, 0) > 0]


def _conflicts(
    prints: NDArray[np.bytes_], class_name: NDArray[np.str_], targets: dict[str, NDArray[np.float64]]
) -> NDArray[np.bool_]:
    """Whether the same pixels occur with another class or target (to 9 decimals)."""
    _, pixels = np.unique(prints, return_inverse=True)
    _, label = np.unique(class_name, return_inverse=True)
    for values in targets.values():
        # One number for class and target together; nan counts as a value of its own.
        _, value = np.unique(np.round(values, 9), return_inverse=True)
        _, label = np.unique(label * (value.max() + 1) + value, return_inverse=True)
    first = np.full(pixels.max() + 1, -1)
    first[pixels[::-1]] = label[::-1]
    differs = np.zeros(len(first), bool)
    np.logical_or.at(differs, pixels, label != first[pixels])
    return differs[pixels]


def _excluded(
    rule: NDArray[np.str_],
    outliers: Outliers,
    split: NDArray[np.str_],
    published: NDArray[np.bool_],
    action: str,
) -> NDArray[np.bool_]:
    """Samples that do not enter the prepared store."""
    excluded = rule == "non_finite"  # whatever was asked: no number comes out of such an image
    if action == "exclude":
        # A published set stays what was published, and a test set without its unusual lenses
        # would flatter the model: of those, only train is relieved.
        excluded |= (rule != "") & ~published
        excluded |= outliers.unusual & (split == "train")
    return excluded


def chunks(raw: Store, rows: NDArray[np.intp], label: str, progress: bool) -> Iterator[NDArray[np.intp]]:
    """Rows in chunks of about 16 MB of images, with a progress bar on request."""
    from rich.progress import track

    size = max(1, _CHUNK_BYTES // (raw.shape[0] * raw.shape[1] * raw.dtype.itemsize))
    starts = range(0, len(rows), size)
    for start in track(starts, description=label, disable=not progress, transient=True):
        yield rows[start : start + size]
