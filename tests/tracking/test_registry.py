"""The registry: registered once, found by alias or number, checked before it is parsed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from darkarc.tracking import RegistryError, open_client
from darkarc.tracking.registration import read_test_errors, register_onnx
from darkarc.tracking.registry import (
    champion_version,
    download_model,
    get_version,
    list_versions,
    set_alias,
)

NAME = "axion-mass-regressor"
EXAMPLE = np.ones((1, 1, 8, 8), np.float32)
MakeOnnx = Callable[..., Path]

KILLED_AFTER_LOGGING = """
import os, signal, sys
import numpy as np
from darkarc.tracking import registration

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
registration._create_version = die
registration.register_onnx(
    sys.argv[1], name=sys.argv[2], run_id=sys.argv[3], input_example=np.ones((1, 1, 8, 8), np.float32)
)
"""


def _register(path: Path, run_id: str, **more: object):
    return register_onnx(path, name=NAME, run_id=run_id, input_example=EXAMPLE, **more)  # type: ignore[arg-type]


def test_a_registered_model_comes_back_bit_for_bit(finished_run: str, make_onnx: MakeOnnx, tmp_path: Path):
    path = make_onnx()
    (tmp_path / "edges.json").write_text("[-24, -22]")
    version = _register(
        path,
        finished_run,
        card="# Axion mass\n\nFrom simulated lenses.",
        tags={"darkarc.data_digest": "d" * 64},
        metrics={"mae_dex": 0.0712345678},
        test_errors=np.array([0.1, 0.2]),
        test_digest="t" * 64,
        extra_files=[tmp_path / "edges.json"],
        metadata={"target": "log10_axion_mass_ev"},
    )
    assert (version.version, version.run_id) == (1, finished_run)
    assert version.tags["metric.mae_dex"] == "0.0712346"
    assert version.tags["darkarc.data_digest"] == "d" * 64
    assert read_test_errors(version).tolist() == [0.1, 0.2]
    described = open_client().get_model_version(NAME, "1")
    assert described.description == "# Axion mass\n\nFrom simulated lenses."

    set_alias(NAME, "champion", 1)
    got = download_model(f"models:/{NAME}@champion")
    assert got.read_bytes() == path.read_bytes()
    assert got == download_model(f"models:/{NAME}/1")
    assert champion_version(NAME) == get_version(NAME, "champion")


def test_mlflow_serves_any_batch_without_pickle(
    project: Path, finished_run: str, make_onnx: MakeOnnx, monkeypatch: pytest.MonkeyPatch
):
    import mlflow

    path = make_onnx()
    _register(path, finished_run)
    assert not [file for file in project.rglob("*") if file.suffix in (".pkl", ".pickle", ".pth", ".pt")]
    model = mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    images = np.random.default_rng(1).normal(size=(3, 1, 8, 8)).astype(np.float32)
    answers = model.predict(images)
    expected = onnxruntime.InferenceSession(path).run(["median", "class_probability"], {"images": images})
    np.testing.assert_array_equal(answers["median"], expected[0])
    np.testing.assert_array_equal(answers["class_probability"], expected[1])
    (tensor,) = json.loads(model.metadata.signature.to_dict()["inputs"])
    assert tensor["tensor-spec"] == {"dtype": "float32", "shape": [-1, 1, 8, 8]}
    assert model.metadata.saved_input_example_info is not None


def test_the_model_belongs_to_its_run_and_experiment(finished_run: str, make_onnx: MakeOnnx):
    client = open_client()
    experiment = client.create_experiment("elsewhere")
    run = client.create_run(experiment).info.run_id
    _register(make_onnx(), run)
    (logged,) = client.search_logged_models([experiment])
    assert (logged.source_run_id, str(logged.status)) == (run, "READY")
    assert [output.model_id for output in client.get_run(run).outputs.model_outputs] == [logged.model_id]


def test_registering_again_changes_nothing_but_the_evidence(finished_run: str, make_onnx: MakeOnnx):
    path = make_onnx()
    _register(path, finished_run, metrics={"mae_dex": 0.5}, test_errors=np.array([1.0]))
    again = _register(path, finished_run, metrics={"mae_dex": 0.25}, test_errors=np.array([2.0]))
    assert [item.version for item in list_versions(NAME)] == [1]
    assert again.tags["metric.mae_dex"] == "0.25"
    assert read_test_errors(again).tolist() == [2.0]
    assert _register(make_onnx(scale=2.0), finished_run).version == 2
    assert _register(path, open_client().create_run("0").info.run_id).version == 3


def test_a_registration_killed_half_way_is_finished_by_the_next(
    project: Path, finished_run: str, make_onnx: MakeOnnx
):
    path = make_onnx()
    command = [sys.executable, "-c", KILLED_AFTER_LOGGING, str(path), NAME, finished_run]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    assert list_versions(NAME) == []
    version = _register(path, finished_run)
    assert version.version == 1
    experiment = open_client().get_run(finished_run).info.experiment_id
    assert len(open_client().search_logged_models([experiment])) == 1
    assert download_model(version.uri).read_bytes() == path.read_bytes()


def test_a_replaced_model_file_is_never_handed_out(project: Path, finished_run: str, make_onnx: MakeOnnx):
    version = _register(make_onnx(), finished_run)
    (stored,) = (project / "mlartifacts").rglob("model.onnx")
    stored.write_bytes(make_onnx("other.onnx", scale=2.0).read_bytes())
    with pytest.raises(RegistryError, match="damaged or replaced; not loaded"):
        download_model(version.uri)
    assert not list((project.parent / "cache").rglob("model.onnx"))


def test_a_damaged_copy_in_the_cache_is_fetched_again(finished_run: str, make_onnx: MakeOnnx):
    path = make_onnx()
    version = _register(path, finished_run)
    download_model(version.uri).write_bytes(b"damaged")
    assert download_model(version.uri).read_bytes() == path.read_bytes()


def test_a_version_of_unknown_origin_is_not_loaded(finished_run: str, make_onnx: MakeOnnx):
    client = open_client()
    client.create_registered_model(NAME)
    client.create_model_version(NAME, str(make_onnx().parent), run_id=finished_run)
    with pytest.raises(RegistryError, match="darkarc did not register it"):
        download_model(f"models:/{NAME}/1")


def test_replaced_test_errors_are_noticed(project: Path, finished_run: str, make_onnx: MakeOnnx):
    version = _register(make_onnx(), finished_run, test_errors=np.array([1.0]))
    (stored,) = (project / "mlartifacts").rglob("test_errors.npy")
    np.save(stored, np.array([0.0]))
    with pytest.raises(RegistryError, match="SHA-256"):
        read_test_errors(version)


@pytest.mark.parametrize(
    "uri", ["axion", "models:/axion", "models:/a/b/c", "models:/a@b@c", "models:/a/latest"]
)
def test_a_uri_of_another_form_is_refused(uri: str, project: Path):
    with pytest.raises(RegistryError, match="expected models:/NAME@ALIAS"):
        download_model(uri)


def test_what_is_missing_is_answered_with_what_is_there(finished_run: str, make_onnx: MakeOnnx):
    with pytest.raises(RegistryError, match="no model is registered there"):
        get_version(NAME, 1)
    _register(make_onnx(), finished_run)
    set_alias(NAME, "champion", 1)
    with pytest.raises(RegistryError, match=r"no alias 'best' in .*: its versions are 1 @champion"):
        get_version(NAME, "best")
    with pytest.raises(RegistryError, match="has no version 7"):
        get_version(NAME, 7)
    with pytest.raises(RegistryError, match=f"no such model; registered are {NAME}"):
        get_version("axion", "champion")
    assert (list_versions("axion"), champion_version("axion")) == ([], None)


@pytest.mark.parametrize(
    ("example", "message"),
    [(np.ones((1, 8, 8), np.float32), r"expected \(1, 1, H, W\)"), (EXAMPLE.astype(np.float64), "float64")],
)
def test_an_input_example_of_another_form_is_refused(
    example: np.ndarray, message: str, finished_run: str, make_onnx: MakeOnnx
):
    with pytest.raises(RegistryError, match=message):
        register_onnx(make_onnx(), name=NAME, run_id=finished_run, input_example=example)


def test_a_frozen_batch_is_refused(finished_run: str, make_onnx: MakeOnnx):
    with pytest.raises(RegistryError, match="dynamic batch"):
        _register(make_onnx(batch=1), finished_run)
    assert list_versions(NAME) == []


def test_weights_in_a_second_file_are_refused(finished_run: str, make_onnx: MakeOnnx, tmp_path: Path):
    outside = tmp_path / "outside.onnx"
    onnx.save(onnx.load(make_onnx()), outside, save_as_external_data=True, size_threshold=0)
    with pytest.raises(RegistryError, match=r"lie in another file|not a usable ONNX model"):
        _register(outside, finished_run)


def test_what_is_no_model_is_refused_by_name(finished_run: str, tmp_path: Path):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(RegistryError, match=r"bad\.onnx: not a usable ONNX model"):
        _register(tmp_path / "bad.onnx", finished_run)
    with pytest.raises(RegistryError, match=r"none\.onnx: no such file"):
        _register(tmp_path / "none.onnx", finished_run)


@pytest.mark.parametrize("errors", [np.zeros((2, 2)), np.array([]), np.array([np.nan]), np.array([-0.1])])
def test_test_errors_must_be_absolute_errors(errors: np.ndarray, finished_run: str, make_onnx: MakeOnnx):
    with pytest.raises(RegistryError, match="expected absolute errors"):
        _register(make_onnx(), finished_run, test_errors=errors)
