"""Errors of the trainings of `run.sh`, over their seeds, as a Markdown table.

    python experiments/published/table.py [data/published]

Each row: the mean over seeds of the test split's mean absolute error, the standard deviation between seeds,
the standard error that one seed's test images leave, and the means of the other numbers. Other seeds have
other images, too, so the standard deviation holds the luck of the test split.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

SHOWN = ("coverage_68", "coverage_90", "pull_std_free", "floor_ratio")


def results(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """`metrics.json` by name and seed of every finished `NAME-SEED` in `folder`."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-*/metrics.json")):
        name, _, seed = path.parent.name.rpartition("-")
        if seed.isdecimal():
            found.setdefault(name, {})[int(seed)] = json.loads(path.read_text())
    return found


def row(name: str, by_seed: dict[int, dict[str, Any]]) -> list[str]:
    """Cells of one row; a spread needs two seeds."""
    runs = [by_seed[seed] for seed in sorted(by_seed)]
    errors = np.array([run["mae_dex"] for run in runs])
    spread = f"{errors.std(ddof=1):.4f}" if len(errors) > 1 else "–"
    chance = np.mean([run["standard_error"]["mae_dex"] for run in runs])
    published = runs[0].get("published_best_mae_dex")
    cells = [name, f"{published:.4f}" if published else "–", ", ".join(str(seed) for seed in sorted(by_seed))]
    cells += [f"{errors.mean():.4f}", spread, f"{chance:.4f}", " ".join(f"{error:.4f}" for error in errors)]
    for key in SHOWN:
        values = [run[key] for run in runs if run.get(key) is not None]
        cells.append(f"{np.mean(values):.3f}" if values else "–")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/published"))
    folder = parser.parse_args().folder
    found = results(folder)
    if not found:
        parser.error(
            f"{folder}: no NAME-SEED/metrics.json: experiments/published/run.sh NAME SEED writes one"
        )
    heading = [
        "run",
        "best published",
        "seeds",
        "MAE (dex)",
        "between seeds",
        "one seed's own",
        "each",
        *SHOWN,
    ]
    lines = [heading, ["---"] * len(heading), *(row(name, found[name]) for name in sorted(found))]
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))


if __name__ == "__main__":
    main()
