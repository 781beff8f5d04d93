"""What predict takes: every kind of file gives its images, a bad one gives a reason, none ends the stream."""

import bz2
import errno
import gzip
import io
import os
import pickle
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits

from darkarc.data.readers import ImageItem, iter_images, said_of
from darkarc.data.store import StoreWriter

IMAGES = np.random.default_rng(0).normal(size=(5, 16, 12))
SQUARE = np.random.default_rng(1).normal(size=(16, 16))


def read(*paths: Path) -> list[ImageItem]:
    items = list(iter_images(paths))
    for item in items:
        assert (item.image is None) == (item.error is not None)
    return items


def only_error(path: Path) -> str:
    (item,) = read(path)
    assert item.error is not None and item.path.startswith(str(path))
    return item.error


def check(items: list[ImageItem], expected: np.ndarray, indices: list[int | None]) -> None:
    assert [item.error for item in items] == [None] * len(expected)
    assert [item.index for item in items] == indices
    for item, image in zip(items, expected, strict=True):
        assert item.image is not None and item.image.flags.writeable
        assert item.image.dtype == (np.float32 if image.dtype.kind == "f" else image.dtype)
        np.testing.assert_array_equal(item.image, image.astype(item.image.dtype))


def save_npy(path: Path, array: np.ndarray) -> None:
    np.save(path, array, allow_pickle=True)


def save_npz(path: Path, array: np.ndarray) -> None:
    np.savez_compressed(path, images=array)


def save_fits(path: Path, array: np.ndarray) -> None:
    fits.PrimaryHDU(array).writeto(path)


