"""The command line: one verb a stage, thin (`darkarc.commands`), and how it ends."""

import os
from importlib import import_module
from typing import NoReturn

from darkarc.commands._app import app, fail, set_environment

__all__ = ["app", "main"]

for group in ("images", "learning", "evidence", "answers", "servers"):
    # In the order of the pipeline, which is the order of --help.
    import_module(f"darkarc.commands.{group}")


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
        if os.environ.get("DARKARC_DEBUG") or not _is_for_the_user(error):
            raise
        fail(str(error), 2)
    raise SystemExit(0)


def _is_for_the_user(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "darkarc"
