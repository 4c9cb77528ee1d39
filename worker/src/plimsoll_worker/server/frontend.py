"""Runs both HTTP servers in a thread of their own, from the process's first second to its last.

The main thread belongs to the engine; uvicorn in the main thread and the engine in another was the
alternative, but then a signal, an exit code and an exception of the engine would each need a way back to the
main thread.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from types import TracebackType
from typing import Self

import uvicorn

from plimsoll_worker.launch import Launch, LaunchError
from plimsoll_worker.progress import Startup
from plimsoll_worker.server.app import admin_app, serving_app
from plimsoll_worker.server.service import Lobby, Service, State
from plimsoll_worker.settings import ADMIN_PORT_ENV, SERVING_PORT_ENV, Settings

FAREWELL_SECONDS = 5
"""How long connections may take to read their last bytes."""


class Frontend:
    """The serving and the admin server, as a context."""

    def __init__(self, launch: Launch, settings: Settings, startup: Startup) -> None:
        """Bind both ports. Raises LaunchError naming the variable of a port that is taken."""
        self.lobby = Lobby(launch, settings.api_key, startup)
        self._servers = [uvicorn.Server(_config(app(self.lobby))) for app in (serving_app, admin_app)]
        self._sockets = [
            _bind(settings.serving_port, SERVING_PORT_ENV),
            _bind(settings.admin_port, ADMIN_PORT_ENV),
        ]
        self._thread = threading.Thread(target=self._run, name="frontend", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.should_exit = True
        self._thread.join(FAREWELL_SECONDS + 5)

    @property
    def ports(self) -> tuple[int, int]:
        """Serving and admin port, as bound."""
        serving, admin = (bound.getsockname()[1] for bound in self._sockets)
        return serving, admin

    def open(self, service: Service) -> None:
        """Take requests."""
        self.lobby.opened = service
        self.lobby.state = State.READY

    def drain(self) -> None:
        """Refuse new requests and report not ready. Safe to call from a signal handler."""
        self.lobby.state = State.DRAINING

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        pairs = zip(self._servers, self._sockets, strict=True)
        await asyncio.gather(*(server.serve(sockets=[bound]) for server, bound in pairs))


def _config(app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        lifespan="off",
        ws="none",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=75,  # above what usual proxies keep idle connections for, so that they close first
        timeout_graceful_shutdown=FAREWELL_SECONDS,
    )


def _bind(port: int, variable: str) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("0.0.0.0", port))  # noqa: S104 - a pod is reached by its own address
    except OSError as error:
        raise LaunchError(
            f"port {port} cannot be bound ({error.strerror}); set {variable} to a free one"
        ) from error
    bound.listen(2048)
    return bound
