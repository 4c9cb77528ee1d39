"""Whether the operator is alive (its actor turns) and ready (it has seen the whole cluster), and the page
that says so.

Liveness is kopf's own endpoint, so that it dies with kopf's loop too; readiness and metrics share a small
server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

STALE_SECONDS = 120.0
"""An actor that has not turned for this long is stuck: a round takes seconds, and idle ones beat as well."""

StartResponse = Callable[[str, list[tuple[str, str]]], object]


class Heartbeat:
    """Beaten by the actor on every turn."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last = monotonic()

    def beat(self) -> None:
        self._last = self._monotonic()

    def problem(self) -> str:
        """Why the operator should be restarted; empty when it lives."""
        age = self._monotonic() - self._last
        return f"the planner has not turned for {age:.0f} s" if age > STALE_SECONDS else ""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Scrapes every few seconds are nothing to log."""

    def log_message(self, *_: Any) -> None:
        return


def serve(port: int, missing_feeds: Callable[[], Iterable[str]], host: str = "0.0.0.0") -> WSGIServer:  # noqa: S104
    """/metrics, and /readyz: 200 once every feed was listed, else 503 naming those that were not. In a
    thread."""
    metrics_app = make_wsgi_app()

    def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != "/readyz":
            answer: Iterable[bytes] = metrics_app(environ, start_response)
            return answer
        missing = list(missing_feeds())
        start_response("503 Service Unavailable" if missing else "200 OK", [("Content-Type", "text/plain")])
        return [f"not listed yet: {', '.join(missing)}\n".encode() if missing else b"ok\n"]

    server = make_server(host, port, application, _Server, _Quiet)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
