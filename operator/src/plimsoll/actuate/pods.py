"""Pods as plain objects: inspect pods, which read a model's headers, and worker pods, which serve one stage
of a replica.

A builder sees decisions and returns JSON; it asks nobody. All pods meet the restricted Pod Security Standard,
carry no service-account token and write only to emptyDirs. Names follow from the plan, so a repeated create
meets AlreadyExists instead of making a second set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from plimsoll.actuate import claims
from plimsoll.actuate.launches import HUB_FOLDER, MODELS, launch, stage_hostname, workers_subdomain
from plimsoll.actuate.ownership import INSPECT, PLAN, PLAN_GATE, WORKER, Owner, digest, labels, metadata
from plimsoll.actuate.revisions import Revision, model_key
from plimsoll.api.v1alpha1 import LLMDeploymentSpec, PlanPlacement, PlanStatus, SecretKeyRef, Toleration
from plimsoll.inventory.views import Resources
from plimsoll.planning.eligibility import worker_tolerations
from plimsoll_worker.launch import (
    ADMIN_PORT,
    LAUNCH_ENV,
    RENDEZVOUS_SECONDS,
    SERVING_PORT,
    STAGE_PORT,
    TERMINATION_MESSAGE_PATH,
)

USER = 65532
MIB = 1 << 20
GIB = 1 << 30

DRAIN_GRACE_SECONDS = 30
"""Between the end of draining and SIGKILL: releasing GPU memory takes seconds."""
PROBE_SECONDS = 5
STARTUP_BASE_SECONDS = 300
"""Image start, imports and warm-up."""
STARTUP_BYTES_PER_SECOND = 20 * MIB
"""The slowest disk or network a start is given time for; a faster one just turns ready earlier."""
SHARED_MEMORY_BYTES = GIB
SCRATCH_BYTES = 2 * GIB


@dataclass(frozen=True, slots=True)
class PodDefaults:
    """What an administrator decides for all pods."""

    operator_image: str
    image_pull_policy: str
    hf_endpoint: str
    inspect_timeout_seconds: int


def inspect_pod(owner: Owner, spec: LLMDeploymentSpec, defaults: PodDefaults) -> dict[str, Any]:
    """A pod that reads the headers of `spec.model` and leaves facts, or a failure, as its termination
    message. It is not pinned and tolerates no GPU taint: reading headers never takes a GPU node."""
    key = model_key(spec.model)
    hub, claim = spec.model.hugging_face, spec.model.persistent_volume_claim
    environment = {"HOME": "/tmp", "HF_HOME": "/tmp/huggingface"}  # noqa: S108 - the pod's own emptyDir
    if hub:
        source = [f"hf://{hub.repo}" + (f"@{hub.revision}" if hub.revision else "")]
        environment["HF_ENDPOINT"] = defaults.hf_endpoint
    else:
        assert claim is not None
        source = [f"{MODELS}/{claim.path}".rstrip("/")]
    volumes, mounts = _scratch()
    _add_claim(volumes, mounts, spec)
    container = {
        "name": "inspect",
        "image": defaults.operator_image,
        "imagePullPolicy": defaults.image_pull_policy,
        "command": ["plimsoll", "inspect", *source],
        "args": ["--output-termination-message", str(TERMINATION_MESSAGE_PATH)],
        "env": _environment(environment, _token(spec.model.credentials_secret_ref)),
        "resources": {
            "requests": {"cpu": "50m", "memory": "192Mi", "ephemeral-storage": "64Mi"},
            "limits": {"memory": "512Mi"},
        },
        "terminationMessagePath": str(TERMINATION_MESSAGE_PATH),
        "terminationMessagePolicy": "File",
        "securityContext": _container_security(),
        "volumeMounts": mounts,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(owner, inspect_pod_name(owner, key), labels(owner, INSPECT, model_key=key)),
        "spec": {
            **_pod_base(spec),
            "restartPolicy": "Never",
            "activeDeadlineSeconds": defaults.inspect_timeout_seconds,
            "terminationGracePeriodSeconds": 5,
            "containers": [container],
            "volumes": volumes,
        },
    }


def inspect_pod_name(owner: Owner, key: str) -> str:
    return f"{owner.name}-inspect-{digest(key)}"


WORKER_NAME = re.compile(r"(?P<revision>.+)-r(?P<replica>\d+)-s(?P<stage>\d+)-a(?P<attempt>\d+)")
"""What `worker_pod_name` gives; the parts are named like the pod's labels."""


