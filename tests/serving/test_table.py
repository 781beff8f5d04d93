"""The prediction table: what is written, whatever the ending's case, and how much of it is in memory."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from darkarc.serving import table
from darkarc.serving.table import COLUMNS, Journal, Row, TableError, table_row, write_table


def rows(n: int) -> Iterator[Row]:
    for k in range(n):
        yield table_row(f"{k}.npy", "", (0.25, 0.5, 0.25), (-23.0, -23.5, -23.25, -22.75, -22.5))


@pytest.mark.parametrize("name", ["table.csv", "TABLE.CSV"])
def test_a_csv_is_text_with_a_header(name: str, tmp_path: Path) -> None:
    withheld = table_row('of, "her"/lens.npy', "unlike the training's")
    write_table(tmp_path / name, iter([*rows(1), withheld]))
    assert (tmp_path / name).read_bytes().decode() == (
        "path,p_axion,p_cdm,p_no_sub,log10_mass_median,log10_mass_q05,q16,q84,q95,flag\n"
        "0.npy,0.25,0.5,0.25,-23.0,-23.5,-23.25,-22.75,-22.5,\n"
        '"of, ""her""/lens.npy",,,,,,,,,unlike the training\'s\n'
    )
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["table.parquet", "Table.Parquet"])
def test_a_parquet_file_is_written_group_by_group(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_ROWS_AT_ONCE", 100)
    write_table(tmp_path / name, rows(250))
    file = pq.ParquetFile(tmp_path / name)
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [100, 100, 50]
    assert file.read().to_pylist() == list(rows(250))
    assert file.schema_arrow.names == list(COLUMNS)


def test_another_ending_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    def unread() -> Iterator[Row]:
        raise AssertionError
        yield {}

    with pytest.raises(TableError, match=r"ends in \.csv or \.parquet, found '\.txt'"):
        write_table(tmp_path / "table.txt", unread())


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_rows_that_fail_leave_the_old_table_and_nothing_else(name: str, tmp_path: Path) -> None:
    write_table(tmp_path / name, rows(3))
    before = (tmp_path / name).read_bytes()

    def failing() -> Iterator[Row]:
        yield from rows(2)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_table(tmp_path / name, failing())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before


def test_a_table_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its name is, before the journal that could make it again is deleted."""
    done: list[str] = []
    replace = os.replace

    def renamed(old: Path, new: Path) -> None:
        done.append("renamed")
        replace(old, new)

    monkeypatch.setattr(table, "sync", lambda path: done.append(f"synced {Path(path).name}"))
    monkeypatch.setattr(table.os, "replace", renamed)
    write_table(tmp_path / "table.csv", rows(1))
    assert done == ["synced table.csv.writing", "renamed", f"synced {tmp_path.name}"]


def test_a_batch_is_added_at_the_end_wherever_the_journal_is_read(tmp_path: Path) -> None:
    one, two, three = rows(3)
    with Journal(tmp_path / "table.csv", {"of": "these"}, resume=True) as journal:
        journal.append([one], "a")
        journal.append([two], "b")
        reading = journal.batches()
        assert next(reading) == ([one], "a")
        journal.append([three], "c")
        assert list(reading) == [([two], "b"), ([three], "c")]
    with Journal(tmp_path / "table.csv", {"of": "these"}, resume=True) as journal:
        assert [images for _, images in journal.batches()] == ["a", "b", "c"]


def test_a_batch_is_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(table.os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    with Journal(tmp_path / "table.csv", {}, resume=True) as journal:
        journal.append(list(rows(2)), "a")
    assert synced[-1] == journal.path.stat().st_size > len(json.dumps(COLUMNS))
