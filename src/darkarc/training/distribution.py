"""One batch over several workers: who takes which samples, and what they add up.

Every worker holds the same weights and takes an equal share of every batch. Losses are divided by counts of
the whole batch, so that gradients only have to be added; batch norms take their statistics from the whole
batch. One step is then, to rounding, that of a single worker.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Value = TypeVar("Value")


class World(Protocol):
    """All workers of a training, seen from one of them; rank 0 keeps the state and speaks."""

    rank: int
    size: int

    def share(self, order: Tensor, batch_size: int) -> tuple[Tensor, int]:
        """Of whole batches one after the other, this worker's samples, and how many a batch."""

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all workers."""

    def add_gradients(self, module: nn.Module) -> None:
        """Replace every gradient by its sum over all workers."""

    def whole_batch(self) -> AbstractContextManager[Any]:
        """Inside, batch norms in training mode see the batches of all workers as one."""

    def agree(self, decide: Callable[[], Value]) -> Value:
        """What rank 0 decides (plain JSON values), on every worker."""

    def wait(self) -> None:
        """Until every worker is here."""


class Alone:
    """One process trains."""

    rank, size = 0, 1

    def share(self, order: Tensor, batch_size: int) -> tuple[Tensor, int]:
        return order, batch_size

    def total(self, tensor: Tensor) -> Tensor:
        return tensor

    def add_gradients(self, module: nn.Module) -> None:
        pass

    def whole_batch(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def agree(self, decide: Callable[[], Value]) -> Value:
        return decide()

    def wait(self) -> None:
        pass


class Workers:
    """The processes of torch.distributed's default group; `device` is this one's."""

    def __init__(self, device: torch.device) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()
        self._device = device

    def share(self, order: Tensor, batch_size: int) -> tuple[Tensor, int]:
        n = batch_size // self.size
        assert n * self.size == batch_size, (batch_size, self.size)
        return order.view(-1, batch_size)[:, self.rank * n : (self.rank + 1) * n].reshape(-1), n

    def total(self, tensor: Tensor) -> Tensor:
        return _sum(tensor)

    def add_gradients(self, module: nn.Module) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        sums = _sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, part in zip(gradients, sums.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def whole_batch(self) -> AbstractContextManager[Any]:
        return _WholeBatchNorms()

    def agree(self, decide: Callable[[], Value]) -> Value:
        text = json.dumps(decide()).encode() if self.rank == 0 else b""
        length = torch.tensor(len(text), device=self._device)
        torch.distributed.broadcast(length, src=0)
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0:
            content = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        content = content.to(self._device)
        torch.distributed.broadcast(content, src=0)
        decided: Value = json.loads(bytes(content.cpu().numpy()))
        return decided

    def wait(self) -> None:
        _sum(torch.zeros((), device=self._device)).item()


class _WholeBatchNorms(TorchFunctionMode):
    """Replaces torch's batch norm, whichever module calls it, on the CPU as on GPUs.

    torch's own SyncBatchNorm knows GPUs alone, and only modules of torch's classes.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,  # the name that torch gives it
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `torch.nn.functional.batch_norm`, over the batches of all workers."""
    if not training:
        return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = torch.ones_like(input[0, :, ...].flatten(1)[:, 0]) if weight is None else weight
    shift = torch.zeros_like(scale) if bias is None else bias
    output, mean, unbiased = _WholeBatchNorm.apply(input, scale, shift, eps)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return output


class _WholeBatchNorm(torch.autograd.Function):
    """(B, C, ...) -> normalised by mean and variance of channels over all workers' samples; also those two.

    Backward (Ioffe & Szegedy, arXiv:1502.03167, section 3), with both of its means over all samples:
    dx = weight / std * (dy - mean(dy) - x_hat * mean(dy * x_hat)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        dims, dtype = [0, *range(2, x.ndim)], torch.promote_types(x.dtype, torch.float32)
        variance, mean = torch.var_mean(x.to(dtype), dims, correction=0)
        n = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)
        mean, variance = mean.double(), variance.double()
        sums = _sum(torch.cat([n * mean, n * (variance + mean**2), n]))
        mean, square = (sums[:-1] / sums[-1]).chunk(2)
        variance = square - mean**2
        deviation = (variance + eps).sqrt()
        shape = [1, -1] + [1] * (x.ndim - 2)
        standard = (x.to(dtype) - mean.to(dtype).view(shape)) / deviation.to(dtype).view(shape)
        ctx.save_for_backward(standard, weight, deviation)
        ctx.n, ctx.dims, ctx.shape, ctx.x_dtype = sums[-1], dims, shape, x.dtype
        unbiased = variance * sums[-1] / (sums[-1] - 1)
        ctx.mark_non_differentiable(mean, unbiased)
        output = standard * weight.to(dtype).view(shape) + bias.to(dtype).view(shape)
        return output.to(x.dtype), mean, unbiased

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        standard, weight, deviation = ctx.saved_tensors
        dy = gradients[0].to(standard.dtype)
        d_bias, d_weight = dy.sum(ctx.dims), (dy * standard).sum(ctx.dims)
        means = _sum(torch.cat([d_bias, d_weight]).double()) / ctx.n
        of_dy, of_product = (part.to(dy.dtype).view(ctx.shape) for part in means.chunk(2))
        factor = (weight / deviation).to(dy.dtype).view(ctx.shape)
        dx = factor * (dy - of_dy - standard * of_product)
        # A worker's own shares: gradients of weights are added later, with all others.
        return dx.to(ctx.x_dtype), d_weight.to(weight.dtype), d_bias.to(weight.dtype), None


def _sum(tensor: Tensor) -> Tensor:
    total = tensor.clone()
    torch.distributed.all_reduce(total)
    return total
