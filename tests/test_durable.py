"""A file is complete or absent, and a disk that is full leaves nothing beside it."""

import errno
import os
from pathlib import Path

import pytest

from darkarc.durable import why_unwritable, write_file


@pytest.mark.parametrize("refused", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_file(tmp_path / "folder" / "metrics.json", "old")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, refused, refuse)
        with pytest.raises(OSError, match="No space left"):
            write_file(target, "new")
    assert [path.name for path in target.parent.iterdir()] == ["metrics.json"]
    assert target.read_text() == "old"
    write_file(target, b"new")
    assert target.read_text() == "new"


def test_a_place_that_takes_no_file_is_known_beforehand(tmp_path: Path) -> None:
    assert why_unwritable(tmp_path / "new" / "joint.json") == ""
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "taken").write_text("a file")
    assert why_unwritable(tmp_path / "taken" / "joint.json") == f"{tmp_path / 'taken'} is a file"
    assert why_unwritable(tmp_path / "new") == f"{tmp_path / 'new'} is a folder"
    assert why_unwritable(Path("/proc/joint.json")) != ""
