"""The HTTP client of the serving benchmark: one streamed answer at a time on each of its connections.

A client that takes as long over a token as the server does measures itself. httpx took 57 µs of CPU for an
event, nearly as much as the server that sent it, and the worker's image does without it; what a benchmark
asks for, one POST and the lines of its answer, is a page over asyncio's streams.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Refused(Exception):
    """The server answered with another status than 200."""


class StreamingClient:
    """Keeps connections for the next request, as clients do."""

    def __init__(self, url: str) -> None:
        """`url`: of the server, http or https; requests' paths come behind its own."""
        parts = urlsplit(url)
        assert parts.hostname is not None, f"{url} names no host; write http://HOST:PORT"
        self._host, self._tls = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        self._idle: list[Connection] = []

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """POST `body`; the data of each server-sent event as it comes. Raises Refused, OSError, EOFError."""
        content = json.dumps(body).encode()
        async with self._connection() as (reader, writer):
            writer.write(
                f"POST {self._path}{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
                + content
            )
            status, headers = await _head(reader)
            pieces = _pieces(reader, headers)
            if status != 200:
                raise Refused(f"{status}: {b''.join([piece async for piece in pieces]).decode()}")
            rest = b""
            async for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: "):
                        yield line[6:]

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """One that is idle, or a new one; it is kept when the answer came to its end."""
        while self._idle and self._idle[-1][0].at_eof():
            self._idle.pop()[1].close()
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls or None)
        try:
            yield reader, writer
        except BaseException:
            writer.close()
            raise
        self._idle.append((reader, writer))


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers, names in small letters."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """A body as it comes, chunk by chunk (RFC 9112, section 7.1)."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        yield await reader.readexactly(int(headers.get("content-length", "0")))
        return
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
