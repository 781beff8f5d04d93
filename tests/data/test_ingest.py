"""Ingest: every published layout becomes one store; every kind of bad file is named, or skipped."""

import csv
import gzip
import io
import os
import pickle
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darkarc.data import ingest as ingest_module
from darkarc.data._screening import fingerprint
from darkarc.data.ingest import BadFile, IngestError, ingest
from darkarc.data.store import Store, StoreError, StoreWriter, pixel_sha256

SIDE = 16


def image_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(SIDE, SIDE))


def write(path: Path, image: np.ndarray, mass_ev: Any = None) -> Path:
    """One file as DeepLense writes it: plain, or an object array `[image, mass]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mass_ev is None:
        np.save(path, image)
    else:
        array = np.empty(2, dtype=object)
        array[0], array[1] = image, mass_ev
        np.save(path, array, allow_pickle=True)
    return path


def make_set(
    root: Path, n: int = 6, names: tuple[str, str, str] = ("axion", "cdm", "no_sub"), seed: int = 0
) -> None:
    """`n` files a class; masses run from 1e-24 to 1e-22 eV."""
    masses = np.logspace(-24, -22, n)
    for k, name in enumerate(names):
        for i in range(n):
            image = image_of(seed + 1000 * k + i)
            write(root / name / f"{name}_sim_{i}.npy", image, np.float64(masses[i]) if k == 0 else None)


def quietly(source: Path, out: Path, **options: Any) -> ingest_module.IngestReport:
    return ingest(source, out, progress=False, **options)


def column(store: Store, name: str) -> list[Any]:
    return store.samples.column(name).to_pylist()


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def pack(root: Path, archive: Path, mode: str = "w:gz") -> Path:
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]  # the mode is one of its literals
        tar.add(root, arcname=root.name)
    return archive


class TestGoodFiles:
    def test_a_published_set(self, tmp_path: Path) -> None:
        make_set(tmp_path / "lenses")
        report = quietly(tmp_path / "lenses", tmp_path / "store")
        store = report.store
        assert (report.n_ingested, report.n_rejected, report.n_other, report.rejected) == (18, 0, 0, None)
        assert column(store, "class") == ["axion"] * 6 + ["cdm"] * 6 + ["no_sub"] * 6
        masses = column(store, "log10_axion_mass_ev")
        np.testing.assert_allclose(masses[:6], np.linspace(-24, -22, 6), atol=1e-12)
        assert masses[6:] == [None] * 12
        assert store.manifest.dtype == "float32" and store.manifest.instrument == "unknown"
        for i, name in enumerate(column(store, "sample_id")):
            loaded = np.load(tmp_path / "lenses" / name, allow_pickle=True)
            image = loaded[0] if loaded.dtype == object else loaded
            np.testing.assert_array_equal(store.images([i])[0], image.astype(np.float32))
        assert set(column(store, "origin")) == {"deeplense"} and column(store, "split") == [None] * 18
        assert not (store.path / "rejected.csv").exists()

    def test_both_spellings_and_other_layouts(self, tmp_path: Path) -> None:
        make_set(tmp_path / "old", names=("vort", "sphere", "no"))
        write(tmp_path / "old" / "vort" / "rows.npy", list(image_of(70)), 1e-23)  # type: ignore[arg-type]
        write(
            tmp_path / "old" / "vort" / "flat.npy", np.stack([image_of(71).ravel(), np.full(SIDE**2, 1e-23)])
        )
        write(tmp_path / "old" / "no" / "flat.npy", image_of(72).ravel())
        store = quietly(tmp_path / "old", tmp_path / "store").store
        names = column(store, "class")
        assert [names.count(name) for name in ("axion", "cdm", "no_sub")] == [8, 6, 7]
        at = column(store, "sample_id").index("vort/rows.npy")
        np.testing.assert_array_equal(store.images([at])[0], image_of(70).astype(np.float32))
        assert column(store, "log10_axion_mass_ev")[at] == pytest.approx(-23)

    def test_published_splits_are_kept(self, tmp_path: Path) -> None:
        for number, folder in enumerate(("Model_II", "Model_II_test")):
            make_set(tmp_path / "root" / folder, n=2, seed=10 * number)
        store = quietly(tmp_path / "root", tmp_path / "a").store
        assert column(store, "split") == [None] * 6 + ["test"] * 6
        make_set(tmp_path / "tree" / "train", n=2)
        make_set(tmp_path / "tree" / "val", n=2, seed=50)
        store = quietly(tmp_path / "tree", tmp_path / "b").store
        assert column(store, "split") == [None] * 6 + ["validation"] * 6

    def test_a_set_may_be_pointed_at_from_within(self, tmp_path: Path) -> None:
        make_set(tmp_path / "Model_III_test")
        store = quietly(tmp_path / "Model_III_test" / "axion", tmp_path / "store").store
        assert column(store, "class") == ["axion"] * 6 and column(store, "split") == ["test"] * 6

    @pytest.mark.parametrize(("shape", "expected"), [((64, 64), "model_ii"), ((32, 32), "unknown")])
    def test_the_instrument_is_named_only_where_the_size_agrees(
        self, tmp_path: Path, shape: tuple[int, int], expected: str
    ) -> None:
        for i in range(3):
            image = np.random.default_rng(i).normal(size=shape)
            write(tmp_path / "Model_II" / "cdm" / f"cdm_sim_{i}.npy", image)
        store = quietly(tmp_path / "Model_II", tmp_path / "store").store
        assert store.manifest.instrument == expected and store.shape == shape

    @pytest.mark.parametrize("dtype", ["int64", "uint16", ">i4"])
    def test_counts_keep_their_type(self, tmp_path: Path, dtype: str) -> None:
        counts = [np.random.default_rng(i).poisson(20, size=(SIDE, SIDE)) for i in range(3)]
        for i, image in enumerate(counts):
            write(tmp_path / "set" / "cdm" / f"cdm_sim_{i}.npy", image.astype(dtype))
        store = quietly(tmp_path / "set", tmp_path / "store").store
        assert store.images().dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(store.images(), counts)

    def test_other_files_are_left_alone_and_counted(self, tmp_path: Path) -> None:
        make_set(tmp_path / "set", n=2)
        (tmp_path / "set" / "README.md").write_text("about")
        (tmp_path / "set" / "axion" / "._axion_sim_0.npy").write_text("a Mac's shadow")
        (tmp_path / "set" / "__MACOSX").mkdir()
        (tmp_path / "set" / "__MACOSX" / "axion_sim_0.npy").write_text("another")
        report = quietly(tmp_path / "set", tmp_path / "store")
        assert (report.n_ingested, report.n_other) == (6, 3)

    def test_links_to_folders_are_followed_once(self, tmp_path: Path) -> None:
        make_set(tmp_path / "disk", n=2)
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "lenses").symlink_to(tmp_path / "disk")
        (tmp_path / "disk" / "loop").symlink_to(tmp_path / "disk")
        assert quietly(tmp_path / "set", tmp_path / "store").n_ingested == 6

    def test_the_same_files_give_the_same_bytes_from_any_place(self, tmp_path: Path) -> None:
        make_set(tmp_path / "a" / "set")
        make_set(tmp_path / "b" / "set")
        stores = [quietly(tmp_path / name / "set", tmp_path / name / "store").store for name in "ab"]
        assert files_of(stores[0].path) == files_of(stores[1].path)
        assert str(tmp_path) not in (stores[0].path / "manifest.json").read_text()

    @pytest.mark.shared
    def test_real_files(self, tmp_path: Path, shared: Path) -> None:
        sample = shared / "deeplense_sample"
        store = quietly(sample / "Model_I", tmp_path / "I").store
        assert (len(store), store.shape, store.manifest.instrument) == (60, (150, 150), "model_i")
        assert store.manifest.dtype == "int64"
        store = quietly(sample / "Model_II", tmp_path / "II").store
        assert (len(store), store.shape, store.manifest.instrument) == (800, (64, 64), "model_ii")
        masses = np.array(column(store, "log10_axion_mass_ev")[:600], float)
        assert -24 <= masses.min() < -23.9 and -22.1 < masses.max() <= -22
        with pytest.raises(IngestError, match="several instruments"):
            quietly(sample, tmp_path / "both")


def bad_cdm(root: Path) -> Path:
    return root / "cdm" / "cdm_sim_0000.npy"


def hostile_file(path: Path, victim: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {victim}",)

    array = np.empty(2, dtype=object)
    array[0], array[1] = Attack(), 1e-23
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    path.write_bytes(file.getvalue() + pickle.dumps(array, protocol=4))


BAD: dict[str, tuple[Any, str]] = {
    "truncated": (lambda p: write(p, image_of(9)) and os.truncate(p, 500), "truncated"),
    "empty": (lambda p: p.write_bytes(b""), "not an .npy"),
    "not npy": (lambda p: p.write_text("<html>Quota exceeded</html>"), "not an .npy"),
    "other shape": (lambda p: write(p, np.random.normal(size=(SIDE, SIDE + 1))), "16 x 17 pixels"),
    "other type": (lambda p: write(p, np.random.poisson(9, size=(SIDE, SIDE))), "of type int64"),
    "complex": (lambda p: write(p, image_of(9) * 1j), "real numbers"),
    "nan": (lambda p: write(p, np.where(image_of(9) > 2, np.nan, image_of(9))), "NaN or infinite"),
    "infinite": (lambda p: write(p, np.where(image_of(9) > 2, -np.inf, image_of(9))), "NaN or infinite"),
    "overflow": (lambda p: write(p, image_of(9) * 1e300), "too large for float32"),
    "constant": (lambda p: write(p, np.full((SIDE, SIDE), 0.5)), "constant"),
    "a pipe": (lambda p: os.mkfifo(p), "not a regular file"),
}
BAD_AXION: dict[str, tuple[Any, str]] = {
    "without a mass": (lambda p: write(p, image_of(9)), "without a mass"),
    "mass too high": (lambda p: write(p, image_of(9), 1e-21), "expected log10 in"),
    "mass too low": (lambda p: write(p, image_of(9), 0.9e-24), "expected log10 in"),
    "log10 mass": (lambda p: write(p, image_of(9), -23.1), "evidently log10"),
    "nan mass": (lambda p: write(p, image_of(9), np.nan), "positive"),
}
CASES = [("cdm", name) for name in BAD] + [("axion", name) for name in BAD_AXION]


class TestBadFiles:
    @pytest.mark.parametrize(("folder", "case"), CASES)
    def test_stop_names_the_file_and_skip_keeps_exactly_the_rest(
        self, tmp_path: Path, folder: str, case: str
    ) -> None:
        root = tmp_path / "set"
        make_set(root)
        good = quietly(root, tmp_path / "good").store
        make, reason = (BAD | BAD_AXION)[case]
        name = f"{folder}/{folder}_sim_25.npy"
        make(root / name)
        with pytest.raises(BadFile, match=rf"^{name}: .*{reason}"):
            quietly(root, tmp_path / "store")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "set"], "nothing half-made stays"
        report = quietly(root, tmp_path / "store", on_bad="skip")
        assert (report.n_ingested, report.n_rejected) == (18, 1)
        np.testing.assert_array_equal(report.store.images(), good.images())
        assert column(report.store, "sample_id") == column(good, "sample_id")
        assert report.rejected is not None
        with report.rejected.open(newline="") as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["file", "reason"] and rows[1][0] == name and reason in rows[1][1]

    def test_a_hostile_file_is_refused_by_name_and_creates_nothing(self, tmp_path: Path) -> None:
        root, victim = tmp_path / "set", tmp_path / "victim"
        make_set(root)
        hostile_file(root / "axion" / "axion_sim_3.npy", victim)
        with pytest.raises(BadFile, match=r"axion/axion_sim_3\.npy: .*posix\.system"):
            quietly(root, tmp_path / "store")
        assert quietly(root, tmp_path / "store", on_bad="skip").n_rejected == 1
        assert not victim.exists()
        np.load(root / "axion" / "axion_sim_3.npy", allow_pickle=True)
        assert victim.exists(), "the attack itself must work, or this test shows nothing"

    def test_negative_counts(self, tmp_path: Path) -> None:
        for i in range(4):
            counts = np.random.default_rng(i).poisson(20, size=(SIDE, SIDE))
            counts[3, 3] -= 100 * (i == 2)
            write(tmp_path / "set" / "cdm" / f"cdm_sim_{i}.npy", counts)
        with pytest.raises(BadFile, match=r"cdm_sim_2\.npy: its lowest pixel is -\d+; whole"):
            quietly(tmp_path / "set", tmp_path / "store")

    def test_duplicates_name_the_first(self, tmp_path: Path) -> None:
        make_set(tmp_path / "set")
        write(tmp_path / "set" / "no_sub" / "no_sub_sim_99.npy", image_of(1003))
        with pytest.raises(BadFile, match=r"no_sub_sim_99\.npy: the same image as cdm/cdm_sim_3\.npy"):
            quietly(tmp_path / "set", tmp_path / "store")

    @pytest.mark.parametrize("on_bad", ["stop", "skip"])
    @pytest.mark.parametrize("names", [("Model_II", "Model_II_test"), ("test", "train"), ("test", "val")])
    def test_a_published_test_image_outside_of_the_test_set_ends_the_ingest(
        self, tmp_path: Path, names: tuple[str, str], on_bad: Any
    ) -> None:
        for number, name in enumerate(names):
            make_set(tmp_path / "root" / name, n=2, seed=10 * number)
            write(tmp_path / "root" / name / "cdm" / "cdm_sim_7.npy", image_of(77))
        test, other = sorted(names, key=lambda name: "test" not in name)
        reason = (
            rf"{test}/cdm/cdm_sim_7\.npy lies in the published test .*: remove {other}/cdm/cdm_sim_7\.npy"
        )
        with pytest.raises(IngestError, match=reason):
            quietly(tmp_path / "root", tmp_path / "store", on_bad=on_bad)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]
        (tmp_path / "root" / other / "cdm" / "cdm_sim_7.npy").unlink()
        assert quietly(tmp_path / "root", tmp_path / "store", on_bad=on_bad).n_ingested == 13

    def test_the_set_is_what_most_files_are(self, tmp_path: Path) -> None:
        make_set(tmp_path / "set")
        write(tmp_path / "set" / "axion" / "axion_sim_.npy", np.random.normal(size=(20, 20)), 1e-23)
        report = quietly(tmp_path / "set", tmp_path / "store", on_bad="skip")
        assert report.store.shape == (SIDE, SIDE) and report.n_rejected == 1

    def test_a_file_without_a_class_or_of_two(self, tmp_path: Path) -> None:
        make_set(tmp_path / "set")
        write(tmp_path / "set" / "lens.npy", image_of(900))
        write(tmp_path / "set" / "cdm" / "axion_sim_1.npy", image_of(901))
        report = quietly(tmp_path / "set", tmp_path / "store", on_bad="skip")
        assert report.n_rejected == 2 and report.rejected is not None
        assert (
            "says its class" in report.rejected.read_text()
            and "its folder says cdm" in report.rejected.read_text()
        )

    def test_a_mass_range_of_ones_own(self, tmp_path: Path) -> None:
        write(tmp_path / "set" / "axion" / "axion_sim_1.npy", image_of(1), 1e-20)
        store = quietly(tmp_path / "set", tmp_path / "store", log10_mass_range_ev=(-21, -19)).store
        assert column(store, "log10_axion_mass_ev") == [pytest.approx(-20)]

    @pytest.mark.parametrize("kind", ["missing", "empty", "file", "only bad", "dangling"])
    def test_a_source_without_images(self, tmp_path: Path, kind: str) -> None:
        root = tmp_path / "set"
        message = {
            "missing": "no such folder",
            "empty": r"no \.npy file in it",
            "file": "expected a folder",
            "only bad": "none of 1 files",
            "dangling": "a link to a file that is not there",
        }[kind]
        if kind == "file":
            root.write_text("x")
        elif kind != "missing":
            root.mkdir()
        if kind == "only bad":
            (root / "cdm_sim_1.npy").write_text("x")
        if kind == "dangling":
            (root / "cdm_sim_1.npy").symlink_to(tmp_path / "gone.npy")
        with pytest.raises(IngestError, match=message):
            quietly(root, tmp_path / "store", on_bad="skip")
        assert not (tmp_path / "store").exists() and not (tmp_path / "store.partial").exists()

    def test_every_file_unfit(self, tmp_path: Path) -> None:
        write(tmp_path / "set" / "axion" / "axion_sim_1.npy", image_of(1))
        with pytest.raises(IngestError, match=r"none of its 1 files is fit.*without a mass"):
            quietly(tmp_path / "set", tmp_path / "store", on_bad="skip")

    def test_a_complete_store_is_kept_unless_asked(self, tmp_path: Path) -> None:
        make_set(tmp_path / "set")
        quietly(tmp_path / "set", tmp_path / "store")
        with pytest.raises(StoreError, match="complete store"):
            quietly(tmp_path / "set", tmp_path / "store")
        assert quietly(tmp_path / "set", tmp_path / "store", replace=True).n_ingested == 18


class TestArchives:
    @pytest.mark.parametrize(
        ("name", "mode"), [("Model_II.tgz", "w:gz"), ("x.tar.gz", "w:gz"), ("x.tar", "w")]
    )
    def test_an_archive_gives_what_its_folder_gives(self, tmp_path: Path, name: str, mode: str) -> None:
        make_set(tmp_path / "Model_II", n=50)
        pack(tmp_path / "Model_II", tmp_path / name, mode)
        folder = quietly(tmp_path / "Model_II", tmp_path / "a").store
        archive = quietly(tmp_path / name, tmp_path / "b").store
        names = [f"Model_II/{name}" for name in column(folder, "sample_id")]
        order = [names.index(name) for name in column(archive, "sample_id")]
        assert sorted(order) == list(range(150))
        np.testing.assert_array_equal(archive.images(), folder.images(order))
        assert column(archive, "class") == [column(folder, "class")[i] for i in order]

    @pytest.mark.parametrize("ending", ["tgz", "TGZ", "Tar.gz"])
    def test_the_archive_of_a_test_set_is_a_test_set(self, tmp_path: Path, ending: str) -> None:
        make_set(tmp_path / "set", n=2)
        archive = pack(tmp_path / "set", tmp_path / f"Model_III_test.{ending}")
        store = quietly(archive, tmp_path / "store").store
        assert column(store, "split") == ["test"] * 6

    @pytest.mark.parametrize(
        ("name", "kind", "reason"),
        [
            ("../cdm_sim_1.npy", tarfile.REGTYPE, "leads out"),
            ("/tmp/cdm_sim_1.npy", tarfile.REGTYPE, "leads out"),
            ("cdm/cdm_sim_1.npy", tarfile.SYMTYPE, "a link or a special file"),
            ("cdm/cdm_sim_1.npy", tarfile.LNKTYPE, "a link or a special file"),
            ("cdm/cdm_sim_1.npy", tarfile.FIFOTYPE, "a link or a special file"),
            ("cdm/cdm_sim_1.npy", tarfile.CHRTYPE, "a link or a special file"),
        ],
    )
    def test_members_that_lead_elsewhere(self, tmp_path: Path, name: str, kind: bytes, reason: str) -> None:
        make_set(tmp_path / "set", n=2)
        with tarfile.open(tmp_path / "set.tgz", "w:gz") as tar:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
            tar.add(tmp_path / "set", arcname="set")
        with pytest.raises(BadFile, match=reason):
            quietly(tmp_path / "set.tgz", tmp_path / "store")
        report = quietly(tmp_path / "set.tgz", tmp_path / "store", on_bad="skip")
        assert (report.n_ingested, report.n_rejected) == (6, 1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.tgz", "store"]

    def test_two_members_of_one_name(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "set.tgz", "w:gz") as tar:
            for i in range(2):
                tar.add(write(tmp_path / f"{i}.npy", image_of(i)), arcname="cdm/cdm_sim_1.npy")
        with pytest.raises(BadFile, match="second file of this name"):
            quietly(tmp_path / "set.tgz", tmp_path / "store")

    @pytest.mark.parametrize("keep", [0.3, 0.9])
    def test_a_download_cut_short(self, tmp_path: Path, keep: float) -> None:
        make_set(tmp_path / "set", n=60)
        archive = pack(tmp_path / "set", tmp_path / "set.tgz")
        archive.write_bytes(archive.read_bytes()[: int(keep * archive.stat().st_size)])
        with pytest.raises(IngestError, match=r"set\.tgz: damaged or truncated .*download it again"):
            quietly(archive, tmp_path / "store", on_bad="skip")

    def test_a_page_saved_as_an_archive(self, tmp_path: Path) -> None:
        (tmp_path / "set.tgz").write_text("<html>Quota exceeded</html>" * 100)
        with pytest.raises(IngestError, match="damaged or truncated"):
            quietly(tmp_path / "set.tgz", tmp_path / "store")

    def test_a_bomb_is_not_unpacked(self, tmp_path: Path) -> None:
        member = tarfile.TarInfo("cdm/zeros.npz")
        member.size = 2**37
        with gzip.open(tmp_path / "bomb.tgz", "wb", compresslevel=1) as file:
            file.write(member.tobuf())
            for _ in range(400):
                file.write(bytes(2**20))
        with pytest.raises(IngestError, match="unpacks to over 100 times"):
            quietly(tmp_path / "bomb.tgz", tmp_path / "store")

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
    def test_a_name_of_a_gigabyte_is_not_read(self, tmp_path: Path, kind: bytes) -> None:
        member = tarfile.TarInfo("name")
        member.type, member.size = kind, 2**30
        with gzip.open(tmp_path / "bomb.tgz", "wb") as file:
            file.write(member.tobuf() + os.urandom(2**16))
        with pytest.raises(IngestError, match="where a name is expected"):
            quietly(tmp_path / "bomb.tgz", tmp_path / "store")

    def test_a_member_of_absurd_size(self, tmp_path: Path) -> None:
        make_set(tmp_path / "set", n=2)
        with tarfile.open(tmp_path / "set.tar", "w") as tar:
            tar.add(tmp_path / "set", arcname="set")
            member = tarfile.TarInfo("cdm/cdm_sim_9.npy")
            member.size = 65 * 2**20
            tar.addfile(member, io.BytesIO(bytes(member.size)))
        report = quietly(tmp_path / "set.tar", tmp_path / "store", on_bad="skip")
        assert (report.n_ingested, report.n_rejected) == (6, 1)


class TestResumption:
    @pytest.mark.parametrize("archive", [False, True])
    @pytest.mark.parametrize("where", ["before", "after"])
    def test_an_interrupted_ingest_goes_on_to_the_same_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: bool, where: str
    ) -> None:
        monkeypatch.setattr(ingest_module, "_CHUNK_FILES", 7)
        root = tmp_path / "set"
        make_set(root, n=20)
        write(root / "axion" / "axion_sim_15.npy", np.zeros((SIDE, SIDE)), 1e-23)
        write(root / "no_sub" / "no_sub_sim_99.npy", image_of(1003))
        source = pack(root, tmp_path / "set.tgz") if archive else root
        quietly(source, tmp_path / "whole", on_bad="skip")
        append, calls = StoreWriter.append, []

        def interrupted(self: StoreWriter, *arguments: Any) -> None:
            calls.append(1)
            if len(calls) == 4:
                if where == "after":
                    append(self, *arguments)
                raise KeyboardInterrupt
            append(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(StoreWriter, "append", interrupted)
            with pytest.raises(KeyboardInterrupt):
                quietly(source, tmp_path / "store", on_bad="skip")
        examined: list[int] = []
        enter = ingest_module.Ledger.enter

        def counted(self: Any, results: Any) -> Any:
            examined.extend([1] * len(results))
            return enter(self, results)

        monkeypatch.setattr(ingest_module.Ledger, "enter", counted)
        report = quietly(source, tmp_path / "store", on_bad="skip")
        assert report.n_rejected == 2
        assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")
        assert len(examined) == 61 - (21 if where == "before" else 28), "what was done is not done again"

    def test_stop_remembers_what_an_interrupted_skip_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ingest_module, "_CHUNK_FILES", 7)
        make_set(tmp_path / "set", n=20)
        write(tmp_path / "set" / "axion" / "axion_sim_0.npy", np.zeros((SIDE, SIDE)), 1e-23)
        with monkeypatch.context() as patch:
            patch.setattr(StoreWriter, "commit", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                quietly(tmp_path / "set", tmp_path / "store", on_bad="skip")
        with pytest.raises(BadFile, match=r"axion_sim_0\.npy: constant"):
            quietly(tmp_path / "set", tmp_path / "store")

    @pytest.mark.parametrize("damage", ["no ledger", "torn ledger", "other files", "written anew"])
    def test_where_the_rest_cannot_be_trusted_it_starts_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        make_set(tmp_path / "set")
        with monkeypatch.context() as patch:
            patch.setattr(StoreWriter, "commit", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                quietly(tmp_path / "set", tmp_path / "store")
        ledger = tmp_path / "store.partial" / "ingest.sqlite"
        if damage == "no ledger":
            ledger.unlink()
        elif damage == "torn ledger":
            ledger.write_bytes(b"SQLite format 3\0" + os.urandom(5000))
        elif damage == "written anew":
            anew = write(tmp_path / "set" / "cdm" / "cdm_sim_0.npy", image_of(50))
            status = anew.stat()
            os.utime(anew, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
        else:
            write(tmp_path / "set" / "cdm" / "cdm_sim_50.npy", image_of(50))
        report = quietly(tmp_path / "set", tmp_path / "store")
        assert report.n_ingested == 18 + (damage == "other files")
        at = column(report.store, "sample_id").index("cdm/cdm_sim_0.npy")
        expected = image_of(50 if damage == "written anew" else 1000).astype(np.float32)
        np.testing.assert_array_equal(report.store.images([at])[0], expected)


class TestFingerprint:
    @pytest.mark.parametrize("dtype", ["float32", "int64", "uint16"])
    @pytest.mark.parametrize("shape", [(16, 16), (15, 15), (12, 17)])
    def test_twins_share_it(self, dtype: str, shape: tuple[int, int]) -> None:
        image = (1000 * np.random.default_rng(0).random(shape)).astype(dtype)
        turned = [np.rot90(flipped, k) for flipped in (image, image[::-1]) for k in range(4)]
        names = {fingerprint(np.ascontiguousarray(twin)) for twin in turned}
        assert len(names) == 1
        assert len({pixel_sha256(np.ascontiguousarray(twin)) for twin in turned}) == 8

    def test_others_do_not(self) -> None:
        image = np.arange(64, dtype=np.int64).reshape(8, 8)
        swapped, changed = image.copy(), image.copy()
        # The same pixels, but two of them exchanged between places that no rotation exchanges.
        swapped[0, 0], swapped[3, 3] = image[3, 3], image[0, 0]
        changed[5, 5] += 1
        names = {fingerprint(other) for other in (image, swapped, changed, image.T + 1, image[:, :4].copy())}
        assert len(names) == 5

    def test_minus_zero_is_zero(self) -> None:
        image = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
        image[2, 2] = 0.0
        other = image.copy()
        other[2, 2] = -0.0
        assert fingerprint(image) == fingerprint(other)

    def test_twins_in_a_set_share_a_group(self, tmp_path: Path) -> None:
        make_set(tmp_path / "set")
        twin = np.rot90(image_of(1003)).copy()
        write(tmp_path / "set" / "cdm" / "cdm_sim_twin.npy", twin)
        store = quietly(tmp_path / "set", tmp_path / "store").store
        groups = dict(zip(column(store, "sample_id"), column(store, "group_id"), strict=True))
        assert groups["cdm/cdm_sim_twin.npy"] == groups["cdm/cdm_sim_3.npy"]
        assert len(set(groups.values())) == 18


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    peaks = []
    for n in (400, 1600):
        root = tmp_path / str(n)
        (root / "cdm").mkdir(parents=True)
        pixels = np.random.default_rng(n).normal(size=(n, SIDE, SIDE))
        for i in range(n):
            np.save(root / "cdm" / f"cdm_sim_{i}.npy", pixels[i])
        del pixels
        tracemalloc.start()
        quietly(root, tmp_path / f"store{n}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 1,200 images more are 2.5 MB of float64; the names of one folder may cost a little.
    assert peaks[1] < peaks[0] + 1_000_000
