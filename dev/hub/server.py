"""The HTTP face of the hub: the requests that `huggingface_hub` makes to inspect and download models, and no
others.

Answers, headers and error codes follow the hub's own, because the client decides by them: `X-Error-Code`
tells a missing repository from a gated one, `X-Repo-Commit` and the ETag name what was downloaded.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from dev.hub.repository import Access, HubFile, Repository

TOKEN = "hf_plimsoll"
"""The one token that gated and private repositories accept."""
CHUNK = 1 << 20

_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class Request:
    """One request that the server answered."""

    method: str
    path: str
    range: str | None
    authorised: bool


class Refusal(Exception):
    """An answer that is not the file: status, the client's error code, and a sentence."""

    def __init__(self, status: HTTPStatus, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message} | headers


class HubServer:
    """A running hub. `requests` is what was asked of it; `throttle` makes it ask for patience."""

    def __init__(self, repositories: Iterable[Repository], host: str, port: int, token: str) -> None:
        self.repositories = {repository.name: repository for repository in repositories}
        self.token = token
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._throttled = 0
        self._retry_after = 0
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._http = ThreadingHTTPServer((host, port), Handler)
        self._http.daemon_threads = True
        self.port = int(self._http.server_address[1])
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.05,), name="hub", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to on this machine."""
        host = str(self._http.server_address[0])
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{self.port}"

    def throttle(self, count: int, retry_after: int = 0) -> None:
        """Answer the next `count` requests with 429 and this Retry-After (seconds)."""
        with self._lock:
            self._throttled, self._retry_after = count, retry_after

    def close(self) -> None:
        """Stop answering and free the port."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def admit(self, request: Request) -> None:
        """Note the request. Raises Refusal while the server is throttled."""
        with self._lock:
            self.requests.append(request)
            if self._throttled:
                self._throttled -= 1
                raise Refusal(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    "",
                    "Too many requests",
                    **{"Retry-After": str(self._retry_after)},
                )

    def repository(self, name: str, revision: str, *, authorised: bool) -> Repository:
        """The repository at this revision. Raises Refusal as the hub does."""
        repository = self.repositories.get(name)
        if repository is None or (repository.access is Access.PRIVATE and not authorised):
            status = HTTPStatus.NOT_FOUND if authorised else HTTPStatus.UNAUTHORIZED
            raise Refusal(status, "RepoNotFound", "Repository not found")
        if revision not in ("main", repository.commit):
            raise Refusal(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository


def serve(
    repositories: Iterable[Repository], host: str = "127.0.0.1", port: int = 0, *, token: str = TOKEN
) -> HubServer:
    """Start a hub in a thread. Port 0 takes a free one; `close()` it, or use it as a context."""
    return HubServer(repositories, host, port, token)


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"
    # A client that keeps its connection idle must not keep a thread for ever.
    timeout = 60

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silent: `HubServer.requests` is the log."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorised = self.headers.get("Authorization") == f"Bearer {self.server_hub.token}"
        try:
            self.server_hub.admit(Request(self.command, path, self.headers.get("Range"), authorised))
            if match := _API.fullmatch(path):
                self._api(match, parse_qs(url.query), body, authorised=authorised)
            elif match := _RESOLVE.fullmatch(path):
                self._resolve(match, authorised=authorised)
            else:
                raise Refusal(HTTPStatus.NOT_FOUND, "", f"Not an address of this hub: {path}")
        except Refusal as refusal:
            self._send(refusal.status, json.dumps({"error": str(refusal)}).encode(), refusal.headers)
        except ConnectionError:
            # The client has seen enough, as one that only wants a header may.
            self.close_connection = True

    def _api(
        self, match: re.Match[str], query: dict[str, list[str]], body: bytes, *, authorised: bool
    ) -> None:
        name, kind, revision, folder = match.groups()
        repository = self.server_hub.repository(name, revision or "main", authorised=authorised)
        match kind:
            case "tree":
                recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
                answer: Any = _tree(repository, folder or "", recursive=recursive)
            case "paths-info":
                wanted = json.loads(body)["paths"]
                answer = [_entry(path, repository.files[path]) for path in wanted if path in repository.files]
            case _:
                answer = _model_info(repository, blobs="blobs" in query)
        self._send(HTTPStatus.OK, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, match: re.Match[str], *, authorised: bool) -> None:
        name, revision, path = match.groups()
        repository = self.server_hub.repository(name, revision, authorised=authorised)
        if repository.access is Access.GATED and not authorised:
            known = "Authorization" in self.headers
            status = HTTPStatus.FORBIDDEN if known else HTTPStatus.UNAUTHORIZED
            raise Refusal(status, "GatedRepo", f"Access to model {name} is restricted")
        file = repository.files.get(path)
        if file is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{path} does not exist")
        headers = {
            "ETag": f'"{file.sha256}"',
            "X-Linked-Etag": f'"{file.sha256}"',
            "X-Linked-Size": str(file.size),
            "X-Repo-Commit": repository.commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        self._send_file(file, headers)

    def _send_file(self, file: HubFile, headers: dict[str, str]) -> None:
        start, stop, status = 0, file.size, HTTPStatus.OK
        if asked := self.headers.get("Range"):
            found = _RANGE.fullmatch(asked)
            if found is None or not any(found.groups()):
                raise Refusal(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "", f"Range {asked} is not understood"
                )
            first, last = found.groups()
            start = int(first) if first else max(0, file.size - int(last))
            stop = min(file.size, int(last) + 1) if first and last else file.size
            if start >= stop:
                raise Refusal(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                    "",
                    f"Range {asked} of a file of {file.size} bytes",
                    **{"Content-Range": f"bytes */{file.size}"},
                )
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        while start < stop:
            data = file.read(start, min(CHUNK, stop - start))
            self.wfile.write(data)
            start += len(data)

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _model_info(repository: Repository, *, blobs: bool) -> dict[str, Any]:
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in repository.files]
    if blobs:
        for sibling in siblings:
            sibling["size"] = repository.files[sibling["rfilename"]].size
    return {
        "_id": repository.commit[:24],
        "id": repository.name,
        "modelId": repository.name,
        "sha": repository.commit,
        "private": repository.access is Access.PRIVATE,
        "gated": "manual" if repository.access is Access.GATED else False,
        "disabled": False,
        "tags": ["safetensors"],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
    }


def _tree(repository: Repository, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in repository.files.items():
        if not path.startswith(prefix):
            continue
        inner, _, rest = path.removeprefix(prefix).partition("/")
        if rest and not recursive:
            entries[inner] = {
                "type": "directory",
                "path": prefix + inner,
                "oid": repository.commit,
                "size": 0,
            }
        else:
            entries[path] = _entry(path, file)
    if folder and not entries:
        raise Refusal(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{folder} does not exist")
    return list(entries.values())


def _entry(path: str, file: HubFile) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": file.size, "oid": file.sha256[:40]}
    if path.endswith((".safetensors", ".gguf")):
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 135}
    return entry
