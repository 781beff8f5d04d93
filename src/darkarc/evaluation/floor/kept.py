"""Exact answers on disk, a file an image: each is computed once, and a killed call goes on."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np

from darkarc.durable import write_file
from darkarc.evaluation.floor.posterior import ExactAnswer

BINS = 8192
"""Of 2.4e-4 dex: the longest vortices are known to a few of them."""


def kept_or_computed(
    folder: Path | None, names: Sequence[str], compute: Callable[[list[int]], Iterator[ExactAnswer]]
) -> Iterator[ExactAnswer]:
    """The answers under `names`, in order: those that `folder` holds, and those that `compute` finds at the
    other positions, which are kept as they come. None: nothing is kept."""
    known = [None if folder is None else _read(folder / f"{name}.npz") for name in names]
    found = compute([k for k, answer in enumerate(known) if answer is None])
    for name, answer in zip(names, known, strict=True):
        if answer is None:
            answer = next(found)
            if folder is not None:
                _write(folder / f"{name}.npz", answer)
        yield answer
    next(found, None)  # ends its processes


def code_version() -> str:
    """SHA-256 of the sources that an exact posterior depends on: the simulator's and the floor's."""
    here = Path(__file__).parent
    files = sorted(here.glob("*.py")) + sorted((here.parents[1] / "simulation").glob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _read(file: Path) -> ExactAnswer | None:
    """What was kept of an image; None where there is nothing, or something damaged."""
    try:
        with np.load(BytesIO(file.read_bytes()), allow_pickle=False) as kept:
            answer = ExactAnswer(kept["density"], float(kept["misfit"]), float(kept["worst"]))
    except (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, BadZipFile, TokenError):
        return None
    density = answer.density
    usable = density.shape == (BINS,) and density.dtype == np.float64 and np.isfinite(density).all()
    return answer if usable else None


def _write(file: Path, answer: ExactAnswer) -> None:
    content = BytesIO()
    np.savez(content, density=answer.density, misfit=answer.misfit, worst=answer.worst)
    write_file(file, content.getvalue())
