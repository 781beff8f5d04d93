"""Prepare on drawn lenses with real faults among them, and on real files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from darkarc.config import Config, parse
from darkarc.data.prepare import (
    QUALITY_FILE,
    STATISTICS_FILE,
    PrepareError,
    prepare,
    read_statistics,
)
from darkarc.data.quality import STATISTICS, image_statistics
from darkarc.data.split import SplitError
from darkarc.data.store import Store, StoreError, StoreWriter

SIDE = 40
SIGMA = 0.03
N = {"axion": 400, "cdm": 120, "no_sub": 120}

Edit = Callable[[np.ndarray, dict[str, list[Any]]], None]


def draw(n: int, seed: int = 0) -> np.ndarray:
    """Two opposite arcs of an Einstein ring, unequally bright, with noise: (n, SIDE, SIDE) float32."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    r, phi = np.hypot(x, y), np.arctan2(y, x)
    at, strength = rng.uniform(0, 2 * np.pi, n), rng.uniform(0.2, 0.8, n)
    radius, peak = rng.normal(9, 0.4, n), rng.lognormal(0.5, 0.1, n)
    column = (slice(None), None, None)
    around = 1 + strength[column] * np.cos(phi - at[column])
    images = peak[column] * around * np.exp(-0.5 * ((r - radius[column]) / 1.8) ** 2)
    return (images + SIGMA * rng.normal(size=images.shape)).astype(np.float32)


def rows(n_class: dict[str, int]) -> dict[str, list[Any]]:
    names = [name for name, n in n_class.items() for _ in range(n)]
    mass = np.random.default_rng(1).uniform(-24, -22, len(names))
    return {
        "sample_id": [f"{name}-{i:04d}" for i, name in enumerate(names)],
        "class": names,
        "log10_axion_mass_ev": [m if name == "axion" else None for m, name in zip(mass, names, strict=True)],
        "group_id": [f"scene-{i:04d}" for i in range(len(names))],
        "split": [None] * len(names),
    }


def write(path: Path, edit: Edit | None = None, n_class: dict[str, int] = N, dtype: str = "float32") -> Store:
    table = rows(n_class)
    images = draw(len(table["class"]))
    if edit is not None:
        edit(images, table)
    with StoreWriter(
        path, name="drawn", origin="test", instrument="none", shape=(SIDE, SIDE), dtype=dtype,
        parameters={"seed": 0}, shard_bytes=1 << 20,
    ) as writer:  # fmt: skip
        writer.append(images, table)
        return writer.commit()


def config(**prepare_keys: Any) -> Config:
    return parse({"seed": 3, "prepare": {"outliers": {"trees": 60}, **prepare_keys}})


def quality(store: Store) -> pa.Table:
    return pq.read_table(store.path / QUALITY_FILE)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write(tmp_path_factory.mktemp("raw") / "store")


