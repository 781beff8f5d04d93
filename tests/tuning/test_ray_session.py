"""A study that no machine can run is refused at its start, with the reason and the way out."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.tuning import Study, StudyError, parse_study, ray_session, run_study

Tree = Callable[..., dict[str, Any]]
GPUS = {"cpus": 1, "gpus": 1}


@pytest.fixture(scope="module")
def cluster(start_cluster: Callable[..., Any]) -> Any:
    """Two machines of one and of two cores, as seen from a driver with their address."""
    return start_cluster(1, 2)[0]


def study_of(study_tree: Tree, **resources: float) -> Study:
    return parse_study(study_tree(resources=resources), Config())


@pytest.mark.parametrize("resources", [{"cpus": 1.5}, {"cpus": 1, "gpus": 2.25}])
def test_shares_above_one_are_refused_before_ray_does(resources: dict[str, float], study_tree: Tree) -> None:
    with pytest.raises(StudyError, match=r"resources\.[cg]pus: .* whole numbers above"):
        study_of(study_tree, **resources)


def test_a_trial_that_wants_more_cores_than_there_are_is_refused(
    study_tree: Tree, tiny_config: Config, prepared: Store, tmp_path: Path, tracked: str
) -> None:
    study = study_of(study_tree, cpus=4096)
    with pytest.raises(StudyError, match="this machine has"):
        run_study(tiny_config, study, prepared, work=tmp_path, progress=False)


def test_gpus_that_this_machine_lacks_are_refused(
    study_tree: Tree,
    tiny_config: Config,
    prepared: Store,
    tmp_path: Path,
    tracked: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the study that was refused is in nobody's way: it says the same again."""
    import ray

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    study = study_of(study_tree, **GPUS)
    with pytest.raises(
        StudyError, match=r"resources\.gpus: a trial wants 1 of a GPU, and Ray finds 0 .*--ray"
    ):
        run_study(tiny_config, study, prepared, work=tmp_path, progress=False)
    assert not ray.is_initialized()
    monkeypatch.setattr(ray_session, "start_ray", lambda n: None)
    monkeypatch.setattr(ray_session, "_nodes", lambda: [{"CPU": 2.0}])
    with pytest.raises(StudyError, match="Ray finds 0 on this machine"):
        run_study(tiny_config, study, prepared, work=tmp_path, progress=False)


@pytest.mark.slow
def test_a_cluster_without_such_a_machine_is_refused(
    study_tree: Tree, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cores must be on one machine, and an autoscaler that starts machines is waited for."""
    import ray

    monkeypatch.setattr(ray_session, "MACHINE_PATIENCE_S", 1.0)
    for resources, wanted in (({"cpus": 3}, "3 cores"), (GPUS, "1 cores and 1 of a GPU")):
        shown = "there are machines of 1 cores and 0 GPUs, of 2 cores and 0 GPUs"
        with (
            pytest.raises(
                StudyError, match=rf"a trial wants {wanted} on one machine, .*\({shown}\).*add such"
            ),
            ray_session.a_ray(study_of(study_tree, **resources), cluster.address),
        ):
            raise AssertionError("no trial could ever run")
        assert not ray.is_initialized()
    # With an autoscaler that starts a machine the study waits, beyond its patience, until it is there.
    monkeypatch.setattr(ray_session, "MACHINE_PATIENCE_S", 0.1)
    monkeypatch.setattr(ray_session, "_is_growing", lambda: True)
    asked = iter(range(1000))
    small, large = {"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}
    monkeypatch.setattr(ray_session, "_nodes", lambda: [small, large] if next(asked) > 40 else [small])
    began = time.monotonic()
    with ray_session.a_ray(study_of(study_tree, **GPUS), cluster.address):
        assert next(asked) > 40 and time.monotonic() - began > 0.1


@pytest.mark.slow
def test_a_cluster_with_room_is_taken_at_once_and_a_wrong_address_named(
    study_tree: Tree, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray_session, "_is_growing", lambda: pytest.fail("nothing is to be waited for"))
    with ray_session.a_ray(study_of(study_tree, cpus=2), cluster.address):
        assert ray.cluster_resources()["CPU"] == 3

    def refuse(**options: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore.")

    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(
            StudyError, match=r"--ray auto: no Ray cluster answers there \(Could not find any.*leave"
        ),
        ray_session.a_ray(study_of(study_tree, cpus=2), "auto"),
    ):
        raise AssertionError("there is no cluster")
