"""Every verb, disturbed at random: the same command ends with the same bytes and leaves nothing."""

from pathlib import Path

import pytest

from benchmarks.faults import VERBS, Calm, CannotTry, calm_project, try_verb

SEED = 20261124
KILLED = [verb for verb in VERBS if verb != "tune"]  # tests/tuning/test_faults.py kills studies

pytestmark = [pytest.mark.slow, pytest.mark.drill]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def calm(home: Path) -> dict[str, Calm]:
    return calm_project(home, KILLED)


@pytest.mark.parametrize("verb", KILLED)
def test_a_kill_loses_nothing(verb: str, calm: dict[str, Calm], home: Path) -> None:
    found = try_verb(verb, calm[verb], "kill", 1, SEED, home)
    assert found.nothing_lost, (f"seed {SEED}", found)


def test_a_request_to_end_loses_nothing(calm: dict[str, Calm], home: Path) -> None:
    found = try_verb("train", calm["train"], "term", 1, SEED + 1, home)
    assert found.nothing_lost, (f"seed {SEED + 1}", found)


@pytest.mark.parametrize("fault", ["disk", "closed", "memory"])
@pytest.mark.parametrize("verb", KILLED)
def test_what_is_refused_is_said_and_loses_nothing(
    verb: str, fault: str, calm: dict[str, Calm], home: Path
) -> None:
    """A file system that is full, a folder that cannot be written, an address space that is too small."""
    try:
        found = try_verb(verb, calm[verb], fault, 1, SEED, home)
    except CannotTry as reason:
        pytest.skip(str(reason))
    assert found.nothing_lost and not found.silent, (f"seed {SEED}", found)
