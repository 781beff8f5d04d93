"""What the page is told at its start, and what it refuses to be."""

import ipaddress
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from darkarc.config import ServeConfig

TOKEN = "DARKARC_SERVE_TOKEN"
"""Variable with the token: unlike an argument, other users of the machine cannot see it."""

SHORTEST_TOKEN = 16
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
EVERY_ADDRESS = ("0.0.0.0", "::")
MEGABYTE = 10**6


class ServeError(ValueError):
    """A page that cannot be served as asked."""


@dataclass(frozen=True)
class PageServer:
    """model: what `darkarc.load` takes; host, port: where it listens; names: under which others reach it;
    token: what a visitor has to know, None: nothing; gate: as of `darkarc predict`.

    Raises `ServeError` for a page that would be open to a network.
    """

    model: str
    limits: ServeConfig = field(default_factory=ServeConfig)
    host: str = LOOPBACK_NAMES[1]
    port: int = 8000
    names: tuple[str, ...] = ()
    token: str | None = None
    gate: float = 0.5

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise ServeError(
                f"host {self.host}: without a token the page answers on 127.0.0.1 alone, because whoever "
                "reaches it could use this machine; leave --no-token away, or the host"
            )
        if self.token and len(self.token) < SHORTEST_TOKEN:
            raise ServeError(
                f"a token of {len(self.token)} characters can be guessed; expected {SHORTEST_TOKEN} or more"
            )

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Names in a request's `Host` that are answered, without ports. A page of another site whose name
        was made to point here (DNS rebinding) sends that site's name."""
        own = () if self.host in EVERY_ADDRESS else (self.host.lower(),)
        return frozenset({*LOOPBACK_NAMES, *own, *(name.lower().rstrip(".") for name in self.names)})

    @property
    def address(self) -> str:
        """What to open in a browser on this machine."""
        host = self.names[0] if self.names else self.host
        host = LOOPBACK_NAMES[1] if host in EVERY_ADDRESS else host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(
    host: str, wanted: bool | None, file: Path | None, environment: Mapping[str, str]
) -> str | None:
    """The token of `file`, or of the variable `DARKARC_SERVE_TOKEN`, else a new one; None if none is wanted.

    wanted: None asks for one only outside of the loopback, or where one is given. Raises `ServeError` for a
    file that others can read, or an empty one.
    """
    if wanted is False:
        return None
    if file is not None:
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
            raise ServeError(f"{file}: others can read it (mode {mode:03o}); run `chmod 600 {file}`")
        token = file.read_text(encoding="utf-8").strip()
        if not token:
            raise ServeError(f"{file}: holds no token; write one into it, a line of 24 characters or more")
        return token
    if given := environment.get(TOKEN, "").strip():
        return given
    return None if wanted is None and is_loopback(host) else secrets.token_urlsafe(24)
