"""What a check says."""

from collections.abc import Iterator
from dataclasses import dataclass

OK, NOTE, WRONG = LEVELS = ("ok", "note", "wrong")
"""ok: as it should be; note: worth knowing; wrong: something will fail, be lost, or stand open."""


@dataclass(frozen=True)
class Finding:
    """check: what was looked at; level: of `LEVELS`; found: what is so; remedy: what to do, "" if nothing."""

    check: str
    level: str
    found: str
    remedy: str = ""


Findings = Iterator[Finding]