def worker_pod_name(revision: str, replica: int, stage: int, attempt: int) -> str:
    return f"{revision}-r{replica}-s{stage}-a{attempt}"


def worker_pod(
    revision: Revision,
    plan: PlanStatus,
    placement: PlanPlacement,
    attempt: int,
    requests: Resources,
    defaults: PodDefaults,
) -> dict[str, Any]:
    """One stage of one replica, pinned to its node. `requests` is what planning took off that node for it."""
    spec, owner = revision.spec, revision.owner
    overlay = spec.pod_template
    own_labels = overlay.labels | labels(
        owner,
        WORKER,
        revision=revision.name,
        replica=str(placement.replica),
        stage=str(placement.stage),
        attempt=str(attempt),
    )
    name = worker_pod_name(revision.name, placement.replica, placement.stage, attempt)
    unplaced = plan.model_copy(update={"placements": [], "rejected": []})
    annotations = dict(overlay.annotations) | {PLAN: unplaced.model_dump_json(by_alias=True)}
    if claims.is_claimed(plan):
        annotations |= claims.annotation(plan)
    volumes, mounts = _scratch()
    volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(SHARED_MEMORY_BYTES)}})
    mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - the pod's own emptyDir
    if spec.model.hugging_face:
        volumes.append({"name": "models", "emptyDir": {}})
        mounts.append({"name": "models", "mountPath": HUB_FOLDER})
    _add_claim(volumes, mounts, spec)
    container = {
        "name": "worker",
        "image": revision.worker_image,
        "imagePullPolicy": defaults.image_pull_policy,
        "env": _worker_environment(revision, plan, placement, attempt, defaults),
        "ports": _ports(plan),
        "resources": _worker_resources(plan, requests),
        **_probes(startup_seconds(revision.facts.checkpoint_bytes, plan.pipeline_parallel)),
        "terminationMessagePath": str(TERMINATION_MESSAGE_PATH),
        "terminationMessagePolicy": "File",
        "securityContext": _container_security(),
        "volumeMounts": mounts,
    }
    pod = _pod_base(spec) | {
        # One pod is the whole replica: the kubelet restarts it in place, also while the operator is away.
        # Stages cannot go on without each other: they are made anew together.
        "restartPolicy": "Always" if plan.pipeline_parallel == 1 else "Never",
        "terminationGracePeriodSeconds": spec.rollout.drain_seconds + DRAIN_GRACE_SECONDS,
        "affinity": _pinned(placement.node),
        "tolerations": [_toleration(toleration) for toleration in worker_tolerations(spec)],
        "containers": [container],
        "volumes": volumes,
    }
    if claims.is_claimed(plan):
        pod["resourceClaims"] = claims.pod_claims(plan)
    if plan.pipeline_parallel > 1:
        pod |= {
            "schedulingGates": [{"name": PLAN_GATE}],
            "hostname": stage_hostname(revision.name, placement.replica, placement.stage, attempt),
            "subdomain": workers_subdomain(owner),
        }
    if overlay.runtime_class_name:
        pod["runtimeClassName"] = overlay.runtime_class_name
    if spec.placement.priority_class_name:
        pod["priorityClassName"] = spec.placement.priority_class_name
    meta = metadata(owner, name, own_labels, annotations=annotations)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod}


def _ports(plan: PlanStatus) -> list[dict[str, Any]]:
    named = {"http": SERVING_PORT, "admin": ADMIN_PORT}
    if plan.pipeline_parallel > 1:
        named["stages"] = STAGE_PORT
    return [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in named.items()]


