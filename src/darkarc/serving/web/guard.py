"""What stands before every answer: who asks, under which name, from which page, and how long it may take."""

import asyncio
import hashlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from darkarc.serving.web.pool import START_S
from darkarc.serving.web.settings import PageServer
from darkarc.serving.web.uploads import Refused

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

METHODS = ("GET", "HEAD", "POST")
OPEN_PATHS = ("/login", "/page.css")
"""What a visitor sees who has not given the token yet."""

HEADERS = {
    # Nothing but this page's own files runs or is shown; nothing is sent elsewhere.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), usb=()",
    "cache-control": "no-store",
}


class Guard:
    """An ASGI application around the page's: refuses, adds the headers, and ends what takes too long."""

    def __init__(self, app: App, server: PageServer) -> None:
        self._app, self._server = app, server
        self._hosts = server.allowed_hosts
        self._cookie_key = secrets.token_bytes(32)
        # Upload, a place among the workers, a worker's start and its answer, each with its own limit.
        self._longest_s = 3 * server.limits.timeout_s + 2 * START_S
        self.cookie_name = f"darkarc_{server.port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        started = False

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            self.check(scope)
            async with asyncio.timeout(self._longest_s):
                await self._app(scope, receive, guarded_send)
        except Refused as refused:
            if refused.status == 401 and scope["path"] == "/":
                await _redirect(guarded_send, "/login")
            else:
                await respond(guarded_send, refused)
        except TimeoutError:
            if not started:
                await respond(guarded_send, Refused(503, "this took too long"))

    def check(self, scope: Scope) -> None:
        """Raises `Refused` for what must not reach the page."""
        headers = Headers(scope)
        host = headers.only("host")
        if host is None or _name_of(host) not in self._hosts:
            raise Refused(
                403, "this page does not answer under that name; start it with `--allowed-host NAME`"
            )
        if scope["method"] not in METHODS:
            raise Refused(405, f"expected {', '.join(METHODS)}")
        if scope["method"] == "POST":
            self._check_origin(headers, host)
        if self._server.token and scope["path"] not in OPEN_PATHS and not self._knows_the_token(headers):
            raise Refused(401, "log in with the token that `darkarc serve` printed")

    def _check_origin(self, headers: "Headers", host: str) -> None:
        """A browser says from which page a request comes; only this page's own count."""
        origin, site = headers.only("origin"), headers.only("sec-fetch-site")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or site not in (None, "same-origin", "none"):
            raise Refused(403, "another site's page may not send files here")

    def _knows_the_token(self, headers: "Headers") -> bool:
        scheme, _, given = (headers.only("authorization") or "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return True
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.only("cookie") or "")
        except CookieError:
            return False
        found = cookies.get(self.cookie_name)
        return found is not None and hmac.compare_digest(found.value.encode(), self.cookie_value().encode())

    def is_token(self, given: str) -> bool:
        """Compared in a time that does not tell how much of it was right."""
        return self._server.token is not None and hmac.compare_digest(
            given.encode("utf-8", "replace"), self._server.token.encode()
        )

    def cookie_value(self) -> str:
        """Not the token: other servers under the same name get this cookie, too."""
        token = (self._server.token or "").encode()
        return hmac.new(self._cookie_key, token, hashlib.sha256).hexdigest()


class Headers:
    """A request's headers; one that must be single and is not counts as missing."""

    def __init__(self, scope: Scope) -> None:
        self._raw: list[tuple[bytes, bytes]] = scope["headers"]

    def only(self, name: str) -> str | None:
        found = [value for key, value in self._raw if key == name.encode()]
        return found[0].decode("latin-1") if len(found) == 1 else None


def _name_of(host: str) -> str:
    """`Host` without its port, lower case: `[::1]:8000` is ::1."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


async def respond(send: Send, refused: Refused) -> None:
    """A refusal as JSON. The connection ends with it: what is left of an upload is not read."""
    body = json.dumps({"error": refused.message}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if refused.status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _redirect(send: Send, path: str) -> None:
    headers = [(b"location", path.encode()), (b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
