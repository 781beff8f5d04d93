"""The journal: complete after a kill, damage noticed, one holder at a time."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from darkarc.tracking import Journal, JournalError
from darkarc.tracking.journal import Record


def _filled(path: Path) -> list[Record]:
    journal = Journal(path)
    journal.begin(run_id=None, name="train")
    journal.append("metrics", {"step": 0, "values": {"loss": 0.1 + 0.2, "odd": float("nan")}})
    journal.append("tags", {"values": {"ä": "…"}})
    journal.append("metrics", {"step": 1, "values": {"loss": float("inf")}})
    journal.acknowledge(2, "abc")
    journal.close()
    return journal.records


def test_what_was_written_is_read_back_exactly(tmp_path: Path):
    written = _filled(tmp_path / "journal")
    journal = Journal(tmp_path / "journal")
    assert repr(journal.records) == repr(written)  # repr, because NaN is not equal to itself
    assert [record.seq for record in journal.pending] == [3]
    assert (journal.run_id, journal.run["name"]) == ("abc", "train")
    assert journal.point("loss", 0) == 0.1 + 0.2
    assert journal.append("tags", {}).seq == 4
    journal.close()


def test_any_truncation_leaves_a_usable_beginning(tmp_path: Path):
    _filled(tmp_path / "journal")
    content = (tmp_path / "journal").read_bytes()
    whole_lines = {0} | {end + 1 for end, byte in enumerate(content) if byte == ord("\n")}
    for length in (*range(0, len(content), 7), *range(len(content) - 20, len(content))):
        path = tmp_path / "cut"
        path.write_bytes(content[:length])
        journal = Journal(path)
        journal.close()
        kept = path.stat().st_size
        assert kept == max(end for end in whole_lines if end <= length)


def test_every_flipped_byte_is_noticed(tmp_path: Path):
    _filled(tmp_path / "journal")
    content = (tmp_path / "journal").read_bytes()
    last_line = content[:-1].rindex(b"\n") + 1
    for position in range(last_line):
        damaged = bytearray(content)
        damaged[position] ^= 0x04
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(JournalError, match=r"damaged: line \d+ is damaged"):
            Journal(tmp_path / "damaged")


def test_a_second_holder_is_refused_in_this_process(tmp_path: Path):
    journal = Journal(tmp_path / "journal")
    with pytest.raises(JournalError, match="in use"):
        Journal(tmp_path / "journal")
    journal.close()
    Journal(tmp_path / "journal").close()


def test_a_folder_of_somebody_else_is_not_called_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as others:
        others.setattr("darkarc.tracking._lock.os.open", refuse)
        with pytest.raises(JournalError, match=r"journal\.lock: cannot be written \(Permission denied\)"):
            Journal(tmp_path / "journal")
    Journal(tmp_path / "journal").close()


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path):
    code = (
        "import sys, time; from darkarc.tracking import Journal\n"
        "journal = Journal(sys.argv[1]); journal.append('tags', {})\n"
        "print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "journal")], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(JournalError, match="in use by another process"):
            Journal(tmp_path / "journal")
        holder.kill()
    journal = Journal(tmp_path / "journal")
    assert len(journal.records) == 1
    journal.close()


def test_a_full_disk_loses_nothing_once_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    journal = Journal(tmp_path / "journal")
    journal.append("tags", {"n": 1})
    real = journal._file

    class FullDisk:
        """Takes the beginning of a line, then answers as a full disk does."""

        closed = False

        def write(self, data: bytes) -> int:
            if data.startswith(b'{"seq"'):
                return real.write(data[:10]) or 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            real.close()
            self.closed = True

    monkeypatch.setattr(journal, "_file", FullDisk())
    journal.append("tags", {"n": 2})
    assert "cannot write the journal" in caplog.text
    journal.append("tags", {"n": 3})
    journal.close()
    again = Journal(tmp_path / "journal")
    assert [record.body["n"] for record in again.records] == [1, 2, 3]
    again.close()


def test_a_journal_that_was_deleted_is_written_anew(tmp_path: Path):
    journal = Journal(tmp_path / "journal")
    journal.begin(run_id="r", name="train")
    journal.append("tags", {"n": 1})
    journal._file.close()
    (tmp_path / "journal").unlink()
    journal.append("tags", {"n": 2})
    journal.close()
    again = Journal(tmp_path / "journal")
    assert [record.body["n"] for record in again.records] == [1, 2]
    assert again.run["name"] == "train"
    again.close()


def test_another_run_starts_the_count_of_sent_records_again(tmp_path: Path):
    _filled(tmp_path / "journal")
    journal = Journal(tmp_path / "journal")
    journal.begin(run_id="other", name="train")
    journal.close()
    again = Journal(tmp_path / "journal")
    assert (again.run_id, len(again.pending)) == ("other", 3)
    again.close()
