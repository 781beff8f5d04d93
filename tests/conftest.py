"""Fixtures of every test: seeds, and the real DeepLense files where they are at hand."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from tests import unpickling

PROJECT = Path(__file__).resolve().parents[1]


unpickling.watch()
# A shared machine may stop for a second anywhere: no property is about time.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file with most studies comes first, then those with slow tests: a core left alone with one at the
    end waits."""
    studies = Counter(item.path for item in items if _runs_studies(item))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (-studies[item.path], item.path not in slow))


def _runs_studies(item: pytest.Item) -> bool:
    return "ray_here" in getattr(item, "fixturenames", ())


@pytest.fixture(autouse=True)
def _nothing_unpickles():
    """No code of the package lets pickle call anything, whatever the test does."""
    unpickling.found.clear()
    yield
    assert unpickling.found == []


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Tests do not depend on the order they run in."""
    import torch

    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray with two cores for the tests of a file; the next file finds none."""
    import ray

    from darkarc.tuning.ray_session import start_ray

    start_ray(2)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with `golden/` and `deeplense_sample/`: real files that do not ship with the project."""
    folder = Path(os.environ.get("DARKARC_SHARED", PROJECT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"real DeepLense files are not here ({folder}); set DARKARC_SHARED to their folder")
    return folder
