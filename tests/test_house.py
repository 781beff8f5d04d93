"""What the project promises about itself: lock, dependencies, documents, shipped files."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[1]
LOCK = (PROJECT / "requirements.lock").read_text()
DOCUMENTS = [PROJECT / "README.md", PROJECT / "CHANGELOG.md", *sorted((PROJECT / "docs").glob("*.md"))]


def test_the_lock_has_exact_versions_with_hashes_and_no_addresses():
    entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"^#.*\n", "", LOCK, flags=re.M).strip())
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==[^\s;]+", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]
    assert "://" not in LOCK


def test_the_lock_holds_every_direct_dependency_in_its_range():
    from packaging.requirements import Requirement

    locked = dict(re.findall(r"^([a-z0-9._-]+)==([^\s;\\]+)", LOCK, flags=re.M))
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    for text in project["project"]["dependencies"] + project["dependency-groups"]["dev"]:
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        assert name in locked, name
        assert requirement.specifier.contains(locked[name]), (text, locked[name])


def test_every_dependency_states_its_one_reason():
    text = (PROJECT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[tool.setuptools")]
    lines = [line for line in block.splitlines() if re.match(r'\s+"[a-z]', line)]
    assert len(lines) > 20
    for line in lines:
        assert re.search(r"# \S.{6,}", line), line


def test_the_commands_of_the_readme_are_targets_of_the_makefile():
    makefile = (PROJECT / "Makefile").read_text()
    named = set(re.findall(r"make ([a-z]+)", (PROJECT / "README.md").read_text()))
    assert {"reproduce", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document):
    text = re.sub(r"```.*?```|`[^`]*`", "", document.read_text(), flags=re.S)
    text = re.sub(r"```.*?```|`[^`]*`", "", document.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} -> {target}"


def test_every_document_is_in_the_navigation():
    navigation = (PROJECT / "mkdocs.yml").read_text()
    for page in (PROJECT / "docs").glob("*.md"):
        assert f" {page.name}" in navigation, page.name


def test_documents_and_code_do_not_lean_on_files_that_users_lack():
    for path in [*DOCUMENTS, *(PROJECT / "src").rglob("*.py"), PROJECT / "dvc.yaml"]:
        assert "../shared" not in path.read_text(), path


def test_ci_calls_the_command_of_the_readme():
    assert "make test" in (PROJECT / ".ci/run").read_text()
    workflow = yaml.safe_load((PROJECT / ".github/workflows/test.yml").read_text())
    assert {"run": "make test"} in workflow["jobs"]["test"]["steps"]
