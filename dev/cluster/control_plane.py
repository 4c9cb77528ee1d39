"""etcd, API server, controllers, scheduler and kwok as plain processes: ready in about five seconds.

The command lines are those of a production cluster as far as one machine allows; what differs says why.
"""

from __future__ import annotations

import socket
import ssl
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from dev.cluster.api import ApiServer
from dev.cluster.binaries import binary
from dev.cluster.paths import ClusterPaths
from dev.cluster.pki import Authority, service_account_keys, write_kubeconfig, write_private
from dev.cluster.processes import ProcessTable

STAGES = Path(__file__).parent / "stages"
PROCESSES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Fakes:
    """How fake nodes behave. A cluster of thousands on a few cores needs longer leases: 1,000 nodes renew a
    hundred a second, and once that many writes queue up the controllers take live nodes for lost ones.
    """

    pod_cidr: str = "127.64.0.1/16"  # loopback: a process that listens on 0.0.0.0 answers for all fake pods
    lease_seconds: int = 40  # renewed four times as often
    grace_seconds: int = 20  # without a renewal, until a node counts as lost; the default is 50 s


@dataclass(frozen=True)
class Addresses:
    """Where the control plane listens and what its Services use."""

    advertised: str  # of the API server, as pods reach it; loopback without a real node
    service_cidr: str
    first_service: str  # the address of the Service `kubernetes`
    port: int

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.port}"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_identities(paths: ClusterPaths, addresses: Addresses, node: str | None) -> None:
    """Make the certificates and kubeconfigs of every component; the real node's too when there is one."""
    authority = Authority()
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    names += [
        "kubernetes.default.svc.cluster.local",
        "127.0.0.1",
        addresses.first_service,
        addresses.advertised,
    ]
    serving = authority.serving("kube-apiserver", names)
    # The API server calls the kubelet as a cluster administrator: no role binding is needed before it starts.
    to_kubelet = authority.client("kube-apiserver", ["system:masters"])
    signing, verifying = service_account_keys()
    files = {
        "ca.crt": authority.certificate,
        "apiserver.crt": serving.certificate,
        "apiserver.key": serving.key,
        "kubelet-client.crt": to_kubelet.certificate,
        "kubelet-client.key": to_kubelet.key,
        "service-account.key": signing,
        "service-account.pub": verifying,
    }
    for name, content in files.items():
        write_private(paths.pki / name, content)

    users: dict[str, list[str]] = {"system:kube-controller-manager": [], "system:kube-scheduler": []}
    users["kwok"] = ["system:masters"]
    if node is not None:
        users |= {
            f"system:node:{node}": ["system:nodes"],
            "system:kube-proxy": [],
            "coredns": ["system:masters"],
        }
    for user, groups in users.items():
        write_kubeconfig(
            kubeconfig_of(paths, user),
            f"https://{addresses.advertised}:{addresses.port}",
            authority.certificate,
            authority.client(user, groups),
            paths.name,
        )
    admin = authority.client("admin", ["system:masters"])
    write_kubeconfig(
        paths.kubeconfig, addresses.server, authority.certificate, admin, f"plimsoll-{paths.name}"
    )


def kubeconfig_of(paths: ClusterPaths, user: str) -> Path:
    """The kubeconfig of a component, named by its user without the prefix."""
    return paths.pki / f"{user.removeprefix('system:').replace(':', '-')}.kubeconfig"


def start(
    paths: ClusterPaths, table: ProcessTable, addresses: Addresses, fakes: Fakes, *, pod_groups: bool
) -> ApiServer:
    """Start everything and wait until it is ready. Raises ProcessError naming the process and its log."""
    client = free_port()
    etcd = f"http://127.0.0.1:{client}"
    table.start("etcd", _etcd(paths, etcd))
    # The API server retries its connection to etcd, so both start at once.
    table.start("kube-apiserver", _api_server(paths, addresses, etcd, pod_groups=pod_groups))
    api = ApiServer(paths.kubeconfig)
    table.wait_ready("etcd", lambda: _answers(f"{etcd}/health"), _START_SECONDS)
    table.wait_ready("kube-apiserver", api.ready, _START_SECONDS)

    ports = {name: free_port() for name in PROCESSES[2:4]}
    table.start(
        "kube-controller-manager", _controller_manager(paths, ports["kube-controller-manager"], fakes)
    )
    table.start("kube-scheduler", _scheduler(paths, ports["kube-scheduler"]))
    health = {
        "kube-controller-manager": f"https://127.0.0.1:{ports['kube-controller-manager']}/healthz",
        "kube-scheduler": f"https://127.0.0.1:{ports['kube-scheduler']}/readyz",
    }

    def wait(item: tuple[str, str]) -> None:
        table.wait_ready(item[0], lambda: _answers(item[1]), _START_SECONDS)

    with ThreadPoolExecutor() as pool:
        kwok = pool.submit(start_kwok, table, kubeconfig_of(paths, "kwok"), fakes)
        list(pool.map(wait, health.items()))
        kwok.result()
    # Healthy is not yet working: until the service-account controller has made this one, no pod is admitted.
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    table.wait_ready("kube-controller-manager", lambda: api.get(account) is not None, _START_SECONDS)
    return api


