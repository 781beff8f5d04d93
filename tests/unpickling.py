"""An audit hook that notices whenever code of the package lets pickle look a name up."""

import sys
from pathlib import Path

PACKAGE = str(Path(__file__).resolve().parents[1] / "src" / "darkarc")

# What these unpickle came from this machine's own processes a moment ago, not from a file of somebody.
OWN_PROCESSES = (
    "/multiprocessing/",
    "/concurrent/futures/",
    "/ray/",
    "/joblib/",
    "/copy.py",
    "/optuna/",
    "/torch/_inductor/",  # its cache of compiled graphs
    "/torch/_functorch/",
)

found: list[str] = []
"""What was looked up, and from where; a fixture fails the test that it happened in."""


def watch() -> None:
    """Start watching; audit hooks stay for the life of the process."""
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event != "pickle.find_class":
        return
    frame, ours = sys._getframe(1), ""
    while frame is not None:
        name = frame.f_code.co_filename
        if any(part in name for part in OWN_PROCESSES):
            return
        if not ours and name.startswith(PACKAGE):
            ours = f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    if ours:
        found.append(f"{ours} unpickled {'.'.join(str(part) for part in arguments)}")
