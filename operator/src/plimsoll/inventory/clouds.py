"""What clouds write on their nodes where GPU feature discovery is not installed: product, count, memory.

Karpenter (and EKS Auto Mode) describe the instance type in labels, GKE names the accelerator, CoreWeave the
model; managed node groups of EKS and AKS say no more than the instance type, which stands in a table here.
Tables: the clouds' own pages on GPU instance types, read 2026-11; an instance type that is not in it is not
guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EC2 = ("karpenter.k8s.aws/instance-gpu-", "eks.amazonaws.com/instance-gpu-")
"""Karpenter's labels, and EKS Auto Mode's for the same."""
AZURE = "karpenter.azure.com/sku-gpu-"
GKE = "cloud.google.com/gke-"
COREWEAVE = "gpu.nvidia.com/"
INSTANCE_TYPES = ("node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type")
"""The second is the deprecated spelling."""

PRODUCT_LABELS = (GKE + "accelerator", *(key + "name" for key in EC2), AZURE + "name", COREWEAVE + "model")
COUNT_LABELS = (
    GKE + "accelerator-count",
    *(key + "count" for key in EC2),
    AZURE + "count",
    COREWEAVE + "count",
)
EC2_MEMORY_LABELS = tuple(key + "memory" for key in EC2)
MANUFACTURER_LABELS = (*(key + "manufacturer" for key in EC2), AZURE + "manufacturer")
PARTITION = GKE + "gpu-partition-size"
SHARING_STRATEGY = GKE + "gpu-sharing-strategy"


@dataclass(frozen=True, slots=True)
class InstanceType:
    """GPUs of a machine as its cloud sells it. `label` is where the type was read."""

    label: str
    name: str
    product: str
    gpus: int
    """0: a fraction of one."""


_TYPES = {
    "Tesla-T4": "g4dn.xlarge:1 g4dn.2xlarge:1 g4dn.4xlarge:1 g4dn.8xlarge:1 g4dn.16xlarge:1 g4dn.12xlarge:4 "
    "g4dn.metal:8 Standard_NC4as_T4_v3:1 Standard_NC8as_T4_v3:1 Standard_NC16as_T4_v3:1 "
    "Standard_NC64as_T4_v3:4",
    "NVIDIA-T4G": "g5g.xlarge:1 g5g.2xlarge:1 g5g.4xlarge:1 g5g.8xlarge:1 g5g.16xlarge:2 g5g.metal:2",
    "NVIDIA-A10G": "g5.xlarge:1 g5.2xlarge:1 g5.4xlarge:1 g5.8xlarge:1 g5.16xlarge:1 g5.12xlarge:4 "
    "g5.24xlarge:4 g5.48xlarge:8",
    "NVIDIA-L4": "g6.xlarge:1 g6.2xlarge:1 g6.4xlarge:1 g6.8xlarge:1 g6.16xlarge:1 g6.12xlarge:4 "
    "g6.24xlarge:4 g6.48xlarge:8 gr6.4xlarge:1 gr6.8xlarge:1 g6f.large:0 g6f.xlarge:0 g6f.2xlarge:0 "
    "g6f.4xlarge:0 gr6f.4xlarge:0 g2-standard-4:1 g2-standard-8:1 g2-standard-12:1 g2-standard-16:1 "
    "g2-standard-32:1 g2-standard-24:2 g2-standard-48:4 g2-standard-96:8",
    "NVIDIA-L40S": "g6e.xlarge:1 g6e.2xlarge:1 g6e.4xlarge:1 g6e.8xlarge:1 g6e.16xlarge:1 g6e.12xlarge:4 "
    "g6e.24xlarge:4 g6e.48xlarge:8",
    "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition": "g7e.2xlarge:1 g7e.4xlarge:1 g7e.8xlarge:1 "
    "g7e.12xlarge:2 g7e.24xlarge:4 g7e.48xlarge:8 g4-standard-48:1 g4-standard-96:2 g4-standard-192:4 "
    "g4-standard-384:8",
    "Tesla-V100-SXM2-16GB": "p3.2xlarge:1 p3.8xlarge:4 p3.16xlarge:8",
    "Tesla-V100-PCIE-16GB": "Standard_NC6s_v3:1 Standard_NC12s_v3:2 Standard_NC24s_v3:4 Standard_NC24rs_v3:4",
    "Tesla-V100-SXM2-32GB": "p3dn.24xlarge:8 Standard_ND40rs_v2:8",
    "NVIDIA-A10": "Standard_NV6ads_A10_v5:0 Standard_NV12ads_A10_v5:0 Standard_NV18ads_A10_v5:0 "
    "Standard_NV36ads_A10_v5:1 Standard_NV36adms_A10_v5:1 Standard_NV72ads_A10_v5:2",
    "NVIDIA-A100-SXM4-40GB": "p4d.24xlarge:8 Standard_ND96asr_v4:8 a2-highgpu-1g:1 a2-highgpu-2g:2 "
    "a2-highgpu-4g:4 a2-highgpu-8g:8 a2-megagpu-16g:16",
    "NVIDIA-A100-SXM4-80GB": "p4de.24xlarge:8 Standard_ND96amsr_A100_v4:8 a2-ultragpu-1g:1 a2-ultragpu-2g:2 "
    "a2-ultragpu-4g:4 a2-ultragpu-8g:8",
    "NVIDIA-A100-80GB-PCIe": "Standard_NC24ads_A100_v4:1 Standard_NC48ads_A100_v4:2 "
    "Standard_NC96ads_A100_v4:4",
    "NVIDIA-H100-80GB-HBM3": "p5.4xlarge:1 p5.48xlarge:8 Standard_ND96isr_H100_v5:8 a3-highgpu-1g:1 "
    "a3-highgpu-2g:2 a3-highgpu-4g:4 a3-highgpu-8g:8 a3-megagpu-8g:8 a3-edgegpu-8g:8",
    "NVIDIA-H100-NVL": "Standard_NC40ads_H100_v5:1 Standard_NCC40ads_H100_v5:1 Standard_NC80adis_H100_v5:2",
    "NVIDIA-H200": "p5e.48xlarge:8 p5en.48xlarge:8 Standard_ND96isr_H200_v5:8 a3-ultragpu-8g:8",
    "NVIDIA-B200": "p6-b200.48xlarge:8 a4-highgpu-8g:8",
    "NVIDIA-B300": "p6-b300.48xlarge:8",
    "NVIDIA-GB200": "p6e-gb200.36xlarge:4 Standard_ND128isr_NDR_GB200_v6:4 a4x-highgpu-4g:4",
}
_BY_NAME = {
    name: (product, int(gpus))
    for product, types in _TYPES.items()
    for name, _, gpus in (entry.partition(":") for entry in types.split())
}


def instance_type(labels: Mapping[str, str]) -> InstanceType | None:
    """The node's instance type, where it is one with GPUs that the table knows."""
    for label in INSTANCE_TYPES:
        if found := _BY_NAME.get(labels.get(label, "")):
            return InstanceType(label, labels[label], *found)
    return None
