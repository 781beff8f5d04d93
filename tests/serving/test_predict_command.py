"""`darkarc predict` as a command: its table, its last line, its status."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np


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
