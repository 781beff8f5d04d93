"""DeepLense's files: every layout is read, and no file gets to do anything."""

import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darkarc.data import _object_array
from darkarc.data._npy import read_npy
from darkarc.data._object_array import ForbiddenPickle, read_object_array
from darkarc.data.deeplense import (
    BadFile,
    class_of,
    decode_deeplense,
    instrument_of,
    read_deeplense,
    split_of,
)

IMAGE = np.random.default_rng(1).normal(size=(64, 64))
COUNTS = np.random.default_rng(2).poisson(9.0, size=(16, 16))
MASS_EV = 3.7e-23


def objects(*elements: Any) -> np.ndarray:
    array = np.empty(len(elements), dtype=object)
    for i, element in enumerate(elements):
        array[i] = element
    return array


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def object_npy(text: bytes, shape: str = "(2,)") -> bytes:
    """An `.npy` of an object array whose pickle is `text`."""
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + text


def python2_pickle() -> bytes:
    """`[COUNTS, MASS_EV]` as numpy under Python 2 pickled it: protocol 2, bytes as str."""
    start = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02%sK\x00K\x01\x87R(K\x03U\x01%sNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = COUNTS.astype("<i8").tobytes()
    inner = (
        start + b"(K\x01K\x10K\x10\x86" + kind % (b"i8", b"<") + b"\x89T" + struct.pack("<I", len(raw)) + raw
    )
    scalar = (
        b"cnumpy.core.multiarray\nscalar\n" + kind % (b"f8", b"<") + b"U\x08" + struct.pack("<d", MASS_EV)
    )
    items = b"](" + inner + b"tb" + scalar + b"\x86Re"
    return start + b"(K\x01K\x02\x85" + kind % (b"O8", b"|") + b"\x89" + items + b"tb."


class TestLayouts:
    @pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", "<f2", "<i8", ">i2", "u1"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_plain(self, dtype: str, order: Any) -> None:
        image = np.array(COUNTS, dtype=dtype, order=order)
        sample = decode_deeplense(npy(image), "x.npy")
        np.testing.assert_array_equal(sample.image, image)
        assert sample.log10_mass_ev is None and sample.image.dtype == np.dtype(dtype)

    @pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
    def test_every_version_of_the_format(self, version: tuple[int, int]) -> None:
        file = io.BytesIO()
        np.lib.format.write_array(file, IMAGE, version=version)
        np.testing.assert_array_equal(decode_deeplense(file.getvalue(), "x.npy").image, IMAGE)

    @pytest.mark.parametrize("shape", [(1, 64, 64), (64, 64, 1), (4096,), (1, 4096), (4096, 1)])
    def test_extra_or_missing_axes(self, shape: tuple[int, ...]) -> None:
        np.testing.assert_array_equal(decode_deeplense(npy(IMAGE.reshape(shape)), "x.npy").image, IMAGE)

    @pytest.mark.parametrize(
        "mass",
        [MASS_EV, np.float64(MASS_EV), np.array(MASS_EV), np.array([MASS_EV]), objects(MASS_EV), [MASS_EV]],
        ids=["float", "scalar", "0-d", "1-d", "object", "list"],
    )
    @pytest.mark.parametrize("image", [IMAGE, IMAGE.astype(">f4"), COUNTS, np.asfortranarray(IMAGE)])
    def test_image_and_mass(self, image: np.ndarray, mass: Any) -> None:
        sample = decode_deeplense(npy(objects(image, mass)), "x.npy")
        np.testing.assert_array_equal(sample.image, image)
        assert sample.log10_mass_ev == pytest.approx(np.log10(MASS_EV), abs=1e-12)

    @pytest.mark.parametrize(
        "rows",
        [
            objects(*IMAGE),
            objects(*IMAGE[:, None, :]),
            list(IMAGE),
            IMAGE.reshape(-1),
            IMAGE.astype(object),
            objects(IMAGE.reshape(-1))[0],
        ],
        ids=["row vectors", "1 x W rows", "list of rows", "flat", "object numbers", "flat view"],
    )
    def test_image_in_pieces_and_mass(self, rows: Any) -> None:
        sample = decode_deeplense(npy(objects(rows, MASS_EV)), "x.npy")
        np.testing.assert_array_equal(sample.image, IMAGE)
        assert sample.log10_mass_ev == pytest.approx(np.log10(MASS_EV))

    def test_flat_image_above_a_label_row(self) -> None:
        rows = np.stack([IMAGE.reshape(-1), np.full(4096, MASS_EV)])
        sample = decode_deeplense(npy(rows), "x.npy")
        np.testing.assert_array_equal(sample.image, IMAGE)
        assert sample.log10_mass_ev == pytest.approx(np.log10(MASS_EV))

    @pytest.mark.parametrize("protocol", [2, 3, 4])
    def test_every_protocol_that_numpy_wrote(self, protocol: int) -> None:
        if protocol == 2:
            content = object_npy(python2_pickle())
        else:
            content = object_npy(pickle.dumps(objects(COUNTS, np.float64(MASS_EV)), protocol=protocol))
        sample = decode_deeplense(content, "x.npy")
        np.testing.assert_array_equal(sample.image, COUNTS)
        assert sample.log10_mass_ev == pytest.approx(np.log10(MASS_EV))

    @pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
    def test_names_of_numpy_1_and_2(self, module: bytes) -> None:
        text = pickle.dumps(objects(COUNTS, np.float64(MASS_EV)), protocol=3)
        text = text.replace(b"numpy._core.multiarray", module).replace(b"numpy.core.multiarray", module)
        assert decode_deeplense(object_npy(text), "x.npy").image.shape == (16, 16)

    def test_a_class_without_mass_may_carry_any_label(self) -> None:
        content = npy(objects(IMAGE, 0))
        assert decode_deeplense(content, "x.npy", with_mass=False).log10_mass_ev is None
        with pytest.raises(BadFile, match="positive"):
            decode_deeplense(content, "x.npy")

    @pytest.mark.shared
    def test_real_files_equal_what_numpy_reads(self, shared: Path) -> None:
        files = sorted((shared / "deeplense_sample").glob("Model_*/*/*.npy"))
        assert len(files) > 800
        for file in files[::7]:
            expected = np.load(file, allow_pickle=True)
            image, mass = expected if expected.dtype == object else (expected, None)
            sample = read_deeplense(file)
            np.testing.assert_array_equal(sample.image, image)
            assert sample.image.dtype == image.dtype
            assert sample.log10_mass_ev == (
                None if mass is None else pytest.approx(np.log10(mass), abs=1e-12)
            )


class Attack:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class TestHostile:
    @pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
    def test_a_pickle_that_would_create_a_file_creates_nothing(self, tmp_path: Path, protocol: int) -> None:
        victim = tmp_path / "victim"
        attack = Attack(os.system, f"touch {victim}")
        path = tmp_path / "axion_sim_1.npy"
        path.write_bytes(object_npy(pickle.dumps(objects(attack, MASS_EV), protocol=protocol)))
        with pytest.raises(BadFile, match=r"axion_sim_1\.npy: .*pickle") as caught:
            read_deeplense(path)
        assert not victim.exists()
        if protocol >= 3:
            assert "posix.system" in str(caught.value)
        np.load(path, allow_pickle=True)
        assert victim.exists(), "the attack itself must work, or this test shows nothing"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"cos\nsystem\n(S'touch x'\ntR.", r"os\.system"),
            (b"(S'touch x'\nios\nsystem\n.", "opcode 0x53"),
            (b"(ios\nsystem\n.", r"os\.system"),
            (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", r"builtins\.eval"),
            (b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.", r"builtins\.getattr"),
            (b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.", r"numpy\.load"),
            (b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x20\x93.", "numpy"),
            (b"cnumpy\nndarray\n(tR.", "calls numpy's ndarray"),
            (b"cnumpy\nndarray\n}b.", "opcode 0x7d"),
            (b"cnumpy\nndarray\nNb.", "sets the state of numpy's ndarray"),
            (b"cnumpy\ndtype\n(tR.", "dtype with unusual arguments"),
            (b"cnumpy\ndtype\nX\x02\x00\x00\x00V9\x89\x88\x87R.", "of type 'V9'"),
            (b"Ppersistent\n.", "opcode 0x50"),
            (b"\x82\x01.", "opcode 0x82"),
            (b"\x80\x09.", "protocol 9"),
            (b"K\x01.", "not an object array"),
            (b"N.", "not an object array"),
            (b".", "empty stack"),
            (b"R", "empty stack"),
            (b"e", "no mark"),
            (b"h\x05.", "never remembered"),
            (b"Nr\xff\xff\xff\x7f", "truncated"),
            (b"B\xff\xff\xff\xff", "truncated"),
            (b"\x8e" + b"\xff" * 8, "truncated"),
            (b"\x95" + b"\xff" * 8, "truncated"),
            (b"\x8a\x09" + b"\x01" * 9 + b".", "integer of 9 bytes"),
            (b"\x8b\x7f\xff\xff\xff.", "opcode 0x8b"),
            (b"", "truncated"),
        ],
    )
    def test_what_is_no_array_is_refused_by_name(self, text: bytes, message: str) -> None:
        with pytest.raises(BadFile, match=message):
            decode_deeplense(object_npy(text), "x.npy")

    def test_a_pickle_without_end_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("darkarc.data._pickle_interpreter.MAX_OPCODES", 1000)
        with pytest.raises(BadFile, match="over 1000 opcodes"):
            decode_deeplense(object_npy(b"]" * 1001), "x.npy")

    def test_deep_nesting_does_not_overflow(self) -> None:
        with pytest.raises(BadFile):
            decode_deeplense(object_npy(b")" + b"\x85" * 100_000 + b"."), "x.npy")
        with pytest.raises(BadFile):
            decode_deeplense(object_npy(b"]" + b"]" * 50_000 + b"a" * 50_000 + b"."), "x.npy")

    @pytest.mark.parametrize(
        "shape", [(2**20, 2**20), (2**31, 1), (-1, 64), (64,) * 5, (64, 65), (True, 4096)]
    )
    def test_an_array_larger_than_its_bytes_is_never_made(self, shape: tuple[int, ...]) -> None:
        text = pickle.dumps(objects(IMAGE, MASS_EV), protocol=4)
        honest = pickle.dumps((64, 64), protocol=4)[11:-2].removesuffix(b"\x94")
        sides = b"(" + b"".join(pickle.dumps(side, protocol=2)[2:-1] for side in shape) + b"t"
        assert text.count(honest) == 1
        with pytest.raises(BadFile, match="pickle"):
            decode_deeplense(object_npy(text.replace(honest, sides)), "x.npy")

    def test_one_row_many_times_is_no_memory_bomb(self) -> None:
        row = np.zeros(2**20)
        text = pickle.dumps(objects([row] * 20_000, MASS_EV), protocol=4)
        with pytest.raises(BadFile, match="too many"):
            decode_deeplense(object_npy(text), "x.npy")

    def test_an_array_that_holds_itself(self) -> None:
        loop = objects(None, MASS_EV)
        loop[0] = loop
        with pytest.raises(BadFile):
            decode_deeplense(object_npy(pickle.dumps(loop, protocol=4)), "x.npy")

    def test_structured_and_complex_values_are_refused(self) -> None:
        structured = np.zeros((16, 16), dtype=[("a", "f4"), ("b", "O")])
        for array in (structured, IMAGE.astype(complex), IMAGE.astype("S8"), IMAGE > 0):
            with pytest.raises(BadFile):
                decode_deeplense(npy(array), "x.npy")
            with pytest.raises(BadFile):
                decode_deeplense(npy(objects(array, MASS_EV)), "x.npy")

    def test_another_file_of_the_same_length_is_not_taken_for_the_known_one(self) -> None:
        honest = npy(objects(IMAGE, np.float64(MASS_EV)))
        decode_deeplense(honest, "x.npy")
        body = honest[honest.index(b"\n") + 1 :]
        assert len(body) in _object_array._templates, "this test needs the file to be known"
        swapped = honest.replace(b"numpy", b"nvmpy", 1)
        assert len(swapped) == len(honest)
        with pytest.raises(BadFile, match="nvmpy"):
            decode_deeplense(swapped, "x.npy")

    def test_known_files_give_their_own_numbers(self) -> None:
        for factor in (1.0, 2.0, 3.0):
            sample = decode_deeplense(npy(objects(IMAGE * factor, np.float64(MASS_EV * factor))), "x.npy")
            np.testing.assert_array_equal(sample.image, IMAGE * factor)
            assert sample.log10_mass_ev == pytest.approx(np.log10(MASS_EV * factor))

    def test_bytes_that_are_both_text_and_number_make_no_template(self) -> None:
        # The byte that names the byte order is remembered, and used as a one-byte number too.
        text = (
            b"\x80\x03cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00u1\x89\x88\x87R"
            b"(K\x03C\x01|q\x00NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbh\x00\x86R."
        )
        with pytest.raises(ForbiddenPickle, match="not an object array"):
            read_object_array(text)
        assert len(text) not in _object_array._templates

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(data=st.data())
    def test_damage_anywhere_gives_an_array_or_a_reason(self, data: st.DataObject) -> None:
        content = bytearray(npy(objects(COUNTS, np.float64(MASS_EV))))
        for _ in range(data.draw(st.integers(1, 3))):
            # Most of the file is pixels; what counts is in front of and behind them.
            place = data.draw(st.integers(0, 420) | st.integers(len(content) - 150, len(content) - 1))
            content[place] = data.draw(st.integers(0, 255))
        content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
        try:
            sample = decode_deeplense(bytes(content), "x.npy")
        except BadFile:
            return
        assert sample.image.ndim == 2 and sample.image.nbytes <= len(content)

    @settings(max_examples=200, deadline=None)
    @given(text=st.binary(max_size=200))
    def test_any_bytes_give_a_reason(self, text: bytes) -> None:
        with pytest.raises(BadFile):
            decode_deeplense(object_npy(text), "x.npy")
        with pytest.raises(BadFile):
            decode_deeplense(text, "x.npy")


class TestBroken:
    @pytest.mark.parametrize("array", [IMAGE, objects(IMAGE, MASS_EV)], ids=["plain", "object"])
    @pytest.mark.parametrize("keep", [0, 3, 6, 9, 40, 127, 128, 300, -1])
    def test_truncated(self, array: np.ndarray, keep: int) -> None:
        with pytest.raises(BadFile):
            decode_deeplense(npy(array)[:keep], "x.npy")

    @pytest.mark.parametrize("array", [IMAGE, objects(IMAGE, MASS_EV)], ids=["plain", "object"])
    def test_longer_than_it_says(self, array: np.ndarray) -> None:
        with pytest.raises(BadFile, match=r"longer|follow"):
            decode_deeplense(npy(array) + b"\0", "x.npy")

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            (b"{'descr': '<f8', 'fortran_order': False}", "does not describe"),
            (b"{'descr': '<f8', 'fortran_order': False, 'shape': (64, -64)}", "does not describe"),
            (b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999999, 2)}", "shape"),
            # Found by a coverage-guided fuzzer: int() takes none of these.
            (b"{'descr': '<f8', 'fortran_order': False, 'shape': (\x1e64, 64)}", "does not describe"),
            (b"{'descr': '<f8', 'fortran_order': False, 'shape': (64 64,)}", "does not describe"),
            (
                b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b",)}",
                "does not describe",
            ),
            (b"{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1)}", "shape"),
            (b"{'descr': '<M8', 'fortran_order': False, 'shape': (64, 64)}", "'M8'"),
            (b"{'descr': '<f16', 'fortran_order': False, 'shape': (64, 64)}", "'f16'"),
            (b"__import__('os').system('touch x')", "does not describe"),
        ],
    )
    def test_headers(self, header: bytes, message: str) -> None:
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        with pytest.raises(BadFile, match=message):
            decode_deeplense(content, "x.npy")

    def test_other_headers(self) -> None:
        with pytest.raises(BadFile, match="format 9"):
            decode_deeplense(b"\x93NUMPY\x09\x00" + bytes(100), "x.npy")
        with pytest.raises(BadFile, match="claims 4294967295 bytes"):
            decode_deeplense(b"\x93NUMPY\x02\x00" + b"\xff" * 100, "x.npy")

    @pytest.mark.parametrize(
        "shape", [(4095,), (3, 64, 64), (64, 64, 3), (4, 4), (0, 64), (2, 2, 64, 64), (2, 101)]
    )
    def test_other_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(BadFile, match="not one image"):
            decode_deeplense(npy(np.ones(shape)), "x.npy")

    @pytest.mark.parametrize(
        "array",
        [
            objects(IMAGE, 1e-23, 3.0, 4.0, 0.3),
            objects("image", 1e-23),
            objects(None, 1e-23),
            objects([IMAGE[0], IMAGE[1][:5]], 1e-23),
            objects([], 1e-23),
            objects(objects("a", "b"), 1e-23),
            np.empty((0,), dtype=object),
        ],
    )
    def test_other_object_arrays(self, array: np.ndarray) -> None:
        with pytest.raises(BadFile):
            decode_deeplense(npy(array), "x.npy")

    @pytest.mark.parametrize(
        ("mass", "message"),
        [
            (-23.5, "evidently log10"),
            (0.0, "positive"),
            (-1e-23, "positive"),
            (np.nan, "positive"),
            (np.inf, "positive"),
        ],
    )
    def test_masses(self, mass: float, message: str) -> None:
        with pytest.raises(BadFile, match=message):
            decode_deeplense(npy(objects(IMAGE, mass)), "x.npy")

    @pytest.mark.parametrize("label", ["axion", None, [1e-23, 2e-23], np.array([1, 0, 0])])
    def test_a_label_that_is_not_one_number_is_no_mass(self, label: Any) -> None:
        assert decode_deeplense(npy(objects(IMAGE, label)), "x.npy").log10_mass_ev is None

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(BadFile, match=r"gone\.npy: cannot be read: No such file"):
            read_deeplense(tmp_path / "gone.npy")


