"""The ledger: where the bytes of a device went, by the categories that predictions use.

What can be counted exactly is (weights, KV pool: the tensors' own sizes); activations are the rise of use
during the steps that take the most; graphs are the rise while they are captured. `runtime` is what was in
use besides when the ledger was closed, so whatever comes later and belongs to no category shows as
`unattributed`. On a GPU "use" is what NVML says of the device, not what torch says of itself: the line is a
promise about the device.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import psutil
import torch

from plimsoll_worker.environment import CGROUP, memory_limit
from plimsoll_worker.errors import EffectiveConfigMismatch
from plimsoll_worker.launch import Device, DeviceReport, MeasuredMemory
from plimsoll_worker.nvml import device_handle

PROC = Path("/proc")
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's; other C libraries do without."""


T = TypeVar("T")


class DeviceMemory(Protocol):
    """One device as the ledger sees it. All in bytes."""

    @property
    def torch_device(self) -> torch.device: ...

    @property
    def product(self) -> str:
        """The device's name, as the plan would name it."""
        ...

    @property
    def capability(self) -> tuple[int, int] | None:
        """CUDA compute capability; None of a CPU."""
        ...

    @property
    def total_bytes(self) -> int:
        """What the device has; on a CPU what this container may use."""
        ...

    def used(self) -> int:
        """In use now; on a CPU by this process, on a GPU by everyone."""
        ...

    def release(self) -> None:
        """Give freed memory that an allocator holds back to the device."""
        ...

    def rise(self, work: Callable[[], None]) -> int:
        """Bytes that `work` had in use at its peak over what was in use before."""
        ...

    def growth(self, work: Callable[[], None]) -> Growth:
        """What `work` left in use."""
        ...

    def peak(self) -> int:
        """The most in use since the last `rise`, or now where freed memory is kept for the next step."""
        ...

    def communicating(self, gather: Callable[[], T]) -> T:
        """What `gather` returns. What it leaves in use is what communication takes."""
        ...

    def runtime_bytes(self, counted: Counted) -> int:
        """What is in use besides `counted` (its runtime aside) and communication: libraries, their
        workspaces, the driver."""
        ...

    def report(self, counted: Counted) -> DeviceReport:
        """The ledger, given what is counted."""
        ...


@dataclass(frozen=True, slots=True)
class Growth:
    """Memory that stays in use."""

    used: int = 0
    """On the device."""
    allocator: int = 0
    """Of it, kept by torch's allocator."""
    live: int = 0
    """Of that, in tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What is known of a device's bytes by counting."""

    weights: int
    kv_cache: int
    workspace: int = 0
    """The runner's own tables."""
    activations: int = 0
    """Peak over all that stays, `workspace` not in it."""
    graphs: Growth = field(default_factory=Growth)
    runtime: int = 0


class CpuMemory:
    """RAM of this process and of the server's, which is what the container's limit is about: the resident
    set, and what the other process has for itself alone. Ranks count for themselves.

    Page cache of the model's files is left out: the kernel takes it back before it kills.
    """

    torch_device = torch.device("cpu")
    _communication = 0
    capability = None

    def __init__(self, rank: int = 0, ranks: Collection[int] = ()) -> None:
        """`ranks`: the processes of the pod's other ranks."""
        self._rank, self._ranks = rank, ranks
        self._process = psutil.Process()
        self._before = self.used() - self._others()
        """Interpreter, libraries and tokenizer: what this process had in use before the first weight."""
        self.total_bytes = memory_limit(CGROUP, psutil.virtual_memory().total)

    @property
    def product(self) -> str:
        match = re.search(r"^model name\s*:\s*(.+)$", (PROC / "cpuinfo").read_text(), re.MULTILINE)
        return match[1].strip() if match else "CPU"

    def used(self) -> int:
        rss: int = self._process.memory_info().rss
        return rss + self._others()

    def _others(self) -> int:
        """Libraries are resident once, so of the server's process only its own pages count."""
        own = 0
        for child in self._process.children():
            if child.pid not in self._ranks:
                with contextlib.suppress(psutil.Error):
                    own += int(child.memory_full_info().uss)
        return own

    def release(self) -> None:
        # glibc keeps what is freed in small pieces: after loading, tens of MiB that nothing would explain.
        if _TRIM is not None:
            _TRIM(0)

    def rise(self, work: Callable[[], None]) -> int:
        self.release()
        before = self.used()
        # 5 resets the peak resident set size: proc(5), /proc/pid/clear_refs.
        (PROC / "self" / "clear_refs").write_text("5")
        work()
        return max(0, self.peak() - before)

    def growth(self, work: Callable[[], None]) -> Growth:
        before = self.used()
        work()
        return Growth(max(0, self.used() - before))

    def peak(self) -> int:
        match = re.search(r"^VmHWM:\s*(\d+) kB$", (PROC / "self" / "status").read_text(), re.MULTILINE)
        return int(match[1]) * 1024 + self._others() if match else self.used()

    def communicating(self, gather: Callable[[], T]) -> T:
        before = self.used()
        found = gather()
        self.release()
        self._communication = max(0, self.used() - before)
        return found

    def runtime_bytes(self, counted: Counted) -> int:
        """What was in use before the first weight, and the server's process as it is now; later growth of
        this one is not the runtime's."""
        del counted
        return self._before + self._others()

    def report(self, counted: Counted) -> DeviceReport:
        used = self.peak()
        activations = counted.workspace + counted.activations
        explained = counted.weights + counted.kv_cache + activations + counted.runtime + self._communication
        return DeviceReport(
            rank=self._rank,
            product=self.product,
            total_bytes=self.total_bytes,
            used_bytes=used,
            bytes=MeasuredMemory(
                weights=counted.weights,
                kv_cache=counted.kv_cache,
                activations=activations,
                cuda_graphs=0,
                communication=self._communication,
                runtime=counted.runtime,
                fragmentation=0,
                unattributed=used - explained,
            ),
        )