def start_kwok(table: ProcessTable, kubeconfig: Path, fakes: Fakes) -> None:
    """Start the imitation of nodes and wait until it is ready."""
    port = free_port()
    table.start("kwok", _kwok(kubeconfig, port, fakes))
    table.wait_ready("kwok", lambda: _answers(f"http://127.0.0.1:{port}/healthz"), _START_SECONDS)


def _answers(url: str) -> bool:
    """Whether a health endpoint says yes; the components serve it with a certificate that they sign
    themselves.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _etcd(paths: ClusterPaths, client: str) -> list[str | Path]:
    return [
        binary("etcd"),
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls=http://127.0.0.1:{free_port()}",
        f"--data-dir={paths.etcd}",
        "--unsafe-no-fsync=true",  # the data lives no longer than the processes
        "--log-level=warn",
    ]


def _api_server(
    paths: ClusterPaths, addresses: Addresses, etcd: str, *, pod_groups: bool
) -> list[str | Path]:
    pki = paths.pki
    argv: list[str | Path] = [
        binary("kube-apiserver"),
        f"--etcd-servers={etcd}",
        f"--secure-port={addresses.port}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--service-cluster-ip-range={addresses.service_cidr}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-account-issuer=https://{addresses.advertised}:{addresses.port}/",
        f"--service-account-key-file={pki / 'service-account.pub'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={pki / 'ca.crt'}",
        "--requestheader-allowed-names=aggregator",  # no such client exists; the flag must not be empty
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
    ]
    if addresses.advertised == "127.0.0.1":
        # Endpoints refuse loopback addresses, so without a real node the Service `kubernetes` has none.
        argv += ["--bind-address=127.0.0.1", "--endpoint-reconciler-type=none"]
    else:
        argv += ["--bind-address=0.0.0.0", f"--advertise-address={addresses.advertised}"]
    if pod_groups:
        argv += ["--feature-gates=GenericWorkload=true", "--runtime-config=scheduling.k8s.io/v1beta1=true"]
    return argv


def _authentication(paths: ClusterPaths, user: str, port: int) -> list[str | Path]:
    kubeconfig = kubeconfig_of(paths, user)
    return [
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--authorization-always-allow-paths=/healthz,/readyz,/livez,/metrics",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
    ]


def _controller_manager(paths: ClusterPaths, port: int, fakes: Fakes) -> list[str | Path]:
    user = "system:kube-controller-manager"
    return [
        binary("kube-controller-manager"),
        f"--kubeconfig={kubeconfig_of(paths, user)}",
        *_authentication(paths, user, port),
        "--use-service-account-credentials",
        "--leader-elect=false",
        f"--service-account-private-key-file={paths.pki / 'service-account.key'}",
        f"--root-ca-file={paths.pki / 'ca.crt'}",
        # The default of 20 requests a second would take 5 s to make the controllers' own service accounts.
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        # A lost node is noticed in twice its lease's renewal (10 s), not in the default 50 s.
        "--node-monitor-period=1s",
        f"--node-monitor-grace-period={fakes.grace_seconds}s",
    ]


def _scheduler(paths: ClusterPaths, port: int) -> list[str | Path]:
    user = "system:kube-scheduler"
    config = paths.root / "scheduler.yaml"
    content = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig_of(paths, user)), "qps": 500, "burst": 1000},
        "leaderElection": {"leaderElect": False},
    }
    config.write_text(yaml.safe_dump(content))
    return [binary("kube-scheduler"), f"--config={config}", *_authentication(paths, user, port)]


def _kwok(kubeconfig: Path, port: int, fakes: Fakes) -> list[str | Path]:
    return [
        binary("kwok"),
        f"--kubeconfig={kubeconfig}",
        "--manage-all-nodes=false",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        f"--cidr={fakes.pod_cidr}",
        "--node-ip=127.0.0.1",
        f"--node-lease-duration-seconds={fakes.lease_seconds}",
        f"--server-address=127.0.0.1:{port}",
        *(f"--config={stage}" for stage in sorted(STAGES.glob("*.yaml"))),
    ]
