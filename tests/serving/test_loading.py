"""`darkarc.load`: from every place a regressor is kept, and clear words for every other."""

import numpy as np
import pytest

from darkarc.models import Regressor, save_regressor, write_sealed
from darkarc.serving import LoadError, OnnxRegressor, load


@pytest.fixture
def exported(onnx_path, tmp_path):
    return write_sealed(tmp_path / "exported", {"model.onnx": onnx_path.read_bytes(), "README.md": b"card"})


def test_file_folder_and_training_give_the_same_answers(regressor, onnx_path, exported, lenses, tmp_path):
    trained = save_regressor(regressor, tmp_path / "trained")
    expected = regressor.predict(lenses[:4])
    kinds = {onnx_path: OnnxRegressor, exported: OnnxRegressor, trained: Regressor, str(trained): Regressor}
    for where, kind in kinds.items():
        loaded = load(where, threads=1)
        assert isinstance(loaded, kind) and not loaded.training
        answer = loaded.predict(lenses[:4])
        np.testing.assert_allclose(answer.median, expected.median, atol=1e-4)
        np.testing.assert_allclose(answer.class_probability, expected.class_probability, atol=1e-4)
        assert loaded.targets == regressor.targets and loaded.shape == regressor.shape


def test_registered_model_is_the_file_that_the_registry_hands_out(onnx_path, monkeypatch):
    from darkarc.tracking import registry

    asked = []
    monkeypatch.setattr(registry, "download_model", lambda uri: asked.append(uri) or onnx_path)
    assert isinstance(load("models:/axion-mass-regressor@champion"), OnnxRegressor)
    assert asked == ["models:/axion-mass-regressor@champion"]


def test_changed_export_is_refused(exported):
    with (exported / "model.onnx").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0\0")
    with pytest.raises(LoadError, match=r"damaged.*model\.onnx.*export it again"):
        load(exported)


def test_folder_of_an_onnx_file_alone_is_enough(onnx_path):
    assert isinstance(load(onnx_path.parent), OnnxRegressor)


def test_what_cannot_be_loaded_lists_what_can(tmp_path, onnx_path):
    (tmp_path / "weights.pt").write_bytes(b"x")
    cases = {
        tmp_path / "absent": "does not exist",
        tmp_path / "weights.pt": "not a kind of file",
        tmp_path: "holds weights.pt",
        "runs:/abc/model": "no such place",
    }
    for where, reason in cases.items():
        with pytest.raises(LoadError, match=f"{reason}.*models:/NAME@ALIAS.*an .onnx file") as caught:
            load(where)
        assert str(where) in str(caught.value)
    with pytest.raises(LoadError, match="answers on the CPU, not on cuda"):
        load(onnx_path, device="cuda")