class CudaMemory:
    """One GPU by NVML, split by torch's allocator."""

    _rank = _communication = 0

    def __init__(self, index: int = 0) -> None:
        """Raises EffectiveConfigMismatch when torch sees no such GPU."""
        if index >= torch.cuda.device_count():
            raise EffectiveConfigMismatch(
                f"the plan asks for a GPU, torch {torch.__version__} sees {torch.cuda.device_count()}: "
                "is the GPU's resource requested, and does its driver fit this CUDA version?"
            )
        import pynvml

        self._rank = index
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(index).uuid
        self._handle = device_handle(pynvml, str(uuid))
        self._nvml = pynvml
        self.total_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).total)

    @property
    def product(self) -> str:
        return torch.cuda.get_device_name(self.torch_device)

    @property
    def capability(self) -> tuple[int, int]:
        return torch.cuda.get_device_capability(self.torch_device)

    def used(self) -> int:
        # Version 2 keeps apart what the driver reserves; the line counts it (DESIGN: NVML used + reserved).
        info = self._nvml.nvmlDeviceGetMemoryInfo(self._handle, version=self._nvml.nvmlMemory_v2)
        return int(info.used) + int(info.reserved)

    def release(self) -> None:
        torch.cuda.empty_cache()

    def rise(self, work: Callable[[], None]) -> int:
        torch.cuda.synchronize(self.torch_device)
        before = torch.cuda.memory_allocated(self.torch_device)
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        work()
        torch.cuda.synchronize(self.torch_device)
        return torch.cuda.max_memory_allocated(self.torch_device) - before

    def growth(self, work: Callable[[], None]) -> Growth:
        self.release()
        before = self._held()
        work()
        self.release()
        return Growth(*(now - then for now, then in zip(self._held(), before, strict=True)))

    def _held(self) -> tuple[int, int, int]:
        """As Growth has them."""
        torch.cuda.synchronize(self.torch_device)
        device = self.torch_device
        return self.used(), torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)

    def peak(self) -> int:
        """What torch's allocator reserved it keeps, so that use after a step is the peak of the step."""
        torch.cuda.synchronize(self.torch_device)
        return self.used()

    def communicating(self, gather: Callable[[], T]) -> T:
        self.release()
        used, kept, _ = self._held()
        found = gather()
        self.release()
        used_now, kept_now, _ = self._held()
        self._communication = max(0, used_now - kept_now - used + kept)
        return found

    def runtime_bytes(self, counted: Counted) -> int:
        torch.cuda.synchronize(self.torch_device)
        outside = self.used() - torch.cuda.memory_reserved(self.torch_device) - self._communication
        outside -= counted.graphs.used - counted.graphs.allocator
        return outside + self._workspaces(counted)

    def report(self, counted: Counted) -> DeviceReport:
        used = self.peak()
        activations = counted.workspace + counted.activations
        known = counted.weights + counted.kv_cache + activations
        reserved = torch.cuda.memory_reserved(self.torch_device) - counted.graphs.allocator
        fragmentation = max(0, reserved - known - self._workspaces(counted))
        explained = known + counted.graphs.used + counted.runtime + fragmentation + self._communication
        return DeviceReport(
            rank=self._rank,
            product=self.product,
            total_bytes=self.total_bytes,
            used_bytes=used,
            bytes=MeasuredMemory(
                weights=counted.weights,
                kv_cache=counted.kv_cache,
                activations=activations,
                cuda_graphs=max(0, counted.graphs.used),
                communication=self._communication,
                runtime=counted.runtime,
                fragmentation=fragmentation,
                unattributed=used - explained,
            ),
        )

    def _workspaces(self, counted: Counted) -> int:
        """What libraries hold in torch's allocator between steps: cuBLAS's workspaces, mostly."""
        allocated = torch.cuda.memory_allocated(self.torch_device)
        known = counted.weights + counted.kv_cache + counted.workspace + counted.graphs.live
        return max(0, allocated - known)


def open_device(device: Device, rank: int = 0, ranks: Collection[int] = ()) -> CpuMemory | CudaMemory:
    """The device that the launch asks for: a pod's GPUs are its ranks'. Call before weights are loaded: what
    is in use by then is `runtime`. `ranks`: the processes of the pod's other ranks.

    Raises EffectiveConfigMismatch.
    """
    return CpuMemory(rank, ranks) if device is Device.CPU else CudaMemory(rank)