@pytest.fixture(scope="module")
def prepared(raw: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("prepared")
    return prepare(raw, folder / "store", config(), folder / "reports")


def test_the_store_is_whole_sorted_and_holds_the_raw_images(raw: Store, prepared: Store) -> None:
    opened = Store.open(prepared.path)
    split = opened.samples["split"].to_pylist()
    order = [["train", "validation", "calibration", "test"].index(name) for name in split]
    assert order == sorted(order) and set(order) == {0, 1, 2, 3}
    ids = raw.samples["sample_id"].to_pylist()
    where = [ids.index(name) for name in opened.samples["sample_id"].to_pylist()]
    assert sorted(where) == list(range(len(raw)))
    np.testing.assert_array_equal(opened.images(), raw.images(where))
    assert opened.samples["pixel_sha256"].to_pylist() == raw.samples["pixel_sha256"].take(where).to_pylist()
    assert opened.manifest.parameters["raw"]["digest"] == raw.digest
    assert {item.file for item in opened.manifest.files} == {STATISTICS_FILE, QUALITY_FILE}


def test_sizes_and_masses_are_in_proportion(prepared: Store) -> None:
    table = prepared.samples
    split = np.array(table["split"].to_pylist())
    mass = table["log10_axion_mass_ev"].to_numpy(zero_copy_only=False)
    for name, share in (
        config().prepare.model_dump(include={"train", "validation", "calibration", "test"}).items()
    ):
        assert np.mean(split == name) == pytest.approx(share, abs=2 / 640)
        own = mass[(split == name) & np.isfinite(mass)]
        assert np.mean(own) == pytest.approx(np.nanmean(mass), abs=0.1), name


def test_statistics_are_those_of_train_alone(prepared: Store) -> None:
    found = read_statistics(prepared.path)
    split = np.array(prepared.samples["split"].to_pylist())
    train = prepared.images(np.flatnonzero(split == "train"))
    assert found["mean"] == pytest.approx(train.mean(dtype=np.float64), rel=1e-12)
    assert found["std"] == pytest.approx(train.std(dtype=np.float64), rel=1e-12)
    measured = image_statistics(train)
    assert found["noise_level"] == np.median(measured["noise_level"])
    assert found["noise_level"] == pytest.approx(SIGMA, rel=0.1)
    assert found["background"] == np.median(measured["background"])
    assert found["shape"] == [SIDE, SIDE] and found["instrument"] == "none"
    assert set(found["reference"]) == set(STATISTICS)
    assert found["reference"]["flux"]["q99"] == np.quantile(measured["flux"], 0.99)
    quantiles = [found["reference"]["peak"][key] for key in ("q001", "q01", "q50", "q99", "q999")]
    assert quantiles == sorted(quantiles)


def test_nothing_outside_train_touches_what_is_fitted(tmp_path: Path, prepared: Store) -> None:
    split = dict(
        zip(prepared.samples["sample_id"].to_pylist(), prepared.samples["split"].to_pylist(), strict=True)
    )

    def brighten(images: np.ndarray, table: dict[str, list[Any]]) -> None:
        for row, name in enumerate(table["sample_id"]):
            if split[name] != "train":
                images[row] *= 7

    again = prepare(write(tmp_path / "raw", brighten), tmp_path / "out", config())
    assert (again.path / STATISTICS_FILE).read_bytes() == (prepared.path / STATISTICS_FILE).read_bytes()
    old, new = quality(prepared), quality(again)
    train = np.array(old["split"].to_pylist()) == "train"
    np.testing.assert_array_equal(old["score"].to_numpy()[train], new["score"].to_numpy()[train])
    assert np.all(new["score"].to_numpy()[~train] > 0.8)


def test_the_same_input_gives_the_same_bytes(raw: Store, prepared: Store, tmp_path: Path) -> None:
    again = prepare(raw, tmp_path / "store", config(), tmp_path / "reports")
    assert again.digest == prepared.digest
    for name in ("prepare.json", "outliers.png"):
        assert (tmp_path / "reports" / name).read_bytes() == (
            prepared.path.parent / "reports" / name
        ).read_bytes()
    other = prepare(raw, tmp_path / "other", config().model_copy(update={"seed": 4}))
    assert other.samples["sample_id"].to_pylist() != prepared.samples["sample_id"].to_pylist()


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    raw: Store, prepared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkarc.data.assessment._CHUNK_BYTES", 100 * SIDE * SIDE * 4)
    append, calls = StoreWriter.append, 0

    def dies(self: StoreWriter, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        append(self, *args)

    monkeypatch.setattr(StoreWriter, "append", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(raw, tmp_path / "store", config())
    assert not (tmp_path / "store").exists()
    monkeypatch.setattr("darkarc.data.assessment._CHUNK_BYTES", 130 * SIDE * SIDE * 4)
    whole = prepare(raw, tmp_path / "store", config())
    assert calls == 4 + 3  # 300 images stood: chunks 0..129 and 130..259 were skipped
    np.testing.assert_array_equal(whole.images(), prepared.images())
    assert whole.samples.equals(prepared.samples)
    assert read_statistics(whole.path)["std"] == pytest.approx(
        read_statistics(prepared.path)["std"], rel=1e-12
    )


def test_a_twin_is_caught_whatever_its_group_says(tmp_path: Path) -> None:
    def add_twins(images: np.ndarray, table: dict[str, list[Any]]) -> None:
        for row in range(60):
            images[row + 200] = np.rot90(images[row], row % 4)[:: 1 - 2 * (row % 2)]
            table["log10_axion_mass_ev"][row + 200] = table["log10_axion_mass_ev"][row]

        images[[400, 410, 420, 520, 530, 540]] = 0  # blank frames are alike, but no twins

    store = prepare(write(tmp_path / "raw", add_twins), tmp_path / "out", config(), tmp_path)
    table = quality(store)
    split, group = table["split"].to_pylist(), table["group"].to_pylist()
    assert split[:60] == split[200:260]
    assert group[:60] == group[200:260] == [f"scene-{i:04d}" for i in range(60)]
    assert len(set(split[:60])) > 1
    report = json.loads((tmp_path / "prepare.json").read_text())
    assert report["groups"]["joined_by_equal_pixels"] == 60
    assert {rule for rule in table["rule"].to_pylist() if rule} == {"constant"}


def test_a_published_test_set_stays_even_with_its_outliers(tmp_path: Path) -> None:
    def publish(images: np.ndarray, table: dict[str, list[Any]]) -> None:
        for row in range(0, len(images), 8):
            table["split"][row] = "test"
        images[8] = 0.5
        images[16] *= 9
        images[9] = images[24][::-1]  # a train row that is the twin of a published test image
        table["log10_axion_mass_ev"][9] = table["log10_axion_mass_ev"][24]
        images[11] = 0.25

    raw = write(tmp_path / "raw", publish)
    store = prepare(raw, tmp_path / "out", config(outliers={"action": "exclude"}), tmp_path)
    ids = np.array(raw.samples["sample_id"].to_pylist())
    split = np.array(store.samples["split"].to_pylist())
    test = store.samples["sample_id"].to_numpy(zero_copy_only=False)[split == "test"].tolist()
    assert sorted(test) == sorted([*ids[::8], ids[9]])
    report = json.loads((tmp_path / "prepare.json").read_text())
    assert report["published"] == 80 and report["drawn_along_with_published"] == 1
    shares = config().prepare
    expected = shares.validation / (1 - shares.test)
    assert np.mean(split[split != "test"] == "validation") == pytest.approx(expected, abs=0.01)
    assert ids[11] not in store.samples["sample_id"].to_pylist()


FAULTS = {
    "hot pixel": 10,
    "blank": 11,
    "doubled noise": 12,
    "shifted ring": 13,
    "dead columns": 14,
    "ten times brighter": 15,
    "saturated": 16,
    "not a number": 17,
    "constant": 18,
}


def break_images(images: np.ndarray, table: dict[str, list[Any]]) -> None:
    rng = np.random.default_rng(9)
    images[10, 5, 30] = 50
    images[11] = SIGMA * rng.normal(size=(SIDE, SIDE))
    images[12] += np.sqrt(3) * SIGMA * rng.normal(size=(SIDE, SIDE))
    images[13] = np.roll(images[13], (8, -6), (0, 1))
    images[14, :, 14:24] = 0
    images[15] *= 10
    images[16] = np.minimum(images[16], 0.3 * images[16].max())
    images[17, 3, 3] = np.nan
    images[18] = 4.25


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write(tmp_path_factory.mktemp("faulty") / "store", break_images)


def test_real_faults_are_ranked_worst_with_a_fitting_reason(faulty: Store, tmp_path: Path) -> None:
    table = quality(prepare(faulty, tmp_path / "out", config()))
    worst = np.argsort(-table["score"].to_numpy(), kind="stable")[: len(FAULTS)]
    assert sorted(worst.tolist()) == sorted(FAULTS.values())
    # More faults than the contamination of 0.2% allows for are flagged all the same.
    assert table["flagged"].to_numpy(zero_copy_only=False)[[10, 12, 14, 15]].sum() >= 3
    reason = {name: table["reason"][row].as_py() for name, row in FAULTS.items()}
    assert reason["hot pixel"].startswith(("spike", "peak"))
    assert reason["blank"] == "empty"
    assert reason["doubled noise"].startswith(("noise_level z=+", "relative_noise z=+"))
    assert reason["shifted ring"].startswith(("ring_", "offset", "background"))
    assert reason["ten times brighter"].startswith(("flux z=+", "peak z=+", "noise_level z=+", "background"))
    assert reason["saturated"] == "saturated"
    assert reason["not a number"] == "non_finite"
    assert reason["constant"] == "constant"


def test_flag_keeps_what_exclude_leaves_out_and_no_nan_ever_enters(faulty: Store, tmp_path: Path) -> None:
    flagged = prepare(faulty, tmp_path / "flag", config(outliers={"contamination": 0.01}))
    excluded = prepare(
        faulty, tmp_path / "exclude", config(outliers={"contamination": 0.01, "action": "exclude"}), tmp_path
    )
    assert len(flagged) == len(faulty) - 1
    assert np.isfinite(flagged.images()).all()
    table = quality(excluded)
    out, unusual = (
        table["excluded"].to_numpy(zero_copy_only=False),
        table["flagged"].to_numpy(zero_copy_only=False),
    )
    train = np.array(table["split"].to_pylist()) == "train"
    assert len(table) == len(faulty) and len(excluded) == len(faulty) - out.sum()
    assert set(np.flatnonzero(out)) >= {11, 16, 17, 18}
    np.testing.assert_array_equal(out[train], unusual[train])
    assert out[train].sum() >= 4
    rules = np.array([rule is not None for rule in table["rule"].to_pylist()])
    np.testing.assert_array_equal(out[~train], rules[~train])
    report = json.loads((tmp_path / "prepare.json").read_text())["outliers"]
    assert report["excluded"] == out.sum() and report["flagged"] == unusual.sum()
    assert sum(item["flagged"] for item in report["by_reason"].values()) == unusual.sum()
    assert report["by_reason"]["empty"]["excluded"] == 1


def test_contamination_and_trees_and_the_share_decide(faulty: Store, tmp_path: Path) -> None:
    def flags(**outliers: Any) -> np.ndarray:
        folder = tmp_path / json.dumps(outliers).translate(str.maketrans("", "", ' "{}:,.'))
        table = quality(prepare(faulty, folder, config(outliers={"trees": 60, **outliers})))
        train = np.array(table["split"].to_pylist()) == "train"
        chosen = np.array([rule is None for rule in table["rule"].to_pylist()]) & train
        return table["flagged"].to_numpy(zero_copy_only=False)[chosen]

    loose = flags(contamination=0.1, largest_share=0.5)
    assert np.mean(loose) == pytest.approx(0.1, abs=0.005)
    assert np.mean(flags(contamination=0.02, largest_share=0.5)) == pytest.approx(0.02, abs=0.005)
    assert np.mean(flags(contamination=0.1, largest_share=0.01)) < 0.04
    assert not np.array_equal(loose, flags(contamination=0.1, largest_share=0.5, trees=10))


def test_a_rare_class_that_looks_different_is_not_thrown_out(tmp_path: Path) -> None:
    def brighten(images: np.ndarray, table: dict[str, list[Any]]) -> None:
        images[-12:] *= 3

    raw = write(tmp_path / "raw", brighten, {"axion": 600, "cdm": 12})
    table = quality(prepare(raw, tmp_path / "out", config(outliers={"contamination": 0.03})))
    rare = np.array(table["class"].to_pylist()) == "cdm"
    train = np.array(table["split"].to_pylist()) == "train"
    score = table["score"].to_numpy()
    assert score[rare].min() > np.quantile(score[~rare], 0.99)  # unusual indeed
    assert not table["flagged"].to_numpy(zero_copy_only=False)[rare & train].any()


def test_one_image_under_two_labels_is_named(tmp_path: Path) -> None:
    def relabel(images: np.ndarray, table: dict[str, list[Any]]) -> None:
        images[450] = images[3].T  # axion 3 again, as cdm
        images[20] = images[21]  # two axions with two masses

    table = quality(prepare(write(tmp_path / "raw", relabel), tmp_path / "out", config()))
    rule = np.array([rule or "" for rule in table["rule"].to_pylist()])
    assert np.flatnonzero(rule == "conflicting_label").tolist() == [3, 20, 21, 450]


def test_the_reports_hold_the_counts_and_a_picture(prepared: Store) -> None:
    reports = prepared.path.parent / "reports"
    report = json.loads((reports / "prepare.json").read_text())
    split, names = prepared.samples["split"].to_pylist(), prepared.samples["class"].to_pylist()
    for name, counts in report["n"].items():
        for class_name, n in counts.items():
            assert n == sum(s == name and c == class_name for s, c in zip(split, names, strict=True))
    assert sum(report["groups"][name] for name in report["n"]) == 640
    picture = (reports / "outliers.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
    assert sorted(path.name for path in reports.iterdir()) == ["outliers.png", "prepare.json"]


def test_integer_counts_and_the_other_target_work(tmp_path: Path) -> None:
    def counts(images: np.ndarray, table: dict[str, list[Any]]) -> None:
        images[:] = np.random.default_rng(0).poisson(np.maximum(images, 0) * 200 + 3)
        table["log10_subhalo_mass_msun"] = [
            8 + row / len(images) if name == "cdm" else None for row, name in enumerate(table["class"])
        ]

    raw = write(tmp_path / "raw", lambda images, table: counts(images, table))
    both = {"log10_axion_mass_ev": [-24, -22], "log10_subhalo_mass_msun": [8, 9]}
    store = prepare(raw, tmp_path / "out", parse({"targets": both}))
    assert not any(quality(store)["rule"].to_pylist())


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda i, t: t.update({"class": ["spiral"] * 640}), PrepareError, "row 0: class is 'spiral'"),
        (lambda i, t: t["log10_axion_mass_ev"].__setitem__(7, -21.5), PrepareError, "first at row 7"),
        (lambda i, t: t.update(log10_axion_mass_ev=[None] * 640), PrepareError, "no axion image has a log10"),
        (lambda i, t: t.update(group_id=["one"] * 640), SplitError, "would hold no axion"),
        (lambda i, t: i.fill(1), PrepareError, "breaks a rule"),
        (lambda i, t: t.update(split=["test"] * 640), SplitError, "split train would hold no axion"),
    ],
)
def test_what_cannot_be_prepared_says_why(
    edit: Edit, error: type[Exception], message: str, tmp_path: Path
) -> None:
    if message == "breaks a rule":

        def fill(images: np.ndarray, table: dict[str, list[Any]]) -> None:
            images[:] = np.arange(1, 641)[:, None, None]

        edit = fill
    with pytest.raises(error, match=message):
        prepare(write(tmp_path / "raw", edit), tmp_path / "out", config())
    assert not (tmp_path / "out").exists()


def test_the_raw_store_is_never_overwritten_and_a_complete_one_only_on_request(
    raw: Store, prepared: Store, tmp_path: Path
) -> None:
    with pytest.raises(PrepareError, match="raw store's own place"):
        prepare(raw, raw.path, config(), replace=True)
    first = prepare(raw, tmp_path / "out", config())
    with pytest.raises(StoreError, match="complete store"):
        prepare(raw, tmp_path / "out", config(train=0.6, test=0.25))
    second = prepare(raw, tmp_path / "out", config(train=0.6, test=0.25), replace=True)
    assert second.digest != first.digest


def test_read_statistics_refuses_a_raw_store_and_a_damaged_file(raw: Store, tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="darkarc prepare"):
        read_statistics(raw.path)
    store = prepare(raw, tmp_path / "out", config())
    path = store.path / STATISTICS_FILE
    path.write_bytes(path.read_bytes().replace(b"none", b"nome"))
    with pytest.raises(PrepareError, match="SHA-256"):
        read_statistics(store.path)
    with pytest.raises(StoreError, match=STATISTICS_FILE):
        Store.open(store.path)
