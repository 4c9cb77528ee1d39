"""The demo's steps, in order. Safe to repeat: each step looks at what is there first."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.cluster import lifecycle, nodes
from dev.cluster.errors import ClusterError
from dev.demo import chat, steps

ROOT = Path(__file__).parents[2]
NAMESPACE = "demo"
EXPLAINED = "llama-3-3-70b"
SERVED = "smollm2"


def main() -> int:
    steps.require_node()
    started = time.monotonic()
    with step("A cluster on this machine: one real node, 40 fake GPU nodes of four types"):
        wanted = lifecycle.Wanted(
            "plimsoll", nodes.requested(str(ROOT / "samples/nodes/demo.yaml")), real_node=True
        )
        cluster = lifecycle.up(wanted, detail)
    with step("Container images of the operator and the worker"):
        steps.provide_images(cluster, detail)
    with step("A local model hub that serves the headers of big models, without their weights"):
        hub = steps.start_hub(cluster, detail)
        detail(hub)
    with step("Plimsoll, by Helm: the CRDs, then the operator"):
        steps.install(cluster, hub, detail)
    with step(f"Six models in namespace {NAMESPACE}: one small on a CPU, five on GPUs"):
        detail(
            "(the GPU nodes are simulated: workers are planned and scheduled there; the CPU one really runs)"
        )
        steps.apply_samples(cluster, NAMESPACE, detail)
        steps.wait_until_told(cluster, NAMESPACE, detail)
        steps.wait_ready(cluster, NAMESPACE, SERVED, detail)
    show("kubectl get llmdeployments", steps.kubectl(cluster, "get", "llmdeployments", "-n", NAMESPACE))
    show(f"plimsoll explain {EXPLAINED}", steps.explain(cluster, NAMESPACE, EXPLAINED))
    heading(f"A streamed answer from {SERVED}, with the openai client, through its Service")
    chat.stream(steps.service_url(cluster, NAMESPACE, SERVED), SERVED)
    print(steps.measured(cluster, NAMESPACE, SERVED))
    print(f"\nDone in {time.monotonic() - started:.0f} s. The cluster stays up:\n")
    print(f"  export KUBECONFIG={cluster.kubeconfig}")
    print(f"  export PATH={steps.programs()}:{ROOT / '.venv/bin'}:$PATH")
    print(f"  kubectl get llmdep -n {NAMESPACE} -o wide")
    print(f"  plimsoll explain llama-3-1-8b -n {NAMESPACE}")
    print("  make demo-down          # takes all of it away")
    return 0


def heading(text: str) -> None:
    print(f"\n\033[1m==> {text}\033[0m", flush=True)


def detail(line: str) -> None:
    print(f"    {line}", flush=True)


def show(command: str, output: str) -> None:
    heading(f"$ {command}")
    print(output, end="" if output.endswith("\n") else "\n", flush=True)


@contextmanager
def step(text: str) -> Iterator[Callable[[str], None]]:
    heading(text)
    started = time.monotonic()
    yield detail
    detail(f"({time.monotonic() - started:.1f} s)")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ClusterError, steps.DemoError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; run `make demo` again to go on, `make demo-down` to clear away", file=sys.stderr)
        sys.exit(130)
