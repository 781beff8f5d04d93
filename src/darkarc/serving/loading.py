"""`darkarc.load`: a regressor from wherever it is kept."""

from pathlib import Path

import torch

from darkarc.models import Regressor, RegressorError, SealError, load_regressor, read_sealed
from darkarc.models.regressor import SPEC_FILE
from darkarc.models.sealed import MANIFEST
from darkarc.serving.export import MODEL_FILE
from darkarc.serving.onnx_regressor import OnnxRegressor

REGISTRY = "models:/"
ACCEPTED = (
    "expected a registered model (models:/NAME@ALIAS or models:/NAME/VERSION), an .onnx file written by "
    f"`darkarc export`, its folder (with {MODEL_FILE}), or the folder of a training (with {SPEC_FILE})"
)


class LoadError(ValueError):
    """Nothing that can be loaded as a regressor; the message lists what can."""


def load(
    where: str | Path, device: str | torch.device = "cpu", *, threads: int = 0
) -> Regressor | OnnxRegressor:
    """The regressor kept at `where`, ready for answers.

    where: `models:/axion-mass-regressor@champion`, an .onnx file, the folder of an export, or the folder of a
        training. Nothing in it is executed: no pickle, no code.
    device: where a training's regressor computes; ONNX answers on the CPU only.
    threads: CPU threads of an ONNX regressor; 0: as many as there are cores.

    Raises `LoadError`, `OnnxError` or `RegressorError`, each with what is wrong.
    """
    text = str(where)
    if text.startswith(REGISTRY):
        from darkarc.tracking.registry import download_model

        return _from_path(Path(download_model(text)), device, threads)
    if ":/" in text and not Path(text).exists():
        raise LoadError(f"{text}: no such place; {ACCEPTED}")
    return _from_path(Path(where), device, threads)


def _from_path(path: Path, device: str | torch.device, threads: int) -> Regressor | OnnxRegressor:
    if path.is_dir():
        return _from_folder(path, device, threads)
    if not path.exists():
        raise LoadError(f"{path}: does not exist; {ACCEPTED}")
    if path.suffix.lower() != ".onnx":
        raise LoadError(f"{path}: not a kind of file that is loaded; {ACCEPTED}")
    return _onnx(path, device, threads)


def _from_folder(folder: Path, device: str | torch.device, threads: int) -> Regressor | OnnxRegressor:
    if (folder / SPEC_FILE).exists():
        try:
            return load_regressor(folder, device)
        except RuntimeError as error:
            raise RegressorError(f"{folder}: cannot put the regressor on {device}: {error}") from error
    if not (folder / MODEL_FILE).exists():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise LoadError(f"{folder}: holds {found}; {ACCEPTED}")
    if (folder / MANIFEST).exists():
        try:
            read_sealed(folder)
        except SealError as error:
            raise LoadError(f"the exported model is damaged: {error}; export it again") from error
    return _onnx(folder / MODEL_FILE, device, threads)


def _onnx(path: Path, device: str | torch.device, threads: int) -> OnnxRegressor:
    if torch.device(device).type != "cpu":
        raise LoadError(
            f"{path}: an exported regressor answers on the CPU, not on {device}; for a GPU load the folder "
            f"of the training (with {SPEC_FILE})"
        )
    return OnnxRegressor(path, threads=threads)
