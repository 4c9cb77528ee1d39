"""GPUs and restarts as Prometheus reads them: computed when it asks, from what the operator knows then.

Gauges that every round sets were rejected: they cost a pass over all pods a round, and keep telling of a
product or a resource after it has gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from plimsoll.actuate.ownership import DEPLOYMENT, WORKER
from plimsoll.cluster.reservations import Ledger
from plimsoll.cluster.state import ClusterState, ClusterView
from plimsoll.inventory.capacity import held_on
from plimsoll.inventory.views import NodeView, PodView

Class = tuple[str, str]
"""Product and how it is shared."""


class ClusterGauges(Collector):
    def __init__(self, state: ClusterState, ledger: Ledger) -> None:
        self._state, self._ledger = state, ledger

    def collect(self) -> Iterator[GaugeMetricFamily]:
        view = self._state.snapshot()
        yield from self._gpus(view)
        yield _restarts(view)
        yield _startup(view)
        resources = GaugeMetricFamily("plimsoll_llmdeployments", "LLMDeployments that the operator knows")
        resources.add_metric([], len(view.resources))
        yield resources

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing: asking for the values before the feeds are there would tell of an empty cluster."""
        return ()

    def _gpus(self, view: ClusterView) -> Iterator[GaugeMetricFamily]:
        promised = [held.view for key, held in self._ledger.held().items() if key not in view.pods]
        shown = [pod for pods in view.pods_by_node.values() for pod in pods]
        for state, text, counted in (
            ("total", "GPUs that nodes offer", _offered(view.nodes)),
            ("used", "GPUs that pods bound or pinned to a node ask for, of anybody", _asked(shown, view)),
            ("promised", "GPUs given to pods that no watch shows yet", _asked(promised, view)),
        ):
            family = GaugeMetricFamily(f"plimsoll_gpus_{state}", text, labels=("product", "sharing"))
            for (product, sharing), units in sorted(counted.items()):
                family.add_metric([product, sharing], units)
            yield family


def _offered(nodes: Iterable[NodeView]) -> Counter[Class]:
    found: Counter[Class] = Counter()
    for node in nodes:
        for gpu in node.gpus:
            found[gpu.product, gpu.sharing.value] += gpu.total
    return found


def _asked(pods: Iterable[PodView], view: ClusterView) -> Counter[Class]:
    found: Counter[Class] = Counter()
    for pod in pods:
        node = view.node_by_name.get(held_on(pod)) if pod.requests.extended else None
        for gpu in node.gpus if node else ():
            if units := pod.requests.extended.get(gpu.resource_name, 0):
                found[gpu.product, gpu.sharing.value] += units
    return found


def _startup(view: ClusterView) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "plimsoll_startup_seconds",
        "Time that each stage of a deployment's last start took",
        labels=("namespace", "name", "stage"),
    )
    for (namespace, name), resource in sorted(view.resources.items()):
        for time in resource.status.startup:
            family.add_metric([namespace, name, time.stage], time.milliseconds / 1000)
    return family


def _restarts(view: ClusterView) -> GaugeMetricFamily:
    found: Counter[tuple[str, str]] = Counter()
    for entry in view.pods.values():
        if entry.own and entry.own.component == WORKER:
            found[entry.own.namespace, entry.own.labels.get(DEPLOYMENT, "")] += entry.own.container.restarts
    family = GaugeMetricFamily(
        "plimsoll_worker_restarts",
        "Restarts of the containers of living worker pods",
        labels=("namespace", "name"),
    )
    for (namespace, name), restarts in sorted(found.items()):
        family.add_metric([namespace, name], restarts)
    return family
