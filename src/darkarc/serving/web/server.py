"""The process of `darkarc serve`: workers, then uvicorn on one address."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from darkarc.serving.loading import REGISTRY
from darkarc.serving.web.page import build
from darkarc.serving.web.pool import WorkerPool
from darkarc.serving.web.settings import PageServer, ServeError

HEADER_S = 10.0
"""Seconds in which a request's headers have arrived."""

CONNECTIONS = 64
"""Open at once; a browser takes six."""

LINGER_S = 5.0
LINGER_BYTES = 256 * 10**6
"""So long and so much a refused sender may go on sending, to nobody, until the connection ends."""


class Parting:
    """A transport that ends its own side first where a request is refused before all of it has come.

    Whoever closes on unread bytes resets the connection, and who is still sending never sees the answer. So
    what comes is thrown away until the sender ends, too, for `LINGER_S` and `LINGER_BYTES` at most.
    """

    def __init__(self, transport: asyncio.Transport, unread: Callable[[], bool]) -> None:
        self._transport, self._unread = transport, unread
        self._left = LINGER_BYTES
        self._task: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._task is not None or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing() or not self._unread():
            self.end()
            return
        self._task = asyncio.get_running_loop().call_later(LINGER_S, self.end)
        self._transport.write_eof()
        self._transport.resume_reading()

    def throw_away(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self.end()

    def end(self) -> None:
        """Close, now."""
        if self._task is not None:
            self._task.cancel()
        self._transport.close()


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that does not wait for ever for a request to begin, or for its headers to end, and lets a
    refusal arrive."""

    _header_task: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        self._parting = Parting(transport, lambda: self.cycle is not None and self.cycle.more_body)
        super().connection_made(self._parting)  # type: ignore[arg-type]  # has all of a transport
        self._header_task = self.loop.call_later(HEADER_S, self._give_up)

    def data_received(self, data: bytes) -> None:
        if self._parting.is_closing():
            self._parting.throw_away(data)
            return
        super().data_received(data)
        if self._in_a_request():
            self._cancel()
        elif self._header_task is None and not self.transport.is_closing():
            self._header_task = self.loop.call_later(HEADER_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        self._parting.end()
        super().connection_lost(exc)

    def _in_a_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _cancel(self) -> None:
        if self._header_task is not None:
            self._header_task.cancel()
            self._header_task = None

    def _give_up(self) -> None:
        self._header_task = None
        if not self._in_a_request():
            self.transport.close()


class _Server(uvicorn.Server):
    """Says so, once it answers, and ends the workers before it passes on the signal that ended it."""

    def __init__(self, config: uvicorn.Config, pool: WorkerPool, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._pool, self._ready = pool, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        await self._pool.stop()


def run_page(server: PageServer, ready: Callable[[PageServer, dict[str, Any]], None]) -> None:
    """Serve until Ctrl-C or SIGTERM. `ready` is told the settings and the model's facts once it answers.

    Raises `ServeError` for a port in use, and for a model that cannot be loaded.
    """
    model = _fetched(server.model)
    with _listen(server) as listener, contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(server, model, listener, ready))


def _fetched(model: str) -> str:
    """A registered model as a file, fetched once: a worker started again must not get the next champion."""
    if not model.startswith(REGISTRY):
        return model
    from darkarc.tracking.registry import download_model

    return str(download_model(model))


def _listen(server: PageServer) -> socket.socket:
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((server.host, server.port))
    except OSError as error:
        listener.close()
        raise ServeError(
            f"cannot listen on {server.host}, port {server.port}: {error.strerror or error}; "
            "choose another with --port"
        ) from error
    return listener


async def _serve(
    server: PageServer,
    model: str,
    listener: socket.socket,
    ready: Callable[[PageServer, dict[str, Any]], None],
) -> None:
    pool = WorkerPool(server, model)
    try:
        await pool.start()
        config = uvicorn.Config(
            build(server, pool),
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            # Addresses that a sender writes into its headers are not believed.
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_level="warning",
            limit_concurrency=CONNECTIONS,
            h11_max_incomplete_event_size=16 * 1024,
            timeout_graceful_shutdown=3,
        )
        await _Server(config, pool, lambda: ready(server, pool.facts)).serve(sockets=[listener])
    finally:
        await pool.stop()
