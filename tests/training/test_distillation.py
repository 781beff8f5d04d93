"""A student learns its teacher's densities, and only a teacher that fits is taken."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from darkarc.config import parse
from darkarc.data.batches import ImageSource
from darkarc.models import Regressor, save_regressor
from darkarc.tracking import NullTracker
from darkarc.training import new_regressor, train, training_digest
from darkarc.training.distillation import Teacher, TeacherError, teacher_of
from darkarc.training.fit_novelty import fit_novelty
from darkarc.training.objectives import objective

PLAIN = {"recalibration": "none", "novelty": "none", "dropout": 0.0, "stochastic_depth": 0.0}


@pytest.fixture
def teacher(prepared, settings, tmp_path) -> Regressor:
    result = train(
        settings(model=PLAIN, epochs=30, learning_rate=1e-2), prepared, workdir=tmp_path / "teacher-work",
        tracker=NullTracker(), progress=False,
    )  # fmt: skip
    save_regressor(result.regressor, tmp_path / "teacher")
    return result.regressor


def divergence(teacher: Regressor, student: Regressor, images: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of the densities, in nats."""
    theirs, ours = teacher.predict(images), student.predict(images)
    return float(np.mean(np.sum(theirs.probability * np.log(theirs.density / ours.density), axis=1)))


def test_a_teacher_has_nothing_to_teach_itself(teacher, prepared, settings):
    batch = ImageSource(prepared, "train", settings().targets).batch(torch.arange(20))
    truths = settings(model=PLAIN).train

    @torch.no_grad()
    def loss(weight: float | None) -> float:
        taught = None if weight is None else Teacher(teacher, weight)
        return float(objective(teacher, batch, truths, None, taught))

    assert loss(1.0) == pytest.approx(0, abs=1e-4)
    assert loss(0.0) == pytest.approx(loss(None))
    assert loss(0.5) == pytest.approx(0.5 * loss(None), rel=1e-4)


def test_the_student_learns_what_the_teacher_says_whatever_the_truth(teacher, prepared, settings, tmp_path):
    """A teacher that gives one and the same narrow density for every image."""
    with torch.no_grad():
        teacher.target_layer.weight.zero_()
        teacher.target_layer.bias.copy_(-0.5 * ((torch.arange(32) - 8.0) / 2) ** 2)
    save_regressor(teacher, tmp_path / "narrow")
    found = {}
    for weight in (0.0, 1.0):
        config = settings(
            model=PLAIN, seed=3, epochs=40, learning_rate=1e-2, teacher=str(tmp_path / "narrow"),
            distillation_weight=weight,
        )  # fmt: skip
        result = train(config, prepared, workdir=tmp_path / "work", tracker=NullTracker(), progress=False)
        found[weight] = divergence(teacher, result.regressor, prepared.images(slice(70, 100)))
    assert found[1.0] < 0.2 * found[0.0], found


def test_a_teacher_takes_no_image_for_strange(prepared, settings):
    """What it was never shown unaugmented would else be taught as unknown."""
    torch.manual_seed(0)
    config = settings(model={"dropout": 0.0, "stochastic_depth": 0.0})
    teacher = new_regressor(config, prepared).eval()
    torch.nn.init.normal_(teacher.target_layer.weight, std=0.05)
    fit_novelty(config, teacher, prepared)
    images = ImageSource(prepared, "train", config.targets).batch(torch.arange(20)).images
    strange = images + 0.2 * torch.randn_like(images)
    with torch.inference_mode():
        ordinary = teacher(strange).density
        teacher.recalibrations[0].by_novelty[1, 1:] = 0.1
        assert float(teacher(strange).novelty.min()) > 1 and not torch.allclose(
            teacher(strange).density, ordinary
        )
        torch.testing.assert_close(teacher.of_ordinary(strange).density, ordinary)
        outputs, classes = teacher.head_outputs(strange)
        lost = Teacher(teacher, 1.0).loss(
            teacher, strange, outputs, classes, torch.ones(20, 1, dtype=torch.bool)
        )
    assert float(lost[0].abs().max()) < 1e-4


def test_another_teacher_is_another_training(teacher, prepared, settings, tmp_path):
    config = settings(model=PLAIN, teacher=str(tmp_path / "teacher"))
    before = training_digest(config, prepared)
    with torch.no_grad():
        teacher.class_layer.bias += 1
    save_regressor(teacher, tmp_path / "teacher")
    assert training_digest(config, prepared) != before
    assert training_digest(settings(model=PLAIN), prepared) != before


def test_a_teacher_that_does_not_fit_is_refused(teacher, tmp_path):
    train_section = parse({"train": {"teacher": str(tmp_path / "teacher")}}).train
    assert teacher_of(parse({}).train, teacher) is None
    other = Regressor(replace(teacher.spec, model=teacher.spec.model | {"bins": 16}))
    with pytest.raises(TeacherError, match="has bins 32, the student 16"):
        teacher_of(train_section, other)
    elsewhere = parse({"train": {"teacher": str(tmp_path / "nowhere")}}).train
    with pytest.raises(TeacherError, match="give the folder of a training"):
        teacher_of(elsewhere, teacher)