def test_arrays_are_read_without_copying() -> None:
    content = npy(IMAGE)
    array = read_npy(content, "x.npy")
    assert isinstance(array, np.ndarray) and not array.flags.owndata and not array.flags.writeable


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Model_II/axion/axion_sim_1.npy", "axion"),
        ("train/vort/1.npy", "axion"),
        ("sphere/image-3.npy", "cdm"),
        ("no/7.npy", "no_sub"),
        ("no_sub_sim_12.npy", "no_sub"),
        ("cdm_sim_12.npy", "cdm"),
        ("vort_9.npy", "axion"),
        ("no/axionlike.npy", "no_sub"),
        ("CDM/x.npy", "cdm"),
    ],
)
def test_classes_from_names(path: str, expected: str) -> None:
    assert class_of(path.split("/")) == expected


@pytest.mark.parametrize(
    ("path", "message"), [("a/b.npy", "neither"), ("cdm/axion_sim_1.npy", "says cdm.*axion")]
)
def test_names_without_a_class(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_of(path.split("/"))


@pytest.mark.parametrize(
    ("folders", "above", "split", "instrument"),
    [
        (("Model_II", "axion"), (), None, "model_ii"),
        (("Model_I_test", "cdm"), (), "test", "model_i"),
        (("model_iii", "val", "cdm"), (), "validation", "model_iii"),
        (("train", "cdm"), (), None, None),
        (("axion",), ("data", "Model_III_test"), "test", "model_iii"),
        (("axion",), ("test", "lenses"), None, None),
        (("train", "axion"), ("Model_II_test", "x"), None, "model_ii"),
    ],
)
def test_splits_and_instruments_from_names(
    folders: tuple[str, ...], above: tuple[str, ...], split: str | None, instrument: str | None
) -> None:
    assert split_of(folders, above) == split
    assert instrument_of((*above, *folders)) == instrument
