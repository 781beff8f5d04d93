"""The packed store: what is written comes back, and nothing incomplete passes for a store."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from darkarc.data.store import SAMPLE_COLUMNS, SAMPLE_SCHEMA, Store, StoreError, StoreWriter, pixel_sha256

SHAPE = (6, 5)
IMAGE_BYTES = 6 * 5 * 4


def open_writer(path: Path, **changes: Any) -> StoreWriter:
    arguments: dict[str, Any] = {
        "name": "lenses",
        "origin": "simulated",
        "instrument": "model_iii",
        "shape": SHAPE,
        "dtype": "float32",
        "parameters": {"seed": 0},
        "shard_bytes": 7 * IMAGE_BYTES,
    }
    return StoreWriter(path, **(arguments | changes))


def images_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *SHAPE)).astype(np.float32)


def append(writer: StoreWriter, images: np.ndarray, begin: int = 0) -> None:
    masses = np.linspace(-24, -22, len(images))
    masses[0] = np.nan
    rows = {
        "sample_id": [f"s{begin + i}" for i in range(len(images))],
        "class": ["axion"] * len(images),
        "log10_axion_mass_ev": masses,
    }
    writer.append(images, rows)


def make(path: Path, n: int = 20, step: int = 20, **changes: Any) -> tuple[Store, np.ndarray]:
    images = images_of(n)
    with open_writer(path, **changes) as writer:
        for begin in range(0, n, step):
            append(writer, images[begin : begin + step], begin)
        return writer.commit(), images


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    store, images = make(tmp_path / "store")
    assert len(store) == 20 and store.shape == SHAPE and store.manifest.dtype == "float32"
    assert [shard.n for shard in store.manifest.shards] == [7, 7, 6]
    np.testing.assert_array_equal(store.images(), images)
    assert store.samples.schema.equals(SAMPLE_SCHEMA)
    rows = store.samples.to_pylist()
    assert rows[3]["sample_id"] == "s3" and rows[3]["origin"] == "simulated"
    assert rows[0]["log10_axion_mass_ev"] is None and rows[1]["n_subhalos"] is None
    assert rows[5]["pixel_sha256"] == pixel_sha256(images[5])


def test_shards_are_plain_npy_files(tmp_path: Path) -> None:
    store, images = make(tmp_path / "store")
    parts = [np.load(store.path / shard.file, allow_pickle=False) for shard in store.manifest.shards]
    np.testing.assert_array_equal(np.concatenate(parts), images)
    assert pq.read_table(store.path / "samples.parquet").column_names == list(SAMPLE_COLUMNS)


@pytest.mark.parametrize(
    "which",
    [[19, 0, 7, 7, 6], [-1, -20], slice(3, 17, 4), slice(None, None, -1), np.array([13], np.int32), []],
)
def test_images_come_in_the_order_asked(tmp_path: Path, which: Any) -> None:
    store, images = make(tmp_path / "store")
    indices = which if isinstance(which, slice) else np.asarray(which, np.int64)
    np.testing.assert_array_equal(store.images(which), images[indices])


@pytest.mark.parametrize("which", [[20], [-21], [0.5], [[0, 1]], np.ones(20, bool)])
def test_impossible_indices_are_refused(tmp_path: Path, which: Any) -> None:
    store, _ = make(tmp_path / "store")
    with pytest.raises(IndexError):
        store.images(which)


def test_images_are_a_copy(tmp_path: Path) -> None:
    store, images = make(tmp_path / "store")
    store.images([0])[:] = 7
    np.testing.assert_array_equal(store.images([0]), images[:1])


def test_a_pickled_store_carries_no_pixels(tmp_path: Path) -> None:
    store, images = make(tmp_path / "store", n=200)
    store.images([1]), store.samples
    text = pickle.dumps(store)
    assert len(text) < images.nbytes
    np.testing.assert_array_equal(pickle.loads(text).images([3]), images[3:4])


@pytest.mark.parametrize("dtype", ["uint16", "int64"])
def test_counts_stay_counts(tmp_path: Path, dtype: str) -> None:
    counts = np.arange(60, dtype=np.int64).reshape(2, *SHAPE)
    with open_writer(tmp_path / "store", dtype=dtype) as writer:
        append(writer, counts)
        store = writer.commit()
    assert store.images().dtype == np.dtype(dtype)
    np.testing.assert_array_equal(store.images(), counts)


@pytest.mark.parametrize("row_group", [65536, 6])
def test_bytes_do_not_depend_on_the_batches(
    tmp_path: Path, row_group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkarc.data._row_journal.ROW_GROUP", row_group)
    make(tmp_path / "a", step=20)
    images = images_of(20)
    rows = {"sample_id": [f"s{i}" for i in range(20)], "class": ["axion"] * 20}
    for name, steps in (("b", [1] * 20), ("c", [13, 7])):
        with open_writer(tmp_path / name) as writer:
            begin = 0
            for step in steps:
                part = {key: values[begin : begin + step] for key, values in rows.items()}
                writer.append(images[begin : begin + step], part)
                begin += step
            writer.commit()
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c")
    assert Store.open(tmp_path / "b").digest == Store.open(tmp_path / "c").digest
    assert Store.open(tmp_path / "a").digest != Store.open(tmp_path / "c").digest


def test_an_interrupted_writer_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path / "whole", step=5)
    images = images_of(20)
    with open_writer(tmp_path / "store") as writer:
        append(writer, images[:5], 0)
        append(writer, images[5:10], 5)
    assert not (tmp_path / "store").exists()
    with open_writer(tmp_path / "store") as writer:
        assert writer.n_written == 10
        append(writer, images[10:15], 10)
        append(writer, images[15:20], 15)
        writer.commit()
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["rows cut", "rows flipped", "pixels cut", "pixels flipped", "no shard"])
def test_a_damaged_rest_is_cut_off(tmp_path: Path, damage: str) -> None:
    make(tmp_path / "whole", step=5)
    images = images_of(20)
    with open_writer(tmp_path / "store") as writer:
        append(writer, images[:5], 0)
        append(writer, images[5:10], 5)
    partial = tmp_path / "store.partial"
    target = partial / ("rows.journal" if "rows" in damage else "images-00001.npy")
    content = bytearray(target.read_bytes())
    if "cut" in damage:
        target.write_bytes(content[:-3])
    elif "flipped" in damage:
        content[-3] ^= 1
        target.write_bytes(content)
    else:
        target.unlink()
    with open_writer(tmp_path / "store") as writer:
        assert writer.n_written == 5
        for begin in (5, 10, 15):
            append(writer, images[begin : begin + 5], begin)
        writer.commit()
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


def test_kill_in_the_middle_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from test_store import append, images_of, open_writer
        writer = open_writer(Path(sys.argv[2]))
        append(writer, images_of(20)[:5], 0)
        append(writer, images_of(20)[5:10], 5)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(script),
        str(Path(__file__).parent),
        str(tmp_path / "store"),
    ]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    make(tmp_path / "whole", step=5)
    images = images_of(20)
    with open_writer(tmp_path / "store") as writer:
        assert writer.n_written == 10
        append(writer, images[10:15], 10)
        append(writer, images[15:], 15)
        writer.commit()
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


def test_other_parameters_start_over(tmp_path: Path) -> None:
    with open_writer(tmp_path / "store") as writer:
        append(writer, images_of(5))
    with open_writer(tmp_path / "store", parameters={"seed": 1}) as writer:
        assert writer.n_written == 0
        append(writer, images_of(3))
        assert len(writer.commit()) == 3


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with open_writer(tmp_path / "store"), pytest.raises(StoreError, match="another process"):
        open_writer(tmp_path / "store")


def test_a_complete_store_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    make(tmp_path / "store")
    with pytest.raises(StoreError, match="complete store stands there"):
        open_writer(tmp_path / "store")
    store, _ = make(tmp_path / "store", n=3, replace=True)
    assert len(store) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["store"]


def test_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match="not a store"):
        open_writer(tmp_path / "store", replace=True)


def test_attachments_belong_to_the_store(tmp_path: Path) -> None:
    with open_writer(tmp_path / "store") as writer:
        append(writer, images_of(3))
        writer.attach("statistics.json", b"{}")
        for name in ("../x", "manifest.json", "images-00000.npy", "a/b", ".hidden"):
            with pytest.raises(StoreError, match="cannot be the name"):
                writer.attach(name, b"")
        writer.commit()
    (tmp_path / "store" / "statistics.json").write_bytes(b"[]")
    with pytest.raises(StoreError, match=r"statistics\.json: its SHA-256"):
        Store.open(tmp_path / "store")


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    images = images_of(2)
    with open_writer(tmp_path / "store") as writer:
        for rows, message in [
            ({"class": ["axion"] * 2}, "no sample_id"),
            ({"sample_id": ["a", "b"], "mass": [1, 2]}, "mass"),
            ({"sample_id": ["a"]}, "1 values for 2 images"),
            ({"sample_id": ["a", None]}, "must not be null"),
            ({"sample_id": ["a", "b"], "n_subhalos": ["x", "y"]}, "n_subhalos is not int32"),
        ]:
            with pytest.raises(StoreError, match=message):
                writer.append(images, rows)
        with pytest.raises(StoreError, match="expected images of shape"):
            writer.append(images[:, 1:], {"sample_id": ["a", "b"]})
        with pytest.raises(StoreError, match="complex"):
            writer.append(images.astype(complex), {"sample_id": ["a", "b"]})
        assert writer.n_written == 0
        with pytest.raises(StoreError, match="no image was written"):
            writer.commit()


def test_counts_that_overflow_are_refused(tmp_path: Path) -> None:
    with open_writer(tmp_path / "store", dtype="int16") as writer, pytest.raises(StoreError, match="convert"):
        append(writer, np.full((1, *SHAPE), 40_000))


@pytest.mark.parametrize("file", ["images-00001.npy", "samples.parquet", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "longer"])
def test_damage_is_named(tmp_path: Path, file: str, damage: str) -> None:
    store, _ = make(tmp_path / "store")
    target = store.path / file
    content = bytearray(target.read_bytes())
    if damage == "missing":
        target.unlink()
    elif damage == "truncated":
        target.write_bytes(content[: len(content) // 2])
    elif damage == "longer":
        target.write_bytes(bytes(content) + b"}")
    else:
        content[len(content) // 2] ^= 0x80
        target.write_bytes(content)
    expected = "not a store" if (file, damage) == ("manifest.json", "missing") else file.replace(".", r"\.")
    with pytest.raises(StoreError, match=expected):
        Store.open(store.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2"),
        ({"dtype": "object"}, "dtype is 'object'"),
        ({"n_samples": 19}, "the shards hold 20"),
        ({"shape": [0, 5]}, "at least 1"),
        ({"shape": [6]}, "not a complete manifest"),
        ({"samples_sha256": "x"}, "not a SHA-256"),
        ({"name": 3}, "name is 3"),
        ({"shape": [5, 6]}, "header does not say"),
        ({"dtype": "int32"}, "header does not say"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    store, _ = make(tmp_path / "store")
    tree = json.loads((store.path / "manifest.json").read_text())
    (store.path / "manifest.json").write_text(json.dumps(tree | change))
    with pytest.raises(StoreError, match=message):
        Store.open(store.path, verify=False)


@pytest.mark.parametrize("name", ["../outside.npy", "/etc/passwd", "a/b.npy", "..", ".hidden", ""])
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    store, _ = make(tmp_path / "store")
    tree = json.loads((store.path / "manifest.json").read_text())
    tree["shards"][0]["file"] = name
    (store.path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(StoreError, match="is not the name of a file"):
        Store.open(store.path)


def test_absence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no such store.*darkarc ingest"):
        Store.open(tmp_path / "nothing")
    with open_writer(tmp_path / "store") as writer:
        append(writer, images_of(3))
    with pytest.raises(StoreError, match="goes on where it stopped"):
        Store.open(tmp_path / "store")


def test_a_full_disk_is_an_error_that_can_be_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with open_writer(tmp_path / "store") as writer:
        append(writer, images_of(5), 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            patch.setattr("darkarc.data._store_writer._FSYNC_BYTES", 1)
            with pytest.raises(StoreError, match=r"No space left.*goes on"):
                append(writer, images_of(5), 5)
    with open_writer(tmp_path / "store") as writer:
        assert writer.n_written >= 5


def test_the_example_of_the_documentation_goes_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "store.md").read_text()
    (code,) = re.findall(r"## Writing one\n\n```python\n(.*?)```", page, flags=re.DOTALL)
    images = np.random.default_rng(0).normal(size=(12, 64, 64)).astype(np.float32)
    batches = [(images[i : i + 3], [f"s{i + k}" for k in range(3)]) for i in range(0, 12, 3)]

    def interrupted() -> Iterator[Any]:
        yield from batches[:2]
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        exec(code, {"batches": interrupted()})
    exec(code, {"batches": batches})
    store = Store.open(tmp_path / "data" / "mine")
    np.testing.assert_array_equal(store.images(), images)
    assert store.samples.column("sample_id").to_pylist() == [f"s{i}" for i in range(12)]
