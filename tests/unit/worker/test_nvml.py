"""Whose memory is measured: the whole GPU's, or that of the slice the pod was given."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from plimsoll_worker.errors import EffectiveConfigMismatch
from plimsoll_worker.nvml import device_handle


class NVMLError(Exception):
    """What NVML answers to a question that a device does not know."""


@dataclass
class Card:
    """NVML as a pod sees it: UUIDs of devices, and the slices of the one card by number."""

    uuids: set[str]
    cut: bool | None = None
    """None: the card has no MIG."""
    slices: dict[int, str] = field(default_factory=dict)
    NVMLError: type[Exception] = NVMLError
    NVML_DEVICE_MIG_ENABLE: int = 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in self.uuids:
            raise NVMLError(uuid)
        return uuid

    def nvmlDeviceGetMigMode(self, _card: str) -> tuple[int, int]:
        if self.cut is None:
            raise NVMLError("not supported")
        return int(self.cut), int(self.cut)

    def nvmlDeviceGetMaxMigDeviceCount(self, _card: str) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, _card: str, index: int) -> str:
        if index not in self.slices:
            raise NVMLError(index)
        return self.slices[index]


@pytest.mark.parametrize(
    ("card", "handle"),
    [
        (Card({"GPU-1"}), "GPU-1"),
        (Card({"GPU-1"}, cut=False), "GPU-1"),
        (Card({"MIG-1", "GPU-0"}, cut=True), "MIG-1"),
        (Card({"GPU-1"}, cut=True, slices={3: "slice-3"}), "slice-3"),
    ],
    ids=["a card without MIG", "a card that is not cut", "the slice's own UUID", "the card's UUID"],
)
def test_the_handle_is_of_what_the_pod_was_given(card: Card, handle: str) -> None:
    assert device_handle(card, "1") == handle


@pytest.mark.parametrize("slices", [{}, {0: "a", 1: "b"}], ids=["none", "two"])
def test_a_slice_that_cannot_be_told_is_refused(slices: dict[int, str]) -> None:
    with pytest.raises(EffectiveConfigMismatch, match=f"sees {len(slices)} of them, expected one"):
        device_handle(Card({"GPU-1"}, cut=True, slices=slices), "1")


def test_a_device_that_is_not_there_is_nvmls_to_tell() -> None:
    with pytest.raises(NVMLError):
        device_handle(Card(set()), "1")
