"""Every byte of an exported file counts: whichever changes, it is noticed."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from darkarc.serving.onnx_file import OnnxError, read_onnx
from darkarc.serving.onnx_seal import SEAL_KEY, is_whole, seal


def test_any_changed_byte_is_noticed(onnx_path: Path, tmp_path: Path) -> None:
    content = onnx_path.read_bytes()
    assert read_onnx(onnx_path).content == content
    generator = np.random.default_rng(7)
    for position in [0, 1, len(content) - 1, *generator.integers(0, len(content), 60)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        path = tmp_path / "damaged.onnx"
        path.write_bytes(damaged)
        with pytest.raises(OnnxError, match=r"damaged\.onnx"):
            read_onnx(path)
    for length in generator.integers(1, len(content), 12):
        path.write_bytes(content[:length])
        with pytest.raises(OnnxError, match=r"damaged\.onnx"):
            read_onnx(path)


def test_a_changed_weight_is_named_as_damage(onnx_path: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = weight.raw_data[:-1] + bytes([weight.raw_data[-1] ^ 1])
    path = tmp_path / "weight.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(OnnxError, match="damaged or changed"):
        read_onnx(path)
    path.write_bytes(seal(model))
    assert read_onnx(path).spec == read_onnx(onnx_path).spec


def test_a_seal_is_replaced_not_repeated(onnx_path: Path) -> None:
    model = onnx.load(onnx_path)
    content = seal(model)
    assert content == onnx_path.read_bytes()
    assert [entry.key for entry in model.metadata_props].count(SEAL_KEY) == 1
    del model.metadata_props[-1]
    assert not is_whole(model, model.SerializeToString())
