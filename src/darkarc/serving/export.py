"""A regressor as one ONNX file: dynamic batch, preprocessing inside, its description in the metadata."""

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from darkarc.models import QUANTILE_LEVELS, Posterior, Prediction, Regressor, RegressorSpec
from darkarc.serving.onnx_file import INPUT, SPEC_KEY, OnnxError, outputs_of, scan_bodies
from darkarc.serving.onnx_regressor import OnnxRegressor
from darkarc.serving.onnx_seal import seal
from darkarc.simulation import draw_scenes, render

if TYPE_CHECKING:
    from onnx import ModelProto

MODEL_FILE = "model.onnx"
CARD_FILE = "README.md"

OPSET = 20
TOLERANCE = 1e-4
"""Largest difference to torch allowed, in bin and class probabilities and in the target's unit."""
LEAST_DENSITY = 1e-20
"""Above it, no density of torch's may be zero in the file: a population would exclude the truth."""


NOVELTY_UNIT = 1000.0
"""Up to this size differences of the novelty are absolute, in this unit."""


class ExportError(ValueError):
    """An export that does not answer as the torch model does; nothing was written."""


def export_onnx(
    regressor: Regressor, path: str | Path, *, opset: int = OPSET, tolerance: float = TOLERANCE
) -> Path:
    """Write `regressor` to `path` as a single ONNX file, checked against torch.

    Input `images` float32 (batch, 1, H, W) of raw pixels; outputs `density` (batch, T, K), `median`
    (batch, T), `quantiles` (batch, T, 4), `class_probability` (batch, 3), unless `model.novelty` is
    none `novelty` (batch,), and for an ensemble `std_between` (batch, T), as `darkarc.models.Prediction`.
    The metadata hold the `RegressorSpec`, and in plain form targets, classes, bin edges, quantile levels
    and instrument.

    The same weights give the same bytes, and the file holds no path of this machine. It appears at
    `path` only after ONNX Runtime gave torch's answers on a batch of images, to within `tolerance`.

    Raises `ExportError`.
    """
    path = Path(path)
    model = _trace(regressor, opset)
    _strip(model)
    _describe(model, regressor)
    content = seal(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _check(partial, regressor, tolerance)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """A logger, and those beneath it that have no level of their own, say nothing that is less."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _trace(regressor: Regressor, opset: int) -> "ModelProto":
    training, device = regressor.training, next(regressor.parameters()).device
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, 1, *regressor.shape)
    try:
        with warnings.catch_warnings(), _errors_only("torch.onnx"), torch.no_grad():
            # The exporter's own advice, and deprecations inside of it: nothing a user could act on.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                regressor.eval().cpu(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=outputs_of(regressor.spec),
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    finally:
        regressor.to(device).train(training)
    assert program is not None
    return program.model_proto


def _strip(model: "ModelProto") -> None:
    """Drop what the exporter notes for debugging: stack traces with paths, names of Python classes."""
    model.doc_string = ""
    del model.metadata_props[:]
    for graph in (model.graph, *scan_bodies(model.graph)):
        del graph.value_info[:]
        for noted in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
            noted.doc_string = ""
            del noted.metadata_props[:]


def _describe(model: "ModelProto", regressor: Regressor) -> None:
    spec = regressor.spec
    model.producer_name, model.producer_version = "darkarc", f"schema {spec.schema_version}"
    entries = {
        SPEC_KEY: spec.to_json(),
        "targets": json.dumps(list(spec.targets)),
        "classes": json.dumps(list(spec.classes)),
        "edges": json.dumps({name: regressor.edges(name).tolist() for name in spec.targets}),
        "quantile_levels": json.dumps(list(QUANTILE_LEVELS)),
        "instrument": spec.instrument,
    }
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)


def _check(path: Path, regressor: Regressor, tolerance: float) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
        exported = OnnxRegressor(path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, OnnxError) as error:
        raise ExportError(f"the exported graph is not valid: {error}") from error
    images = torch.from_numpy(trial_images(regressor.spec))
    ours, theirs = _answer(regressor, images), exported(images)
    ruled_out = (theirs.density == 0) & (ours.density > LEAST_DENSITY)
    if ruled_out.any():
        raise ExportError(
            f"the exported graph rules out {int(ruled_out.sum())} values that torch holds possible: nothing "
            "was written"
        )
    difference = largest_difference(ours, theirs, regressor)
    if not difference <= tolerance:
        raise ExportError(
            f"the exported graph differs from torch by {difference:.2g}, allowed are {tolerance:g}: nothing "
            "was written. Are the weights finite and in float32?"
        )


@torch.inference_mode()
def _answer(regressor: Regressor, images: Tensor) -> Prediction:
    device, training = next(regressor.parameters()).device, regressor.training
    prediction = regressor.eval()(images.to(device))
    regressor.train(training)
    return prediction.cpu()


def trial_images(spec: RegressorSpec, n: int = 5) -> NDArray[np.float32]:
    """(2n, 1, H, W) images for the comparison: lenses of the preset where it is known.

    Else white noise, then rings, of the train split's mean and std. (A lens fitted to white noise goes
    where rounding sends it, so that would compare nothing.)
    """
    if spec.form is not None:
        scenes = draw_scenes(spec.form["preset"], "axion", 0, range(2 * n))
        lenses = render(
            spec.form["preset"], scenes, noise=spec.form["noise"], distances=spec.form["distances"]
        )
        return lenses[:, None].numpy()
    generator, shape = np.random.default_rng(0), spec.shape
    mean, std = float(spec.statistics["mean"]), float(spec.statistics["std"])
    white = generator.normal(mean, std, (n, *shape))
    y, x = (np.arange(size) - (size - 1) / 2 for size in shape)
    radius = np.hypot(y[:, None], x[None, :])
    angle = np.arctan2(y[:, None], x[None, :])
    rings = []
    for phase in generator.uniform(0, 2 * np.pi, n):
        arc = np.exp(-0.5 * ((radius - 0.16 * shape[0]) / 2.0) ** 2) * (1.2 + np.cos(angle - phase))
        arc += generator.normal(0, 0.02, shape)
        rings.append(mean + std * (arc - arc.mean()) / arc.std())
    return np.concatenate([white, rings])[:, None].astype(np.float32)


def largest_difference(torch_answer: Prediction, onnx_answer: Prediction, regressor: Regressor) -> float:
    """The largest difference in density, class probability, median, quantiles and novelty.

    That of a density is how far its probability moves on average (Wasserstein's distance, in the target's
    unit): unlike a bin's probability it does not grow as bins get finer than rounding. That of the novelty
    is relative where it is large: far out it is a sum of large squares.
    A quantile may move along a stretch of almost no probability; what counts there is the probability
    between the two values, if that is less than the way between them. An answer that is not finite is
    infinitely different.
    """
    parts = (part for part in onnx_answer if part is not None)
    if not all(bool(part.isfinite().all()) for part in parts):
        return float("inf")
    largest = float((torch_answer.class_probability - onnx_answer.class_probability).abs().max())
    for t, target in enumerate(regressor.targets):
        edges = regressor.edges(target)
        ours, theirs = (answer.density[:, t].double().numpy() for answer in (torch_answer, onnx_answer))
        moved = np.abs(np.cumsum((ours - theirs) * np.diff(edges), axis=1)) @ np.diff(edges)
        largest = max(largest, float(moved.max()))
        classes = torch_answer.class_probability.double().numpy()
        posterior = Posterior(edges, ours, classes, target)
        pairs = [(torch_answer.median[:, t], onnx_answer.median[:, t])]
        pairs += [(torch_answer.quantiles[:, t, q], onnx_answer.quantiles[:, t, q]) for q in range(4)]
        for a, b in pairs:
            way = (a - b).abs().double().numpy()
            between = np.abs(posterior.cdf(a.double().numpy()) - posterior.cdf(b.double().numpy()))
            largest = max(largest, float(np.minimum(way, between).max()))
    if torch_answer.novelty is not None and onnx_answer.novelty is not None:
        away = (torch_answer.novelty - onnx_answer.novelty).abs() / (
            NOVELTY_UNIT + torch_answer.novelty.abs()
        )
        largest = max(largest, float(away.max()))
    if torch_answer.std_between is not None and onnx_answer.std_between is not None:
        largest = max(largest, float((torch_answer.std_between - onnx_answer.std_between).abs().max()))
    return largest
