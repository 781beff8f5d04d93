"""The model registry: versions found by number or alias, and checked before anything parses them.

A version's tags: `darkarc.model_sha256` (of the registered `model.onnx`), `darkarc.data_digest`,
`darkarc.git_commit`, `darkarc.test_digest`, `darkarc.errors_sha256`, `metric.…`, `darkarc.decision`.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkarc.tracking._deliveries import shorten
from darkarc.tracking._sender import error_code
from darkarc.tracking.errors import RegistryError
from darkarc.tracking.location import open_client, shown, tracking_uri, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
CHALLENGER = "challenger"
MODEL_FILE = "model.onnx"
SHA256_TAG = "darkarc.model_sha256"

MAX_TAG_CHARACTERS = 5000

_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class ModelVersion:
    """One version in the registry."""

    name: str
    version: int
    run_id: str | None
    source: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the registered `model.onnx`."""
        return self.tags.get(SHA256_TAG)


def get_version(name: str, version: int | str) -> ModelVersion:
    """A version by its number or its alias. Raises `RegistryError` that lists what is there."""
    with registry_errors():
        client = open_client()
        numeric = isinstance(version, int) or version.isdigit()
        try:
            if numeric:
                found = client.get_model_version(name, str(version))
            else:
                found = client.get_model_version_by_alias(name, str(version))
        except Exception as error:
            if error_code(error) not in _MISSING:
                raise
            wanted = f"version {version}" if numeric else f"alias {version!r}"
            raise RegistryError(
                f"model {name!r} has no {wanted} in {shown(tracking_uri())}: {_inventory(client, name)}"
            ) from error
        return _version(found)


def list_versions(name: str) -> list[ModelVersion]:
    """All versions of a model, oldest first; empty if there is no such model."""
    with registry_errors():
        client = open_client()
        found = _all_pages(lambda token: client.search_model_versions(f"name='{name}'", page_token=token))
        # Searching leaves the aliases out on some stores; the model itself always has them.
        aliases = _aliases(client, name) if found else {}
    versions = [_version(item, aliases.get(str(item.version), ())) for item in found]
    return sorted(versions, key=lambda item: item.version)


def champion_version(name: str) -> ModelVersion | None:
    """The version that carries the alias `champion`, if any."""
    return next((item for item in list_versions(name) if CHAMPION in item.aliases), None)


def set_alias(name: str, alias: str, version: int) -> None:
    """Move an alias to a version."""
    with registry_errors():
        open_client().set_registered_model_alias(name, alias, str(version))


def delete_alias(name: str, alias: str) -> None:
    with registry_errors():
        open_client().delete_registered_model_alias(name, alias)


def tag_version(name: str, version: int, tags: Mapping[str, Any]) -> None:
    """Tags of a version; the last value counts."""
    with registry_errors():
        client = open_client()
        for key, value in tags.items():
            client.set_model_version_tag(name, str(version), key, shorten(value, MAX_TAG_CHARACTERS))


def resolve(uri: str) -> ModelVersion:
    """Version behind `models:/NAME@ALIAS` or `models:/NAME/NUMBER`."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise RegistryError(
            f"{uri!r}: expected models:/NAME@ALIAS or models:/NAME/NUMBER, such as "
            "models:/axion-mass-regressor@champion"
        )
    return get_version(match["name"], match["alias"] or int(match["version"]))


def download_model(uri: str, cache: Path | None = None) -> Path:
    """`model.onnx` of a registered version as a local file whose SHA-256 is the registered one.

    Nothing parses the file before the check. It is kept in `cache` (`~/.cache/darkarc/models`), where
    it is checked again each time. Raises `RegistryError`.
    """
    version = resolve(uri)
    expected = version.sha256
    if expected is None or not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise RegistryError(
            f"{version.uri}: no SHA-256 in its tag {SHA256_TAG}, so darkarc did not register it; not loaded"
        )
    folder = (_cache_folder() if cache is None else cache) / expected
    target = folder / MODEL_FILE
    if target.is_file() and _sha256(target) == expected:
        return target
    with registry_errors():
        location = open_client().get_model_version_download_uri(version.name, str(version.version))
    fetch(version, f"{location}/{MODEL_FILE}", expected, target)
    return target


def fetch(version: ModelVersion, source: str, expected: str, target: Path) -> None:
    """One file of a version, from the artifact URI `source`, moved to `target` once its SHA-256 is right."""
    import mlflow

    target.parent.mkdir(parents=True, exist_ok=True)
    with registry_errors(), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            got = mlflow.artifacts.download_artifacts(
                artifact_uri=source, dst_path=folder, tracking_uri=tracking_uri()
            )
        except Exception as error:
            raise RegistryError(
                f"{version.uri}: cannot get {without_password(f'{source}: {error}')}"
            ) from error
        found = _sha256(Path(got))
        if found != expected:
            raise RegistryError(
                f"{version.uri}: SHA-256 of {target.name} is {found}, the registry says {expected}: the file "
                "is damaged or replaced; not loaded. Register the model again or use another version"
            )
        os.replace(got, target)


@contextlib.contextmanager
def registry_errors() -> Iterator[None]:
    """What the store answers as a `RegistryError` that names the store."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        where = shown(tracking_uri(create=False))
        raise RegistryError(f"model registry in {where}: {without_password(error)}") from error


def _version(found: Any, aliases: tuple[str, ...] | None = None) -> ModelVersion:
    return ModelVersion(
        name=found.name,
        version=int(found.version),
        run_id=found.run_id or None,
        source=found.source,
        tags=dict(found.tags),
        aliases=tuple(found.aliases) if aliases is None else aliases,
    )


def _aliases(client: "MlflowClient", name: str) -> dict[str, tuple[str, ...]]:
    """Version number, as text, to its aliases."""
    by_version: dict[str, tuple[str, ...]] = {}
    for alias, number in client.get_registered_model(name).aliases.items():
        by_version[str(number)] = (*by_version.get(str(number), ()), alias)
    return by_version


def _inventory(client: "MlflowClient", name: str) -> str:
    """What could have been meant, for an error message."""
    if versions := list_versions(name):
        latest = [
            " ".join([str(item.version), *(f"@{alias}" for alias in item.aliases)]) for item in versions
        ]
        return f"its versions are {', '.join(latest[-10:])}"
    models = _all_pages(lambda token: client.search_registered_models(page_token=token))
    if not models:
        return "no model is registered there"
    return f"there is no such model; registered are {', '.join(item.name for item in models[:10])}"


def _all_pages(search: Callable[[str | None], Any]) -> list[Any]:
    items: list[Any] = []
    token: str | None = None
    while True:
        page = search(token)
        items.extend(page)
        token = page.token
        if not token:
            return items


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "darkarc" / "models"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
