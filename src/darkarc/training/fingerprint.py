"""The digest that names a training: two with the same digest give the same weights."""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import torch

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.training.distillation import teacher_digest

_SOURCES = (
    "darkarc.models",
    "darkarc.simulation",
    "darkarc.training",
    "darkarc.data.batches",
    "darkarc.data.augment",
    "darkarc.data.augmentation",
    "darkarc.data.auxiliary",
    "darkarc.data.online",
    "darkarc.data.train_images",
)


def training_digest(config: Config, prepared: Store) -> str:
    """SHA-256 (hex) of all that the weights depend on: parameters, data, code and the torch version."""
    tree = config.dump()
    parts = {key: tree[key] for key in ("seed", "targets", "model", "train")}
    facts = parts | {"data": prepared.digest, "code": _code_digest(), "torch": torch.__version__}
    if config.data.source == "online":
        facts["online"] = [tree["data"]["epoch_images"], tree["simulate"]]
    if config.train.teacher:
        facts["teacher"] = teacher_digest(config)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def environment() -> dict[str, str | int]:
    """What may change the last bits without being part of the digest."""
    return {"threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()}


def _code_digest() -> str:
    """SHA-256 of the source of modules: changed code never goes on from an old checkpoint."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None, name
        origin = Path(spec.origin)
        files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
        for file in files:
            place = file.relative_to(origin.parent).as_posix()
            digest.update(place.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
