"""The server's process: both HTTP servers, tokenizer and detokenizer. `server/frontend.py` starts it.

It is apart from the engine's so that no request, however long, takes the interpreter lock from the thread
that launches steps; and it never imports torch, so it listens within a second.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import sys
import time
from pathlib import Path

import tokenizers
import uvicorn

from plimsoll_worker.loading.tokenizer import Tokenizer, compile_template
from plimsoll_worker.server.app import admin_app, serving_app
from plimsoll_worker.server.engine_link import EngineLink
from plimsoll_worker.server.intake import DeadlineProtocol
from plimsoll_worker.server.messages import Closing, Draining, Language, Leaving, Opened, Standing, Step
from plimsoll_worker.server.metrics import Metrics
from plimsoll_worker.server.prompts import Prompts
from plimsoll_worker.server.service import Lobby, Service, State
from plimsoll_worker.settings import Settings

FAREWELL_SECONDS = 5
"""How long connections may take to read their last bytes."""


class ServerProcess:
    """Runs until the engine's process says so, or is gone."""

    def __init__(self, name: str, settings: Settings, engine: socket.socket) -> None:
        """`name`: the model's, as clients say it. Needs a running event loop."""
        self._name = name
        self._lobby = Lobby(settings.api_key, EngineLink(engine, self._told, self._end))
        self._servers = [uvicorn.Server(_config(app(self._lobby))) for app in (serving_app, admin_app)]
        self._tokenizer: Tokenizer | None = None

    async def serve(self, sockets: list[socket.socket]) -> None:
        """Serving and admin port, bound."""
        pairs = zip(self._servers, sockets, strict=True)
        await asyncio.gather(*(server.serve(sockets=[bound]) for server, bound in pairs))

    def _told(self, message: object) -> None:
        match message:
            case Language():
                self._tokenizer = _tokenizer(message)
            case Opened():
                self._open(message)
            case Step(tokens):
                assert self._lobby.opened is not None
                self._lobby.opened.metrics.step_tokens.observe(tokens)
            case Leaving():
                self._lobby.state = State.LEAVING
            case Standing():
                self._lobby.state = State.READY
            case Draining():
                self._drain()
            case Closing():
                self._end()
            case _:
                raise AssertionError(f"the engine says {message!r}, which nobody here understands")

    def _open(self, opened: Opened) -> None:
        assert self._tokenizer is not None, "the tokenizer comes before the engine opens"
        self._lobby.opened = Service(
            name=self._name,
            engine=self._lobby.engine,
            opened=opened,
            opened_at=int(time.time()),
            tokenizer=self._tokenizer,
            prompts=Prompts(self._tokenizer, opened.limits),
            metrics=Metrics(self._name, opened),
        )
        self._lobby.state = State.READY
        # What the start has made stays; walking over it at every collection is a pause in every stream.
        gc.collect()
        gc.freeze()

    def _drain(self) -> None:
        """A client that kept an idle connection would send its next request here, to be refused."""
        self._lobby.state = State.DRAINING
        for server in self._servers:
            for connection in list(server.server_state.connections):
                connection.shutdown()

    def _end(self) -> None:
        self._lobby.state = State.DRAINING
        for server in self._servers:
            server.should_exit = True


def _tokenizer(language: Language) -> Tokenizer:
    template = language.chat_template
    return Tokenizer(
        backend=tokenizers.Tokenizer.from_str(language.tokenizer),
        special_tokens=language.special_tokens,
        chat_template=compile_template(template, language.special_tokens, Path("the model"))
        if template
        else None,
    )


def _config(app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=DeadlineProtocol,
        lifespan="off",
        ws="none",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=75,  # above what usual proxies keep idle connections for, so that they close first
        timeout_graceful_shutdown=FAREWELL_SECONDS,
    )


def _allow_many_connections() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def main(name: str, engine: int, serving: int, admin: int) -> None:
    """Serve the model `name`; the others are file descriptors of sockets."""
    _allow_many_connections()
    process = ServerProcess(name, Settings.from_env(), socket.socket(fileno=engine))
    await process.serve([socket.socket(fileno=serving), socket.socket(fileno=admin)])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *(int(descriptor) for descriptor in sys.argv[2:])))
