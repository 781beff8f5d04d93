"""The workers, as the server sees them: asked, waited for, ended when they are late, and started again."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from darkarc.serving.loading import REGISTRY
from darkarc.serving.web.settings import PageServer, ServeError
from darkarc.serving.web.uploads import Refused, Upload

START_S = 300.0
"""Seconds within which a worker has loaded its model."""

LONGEST_ANSWER = 256 * 2**20
"""Bytes of one line of a worker: pictures and posteriors of all images of a request."""


class Worker:
    """One worker process. `model` is a file or folder, `name` how the page calls it."""

    def __init__(self, server: PageServer, model: str, name: str) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        settings = {
            "model": model,
            "name": name,
            "gate": server.gate,
            "max_images": server.limits.max_images,
            "memory_mb": server.limits.memory_mb,
            "threads": max(1, cores // server.limits.workers),
        }
        # -P: a folder of lens files that happens to hold a numpy.py is no place to import from.
        self._command = [sys.executable, "-P", "-m", "darkarc.serving.web.worker", json.dumps(settings)]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> dict[str, Any]:
        """Start it; returns what it says of its model. Raises `ServeError` if it cannot load it."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LONGEST_ANSWER,
        )
        try:
            said = await self._hear(START_S)
        except (TimeoutError, EOFError, ValueError) as error:
            await self.end()
            raise ServeError(
                "a worker did not start; what it printed says why (too little memory?)"
            ) from error
        if "error" in said:
            await self.end()
            raise ServeError(said["error"])
        facts: dict[str, Any] = said["facts"]
        return facts

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """Asked of the system: the event loop hears of a death only a moment later."""
        if self._process is None or self._process.returncode is not None:
            return False
        try:
            return bool(psutil.Process(self._process.pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    async def ask(self, uploads: list[Upload], timeout_s: float) -> dict[str, Any]:
        """Answers of the files. Raises `Refused` if there is none in time, or the worker died of it."""
        assert self._process is not None and self._process.stdin is not None
        asked = [{"name": u.name, "path": str(u.path), "reason": u.reason} for u in uploads]
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            await self._process.stdin.drain()
            said = await self._hear(timeout_s)
        except TimeoutError as error:
            await self.end()
            raise Refused(
                503, f"no answer within {timeout_s:g} s; send fewer files, or use `darkarc predict`"
            ) from error
        except (EOFError, OSError, ValueError) as error:
            await self.end()
            raise Refused(
                422, "the reader broke down on this upload: a damaged file, or one that needs too much memory"
            ) from error
        except asyncio.CancelledError:
            # Its answer would be taken for that of the next request.
            await self.end()
            raise
        for line in said.pop("log"):
            print(f"darkarc serve: {line}", file=sys.stderr, flush=True)
        return said

    async def _hear(self, timeout_s: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        async with asyncio.timeout(timeout_s):
            line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        message: dict[str, Any] = json.loads(line)
        return message

    async def end(self) -> None:
        """Kill it: it holds nothing that could be lost."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


class WorkerPool:
    """`serve.workers` workers; at most `serve.waiting` requests wait for one."""

    def __init__(self, server: PageServer, model: str) -> None:
        self._server = server
        # In which folder it lies is nobody's business.
        known = server.model.startswith(REGISTRY)
        name = server.model if known else Path(server.model).resolve().name
        self._workers = [Worker(server, model, name) for _ in range(server.limits.workers)]
        self._idle: asyncio.Queue[Worker] = asyncio.Queue()
        self._inside = 0
        self.facts: dict[str, Any] = {}

    async def start(self) -> None:
        """Start all of them. Raises `ServeError`."""
        for facts in await asyncio.gather(*(worker.start() for worker in self._workers)):
            self.facts = facts
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def stop(self) -> None:
        await asyncio.gather(*(worker.end() for worker in self._workers))

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, for upload and answer together. Raises `Refused` if it is full."""
        if self._inside >= len(self._workers) + self._server.limits.waiting:
            raise Refused(503, "the page is busy with other files; try again in a moment")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def ask(self, uploads: list[Upload]) -> dict[str, Any]:
        """Answers of the files, from the next worker that is free. Raises `Refused`."""
        timeout_s = self._server.limits.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                worker = await self._idle.get()
        except TimeoutError as error:
            raise Refused(503, "the page is busy with other files; try again in a moment") from error
        try:
            if not worker.alive:
                facts = await worker.start()
                if facts["sha256"] != self.facts["sha256"]:
                    raise ServeError("the model has changed since the page was started; start it again")
            return await worker.ask(uploads, timeout_s)
        except ServeError as error:
            await worker.end()
            raise Refused(503, str(error)) from error
        finally:
            self._idle.put_nowait(worker)
