"""Exported regressors in smaller arithmetic, each kept only if it is faster, as accurate and as calibrated.

`float16` and `int8` concern the backbone's convolutions alone, where the arithmetic is; preprocessing, the
fit of the lens, densities and novelty stay in float32. The test set decides, and the numbers of the decision
are written down.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from darkarc.config import DEFAULT_TARGET, ExportConfig, with_unit
from darkarc.data.store import Store
from darkarc.evaluation.predictions import split_rows
from darkarc.models.posterior import PosteriorError
from darkarc.serving.comparison import TestImages, images_per_second, objections, try_out
from darkarc.serving.half_precision import backbone_in_half
from darkarc.serving.onnx_file import INPUT, STANDARD_DOMAINS, OnnxError
from darkarc.serving.onnx_regressor import OnnxRegressor
from darkarc.serving.onnx_seal import seal

if TYPE_CHECKING:
    from onnx import ModelProto

CALIBRATION_IMAGES = 256
"""Images of the calibration split that the ranges of int8 are taken from."""
CALIBRATION_BATCH = 32


class VariantError(ValueError):
    """A variant that cannot be made or judged."""


@dataclass(frozen=True)
class Decision:
    """The numbers of one variant, and whether it is kept; refusals: why not, in words.

    `mae_dex` is in the unit of the target.
    """

    variant: str
    kept: bool
    refusals: tuple[str, ...]
    speedup: float | None = None
    megabytes: float | None = None
    mae_dex: float | None = None
    coverage_68: float | None = None
    coverage_90: float | None = None
    nll: float | None = None
    target: str = DEFAULT_TARGET


NOTHING_TO_CHANGE = "no convolution of a backbone in the file"
NOT_FINITE = "its answers are not finite: the arithmetic does not reach"


def make_variants(
    model: Path, store: Store, settings: ExportConfig
) -> tuple[dict[str, bytes], list[Decision]]:
    """The variants of `export.variants` that pass, name of the file -> bytes, and the table of all.

    model: an exported regressor in float32; store: the prepared store whose test split decides. The first
    row of the table is the model itself. Raises `VariantError`, `ComparisonError`.
    """
    if not settings.variants:
        return {}, []
    reference = OnnxRegressor(model, threads=1)
    target = DEFAULT_TARGET if DEFAULT_TARGET in reference.targets else reference.targets[0]
    test = TestImages.of(store, target)
    trial = try_out(reference, test, target)
    table = [_row("float32", target, trial, 1.0, model.stat().st_size, [])]
    kept = {}
    with tempfile.TemporaryDirectory() as folder:
        fused = _fused(model, Path(folder))
        for name in settings.variants:
            path = Path(folder) / f"model.{name}.onnx"
            made = MAKERS[name](fused, store, Path(folder))
            if made is None:
                table.append(Decision(name, False, (NOTHING_TO_CHANGE,), target=target))
                continue
            _save(made, model, path)
            variant = OnnxRegressor(path, threads=1)
            try:
                own = try_out(variant, test, target)
            except (PosteriorError, OnnxError):
                size = round(path.stat().st_size / 1e6, 3)
                table.append(Decision(name, False, (NOT_FINITE,), megabytes=size, target=target))
                continue
            before, after = images_per_second(reference, variant, test.images)
            refusals = objections(
                trial,
                own,
                error_tolerance=settings.error_tolerance,
                coverage_tolerance=settings.coverage_tolerance,
            )
            speedup = after / before
            if speedup < settings.least_speedup:
                refusals.insert(0, f"{speedup:.2f} times as fast, asked are {settings.least_speedup:g}")
            table.append(_row(name, target, own, speedup, path.stat().st_size, refusals))
            if not refusals:
                kept[path.name] = path.read_bytes()
    return kept, table


def _row(name: str, target: str, trial: Any, speedup: float, size: int, refusals: list[str]) -> Decision:
    coverage = trial.coverage
    return Decision(
        name, not refusals, tuple(refusals), round(speedup, 3), round(size / 1e6, 3), round(trial.mae, 5),
        round(coverage[68], 4), round(coverage[90], 4), round(trial.nll, 4), target,
    )  # fmt: skip


def as_records(table: list[Decision]) -> list[dict[str, Any]]:
    """Rows fit for JSON."""
    return [asdict(row) for row in table]


def as_markdown(table: list[Decision]) -> str:
    """The table of the decision, for the model card."""
    lines = [
        "## Variants",
        "",
        "One core, batches of 64; against float32 on the same test images.",
        "",
        f"| variant | speed | MB | {with_unit('MAE', table[0].target)} | coverage 68% | coverage 90% | NLL "
        "| decision |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        decision = "kept" if row.kept else "refused: " + "; ".join(row.refusals)
        numbers = (
            _number(row.speedup, ".2f"), _number(row.megabytes, ".2f"), _number(row.mae_dex, ".4f"),
            _number(row.coverage_68, ".1%"), _number(row.coverage_90, ".1%"), _number(row.nll, ".3f"),
        )  # fmt: skip
        lines.append(f"| {row.variant} | {' | '.join(numbers)} | {decision} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _fused(model: Path, folder: Path) -> Path:
    """The model with batch norms folded into convolutions, as ONNX Runtime folds them when it loads it."""
    import onnxruntime

    path = folder / "fused.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
    return path


def _float16(fused: Path, store: Store, folder: Path) -> "ModelProto | None":
    import onnx

    model = onnx.load(fused)
    return model if backbone_in_half(model) else None


def _int8(fused: Path, store: Store, folder: Path) -> "ModelProto":
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantised = folder / "quantised.onnx"
    with _quiet():
        quantize_static(
            str(fused),
            str(quantised),
            _calibration_reader(store),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            # Signed weights overflow in processors without VNNI, which add pairs of such products in 16 bits.
            weight_type=QuantType.QUInt8,
        )
    return onnx.load(quantised)


MAKERS: Mapping[str, Callable[[Path, Store, Path], "ModelProto | None"]] = {
    "float16": _float16,
    "int8": _int8,
}
"""(fused model, store, folder for scraps) -> the variant; None where there is nothing to make smaller."""


def _calibration_reader(store: Store) -> Any:
    """What onnxruntime reads the ranges of activations from: images of the calibration split."""
    from onnxruntime.quantization import CalibrationDataReader

    rows = split_rows(store, "calibration")[:CALIBRATION_IMAGES]
    if not len(rows):
        raise VariantError(f"{store.path}: int8 needs a calibration split; give prepare.calibration a share")

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = self._read()

        def _read(self) -> Iterator[NDArray[np.float32]]:
            for start in range(0, len(rows), CALIBRATION_BATCH):
                yield store.images(rows[start : start + CALIBRATION_BATCH])[:, None].astype(np.float32)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            images = next(self._batches, None)
            return None if images is None else {INPUT: images}

    return Reader()


def _save(variant: "ModelProto", model: Path, path: Path) -> None:
    """Write the variant with the model's own metadata, and nothing that no operator uses."""
    import onnx

    original = onnx.load(model)
    del variant.metadata_props[:]
    variant.metadata_props.extend(original.metadata_props)
    variant.producer_name, variant.producer_version = original.producer_name, original.producer_version
    opsets = [entry for entry in variant.opset_import if entry.domain in STANDARD_DOMAINS]
    del variant.opset_import[:]
    variant.opset_import.extend(opsets)
    path.write_bytes(seal(variant))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's advice on how else a model could be quantised."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
