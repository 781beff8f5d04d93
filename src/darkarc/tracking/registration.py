"""Registration: an exported ONNX file becomes a version of the registered model, once."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from darkarc.tracking._deliveries import shorten
from darkarc.tracking._environment import quiet_import
from darkarc.tracking._sender import error_code
from darkarc.tracking.errors import RegistryError
from darkarc.tracking.lineage import package_version
from darkarc.tracking.location import global_store, open_client
from darkarc.tracking.registry import (
    SHA256_TAG,
    ModelVersion,
    fetch,
    get_version,
    list_versions,
    registry_errors,
    tag_version,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

ERRORS_FILE = "test_errors.npy"
ERRORS_TAG = "darkarc.errors_sha256"
CARD_FILE = "model_card.md"
CARD_TAG = "darkarc.card_sha256"
TEST_DIGEST_TAG = "darkarc.test_digest"
CONTENT_TAG = "darkarc.content_sha256"

SERVED_WITH = ("mlflow", "onnx", "onnxruntime", "numpy")

MAX_CARD_CHARACTERS = 5000
"""Longest description that MLflow's database keeps; `read_card` gives the whole card."""


def register_onnx(
    onnx_path: str | Path,
    *,
    name: str,
    run_id: str,
    input_example: np.ndarray,
    card: str = "",
    tags: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    test_errors: np.ndarray | None = None,
    test_digest: str | None = None,
    extra_files: Sequence[str | Path] = (),
    metadata: Mapping[str, Any] | None = None,
) -> ModelVersion:
    """Log an ONNX file to its run and register it; the same file of the same run is one version.

    `input_example` is (1, 1, H, W) float32. `card` (markdown) becomes the version's description and the
    run's file `model_card.md`. `test_errors` (N,) are absolute errors on the test data of
    `test_digest`, in units of the target, in the order of the test samples; promotion compares them.
    `tags`, `metrics`, card and errors are brought up to date where the version is there already.
    Aliases stay as they are: see `darkarc.tracking.promotion`.

    Raises `RegistryError` if the file is no self-contained ONNX model, if its batch size is fixed, or
    if the store does not answer.
    """
    model = _read_onnx(Path(onnx_path))
    payload = model.SerializeToString()
    sha256 = hashlib.sha256(payload).hexdigest()
    with registry_errors(), global_store():
        client = open_client()
        number = _registered(name, run_id, sha256)
        if number is None:
            signature = _signature(payload, input_example)
            content = _content_digest(sha256, extra_files, metadata or {})
            logged = _logged_before(client, run_id, content)
            if logged is None:
                options = {
                    "signature": signature,
                    "input_example": input_example,
                    "extra_files": [str(file) for file in extra_files] or None,
                    "metadata": dict(metadata or {}) or None,
                }
                logged = _log_model(client, model, name, run_id, content, options)
            number = _create_version(client, name, run_id, sha256, logged)
        evidence = {"darkarc.version": package_version(), **(tags or {})}
        evidence |= {f"metric.{key}": f"{value:.6g}" for key, value in (metrics or {}).items()}
        if test_digest is not None:
            evidence[TEST_DIGEST_TAG] = test_digest
        if test_errors is not None:
            evidence[ERRORS_TAG] = _log_errors(client, run_id, sha256, test_errors)
        if card:
            evidence[CARD_TAG] = hashlib.sha256(card.encode()).hexdigest()
        tag_version(name, number, evidence)
        if card:
            client.log_text(run_id, card, f"{_own_folder(sha256)}/{CARD_FILE}")
            client.update_model_version(name, str(number), description=shorten(card, MAX_CARD_CHARACTERS))
    return get_version(name, number)


def read_test_errors(version: ModelVersion) -> np.ndarray | None:
    """Absolute test errors (N,) of a version, checked against its tag; None if it has none."""
    expected = version.tags.get(ERRORS_TAG)
    if expected is None:
        return None
    source = f"runs:/{version.run_id}/{_own_folder(str(version.sha256))}/{ERRORS_FILE}"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / ERRORS_FILE
        fetch(version, source, expected, target)
        errors: np.ndarray = np.load(target, allow_pickle=False)
    if errors.ndim != 1:
        raise RegistryError(f"{version.uri}: {ERRORS_FILE} has shape {errors.shape}, expected (N,)")
    return errors.astype(np.float64)


def read_card(version: ModelVersion) -> str:
    """The whole model card (markdown) of a version, checked against its tag; empty if it has none."""
    expected = version.tags.get(CARD_TAG)
    if expected is None:
        return ""
    source = f"runs:/{version.run_id}/{_own_folder(str(version.sha256))}/{CARD_FILE}"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / CARD_FILE
        fetch(version, source, expected, target)
        return target.read_text(encoding="utf-8")


