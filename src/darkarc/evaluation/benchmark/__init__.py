"""Regressors side by side at equal budget: a file of variants to one table with its spread over seeds."""

from darkarc.evaluation.benchmark.plan import Benchmark, BenchmarkError, load_benchmark, parse_benchmark
from darkarc.evaluation.benchmark.stage import benchmark_stage, run_benchmark
from darkarc.evaluation.benchmark.table import Table, TableRow

__all__ = [
    "Benchmark",
    "BenchmarkError",
    "Table",
    "TableRow",
    "benchmark_stage",
    "load_benchmark",
    "parse_benchmark",
    "run_benchmark",
]
