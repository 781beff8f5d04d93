"""MkDocs hook: fills `licences.md` with the licence of every dependency, read from the installed packages."""

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]

# What a package's metadata do not say, from the licence file that it ships.
TOLD_ELSEWHERE = {"huey": "MIT", "skops": "MIT", "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary"}

# A choice ("OR", "|") that includes a permissive licence is permissive.
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC|Zlib|PSF|Python Software Foundation|Unlicense|CC0|Public Domain|HPND"
    r"|Historical Permission|Matplotlib|0BSD|BSL-1|Boost|CNRI|Zope|ZPL|WTFPL|Academic Free|UPL",
    re.I,
)
COPYLEFT = re.compile(r"GPL|GNU |Affero|MPL|Mozilla|EPL|Eclipse|EUPL|CDDL", re.I)
PROPRIETARY = re.compile(r"NVIDIA|Proprietary", re.I)

ACCEPTED = {
    "asyncssh": "EPL-2.0 is chosen; DVC's ssh remotes, unchanged",
    "certifi": "MPL-2.0 on its own files, unchanged",
    "fqdn": "MPL-2.0 on its own files, unchanged",
    "grandalf": "EPL-1.0 is chosen; DVC's `dvc dag`, unchanged",
    "hypothesis": "MPL-2.0 on its own files; tests alone",
    "pathspec": "MPL-2.0 on its own files, unchanged",
    "psycopg2-binary": "LGPL with exceptions; a library, linked dynamically, for the team's server",
    "pygit2": "GPL-2.0 with the linking exception: who links to it is free; DVC's",
    "pyxdg": "LGPL-2.0; a library, imported by DVC's task queue",
    "shtab": "MPL-2.0 on its own files, unchanged",
    "tqdm": "MPL-2.0 on some of its own files, unchanged",
}
"""Copyleft packages that are in the lock, and why a project under MIT may depend on each."""

PROPRIETARY_TOO = {
    "capfit": "by way of lenstronomy, the oracle of the simulator's tests; not in what darkarc itself needs",
    "jampy": "the same",
    "mgefit": "the same",
    "plotbin": "the same",
}
"""Proprietary ones beside NVIDIA's libraries, and why they are there."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    tables = {
        "<!-- table of direct dependencies -->": direct_table,
        "<!-- table of copyleft -->": lambda: reasons_table(ACCEPTED),
        "<!-- table of proprietary -->": lambda: reasons_table(PROPRIETARY_TOO),
    }
    for mark, table in tables.items():
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(table()))
    return markdown


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> list[str]:
    """Names of the packages of requirements.lock."""
    text = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    return [plain(name) for name in re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==", text, flags=re.M)]


def licence(name: str) -> str:
    """Licence of an installed package, "" if nothing tells it. Raises `PackageNotFoundError`."""
    told = metadata.metadata(name)
    classifiers = [
        c.rpartition(" :: ")[2] for c in told.get_all("Classifier") or [] if c.startswith("License ::")
    ]
    named = [c for c in classifiers if c not in ("OSI Approved", "DFSG approved")]
    if expression := (told.get("License-Expression") or "").strip():
        return expression
    if named:
        return ", ".join(named)
    lines = [line.strip() for line in (told.get("License") or "").splitlines() if line.strip()]
    first = lines[0] if lines and lines[0].upper() != "UNKNOWN" else ""
    return first[:80] or TOLD_ELSEWHERE.get(plain(name), "")


def family(text: str) -> str:
    """permissive, copyleft, proprietary, or "" if unknown."""
    if PROPRIETARY.search(text):
        return "proprietary"
    choices = re.split(r"\s+OR\s+|\s*\|\s*", text)
    if any(PERMISSIVE.search(choice) and not COPYLEFT.search(choice) for choice in choices):
        return "permissive"
    return "copyleft" if COPYLEFT.search(text) else ""


def direct_table() -> list[str]:
    from packaging.requirements import Requirement

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    rows = ["| package | licence | for |", "|---|---|---|"]
    for use, requirements in (
        ("darkarc", project["project"]["dependencies"]),
        ("its development", project["dependency-groups"]["dev"]),
    ):
        for text in requirements:
            name = Requirement(text).name
            try:
                found = licence(name)
            except metadata.PackageNotFoundError:
                found = "not installed here"
            rows.append(f"| {name} | {found.replace('|', 'or')} | {use} |")
    return rows


def reasons_table(reasons: dict[str, str]) -> list[str]:
    rows = ["| package | licence | why it may be there |", "|---|---|---|"]
    for name, reason in reasons.items():
        try:
            rows.append(f"| {name} | {licence(name).replace('|', 'or')} | {reason} |")
        except metadata.PackageNotFoundError:
            continue
    return rows