def _own_folder(sha256: str) -> str:
    return f"registered/{sha256[:16]}"


def _log_errors(client: "MlflowClient", run_id: str, sha256: str, errors: np.ndarray) -> str:
    """Put the errors beside the run's artifacts; returns the SHA-256 of the file."""
    values = np.asarray(errors, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or (values < 0).any():
        raise RegistryError(
            f"test_errors: expected absolute errors (N,), finite and not negative, found shape {values.shape}"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ERRORS_FILE
        np.save(path, values, allow_pickle=False)
        client.log_artifact(run_id, str(path), artifact_path=_own_folder(sha256))
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_onnx(path: Path) -> Any:
    import onnx

    try:
        model = onnx.load_model_from_string(path.read_bytes())
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        raise RegistryError(f"{path}: no such file; `darkarc export` makes it") from error
    except Exception as error:
        raise RegistryError(f"{path}: not a usable ONNX model: {error}") from error
    outside = [item.name for item in model.graph.initializer if item.external_data]
    if outside:
        raise RegistryError(
            f"{path}: the weights {', '.join(outside[:3])} lie in another file; export the model as one file"
        )
    return model


def _registered(name: str, run_id: str, sha256: str) -> int | None:
    """Number of the version that this file of this run already is."""
    same = [item for item in list_versions(name) if item.run_id == run_id and item.sha256 == sha256]
    return same[-1].version if same else None


def _content_digest(sha256: str, files: Sequence[str | Path], metadata: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(f"{sha256} {sorted(metadata.items())}".encode())
    for file in files:
        digest.update(f"{Path(file).name} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()


def _logged_before(client: "MlflowClient", run_id: str, content: str) -> tuple[str, str] | None:
    """URI and id of the model that an interrupted registration has logged; half-logged ones are removed."""
    experiment = client.get_run(run_id).info.experiment_id
    for logged in client.search_logged_models([experiment], f"tags.`{CONTENT_TAG}` = '{content}'"):
        if logged.source_run_id != run_id:
            continue
        if str(logged.status) == "READY":
            return str(logged.model_uri), str(logged.model_id)
        client.delete_logged_model(logged.model_id)
    return None


def _log_model(
    client: "MlflowClient", model: Any, name: str, run_id: str, content: str, options: Mapping[str, Any]
) -> tuple[str, str]:
    """Log the model to its run, in the run's own experiment; returns its URI and id."""
    with quiet_import():
        import mlflow.onnx
        import mlflow.pyfunc

    run = client.get_run(run_id)
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=name,
        source_run_id=run_id,
        tags={CONTENT_TAG: content},
        params=run.data.params,
    )
    mlflow.onnx.log_model(
        model,
        name=name,
        run_id=run_id,
        model_id=logged.model_id,
        # Named here: MLflow would otherwise load the model in a second process to find them.
        pip_requirements=[f"{package}=={package_version(package)}" for package in SERVED_WITH],
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
        **options,
    )
    return str(logged.model_uri), str(logged.model_id)


def _create_version(
    client: "MlflowClient", name: str, run_id: str, sha256: str, logged: tuple[str, str]
) -> int:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_ALREADY_EXISTS":
            raise
    source, model_id = logged
    tags = {SHA256_TAG: sha256}
    created = client.create_model_version(name, source, run_id=run_id, tags=tags, model_id=model_id)
    return int(created.version)


def _signature(payload: bytes, input_example: np.ndarray) -> Any:
    """Input and output tensors for any batch size, found by running the model on a batch of 2."""
    import onnxruntime
    from mlflow.models import infer_signature

    example = np.asarray(input_example)
    if example.ndim != 4 or example.shape[:2] != (1, 1) or example.dtype != np.float32:
        raise RegistryError(
            f"input_example: expected (1, 1, H, W) float32, found {example.shape} {example.dtype}"
        )
    session = onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs(), [item.name for item in session.get_outputs()]
    if len(inputs) != 1:
        raise RegistryError(f"the model takes {len(inputs)} inputs; expected one, (B, 1, H, W) images")
    try:
        results = session.run(outputs, {inputs[0].name: np.concatenate([example, example])})
    except Exception as error:
        raise RegistryError(
            f"the model refuses a batch of 2; export it with a dynamic batch: {error}"
        ) from error
    odd = [key for key, value in zip(outputs, results, strict=True) if np.shape(value)[:1] != (2,)]
    if odd:
        raise RegistryError(
            f"outputs {', '.join(odd)} have no row for each image; export with a dynamic batch"
        )
    return infer_signature(example, dict(zip(outputs, results, strict=True)))
