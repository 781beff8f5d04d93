"""Files to a table: every row, its numbers and flags, after a kill, and in constant memory."""

import csv
import dataclasses
import json
import os
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest

from darkarc.config import DEFAULT_TARGET
from darkarc.serving import COLUMNS, OnnxRegressor, PredictError, TableError, predict, predict_files
from darkarc.serving.table import Journal


def read(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def files(tmp_path, lenses):
    """A folder with good and bad files, in the order of their names."""
    folder = tmp_path / "lenses"
    folder.mkdir()
    np.save(folder / "a_good.npy", lenses[0])
    np.save(folder / "b_float64.npy", lenses[1].astype(np.float64))
    np.save(folder / "c_stack.npy", lenses[2:5])
    np.save(folder / "d_other_size.npy", np.ones((150, 150)))
    np.save(folder / "e_normalised.npy", lenses[5] / lenses[5].max())
    np.save(folder / "f_nan.npy", np.where(np.eye(64) > 0, np.nan, lenses[6]))
    (folder / "g_truncated.npy").write_bytes((folder / "a_good.npy").read_bytes()[:3000])
    np.save(folder / "h_brighter.npy", lenses[7] * 1.25)
    return folder


def test_table_has_a_row_an_image_and_the_posterior_in_it(regressor, files, lenses, tmp_path):
    out = tmp_path / "predictions.csv"
    summary = predict_files(regressor, [files], out, gate=0.0, progress=False)
    rows = {row["path"].rpartition("/")[2]: row for row in read(out)}
    assert tuple(next(iter(rows.values()))) == COLUMNS
    assert list(rows) == [
        "a_good.npy", "b_float64.npy", "c_stack.npy#0", "c_stack.npy#1", "c_stack.npy#2", "d_other_size.npy",
        "e_normalised.npy", "f_nan.npy", "g_truncated.npy", "h_brighter.npy",
    ]  # fmt: skip
    good = ["a_good.npy", "b_float64.npy", "c_stack.npy#0", "c_stack.npy#1", "c_stack.npy#2"]
    expected = regressor.predict(lenses[:5])
    columns = COLUMNS[1:9]
    answers = np.array([[float(rows[name][column]) for column in columns] for name in good])
    quantiles = expected.quantile([0.5, 0.05, 0.16, 0.84, 0.95])
    np.testing.assert_allclose(answers, np.hstack([expected.class_probability, quantiles]), atol=2e-6)
    flags = {name: row["flag"] for name, row in rows.items()}
    assert flags["d_other_size.npy"] == "shape 150x150, expected 64x64"
    assert flags["e_normalised.npy"] == "divided by its maximum (peak exactly 1)"
    assert flags["f_nan.npy"].startswith("not readable: ") and "NaN" in flags["f_nan.npy"]
    assert flags["g_truncated.npy"].startswith("not readable: ")
    assert "outside training range" in flags["h_brighter.npy"] and rows["h_brighter.npy"]["p_axion"]
    for name in ("d_other_size.npy", "e_normalised.npy", "f_nan.npy", "g_truncated.npy"):
        assert not any(rows[name][column] for column in columns), f"{name} must have no numbers"
    assert (summary.n_images, summary.n_mass, summary.n_withheld, summary.n_unreadable) == (10, 6, 2, 2)
    assert "10 images: 6 with a mass" in str(summary) and "2 not readable" in str(summary)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lenses", "predictions.csv"]


def test_parquet_holds_the_same_with_nulls(regressor, files, tmp_path):
    predict_files(regressor, [files], tmp_path / "p.csv", gate=0.0, progress=False)
    predict_files(regressor, [files], tmp_path / "p.parquet", gate=0.0, progress=False)
    table = pq.read_table(tmp_path / "p.parquet")
    assert tuple(table.column_names) == COLUMNS and str(table.schema.field("q95").type) == "double"
    as_text = [
        {name: "" if value is None else str(value) for name, value in row.items()}
        for row in table.to_pylist()
    ]
    assert as_text == read(tmp_path / "p.csv")


def test_onnx_and_torch_fill_the_same_table(regressor, onnx_path, files, tmp_path):
    predict_files(regressor, [files], tmp_path / "torch.csv", progress=False)
    predict_files(OnnxRegressor(onnx_path, threads=1), [files], tmp_path / "onnx.csv", progress=False)
    ours, theirs = read(tmp_path / "torch.csv"), read(tmp_path / "onnx.csv")
    for a, b in zip(ours, theirs, strict=True):
        assert a["path"] == b["path"] and a["flag"][:20] == b["flag"][:20]
        for column in COLUMNS[1:9]:
            assert float(a[column] or -1) == pytest.approx(float(b[column] or -1), abs=1e-4)


def test_what_is_not_axion_like_gets_no_mass(regressor, lenses, tmp_path):
    np.save(tmp_path / "x.npy", lenses[:60])
    axion = regressor.predict(lenses[:60]).class_probability[:, 0]
    gate = float(np.median(axion))
    summary = predict_files(regressor, [tmp_path / "x.npy"], tmp_path / "o.csv", gate=gate, progress=False)
    rows = read(tmp_path / "o.csv")
    for row, share in zip(rows, axion, strict=True):
        assert float(row["p_axion"]) == pytest.approx(share, abs=1e-5)
        assert bool(row["log10_mass_median"]) == bool(row["q95"]) == (share >= gate)
        assert (f"not axion-like (p_axion={share:.2g})" in row["flag"]) == (share < gate)
    assert summary.n_mass == 30 == summary.n_other_class


def test_other_target_is_gated_by_its_own_class(make_regressor, lenses, tmp_path):
    regressor = make_regressor({DEFAULT_TARGET: (-24, -22), "log10_subhalo_mass_msun": (6, 11)})
    np.save(tmp_path / "x.npy", lenses[:40])
    cdm = regressor.predict(lenses[:40]).class_probability[:, 1]
    gate = float(np.median(cdm))
    options = {"target": "log10_subhalo_mass_msun", "gate": gate, "progress": False}
    predict_files(regressor, [tmp_path / "x.npy"], tmp_path / "o.csv", **options)
    rows = read(tmp_path / "o.csv")
    given = [row for row in rows if row["log10_mass_median"]]
    assert [row["path"] for row in given] == [rows[k]["path"] for k in np.flatnonzero(cdm >= gate)]
    assert all(6 <= float(row["log10_mass_median"]) <= 11 for row in given)
    assert all("not cdm-like (p_cdm=" in row["flag"] for row in rows if row not in given)
    with pytest.raises(PredictError, match="not 'price'"):
        predict_files(regressor, [tmp_path / "x.npy"], tmp_path / "o.csv", target="price")


def test_every_kind_of_input_gives_the_same_numbers(regressor, lenses, tmp_path):
    """The readers have tests of their own; here the whole way from each kind of file to a row."""
    import h5py
    from astropy.io import fits

    image = lenses[3]
    np.save(tmp_path / "a.npy", image)
    np.savez(tmp_path / "b.npz", image)
    fits.writeto(tmp_path / "c.fits", image)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["image"] = image
    axion = np.empty(2, object)
    axion[:] = [image.astype(np.float64), 1e-23]
    np.save(tmp_path / "axion_sim_1.npy", axion, allow_pickle=True)  # DeepLense's own layout
    predict_files(regressor, [tmp_path], tmp_path / "out.csv", gate=0.0, progress=False)
    rows = read(tmp_path / "out.csv")
    assert len(rows) == 5 and not any("readable" in row["flag"] for row in rows)
    assert len({tuple(row[name] for name in COLUMNS[1:]) for row in rows}) == 1


@pytest.mark.shared
def test_real_deeplense_files_are_answered_like_simulated_ones(
    make_regressor, simulated, fitted_statistics, shared, tmp_path
):
    """Files of DeepLenseSim's Model II, held against images of our simulator: they are not out of range."""
    statistics = fitted_statistics(simulated("model_ii", "published", 900, 0))
    regressor = make_regressor()
    regressor.spec = dataclasses.replace(regressor.spec, statistics=statistics)
    folder = shared / "deeplense_sample" / "Model_II"
    summary = predict_files(regressor, [folder], tmp_path / "out.csv", gate=0.0, progress=False)
    rows = read(tmp_path / "out.csv")
    assert summary.n_images == len(list(folder.rglob("*.npy"))) > 600
    assert summary.n_unreadable == 0 and summary.n_withheld == 0
    assert sum("outside training range" in row["flag"] for row in rows) < 0.02 * len(rows)


class Killed(Exception):
    pass


@pytest.fixture
def killed_after(monkeypatch):
    """Lets `Journal.append` die after some batches, as a kill would."""

    def arrange(batches: int) -> None:
        true_append, done = Journal.append, []

        def append(journal, rows, images):
            if len(done) == batches:
                raise Killed
            done.append(rows)
            true_append(journal, rows, images)

        monkeypatch.setattr(Journal, "append", append)

    yield arrange
    monkeypatch.undo()


def test_killed_call_goes_on_and_gives_the_undisturbed_table(
    regressor, lenses, tmp_path, monkeypatch, killed_after
):
    for k in range(20):
        np.save(tmp_path / f"{k:02d}.npy", lenses[k])
    paths = sorted(tmp_path.glob("*.npy"))
    options = {"batch_size": 3, "progress": False, "gate": 0.0}
    predict_files(regressor, paths, tmp_path / "undisturbed.csv", **options)
    out = tmp_path / "out.csv"
    killed_after(3)
    with pytest.raises(Killed):
        predict_files(regressor, paths, out, **options)
    monkeypatch.undo()
    assert not out.exists()
    journal = tmp_path / "out.csv.partial"
    with journal.open("ab") as file:
        file.write(b'[["torn')  # the kill came in the middle of a line
    seen = []
    stream = predict.Answers.stream
    monkeypatch.setattr(
        predict.Answers,
        "stream",
        lambda self, items: stream(self, (seen.append(item) or item for item in items)),
    )
    summary = predict_files(regressor, paths, out, **options)
    assert (summary.n_resumed, summary.n_images, len(seen)) == (9, 20, 11)
    assert out.read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()
    assert not journal.exists()


@pytest.mark.parametrize(
    "change",
    [
        "other options",
        "other regressor",
        "other files",
        "resume=False",
        "other lens of that name",
        "a file mended",
    ],
)
def test_a_journal_of_other_work_is_not_used(
    regressor, make_regressor, lenses, tmp_path, monkeypatch, killed_after, change
):
    folder, out = tmp_path / "in", tmp_path / "out.csv"
    folder.mkdir()
    for k in range(6):
        np.save(folder / f"{k}.npy", lenses[k])
    if change == "a file mended":
        (folder / "1.npy").write_bytes((folder / "1.npy").read_bytes()[:500])
    killed_after(2)
    with pytest.raises(Killed):
        predict_files(regressor, [folder], out, batch_size=2, progress=False)
    monkeypatch.undo()
    options = {"batch_size": 2, "progress": False}
    if change == "other options":
        options["gate"] = 0.4
    if change == "other regressor":
        regressor = make_regressor(seed=1)
    if change == "other files":
        np.save(folder / "00.npy", lenses[7])
    if change in ("other lens of that name", "a file mended"):
        # As old as before: what tells is what is in it.
        times = (folder / "1.npy").stat()
        np.save(folder / "1.npy", lenses[8])
        os.utime(folder / "1.npy", ns=(times.st_atime_ns, times.st_mtime_ns))
    if change == "resume=False":
        options["resume"] = False
    summary = predict_files(regressor, [folder], out, **options)
    assert summary.n_resumed == 0 and summary.n_images == len(list(folder.iterdir()))
    fresh = tmp_path / "fresh.csv"
    predict_files(regressor, [folder], fresh, **options)
    assert out.read_bytes() == fresh.read_bytes()


def test_two_calls_on_one_table_do_not_mix(regressor, files, tmp_path):
    out = tmp_path / "out.csv"
    with Journal(out, {"a": 1}, resume=True), pytest.raises(TableError, match="another process is writing"):
        predict_files(regressor, [files], out, progress=False)


def test_wrong_requests_say_what_was_expected(regressor, files, tmp_path):
    with pytest.raises(TableError, match=r"ends in \.csv or \.parquet, found '\.txt'"):
        predict_files(regressor, [files], tmp_path / "out.txt")
    with pytest.raises(PredictError, match="batch_size >= 1"):
        predict_files(regressor, [files], tmp_path / "out.csv", batch_size=0)
    with pytest.raises(PredictError, match="gate in"):
        predict_files(regressor, [files], tmp_path / "out.csv", gate=1.5)
    with pytest.raises(PredictError, match="no images under"):
        predict_files(regressor, [], tmp_path / "out.csv", progress=False)
    assert not (tmp_path / "out.csv").exists() and not (tmp_path / "out.csv.partial").exists()


def test_nothing_readable_is_a_table_of_reasons(regressor, tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"not an array")
    (tmp_path / "empty").mkdir()
    paths = [tmp_path / "bad.npy", tmp_path / "empty", tmp_path / "absent"]
    summary = predict_files(regressor, paths, tmp_path / "out.csv", progress=False)
    assert summary.n_images == summary.n_unreadable == 3
    assert all(row["flag"].startswith("not readable: ") for row in read(tmp_path / "out.csv"))


def test_odd_file_names_survive(regressor, lenses, tmp_path):
    odd = tmp_path / 'a,"b"\nc ☉.npy'
    broken = os.fsdecode(os.fsencode(tmp_path) + b"/z\xff.npy")
    for name in (odd, broken):
        np.save(name, lenses[0])
    predict_files(regressor, [odd, broken], tmp_path / "out.csv", progress=False)
    predict_files(regressor, [odd, broken], tmp_path / "out.parquet", progress=False)
    names = [row["path"] for row in read(tmp_path / "out.csv")]
    assert names[0] == str(odd) and names[1].endswith("z\\udcff.npy")
    assert pq.read_table(tmp_path / "out.parquet")["path"].to_pylist() == names


def test_memory_is_constant_in_the_number_of_images(regressor, lenses, tmp_path):
    peaks = []
    for repeat in (1, 4):
        np.save(tmp_path / "x.npy", np.tile(lenses[:400], (repeat, 1, 1)))
        tracemalloc.start()
        predict_files(regressor, [tmp_path / "x.npy"], tmp_path / "o.csv", batch_size=32, progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    one_image = lenses[0].nbytes
    assert peaks[1] - peaks[0] < 100 * one_image, "1,200 more images must not need their memory"


def test_journal_survives_a_header_cut_short(tmp_path):
    (tmp_path / "o.csv.partial").write_bytes(json.dumps({"a": 1}).encode()[:4])
    with Journal(tmp_path / "o.csv", {"a": 1}, resume=True) as journal:
        assert list(journal.batches()) == []
        row = dict.fromkeys(COLUMNS, 1)
        journal.append([row], "digest")
        assert list(journal.batches()) == [([row], "digest")]


def test_an_image_unlike_the_training_gets_no_mass(wary, lenses, tmp_path):
    """Slightly blurred images pass every statistic's range; the novelty sees them."""
    blurred = 0.8 * lenses[:40] + 0.1 * np.roll(lenses[:40], 1, 1) + 0.1 * np.roll(lenses[:40], -1, 1)
    np.save(tmp_path / "images.npy", np.concatenate([lenses[:40], blurred]))
    out = tmp_path / "table.csv"
    predict_files(wary, [tmp_path / "images.npy"], out, gate=0.0, progress=False)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    withheld = [row["p_axion"] == "" and "unlike the training images (novelty" in row["flag"] for row in rows]
    assert sum(withheld[:40]) <= 1
    assert sum(withheld[40:]) >= 38
