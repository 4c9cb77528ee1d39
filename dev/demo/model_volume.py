"""SmolLM2-135M-Instruct on a local PersistentVolume: a real model, from a package that carries its file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from dev.hub.smollm2 import GGUF, smollm2_gguf


def place_model(folder: Path) -> Path:
    """Copy the model into `folder`, readable for every user: workers are not root. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / GGUF
    if not target.exists():
        partial = target.with_suffix(".partial")
        shutil.copyfile(smollm2_gguf(), partial)
        partial.chmod(0o644)
        partial.rename(target)
    folder.chmod(0o755)
    return folder


def volume(name: str, folder: Path, node: str) -> dict[str, Any]:
    """A PersistentVolume over `folder` of `node`."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "local": {"path": str(folder)},
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
                            ]
                        }
                    ]
                }
            },
        },
    }


def claim(name: str, namespace: str, volume_name: str) -> dict[str, Any]:
    """A PersistentVolumeClaim bound to that volume."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": volume_name,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
