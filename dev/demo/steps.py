"""What the demo does to the cluster, one function a step: what a user would do by hand, by the same means:
Helm, kubectl, the plimsoll command.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from dev.cluster.binaries import binary
from dev.cluster.description import Cluster
from dev.cluster.processes import ProcessTable
from dev.demo import model_volume
from dev.hub.smollm2 import smollm2_folder

ROOT = Path(__file__).parents[2]
SYSTEM = "plimsoll-system"
GIB = 1 << 30
SAMPLES = (
    "smollm2-pvc.yaml",
    "llama-3.1-8b.yaml",
    "mistral-7b.yaml",
    "mistral-small-24b.yaml",
    "llama-3.3-70b.yaml",
    "llama-3.1-405b.yaml",
)
BIG_MODELS = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "mistralai/Mistral-7B-Instruct-v0.3",
    "mistralai/Mistral-Small-24B-Instruct-2501",
    "meta-llama/Llama-3.3-70B-Instruct",
    "meta-llama/Llama-3.1-405B-Instruct",
)
Tell = Callable[[str], None]


class DemoError(Exception):
    """A step did not succeed; the message says what to look at."""


def require_node() -> None:
    """Raises DemoError where no node can run containers."""
    if sys.platform == "linux" and os.geteuid() == 0:
        return
    raise DemoError(
        "the demo runs real containers: it needs root on Linux (sudo make demo). "
        "Without that, `plimsoll estimate` and `plimsoll plan -f` work everywhere."
    )


def run(cluster: Cluster, program: str, arguments: Sequence[str], stdin: str | None = None) -> str:
    """Output of kubectl, helm or plimsoll against the cluster. Raises DemoError with what it said."""
    path = Path(sys.executable).parent / "plimsoll" if program == "plimsoll" else binary(program)
    environment = os.environ | {
        "KUBECONFIG": str(cluster.kubeconfig),
        "COLUMNS": os.environ.get("COLUMNS", "120"),
    }
    result = subprocess.run(
        [str(path), *arguments], input=stdin, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise DemoError(f"{program} {' '.join(arguments)}\n{result.stdout}{result.stderr}")
    return result.stdout


def kubectl(cluster: Cluster, *arguments: str, stdin: str | None = None) -> str:
    return run(cluster, "kubectl", arguments, stdin)


def provide_images(cluster: Cluster, tell: Tell) -> None:
    from dev.image import ensure_images

    for name in ensure_images(cluster):
        tell(name)


def start_hub(cluster: Cluster, tell: Tell) -> str:
    """The local hub as a process of the cluster, so that `down` ends it. Returns its address for pods."""
    table = ProcessTable(cluster.paths)
    log = table.log("hub")
    if not any(process.name == "hub" and process.find() for process in table.recorded()):
        tell("SmolLM2 as safetensors (converted once, 20 s), five big models as headers only")
        root = _hub_root(cluster.paths.root / "hub")
        log.unlink(missing_ok=True)
        serve = [
            sys.executable,
            "-u",
            "-m",
            "dev.hub",
            "serve",
            f"--host={cluster.host_address}",
            f"--root={root}",
        ]
        models = [f"--model={name}" for name in BIG_MODELS]
        table.start("hub", ["env", f"PYTHONPATH={ROOT}", *serve, *models])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        said = log.read_text() if log.exists() else ""
        if found := re.search(r"^HF_ENDPOINT=(\S+)", said, re.MULTILINE):
            return found[1]
        time.sleep(0.1)
    raise DemoError(f"the hub did not start; see {log}")


def _hub_root(root: Path) -> Path:
    """A folder organisation/repository with the one model whose weights the hub really has."""
    link = root / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(smollm2_folder())
    return root


def install(cluster: Cluster, hub: str, tell: Tell) -> None:
    """Both charts, as a user would install them."""
    for release, chart, values in (
        ("plimsoll-crds", "charts/plimsoll-crds", []),
        (
            "plimsoll",
            "charts/plimsoll",
            [
                "--set=image.operator.repository=plimsoll.dev/operator",
                "--set=image.operator.tag=dev",
                "--set=image.worker.repository=plimsoll.dev/worker",
                "--set=image.worker.tag=dev",
                f"--set=hub.endpoint={hub}",
            ],
        ),
    ):
        run(
            cluster,
            "helm",
            [
                "upgrade",
                "--install",
                release,
                str(ROOT / chart),
                "--namespace",
                SYSTEM,
                "--create-namespace",
                *values,
                "--wait",
                "--timeout=3m",
            ],
        )
        tell(f"helm upgrade --install {release} {chart} -n {SYSTEM}")


def apply_samples(cluster: Cluster, namespace: str, tell: Tell) -> None:
    """The model on a volume of the real node, then the six manifests."""
    assert cluster.node is not None
    folder = model_volume.place_model(cluster.paths.root / "model")
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        model_volume.volume(f"smollm2-{namespace}", folder, cluster.node),
        model_volume.claim("smollm2", namespace, f"smollm2-{namespace}"),
    ]
    kubectl(cluster, "apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
    for sample in SAMPLES:
        kubectl(cluster, "apply", "-n", namespace, "-f", str(ROOT / "samples" / sample))
        tell(f"kubectl apply -n {namespace} -f samples/{sample}")


def deployments(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(
        kubectl(cluster, "get", "llmdeployments", "-n", namespace, "-o", "json")
    )["items"]
    return items


def condition(deployment: dict[str, Any], kind: str) -> dict[str, str]:
    conditions: list[dict[str, str]] = deployment.get("status", {}).get("conditions", [])
    return next(
        (c for c in conditions if c["type"] == kind), {"status": "Unknown", "reason": "", "message": ""}
    )


def wait_until_told(cluster: Cluster, namespace: str, tell: Tell, deadline_seconds: float = 120) -> None:
    """Until every resource is planned, or says why it cannot be."""
    deadline = time.monotonic() + deadline_seconds
    told: set[str] = set()
    while time.monotonic() < deadline:
        items = deployments(cluster, namespace)
        for item in items:
            name, planned = item["metadata"]["name"], condition(item, "Planned")
            if planned["status"] != "Unknown" and name not in told:
                told.add(name)
                tell(f"{name}: {planned['message']}")
        if len(told) == len(items):
            return
        time.sleep(0.3)
    missing = sorted({item["metadata"]["name"] for item in items} - told)
    raise DemoError(
        f"no plan for {', '.join(missing)} after {deadline_seconds:.0f} s; see {operator_logs(cluster)}"
    )


def wait_ready(
    cluster: Cluster, namespace: str, name: str, tell: Tell, deadline_seconds: float = 300
) -> None:
    """Until one resource is Ready; tells each new reason on the way."""
    started = time.monotonic()
    last = ""
    while time.monotonic() - started < deadline_seconds:
        item = next(item for item in deployments(cluster, namespace) if item["metadata"]["name"] == name)
        ready = condition(item, "Ready")
        if ready["status"] == "True":
            tell(f"{name} is Ready after {time.monotonic() - started:.0f} s")
            return
        if ready["reason"] != last:
            last = ready["reason"]
            tell(f"{name}: {last}: {ready['message']}")
        time.sleep(0.3)
    raise DemoError(
        f"{name} is not Ready after {deadline_seconds:.0f} s: {last}; see {operator_logs(cluster)}"
    )


def operator_logs(cluster: Cluster) -> str:
    return f"KUBECONFIG={cluster.kubeconfig} kubectl -n {SYSTEM} logs deployment/plimsoll"


def explain(cluster: Cluster, namespace: str, name: str) -> str:
    return run(cluster, "plimsoll", ["explain", name, "-n", namespace])


def measured(cluster: Cluster, namespace: str, name: str, deadline_seconds: float = 30) -> str:
    """The prediction beside what the worker measured, once its report was read."""
    deadline = time.monotonic() + deadline_seconds
    while time.monotonic() < deadline:
        status = next(
            item["status"] for item in deployments(cluster, namespace) if item["metadata"]["name"] == name
        )
        if stages := status.get("measured"):
            predicted, found = status["plans"][0]["memory"][0]["total"], sum(stages[0]["bytes"].values())
            error = f"{stages[0]['errorPermille'] / 10:+.1f} %"
            return f"Memory: predicted {predicted / GIB:.2f} GiB, measured {found / GIB:.2f} GiB ({error})"
        time.sleep(0.3)
    raise DemoError(f"no report of {name} was read; see {operator_logs(cluster)}")


def service_url(cluster: Cluster, namespace: str, name: str) -> str:
    """The Service's cluster address, which this machine reaches through the real node."""
    service = json.loads(kubectl(cluster, "get", "service", name, "-n", namespace, "-o", "json"))["spec"]
    return f"http://{service['clusterIP']}:{service['ports'][0]['port']}/v1"


def programs() -> Path:
    """The folder of kubectl."""
    return binary("kubectl").parent