def save_h5(path: Path, array: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        packed = {"chunks": True, "compression": "gzip"} if array.size else {}
        file.create_dataset("images", data=array, **packed)


SAVERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    "npy": save_npy,
    "npz": save_npz,
    "fits": save_fits,
    "h5": save_h5,
}


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "i2", "i8", "u1"])
def test_one_image(tmp_path: Path, kind: str, dtype: str) -> None:
    image = (100 * np.abs(IMAGES[0])).astype(dtype)
    path = tmp_path / f"lens.{kind}"
    SAVERS[kind](path, image)
    check(read(path), image[None], [None])
    assert read(path)[0].path == str(path)


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("shape", [(5, 16, 12), (5, 1, 16, 12), (5, 16, 12, 1)])
def test_stacks(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / f"lenses.{kind}"
    SAVERS[kind](path, IMAGES.reshape(shape))
    check(read(path), IMAGES, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("shape", [(1, 16, 12), (16, 12, 1)])
def test_one_image_with_an_axis_more(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / f"lens.{kind}"
    SAVERS[kind](path, IMAGES[0].reshape(shape))
    check(read(path), IMAGES[:1], [None])


@pytest.mark.parametrize("kind", SAVERS)
def test_stacks_longer_than_a_block(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkarc.data._formats._BLOCK_BYTES", 2 * 8 * 16 * 12)
    path = tmp_path / f"lenses.{kind}"
    SAVERS[kind](path, IMAGES)
    check(read(path), IMAGES, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("shape", [(3, 3), (5, 16, 12, 3), (16, 12, 3), (0, 16, 12), (2, 3, 16, 12, 1), (7,)])
def test_what_is_no_image_is_said_to_be_none(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / f"lens.{kind}"
    SAVERS[kind](path, np.ones(shape))
    assert "shape" in only_error(path) or "no image" in only_error(path)


@pytest.mark.parametrize("kind", SAVERS)
def test_pixels_that_are_no_numbers(tmp_path: Path, kind: str) -> None:
    images = IMAGES.copy()
    images[1, 3, 3] = np.nan
    images[2, 3, 3] = 1e300
    path = tmp_path / f"lenses.{kind}"
    SAVERS[kind](path, images)
    items = read(path)
    assert [item.index for item in items] == [0, 1, 2, 3, 4]
    assert ["NaN" in (item.error or "") for item in items] == [False, True, True, False, False]


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6, 0.95])
def test_truncated_files_do_not_end_the_stream(tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / f"a.{kind}"
    SAVERS[kind](path, np.random.default_rng(0).normal(size=(5, 64, 64)))
    os.truncate(path, int(keep * path.stat().st_size))
    np.save(tmp_path / "b.npy", IMAGES[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        items = read(tmp_path)
    assert items[-1].error is None and items[-1].path.endswith("b.npy")
    assert any(item.error for item in items[:-1])


@pytest.mark.parametrize("kind", [*SAVERS, "tgz", "fit", "hdf5", "tar"])
def test_files_of_another_kind_than_their_name_says(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"lens.{kind}"
    path.write_text("<html>Quota exceeded</html>" * 200)
    assert only_error(path)


class TestNpy:
    def test_layouts_of_deeplense(self, tmp_path: Path) -> None:
        array = np.empty(2, dtype=object)
        array[0], array[1] = SQUARE, 1e-23
        for name, content in {
            "object": array,
            "flat": SQUARE.ravel(),
            "row": SQUARE.reshape(1, -1),
            "label": np.stack([SQUARE.ravel(), np.zeros(256)]),
        }.items():
            save_npy(tmp_path / f"{name}.npy", content)
        check(read(tmp_path), np.stack([SQUARE] * 4), [None] * 4)

    def test_fortran_order(self, tmp_path: Path) -> None:
        save_npy(tmp_path / "x.npy", np.asfortranarray(IMAGES))
        check(read(tmp_path / "x.npy"), IMAGES, [0, 1, 2, 3, 4])

    def test_a_hostile_pickle_is_named_and_not_run(self, tmp_path: Path) -> None:
        class Attack:
            def __reduce__(self) -> Any:
                return os.system, (f"touch {tmp_path / 'victim'}",)

        header = io.BytesIO()
        array = np.empty(2, dtype=object)
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        array[0], array[1] = Attack(), 1e-23
        (tmp_path / "x.npy").write_bytes(header.getvalue() + pickle.dumps(array, protocol=4))
        assert "posix.system" in only_error(tmp_path / "x.npy")
        assert not (tmp_path / "victim").exists()


class TestNpz:
    def test_several_arrays_are_named(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", first=IMAGES[:2], labels=np.arange(3), second=IMAGES[2])
        items = read(tmp_path / "x.npz")
        check(items, IMAGES[:3], [0, 1, None])
        assert [item.path.rpartition(":")[2] for item in items] == ["first", "first", "second"]

    def test_what_is_no_image_does_not_lose_the_others(self, tmp_path: Path) -> None:
        np.savez(
            tmp_path / "x.npz",
            a=np.array(["x"]),
            b=np.array([True]),
            c=np.zeros((1,) * 6),
            d=IMAGES[0],
            e=np.array([SQUARE, None], dtype=object),
            f=np.asfortranarray(IMAGES),
            g=IMAGES[1],
        )
        items = read(tmp_path / "x.npz")
        assert [item.path.rpartition(":")[2] for item in items] == ["d", "e", "f", "g"]
        assert "without pickle" in (items[1].error or "") and "Fortran" in (items[2].error or "")
        check([items[0], items[3]], IMAGES[:2], [None, None])
        np.savez(tmp_path / "y.npz", a=np.array(["x"]), b=np.array([True]))
        assert "a.npy: its values are of type 'U1'" in only_error(tmp_path / "y.npz")

    def test_object_arrays_are_refused(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", a=np.array([SQUARE, None], dtype=object))
        assert "without pickle" in only_error(tmp_path / "x.npz")

    def test_bombs_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("darkarc.data._formats._FREE_BYTES", 2**20)
        save_npz(tmp_path / "x.npz", np.zeros((2000, 64, 64)))
        assert "unpacks to over 200 times" in only_error(tmp_path / "x.npz")

    def test_a_size_that_does_not_agree(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        np.save(file, IMAGES)
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("images.npy", file.getvalue()[:-8])
        assert "does not agree" in only_error(tmp_path / "x.npz")


class TestFits:
    def test_every_image_of_the_file(self, tmp_path: Path) -> None:
        table = fits.BinTableHDU.from_columns([fits.Column("mass", "D", array=np.ones(3))])
        units = [fits.PrimaryHDU(), fits.ImageHDU(IMAGES[:2]), table, fits.ImageHDU(IMAGES[2])]
        fits.HDUList(units).writeto(tmp_path / "x.fits")
        items = read(tmp_path / "x.fits")
        check(items, IMAGES[:3], [0, 1, None])
        assert [item.path.rpartition(":")[2] for item in items] == ["1", "1", "3"]

    def test_scaled_and_compressed(self, tmp_path: Path) -> None:
        counts = np.arange(192, dtype=np.uint16).reshape(16, 12) + 40_000
        fits.PrimaryHDU(counts).writeto(tmp_path / "a.fits")
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(counts.astype(np.int32))]).writeto(
            tmp_path / "b.fits"
        )
        items = read(tmp_path)
        for item in items:
            np.testing.assert_array_equal(item.image, counts)  # type: ignore[arg-type]  # fails on None
        assert len(items) == 2

    @pytest.mark.parametrize("spooled", [16 * 2**20, 100])
    def test_packed_by_gzip(self, tmp_path: Path, spooled: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("darkarc.data._formats._SPOOLED_BYTES", spooled)
        units = [fits.PrimaryHDU(IMAGES[:2]), fits.CompImageHDU(SQUARE.astype(np.float32))]
        plain = io.BytesIO()
        fits.HDUList(units).writeto(plain)
        (tmp_path / "a.FITS.gz").write_bytes(gzip.compress(plain.getvalue()))
        items = read(tmp_path)
        check(items[:2], IMAGES[:2], [0, 1])
        assert items[2].error is None and len(items) == 3
        (tmp_path / "a.FITS.gz").write_bytes(gzip.compress(plain.getvalue())[:-500])
        assert only_error(tmp_path / "a.FITS.gz")

    def test_a_tile_that_unpacks_to_more_than_it_says(self, tmp_path: Path) -> None:
        counts = np.arange(192, dtype=np.int32).reshape(16, 12)
        packed = fits.CompImageHDU(counts, compression_type="GZIP_1", tile_shape=(16, 12))
        fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / "good.fits")
        check(read(tmp_path / "good.fits"), counts[None], [None])
        with fits.open(tmp_path / "good.fits", disable_image_compression=True) as units:
            header = units[1].header
        streams = gzip.compress(bytes(1000)) + bytes(5) + gzip.compress(bytes(300 * 2**20))
        bomb = np.frombuffer(streams, np.uint8)
        column = fits.Column("COMPRESSED_DATA", "PB()", array=np.array([bomb, None], object)[:1])
        table = fits.BinTableHDU.from_columns([column])
        for key, value in header.items():
            if key.startswith("Z"):
                table.header[key] = value
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "bomb.fits")
        assert only_error(tmp_path / "bomb.fits") == "a tile of it unpacks to more than its 1536 bytes"

    def test_large_tiles_that_are_what_they_say(self, tmp_path: Path) -> None:
        image = np.random.default_rng(0).integers(0, 2**31, (400, 400)).astype(np.int32)
        for kind in ("GZIP_1", "GZIP_2", "RICE_1"):
            packed = fits.CompImageHDU(image, compression_type=kind, tile_shape=(400, 400))
            fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / f"{kind}.fits")
            check(read(tmp_path / f"{kind}.fits"), image[None], [None])

    def test_other_endings(self, tmp_path: Path) -> None:
        fits.PrimaryHDU(IMAGES[0]).writeto(tmp_path / "a.fts")
        counts = np.arange(192, dtype=np.int32).reshape(16, 12)
        packed = fits.CompImageHDU(counts, compression_type="RICE_1")
        fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / "b.fits.fz")
        items = read(tmp_path)
        check(items[:1], IMAGES[:1], [None])
        check(items[1:], counts[None], [None])

    def test_bombs_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("darkarc.data._formats._FREE_BYTES", 2**20)
        plain = io.BytesIO()
        fits.PrimaryHDU(np.zeros((2000, 64, 64))).writeto(plain)
        for name in ("x.fits.gz", "x.fits"):
            (tmp_path / name).write_bytes(gzip.compress(plain.getvalue()))
            assert only_error(tmp_path / name) == "it unpacks to over 200 times its size"
        (tmp_path / "y.fits").write_bytes(bz2.compress(plain.getvalue()))
        assert "not a FITS file" in only_error(tmp_path / "y.fits")

    def test_spectra_beside_images_are_passed_over(self, tmp_path: Path) -> None:
        units = [fits.PrimaryHDU(np.ones(7)), fits.ImageHDU(IMAGES[0])]
        fits.HDUList(units).writeto(tmp_path / "x.fits")
        check(read(tmp_path / "x.fits"), IMAGES[:1], [None])
        fits.HDUList(units[:1]).writeto(tmp_path / "y.fits")
        assert "no image in it; extension 0: shape (7,)" in only_error(tmp_path / "y.fits")

    def test_no_image(self, tmp_path: Path) -> None:
        fits.HDUList([fits.PrimaryHDU()]).writeto(tmp_path / "x.fits")
        assert only_error(tmp_path / "x.fits") == "no image in it"


class TestHdf5:
    def test_groups_and_labels(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["a/images"] = IMAGES[:2]
            file["a/labels"] = np.arange(2)
            file["b"] = IMAGES[2]
            file["names"] = ["x", "y"]
            file["alias"] = h5py.SoftLink("/b")
            file["a/loop"] = file["a"]
            file["twin"] = file["a/images"]
        items = read(tmp_path / "x.h5")
        check(items, IMAGES[:3], [0, 1, None])
        assert [item.path.rpartition(":")[2] for item in items] == ["a/images", "a/images", "b"]

    def test_links_that_multiply(self, tmp_path: Path) -> None:
        """Twelve levels with three links to the next one: half a million names for one data set."""
        with h5py.File(tmp_path / "x.h5", "w") as file:
            group = file
            for _ in range(12):
                below = group.create_group("a")
                group["b"] = group["c"] = below
                group = below
            group["images"] = IMAGES
        items = read(tmp_path / "x.h5")
        check(items, IMAGES, [0, 1, 2, 3, 4])

    def test_groups_that_are_nested_too_deep(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["/".join("a" * 20)] = IMAGES
        assert "nested over 16" in only_error(tmp_path / "x.h5")

    @pytest.mark.parametrize("chunks", [None, (1, 64, 64)])
    def test_pixels_that_were_never_written(self, chunks: Any, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("images", (10**9, 64, 64), "f4", chunks=chunks)
        assert (tmp_path / "x.h5").stat().st_size < 10_000
        assert only_error(tmp_path / "x.h5") == "images unpacks to over 200 times its size"

    def test_a_chunk_that_unpacks_to_more_than_it_says(self, tmp_path: Path) -> None:
        bomb = zlib.compress(bytes(300 * 2**20), 9)
        with h5py.File(tmp_path / "x.h5", "w") as file:
            shape = (2, 64, 64)
            data = file.create_dataset("images", shape, "f4", chunks=(1, 64, 64), compression="gzip")
            data.id.write_direct_chunk((1, 0, 0), bomb)
        tracemalloc.start()
        assert (
            only_error(tmp_path / "x.h5") == "/images has a piece that unpacks to more than its 16384 bytes"
        )
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
        tracemalloc.stop()

    @pytest.mark.parametrize(
        "packed", [{"compression": "gzip", "shuffle": True, "fletcher32": True}, {"compression": "lzf"}]
    )
    def test_large_chunks_that_are_what_they_say(self, packed: dict[str, Any], tmp_path: Path) -> None:
        images = np.random.default_rng(0).normal(size=(40, 64, 64)).astype(np.float32)
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("images", data=images, chunks=(20, 64, 64), **packed)
        check(read(tmp_path / "x.h5"), images, list(range(40)))

    def test_compressed_twice(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_chunk((1, 64, 64))
            plan.set_deflate(9)
            plan.set_deflate(9)
            space = h5py.h5s.create_simple((2, 64, 64))
            h5py.h5d.create(file.id, b"images", h5py.h5t.IEEE_F32LE, space, plan)
        assert only_error(tmp_path / "x.h5") == "/images is compressed more than once"

    def test_nothing_outside_the_file_is_read(self, tmp_path: Path) -> None:
        IMAGES.tofile(tmp_path / "secret.bin")
        save_h5(tmp_path / "other.hdf5", IMAGES)
        with h5py.File(tmp_path / "link.h5", "w") as file:
            file["images"] = h5py.ExternalLink("other.hdf5", "/images")
        with h5py.File(tmp_path / "external.h5", "w") as file:
            storage = [(str(tmp_path / "secret.bin"), 0, IMAGES.nbytes)]
            file.create_dataset("images", IMAGES.shape, "f8", external=storage)
        with h5py.File(tmp_path / "virtual.h5", "w") as file:
            layout = h5py.VirtualLayout(IMAGES.shape, "f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "images", IMAGES.shape)
            file.create_virtual_dataset("images", layout)
        for name in ("link", "external", "virtual"):
            assert "only what is in this one is read" in only_error(tmp_path / f"{name}.h5")

    def test_chunks_that_would_fill_the_memory(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            shape = (10_000, 64, 64)
            file.create_dataset("images", shape, "f8", chunks=shape, compression="gzip")
        assert "compressed in pieces" in only_error(tmp_path / "x.h5")


class TestFolders:
    def test_sorted_and_recursive_with_stores_and_archives(self, tmp_path: Path) -> None:
        (tmp_path / "b" / "deep").mkdir(parents=True)
        np.save(tmp_path / "b" / "deep" / "1.npy", IMAGES[0])
        np.save(tmp_path / "b" / "2.npy", IMAGES[1])
        np.save(tmp_path / "b" / ".hidden.npy", IMAGES[1])
        (tmp_path / "b" / "notes.txt").write_text("x")
        with StoreWriter(
            tmp_path / "a",
            name="x",
            origin="x",
            instrument="x",
            shape=(16, 12),
            dtype="float32",
            parameters={},
        ) as writer:
            writer.append(IMAGES[2:4], {"sample_id": ["0", "1"]})
            writer.commit()
        with tarfile.open(tmp_path / "c.tgz", "w:gz") as tar:
            tar.add(tmp_path / "b" / "2.npy", arcname="set/2.npy")
            (tmp_path / "bad.npy").write_bytes(b"x")
            tar.add(tmp_path / "bad.npy", arcname="set/bad.npy")
            (tmp_path / "bad.npy").unlink()
        items = read(tmp_path)
        assert [str(Path(item.path).relative_to(tmp_path)) for item in items] == [
            "a",
            "a",
            "b/2.npy",
            "b/deep/1.npy",
            "c.tgz:set/2.npy",
            "c.tgz:set/bad.npy",
        ]
        assert [item.error is not None for item in items] == [False] * 5 + [True]
        check(items[:2], IMAGES[2:4], [0, 1])

    def test_an_archive_without_images_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("x")
        with tarfile.open(tmp_path / "c.tgz", "w:gz") as tar:
            tar.add(tmp_path / "notes.txt", arcname="notes.txt")
        assert only_error(tmp_path / "c.tgz") == "no .npy file in it"

    def test_a_damaged_store_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / "manifest.json").write_text("{}")
        assert "schema_version" in only_error(tmp_path / "store")

    def test_what_is_not_there_or_not_known(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "x.png").write_bytes(b"x")
        (tmp_path / "gone.npy").symlink_to(tmp_path / "nowhere")
        os.mkfifo(tmp_path / "pipe.npy")
        messages = {
            "nothing": "no such file",
            "empty": "no image file in it",
            "x.png": "of unknown kind",
            "gone.npy": "no such file",
            "pipe.npy": "not a regular file",
        }
        items = read(*(tmp_path / name for name in messages))
        for item, message in zip(items, messages.values(), strict=True):
            assert message in (item.error or "")

    def test_what_is_passed_over_is_counted(self, tmp_path: Path) -> None:
        below = tmp_path / "below"
        below.mkdir()
        np.save(tmp_path / "1.npy", IMAGES[0])
        for path in ("a.ZIP", "below/b.zip", "c.fits.bz2", "README", ".hidden.zip", "below/notes.v2.txt"):
            (tmp_path / path).write_bytes(b"")
        passed_over: Counter[str] = Counter()
        check(list(iter_images([tmp_path], passed_over)), IMAGES[:1], [None])
        assert passed_over == {".zip": 2, ".fits.bz2": 1, "": 1, ".txt": 1}
        assert said_of(passed_over).startswith("passed over 5 other files: 2 .zip, 1 ")
        assert "1 without an ending" in said_of(passed_over)
        many = said_of(Counter({f".k{n}": 1 for n in range(9)}))
        assert many.startswith("passed over 9 other files: 1 .k0, ") and many.endswith(", 1 .k5, ...")
        assert said_of(Counter()) == ""

    def test_a_folder_that_may_not_be_read_does_not_end_the_stream(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("1", "2", "3"):
            (tmp_path / name).mkdir()
            np.save(tmp_path / name / "lens.npy", IMAGES[int(name)])
        stat = Path.stat

        def forbidden(self: Path, **options: Any) -> os.stat_result:
            if self.parent == tmp_path / "2":  # as for a user without the right to enter it
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
            return stat(self, **options)

        monkeypatch.setattr(Path, "stat", forbidden)
        items = read(tmp_path)
        assert [item.error for item in items] == [None, "cannot be read: Permission denied", None]
        assert items[1].path == str(tmp_path / "2")
        assert only_error(tmp_path / "2" / "lens.npy") == "cannot be read: Permission denied"

    def test_links_in_a_circle(self, tmp_path: Path) -> None:
        np.save(tmp_path / "1.npy", IMAGES[0])
        (tmp_path / "loop").symlink_to(tmp_path)
        check(read(tmp_path), IMAGES[:1], [None])


@pytest.mark.parametrize("kind", SAVERS)
def test_memory_does_not_grow_with_the_length_of_a_stack(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkarc.data._formats._BLOCK_BYTES", 2**18)
    peaks = []
    for n in (100, 1000):
        path = tmp_path / f"{n}.{kind}"
        SAVERS[kind](path, np.random.default_rng(0).normal(size=(n, 32, 32)).astype(np.float32))
        tracemalloc.start()
        assert sum(item.error is None for item in iter_images([path])) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_000_000, "900 more images are 3.7 MB"


@pytest.mark.shared
def test_golden_files(shared: Path) -> None:
    items = read(shared / "golden")
    assert len(items) >= 3
    assert all(item.image is not None and item.image.shape == (64, 64) for item in items)
