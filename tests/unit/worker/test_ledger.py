"""The ledger's arithmetic on a card whose counters are made up: its sum is what the card says is in use."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from plimsoll_worker.launch import MeasuredMemory
from plimsoll_worker.memory import Counted, CudaMemory, Growth

MIB = 2**20


class Card:
    """NVML and torch's allocator, MiB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outside = 1236
        """Context, libraries and the driver's reserve."""
        self.reserved = 0
        self.allocated = 0
        self.peak = 0
        for name, value in {
            "memory_reserved": lambda device: self.reserved * MIB,
            "memory_allocated": lambda device: self.allocated * MIB,
            "max_memory_allocated": lambda device: self.peak * MIB,
            "reset_peak_memory_stats": lambda device: None,
            "synchronize": lambda device: None,
            "empty_cache": lambda: None,
            "get_device_name": lambda device: "Made-up GPU",
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        self.memory = object.__new__(CudaMemory)
        self.memory.torch_device = torch.device("cuda", 0)
        self.memory.total_bytes = 81559 * MIB
        self.memory._handle = None
        self.memory._nvml = SimpleNamespace(nvmlMemory_v2=2, nvmlDeviceGetMemoryInfo=self._info)

    def _info(self, handle: object, version: int) -> SimpleNamespace:
        return SimpleNamespace(used=(self.outside + self.reserved - 480) * MIB, reserved=480 * MIB)

    def hold(self, reserved: int, allocated: int) -> None:
        self.reserved += reserved
        self.allocated += allocated


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    made = Card(monkeypatch)
    made.hold(15_330, 15_320)  # weights and their rounding
    made.hold(32, 32)  # cuBLAS's workspace
    made.hold(8, 8)  # the runner's tables
    made.hold(40_000, 40_000)  # the KV pool
    return made


def capture(card: Card) -> None:
    card.hold(200, 32)
    card.outside += 90


def close(card: Card) -> Counted:
    graphs = card.memory.growth(lambda: capture(card))
    assert graphs == Growth(290 * MIB, 200 * MIB, 32 * MIB)
    card.hold(900, 0)  # kept by the allocator for the next step's activations
    counted = Counted(
        weights=15_320 * MIB,
        kv_cache=40_000 * MIB,
        workspace=8 * MIB,
        activations=850 * MIB,
        graphs=graphs,
    )
    runtime = card.memory.runtime_bytes(counted)
    return Counted(
        **{name: getattr(counted, name) for name in Counted.__slots__ if name != "runtime"}, runtime=runtime
    )


def total(found: MeasuredMemory) -> int:
    return found.total


def test_the_categories_add_up_to_what_the_card_says(card: Card) -> None:
    report = card.memory.report(close(card))
    assert report.used_bytes == (1236 + 90 + 15_330 + 32 + 8 + 40_000 + 200 + 900) * MIB
    assert total(report.bytes) == report.used_bytes
    assert report.bytes == MeasuredMemory(
        weights=15_320 * MIB,
        kv_cache=40_000 * MIB,
        activations=858 * MIB,
        cuda_graphs=290 * MIB,
        communication=0,
        runtime=(1236 + 32) * MIB,
        fragmentation=(900 - 850 + 10) * MIB,
        unattributed=0,
    )


def test_what_comes_after_the_ledger_is_closed_is_not_hidden(card: Card) -> None:
    counted = close(card)
    card.outside += 70
    assert card.memory.report(counted).bytes.unattributed == 70 * MIB
    card.hold(20, 0)
    report = card.memory.report(counted)
    assert report.bytes.fragmentation == (900 - 850 + 10 + 20) * MIB
    assert total(report.bytes) == report.used_bytes


def test_the_rise_of_a_step_is_its_peak_over_what_was_there(card: Card) -> None:
    def step() -> None:
        card.peak = card.allocated + 333

    assert card.memory.rise(step) == 333 * MIB
