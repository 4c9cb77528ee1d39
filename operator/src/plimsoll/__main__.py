"""`python -m plimsoll`: the operator. Settings → connection → state → the planner actor → kopf around it."""

from __future__ import annotations

import logging
import os
import threading

import kopf
from prometheus_client import REGISTRY

from plimsoll import garbage, health, logs
from plimsoll.actuate.apply import Executor
from plimsoll.actuate.recorder import Recorder
from plimsoll.cluster.calm import Calm
from plimsoll.cluster.feeds import feeds
from plimsoll.cluster.gauges import ClusterGauges
from plimsoll.cluster.kube import Kube
from plimsoll.cluster.leader import Leader, anew
from plimsoll.cluster.observation import Terms
from plimsoll.cluster.profiles import ProfileKeeper
from plimsoll.cluster.reconciler import Reconciler
from plimsoll.cluster.reports import Reports
from plimsoll.cluster.reservations import Ledger
from plimsoll.cluster.state import ClusterState
from plimsoll.cluster.trigger import Trigger
from plimsoll.handlers import registry
from plimsoll.settings import Settings

log = logging.getLogger("plimsoll")


def main() -> None:
    settings = Settings()
    logs.configure(settings.log_level)
    garbage.collect_seldom()
    connection = Kube.connect()
    trigger = Trigger()
    leader = Leader(connection, settings.namespace, settings.identity or anew(), trigger.fire)
    kube = connection.guarded(leader.leading)
    ledger = Ledger()
    state = ClusterState(on_change=trigger.fire, on_pod_deleted=ledger.release)
    reflectors = feeds(kube, state)
    REGISTRY.register(ClusterGauges(state, ledger))
    heartbeat = health.Heartbeat()
    reports = Reports(trigger.fire)
    instance = os.environ.get("HOSTNAME", "plimsoll")
    calm = Calm()
    recorder = Recorder(kube, instance, calm)
    reconciler = Reconciler(
        kube,
        state,
        ledger,
        Executor(kube, state, ledger, recorder),
        reports,
        trigger,
        heartbeat,
        leader,
        calm,
        ProfileKeeper(kube, settings.namespace, instance),
        Terms.of(settings),
        synced=lambda: all(reflector.synced for reflector in reflectors),
        replan_seconds=settings.replan_seconds,
        clock=connection.clock.now,
    )
    actor = threading.Thread(target=reconciler.run, name="planner")
    pages = health.serve(settings.metrics_port, lambda: [feed.name for feed in reflectors if not feed.synced])

    def start() -> None:
        for reflector in reflectors:
            reflector.start()
        leader.start()
        recorder.start()
        actor.start()
        log.info("started: workers run %s, inspect pods %s", settings.worker_image, settings.operator_image)

    def stop() -> None:
        trigger.stop()
        actor.join()
        for reflector in reflectors:
            reflector.stop()
        reports.close()
        recorder.stop()
        leader.stop()
        pages.shutdown()

    kopf.run(
        registry=registry(state, heartbeat, start, stop),
        clusterwide=True,
        standalone=True,
        liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz",
    )


if __name__ == "__main__":
    main()
