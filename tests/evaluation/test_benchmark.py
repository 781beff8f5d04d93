"""Benchmarks: the file, its runs, the table, and real comparisons on Ray that survive a kill."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkarc import config as configuration
from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.evaluation.benchmark import (
    BenchmarkError,
    Table,
    TableRow,
    load_benchmark,
    parse_benchmark,
    run_benchmark,
)
from darkarc.evaluation.benchmark.plan import make_plan
from darkarc.evaluation.benchmark.table import ERROR, make_table
from darkarc.evaluation.figures.frontier import frontier_figure, spaced
from darkarc.evaluation.style import style, to_png
from darkarc.tuning.book import FAILED, FINISHED, StudyBook
from tests.tuning import conftest as tuning

prepared, tiny_config, tracked, fresh_database = (
    tuning.prepared,
    tuning.tiny_config,
    tuning.tracked,
    tuning.fresh_database,
)

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
Tree = dict[str, Any]


def tree(**changes: Any) -> Tree:
    axes = {
        "architecture": {"narrow": {"model.width": 0.25}, "wide": {"model.width": 0.5}},
        "preprocessing": {"dataset": {}, "image": {"model.normalisation": "image"}},
    }
    return {"name": "pair", "budget": {"epochs": 1}, "axes": axes, "seeds": [0, 1]} | changes


@pytest.mark.parametrize("name", ["benchmark", "benchmark-hour", "benchmark-tiny"])
def test_shipped_benchmarks_are_valid(name: str) -> None:
    benchmark = load_benchmark(EXPERIMENTS / f"{name}.yaml", Config())
    plan = make_plan(benchmark, Config())
    assert len(plan.runs) == len(benchmark.variants()) * len(benchmark.seeds)
    if name != "benchmark-tiny":
        assert len(benchmark.axes["architecture"]) >= 10 and len(benchmark.axes["preprocessing"]) >= 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {}}, "budget: expected either epochs or seconds"),
        ({"budget": {"epochs": 1, "seconds": 3}}, "expected either epochs or seconds"),
        ({"budgett": {}}, "budgett: unknown key; did you mean budget"),
        ({"seeds": [0, -1]}, r"my.yaml: seeds\.1: .*greater than or equal to 0"),
        ({"seeds": [0, 2**63]}, r"my.yaml: seeds\.1: .*less than 9223372036854775808"),
        ({"seeds": [1, 1]}, "a seed|seeds: one is listed twice"),
        ({"axes": {"architecture": {}}}, r"axes\.architecture: has no choice"),
        ({"axes": {"architecture": {"one": {}}}}, "needs at least two variants"),
        ({"common": {"model.widht": 1}}, "common: model.widht: no such parameter; did you mean model.width"),
        ({"common": {"prepare.train": 1}}, "common: prepare.train: .*only model and train can vary"),
        ({"axes": {"a": {"b": {"train.epochs": 3}, "c": {}}}}, r"axes\.a\.b: train\.epochs: cannot be"),
        ({"axes": {"a": {"b": {"model.width": -1}, "c": {}}}}, r"my.yaml: b: model\.width: .*greater than 0"),
        (
            {"axes": {"a": {"b": {"model.backbone": "vgg"}, "c": {}}}},
            "b: model.backbone: no such backbone 'vgg'",
        ),
    ],
)
def test_mistakes_are_named(changes: Tree, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        parse_benchmark(tree(**changes), Config(), "my.yaml")


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"absent\.yaml: cannot read"):
        load_benchmark(tmp_path / "absent.yaml", Config())
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(BenchmarkError, match=r"broken\.yaml: not valid YAML"):
        load_benchmark(tmp_path / "broken.yaml", Config())


def test_axes_combine_fully_or_one_at_a_time() -> None:
    axes = {"a": {"1": {}, "2": {}, "3": {}}, "b": {"x": {}, "y": {}}}
    full = parse_benchmark(tree(axes=axes), Config()).variants()
    assert len(full) == 6
    star = parse_benchmark(tree(axes=axes, combine="one_at_a_time"), Config()).variants()
    assert [tuple(v.values()) for v in star] == [("1", "x"), ("1", "y"), ("2", "x"), ("3", "x")]


def test_a_run_gets_its_seed_and_the_keys_of_its_variant_and_no_other() -> None:
    common = {"train.batch_size": 16, "model.dropout": 0.3}
    benchmark = parse_benchmark(tree(common=common, seeds=[4, 7]), Config())
    plan = make_plan(benchmark, Config())
    assert (plan.config.train.batch_size, plan.config.model.dropout) == (16, 0.3)
    assert plan.study.labels[1] == "narrow · image · seed 4"
    assert plan.runs[1] == ({"architecture": "narrow", "preprocessing": "image"}, 4)
    assert plan.study.points[1] == {"seed": 4, "model.width": 0.25, "model.normalisation": "image"}
    assert plan.study.points[0]["model.normalisation"] == Config().model.normalisation
    assert plan.study.budget.trials == 8


def test_the_table_agrees_with_numpy_and_names_what_failed(tmp_path: Path) -> None:
    benchmark = parse_benchmark(tree(seeds=[0, 1, 2]), Config())
    plan = make_plan(benchmark, Config())
    random = np.random.default_rng(1)
    errors = random.uniform(0.1, 0.4, (3, 4))
    with StudyBook(tmp_path / "book.jsonl", {}) as book:
        for number, (_, seed) in enumerate(plan.runs):
            error = errors[seed, number % 4]
            book.suggest(number, {}, {})
            rows = [
                {"epoch": 1, ERROR: error, "val_loss": 1.0, "train_seconds": 2.0, "million_parameters": 0.5},
                {"epoch": 2, ERROR: 0.01, "val_loss": 1.5, "train_seconds": 4.0, "million_parameters": 0.5},
            ]
            book.report(number, rows, checkpoint="")
            failed = number == 2
            book.end(number, FAILED if failed else FINISHED, "it diverged" if failed else "all epochs")
        table = make_table(benchmark, plan, book)
    assert table.waiting == 0
    by_label = {row.label: row for row in table.rows}
    whole = by_label["narrow · image"]
    assert whole.mean(ERROR) == pytest.approx(errors[:, 1].mean())
    assert whole.spread(ERROR) == pytest.approx(errors[:, 1].std(ddof=1))
    assert (whole.mean("epochs"), whole.mean("epoch_seconds")) == (2, 2.0)
    broken = by_label["wide · dataset"]
    assert broken.failed == {0: "it diverged"} and set(broken.runs) == {1, 2}
    means = [row.mean(ERROR) for row in table.rows]
    assert means == sorted(means)
    assert "2 (1 failed)" in table.markdown() and "wide · dataset, seed 0: it diverged" in table.markdown()
    (line,) = [r for r in csv.DictReader(io.StringIO(table.csv())) if r["runs"] == "2"]
    assert float(line[f"{ERROR}_mean"]) == pytest.approx(errors[1:, 2].mean(), rel=1e-5)
    assert json.loads(json.dumps(table.document()))["rows"][0]["mean"][ERROR] == means[0]


def make_rows(pairs: list[tuple[float, float]]) -> Table:
    rows = [
        TableRow({"a": str(i)}, {0: {ERROR: error, "million_parameters": cost}, 1: {ERROR: error * 1.1}})
        for i, (error, cost) in enumerate(pairs)
    ]
    return Table("t", "1 epochs", "million_parameters", sorted(rows, key=lambda row: row.mean(ERROR)))


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4]), st.sampled_from([1.0, 2.0, 3.0])), min_size=2)
)
def test_the_front_holds_what_nothing_else_beats(pairs: list[tuple[float, float]]) -> None:
    front = {pairs[int(row.variant["a"])] for row in make_rows(pairs).front()}
    expected = {
        own for own in pairs if not any(o != own and o[0] <= own[0] and o[1] <= own[1] for o in pairs)
    }
    assert front == expected


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=40))
def test_names_are_spaced_in_order(heights: list[float]) -> None:
    places = spaced(heights, 0.03)
    ordered = np.array(places)[np.argsort(heights, kind="stable")]
    gap = min(0.03, 1 / max(1, len(heights) - 1))
    assert (np.diff(ordered) >= gap - 1e-9).all()
    assert ordered.min() >= -1e-9 and ordered.max() <= 1 + 1e-9


def test_the_figure_names_every_variant_and_is_the_same_twice() -> None:
    table = make_rows([(0.1, 1.0), (0.4, 0.1), (0.2, 5.0)])
    with style():
        figure = frontier_figure(table)
        texts = {text.get_text() for text in figure.axes[0].texts}
        assert texts == {f"{row.label}  {row.mean(ERROR):.3f}" for row in table.rows}
        assert to_png(figure) == to_png(frontier_figure(table))


def test_a_benchmark_trains_each_variant_as_train_would(
    prepared: Store, tiny_config: Config, tmp_path: Path, tracked: str, ray_here: None
) -> None:
    import torch
    from mlflow import MlflowClient

    from darkarc.tracking import NullTracker
    from darkarc.training import train
    from darkarc.tuning.data_view import SearchView
    from darkarc.tuning.study import resolve

    benchmark = parse_benchmark(tree(concurrent=2), tiny_config)

    def compare() -> Table:
        return run_benchmark(
            tiny_config, benchmark, prepared, tmp_path / "out", work=tmp_path / "work", progress=False
        )

    table = compare()
    assert len(table.measured) == 4 and not any(row.failed for row in table.rows)
    row = next(row for row in table.rows if row.label == "wide · image")
    assert row.runs[0][ERROR] != row.runs[1][ERROR]
    settings = {"seed": 1, "model.width": 0.5, "model.normalisation": "image", "train.epochs": 1}
    config = resolve(tiny_config, {**settings, "data.memory_gb": 1e-9, "device": "cpu"})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        view = SearchView.of(prepared)
        own = train(config, view, workdir=tmp_path / "t", tracker=NullTracker(), progress=False)
    finally:
        torch.set_num_threads(threads)
    assert row.runs[1][ERROR] == own.history[0][ERROR]

    client = MlflowClient(tracked)
    (parent,) = client.search_runs(["1"], "tags.`darkarc.kind` = 'benchmark'")
    assert parent.data.metrics[f"best_{ERROR}"] == table.rows[0].mean(ERROR)
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    names = {run.info.run_name: run for run in children}
    assert len(children) == 8 and "wide · image · seed 1" in names
    assert names["wide · image · seed 1"].data.params["cfg.seed"] == "1"
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"table.md", "table.csv", "benchmark.json", "pareto.png", "benchmark.yaml"} <= files
    assert {path.name for path in (tmp_path / "out").iterdir()} < files

    assert compare().document() == table.document()
    assert len(client.search_runs(["1"])) == 9, "a benchmark that is over is not run again"


@pytest.mark.slow
@pytest.mark.drill
def test_a_killed_benchmark_goes_on_with_the_epochs_it_had_planned(
    prepared: Store, tiny_config: Config, tmp_path: Path, tracked: str
) -> None:
    params, plan = tmp_path / "params.yaml", tmp_path / "plan.yaml"
    params.write_text(json.dumps(tiny_config.dump()))
    axes = {"architecture": {"narrow": {"model.width": 0.25}, "wide": {"model.width": 0.5}}}
    plan.write_text(json.dumps(tree(axes=axes, budget={"seconds": 3}, seeds=[0])))
    command = [sys.executable, "-m", "darkarc", "benchmark", str(plan), "--params", str(params), "--quiet"]
    command += ["--prepared", str(prepared.path), "--work", str(tmp_path / "work")]
    command += ["--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def booked(kind: str) -> list[dict[str, Any]]:
        (book,) = [*(tmp_path / "work").glob("*/book.jsonl")] or [None]
        lines = [] if book is None else book.read_text().splitlines()
        records = [json.loads(line) for line in lines if line.endswith("}")]
        return [record["body"] for record in records if record.get("kind") == kind]

    def ended() -> list[int]:
        return [body["number"] for body in booked("report") if "end" in body]

    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    _wait(lambda: len(ended()) >= 1 and len(booked("report")) > len(ended()) + 2, first)
    first.send_signal(signal.SIGKILL)
    first.wait(20)
    assert first.stderr is not None
    first.stderr.close()
    assert len(ended()) == 1
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 of 2 variants have a result" in done.stdout
    assert sorted(ended()) == [0, 1]
    rows = [(body["number"], row) for body in booked("report") for row in body["rows"]]
    assert set(Counter((n, row["epoch"]) for n, row in rows).values()) == {1}
    for number in (0, 1):
        own = [row for n, row in rows if n == number]
        assert {row["planned_epochs"] for row in own} == {len(own)}
    assert json.loads((tmp_path / "out/benchmark.json").read_text())["rows"][0]["failed"] == {}


def _wait(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", timeout_s: float = 150) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not ready():
        assert process.poll() is None, process.stderr.read()[-3000:] if process.stderr else ""
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from darkarc.cli import app

    (tmp_path / "plan.yaml").write_text("name: x")
    (tmp_path / "params.yaml").write_text(configuration.template())
    result = CliRunner().invoke(
        app, ["benchmark", str(tmp_path / "plan.yaml"), "--params", str(tmp_path / "params.yaml")]
    )
    assert isinstance(result.exception, BenchmarkError)
    assert "plan.yaml: budget: is missing" in str(result.exception)
