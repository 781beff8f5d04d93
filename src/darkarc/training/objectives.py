"""What is minimised and what is watched: losses of heads and classes, and the validation pass."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from darkarc.config import TrainConfig
from darkarc.data.batches import Batch, ImageSource
from darkarc.models import Grid, Regressor
from darkarc.models.heads import PointHead
from darkarc.training.distillation import Teacher
from darkarc.training.losses import LOSSES, finish, nll, prior_cross_entropy

VALIDATION_BATCH = 512

TargetLoss = Callable[[Tensor, Tensor, Grid], Tensor]
"""(outputs of one target (B, n_outputs), truths (B,), its grid) -> (B,)."""


def per_target(regressor: Regressor, outputs: Tensor, truth: Tensor, loss_of: TargetLoss) -> Tensor:
    """(B, T) loss of each truth; 0 where a sample has no such target.

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
        loss = loss_of(outputs[:, t], safe, grid)
        assert loss.shape == column.shape, (loss.shape, column.shape)
        losses.append(torch.where(known, loss, torch.zeros_like(loss)))
    return torch.stack(losses, dim=1)


def target_nll(regressor: Regressor, outputs: Tensor, truth: Tensor, train: TrainConfig) -> Tensor:
    """(B, T) negative log density of each truth, in nats, whatever the objective; as `per_target`."""
    head = regressor.head
    return per_target(regressor, outputs, truth, lambda o, y, grid: nll(head, o, y, grid, train))


def target_losses(regressor: Regressor, outputs: Tensor, truth: Tensor, train: TrainConfig) -> Tensor:
    """(B, T) what `train.objective` says of each truth, labels as they are; as `per_target`."""
    head, loss = regressor.head, LOSSES[train.objective]
    return per_target(regressor, outputs, truth, lambda o, y, grid: loss(head, o, y, grid, train))


def smoothed_losses(regressor: Regressor, outputs: Tensor, truth: Tensor, train: TrainConfig) -> Tensor:
    """As `target_losses`, each label mixed with a share `train.label_smoothing` of the prior."""
    losses, share = target_losses(regressor, outputs, truth, train), train.label_smoothing
    if not share:
        return losses
    head = regressor.head
    prior = per_target(regressor, outputs, truth, lambda o, y, grid: prior_cross_entropy(head, o, grid))
    return (1 - share) * losses + share * prior


def label_counts(batch: Batch) -> Tensor:
    """(T + 1 + A,) float32: how many samples know each target, how many there are, and how many know each
    auxiliary truth. Counts of parts sum to those of the whole."""
    columns = batch.truth.isfinite(), torch.ones_like(batch.truth[:, :1]), batch.auxiliary.isfinite()
    return torch.cat([column.float() for column in columns], dim=1).sum(dim=0)


def parts_of(batch: Batch, n: int) -> list[Batch]:
    """A batch in `n` parts of equal size, to one sample."""
    columns = [column.tensor_split(n) for column in batch]
    return [Batch(*part) for part in zip(*columns, strict=True)]


def objective(
    regressor: Regressor,
    batch: Batch,
    train: TrainConfig,
    counts: Tensor | None = None,
    teacher: Teacher | None = None,
) -> Tensor:
    """Scalar loss of a batch: mean of each target over the samples that have it, plus the classes' and the
    auxiliary truths'. In training mode labels are smoothed and pairs mixed, as `train` says. A teacher's
    answers take the place of a share of the truths of targets and classes.

    counts: `label_counts` of the whole batch of which this one is a part; the losses of the parts, and so
    their gradients, then sum to those of the whole (but for rmse).
    """
    if counts is None:
        counts = label_counts(batch)
    sizes = [batch.truth.shape[1], 1, batch.auxiliary.shape[1]]
    known, n_samples, known_auxiliary = counts.clamp_min(1).split(sizes)
    images, labels = mixed(batch, train) if regressor.training else (batch.images, [(1.0, batch)])
    losses_of = smoothed_losses if regressor.training else target_losses
    features = regressor.features(images)
    outputs, class_logits = regressor.answers(features)
    # Half precision ends at the features.
    with torch.autocast(features.device.type, enabled=False):
        target_sum = sum_over(labels, lambda part: losses_of(regressor, outputs, part.truth, train))
        if teacher is not None:
            taught, taught_classes = teacher.loss(
                regressor, images, outputs, class_logits, batch.truth.isfinite()
            )
            target_sum = torch.lerp(target_sum, taught.sum(dim=0), teacher.weight)
        means = finish(train.objective, target_sum / known)
        total = weighted(means, regressor, train).sum()
        class_sum = sum_over(
            labels, lambda part: functional.cross_entropy(class_logits, part.classes, reduction="none")
        )
        if teacher is not None:
            class_sum = torch.lerp(class_sum, taught_classes.sum(), teacher.weight)
        total = total + train.class_weight * class_sum / n_samples.squeeze()
        if isinstance(regressor.head, PointHead):
            total = total + _width_term(regressor, features, labels, known, train)
        if regressor.auxiliary_layer is not None:
            estimates = regressor.auxiliary_layer(features)
            errors = sum_over(labels, lambda part: auxiliary_errors(estimates, part.auxiliary))
            total = total + train.auxiliary_weight * (errors / known_auxiliary).sum()
    return total


