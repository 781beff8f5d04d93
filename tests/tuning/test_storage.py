"""Checkpoints go to a folder or to a URL alike, and leave nothing there when the study is over."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.tuning import StudyError, StudyResult, parse_study, run_study, runner
from darkarc.tuning.storage import remove_sessions, storage_place

Tree = Callable[..., dict[str, Any]]
NAME = "of all machines, 50% full"


def test_a_folder_and_its_url_are_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / NAME
    for storage in (str(place), NAME, f"file://{quote(str(place))}", f"file://localhost{quote(str(place))}"):
        assert storage_place(storage, tmp_path / "own") == str(place), storage
        assert place.is_dir() and list(place.iterdir()) == []
        place.rmdir()
    assert storage_place("s3://bucket/studies", tmp_path / "own") == "s3://bucket/studies"
    assert storage_place(None, tmp_path / "own") == str(tmp_path / "own")


@pytest.mark.parametrize("storage", ["s4://bucket/studies", "http://host/studies", "file://host/studies"])
def test_what_is_no_place_is_refused(storage: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=f"--storage {storage}: neither a folder nor .* s3, gs"):
        storage_place(storage, tmp_path)


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"cannot write there .*make the folder"):
        storage_place(f"file://{tmp_path}/file/below", tmp_path)


def test_only_sessions_of_the_study_are_removed(tmp_path: Path) -> None:
    for name in ("mine-001", "mine-002", "other-001"):
        (tmp_path / name / "trial").mkdir(parents=True)
    remove_sessions(str(tmp_path), ["mine-001", "mine-002", "mine-003"])
    assert [path.name for path in tmp_path.iterdir()] == ["other-001"]


def test_a_study_goes_on_from_its_storage(
    study_tree: Tree,
    tiny_config: Config,
    prepared: Store,
    tmp_path: Path,
    tracked: str,
    ray_here: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PBT takes the donors' checkpoints from there, and so does the next session of an interrupted study,
    by whatever name of the place."""
    place = tmp_path / NAME
    tree = study_tree(scheduler={"name": "pbt", "quantile": 0.5}, budget={"trials": 4, "epochs": 2})
    study = parse_study(tree, tiny_config)

    def run(storage: str, **more: Any) -> StudyResult:
        folder = tmp_path / "work"
        return run_study(tiny_config, study, prepared, work=folder, storage=storage, progress=False, **more)

    class Stop(Exception):
        pass

    def interrupt(*anything: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(runner, "winner_document", interrupt)
        run(f"file://{quote(str(place))}")
    (book,) = (tmp_path / "work").glob("*/book.jsonl")
    records = [json.loads(line) for line in book.read_text().splitlines()]
    reports = [record["body"] for record in records if record["kind"] == "report"]
    written = [Path(report["checkpoint"]) for report in reports]
    assert len(written) == 8 and all(path.is_relative_to(place) for path in written)
    assert any(path.is_dir() for path in written)
    # As if the driver had been killed before the last generation's last report.
    (last,) = [n for n, record in enumerate(records) if record["body"] is reports[-1]]
    book.write_text("".join(line for line in book.read_text().splitlines(keepends=True)[:last]))
    assert run(str(place), resume=True).finished == 4
    again = [json.loads(line) for line in book.read_text().splitlines()]
    rows = [
        (r["body"]["number"], row["epoch"])
        for r in again
        if r["kind"] == "report"
        for row in r["body"]["rows"]
    ]
    assert sorted(rows) == [(number, epoch) for number in range(4) for epoch in (1, 2)]
    assert list(place.iterdir()) == [], "a study that is over leaves nothing in its storage"
