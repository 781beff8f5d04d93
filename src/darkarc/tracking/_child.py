"""A server as a child of this process, which ends with it: on Ctrl-C, and on SIGTERM of a service manager."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType


def serve_until_asked(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a server and all its processes until it ends, or until SIGINT or SIGTERM asks.

    Returns 0 if it was asked, else the server's exit status. MLflow's server is a tree of processes of
    which only the first is ours: they are a group of their own, and the group is told.
    """
    process: subprocess.Popen[bytes] | None = None
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        _tell(process)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        if asked:  # while it was being started
            _tell(process)
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if asked else status


def _tell(process: "subprocess.Popen[bytes] | None") -> None:
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
