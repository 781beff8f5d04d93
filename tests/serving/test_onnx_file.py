"""An ONNX file is refused, by name and reason, unless it is exactly what `darkarc export` writes."""

import json
import os
import pickle

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from darkarc.serving import OnnxError, OnnxRegressor
from darkarc.serving.onnx_file import SPEC_KEY, read_onnx
from darkarc.serving.onnx_seal import seal


@pytest.fixture
def model(onnx_path) -> onnx.ModelProto:
    return onnx.load(onnx_path)


@pytest.fixture
def refused(tmp_path):
    """Asserts that a model, or bytes, is refused with a message that names the file."""

    def check(content: onnx.ModelProto | bytes, match: str) -> None:
        path = tmp_path / "hostile.onnx"
        path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
        with pytest.raises(OnnxError, match=match) as caught:
            OnnxRegressor(path)
        assert str(path) in str(caught.value)

    return check


def spec_entry(model: onnx.ModelProto) -> onnx.StringStringEntryProto:
    return next(entry for entry in model.metadata_props if entry.key == SPEC_KEY)


def change_spec(model: onnx.ModelProto, changes: dict) -> onnx.ModelProto:
    entry = spec_entry(model)
    entry.value = json.dumps(json.loads(entry.value) | changes)
    return model


class TestNotAModel:
    def test_other_files(self, refused, onnx_path):
        refused(b"", "holds no graph")
        refused(b"\x93NUMPY not a model", "not an ONNX file")
        refused(pickle.dumps({"a": 1}), "not an ONNX file|holds no graph")
        refused(onnx_path.read_bytes()[:5000], "not an ONNX file, or a damaged one")

    def test_folder_pipe_and_nothing(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.onnx")
        for path, reason in ((tmp_path, "expected a file"), (tmp_path / "pipe.onnx", "expected a file")):
            with pytest.raises(OnnxError, match=reason):
                OnnxRegressor(path)
        with pytest.raises(OnnxError, match="cannot read it: No such file"):
            OnnxRegressor(tmp_path / "absent.onnx")

    def test_too_large_is_refused_unread(self, onnx_path):
        size = onnx_path.stat().st_size
        with pytest.raises(OnnxError, match="is more than the"):
            read_onnx(onnx_path, max_bytes=size - 1)
        assert read_onnx(onnx_path, max_bytes=size).spec.shape == (64, 64)


class TestReachesBeyondItself:
    def secret(self, tmp_path):
        path = tmp_path / "secret.bin"
        path.write_bytes(np.arange(4, dtype=np.float32).tobytes())
        return path

    @pytest.mark.parametrize("location", ["secret.bin", "../secret.bin", "/etc/passwd"])
    def test_weights_in_another_file(self, refused, model, tmp_path, location):
        self.secret(tmp_path)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        refused(model, "lies in another file")

    def test_constant_in_another_file(self, refused, model, tmp_path):
        self.secret(tmp_path)
        value = TensorProto(name="leak", data_type=TensorProto.FLOAT, dims=[4])
        value.data_location = TensorProto.EXTERNAL
        value.external_data.add(key="location", value="secret.bin")
        model.graph.node.insert(0, helper.make_node("Constant", [], ["leaked"], value=value))
        refused(model, "'leak' lies in another file")

    def test_sparse_tensors_in_another_file(self, refused, model):
        model.graph.sparse_initializer.add().values.external_data.add(key="location", value="x")
        refused(model, "lies in another file")

    def test_operators_of_others(self, refused, model):
        custom = helper.make_node("Evil", ["images"], ["evil"], domain="com.example")
        model.graph.node.append(custom)
        refused(model, "custom operators of 'com.example'")
        del model.graph.node[-1]
        model.opset_import.add(domain="com.microsoft", version=1)
        refused(model, "custom operators of 'com.microsoft'")

    def test_loops_branches_and_functions(self, refused, model):
        body = helper.make_graph([], "body", [], [])
        model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))
        refused(model, "Loop holds a graph of its own")
        del model.graph.node[-1]
        model.functions.add(name="f", domain="")
        refused(model, "functions or graphs beside")
        del model.functions[:]
        model.training_info.add()
        refused(model, "functions or graphs beside")

    def test_a_scan_may_hold_a_straight_line_and_nothing_else(self, refused, model):
        def with_scan(*nodes, kind="Scan", **attributes):
            del model.graph.node[n:]
            body = helper.make_graph(list(nodes), "body", [], [])
            model.graph.node.append(helper.make_node(kind, [], [], body=body, **attributes))
            return model.graph.node[-1]

        n = len(model.graph.node)
        inner = helper.make_graph([], "inner", [], [])
        with_scan(helper.make_node("Scan", [], [], body=inner))
        refused(model, "Scan holds a graph of its own")
        with_scan(helper.make_node("If", ["c"], [], then_branch=inner, else_branch=inner))
        refused(model, "If holds a graph of its own")
        with_scan(second=inner)
        refused(model, "Scan holds a graph of its own")
        with_scan(helper.make_node("Evil", ["x"], ["y"], domain="com.example"))
        refused(model, "custom operators of 'com.example'")
        value = TensorProto(name="leak", data_type=TensorProto.FLOAT, dims=[4])
        value.data_location = TensorProto.EXTERNAL
        with_scan(helper.make_node("Constant", [], ["leaked"], value=value))
        refused(model, "'leak' lies in another file")


