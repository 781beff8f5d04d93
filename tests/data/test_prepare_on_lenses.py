"""Prepare on the simulator's lenses and on real DeepLense files: faults found, lenses left alone."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from darkarc.config import CLASSES, Config
from darkarc.data.ingest import ingest
from darkarc.data.prepare import QUALITY_FILE, prepare, read_statistics
from darkarc.data.store import Store, StoreWriter
from darkarc.simulation import PRESETS, draw_scenes, render

PER_CLASS = {"axion": 240, "cdm": 60, "no_sub": 60}


def simulated(path: Path, preset: str, noise: str, seed: int, spoil: bool) -> tuple[Store, list[int]]:
    images, mass = [], []
    for name in CLASSES:
        indices = np.arange(PER_CLASS[name])
        scenes = draw_scenes(PRESETS[preset], name, seed, indices)
        drawn = render(PRESETS[preset], scenes, noise=noise, seed=seed, indices=indices, dtype="float32")
        images.append(drawn.numpy())
        mass.append(np.asarray(scenes.log10_mass_ev))
    pixels = np.concatenate(images)
    faults = list(range(20, 26))
    if spoil:
        spoiled(pixels, faults)
    with StoreWriter(
        path, name=preset, origin="simulated", instrument=preset, shape=pixels.shape[1:],
        dtype="float32", parameters={},
    ) as writer:  # fmt: skip
        writer.append(
            pixels,
            {
                "sample_id": [f"s{i}" for i in range(len(pixels))],
                "class": [name for name in CLASSES for _ in range(PER_CLASS[name])],
                "log10_axion_mass_ev": np.concatenate(mass),
                "group_id": [f"s{i}" for i in range(len(pixels))],
            },
        )
        return writer.commit(), faults


def spoiled(pixels: np.ndarray, faults: list[int]) -> None:
    """A hot pixel, a lens gone missing, twice the noise, a lens off centre, dead rows, a saturated arc."""
    hot, blank, noisy, shifted, dead, saturated = faults
    rng = np.random.default_rng(0)
    side = pixels.shape[1]
    corner = pixels[:, : side // 8, : side // 8]
    sigma = float(np.median(corner.std(axis=(1, 2))))
    pixels[hot, 7, 40] = 5 * pixels[hot].max()
    pixels[blank] = np.median(corner) + sigma * rng.normal(size=(side, side))
    pixels[noisy] += np.sqrt(3) * sigma * rng.normal(size=(side, side))
    pixels[shifted] = np.roll(pixels[shifted], (side // 5, -side // 6), (0, 1))
    pixels[dead, side // 2 - 4 : side // 2 + 4] = 0
    pixels[saturated] = np.minimum(pixels[saturated], 0.4 * pixels[saturated].max())


def test_faults_among_simulated_lenses_are_ranked_worst(tmp_path: Path) -> None:
    raw, faults = simulated(tmp_path / "raw", "model_iii", "physical", 5, spoil=True)
    prepared = prepare(raw, tmp_path / "out", Config(), tmp_path / "reports")
    table = pq.read_table(prepared.path / QUALITY_FILE)
    worst = np.argsort(-table["score"].to_numpy(), kind="stable")[: len(faults)]
    assert sorted(worst.tolist()) == faults, [
        (row, table["score"][row].as_py(), table["reason"][row].as_py()) for row in [*faults, *worst.tolist()]
    ]


@pytest.mark.parametrize(
    ("preset", "noise"), [("model_ii", "published"), ("model_iii", "physical"), ("model_i", "published")]
)
def test_sound_lenses_break_no_rule_and_hardly_any_is_flagged(
    preset: str, noise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PER_CLASS, "axion", 100)
    raw, _ = simulated(tmp_path / "raw", preset, noise, 6, spoil=False)
    prepared = prepare(raw, tmp_path / "out", Config())
    table = pq.read_table(prepared.path / QUALITY_FILE)
    assert not any(table["rule"].to_pylist())
    assert table["flagged"].to_numpy(zero_copy_only=False).mean() < 0.02
    reference = read_statistics(prepared.path)["reference"]
    side = raw.shape[0]
    assert 0.1 * side < reference["ring_radius"]["q50"] < 0.35 * side


@pytest.mark.shared
def test_real_files_are_prepared_and_none_is_called_broken(shared: Path, tmp_path: Path) -> None:
    raw = ingest(shared / "deeplense_sample" / "Model_II", tmp_path / "raw", progress=False).store
    prepared = prepare(raw, tmp_path / "out", Config(), tmp_path / "reports")
    assert len(prepared) == len(raw) == 800
    table = pq.read_table(prepared.path / QUALITY_FILE)
    assert not any(table["rule"].to_pylist())
    assert table["flagged"].to_numpy(zero_copy_only=False).sum() <= 8
    split = np.array(prepared.samples["split"].to_pylist())
    assert np.mean(split == "test") == pytest.approx(0.15, abs=0.005)
    assert (tmp_path / "reports" / "outliers.png").stat().st_size > 50_000
