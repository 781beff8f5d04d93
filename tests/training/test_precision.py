"""`train.precision`: which numbers a training step computes in, and that answers are always float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darkarc.config import Config
from darkarc.data.batches import ImageSource
from darkarc.data.store import Store
from darkarc.training import engine, new_regressor
from darkarc.training.distribution import Alone
from darkarc.training.objectives import validate
from darkarc.training.optimisers import build_optimiser
from darkarc.training.profiling import NoClock

Settings = Callable[..., Config]
HALF, FULL = torch.bfloat16, torch.float32


def types_of(config: Config, prepared: Store, *, step: bool) -> dict[str, set[torch.dtype]]:
    """Of what convolutions and the last layers give in a step of training, or in a validation."""
    regressor = new_regressor(config, prepared)
    seen: dict[str, set[torch.dtype]] = {"convolutions": set(), "last layers": set()}

    def note(kind: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: seen[kind].add(output.dtype)

    for module in regressor.backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note("convolutions"))
    for layer in (regressor.target_layer, regressor.class_layer):
        layer.register_forward_hook(note("last layers"))
    source = ImageSource(prepared, "validation", config.targets)
    if step:
        optimiser, batch = build_optimiser(regressor, config.train), source.batch(torch.arange(16))
        loss = engine.take_step(regressor.train(), optimiser, batch, 1e-3, config.train, Alone(), NoClock())
        assert loss.dtype == torch.float64 and loss.isfinite()
        assert {weight.dtype for weight in regressor.parameters()} == {FULL}
    else:
        validate(regressor, source, config.train)
    return seen


@pytest.mark.parametrize(("precision", "expected"), [("bfloat16", HALF), ("float32", FULL)])
def test_a_step_computes_in_it_up_to_the_heads(
    prepared: Store, settings: Settings, precision: str, expected: torch.dtype
) -> None:
    found = types_of(settings(precision=precision), prepared, step=True)
    assert found == {"convolutions": {expected}, "last layers": {FULL}}


def test_validation_is_float32_whatever_it_is(prepared: Store, settings: Settings) -> None:
    found = types_of(settings(precision="bfloat16"), prepared, step=False)
    assert found == {"convolutions": {FULL}, "last layers": {FULL}}


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"), [(False, False, FULL), (True, False, HALF), (False, True, HALF)]
)
def test_auto_asks_the_processor_whether_it_multiplies_bfloat16(
    prepared: Store,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    avx512: bool,
    amx: bool,
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    found = types_of(settings(precision="auto"), prepared, step=True)
    assert found["convolutions"] == {expected}