def _worker_environment(
    revision: Revision, plan: PlanStatus, placement: PlanPlacement, attempt: int, defaults: PodDefaults
) -> list[dict[str, Any]]:
    spec = revision.spec
    values = {"HOME": "/tmp"}  # noqa: S108
    if spec.model.hugging_face:
        values["HF_ENDPOINT"] = defaults.hf_endpoint
    values |= {variable.name: variable.value for variable in spec.pod_template.env}
    values |= {
        LAUNCH_ENV: launch(revision, plan, placement, attempt).to_json(),
        "PLIMSOLL_DRAIN_SECONDS": str(spec.rollout.drain_seconds),
    }
    return _environment(
        values,
        _token(spec.model.credentials_secret_ref),
        _from_secret("PLIMSOLL_API_KEY", spec.service.api_key_secret_ref),
    )


def _environment(values: dict[str, str], *secrets: dict[str, Any] | None) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in values.items()]
    return plain + [secret for secret in secrets if secret]


def _token(reference: SecretKeyRef | None) -> dict[str, Any] | None:
    return _from_secret("HF_TOKEN", reference)


def _from_secret(name: str, reference: SecretKeyRef | None) -> dict[str, Any] | None:
    if reference is None:
        return None
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": reference.name, "key": reference.key}}}


def _worker_resources(plan: PlanStatus, requests: Resources) -> dict[str, Any]:
    """Extended resources must be limits; memory has its limit at the request, because the plan promised no
    more; CPU has none, so that idle cores are used."""
    claimed = claims.is_claimed(plan)
    extended = {name: str(amount) for name, amount in requests.extended.items() if amount and not claimed}
    asked = {
        "cpu": f"{requests.cpu_millis}m",
        "memory": str(requests.memory_bytes),
        "ephemeral-storage": str(requests.ephemeral_bytes),
    }
    resources: dict[str, Any] = {
        "requests": asked | extended,
        "limits": {"memory": str(plan.host_memory_bytes)} | extended,
    }
    return resources | ({"claims": [{"name": claims.REQUEST}]} if claimed else {})


def startup_seconds(checkpoint_bytes: int, stages: int = 1) -> int:
    """How long a worker may take from its container's start to its first answer. Stages first wait for each
    other."""
    meeting = RENDEZVOUS_SECONDS if stages > 1 else 0
    return meeting + STARTUP_BASE_SECONDS + checkpoint_bytes // STARTUP_BYTES_PER_SECOND


def _probes(seconds: int) -> dict[str, Any]:
    """Startup is generous by bytes to load; readiness asks the engine; liveness only whether the server still
    listens, because a busy engine is not a dead one."""
    health = {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 3}
    return {
        "startupProbe": {
            **health,
            "periodSeconds": PROBE_SECONDS,
            "failureThreshold": -(-seconds // PROBE_SECONDS),
        },
        "readinessProbe": {**health, "periodSeconds": PROBE_SECONDS, "failureThreshold": 2},
        "livenessProbe": {
            "tcpSocket": {"port": "http"},
            "timeoutSeconds": 3,
            "periodSeconds": 10,
            "failureThreshold": 6,
        },
    }


def _pod_base(spec: LLMDeploymentSpec) -> dict[str, Any]:
    base: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if spec.pod_template.image_pull_secrets:
        base["imagePullSecrets"] = [{"name": secret.name} for secret in spec.pod_template.image_pull_secrets]
    return base


def _container_security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _scratch() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {"sizeLimit": str(SCRATCH_BYTES)}}]
    return volumes, [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108


def _add_claim(volumes: list[dict[str, Any]], mounts: list[dict[str, Any]], spec: LLMDeploymentSpec) -> None:
    if claim := spec.model.persistent_volume_claim:
        source = {"claimName": claim.claim_name, "readOnly": True}
        volumes.append({"name": "models", "persistentVolumeClaim": source})
        mounts.append({"name": "models", "mountPath": MODELS, "readOnly": True})


def _pinned(node: str) -> dict[str, Any]:
    """An affinity, not spec.nodeName: the scheduler still checks taints, volumes and room."""
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = [{"matchFields": [field]}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def _toleration(toleration: Toleration) -> dict[str, Any]:
    """Without empty fields, as the API server stores it."""
    return {key: value for key, value in toleration.to_dict().items() if value}
