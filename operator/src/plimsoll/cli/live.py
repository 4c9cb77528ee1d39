"""The same objects from a running cluster, through the kubeconfig. The client is imported only when it is
asked."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from plimsoll.cli.manifests import Objects
from plimsoll.cli.output import BadInputError

NamespaceOption = Annotated[
    str, typer.Option("--namespace", "-n", help="Namespace; default: the context's, else default.")
]
ContextOption = Annotated[str, typer.Option("--context", help="Context of the kubeconfig; default: its own.")]


class Cluster:
    """Reads objects. Raises BadInputError when the cluster does not answer or does not let us."""

    def __init__(self, context: str = "") -> None:
        try:
            from kubernetes import config
            from kubernetes.client import ApiClient, Configuration

            from plimsoll.cluster import kube
        except ImportError as error:
            raise BadInputError(
                "reading a cluster needs the operator's packages: install plimsoll[operator], or give saved "
                f"objects with -f ({error})"
            ) from error
        self._kube = kube
        configuration = Configuration()
        try:
            config.load_kube_config(context=context or None, client_configuration=configuration)
            _, active = config.list_kube_config_contexts()
        except config.ConfigException as error:
            raise BadInputError(
                f"no kubeconfig: {error}; set KUBECONFIG or give saved objects with -f"
            ) from error
        configuration.retries = False
        self._client = kube.Kube(ApiClient(configuration))
        self.namespace = str((active.get("context") or {}).get("namespace") or "default")

    def objects(self) -> Objects:
        """Nodes, pods of all namespaces, claims and volumes; slices and claims of devices where the API
        server serves them."""
        kinds = (
            ("Node", self._kube.NODES),
            ("Pod", self._kube.PODS),
            ("PersistentVolumeClaim", self._kube.CLAIMS),
            ("PersistentVolume", self._kube.VOLUMES),
            ("ResourceSlice", self._kube.RESOURCE_SLICES),
            ("ResourceClaim", self._kube.RESOURCE_CLAIMS),
        )
        optional = (self._kube.RESOURCE_SLICES, self._kube.RESOURCE_CLAIMS)
        found = Objects()
        for name, kind in kinds:
            try:
                if kind in optional and not self._client.serves(kind):
                    continue
                items, _ = self._client.list(kind)
            except self._kube.KubeError as error:
                raise BadInputError(f"listing {kind.plural}: {error.message}") from error
            for item in items:
                found.add({"kind": name, **item})
        return found

    def deployment(self, namespace: str, name: str) -> dict[str, Any]:
        try:
            return self._client.get(self._kube.DEPLOYMENTS, namespace, name)
        except self._kube.NotFound as error:
            raise BadInputError(
                f"no LLMDeployment {name} in namespace {namespace}: {error.message}"
            ) from error
        except self._kube.KubeError as error:
            raise BadInputError(f"reading LLMDeployment {namespace}/{name}: {error.message}") from error

    def revision(self, namespace: str, name: str) -> dict[str, Any] | None:
        """The ControllerRevision, None when it is gone or not ours to read."""
        try:
            return self._client.get(self._kube.REVISIONS, namespace, name)
        except self._kube.KubeError:
            return None
