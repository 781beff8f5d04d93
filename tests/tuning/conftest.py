"""A tiny prepared store, a configuration that trains on it in a blink, and one Ray for all tests."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from darkarc import config as configuration
from darkarc.config import Config
from darkarc.data.prepare import prepare
from darkarc.data.store import Store, StoreWriter

N_IMAGES = 220
SIZE = 16


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    return configuration.parse(
        {
            "prepare": {"train": 0.6, "validation": 0.2, "calibration": 0.1, "test": 0.1, "mass_bins": 2},
            "model": {"width": 0.5, "bins": 32},
            "train": {"batch_size": 32, "learning_rate": 1e-2, "label_sigma_dex": 0.1},
            "tracking": {"system_metrics": False, "patience_s": 5.0},
        }
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config) -> Store:
    """Lines whose length tells the mass, as in a vortex, with noise; a few images without a line."""
    folder = tmp_path_factory.mktemp("prepared")
    random = np.random.default_rng(5)
    mass = random.uniform(-24, -22, N_IMAGES)
    is_axion = np.arange(N_IMAGES) % 10 < 8
    position = np.arange(SIZE) - SIZE / 2
    length = 2.0 + 5.0 * (-22 - mass) / 2
    ring = np.exp(-0.5 * ((np.hypot(position[:, None], position[None]) - 4.0) / 1.5) ** 2)
    line = (np.abs(position[None]) <= length[:, None]) * is_axion[:, None]
    images = np.repeat(ring[None], N_IMAGES, axis=0)
    images[:, SIZE // 2] += line
    images += random.normal(0, 0.05, images.shape)
    names = np.where(is_axion, "axion", np.where(np.arange(N_IMAGES) % 10 == 8, "cdm", "no_sub"))
    with StoreWriter(
        folder / "raw",
        name="lines",
        origin="test",
        instrument="model_iii",
        shape=(SIZE, SIZE),
        dtype="float32",
        parameters={},
    ) as writer:
        writer.append(
            images,
            {
                "sample_id": [f"line-{i}" for i in range(N_IMAGES)],
                "class": names.tolist(),
                "log10_axion_mass_ev": np.where(is_axion, mass, np.nan),
                "group_id": [f"group-{i}" for i in range(N_IMAGES)],
            },
        )
        raw = writer.commit()
    return prepare(raw, folder / "prepared", tiny_config, None)


@pytest.fixture(scope="module")
def start_cluster() -> Iterator[Any]:
    """A function that starts a cluster of Ray's own with so many cores on each of its nodes, the head
    first; it gives the cluster and its other nodes."""
    import ray
    from ray.cluster_utils import Cluster

    started = []

    def start(*cores: int) -> tuple[Any, list[Any]]:
        while started:
            started.pop().shutdown()
        if ray.is_initialized():
            ray.shutdown()
        cluster = _again(
            Cluster, initialize_head=True, head_node_args={"num_cpus": cores[0], "include_dashboard": False}
        )
        started.append(cluster)
        nodes = [_again(cluster.add_node, num_cpus=n) for n in cores[1:]]
        cluster.wait_for_nodes(300)
        return cluster, nodes

    yield start
    while started:
        started.pop().shutdown()


def _again(start: Callable[..., Any], **options: Any) -> Any:
    """Ray gives a node 30 seconds to come up, which a busy machine may not do at once."""
    give_up_at = time.monotonic() + 300
    while True:
        before = psutil.Process().children()
        try:
            return start(**options)
        except Exception as error:
            for child in psutil.Process().children():
                if child not in before:
                    child.kill()
            if "timed out" not in str(error).lower() or time.monotonic() > give_up_at:
                raise


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without a run: to make it takes seconds, to copy it none."""
    from darkarc.tracking.location import tracking_uri

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        tracking_uri()
    assert not path.with_name("mlflow.db-wal").exists(), "all of it is in the one file"
    return path


@pytest.fixture
def tracked(tmp_path: Path, fresh_database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An MLflow database of the test's own."""
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return uri


@pytest.fixture
def study_tree() -> Callable[..., dict[str, Any]]:
    """A small study as a tree; keyword arguments replace its keys."""

    def make(**changes: Any) -> dict[str, Any]:
        tree: dict[str, Any] = {
            "name": "tiny",
            "budget": {"trials": 4, "epochs": 2},
            "algorithm": "random",
            "space": {
                "train.learning_rate": {"log_uniform": [1e-4, 3e-2]},
                "model.dropout": {"uniform": [0.0, 0.5]},
            },
            "concurrent": 2,
            "seed": 3,
        }
        return tree | changes

    return make
