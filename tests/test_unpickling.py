"""Nothing of the package unpickles: the hook of the whole suite, shown to notice it."""

import io
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from tests import unpickling


@pytest.fixture
def caught():
    """What the hook finds in this test, taken back before the fixture of every test looks."""
    yield unpickling.found
    unpickling.found.clear()


def as_package_code(source: str, **names: object) -> None:
    """Run code as if it stood in a module of the package."""
    exec(compile(source, f"{unpickling.PACKAGE}/data/imaginary.py", "exec"), names)


@pytest.mark.parametrize(
    "source",
    ["pickle.loads(content)", "numpy.load(io.BytesIO(array), allow_pickle=True)"],
)
def test_the_hook_notices(source: str, caught: list[str]) -> None:
    file = io.BytesIO()
    np.save(file, np.array([OrderedDict(a=1)], dtype=object))
    names = {"pickle": pickle, "numpy": np, "io": io, "array": file.getvalue()}
    as_package_code(source, content=pickle.dumps(OrderedDict(a=1)), **names)
    assert any("imaginary.py:1 unpickled collections.OrderedDict" in line for line in caught), caught


def test_others_may_unpickle_what_they_made(caught: list[str]) -> None:
    assert pickle.loads(pickle.dumps(OrderedDict(a=1))) == {"a": 1}
    assert caught == []


def test_no_source_asks_for_it() -> None:
    """The words for it stand nowhere in the package: not to load, and not to allow it."""
    forbidden = (
        "allow_pickle=True",
        "pickle.load",
        "torch.load(",
        "joblib.load",
        "weights_only=False",
        "dill",
    )
    root = Path(unpickling.PACKAGE)
    hits = [
        f"{path.relative_to(root)}: {word}"
        for path in root.rglob("*.py")
        for word in forbidden
        if word in path.read_text()
    ]
    assert hits == []
