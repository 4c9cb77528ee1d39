"""One process that answers for every fake worker: honestly, or as a test tells it to.

Fake pods have loopback addresses, which are this machine's own: whoever listens on the address and the admin
port of a pod is that pod's worker. So the operator asks for reports as it always does, and nothing in it
knows that the workers are not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

from tests.cluster.api_proxy import CALL_SECONDS

from plimsoll_worker.launch import (
    ADMIN_PORT,
    DeviceReport,
    Launch,
    MeasuredMemory,
    Report,
)

TORCH_VERSION = "2.11.0"
KV_BYTES_A_TOKEN = 8192
"""Of the test's model: 4 layers, 8 heads of 64 keys and 64 values, BF16."""

Answer = Callable[[Report, asyncio.StreamWriter], Awaitable[None]]
"""Writes what the worker says; the connection is closed afterwards."""


def honest_report(launch: Launch) -> Report:
    """What a worker would say that runs exactly what it was told to, in exactly the memory foreseen."""
    device = DeviceReport(
        rank=0,
        product=launch.expected_product or "",
        total_bytes=launch.line,
        used_bytes=launch.predicted.total,
        bytes=MeasuredMemory(**launch.predicted.model_dump()),
    )
    return Report(
        plan_id=launch.plan_id,
        revision=launch.revision,
        device=launch.device,
        architecture="llama",
        weights=launch.weights,
        kv_cache=launch.kv_cache,
        tensor_parallel=launch.tensor_parallel,
        pipeline_parallel=launch.pipeline_parallel,
        stage=launch.stage,
        max_context_tokens=launch.max_context_tokens,
        max_batched_tokens=launch.max_batched_tokens,
        kv_cache_tokens=launch.kv_cache_bytes // KV_BYTES_A_TOKEN,
        devices=(device,),
        startup=(),
        torch_version=TORCH_VERSION,
    )


async def honest(report: Report, connection: asyncio.StreamWriter) -> None:
    await _say(report.to_json(), connection)


def changed(**fields: Any) -> Answer:
    """A report with other values in some fields."""

    async def answer(report: Report, connection: asyncio.StreamWriter) -> None:
        await _say(report.model_copy(update=fields).to_json(), connection)

    return answer


def measuring(**categories: int) -> Answer:
    """A report whose ledger has other bytes in some categories; they need not be possible."""

    async def answer(report: Report, connection: asyncio.StreamWriter) -> None:
        ledger = report.devices[0].bytes.model_copy(update=categories)
        device = report.devices[0].model_copy(update={"bytes": ledger})
        await _say(report.model_copy(update={"devices": (device,)}).to_json(), connection)

    return answer


async def slow(report: Report, connection: asyncio.StreamWriter) -> None:
    """A byte now and then, without end."""
    connection.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.write(b" ")
        await connection.drain()
        await asyncio.sleep(0.2)


async def huge(report: Report, connection: asyncio.StreamWriter) -> None:
    """As many bytes as anybody takes."""
    connection.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.write(b" " * 65536)
        await connection.drain()


async def never(report: Report, connection: asyncio.StreamWriter) -> None:
    """Accepts the connection, and that is all."""
    await asyncio.sleep(3600)


async def malformed(report: Report, connection: asyncio.StreamWriter) -> None:
    await _say("{" * 1000, connection)


async def _say(text: str, connection: asyncio.StreamWriter) -> None:
    body = text.encode()
    connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await connection.drain()


class Workers:
    """`with Workers() as workers:` and then `workers.seen(event, pod)` for each event of a worker pod."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Answer] = {}
        """What the workers of a deployment say, by namespace and name; all others are honest."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="workers")
        self._servers: dict[str, asyncio.Server] = {}
        self._conversations: set[asyncio.Task[Any]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(timeout=CALL_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def seen(self, event: str, pod: Mapping[str, Any]) -> None:
        """A worker pod came, changed or went."""
        uid, address = pod["metadata"]["uid"], (pod.get("status") or {}).get("podIP")
        if event == "DELETED":
            self._call(self._end(uid))
        elif address and uid not in self._servers:
            labels = pod["metadata"]["labels"]
            deployment = pod["metadata"]["namespace"], labels.get("plimsoll.dev/deployment", "")
            environment = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
            self._call(self._begin(uid, address, deployment, Launch.from_env(environment)))

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=CALL_SECONDS)

    async def _begin(self, uid: str, address: str, deployment: tuple[str, str], launch: Launch) -> None:
        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._conversations.add(task)
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await reader.readuntil(b"\r\n\r\n")
                    await self.answers.get(deployment, honest)(honest_report(launch), writer)
            finally:
                self._conversations.discard(task)
                writer.close()

        self._servers[uid] = await asyncio.start_server(converse, address, ADMIN_PORT)

    async def _end(self, uid: str) -> None:
        if server := self._servers.pop(uid, None):
            # A connection that is just being accepted would find its server closed: asyncio of Python 3.11
            # drops it, half made and never closed.
            for listening in server.sockets:
                self._loop.remove_reader(listening.fileno())
            await asyncio.sleep(0)
            server.close()

    async def _close(self) -> None:
        for uid in list(self._servers):
            await self._end(uid)
        for task in list(self._conversations):
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)