def weighted(means: Tensor, regressor: Regressor, train: TrainConfig) -> Tensor:
    """(T,) means of the targets' losses, each times its `train.target_weight`."""
    weights = [train.target_weight.get(name, 1.0) for name in regressor.targets]
    # Plain numbers, not a tensor: a GPU would wait for one that comes from the host.
    return torch.stack([mean * weight for mean, weight in zip(means.unbind(), weights, strict=True)])


def auxiliary_errors(estimates: Tensor, truth: Tensor) -> Tensor:
    """(B, A) squared errors of the estimates; 0 where a sample does not know the truth."""
    assert estimates.shape == truth.shape, (estimates.shape, truth.shape)
    known = truth.isfinite()
    return torch.where(known, estimates - torch.where(known, truth, 0.0), 0.0) ** 2


def _width_term(
    regressor: Regressor, features: Tensor, labels: "Labels", counts: Tensor, train: TrainConfig
) -> Tensor:
    """Of a point head: 0, with the slope of the errors' negative log density along their width.

    The width is read from features that it does not move: the estimate and the backbone know the point loss
    alone, and the loss that is watched is the point loss.
    """
    outputs, _ = regressor.answers(features.detach())
    term = (sum_over(labels, lambda part: target_nll(regressor, outputs, part.truth, train)) / counts).sum()
    return term - term.detach()


Labels = list[tuple[float, Batch]]
"""Shares and whose labels they are; they sum to 1."""


def sum_over(labels: Labels, losses_of: Callable[[Batch], Tensor]) -> Tensor:
    """Losses (B, ...) under each part of the labels, times its share, summed over the samples."""
    return torch.stack([share * losses_of(part).sum(dim=0) for share, part in labels]).sum(dim=0)


def mixed(batch: Batch, train: TrainConfig) -> tuple[Tensor, Labels]:
    """Mixup (Zhang et al., arXiv:1710.09412): images, each with a share of another one of the batch, and the
    labels with theirs. One share a batch, from Beta(a, a) with a = `train.mixup`; a > 0.

    For a histogram this is the mixture of the two; every other loss is mixed as it is. The draws come from
    torch's generators (the share on the host, the pairs on the device), which the loop seeds with (seed,
    step).
    """
    if not train.mixup:
        return batch.images, [(1.0, batch)]
    a = torch.tensor(train.mixup, dtype=torch.float64)
    share = float(torch.distributions.Beta(a, a).sample())
    partner = torch.randperm(len(batch.classes), device=batch.classes.device)
    others = Batch(*(column[partner] for column in batch))
    with torch.autocast(batch.images.device.type, enabled=False):
        images = share * batch.images.float() + (1 - share) * others.images.float()
    return images, [(share, batch), (1 - share, others)]


@torch.inference_mode()
def validate(regressor: Regressor, source: ImageSource, train: TrainConfig) -> dict[str, float]:
    """`val_loss` (the training objective, without what only training has), `val_mae_dex` of the first target,
    of the others `val_mae_<target>`, and `val_class_accuracy`, over a whole split."""
    regressor.eval()
    known = source.truth.isfinite()
    sums = torch.zeros(2, len(regressor.targets), dtype=torch.float64, device=source.device)
    class_sums = torch.zeros(2, dtype=torch.float64, device=source.device)
    for indices in torch.arange(len(source), device=source.device).split(VALIDATION_BATCH):
        batch = source.batch(indices)
        outputs, class_logits = regressor.head_outputs(batch.images)
        prediction = regressor.summarise(outputs, class_logits)
        sums[0] += target_losses(regressor, outputs, batch.truth, train).double().sum(dim=0)
        error = torch.where(known[indices], (prediction.median - batch.truth).abs(), 0.0)
        assert error.shape == batch.truth.shape, (error.shape, batch.truth.shape)
        sums[1] += error.double().sum(dim=0)
        class_sums[0] += functional.cross_entropy(class_logits, batch.classes, reduction="sum").double()
        class_sums[1] += (class_logits.argmax(dim=1) == batch.classes).sum()
    losses, errors = sums / known.sum(dim=0)
    losses = weighted(finish(train.objective, losses), regressor, train)
    loss, mae = float(losses.sum()), errors.tolist()
    class_loss, accuracy = (class_sums / len(source)).tolist()
    metrics = {"val_loss": loss + train.class_weight * class_loss, "val_mae_dex": mae[0]}
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
