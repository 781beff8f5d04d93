"""The book: what is booked survives, whatever is cut off, and nothing is counted twice."""

from pathlib import Path

import pytest

from darkarc.tracking import JournalError
from darkarc.tuning import StudyError
from darkarc.tuning.book import FINISHED, PRUNED, StudyBook

IDENTITY = {"study": {"name": "x"}, "training": "abc"}


def row(epoch: int, value: float, seconds: float = 1.0) -> dict[str, float]:
    return {"epoch": epoch, "val_mae_dex": value, "train_seconds": seconds}


def fill(path: Path) -> None:
    with StudyBook(path, IDENTITY) as book:
        book.begin_session()
        book.suggest(0, {"model.dropout": 0.1}, {"cma": "1f"})
        book.suggest(1, {"model.dropout": 0.2}, {})
        book.report(0, [row(1, 0.5), row(2, 0.4)], checkpoint="a/checkpoint_000002")
        book.end(0, FINISHED, "all epochs")
        book.name_run(0, "run-0")
        book.exchange(2, 1, 0, {"model.dropout": 0.3})


def test_a_book_is_read_back(tmp_path: Path) -> None:
    fill(tmp_path / "book.jsonl")
    with StudyBook(tmp_path / "book.jsonl", IDENTITY) as book:
        first = book.trials[0]
        assert (first.assignment, first.hints, first.epochs) == ({"model.dropout": 0.1}, {"cma": "1f"}, 2)
        assert (first.state, first.reason, first.run_id) == (FINISHED, "all epochs", "run-0")
        assert first.checkpoints == {2: "a/checkpoint_000002"}
        assert first.last["val_mae_dex"] == 0.4
        assert [trial.number for trial in book.unfinished] == [1]
        assert book.exchanges[0]["donor"] == 0
        assert book.sessions == 1 and not book.over


def test_an_epoch_trained_again_keeps_its_first_timestamp(tmp_path: Path) -> None:
    fill(tmp_path / "book.jsonl")
    with StudyBook(tmp_path / "book.jsonl", IDENTITY) as book:
        before = dict(book.trials[0].rows)
        book.report(0, [row(2, 0.4, seconds=7.0), row(3, 0.3)], checkpoint="")
        assert book.trials[0].rows[2] == before[2]
        assert book.trials[0].rows[3]["val_mae_dex"] == 0.3
        book.end(0, "failed", "later")
        assert book.trials[0].state == FINISHED


def test_a_last_report_and_its_end_are_one_record(tmp_path: Path) -> None:
    """Else a kill between them would let a trial go on that its rung had stopped."""
    path = tmp_path / "book.jsonl"
    with StudyBook(path, IDENTITY) as book:
        book.suggest(0, {"model.dropout": 0.1}, {})
        book.report(0, [row(1, 0.5)], checkpoint="a")
        book.report(0, [row(2, 0.4)], checkpoint="b", end=(PRUNED, "asha after epoch 2"))
        book.end(0, FINISHED, "later")
    content = path.read_bytes()
    seen = set()
    for length in range(len(content.splitlines(keepends=True)[0]), len(content) + 1):
        path.write_bytes(content[:length])
        with StudyBook(path, IDENTITY) as book:
            seen |= {(trial.epochs, trial.state, trial.reason) for trial in book.trials.values()}
    assert seen == {(0, "", ""), (1, "", ""), (2, PRUNED, "asha after epoch 2")}


@pytest.mark.parametrize("cut", [1, 40, 200, 400])
def test_a_book_cut_anywhere_holds_a_whole_beginning(tmp_path: Path, cut: int) -> None:
    fill(tmp_path / "book.jsonl")
    content = (tmp_path / "book.jsonl").read_bytes()
    (tmp_path / "book.jsonl").write_bytes(content[:-cut])
    with StudyBook(tmp_path / "book.jsonl", IDENTITY) as book:
        assert 0 in book.trials
        book.suggest(len(book.trials), {"model.dropout": 0.4}, {})
        numbers = list(book.trials)
    with StudyBook(tmp_path / "book.jsonl", IDENTITY) as book:
        assert list(book.trials) == numbers


def test_one_driver_holds_a_book_and_only_its_own_study(tmp_path: Path) -> None:
    fill(tmp_path / "book.jsonl")
    with StudyBook(tmp_path / "book.jsonl", IDENTITY), pytest.raises(JournalError, match="use"):
        StudyBook(tmp_path / "book.jsonl", IDENTITY)
    with pytest.raises(StudyError, match="another study"):
        StudyBook(tmp_path / "book.jsonl", {**IDENTITY, "training": "other"})
    with StudyBook(tmp_path / "book.jsonl", IDENTITY) as book:
        assert len(book.trials) == 2
