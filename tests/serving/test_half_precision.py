"""float16 in the backbone alone: everything else keeps every digit."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from darkarc.serving import OnnxRegressor, variants
from darkarc.serving.half_precision import backbone_in_half
from darkarc.simulation import draw_scenes, render

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "model_iii.onnx"


def graph(weight: str) -> onnx.ModelProto:
    """x -> a sum that float16 cannot hold, and x -> conv -> relu -> mean over pixels; both come out."""
    rng = np.random.default_rng(0)
    tensors = {
        weight: rng.normal(0, 0.3, (4, 1, 3, 3)).astype(np.float32),
        "backbone.bias": rng.normal(0, 0.1, 4).astype(np.float32),
        "large": np.float32(1e6) * np.ones(1, np.float32),
        "axes": np.array([2, 3]),
    }
    nodes = [
        helper.make_node("Add", ["x", "large"], ["shifted"]),
        helper.make_node("Sub", ["shifted", "large"], ["back"]),
        helper.make_node("Conv", ["x", weight, "backbone.bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Add", ["c", "r"], ["s"]),
        helper.make_node("ReduceMean", ["s", "axes"], ["mean"], keepdims=0),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [
            helper.make_tensor_value_info("back", TensorProto.FLOAT, ["n", 1, 8, 8]),
            helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["n", 4]),
        ],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {"x": images})


def test_values_beside_the_backbone_keep_every_bit_and_those_within_are_rounded():
    images = np.random.default_rng(1).normal(0, 1, (3, 1, 8, 8)).astype(np.float32)
    exact = run(graph("backbone.stem.weight"), images)
    model = graph("backbone.stem.weight")
    assert backbone_in_half(model) == 1
    onnx.checker.check_model(model, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds.pop("backbone.stem.weight.half") == kinds.pop("backbone.bias.half") == TensorProto.FLOAT16
    assert set(kinds) == {"large", "axes"}
    # Once in, once out: c, r and s stay in half.
    assert Counter(node.op_type for node in model.graph.node)["Cast"] == 2
    found = run(model, images)
    np.testing.assert_array_equal(found[0], exact[0])
    assert np.any(found[1] != exact[1])
    np.testing.assert_allclose(found[1], exact[1], atol=3e-3)


def test_a_convolution_that_is_no_backbones_stays():
    model = graph("lens.weight")
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("backbone.bias", "lens.bias")
    model.graph.node[2].input[2] = "lens.bias"
    before = model.SerializeToString()
    assert backbone_in_half(model) == 0
    assert onnx.load_from_string(before).graph.node == model.graph.node


@pytest.mark.skipif(not SHIPPED.exists(), reason="the shipped regressors are not in this copy")
def test_a_regressor_with_a_fitted_lens_answers_as_in_float32(tmp_path):
    """With values of eleven bits its fit is so far off that the graph runs out of its own tables."""
    fused = variants._fused(SHIPPED, tmp_path)
    model = onnx.load(fused)
    assert backbone_in_half(model) == 20
    variants._save(model, SHIPPED, tmp_path / "half.onnx")
    exact, half = OnnxRegressor(SHIPPED, threads=1), OnnxRegressor(tmp_path / "half.onnx", threads=1)
    scenes = draw_scenes("model_iii", "axion", 7, range(12))
    images = render("model_iii", scenes, noise="published", seed=7).numpy()
    ours, theirs = half.predict(images), exact.predict(images)
    assert np.any(ours.density != theirs.density)
    assert np.abs((ours.median - theirs.median) / theirs.std).max() < 0.2
    np.testing.assert_allclose(ours.std, theirs.std, rtol=0.02)
    np.testing.assert_allclose(ours.novelty, theirs.novelty, atol=0.05)
