"""The command line: one verb a stage, thin (`darkarc.commands`), and how it ends."""

import os
from importlib import import_module
from typing import NoReturn

from darkarc.commands._app import app, fail, set_environment

__all__ = ["app", "is_lack_of_memory", "main"]

for group in ("images", "learning", "evidence", "answers", "servers"):
    # In the order of the pipeline, which is the order of --help.
    import_module(f"darkarc.commands.{group}")

NO_MEMORY = (
    "can't allocate memory",  # torch, on the CPU
    "out of memory",  # CUDA, SQLite
    "Cannot allocate memory",  # the operating system
    "bad_alloc",  # C++
    "bad allocation",
    "can't start new thread",
)
LESS_MEMORY = (
    "lower train.batch_size, evaluate.batch_size, data.memory_gb or the number of workers, or give it more; "
    "what was written stands, and the same command goes on"
)


def main() -> NoReturn:
    """Run the command line; a user's mistake ends in one message and status 2, not in a traceback."""
    set_environment()
    try:
        app()
    except SystemExit as end:
        # typer turns Ctrl-C into a silent end
        stop = end.__context__ and end.__context__.__cause__
        if isinstance(stop, KeyboardInterrupt):
            fail(str(stop) or "interrupted; the same command goes on where it stopped", 130)
        raise
    except Exception as error:
        if os.environ.get("DARKARC_DEBUG"):
            raise
        if is_lack_of_memory(error):
            fail(f"out of memory ({_first_line(error)}); {LESS_MEMORY}", 2)
        if not _is_for_the_user(error):
            raise
        fail(str(error), 2)
    raise SystemExit(0)


def is_lack_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that memory was refused: each library has its own words."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _is_for_the_user(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "darkarc"
