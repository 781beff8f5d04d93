"""The page itself: its files, what its model is, and the answer to an upload."""

import asyncio
import tempfile
from collections.abc import Sequence
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
from darkarc.serving.web.uploads import ENDINGS, Refused, declared_too_large, receive

FILES = {
    "page.html": "text/html; charset=utf-8",
    "login.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "posterior.js": "text/javascript; charset=utf-8",
}
"""The files there are, in the package; no folder is served."""

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
        """Files in, answers out: JSON, or the table where the sender would rather have text/csv."""
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
        if wants_table(request.headers.getlist("accept")):
            files = (
                ([image["line"] for image in file["images"]], file["rest"]) for file in answered["files"]
            )
            text = "".join("".join(lines) + rest for lines, rest in files)
            return Response(table_text([], header=True) + text, media_type="text/csv")
        return JSONResponse(answered)


def wants_table(accept: Sequence[str]) -> bool:
    """Whether `Accept` headers ask for text/csv more than for application/json (RFC 9110, 12.5.1): a higher
    q, or as high a one and named more closely."""
    ranges = [_media_range(text) for header in accept for text in header.split(",")]

    def wish(kind: str) -> tuple[float, int]:
        """(q, how closely it is named) of the range that names it most closely."""
        names = ("*/*", f"{kind.partition('/')[0]}/*", kind)
        found = [(names.index(name), q) for name, q in ranges if name in names]
        close, q = max(found, default=(-1, 0.0))
        return (q, close)

    return wish("text/csv") > max(wish("application/json"), (0.0, 2))


def _media_range(text: str) -> tuple[str, float]:
    """`Text/CSV; charset=utf-8; q=0.5` is (text/csv, 0.5); a q that is no number counts as 0."""
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, min(max(float(value), 0.0), 1.0)
            except ValueError:
                return name, 0.0
    return name, 1.0


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {"connection": "close"} | ({"retry-after": "1"} if error.status == 503 else {})
    return JSONResponse({"error": error.message}, error.status, headers)


async def _not_there(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "nothing here"}, getattr(error, "status_code", 404), _ended(request))


async def _broken(request: Request, error: Exception) -> Response:
    """A stranger learns that it went wrong; how, stands in the server's log."""
    return JSONResponse(
        {"error": "something went wrong here; the server's log says what"}, 500, _ended(request)
    )


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)


def _ended(request: Request) -> dict[str, str]:
    """Headers: on a connection that goes on, the rest of an upload would be read to its end."""
    return {"connection": "close"} if request.method == "POST" else {}
