"""The real node of the development cluster does what a node does: everything that the operator's pods
count on."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dev.cluster import sandbox
from dev.cluster.binaries import binary
from dev.cluster.description import Cluster
from dev.cluster.paths import REPOSITORY
from dev.image import containerd, images
from dev.image.layers import Entry, Image, Layer
from kubernetes import client
from tests.conftest import SLACK

from plimsoll_worker.kernels.shipped import SHIPPED_ENV

pytestmark = pytest.mark.node

SERVE = """
import http.server, sys
print("serving", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"hello from a pod")
    def log_message(self, *args): pass
http.server.HTTPServer(("", 8000), Handler).serve_forever()
"""

EAT = "x = bytearray(10**9 if self.path == '/eat' else 1); self.send_response(200);"

ASK_THE_API = """
import json, ssl, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
trust = ssl.create_default_context(cafile=folder + "ca.crt")
request = urllib.request.Request(
    "https://kubernetes.default.svc/apis/authentication.k8s.io/v1/selfsubjectreviews",
    data=json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).encode(),
    headers={"Authorization": "Bearer " + open(folder + "token").read(), "Content-Type": "application/json"},
)
print(json.load(urllib.request.urlopen(request, context=trust))["status"]["userInfo"]["username"])
"""


@pytest.fixture
def run_in(cluster: Cluster, namespace: str) -> Callable[..., str]:
    """`run_in(pod, code)`: run Python in a running pod; what it printed, errors included."""

    def run(pod: str, code: str) -> str:
        kubectl = [str(binary("kubectl")), f"--kubeconfig={cluster.kubeconfig}", f"--namespace={namespace}"]
        command = [*kubectl, "exec", pod, "--", "python", "-c", code]
        answer = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30 * SLACK
        )
        return answer.stdout

    return run


def serve_by_name(kube: Any, namespace: str) -> str:
    """A ClusterIP Service over the pods labelled app=web; its address."""
    spec = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]}
    service = client.CoreV1Api(kube).create_namespaced_service(
        namespace, {"metadata": {"name": "web"}, "spec": spec}
    )
    return str(service.spec.cluster_ip)


def test_a_restricted_pod_runs_logs_and_takes_commands(
    kube: Any,
    namespace: str,
    real_node: str,
    python_pod: Callable[..., Any],
    run_in: Callable[..., str],
    wait_for: Callable[..., Any],
) -> None:
    pod = python_pod("web", SERVE)
    assert pod.spec.node_name == real_node
    log = client.CoreV1Api(kube).read_namespaced_pod_log
    assert wait_for(lambda: log("web", namespace), 15, "the pod's log is there") == "serving\n"
    assert run_in("web", "import os; print(os.getuid())") == "65532\n"
    assert "Read-only file system" in run_in("web", "open('/etc/x', 'w')")


def test_a_service_is_reached_by_name_from_a_pod_and_by_address_from_the_host(
    kube: Any,
    namespace: str,
    python_pod: Callable[..., Any],
    run_in: Callable[..., str],
    wait_for: Callable[..., Any],
) -> None:
    address = serve_by_name(kube, namespace)
    python_pod("web", SERVE, labels={"app": "web"})

    def from_host() -> bytes:
        try:
            with urllib.request.urlopen(f"http://{address}", timeout=5) as answer:
                return bytes(answer.read())
        except OSError:
            return b""

    assert wait_for(from_host, 15, "the host reaches the Service") == b"hello from a pod"
    code = f"import urllib.request as u; print(u.urlopen('http://web.{namespace}.svc.cluster.local').read())"
    wait_for(
        lambda: run_in("web", code) == "b'hello from a pod'\n",
        15,
        "a pod reaches the Service by name",
        lambda: run_in("web", code),
    )


def test_pods_find_each_other_by_the_names_of_a_headless_service(
    kube: Any,
    namespace: str,
    python_pod: Callable[..., Any],
    run_in: Callable[..., str],
    wait_for: Callable[..., Any],
) -> None:
    spec = {"selector": {"app": "web"}, "clusterIP": "None", "publishNotReadyAddresses": True}
    client.CoreV1Api(kube).create_namespaced_service(namespace, {"metadata": {"name": "peers"}, "spec": spec})
    pod = python_pod("web", SERVE, labels={"app": "web"}, hostname="zero", subdomain="peers")
    code = f"import socket; print(socket.gethostbyname('zero.peers.{namespace}.svc.cluster.local'))"
    wait_for(lambda: run_in("web", code).strip() == pod.status.pod_ip, 15, "the name leads to the pod")


def test_a_pod_talks_to_the_api_server_as_its_service_account(
    namespace: str, python_pod: Callable[..., Any], run_in: Callable[..., str], wait_for: Callable[..., Any]
) -> None:
    python_pod("web", SERVE)
    wait_for(
        lambda: run_in("web", ASK_THE_API) == f"system:serviceaccount:{namespace}:default\n",
        15,
        "the API server says who asks",
        lambda: run_in("web", ASK_THE_API),
    )


def test_a_claim_on_a_local_volume_is_mounted(
    kube: Any,
    namespace: str,
    real_node: str,
    tmp_path: Path,
    python_pod: Callable[..., Any],
    run_in: Callable[..., str],
) -> None:
    core = client.CoreV1Api(kube)
    for folder in (
        tmp_path,
        *tmp_path.parents[:2],
    ):  # pytest keeps its folders private; the pod is another user
        folder.chmod(0o755)
    (tmp_path / "config.json").write_text('{"hidden_size": 576}')
    terms = [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [real_node]}]}
    ]
    volume = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "local",
        "claimRef": {"namespace": namespace, "name": "models"},
        "local": {"path": str(tmp_path)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
    }
    core.create_persistent_volume({"metadata": {"name": namespace}, "spec": volume})
    try:
        request = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}
        claim = {"metadata": {"name": "models"}, "spec": {**request, "storageClassName": "local"}}
        core.create_namespaced_persistent_volume_claim(namespace, claim)
        python_pod(
            "web",
            SERVE,
            volumes=[{"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}],
            volume_mounts=[{"name": "models", "mountPath": "/models", "readOnly": True}],
        )
        found = run_in("web", "print(open('/models/config.json').read())")
        assert json.loads(found) == {"hidden_size": 576}
    finally:
        core.delete_persistent_volume(namespace)


def test_a_pod_that_takes_too_much_memory_is_killed_for_it(
    kube: Any, namespace: str, python_pod: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    python_pod("web", SERVE.replace("self.send_response(200);", EAT))
    core = client.CoreV1Api(kube)
    address = core.read_namespaced_pod("web", namespace).status.pod_ip
    with pytest.raises(OSError, match=r"closed|reset|disconnected"):
        urllib.request.urlopen(f"http://{address}:8000/eat", timeout=20 * SLACK)

    def reason() -> str:
        [status] = core.read_namespaced_pod("web", namespace).status.container_statuses
        ended = status.last_state.terminated or status.state.terminated
        return str(ended.reason) if ended else ""

    wait_for(lambda: reason() == "OOMKilled", 20, "the kubelet says why")


def test_an_extended_resource_on_the_real_node_is_counted(
    kube: Any, namespace: str, real_node: str, operator_image: str, wait_for: Callable[..., Any]
) -> None:
    core = client.CoreV1Api(kube)
    core.patch_node_status(
        real_node, [{"op": "add", "path": "/status/capacity/example.com~1gpu", "value": "1"}]
    )
    container = {"name": "c", "image": operator_image, "command": ["python", "-c", "print('done')"]}
    container["resources"] = {"limits": {"example.com/gpu": "1"}}
    spec = {"restartPolicy": "Never", "containers": [container]}
    core.create_namespaced_pod(namespace, {"metadata": {"name": "p"}, "spec": spec})
    wait_for(
        lambda: core.read_namespaced_pod("p", namespace).status.phase == "Succeeded",
        30,
        "the pod with the resource ran",
        lambda: core.read_namespaced_pod("p", namespace),
    )


@pytest.mark.parametrize(("folder", "image"), [("operator", images.operator), ("worker", images.worker)])
def test_a_dockerfile_says_what_our_own_image_says(folder: str, image: Callable[[], Image]) -> None:
    text = (REPOSITORY / folder / "Dockerfile").read_text().replace("\\\n", " ")
    config = image().config
    settings = {line.split("=", 1)[0]: line.split("=", 1)[1] for line in config["Env"]}
    [environment] = re.findall(r"^ENV (.*)$", text, re.MULTILINE)
    # Our own image runs on CPUs: it brings no kernels for GPUs.
    told = dict(word.split("=", 1) for word in environment.split() if not word.startswith(SHIPPED_ENV))
    assert told.items() <= settings.items()
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0]) == config["Entrypoint"]
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == [config["User"]]
    assert f"requirements/{folder}.txt" in text


def test_an_image_of_unchanged_code_is_not_loaded_again(cluster: Cluster, operator_image: str) -> None:
    inside = sandbox.find(cluster.paths)
    assert inside is not None
    assert not containerd.install(images.operator(), inside)
    small = Image("plimsoll.dev/probe:dev", (Layer(f"probe-{time.time_ns()}", lambda: [Entry("a", b"1")]),))
    assert containerd.install(small, inside)
    assert not containerd.install(small, inside)
