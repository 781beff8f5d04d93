"""Backbones with operations of their own leave for ONNX and answer there as here.

`benchmarks/backbones.py --export` does the same for all of them, in minutes.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from darkarc.serving import OnnxRegressor, export_onnx
from darkarc.serving.export import largest_difference


@pytest.mark.parametrize("name", ["arc_graph", "d4_resnet", "xresnet_hybrid", "cvt_13"])
def test_onnx_equals_torch(make_regressor, lenses, tmp_path: Path, name: str) -> None:
    regressor = make_regressor(backbone=name, width=0.25)
    exported = OnnxRegressor(export_onnx(regressor, tmp_path / "model.onnx"), threads=1)
    images = torch.from_numpy(np.round(lenses[:9, None], 2))  # rounded: equally bright pixels occur
    for batch in (1, 9):
        with torch.inference_mode():
            expected = regressor(images[:batch])
        assert largest_difference(expected, exported(images[:batch]), regressor) < 1e-4
    assert np.ptp(expected.median.numpy()) > 1e-3
