"""Watches what every Python process of a test looks up and connects to: nothing is to leave the machine.

Each interpreter that finds `sitecustomize` on PYTHONPATH imports it before anything else, and so do its
children. The hook sees what Python does; what a C++ process such as Ray's does itself, it does not.
"""

import json
from pathlib import Path

VARIABLE = "DARKARC_TEST_WATCH"

HOOK = """
import json, os, socket, sys

OWN = {"", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname().lower()}

def away(host):
    host = (host.decode("ascii", "replace") if isinstance(host, bytes) else str(host or "")).lower()
    return host.partition("%")[0] not in OWN and not host.startswith(("127.", "::ffff:127."))

def note(event, what):
    words = getattr(sys, "orig_argv", [])[:6]
    line = json.dumps({"event": event, "what": str(what), "argv": words})
    descriptor = os.open(os.environ["DARKARC_TEST_WATCH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode() + b"\\n")
    os.close(descriptor)

def watch(event, arguments):
    if not event.startswith("socket."):
        return
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        if away(arguments[0]):
            note(event, arguments[0])
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        connection, address = arguments[0], arguments[-1]
        # Connecting a datagram socket sends nothing: Ray asks so for the machine's own address.
        silent = event == "socket.connect" and connection.type == socket.SOCK_DGRAM
        if isinstance(address, tuple) and not silent and away(address[0]):
            note(event, address)

if os.environ.get("DARKARC_TEST_WATCH"):
    sys.addaudithook(watch)
    note("start", os.getpid())
"""


class Watch:
    """A folder for PYTHONPATH, and what was seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "seen.jsonl"
        folder.mkdir(parents=True)
        (folder / "sitecustomize.py").write_text(HOOK)

    @property
    def environment(self) -> dict[str, str]:
        return {VARIABLE: str(self.log)}

    def seen(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def processes(self) -> int:
        """How many interpreters were watched."""
        return sum(entry["event"] == "start" for entry in self.seen())

    def away(self) -> list[dict]:
        """Look-ups and connections that are not of this machine."""
        return [entry for entry in self.seen() if entry["event"] != "start"]
