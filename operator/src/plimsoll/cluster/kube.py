"""The Kubernetes API as plain JSON: list, watch, get, create, replace, apply, delete.

The generated client's models were rejected: a pod becomes about 40 KB of pydantic objects, and one object
that an older model does not know fails a whole list. The client's configuration, authentication and
connection pool are used as they are.

    KubeError
    ├── NotFound         404: the object, or its kind, is not there
    ├── AlreadyExists    409 on create
    ├── Conflict         409: the resourceVersion is not the newest
    ├── Gone             410: the resourceVersion is too old to watch from
    ├── Refused          400, 403, 422: admission, quota, schema or rights; asking again alone does not help
    └── Unavailable      429, 5xx, time-outs, broken connections: asking again later may help
        └── NotLeading   another copy of this program may be writing: nothing was sent
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, ApiException, Configuration

from plimsoll import metrics
from plimsoll.cluster.clock import ServerClock

log = logging.getLogger(__name__)

FIELD_MANAGER = "plimsoll"
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
LIST_CHUNK = 250
"""Pods of 10 KiB take 20 MiB while a chunk is read."""
STREAM_SECONDS = 300
"""The server ends a streamed list that takes longer."""
STREAM_END = "k8s.io/initial-events-end"
"""Annotation of the bookmark that follows the last object of a streamed list."""
CONTENT_TYPES = {"apply": "application/apply-patch+yaml", "merge": "application/merge-patch+json"}
"""Of writes; all others are JSON."""


class KubeError(Exception):
    """The API server's answer was not the wanted one; `message` holds its own words."""

    def __init__(self, message: str, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason


class NotFound(KubeError): ...


class AlreadyExists(KubeError): ...


class Conflict(KubeError): ...


class Gone(KubeError): ...


class Refused(KubeError): ...


class Unavailable(KubeError): ...


class NotLeading(Unavailable): ...


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object, as it appears in addresses."""

    group_version: str
    plural: str

    @property
    def root(self) -> str:
        """Where its group and version are."""
        core = "/" not in self.group_version
        return f"/api/{self.group_version}" if core else f"/apis/{self.group_version}"

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        parts = [self.root]
        if namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)


NODES = Kind("v1", "nodes")
PODS = Kind("v1", "pods")
CLAIMS = Kind("v1", "persistentvolumeclaims")
VOLUMES = Kind("v1", "persistentvolumes")
SERVICES = Kind("v1", "services")
BUDGETS = Kind("policy/v1", "poddisruptionbudgets")
RESOURCE_SLICES = Kind("resource.k8s.io/v1", "resourceslices")
RESOURCE_CLAIMS = Kind("resource.k8s.io/v1", "resourceclaims")
CLAIM_TEMPLATES = Kind("resource.k8s.io/v1", "resourceclaimtemplates")
REVISIONS = Kind("apps/v1", "controllerrevisions")
PRIORITIES = Kind("scheduling.k8s.io/v1", "priorityclasses")
EVENTS = Kind("events.k8s.io/v1", "events")
LEASES = Kind("coordination.k8s.io/v1", "leases")
DEPLOYMENTS = Kind("plimsoll.dev/v1alpha1", "llmdeployments")
PROFILES = Kind("plimsoll.dev/v1alpha1", "memoryprofiles")

Object = dict[str, Any]


def error_of(status: int, body: bytes) -> KubeError:
    """The exception for an answer that is not 2xx; `body` is usually a v1 Status."""
    try:
        answer = json.loads(body)
        reason, message = str(answer.get("reason") or ""), str(answer.get("message") or "")
    except (ValueError, AttributeError):
        reason, message = "", body[:300].decode(errors="replace")
    message = message or f"the API server answered {status}"
    if status == 404:
        return NotFound(message, status, reason)
    if status == 409:
        return (AlreadyExists if reason == "AlreadyExists" else Conflict)(message, status, reason)
    if status == 410:
        return Gone(message, status, reason)
    if status in (400, 401, 403, 422):
        return Refused(message, status, reason)
    return Unavailable(message, status, reason)


@dataclass(frozen=True, slots=True)
class Page:
    """A chunk of a list."""

    items: list[Object]
    version: str
    """The resourceVersion of the whole list, to watch from."""


class Kube:
    """A connection to one API server, safe to use from several threads."""

    def __init__(
        self,
        client: ApiClient,
        *,
        may_write: Callable[[], bool] = lambda: True,
        read_seconds: float = READ_SECONDS,
        clock: ServerClock | None = None,
    ) -> None:
        self._client, self._may_write, self._read_seconds = client, may_write, read_seconds
        self.clock = clock or ServerClock()
        self._streams = True
        """Until the server refuses a streamed list."""

    @classmethod
    def connect(cls, *, pool_size: int = 32) -> Kube:
        """From KUBECONFIG (or ~/.kube/config), else as the pod's service account."""
        configuration = Configuration()
        try:
            if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
                config.load_incluster_config(client_configuration=configuration)
            else:
                config.load_kube_config(client_configuration=configuration)
        except config.ConfigException as error:
            raise Refused(
                f"no way to reach a cluster: set KUBECONFIG or run inside a pod ({error})"
            ) from error
        configuration.retries = False
        configuration.connection_pool_maxsize = pool_size
        return cls(ApiClient(configuration))

    def guarded(self, may_write: Callable[[], bool]) -> Kube:
        """The same connection that asks before every write, at the last moment, and raises NotLeading."""
        return Kube(self._client, may_write=may_write, read_seconds=self._read_seconds, clock=self.clock)

    def limited(self, read_seconds: float) -> Kube:
        """The same connection that waits no longer for an answer."""
        return Kube(self._client, may_write=self._may_write, read_seconds=read_seconds, clock=self.clock)

    def list(
        self, kind: Kind, *, namespace: str | None = None, selector: str = ""
    ) -> tuple[list[Object], str]:
        """All objects of a kind and the resourceVersion to watch from."""
        items: list[Object] = []
        version = ""
        for page in self.pages(kind, namespace=namespace, selector=selector):
            items += page.items
            version = page.version
        return items, version

    def pages(self, kind: Kind, *, namespace: str | None = None, selector: str = "") -> Iterator[Page]:
        """The same in parts, so that a caller who keeps less than the objects never holds them all.

        Streamed where the server can: it answers from memory, and only once its memory is as new as its
        store (KEP-3157). A list of resourceVersion 0 is as cheap, but may show a past in which a GPU was
        free. Chunks, which servers without streams are asked for, are each read from the store.
        """
        if self._streams:
            try:
                yield from self._stream(kind, namespace, selector)
            except Refused as error:
                if error.status in (401, 403):
                    raise  # it says nothing of streams
                log.info("lists come in chunks: %s", error.message)
                self._streams = False
            else:
                return
        yield from self._chunks(kind, namespace, selector)

    def _stream(self, kind: Kind, namespace: str | None, selector: str) -> Iterator[Page]:
        """Raises Refused, before the first page, where the server has no streamed lists."""
        query = {
            "watch": "true",
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(STREAM_SECONDS),
        } | ({"labelSelector": selector} if selector else {})
        with self._open("GET", kind.path(namespace), query, read_seconds=self._read_seconds) as response:
            for line in _lines(response):
                event = json.loads(line)
                meta = event["object"].get("metadata") or {}
                if event["type"] == "ERROR":
                    raise error_of(int(event["object"].get("code") or 500), line)
                if event["type"] != "BOOKMARK":
                    yield Page([event["object"]], meta["resourceVersion"])
                elif (meta.get("annotations") or {}).get(STREAM_END) == "true":
                    yield Page([], meta["resourceVersion"])
                    return
        raise Unavailable(f"the list of {kind.plural} ended before its last object")

    def _chunks(self, kind: Kind, namespace: str | None, selector: str) -> Iterator[Page]:
        query = {"limit": str(LIST_CHUNK)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = self._json("GET", kind.path(namespace), query)
            yield Page(page.get("items") or [], page["metadata"]["resourceVersion"])
            more = page["metadata"].get("continue")
            if not more:
                return
            query["continue"] = more

    def watch(
        self, kind: Kind, resource_version: str, *, seconds: int, silence_seconds: float, selector: str = ""
    ) -> Iterator[Object]:
        """Watch events until the server ends the watch after `seconds`. The server sends a bookmark about
        once a minute, so after `silence_seconds` without a byte the watch ends too: the connection may be
        dead, and going on from the same place costs nothing."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        } | ({"labelSelector": selector} if selector else {})
        with (
            self._open("GET", kind.path(), query, read_seconds=silence_seconds) as response,
            contextlib.suppress(urllib3.exceptions.ReadTimeoutError),
        ):
            yield from map(json.loads, _lines(response))

    def serves(self, kind: Kind) -> bool:
        """Whether the API server has this kind in this version."""
        try:
            found = self._json("GET", kind.root)
        except NotFound:
            return False
        return any(entry.get("name") == kind.plural for entry in found.get("resources") or ())

    def get(self, kind: Kind, namespace: str | None, name: str) -> Object:
        return self._json("GET", kind.path(namespace, name))

    def create(self, kind: Kind, namespace: str | None, body: Mapping[str, Any]) -> Object:
        return self._write("create", kind, "POST", kind.path(namespace), body)

    def replace(self, kind: Kind, namespace: str, name: str, body: Mapping[str, Any]) -> Object:
        """PUT; `body.metadata.resourceVersion` is the precondition."""
        return self._write("replace", kind, "PUT", kind.path(namespace, name), body)

    def replace_status(self, kind: Kind, namespace: str, name: str, body: Mapping[str, Any]) -> Object:
        """PUT of the status subresource; `body.metadata.resourceVersion` is the precondition."""
        return self._write("status", kind, "PUT", kind.path(namespace, name, "status"), body)

    def merge(self, kind: Kind, namespace: str, name: str, body: Mapping[str, Any]) -> Object:
        """JSON merge patch; `body.metadata.uid` is the precondition."""
        return self._write("merge", kind, "PATCH", kind.path(namespace, name), body)

    def apply(self, kind: Kind, namespace: str, name: str, body: Mapping[str, Any], *, force: bool) -> Object:
        """Server-side apply with this program's field manager. Without `force` it raises Conflict where
        somebody else wrote another value."""
        query = {"force": str(force).lower()}
        return self._write("apply", kind, "PATCH", kind.path(namespace, name), body, query)

    def delete(self, kind: Kind, namespace: str, name: str, *, uid: str = "") -> None:
        """Delete in the background; with `uid`, only that very object. An object already gone is no error."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        with contextlib.suppress(NotFound):
            self._write("delete", kind, "DELETE", kind.path(namespace, name), body)

    def _write(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        body: Mapping[str, Any],
        query: Mapping[str, str] | None = None,
    ) -> Object:
        if not self._may_write():
            raise NotLeading(f"{verb} {path}: this copy does not lead")
        metrics.API_WRITES.labels(kind.plural, verb).inc()
        manager = {} if method == "DELETE" else {"fieldManager": FIELD_MANAGER}
        content = CONTENT_TYPES.get(verb, "application/json")
        return self._json(method, path, {**manager, **(query or {})}, body, content)

    def delete_all(self, kind: Kind, namespace: str, selector: str) -> None:
        """Delete what the selector selects; nothing there, or no such kind, is no error."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        with contextlib.suppress(NotFound):
            self._write("delete", kind, "DELETE", kind.path(namespace), body, {"labelSelector": selector})

    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        with self._open(
            method, path, query or {}, body, content_type, read_seconds=self._read_seconds
        ) as response:
            text = response.data
        try:
            answer: Object = json.loads(text)
        except ValueError as error:
            told = text[:300].decode(errors="replace")
            raise Unavailable(f"the API server's answer is no JSON: {told}") from error
        return answer

    @contextlib.contextmanager
    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        *,
        read_seconds: float,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        _, url, headers, _, _ = self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            auth_settings=["BearerToken"],
        )
        try:
            # The body goes out as text: the generated serializer would walk and copy it.
            response: urllib3.BaseHTTPResponse = self._client.rest_client.pool_manager.request(
                method,
                url,
                body=json.dumps(body) if body is not None else None,
                headers=headers,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds),
                preload_content=False,
                retries=False,
            )
            self.clock.heard(response.headers.get("Date"))
            try:
                if not 200 <= response.status < 300:
                    raise error_of(response.status, response.read(65536))
                yield response
            finally:
                response.close()
        except (urllib3.exceptions.HTTPError, OSError, ApiException) as error:
            raise Unavailable(f"the API server cannot be reached: {error}") from error


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The events of a watch as they arrive."""
    rest = b""
    for chunk in response.stream(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)
