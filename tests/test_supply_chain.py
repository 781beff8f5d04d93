"""What the project promises about the packages it stands on, and about its workflows."""

import importlib.util
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((PROJECT / ".github/workflows").glob("*.yml"))
MAKEFILE = (PROJECT / "Makefile").read_text()
LOCK = (PROJECT / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def licences() -> ModuleType:
    spec = importlib.util.spec_from_file_location("licences", PROJECT / "docs/licences.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_installed_dependency_has_a_known_licence(licences):
    looked_at, wrong = 0, []
    for name in licences.locked():
        try:
            text = licences.licence(name)
        except metadata.PackageNotFoundError:
            continue  # of another platform
        looked_at += 1
        family = licences.family(text)
        vendor = name.startswith("nvidia-") or name == "cuda-toolkit"
        accepted = {
            "permissive": True,
            "copyleft": name in licences.ACCEPTED,
            "proprietary": vendor or name in licences.PROPRIETARY_TOO,
        }
        if not accepted.get(family, False):
            wrong.append(f"{name}: {text!r} ({family or 'unknown'})")
    assert looked_at > 150
    assert not wrong, "look at the licence, then name the package in docs/licences.py with the reason"


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("MIT", "permissive"),
        ("BSD-3-Clause AND MIT", "permissive"),
        ("Apache-2.0 OR GPL-2.0-or-later", "permissive"),
        ("GPL-3.0-only", "copyleft"),
        ("AGPL-3.0", "copyleft"),
        ("MPL-2.0 AND MIT", "copyleft"),
        ("GNU General Public License v3 (GPLv3)", "copyleft"),
        ("EPL-2.0 OR GPL-2.0-or-later", "copyleft"),
        ("LicenseRef-NVIDIA-Proprietary", "proprietary"),
        ("", ""),
        ("ask me", ""),
    ],
)
def test_a_licence_is_put_into_its_family(licences, text, family):
    assert licences.family(text) == family


def test_no_direct_dependency_of_users_is_proprietary_or_gpl(licences):
    from packaging.requirements import Requirement

    for text in metadata.requires("darkarc") or []:
        name = Requirement(text).name
        try:
            said = licences.licence(name)
        except metadata.PackageNotFoundError:
            continue  # in the lock of a later commit than this environment's
        assert licences.family(said) == "permissive" or licences.plain(name) == "psycopg2-binary", (
            name,
            said,
        )


def test_the_table_of_licences_has_every_direct_dependency(licences):
    page = licences.on_page_markdown((PROJECT / "docs/licences.md").read_text())
    assert "<!--" not in page
    for name in ("torch", "mlflow", "dvc", "psycopg2-binary", "uv"):
        assert re.search(rf"^\| {name} \| \S", page, flags=re.M), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_valid_and_runs_targets_that_exist(path):
    tree = yaml.safe_load(path.read_text())
    # YAML 1.1 reads the key `on` as true.
    assert set(tree) == {"name", True, "permissions", "jobs"}
    assert tree["permissions"] == {"contents": "read"}
    for name, job in tree["jobs"].items():
        assert job["timeout-minutes"] <= 120, name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), step
            for target in re.findall(r"make ([a-z]+)", step.get("run", "")):
                assert re.search(rf"^{target}:", MAKEFILE, flags=re.M), target


def test_the_oldest_versions_are_tried_on_each_change_and_the_newest_weekly():
    tree = yaml.safe_load((PROJECT / ".github/workflows/versions.yml").read_text())
    assert tree[True]["schedule"][0]["cron"].split()[-1] == "1"
    jobs = tree["jobs"]
    assert {"run": "make minimum"} in jobs["minimum-versions"]["steps"]
    assert {"run": "make newest"} in jobs["newest"]["steps"]
    recipe = MAKEFILE[MAKEFILE.index("minimum: setup") :]
    assert "--resolution lowest-direct" in recipe.partition("newest: setup")[0]


def test_the_bill_of_materials_names_every_locked_package(licences):
    (command,) = re.findall(r"^\tpython (docs/sbom\.py) > reports/sbom\.json$", MAKEFILE, flags=re.M)
    made = [
        subprocess.run(
            [sys.executable, command], cwd=PROJECT, check=True, capture_output=True, timeout=120
        ).stdout
        for _ in range(2)
    ]
    assert made[0] == made[1], "the same lock gives the same bytes"
    bill = json.loads(made[0])
    assert bill["bomFormat"] == "CycloneDX"
    components = {licences.plain(item["name"]): item for item in bill["components"]}
    assert set(components) == set(licences.locked())
    for item in components.values():
        hashes = [h for reference in item["externalReferences"] for h in reference.get("hashes", [])]
        assert item["version"] and hashes, item["name"]
    assert components["numpy"]["purl"] == f"pkg:pypi/numpy@{components['numpy']['version']}"
    assert "BSD" in components["numpy"]["licenses"][0]["license"]["name"]


def test_no_package_slows_every_import_of_ray():
    """jsonschema takes it up wherever it is installed, and its parser of URIs is built at each import: with
    Ray that is a second of every process."""
    names = re.findall(r"^([a-z0-9-]+)==", LOCK, flags=re.M)
    assert "ray" in names and "rfc3987-syntax" not in names


def test_an_audit_that_could_ask_nobody_does_not_pass():
    recipe = MAKEFILE[MAKEFILE.index("audit: setup") : MAKEFILE.index("minimum: setup")]
    # Without --strict, packages that the database does not answer for count as free of vulnerabilities.
    assert "pip-audit --strict" in recipe and "--require-hashes -r requirements.lock" in recipe
    assert "exit 1" in recipe and "could not be asked" in recipe
