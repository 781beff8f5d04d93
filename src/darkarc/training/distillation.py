"""Knowledge distillation: a student learns the densities of a teacher, not only the truth.

A teacher's density says how far an image tells its mass at all, which one true value does not (Hinton,
Vinyals & Dean 2015, arXiv:1503.02531). The teacher sees the student's images, augmentation included, and
takes none for strange: its novelty knows images as they are, and of an augmented one it would teach that
nothing is known.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from darkarc.config import Config, TrainConfig
from darkarc.models import Grid, Regressor, RegressorError, load_regressor
from darkarc.models.sealed import MANIFEST


class TeacherError(ValueError):
    """A teacher that is not there or speaks of other things than the student."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """weight: share of the teacher in the loss, 0 to 1."""

    regressor: Regressor
    weight: float

    def loss(
        self, student: Regressor, images: Tensor, outputs: Tensor, class_logits: Tensor, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Kullback-Leibler divergences from the teacher's answers to the student's, in nats.

        outputs, class_logits: the student's of these images; known (B, T): where a target means something.
        Gives (B, T), 0 where it does not, and of the classes (B,).
        """
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            answer = self.regressor.of_ordinary(images)
        columns = []
        for t, grid in enumerate(student.grids):
            assert isinstance(grid, Grid)
            taught = answer.density[:, t] * grid.width
            own = student.head.logits(outputs[:, t], grid).log_softmax(dim=1)
            columns.append(functional.kl_div(own, taught, reduction="none").sum(dim=1))
        own_classes = class_logits.log_softmax(dim=1)
        classes = functional.kl_div(own_classes, answer.class_probability, reduction="none").sum(dim=1)
        return torch.where(known, torch.stack(columns, dim=1), 0.0), classes


def teacher_of(train: TrainConfig, student: Regressor) -> Teacher | None:
    """The teacher that `train.teacher` names, on the student's device; None without one.

    Raises `TeacherError` unless it answers the same targets on the same bins for images of the same size.
    """
    if not train.teacher:
        return None
    try:
        teacher = load_regressor(train.teacher, next(student.parameters()).device)
    except RegressorError as error:
        raise TeacherError(f"train.teacher: {error}; give the folder of a training (data/trained)") from error
    theirs, ours = (
        {
            "targets": regressor.spec.targets,
            "shape": tuple(regressor.spec.shape),
            "bins": regressor.spec.model["bins"],
            "instrument": regressor.spec.instrument,
        }
        for regressor in (teacher, student)
    )
    for name, value in theirs.items():
        if value != ours[name]:
            raise TeacherError(
                f"train.teacher: {train.teacher} has {name} {value}, the student {ours[name]}: a student "
                "learns its teacher's densities bin by bin"
            )
    for weight in teacher.parameters():
        weight.requires_grad_(False)
    return Teacher(teacher, train.distillation_weight)


def teacher_digest(config: Config) -> str:
    """SHA-256 of the teacher's manifest, which holds those of its files; "" without a teacher."""
    if not config.train.teacher:
        return ""
    manifest = Path(config.train.teacher) / MANIFEST
    try:
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    except OSError as error:
        raise TeacherError(
            f"train.teacher: {config.train.teacher}: no readable {MANIFEST}, so nothing was trained there"
        ) from error
