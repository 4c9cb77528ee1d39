"""A reverse proxy between an operator and the real API server, with a tripwire and the faults of a network.

A test that must kill the operator between two of its writes cannot hit the moment by watching: the writes
are milliseconds apart. The proxy sees each request before the API server does, so a tripwire can act exactly
there, and the product needs no test-only code. Requests are answered by the real API server, unchanged,
unless a fault is switched on: connections that are cut, streams that fall silent, answers that only a server
in trouble gives.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml
from aiohttp import web


@dataclass(frozen=True)
class Request:
    """A request on its way to the API server."""

    method: str
    path: str
    body: bytes

    @property
    def is_write(self) -> bool:
        return self.method in {"POST", "PUT", "PATCH", "DELETE"}


Tripwire = Callable[[Request], bool]
"""Called for every request; True drops it: the API server never sees it, the connection is closed."""

FAREWELL_SECONDS = 20
CALL_SECONDS = 150
"""For one call of another thread; the loop does it at once, and later on a busy machine."""


class ApiProxy:
    """`with ApiProxy(kubeconfig, folder) as proxy:` serves until the end of the block.

    Give `proxy.kubeconfig` to the operator and set `proxy.tripwire`.
    """

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self._server: str = config["clusters"][0]["cluster"]["server"]
        self._tls = _client_tls(config, folder)
        self.kubeconfig = folder / "proxied-kubeconfig"
        self.tripwire: Tripwire | None = None
        self.status: Callable[[Request], int] = lambda _request: 0
        """An error that is answered in the API server's place; 0: none."""
        self.amend: Callable[[Request], bytes] = lambda request: request.body
        """What the API server gets as the body of a request."""
        self.delay_seconds = 0.0
        """How long every request waits before the API server sees it."""
        self.silent = False
        """Streams lose what is said while this is set, and every stream that lost anything says no more."""
        self._open: set[asyncio.Transport] = set()
        self.writes: list[Request] = []
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._thread = threading.Thread(target=self._loop.run_forever, name="api-proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        port = self._call(self._start())
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "proxied", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                    "users": [{"name": "proxied", "user": {}}],
                    "contexts": [{"name": "proxied", "context": {"cluster": "proxied", "user": "proxied"}}],
                    "current-context": "proxied",
                }
            )
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Close every connection, as a server that goes away does."""

        async def abort() -> None:
            for transport in list(self._open):
                transport.abort()

        self._call(abort())

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=CALL_SECONDS)

    async def _start(self) -> int:
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        application = web.Application(client_max_size=16 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        address: tuple[str, int] = self._runner.addresses[0]
        return address[1]

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._client.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        # TLS says farewell and waits for the answer: a loop that stops before leaves connections behind. What
        # stays is the loop's own pipe.
        deadline = self._loop.time() + FAREWELL_SECONDS
        while len(self._selector.get_map()) > 1 and self._loop.time() < deadline:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)

    async def _forward(self, incoming: web.Request) -> web.StreamResponse:
        body = await incoming.read()
        request = Request(incoming.method, incoming.path, body)
        if self.tripwire is not None and self.tripwire(request):
            transport = incoming.transport
            if transport is not None:
                transport.abort()
            raise web.HTTPServiceUnavailable
        if status := self.status(request):
            reason = {409: "Conflict", 410: "Expired", 429: "TooManyRequests"}.get(status, "InternalError")
            return web.json_response({"kind": "Status", "code": status, "reason": reason}, status=status)
        await asyncio.sleep(self.delay_seconds)
        if request.is_write:
            self.writes.append(request)
        try:
            return await self._pass_on(incoming, self.amend(request))
        except aiohttp.ClientError:
            # Its connections break, so this one does.
            if incoming.transport is not None:
                incoming.transport.abort()
            raise web.HTTPServiceUnavailable from None

    async def _pass_on(self, incoming: web.Request, body: bytes) -> web.StreamResponse:
        headers = {
            key: value
            for key, value in incoming.headers.items()
            if key.lower() not in {"host", "content-length"}
        }
        async with self._client.request(
            incoming.method, self._server + incoming.raw_path, data=body or None, headers=headers
        ) as answer:
            outgoing = web.StreamResponse(status=answer.status)
            for key, value in answer.headers.items():
                if key.lower() not in {"transfer-encoding", "content-length", "connection"}:
                    outgoing.headers[key] = value
            await outgoing.prepare(incoming)
            dead = False
            with self._tracked(incoming), contextlib.suppress(ConnectionResetError):
                async for chunk in answer.content.iter_any():
                    dead = dead or (self.silent and "watch" in incoming.query)
                    if not dead:
                        await outgoing.write(chunk)
                await outgoing.write_eof()
            return outgoing

    @contextlib.contextmanager
    def _tracked(self, incoming: web.Request) -> Iterator[None]:
        transport = incoming.transport
        assert isinstance(transport, asyncio.Transport)
        self._open.add(transport)
        try:
            yield
        finally:
            self._open.discard(transport)


def _client_tls(config: dict[str, Any], folder: Path) -> ssl.SSLContext:
    import base64

    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(
        cadata=base64.b64decode(cluster["certificate-authority-data"]).decode()
    )
    pem = folder / "client.pem"
    pem.touch(mode=0o600)
    pem.write_bytes(
        base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"])
    )
    context.load_cert_chain(str(pem))
    return context
