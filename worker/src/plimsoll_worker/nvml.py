"""The NVML handle of the device that torch runs on: a whole GPU, or the MIG slice that the pod was given.

torch tells a UUID without saying of what; which of the two it is under MIG differs between CUDA versions. A
handle of the whole card would report what all tenants use, so a slice is looked for wherever one can be.
"""

from __future__ import annotations

from typing import Any

from plimsoll_worker.errors import EffectiveConfigMismatch


def device_handle(nvml: Any, uuid: str) -> Any:
    """`nvml` is the module pynvml. Raises NVMLError for a UUID that no device has, EffectiveConfigMismatch
    when it cannot be told which slice of a card is this pod's."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
    except nvml.NVMLError:
        card = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    if not _is_cut(nvml, card):
        return card
    slices = _visible_slices(nvml, card)
    if len(slices) != 1:
        raise EffectiveConfigMismatch(
            f"GPU-{uuid} is cut into MIG slices and this pod sees {len(slices)} of them, expected one: "
            "its device plugin or driver must show the pod its own slice only"
        )
    return slices[0]


def _is_cut(nvml: Any, card: Any) -> bool:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(card)
    except nvml.NVMLError:
        # Cards without MIG do not know the question.
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _visible_slices(nvml: Any, card: Any) -> list[Any]:
    found: list[Any] = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index))
        except nvml.NVMLError:
            # No slice has this number, or it is another tenant's.
            continue
    return found
