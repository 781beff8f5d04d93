"""Every head's density survives the exchange format: one small graph of them all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from darkarc.config import ModelConfig
from darkarc.models import HEADS, Grid


class AllHeads(nn.Module):
    """(B, most) numbers -> (B, heads, K) bin probabilities."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.grid = Grid(-24.0, -22.0, 32)
        self.heads = [HEADS[name](ModelConfig(head=name, bins=32)) for name in names]
        self.n_outputs = max(head.n_outputs for head in self.heads)

    def forward(self, outputs: Tensor) -> Tensor:
        parts = [head.logits(outputs[:, : head.n_outputs], self.grid) for head in self.heads]
        return torch.stack(parts, dim=1).softmax(dim=2)


@pytest.mark.filterwarnings("ignore")  # the exporter's own advice
def test_every_head_is_the_same_in_onnx(tmp_path: Path) -> None:
    import onnxruntime

    made = AllHeads(list(HEADS)).eval()
    program = torch.onnx.export(
        made,
        (torch.zeros(2, made.n_outputs),),
        dynamo=True,
        input_names=["outputs"],
        output_names=["probability"],
        dynamic_shapes={"outputs": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    path = tmp_path / "heads.onnx"
    path.write_bytes(program.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = 2 * torch.randn(9, made.n_outputs, generator=torch.Generator().manual_seed(0))
    expected = made(outputs).numpy()
    (found,) = session.run(["probability"], {"outputs": outputs.numpy()})
    for number, name in enumerate(HEADS):
        np.testing.assert_allclose(found[:, number], expected[:, number], atol=5e-5, err_msg=name)
        assert np.ptp(expected[:, number], axis=0).max() > 1e-3, name
