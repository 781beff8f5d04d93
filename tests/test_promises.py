"""Every test that the documentation names is there."""

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
DEFINED = re.compile(r"^\s*(?:async )?def (test_\w+)", re.M)
NAMED = re.compile(r"`(test_\w+)`")


def test_the_documentation_names_tests_that_exist() -> None:
    defined = {
        name for path in (PROJECT / "tests").rglob("test_*.py") for name in DEFINED.findall(path.read_text())
    }
    named = {
        (page.name, name)
        for page in (PROJECT / "docs").glob("*.md")
        for name in NAMED.findall(page.read_text())
    }
    assert len(named) > 40, "the tables of promises are gone?"
    assert sorted(item for item in named if item[1] not in defined) == []
