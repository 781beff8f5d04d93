"""Simulated stores: content, workers, kills."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from darkarc import config as configuration
from darkarc.config import Config
from darkarc.data import generate as module
from darkarc.data.generate import GenerateError, generate, store_parameters
from darkarc.data.store import StoreError
from darkarc.simulation import draw_scenes, render

SOURCE = Path(module.__file__).resolve().parents[2]


def small(**simulate: object) -> Config:
    tree = {"preset": "model_ii", "n_axion": 7, "n_cdm": 3, "n_no_sub": 2} | simulate
    return configuration.parse({"seed": 9, "device": "cpu", "simulate": tree})


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two Model II images a chunk."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", 2 * 64 * 64 * 4)


def files(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_a_store_holds_the_scenes_in_class_order(tmp_path: Path, small_chunks: None) -> None:
    store = generate(small(), tmp_path / "store", progress=False)
    assert len(store) == 12 and store.shape == (64, 64) and store.manifest.dtype == "float32"
    assert (
        store.manifest.instrument == "Euclid VIS" and store.manifest.origin == "darkarc:model_ii:physical:9"
    )
    rows = store.samples.to_pydict()
    assert rows["class"] == ["axion"] * 7 + ["cdm"] * 3 + ["no_sub"] * 2
    assert rows["sample_id"][8] == "model_ii-cdm-00000001" and rows["group_id"][8] == "scene-9-cdm-00000001"
    for name, part in (("axion", slice(0, 7)), ("cdm", slice(7, 10)), ("no_sub", slice(10, 12))):
        scenes = draw_scenes("model_ii", name, 9, range(part.stop - part.start))
        images = render("model_ii", scenes, noise="physical", seed=9)
        assert np.array_equal(store.images(part), images.numpy())
        assert rows["source_x_arcsec"][part] == scenes.source_arcsec[:, 0].tolist()
        if name == "axion":
            assert rows["log10_axion_mass_ev"][part] == scenes.log10_mass_ev.tolist()
            assert rows["vortex_angle_rad"][part] == scenes.angle_rad.tolist()
        else:
            assert rows["log10_axion_mass_ev"][part] == [None] * len(scenes)
        if name == "cdm":
            total = np.log10((10**scenes.subhalo_log10_mass_msun).sum(1))
            assert rows["log10_subhalo_mass_msun"][part] == pytest.approx(total)
            assert rows["n_subhalos"][part] == [25] * 3
        else:
            assert rows["n_subhalos"][part] == [None] * len(scenes)
    assert rows["exposure_s"] == pytest.approx([2260.0] * 12)


@pytest.mark.parametrize(
    ("noise", "dtype", "exposed"),
    [("published", "int32", True), ("physical", "float32", True), ("none", "float32", False)],
)
def test_model_i_forms(tmp_path: Path, noise: str, dtype: str, exposed: bool) -> None:
    counts = small(preset="model_i", noise=noise, n_axion=1, n_cdm=0, n_no_sub=1)
    store = generate(counts, tmp_path / "store", progress=False)
    assert store.manifest.dtype == dtype and store.shape == (150, 150)
    exposures = store.samples.column("exposure_s").to_pylist()
    assert all((e is not None and 1000 <= e <= 3163) if exposed else e is None for e in exposures)
    images = render("model_i", draw_scenes("model_i", "axion", 9, [0]), noise=noise, seed=9)
    assert np.array_equal(store.images([0]), images.numpy().astype(dtype))


def test_every_parameter_of_the_section_changes_the_store(tmp_path: Path) -> None:
    """No dead options: each key of `simulate:` gives other pixels or another number of images."""
    changes: dict[str, object] = {
        "preset": "model_iii",
        "noise": "none",
        "distances": "physical",
        "n_axion": 2,
        "n_cdm": 2,
        "n_no_sub": 2,
        "precision": "float64",
    }
    base: dict[str, object] = {"n_axion": 1, "n_cdm": 1, "n_no_sub": 1}
    assert set(changes) == set(small().dump()["simulate"])
    stores = {"": generate(small(**base), tmp_path / "base", progress=False)}
    for key, value in changes.items():
        stores[key] = generate(small(**{**base, key: value}), tmp_path / key, progress=False)
    pixels = {key: tuple(s.samples.column("pixel_sha256").to_pylist()) for key, s in stores.items()}
    assert len(set(pixels.values())) == len(stores)
    other_seed = small(**base).model_copy(update={"seed": 10})
    again = generate(other_seed, tmp_path / "seed", progress=False)
    assert not set(again.samples.column("pixel_sha256").to_pylist()) & set(pixels[""])


def test_parameters_hold_what_fixes_the_bytes() -> None:
    parameters = store_parameters(small())
    assert parameters["seed"] == 9 and parameters["simulate"] == small().dump()["simulate"]
    assert parameters["preset"]["instrument"]["pixel_scale_arcsec"] == 0.101
    elsewhere = small().model_copy(update={"device": "cuda"})
    assert json.dumps(store_parameters(elsewhere)) == json.dumps(parameters)


def test_chunks_and_workers_do_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(small(), tmp_path / "one", progress=False)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 2 * 64 * 64 * 4)
    threads = torch.get_num_threads()
    generate(small(), tmp_path / "chunks", progress=False)
    assert torch.get_num_threads() == threads
    generate(small(), tmp_path / "workers", workers=2, progress=False)
    assert files(tmp_path / "one") == files(tmp_path / "chunks") == files(tmp_path / "workers")


@pytest.mark.slow
def test_ray_gives_the_same_bytes(tmp_path: Path, small_chunks: None) -> None:
    generate(small(), tmp_path / "one", progress=False)
    generate(small(), tmp_path / "ray", ray_address="local", progress=False)
    assert files(tmp_path / "one") == files(tmp_path / "ray")


SCRIPT = """
import sys
from darkarc.config import parse
from darkarc.data import generate as module
module._CHUNK_BYTES = 16 * 64 * 64 * 4
if __name__ == "__main__":
    tree = {"preset": "model_ii", "n_axion": 600, "n_cdm": 200, "n_no_sub": 40}
    config = parse({"seed": 9, "device": "cpu", "simulate": tree})
    module.generate(config, sys.argv[1], workers=int(sys.argv[2]), progress=False)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, workers: int) -> None:
    script, out = tmp_path / "run.py", tmp_path / "killed"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([sys.executable, script, out, str(workers)], env=environment)
    journal = tmp_path / "killed.partial" / "rows.journal"
    deadline = time.monotonic() + 240
    while not (journal.exists() and journal.stat().st_size > 0) and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    children = psutil.Process(killed.pid).children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not out.exists() and len(children) >= (workers if workers > 1 else 0)
    assert psutil.wait_procs(children, timeout=60)[1] == [], "workers outlived the run"
    config = small(n_axion=600, n_cdm=200, n_no_sub=40)
    store = generate(config, out, progress=False)
    assert len(store) == 840
    generate(config, tmp_path / "whole", progress=False)
    assert files(out) == files(tmp_path / "whole")


