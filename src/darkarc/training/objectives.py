"""What is minimised and what is watched: losses of heads and classes, and the validation pass."""

import torch
from torch import Tensor
from torch.nn import functional

from darkarc.config import TrainConfig
from darkarc.data.batches import Batch, ImageSource
from darkarc.models import Grid, Regressor

VALIDATION_BATCH = 512


def target_losses(regressor: Regressor, outputs: Tensor, truth: Tensor, label_sigma: float) -> Tensor:
    """(B, T) negative log density of each truth, in nats; 0 where a sample has no such target.

    outputs (B, T, n_outputs), truth (B, T) with nan where it is not defined.
    """
    # A (B, 1) against a (B,) would broadcast to (B, B) and train on nonsense.
    assert outputs.shape[:2] == truth.shape, (outputs.shape, truth.shape)
    losses = []
    for t, grid in enumerate(regressor.grids):
        assert isinstance(grid, Grid)
        column = truth[:, t]
        known = column.isfinite()
        safe = torch.where(known, column, torch.full_like(column, (grid.low + grid.high) / 2))
        loss = regressor.head.loss(outputs[:, t], safe, grid, label_sigma)
        assert loss.shape == column.shape, (loss.shape, column.shape)
        losses.append(torch.where(known, loss, torch.zeros_like(loss)))
    return torch.stack(losses, dim=1)


def objective(regressor: Regressor, batch: Batch, train: TrainConfig, counts: Tensor | None = None) -> Tensor:
    """Scalar loss of a batch: mean of each target over the samples that have it, plus the classes' and the
    auxiliary truths'.

    counts: `label_counts` of the whole batch of which this one is a part; the losses of the parts, and so
    their gradients, then sum to those of the whole.
    """
    if counts is None:
        counts = label_counts(batch)
    n_targets = batch.truth.shape[1]
    known, n_samples, known_auxiliary = counts.clamp_min(1).split([n_targets, 1, batch.auxiliary.shape[1]])
    features = regressor.features(batch.images)
    outputs, class_logits = regressor.answers(features)
    losses = target_losses(regressor, outputs, batch.truth, train.label_sigma_dex)
    class_loss = functional.cross_entropy(class_logits, batch.classes, reduction="sum") / n_samples.squeeze()
    total = (losses.sum(dim=0) / known).sum() + train.class_weight * class_loss
    if regressor.auxiliary_layer is not None:
        with torch.autocast(features.device.type, enabled=False):
            errors = auxiliary_errors(regressor.auxiliary_layer(features), batch.auxiliary)
        total = total + train.auxiliary_weight * (errors.sum(dim=0) / known_auxiliary).sum()
    return total


def label_counts(batch: Batch) -> Tensor:
    """(T + 1 + A,) float32: how many samples know each target, how many there are, and how many know each
    auxiliary truth. Counts of parts sum to those of the whole."""
    columns = batch.truth.isfinite(), torch.ones_like(batch.truth[:, :1]), batch.auxiliary.isfinite()
    return torch.cat([column.float() for column in columns], dim=1).sum(dim=0)


def parts_of(batch: Batch, n: int) -> list[Batch]:
    """A batch in `n` parts of equal size, to one sample."""
    columns = [column.tensor_split(n) for column in batch]
    return [Batch(*part) for part in zip(*columns, strict=True)]


def auxiliary_errors(estimates: Tensor, truth: Tensor) -> Tensor:
    """(B, A) squared errors of the estimates; 0 where a sample does not know the truth."""
    assert estimates.shape == truth.shape, (estimates.shape, truth.shape)
    known = truth.isfinite()
    return torch.where(known, estimates - torch.where(known, truth, 0.0), 0.0) ** 2


@torch.inference_mode()
def validate(regressor: Regressor, source: ImageSource, train: TrainConfig) -> dict[str, float]:
    """`val_loss` (as the training objective), `val_mae_dex` of the first target, of the others
    `val_mae_<target>`, and `val_class_accuracy`, over a whole split."""
    regressor.eval()
    known = source.truth.isfinite()
    sums = torch.zeros(2, len(regressor.targets), dtype=torch.float64, device=source.device)
    class_sums = torch.zeros(2, dtype=torch.float64, device=source.device)
    for indices in torch.arange(len(source), device=source.device).split(VALIDATION_BATCH):
        batch = source.batch(indices)
        outputs, class_logits = regressor.head_outputs(batch.images)
        prediction = regressor.summarise(outputs, class_logits)
        sums[0] += target_losses(regressor, outputs, batch.truth, train.label_sigma_dex).double().sum(dim=0)
        error = torch.where(known[indices], (prediction.median - batch.truth).abs(), 0.0)
        assert error.shape == batch.truth.shape, (error.shape, batch.truth.shape)
        sums[1] += error.double().sum(dim=0)
        class_sums[0] += functional.cross_entropy(class_logits, batch.classes, reduction="sum").double()
        class_sums[1] += (class_logits.argmax(dim=1) == batch.classes).sum()
    nll, mae = (sums / known.sum(dim=0)).tolist()
    class_loss, accuracy = (class_sums / len(source)).tolist()
    metrics = {"val_loss": sum(nll) + train.class_weight * class_loss, "val_mae_dex": mae[0]}
    metrics |= {f"val_mae_{name}": mae[t] for t, name in enumerate(regressor.targets) if t > 0}
    return metrics | {"val_class_accuracy": accuracy}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The arithmetic of a training step; validation and answers are always float32."""
    enabled = precision == "bfloat16" or (precision == "auto" and has_bfloat16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
