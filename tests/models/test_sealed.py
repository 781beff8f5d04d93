from pathlib import Path

import pytest

from darkarc.models import SealError, read_sealed, write_sealed


def test_what_was_sealed_is_read_back_and_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "sealed"
    for files in ({"a": b"1", "b": b""}, {"c": b"3"}):
        write_sealed(folder, files)
        assert read_sealed(folder) == files
        assert [path.name for path in folder.parent.iterdir()] == ["sealed"]


def test_leftovers_of_a_killed_writer_do_not_disturb(tmp_path: Path) -> None:
    for leftover in ("sealed.partial", "sealed.replaced"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "junk").write_bytes(b"junk")
    write_sealed(tmp_path / "sealed", {"a": b"1"})
    write_sealed(tmp_path / "sealed", {"a": b"2"})
    assert read_sealed(tmp_path / "sealed") == {"a": b"2"}
    assert [path.name for path in tmp_path.iterdir()] == ["sealed"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "a").write_bytes(b"12"), r"a: 2 bytes .* truncated or changed"),
        (lambda folder: (folder / "a").unlink(), "not readable"),
        (lambda folder: (folder / "manifest.json").unlink(), "nothing complete"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"{"), "damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"[1]"), "damaged"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {"../x": {}}}'), "names no file"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, message: str) -> None:
    folder = write_sealed(tmp_path / "sealed", {"a": b"123"})
    damage(folder)
    with pytest.raises(SealError, match=message):
        read_sealed(folder)