def test_a_resumed_run_simulates_only_what_is_missing(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated: list[tuple[str, int, int]] = []
    original = module._simulate

    def breaks_down(chunk: module._Chunk) -> module._Made:
        if chunk.class_name == "cdm":
            raise KeyboardInterrupt
        return original(chunk)

    def counts(chunk: module._Chunk) -> module._Made:
        simulated.append((chunk.class_name, chunk.start, chunk.stop))
        return original(chunk)

    monkeypatch.setattr(module, "_simulate", breaks_down)
    with pytest.raises(KeyboardInterrupt):
        generate(small(), tmp_path / "store", progress=False)
    monkeypatch.setattr(module, "_simulate", counts)
    generate(small(), tmp_path / "store", progress=False)
    assert simulated == [("cdm", 0, 2), ("cdm", 2, 3), ("no_sub", 0, 2)]
    generate(small(), tmp_path / "whole", progress=False)
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_a_complete_store_is_not_overwritten(tmp_path: Path) -> None:
    generate(small(n_axion=1), tmp_path / "store", progress=False)
    with pytest.raises(StoreError):
        generate(small(n_axion=2), tmp_path / "store", progress=False)


def test_bad_requests_are_named(tmp_path: Path) -> None:
    with pytest.raises(GenerateError, match="workers=0"):
        generate(small(), tmp_path / "store", workers=0)
    if not torch.cuda.is_available():
        with pytest.raises(GenerateError, match="no CUDA device"):
            generate(small().model_copy(update={"device": "cuda"}), tmp_path / "store")
