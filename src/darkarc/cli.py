"""The command line: one verb a stage, thin (`darkarc.commands`), and how it ends."""

import os
import sys
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
    "failed to map segment",  # the loader of shared libraries
    "could not create a primitive",  # oneDNN, in a convolution
)
LESS_MEMORY = (
    "lower train.batch_size, evaluate.batch_size, data.memory_gb or the number of workers, or give it more; "
    "what was written stands, and the same command goes on"
)


ENOUGH_ADDRESS_SPACE = 8 * 2**30
"""Bytes that the libraries of every verb can reserve without being refused; most of it is never touched."""


def main() -> NoReturn:
    """Run the command line; a user's mistake ends in one message and status 2, not in a traceback."""
    set_environment()
    warn_of_little_address_space()
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


def warn_of_little_address_space() -> None:
    """Said before anything is refused: OpenBLAS and others then end the process without a word of ours."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if resource.RLIM_INFINITY != limit < ENOUGH_ADDRESS_SPACE:
        print(
            f"darkarc: this shell limits the address space to {limit / 2**30:.1f} GB (ulimit -v), and "
            "libraries that are refused may end without a word: if this ends early, lift that limit, bound "
            "memory by a container or a scheduler; what was written stands, and the same command goes on",
            file=sys.stderr,
        )


def is_lack_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that memory was refused: each library has its own words."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, RuntimeError | OSError | ImportError) and any(
            words in str(error) for words in NO_MEMORY
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _is_for_the_user(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "darkarc"