class TestNotOurs:
    def test_without_our_description(self, refused, model):
        other = onnx.ModelProto.FromString(model.SerializeToString())
        other.metadata_props.remove(spec_entry(other))
        refused(other, "was not written by `darkarc export`")
        other.metadata_props.extend([spec_entry(model), spec_entry(model)])
        refused(other, "found 2")

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"targets": 3}', "[" * 100_000, "null"])
    def test_description_that_is_none(self, refused, model, text):
        spec_entry(model).value = text
        refused(model, "does not describe a regressor")

    def test_description_too_long(self, refused, model):
        spec_entry(model).value = " " * (5 * 1024**2)
        refused(model, "damaged or hostile")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"schema_version": 99}, "schema version 99"),
            ({"classes": ["a", "b", "c"]}, "expected the classes"),
            ({"targets": {"price": [0, 1]}}, "expected targets among"),
            ({"targets": {"log10_axion_mass_ev": [-22, -24]}}, "which is no range"),
            ({"targets": {"log10_axion_mass_ev": [float("-inf"), -22]}}, "which is no range"),
            ({"model": {"colour": "blue"}}, "colour"),
            (
                {"model": {"bins": 128}},
                r"'density' as float32 \(batch, 1, 128\).*found float32 \(batch, 1, 64\)",
            ),
            ({"shape": [150, 150]}, r"'images' as float32 \(batch, 1, 150, 150\)"),
        ],
    )
    def test_description_that_does_not_fit(self, refused, model, changes, message):
        refused(change_spec(model, changes), message)

    def test_frozen_batch_other_type_and_missing_output(self, refused, model):
        batch = model.graph.input[0].type.tensor_type.shape.dim[0]
        batch.dim_value = 2
        refused(model, r"expected 'images' as float32 \(batch, 1, 64, 64\).*found float32 \(2, 1, 64, 64\)")
        batch.dim_param = "n"
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
        refused(model, "found element type 11")
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
        median = model.graph.output.pop(1)
        refused(model, "'median'.*found no such")
        model.graph.output.insert(1, median)
        model.graph.input.add(name="more")
        refused(model, "no regressor has: more")

    def test_graph_that_does_not_compute(self, refused, model):
        model.graph.node[5].input[0] = "nowhere"
        refused(seal(model), "ONNX Runtime refuses it")


def test_answers_only_for_images_of_its_shape(onnx_path):
    regressor = OnnxRegressor(onnx_path, threads=1)
    with pytest.raises(ValueError, match="takes images of 64 x 64 pixels"):
        regressor.predict(np.zeros((2, 150, 150)))
    with pytest.raises(ValueError, match="knows log10_axion_mass_ev, not 'price'"):
        regressor.predict(np.zeros((2, 64, 64)), target="price")
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(regressor)
