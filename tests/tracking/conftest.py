"""Settings, a run, a store and small real models for each test."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from darkarc import config
from darkarc.data.store import Store, StoreWriter
from darkarc.tracking import open_client, tracking_uri
from darkarc.tracking.location import experiment_id

SIDE = 8


@pytest.fixture
def settings() -> config.Config:
    return config.parse({"seed": 7, "tracking": {"system_metrics": False, "patience_s": 0}})


@pytest.fixture
def finished_run(project: Path) -> str:
    client = open_client()
    run = client.create_run(experiment_id(client, tracking_uri(), "darkarc"), run_name="train")
    client.set_terminated(run.info.run_id)
    return run.info.run_id


@pytest.fixture
def store(tmp_path: Path) -> Store:
    writer = StoreWriter(
        tmp_path / "prepared",
        name="small",
        origin="simulated",
        instrument="model_iii",
        shape=(SIDE, SIDE),
        dtype="float32",
        parameters={"seed": 7},
    )
    images = np.random.default_rng(0).normal(size=(3, SIDE, SIDE)).astype(np.float32)
    writer.append(images, {"sample_id": ["a", "b", "c"], "class": ["cdm"] * 3, "group_id": ["a", "b", "c"]})
    return writer.commit()


@pytest.fixture
def make_onnx(tmp_path: Path) -> Callable[..., Path]:
    """Maker of a linear model: images (B, 1, 8, 8) -> median (B, 1), class_probability (B, 3)."""

    def make(name: str = "model.onnx", scale: float = 1.0, batch: str | int = "batch") -> Path:
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 1, SIDE, SIDE])
        median = helper.make_tensor_value_info("median", TensorProto.FLOAT, [batch, 1])
        classes = helper.make_tensor_value_info("class_probability", TensorProto.FLOAT, [batch, 3])
        weight = np.linspace(-scale, scale, SIDE * SIDE, dtype=np.float32).reshape(-1, 1)
        logits = np.random.default_rng(0).normal(size=(SIDE * SIDE, 3)).astype(np.float32)
        graph = helper.make_graph(
            [
                helper.make_node("Flatten", ["images"], ["flat"], axis=1),
                helper.make_node("MatMul", ["flat", "weight"], ["median"]),
                helper.make_node("MatMul", ["flat", "logits"], ["scores"]),
                helper.make_node("Softmax", ["scores"], ["class_probability"], axis=1),
            ],
            "linear",
            [images],
            [median, classes],
            [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(logits, "logits")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return make
