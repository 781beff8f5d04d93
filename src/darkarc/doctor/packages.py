"""Python and packages, against what the project asks for and what its lock pins."""

import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from darkarc.doctor.findings import NOTE, OK, WRONG, Finding, Findings

OLDEST_PYTHON = (3, 11)
LOCK = "requirements.lock"
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)\s*(?:;([^\\]*))?", re.M)


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Findings:
    """Python is new enough."""
    found = ".".join(map(str, version))
    if version < OLDEST_PYTHON:
        remedy = "make the environment anew: `make clean`, then `make setup PYTHON=python3.12`"
        yield Finding("python", WRONG, f"{found}; darkarc needs 3.11 or newer", remedy)
    else:
        yield Finding("python", OK, found)


def check_packages(root: Path) -> Findings:
    """Every dependency is there in its range; versions other than the lock's are named."""
    installed = {
        _plain(d.metadata["Name"]): d.version for d in metadata.distributions() if d.metadata["Name"]
    }
    wrong = _out_of_range(metadata.requires("darkarc") or [], installed)
    yield from (Finding("packages", WRONG, said, "`make setup`, or install it by hand") for said in wrong)
    lock = root / LOCK
    if not lock.is_file():
        if not wrong:
            yield Finding("packages", OK, "all there, in their ranges; no lock to compare with")
        return
    other = differing(lock.read_text(encoding="utf-8"), installed)
    if other:
        said = ", ".join(f"{name} {here} (lock: {pinned})" for name, here, pinned in other[:6])
        more = f", and {len(other) - 6} more" if len(other) > 6 else ""
        yield Finding(
            "packages", NOTE, f"other versions than in {LOCK}: {said}{more}",
            f"for the tested set: pip install --require-hashes -r {LOCK}",
        )  # fmt: skip
    elif not wrong:
        yield Finding("packages", OK, f"as in {LOCK}")


def _out_of_range(requirements: list[str], installed: Mapping[str, str]) -> list[str]:
    from packaging.requirements import Requirement

    said = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(_plain(requirement.name))
        if version is None:
            said.append(f"{requirement.name} is missing (expected {requirement.specifier or 'any version'})")
        elif not requirement.specifier.contains(version, prereleases=True):
            said.append(f"{requirement.name} {version}; expected {requirement.specifier}")
    return said


def differing(lock: str, installed: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(name, installed, pinned) of the packages of a lock that are here in another version."""
    from packaging.markers import Marker
    from packaging.version import Version

    found = []
    for name, pinned, marker in _PINNED.findall(lock):
        here = installed.get(_plain(name))
        if here is None or (marker.strip() and not Marker(marker.strip()).evaluate()):
            continue
        if Version(here).public != Version(pinned).public:  # a GPU machine's torch ends in +cu130
            found.append((name, here, pinned))
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
