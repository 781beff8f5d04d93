"""Fixtures of every test: seeds, and the real DeepLense files where they are at hand."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from tests import unpickling

PROJECT = Path(__file__).resolve().parents[1]
VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")
DVC_VARIABLES = ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE")


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


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("fresh")
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        for name in (*VARIABLES, *DVC_VARIABLES):
            context.delenv(name, raising=False)
        context.setenv("DVC_ROOT", str(folder))
        from darkarc.tracking import tracking_uri

        tracking_uri()
    return folder / "mlflow.db"


@pytest.fixture
def empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is a project that has never tracked anything."""
    for name in (*VARIABLES, *DVC_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "a project"  # a blank in the path, as on many desktops
    root.mkdir()
    (root / "params.yaml").write_text("seed: 0\n")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def project(empty_project: Path, fresh_database: Path) -> Path:
    """A project of its own with an empty MLflow database."""
    shutil.copy(fresh_database, empty_project / "mlflow.db")
    return empty_project
