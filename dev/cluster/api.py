"""The few requests that `up` itself makes to the API server.

The `kubernetes` package would do it too, but costs a second to import on the path that everybody waits for.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
import urllib.parse
from pathlib import Path
from typing import Any

import yaml

from dev.cluster.errors import ClusterError

_TIMEOUT_SECONDS = 10


class ApiServer:
    """Requests with the identity of a kubeconfig whose certificates are inline."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        user = config["users"][0]["user"]
        address = urllib.parse.urlsplit(cluster["server"])
        self._host, self._port = str(address.hostname), int(address.port or 443)
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._tls = ssl.create_default_context(cadata=authority)
        with tempfile.NamedTemporaryFile() as pem:  # the ssl module reads client certificates from files only
            pem.write(base64.b64decode(user["client-certificate-data"]))
            pem.write(base64.b64decode(user["client-key-data"]))
            pem.flush()
            self._tls.load_cert_chain(pem.name)

    def request(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """(status, body) of one request. Raises OSError when the server does not answer."""
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=_TIMEOUT_SECONDS, context=self._tls
        )
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON at `path`, or None where there is nothing."""
        status, content = self.request("GET", path)
        if status == http.HTTPStatus.NOT_FOUND:
            return None
        return _answer("GET", path, status, content)

    def create(self, path: str, body: object) -> Any:
        """Create an object; one of that name that is there already is left as it is."""
        status, content = self.request("POST", path, body)
        if status == http.HTTPStatus.CONFLICT:
            return None
        return _answer("POST", path, status, content)

    def ready(self) -> bool:
        try:
            return self.request("GET", "/readyz")[0] == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False


def _answer(method: str, path: str, status: int, content: bytes) -> Any:
    if status >= http.HTTPStatus.BAD_REQUEST:
        raise ClusterError(
            f"{method} {path}: the API server answered {status}: {content.decode(errors='replace')}"
        )
    return json.loads(content)
