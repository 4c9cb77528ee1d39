"""Kubernetes objects from saved YAML or JSON (`kubectl get nodes,pods -A -o yaml`), sorted by kind.

What a file says wrongly is told with the file and the field: whoever plans offline has no API server to
refuse it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from plimsoll.api.v1alpha1 import API_VERSION, KIND, LLMDeployment
from plimsoll.api.v1alpha1.profile import PROFILE_KIND
from plimsoll.cli.output import BadInputError
from plimsoll.inventory.device_pools import DevicePools
from plimsoll.inventory.dra import claim_view, slice_view
from plimsoll.inventory.nodes import node_view, pod_view, pods_using, volume_view
from plimsoll.inventory.quantity import QuantityError
from plimsoll.inventory.views import NodeView, PodView, VolumeView

Object = dict[str, Any]
KNOWN = (
    "Node",
    "Pod",
    "PersistentVolumeClaim",
    "PersistentVolume",
    "ResourceSlice",
    "ResourceClaim",
    KIND,
    PROFILE_KIND,
)


@dataclass
class Objects:
    """Plain API objects by kind, and the views that planning reads."""

    by_kind: dict[str, list[Object]] = field(default_factory=dict)

    def add(self, obj: Object) -> None:
        self.by_kind.setdefault(str(obj.get("kind")), []).append(obj)

    def of(self, kind: str) -> list[Object]:
        return self.by_kind.get(kind, [])

    def nodes(self) -> tuple[NodeView, ...]:
        """All nodes, devices of DRA among their GPUs."""
        return self._counted()[0]

    def pods(self) -> tuple[PodView, ...]:
        """Unfinished pods with what they hold. Raises BadInputError naming pod and container."""
        return self._counted()[1]

    def _counted(self) -> tuple[tuple[NodeView, ...], tuple[PodView, ...]]:
        nodes = tuple(node_view(obj) for obj in self.of("Node"))
        try:
            pods = tuple(view for obj in self.of("Pod") if (view := pod_view(obj)) is not None)
        except QuantityError as error:
            raise BadInputError(str(error)) from error
        slices = filter(None, map(slice_view, self.of("ResourceSlice")))
        claims = filter(None, map(claim_view, self.of("ResourceClaim")))
        nodes, holders = DevicePools(slices).count(nodes, pods, claims)
        return nodes, tuple(holders.get(pod.uid, pod) for pod in pods)

    def volume(self, namespace: str, claim: str) -> VolumeView | None:
        """The claim's view; None when no claims were given at all, so nothing is known about volumes."""
        if not self.of("PersistentVolumeClaim"):
            return None
        found = _find(self.of("PersistentVolumeClaim"), claim, namespace)
        name = ((found or {}).get("spec") or {}).get("volumeName", "")
        volume = _find(self.of("PersistentVolume"), name) if name else None
        users = pods_using(self.pods(), namespace, claim)
        return volume_view(found, volume, namespace, claim, self.nodes(), users)


def _find(objects: Iterable[Object], name: str, namespace: str = "") -> Object | None:
    for obj in objects:
        meta = obj.get("metadata") or {}
        if meta.get("name") == name and (not namespace or meta.get("namespace", "default") == namespace):
            return obj
    return None


def read_objects(paths: Iterable[Path]) -> Objects:
    """All objects of the files. Raises BadInputError that names the file."""
    objects = Objects()
    for path in paths:
        for obj in _documents(path):
            if obj.get("kind") not in KNOWN:
                continue
            if not isinstance(obj.get("metadata"), dict) or not obj["metadata"].get("name"):
                raise BadInputError(f"{path}: {obj['kind']} without metadata.name")
            objects.add(obj)
    return objects


def _documents(path: Path) -> Iterator[Object]:
    try:
        text = path.read_text(encoding="utf-8")
        documents = list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: not YAML or JSON: {error}") from error
    for document in documents:
        if document is not None:
            yield from _items(document, path)


def _items(document: object, path: Path) -> Iterator[Object]:
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise BadInputError(f"{path}: expected Kubernetes objects with a field kind")
    if not document["kind"].endswith("List"):
        yield document
        return
    kind = document["kind"].removesuffix("List")
    for item in document.get("items") or ():
        if isinstance(item, dict):
            # Items of a typed list (NodeList) carry no kind of their own.
            yield {"kind": kind, **item}


def read_deployment(obj: Mapping[str, Any], path: Path | str) -> LLMDeployment:
    """Parse an LLMDeployment as strictly as the API server does. Raises BadInputError that names file and
    field."""
    if obj.get("apiVersion") != API_VERSION:
        raise BadInputError(f"{path}: apiVersion is {obj.get('apiVersion')!r}: write {API_VERSION}")
    known = {key: obj[key] for key in ("spec", "status") if key in obj}
    try:
        parsed = LLMDeployment.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "spec"
        told = first["msg"].removeprefix("Value error, ")
        raise BadInputError(f"{path}: {where}: {told}") from error
    if unknown := next(_unknown(known.get("spec"), parsed.spec, "spec"), ""):
        raise BadInputError(f"{path}: {unknown}: no such field")
    return parsed


def _unknown(raw: object, parsed: object, where: str) -> Iterator[str]:
    """Fields that were written and not read. Unknown fields are ignored when parsing, because a newer CRD may
    meet an older operator; here they are a slip of the pen."""
    if isinstance(raw, dict) and isinstance(parsed, BaseModel):
        fields = {info.alias or name: name for name, info in type(parsed).model_fields.items()}
        for key, value in raw.items():
            if key not in fields:
                yield f"{where}.{key}"
            else:
                yield from _unknown(value, getattr(parsed, fields[key]), f"{where}.{key}")
    elif isinstance(raw, list) and isinstance(parsed, list | tuple):
        for index, (left, right) in enumerate(zip(raw, parsed, strict=False)):
            yield from _unknown(left, right, f"{where}[{index}]")
