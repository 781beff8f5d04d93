"""What `prepare` did, for people: prepare.json and a contact sheet of the worst images."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darkarc.config import CLASSES, Config
from darkarc.data.assessment import Assessment
from darkarc.data.contact_sheet import contact_sheet
from darkarc.data.quality import STATISTICS
from darkarc.data.split import SPLITS
from darkarc.data.store import Store
from darkarc.durable import write_file

REPORT_FILE = "prepare.json"
SHEET_FILE = "outliers.png"

_ON_SHEET = 24
_OF_ONE_RULE = 4  # a thousand blank images must not hide the rest


def write_reports(folder: Path, raw: Store, assessment: Assessment, config: Config) -> None:
    """Write prepare.json (counts) and outliers.png (the worst images); each is complete or absent."""
    worst = worst_samples(assessment)
    heading = (
        f"{raw.manifest.name}: the {len(worst)} most unusual of {len(raw)} images; "
        f"threshold {assessment.outliers.threshold:.3f}, action: {config.prepare.outliers.action}"
    )
    titles = [_title(assessment, row) for row in worst]
    contact_sheet(list(raw.images(worst)), titles, folder / SHEET_FILE, heading=heading)
    text = json.dumps(summary(raw, assessment, config), indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_file(folder / REPORT_FILE, text)


def worst_samples(assessment: Assessment) -> NDArray[np.intp]:
    """Rows of the worst images, worst first: those that break a rule (a few of each), then by score."""
    # Ties go to the larger deviation, then to the earlier row.
    order = np.lexsort((-np.abs(assessment.outliers.deviation), -assessment.outliers.score))
    seen: Counter[str] = Counter()
    chosen = []
    for row in order:
        rule = str(assessment.rule[row])
        seen[rule] += 1
        if not rule or seen[rule] <= _OF_ONE_RULE:
            chosen.append(row)
        if len(chosen) == _ON_SHEET:
            break
    return np.asarray(chosen)


def summary(raw: Store, assessment: Assessment, config: Config) -> dict[str, Any]:
    """Counts of everything that was decided, for prepare.json."""
    outliers = config.prepare.outliers
    kept = ~assessment.excluded
    by_reason = {
        reason: {"flagged": int(rows.sum()), "excluded": int((rows & assessment.excluded).sum())}
        for reason, rows in _reasons(assessment).items()
    }
    _, firsts = np.unique(assessment.group, return_index=True)
    group_splits = assessment.split[firsts]
    return {
        "raw": {"name": raw.manifest.name, "digest": raw.digest, "n": len(raw)},
        "seed": config.seed,
        "n": {
            split: {name: int(_count(assessment, kept, split, name)) for name in CLASSES} for split in SPLITS
        },
        "groups": {
            **{split: int(np.sum(group_splits == split)) for split in SPLITS},
            "joined_by_equal_pixels": assessment.n_raw_groups - len(group_splits),
        },
        "published": int(assessment.published.sum()),
        "drawn_along_with_published": int(assessment.moved.sum()),
        "outliers": {
            "action": outliers.action,
            "contamination": outliers.contamination,
            "threshold": assessment.outliers.threshold,
            "flagged": int(assessment.flagged.sum()),
            "excluded": int(assessment.excluded.sum()),
            "by_reason": by_reason,
        },
    }


def _count(assessment: Assessment, kept: NDArray[np.bool_], split: str, class_name: str) -> int:
    return np.sum(kept & (assessment.split == split) & (assessment.class_name == class_name))


def _reasons(assessment: Assessment) -> dict[str, NDArray[np.bool_]]:
    """Flagged rows by the rule they break or by their most unusual statistic; empty ones left out."""
    names = np.array(list(STATISTICS))
    reason = np.where(assessment.rule != "", assessment.rule, names[assessment.outliers.statistic])
    found = sorted(set(reason[assessment.flagged].tolist()))
    return {name: assessment.flagged & (reason == name) for name in found}


def _title(assessment: Assessment, row: int) -> str:
    name = str(assessment.sample_id[row])
    short = name if len(name) <= 26 else f"{name[:12]}…{name[-13:]}"
    fate = "excluded" if assessment.excluded[row] else "flagged" if assessment.flagged[row] else "kept"
    return (
        f"{short}\n{assessment.outliers.score[row]:.3f}  {assessment.reason(row)}\n"
        f"{assessment.class_name[row]}, {assessment.split[row]}, {fate}"
    )
