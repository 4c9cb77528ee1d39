"""The real node: containerd, kubelet, kube-proxy and CoreDNS inside the sandbox.

What a pod sees is what it sees anywhere: an address of its own, Services by name, the API server through its
service account, this machine at the host's end of the veth. Not the internet: that would take address
translation and forwarding on the machine itself, which `down` could not always take back. Images are not
pulled; `dev.image` puts them into containerd.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

from dev.cluster import network, packages, runtime_root, sandbox
from dev.cluster.api import ApiServer
from dev.cluster.binaries import binary
from dev.cluster.control_plane import kubeconfig_of
from dev.cluster.description import Cluster
from dev.cluster.errors import ClusterError
from dev.cluster.processes import ProcessTable
from dev.image import containerd as images
from dev.image import pause

PROCESSES = (sandbox.HOLDER, "containerd", "kubelet", "kube-proxy", "coredns")
_CONTAINERD_SECONDS = 30.0
_NODE_SECONDS = 60.0


def possible() -> bool:
    """Whether this machine can run a kubelet: as root, on Linux."""
    return sys.platform == "linux" and os.geteuid() == 0


def prepare(cluster: Cluster, table: ProcessTable) -> Cluster:
    """Make the node's world and say which addresses it took; nothing of Kubernetes runs in it yet."""
    if not possible():
        raise ClusterError("a real node needs root on Linux; leave out --real-node, or use --provider kind")
    packages.ensure()
    for program in ("kubelet", "kube-proxy", "coredns", "pause"):
        binary(program)
    with network.choosing(), runtime_root.claimed() as claim:
        chosen = network.choose()
        name = f"{cluster.name}-node"
        cluster = replace(
            cluster, node=name, host_address=chosen.host, network=chosen, runtime_root=str(claim.root)
        )
        cluster.save()
        sandbox.create(cluster.paths, table, chosen, name, [claim.descriptor])
    return cluster


def start_runtime(cluster: Cluster, table: ProcessTable) -> None:
    """Start containerd with the images that its root has from before, and nothing else from before."""
    folder = cluster.paths.node
    config = folder / "containerd.toml"
    config.write_text(_containerd_config(cluster))
    _write_json(folder / "cni" / "10-bridge.conflist", _cni_config(cluster))
    _start_containerd(cluster, table, config)
    inside = _inside(cluster)
    left = inside.run([*images.CTR, "containers", "ls", "-q"]).split()
    if left:  # of a cluster that ended without farewell: the CRI plugin reads them only when it starts
        inside.run([*images.CTR, "containers", "rm", *left])
        table.end("containerd")
        _start_containerd(cluster, table, config)
    images.install(pause.image(), inside)


def start(cluster: Cluster, table: ProcessTable, api: ApiServer) -> None:
    """Start the rest and wait until the node is ready. The API server must be."""
    assert cluster.network is not None
    folder, inside = cluster.paths.node, _inside(cluster)
    kubelet: list[str | Path] = [
        binary("kubelet"),
        f"--config={_write_json(folder / 'kubelet.json', _kubelet_config(cluster))}",
        f"--kubeconfig={kubeconfig_of(cluster.paths, f'system:node:{cluster.node}')}",
        f"--hostname-override={cluster.node}",
        f"--node-ip={cluster.network.node}",
        "--root-dir=/var/lib/kubelet",
        "--cert-dir=/var/lib/kubelet/pki",
    ]
    proxy: list[str | Path] = [
        binary("kube-proxy"),
        f"--config={_write_json(folder / 'kube-proxy.json', _proxy_config(cluster))}",
    ]
    corefile = folder / "Corefile"
    corefile.write_text(_corefile(cluster))
    table.start("kubelet", inside.enter(kubelet))
    table.start("kube-proxy", inside.enter(proxy))
    table.start("coredns", inside.enter([binary("coredns"), f"-conf={corefile}"]))

    bridge, node = cluster.network.bridge, cluster.network.node
    table.wait_ready("coredns", lambda: _answers(f"http://{bridge}:8181/ready"), _NODE_SECONDS)
    table.wait_ready("kube-proxy", lambda: _answers(f"http://{node}:10256/healthz"), _NODE_SECONDS)
    table.wait_ready("kubelet", lambda: _node_ready(api, cluster.node or ""), _NODE_SECONDS)


def _inside(cluster: Cluster) -> sandbox.Sandbox:
    found = sandbox.find(cluster.paths)
    if found is None:
        raise ClusterError(f"cluster {cluster.name} has no running real node; `up --real-node` makes one")
    return found


def _start_containerd(cluster: Cluster, table: ProcessTable, config: Path) -> None:
    inside = _inside(cluster)
    table.start("containerd", inside.enter(["containerd", "--config", config]))

    def ready() -> bool:
        try:
            inside.run([*images.CTR, "version"])
        except ClusterError:
            return False
        return True

    table.wait_ready("containerd", ready, _CONTAINERD_SECONDS)


def _node_ready(api: ApiServer, name: str) -> bool:
    node = api.get(f"/api/v1/nodes/{name}")
    conditions = node["status"].get("conditions", []) if node else []
    taints = node["spec"].get("taints", []) if node else []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions) and not taints


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))
    return path


def _containerd_config(cluster: Cluster) -> str:
    cri = '[plugins."io.containerd.grpc.v1.cri"'
    return f"""
version = 2
root = "{cluster.runtime_root}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "/run/containerd/containerd.sock"
{cri}]
sandbox_image = "{pause.NAME}"
# Where the machine itself runs unprivileged of CAP_SYS_RESOURCE, runc may not lower a score, and no pod
# would start.
restrict_oom_score_adj = true
{cri}.containerd]
snapshotter = "overlayfs"
{cri}.cni]
bin_dir = "{packages.cni_plugins()}"
conf_dir = "{cluster.paths.node / "cni"}"
"""


def _cni_config(cluster: Cluster) -> dict[str, Any]:
    assert cluster.network is not None
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": cluster.network.pod_cidr}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipMasq": False,
        "ipam": ipam,
    }
    return {"cniVersion": "0.4.0", "name": "plimsoll", "plugins": [bridge, {"type": "loopback"}]}


def _kubelet_config(cluster: Cluster) -> dict[str, Any]:
    assert cluster.network is not None
    resolver = cluster.paths.node / "resolv.conf"
    resolver.write_text(f"nameserver {cluster.network.bridge}\n")
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(cluster.paths.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        # A root of its own, or the kubelets of two clusters would each clear away the other's pods.
        "cgroupRoot": f"/{cluster.paths.tag}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [cluster.network.bridge],
        "clusterDomain": "cluster.local",
        "resolvConf": str(resolver),
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,  # never: what is removed cannot be pulled again
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "10s",
    }


def _proxy_config(cluster: Cluster) -> dict[str, Any]:
    assert cluster.network is not None
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(kubeconfig_of(cluster.paths, "system:kube-proxy"))},
        "clusterCIDR": cluster.network.pod_cidr,
        "hostnameOverride": cluster.node,
        "bindAddress": "0.0.0.0",
        "healthzBindAddress": "0.0.0.0:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # Kernel settings of the whole machine: 0 leaves them alone.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "0s", "syncPeriod": "30s"},
    }


def _corefile(cluster: Cluster) -> str:
    """No cache: peers of a replica look each other up while their records appear."""
    assert cluster.network is not None
    return f"""
.:53 {{
    bind {cluster.network.bridge}
    errors
    ready {cluster.network.bridge}:8181
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig_of(cluster.paths, "coredns")}
        pods insecure
        ttl 0
    }}
}}
"""
