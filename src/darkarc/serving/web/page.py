"""The page itself: its files, what its model is, and the answer to an upload."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from darkarc.serving.web.answers import table_text
from darkarc.serving.web.guard import App, Guard
from darkarc.serving.web.pool import WorkerPool
from darkarc.serving.web.settings import PageServer
from darkarc.serving.web.uploads import DRAINED_BYTES, ENDINGS, Refused, declared_too_large, receive

FILES = {
    "page.html": "text/html; charset=utf-8",
    "login.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "posterior.js": "text/javascript; charset=utf-8",
}
"""The files there are, in the package; no folder is served."""

DRAIN_S = 3.0
LOGIN_BYTES = 4096
WRONG_TOKEN_S = 0.5


def build(server: PageServer, pool: WorkerPool) -> App:
    """The ASGI application."""
    page = _Page(server, pool)
    routes = [
        Route("/", page.home, methods=["GET"]),
        Route("/login", page.login, methods=["GET", "POST"]),
        Route("/api/model", page.model, methods=["GET"]),
        Route("/api/answer", page.answer, methods=["POST"]),
        *(Route(f"/{name}", page.file, methods=["GET"]) for name in ("page.css", "page.js", "posterior.js")),
    ]
    handlers: dict[Any, Any] = {
        404: _not_there,
        405: _not_there,
        Exception: _broken,
        Refused: _refused,
        ClientDisconnect: _gone,
    }
    app = Starlette(debug=False, routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    page.guard = Guard(app, server)
    return page.guard


class _Page:
    def __init__(self, server: PageServer, pool: WorkerPool) -> None:
        self.server, self.pool = server, pool
        folder = resources.files("darkarc.serving.web")
        self._files = {name: (folder / name).read_bytes() for name in FILES}
        self.guard: Guard

    def _file(self, name: str, status: int = 200) -> Response:
        return Response(self._files[name], status, media_type=FILES[name])

    async def home(self, request: Request) -> Response:
        return self._file("page.html")

    async def file(self, request: Request) -> Response:
        return self._file(request.url.path.removeprefix("/"))

    async def login(self, request: Request) -> Response:
        """The form, and what it sends: the token comes in, a cookie goes out."""
        given = request.query_params.get("token", "")
        if request.method == "POST":
            body = b""
            async for chunk in request.stream():
                body += chunk
                if len(body) > LOGIN_BYTES:
                    raise Refused(413, "that is no token")
            given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        if not given:
            return self._file("login.html")
        if not self.guard.is_token(given.strip()):
            await asyncio.sleep(WRONG_TOKEN_S)
            return self._file("login.html", 401)
        answer = RedirectResponse("/", 303)
        # Not `secure`: without TLS the browser would not send it back at all.
        answer.set_cookie(
            self.guard.cookie_name, self.guard.cookie_value(), httponly=True, samesite="strict", path="/"
        )
        return answer

    async def model(self, request: Request) -> Response:
        """What the page has to know."""
        limits = self.server.limits
        shown = ("max_files", "max_file_mb", "max_request_mb", "max_images")
        return JSONResponse(
            {
                **self.pool.facts,
                "header": table_text([], header=True),
                "endings": list(ENDINGS),
                "limits": {name: getattr(limits, name) for name in shown},
            }
        )

    async def answer(self, request: Request) -> Response:
        """Files in, answers out: JSON, or the table where the sender accepts text/csv alone."""
        length = request.headers.get("content-length")
        try:
            with self.pool.place():
                if refused := declared_too_large(length, self.server.limits):
                    raise refused
                with tempfile.TemporaryDirectory(prefix="darkarc-serve-") as folder:
                    async with asyncio.timeout(self.server.limits.timeout_s):
                        kind = request.headers.get("content-type", "")
                        uploads = await receive(request.stream(), kind, Path(folder), self.server.limits)
                    answered = await self.pool.ask(uploads)
        except TimeoutError as error:
            raise Refused(408, f"the upload took longer than {self.server.limits.timeout_s:g} s") from error
        except Refused:
            if "expect" not in request.headers:  # otherwise the sender waits for our word, and sends nothing
                await _drain(request)
            raise
        if request.headers.get("accept", "") == "text/csv":
            lines = [image["line"] for file in answered["files"] for image in file["images"]]
            return Response(table_text([], header=True) + "".join(lines), media_type="text/csv")
        return JSONResponse(answered)


async def _drain(request: Request) -> None:
    """Read on for a moment: who is still sending when the connection ends never sees why it ended."""
    left, ends_at = DRAINED_BYTES, time.monotonic() + DRAIN_S
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(DRAIN_S):
            async for chunk in _rest(request):
                left -= len(chunk)
                if left < 0 or time.monotonic() > ends_at:
                    return


async def _rest(request: Request) -> AsyncIterator[bytes]:
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            return
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {"connection": "close"} | ({"retry-after": "1"} if error.status == 503 else {})
    return JSONResponse({"error": error.message}, error.status, headers)


async def _not_there(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "nothing here"}, getattr(error, "status_code", 404))


async def _broken(request: Request, error: Exception) -> Response:
    """A stranger learns that it went wrong; how, stands in the server's log."""
    return JSONResponse({"error": "something went wrong here; the server's log says what"}, 500)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)
