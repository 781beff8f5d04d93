"""The seal of an exported file: a digest of all its other bytes, in its metadata.

A disk or a transfer that changes one bit of a weight leaves a file that still parses and answers, wrongly.
The seal names such damage; it is no signature, for whoever changes a file on purpose can seal it again
(the registry's own SHA-256 is there for that).
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

SEAL_KEY = "darkarc.sha256"
_OPEN = "0" * 64


def seal(model: "ModelProto") -> bytes:
    """The bytes of a model's file, sealed; an earlier seal is replaced."""
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != SEAL_KEY]
    del model.metadata_props[:]
    for key, value in [*kept, (SEAL_KEY, _OPEN)]:
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString(deterministic=True)
    model.metadata_props[-1].value = hashlib.sha256(content).hexdigest()
    return model.SerializeToString(deterministic=True)


def is_whole(model: "ModelProto", content: bytes) -> bool:
    """Whether the bytes that a model was parsed from are those that were sealed."""
    digests = [entry.value for entry in model.metadata_props if entry.key == SEAL_KEY]
    if len(digests) != 1 or len(digests[0]) != len(_OPEN):
        return False
    digest = digests[0].encode()
    before, found, after = content.rpartition(digest)
    return bool(found) and hashlib.sha256(before + _OPEN.encode() + after).hexdigest().encode() == digest
