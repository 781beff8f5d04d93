"""The table of a benchmark: runs to a row a variant, with mean and spread over seeds."""

import csv
import io
import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from darkarc.config import DEFAULT_TARGET, with_unit
from darkarc.evaluation.benchmark.plan import Benchmark, Plan
from darkarc.tuning.book import FAILED, StudyBook, TrialRecord

ERROR = "val_mae_dex"
MEASURED = {
    ERROR: "MAE",
    "val_loss": "loss (nats)",
    "val_class_accuracy": "class accuracy",
    "epochs": "epochs",
    "train_seconds": "training (s)",
    "epoch_seconds": "an epoch (s)",
    "million_parameters": "parameters (million)",
}
"""Columns, each with its heading; the error is in the target's unit. The first three are of the epoch with
the least validation loss, whose weights `train` would keep. They are of the validation split: the test split
can still judge a choice."""


@dataclass(frozen=True)
class TableRow:
    """One variant. runs: seed to what it measured; failed: seed to the reason."""

    variant: dict[str, str]
    runs: dict[int, dict[str, float]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def mean(self, name: str) -> float:
        """Over seeds; NaN where every run failed."""
        values = [run[name] for run in self.runs.values() if name in run]
        return statistics.fmean(values) if values else math.nan

    def spread(self, name: str) -> float:
        """Standard deviation between seeds (n - 1); NaN for a single one."""
        values = [run[name] for run in self.runs.values() if name in run]
        return statistics.stdev(values) if len(values) > 1 else math.nan

    @property
    def label(self) -> str:
        return " · ".join(self.variant.values())


@dataclass(frozen=True)
class Table:
    """rows: the lowest mean error first, failed variants last; waiting: runs that are not over;
    target: the first one, whose error it is."""

    name: str
    budget: str
    cost: str
    rows: list[TableRow]
    waiting: int = 0
    target: str = DEFAULT_TARGET

    @property
    def measured(self) -> list[TableRow]:
        return [row for row in self.rows if row.runs]

    def front(self) -> list[TableRow]:
        """Variants that no other one beats in mean error and mean cost, the cheapest first."""
        front: list[TableRow] = []
        for row in sorted(self.measured, key=lambda r: (r.mean(self.cost), r.mean(ERROR))):
            if not front or row.mean(ERROR) < front[-1].mean(ERROR):
                front.append(row)
        return front

    def markdown(self) -> str:
        """The table of a report; variants of the Pareto front are bold."""
        axes = list(self.rows[0].variant)
        measured = MEASURED | {ERROR: with_unit(MEASURED[ERROR], self.target)}
        headings = [*axes, *measured.values(), "runs"]
        lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(axes) + "---:|" * (len(MEASURED) + 1)]
        front = self.front()
        for row in self.rows:
            names = [f"**{name}**" if row in front else name for name in row.variant.values()]
            cells = [_cell(row, name) for name in MEASURED]
            runs = f"{len(row.runs)}" + (f" ({len(row.failed)} failed)" if row.failed else "")
            lines.append(f"| {' | '.join([*names, *cells, runs])} |")
        n_seeds = max((len(row.runs) for row in self.rows), default=0)
        words = (
            f"{self.budget} a run; mean ± standard deviation over {n_seeds} seeds, on the validation split."
        )
        words += f" Bold: nothing else has both less error and less cost ({MEASURED[self.cost]})."
        reasons = [f"- {row.label}, seed {s}: {why}" for row in self.rows for s, why in row.failed.items()]
        parts = [f"# {self.name}", words, "\n".join(lines)]
        return "\n\n".join([*parts, *(["Failed:\n\n" + "\n".join(reasons)] if reasons else [])]) + "\n"

    def csv(self) -> str:
        """A line a variant: mean and standard deviation of each column, empty where there is none."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = [f"{name}_{what}" for name in MEASURED for what in ("mean", "std")]
        writer.writerow([*self.rows[0].variant, *columns, "runs", "failed"])
        for row in self.rows:
            values = [value for name in MEASURED for value in (row.mean(name), row.spread(name))]
            cells = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
            writer.writerow([*row.variant.values(), *cells, len(row.runs), len(row.failed)])
        return text.getvalue()

    def document(self) -> dict[str, Any]:
        """Everything, each run by itself, as JSON types."""
        rows = []
        for row in self.rows:
            means = {name: _known(row.mean(name)) for name in MEASURED}
            spreads = {name: _known(row.spread(name)) for name in MEASURED}
            rows.append({**asdict(row), "mean": means, "std": spreads})
        front = [row.label for row in self.front()]
        return {"name": self.name, "budget": self.budget, "cost": self.cost, "front": front, "rows": rows}


def make_table(benchmark: Benchmark, plan: Plan, book: StudyBook) -> Table:
    """What the book of a benchmark holds so far."""
    rows: dict[str, TableRow] = {}
    for number, (variant, seed) in enumerate(plan.runs):
        row = rows.setdefault(repr(variant), TableRow(variant))
        trial = book.trials.get(number)
        if trial is not None and trial.state == FAILED:
            row.failed[seed] = trial.reason
        elif trial is not None and trial.state:
            row.runs[seed] = _measured(trial)
    waiting = len(plan.runs) - sum(len(row.runs) + len(row.failed) for row in rows.values())
    ordered = sorted(rows.values(), key=lambda row: row.mean(ERROR) if row.runs else math.inf)
    target = next(iter(plan.config.targets))
    return Table(benchmark.name, str(benchmark.budget), benchmark.cost, ordered, waiting, target)


def _measured(trial: TrialRecord) -> dict[str, float]:
    best = min(trial.rows.values(), key=lambda row: row["val_loss"])
    found = {name: best[name] for name in (ERROR, "val_loss", "val_class_accuracy") if name in best}
    return found | {
        "epochs": float(trial.epochs),
        "best_epoch": float(best["epoch"]),
        "train_seconds": trial.seconds,
        "epoch_seconds": trial.seconds / trial.epochs,
        "million_parameters": trial.last["million_parameters"],
    }


def _cell(row: TableRow, name: str) -> str:
    mean, spread = row.mean(name), row.spread(name)
    if math.isnan(mean):
        return "–"
    if name in (ERROR, "val_loss", "val_class_accuracy"):
        return f"{mean:.4f}" + ("" if math.isnan(spread) else f" ± {spread:.4f}")
    return f"{mean:.3g}" if mean < 100 else f"{mean:.0f}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
