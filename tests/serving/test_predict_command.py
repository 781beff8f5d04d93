"""`darkarc predict` as a command: its table, its last line, its status."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from darkarc.cli import app
from darkarc.serving import PredictError
from darkarc.serving.table import TableError


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def predict(model: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "darkarc", "predict", str(model), *words, "-q"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_good_and_bad_files_end_in_one_table(tmp_path, onnx_path, lenses):
    np.save(tmp_path / "good.npy", lenses[0])
    (tmp_path / "bad.npy").write_bytes(b"no numpy file")
    result = predict(onnx_path, "good.npy", "bad.npy", "--out", "answers.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 images" in result.stdout
    rows = {row["path"]: row for row in csv.DictReader((tmp_path / "answers.csv").read_text().splitlines())}
    assert float(rows["good.npy"]["p_axion"]) >= 0
    assert rows["bad.npy"]["p_axion"] == ""
    assert rows["bad.npy"]["flag"]


def test_it_fails_when_nothing_could_be_read(tmp_path, onnx_path):
    (tmp_path / "bad.npy").write_bytes(b"no numpy file")
    result = predict(onnx_path, "bad.npy", "--out", "answers.csv", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "none of the 1 images could be read" in result.stderr
    assert "bad.npy" in (tmp_path / "answers.csv").read_text()


def test_files_that_nobody_reads_are_not_passed_over_in_silence(tmp_path, onnx_path, lenses):
    folder = tmp_path / "lenses"
    folder.mkdir()
    np.save(folder / "good.npy", lenses[0])
    for name in ("a.zip", "b.zip", "notes.txt"):
        (folder / name).write_bytes(b"")
    out = tmp_path / "predictions.csv"
    result = run("predict", str(onnx_path), str(folder), "--out", str(out), "--quiet")
    assert result.exit_code == 0, result.output
    assert "0 not readable; passed over 3 other files: 2 .zip, 1 .txt" in result.output
    result = run("combine", str(onnx_path), str(folder), "--out", str(tmp_path / "j.json"), "--keep-flagged")
    assert result.exit_code == 0, result.output
    assert "  passed over 3 other files: 2 .zip, 1 .txt" in result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pictures", "taken"], "--pictures taken: expected a folder to write into (File exists)"),
        (["--out", "taken/x.csv"], "--out taken/x.csv: no table can be written there (File exists)"),
        (["--out", "/proc/x.csv"], "--out /proc/x.csv: no table can be written there (No such file"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_named_with_its_option(
    tmp_path, onnx_path, lenses, monkeypatch, options, said
):
    np.save(tmp_path / "good.npy", lenses[0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    failed = run("predict", str(onnx_path), "good.npy", *options, "--quiet").exception
    assert isinstance(failed, PredictError | TableError)
    assert str(failed).startswith(said)
