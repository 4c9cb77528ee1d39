"""Specs that must be refused, by the API server and by Python alike, and words that the message must hold."""

from __future__ import annotations

from typing import Any, NamedTuple

HUB = {"huggingFace": {"repo": "Qwen/Qwen3-32B"}}
VOLUME = {"persistentVolumeClaim": {"claimName": "models"}}


class Refused(NamedTuple):
    spec: dict[str, Any]
    where: str
    """Path of the field that the message names."""
    says: str
    """What to write instead."""


def _volume(**fields: str) -> dict[str, Any]:
    return {"model": {"persistentVolumeClaim": {"claimName": "models", **fields}}}


def _hub(**fields: object) -> dict[str, Any]:
    return {"model": HUB, **fields}


REFUSED = {
    "two sources": Refused(
        {"model": {**HUB, **VOLUME}}, "model", "set exactly one source: huggingFace or persistentVolumeClaim"
    ),
    "no source": Refused({"model": {}}, "model", "set exactly one source"),
    "repository without owner": Refused(
        {"model": {"huggingFace": {"repo": "Qwen3-32B"}}}, "model.huggingFace.repo", "write owner/name"
    ),
    "repository as an address": Refused(
        {"model": {"huggingFace": {"repo": "https://huggingface.co/Qwen/Qwen3-32B"}}},
        "model.huggingFace.repo",
        "write owner/name without a host, for example Qwen/Qwen3-32B",
    ),
    "revision with a blank": Refused(
        {"model": {"huggingFace": {"repo": "a/b", "revision": "main branch"}}},
        "model.huggingFace.revision",
        "write a branch, a tag or a commit",
    ),
    "path that leaves the volume": Refused(
        _volume(path="a/../../etc"), "model.persistentVolumeClaim", "remove '..'"
    ),
    "absolute path": Refused(
        _volume(path="/models/a"), "model.persistentVolumeClaim.path", "remove the first '/'"
    ),
    "claim that is no object name": Refused(
        _volume(claimName="My_Models"), "model.persistentVolumeClaim.claimName", "write lower case letters"
    ),
    "token for a volume": Refused(
        {"model": {**VOLUME, "credentialsSecretRef": {"name": "hf"}}},
        "model",
        "credentialsSecretRef is for huggingFace: remove it",
    ),
    "key that no Secret can have": Refused(
        {"model": {**HUB, "credentialsSecretRef": {"name": "hf", "key": "my token"}}},
        "model.credentialsSecretRef.key",
        "not a key of a Secret",
    ),
    "quantity with a blank": Refused(
        _hub(placement={"accelerators": {"minMemory": "40 GB"}}),
        "placement.accelerators.minMemory",
        "write a number with an optional unit, for example 40Gi",
    ),
    "negative quantity": Refused(
        _hub(placement={"accelerators": {"minMemory": -1}}),
        "placement.accelerators.minMemory",
        "not a quantity",
    ),
    "negative CPU": Refused(
        _hub(podTemplate={"resources": {"cpu": "-2"}}), "podTemplate.resources.cpu", "not a quantity"
    ),
    "compute capability as sm number": Refused(
        _hub(placement={"accelerators": {"minComputeCapability": "sm_90"}}),
        "placement.accelerators.minComputeCapability",
        "write major.minor in quotes, for example '8.9'",
    ),
    "accelerators on CPU": Refused(
        _hub(placement={"device": "CPU", "accelerators": {"products": ["L4"]}}),
        "placement",
        "accelerators are for device GPU: remove them or write device: GPU",
    ),
    "accelerator memory on CPU": Refused(
        _hub(placement={"device": "CPU", "accelerators": {"minMemory": "1Gi"}}),
        "placement",
        "accelerators are for device GPU",
    ),
    "node selector with a bad key": Refused(
        _hub(placement={"nodeSelector": {"gpu node": "true"}}), "placement", "write name or domain/name"
    ),
    "node selector with a bad value": Refused(
        _hub(placement={"nodeSelector": {"pool": "a b"}}), "placement.nodeSelector", "not a label value"
    ),
    "toleration with Exists and a value": Refused(
        _hub(placement={"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}),
        "placement.tolerations",
        "operator Exists takes no value",
    ),
    "toleration of everything by accident": Refused(
        _hub(placement={"tolerations": [{"effect": "NoSchedule"}]}),
        "placement.tolerations",
        "write a key, or operator: Exists",
    ),
    "environment of the plan": Refused(
        _hub(podTemplate={"env": [{"name": "PLIMSOLL_LAUNCH", "value": "{}"}]}),
        "podTemplate.env",
        "variables named PLIMSOLL_* belong to the plan: rename it",
    ),
    "environment name with a dash": Refused(
        _hub(podTemplate={"env": [{"name": "MY-VAR"}]}), "podTemplate.env", "not a variable name"
    ),
    "labels of the operator": Refused(
        _hub(podTemplate={"labels": {"plimsoll.dev/deployment": "other"}}),
        "podTemplate",
        "belong to the operator: rename them",
    ),
    "annotations of the operator": Refused(
        _hub(podTemplate={"annotations": {"plimsoll.dev/plan": "mine"}}),
        "podTemplate",
        "annotations plimsoll.dev/* belong to the operator",
    ),
    "annotation with a bad key": Refused(
        _hub(podTemplate={"annotations": {"a b": "c"}}), "podTemplate", "write name or domain/name"
    ),
    "too many replicas": Refused(_hub(replicas=65), "replicas", "less than or equal to 64"),
    "negative replicas": Refused(_hub(replicas=-1), "replicas", "greater than or equal to 0"),
    "context of nothing": Refused(
        _hub(workload={"maxContextTokens": 0}), "workload.maxContextTokens", "greater than or equal to 16"
    ),
    "precision that nobody knows": Refused(
        _hub(quantization={"weights": "FP7"}), "quantization.weights", "FP32"
    ),
    "mean context above the longest": Refused(
        _hub(workload={"maxContextTokens": 4096, "meanContextTokens": 8192}),
        "workload",
        "write the mean, maxContextTokens or less",
    ),
    "objective that nobody knows": Refused(
        _hub(workload={"objective": "Cheapest"}), "workload.objective", "FewestGPUs"
    ),
    "target of nothing": Refused(
        _hub(workload={"targets": {"timePerOutputTokenMilliseconds": 0}}),
        "workload.targets.timePerOutputTokenMilliseconds",
        "greater than or equal to 1",
    ),
    "floor beside a precision": Refused(
        _hub(quantization={"weights": "INT8", "floor": "INT8"}),
        "quantization",
        "remove floor, or write weights: Auto",
    ),
    "floor beside Native": Refused(
        _hub(quantization={"weights": "Native", "floor": "INT4"}),
        "quantization",
        "remove floor, or write weights: Auto",
    ),
    "cache that nobody keeps": Refused(_hub(quantization={"kvCache": "INT8"}), "quantization.kvCache", "FP8"),
    "more ranks than a node has": Refused(
        _hub(parallelism={"tensor": 32}), "parallelism.tensor", "less than or equal to 16"
    ),
    "ranks on a CPU": Refused(
        _hub(parallelism={"tensor": 2}, placement={"device": "CPU"}),
        "",
        "parallelism.tensor is for device GPU: remove it, or write placement.device: GPU",
    ),
    "target on a CPU": Refused(
        _hub(workload={"targets": {"timeToFirstTokenMilliseconds": 500}}, placement={"device": "CPU"}),
        "",
        "remove workload.targets",
    ),
    "objective of time on a CPU": Refused(
        _hub(workload={"objective": "Latency"}, placement={"device": "CPU"}),
        "",
        "write objective: FewestGPUs or Quality",
    ),
    "device that nobody knows": Refused(_hub(placement={"device": "TPU"}), "placement.device", "GPU"),
    "slices on CPU": Refused(
        _hub(placement={"device": "CPU", "sharing": "MIG"}), "placement", "sharing: MIG is for device GPU"
    ),
    "claims on CPU": Refused(
        _hub(placement={"device": "CPU", "allocation": "DRA"}), "placement", "allocation is for device GPU"
    ),
    "a model cut over slices": Refused(
        _hub(placement={"sharing": "MIG"}, parallelism={"tensor": 2}),
        "",
        "a model is not cut over MIG slices: remove parallelism.tensor",
    ),
}

ACCEPTED = {
    "hub": _hub(),
    "hub with everything": {
        "model": {
            "huggingFace": {"repo": "mistralai/Mistral-7B-v0.1", "revision": "refs/pr/3"},
            "credentialsSecretRef": {"name": "hf-token"},
            "servedName": "mistral",
        },
        "workload": {
            "maxContextTokens": 32768,
            "maxConcurrentSequences": 64,
            "meanContextTokens": 4096,
            "maxBatchedTokens": 2048,
            "targets": {"timePerOutputTokenMilliseconds": 50, "timeToFirstTokenMilliseconds": 1000},
            "objective": "Throughput",
        },
        "quantization": {"weights": "Auto", "floor": "INT4", "kvCache": "Auto"},
        "parallelism": {"tensor": 8, "pipeline": 2, "multiNode": "Never"},
        "placement": {
            "accelerators": {"products": ["H100", "L4"], "minMemory": "40Gi", "minComputeCapability": "8.9"},
            "nodeSelector": {"example.com/pool": "inference", "empty": ""},
            "tolerations": [{"operator": "Exists"}, {"key": "team", "value": "a", "effect": "NoSchedule"}],
            "priorityClassName": "high",
            "memoryHeadroomPercent": 0,
        },
        "plan": {"mode": "PlanOnly"},
        "replicas": 0,
        "rollout": {"drainSeconds": 0},
        "service": {"port": 80, "apiKeySecretRef": {"name": "key", "key": "api.key"}},
        "engine": {"image": "registry.example.com/worker:1"},
        "podTemplate": {
            "labels": {"example.com/team": "search", "tier": "gold"},
            "annotations": {"example.com/note": "anything: goes here"},
            "env": [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "HF_HUB_OFFLINE"}],
            "resources": {"cpu": 4},
            "imagePullSecrets": [{"name": "registry"}],
            "runtimeClassName": "nvidia",
        },
        "suspend": True,
    },
    "volume by its root": {"model": VOLUME},
    "file on a volume, on CPU": {**_volume(path="smollm2/a..b.gguf"), "placement": {"device": "CPU"}},
    "one rank and one stage on a CPU": _hub(
        parallelism={"tensor": 1, "pipeline": 1},
        placement={"device": "CPU"},
        workload={"objective": "Quality"},
    ),
    "a precision by name": _hub(quantization={"weights": "FP8", "kvCache": "FP8"}),
    "quantity as a bare number": _hub(placement={"accelerators": {"minMemory": 42949672960}}),
    "quantity as milli": _hub(podTemplate={"resources": {"cpu": "500m"}}),
    "quantity with a fraction": _hub(placement={"accelerators": {"minMemory": "22.5Gi"}}),
}
