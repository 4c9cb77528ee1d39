"""What the ranks of a stage say to each other while they compute: sums, columns side by side, the first one's
word.

A layer sums twice, behind attention and behind the MLP. In a decode step a sum is a few KiB, and what it
costs is not bytes but the time until all have met; so small sums go over symmetric memory, where each rank
reads what the others have written in one kernel, and large ones through NCCL. NVLink's multicast, which could
sum in the switch, is never used: a fault there takes all GPUs of a host out of service (`environment`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, distributed

from plimsoll_worker.parallel.position import Position
from plimsoll_worker.progress import say

ONE_SHOT_BYTES = {2: 1 << 20, 4: 512 << 10, 8: 256 << 10}
"""Up to so many bytes a sum over so many ranks goes over symmetric memory. Four and eight: vLLM's limits
(csrc/custom_all_reduce.cuh). Two: one reading moves no more bytes than NCCL's ring does; from where on NCCL
is faster, tests/gpu/parallel_on_gpu.py tells on two cards."""
ALIGNMENT_BYTES = 16
"""Symmetric memory is read in pieces of this size."""
GATHER_SECONDS = 120
"""For all ranks of a pod to find each other, each with its libraries loaded."""


class Ranks(Protocol):
    """The ranks among which a stage's layers are divided. All call the same in the same order."""

    @property
    def leads(self) -> bool:
        """Whether this is the first rank: it adds what is to be added once."""
        ...

    def sum(self, x: Tensor) -> Tensor:
        """Over the ranks of x (rows, width), everywhere the same bits. x is used up."""
        ...

    def join_columns(self, x: Tensor, width: int) -> Tensor:
        """Of each rank's x (rows, columns), side by side in order, the first `width` columns."""
        ...

    def take_word(self, x: Tensor) -> None:
        """Put the first rank's contents into x."""
        ...

    def least(self, number: int) -> int:
        """The smallest that any rank says."""
        ...


class Alone:
    """The only rank."""

    leads = True

    def sum(self, x: Tensor) -> Tensor:
        return x

    def join_columns(self, x: Tensor, width: int) -> Tensor:
        del width
        return x

    def take_word(self, x: Tensor) -> None:
        del x

    def least(self, number: int) -> int:
        return number


class Imagined(Alone):
    """Stands for ranks that are not there, where shapes alone count."""

    def __init__(self, position: Position) -> None:
        self.leads = position.rank == 0

    def join_columns(self, x: Tensor, width: int) -> Tensor:
        return x.new_empty((x.shape[0], width))


class Together:
    """Ranks that are there: one process each, in one process group of torch.distributed."""

    def __init__(self, rank: int, count: int, device: torch.device) -> None:
        """Of the default group, which must be there."""
        self.leads = rank == 0
        self._count = count
        self._device = device
        self._shared = _SharedMemory.of(count, device) if device.type == "cuda" else None

    def sum(self, x: Tensor) -> Tensor:
        if self._shared is not None and self._shared.takes(x):
            return self._shared.sum(x)
        distributed.all_reduce(x)
        return x

    def join_columns(self, x: Tensor, width: int) -> Tensor:
        rows, columns = x.shape
        parts = x.new_empty((self._count * rows, columns))
        distributed.all_gather_into_tensor(parts, x.contiguous())
        joined = parts.view(self._count, rows, columns).transpose(0, 1).reshape(rows, -1)
        return joined if joined.shape[1] == width else joined[:, :width].contiguous()

    def take_word(self, x: Tensor) -> None:
        distributed.broadcast(x, src=0)

    def least(self, number: int) -> int:
        told = torch.tensor(number, dtype=torch.int64, device=self._device)
        distributed.all_reduce(told, distributed.ReduceOp.MIN)
        return int(told.item())


class _SharedMemory:
    """A buffer of each rank that all read: torch's symmetric memory."""

    def __init__(self, count: int, device: torch.device) -> None:
        """Raises RuntimeError where the GPUs do not reach each other's memory."""
        import torch.distributed._symmetric_memory as symmetric

        self.limit = min(limit for most, limit in ONE_SHOT_BYTES.items() if most >= count)
        group = distributed.group.WORLD
        assert group is not None, "the process group is there"
        self._group = group.group_name
        self._memory = symmetric.empty(self.limit, dtype=torch.uint8, device=device)
        symmetric.rendezvous(self._memory, self._group)

    @classmethod
    def of(cls, count: int, device: torch.device) -> _SharedMemory | None:
        """None where there is none, on any rank, or where it sums otherwise than NCCL."""
        made, why = None, ""
        try:
            made = cls(count, device)
        except (RuntimeError, ValueError) as error:
            why = str(error)
        works = torch.tensor(int(made is not None), device=device)
        distributed.all_reduce(works, distributed.ReduceOp.MIN)
        if works.item() and made is not None:
            x = torch.arange(1024, device=device, dtype=torch.float32).view(8, 128)
            expected = x.clone()
            distributed.all_reduce(expected)
            works.fill_(int(torch.equal(made.sum(x), expected)))
            distributed.all_reduce(works, distributed.ReduceOp.MIN)
            why = "a sum over it is not NCCL's"
        if works.item():
            return made
        say("NoSymmetricMemory", because=why or "another rank has none")
        return None

    def takes(self, x: Tensor) -> bool:
        return x.nbytes <= self.limit and x.nbytes % ALIGNMENT_BYTES == 0 and x.is_contiguous()

    def sum(self, x: Tensor) -> Tensor:
        part = self._memory[: x.nbytes].view(x.dtype).view(x.shape)
        found: Tensor = torch.ops.symm_mem.one_shot_all_reduce_copy(part, x, "sum", self._group)
        return found


def gather(rank: int, count: int, device: torch.device, meeting: Path) -> Together:
    """Join the other ranks of the pod. `meeting`: a file that is not there yet, the same for all. Raises
    RuntimeError when they do not come.

    Everything that is made at the first use is made here: afterwards graphs may be captured, and the ledger
    knows what it took.
    """
    # gloo asks the resolver for this host's address, which a pod need not have.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    cuda = device.type == "cuda"
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        store=distributed.FileStore(str(meeting), count),  # type: ignore[attr-defined]
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=GATHER_SECONDS),
        device_id=device if cuda else None,
    )
    ranks = Together(rank, count, device)
    for each in _first_uses(ranks, device):
        each()
    ranks.least(0)
    return ranks


def _first_uses(ranks: Together, device: torch.device) -> tuple[Callable[[], object], ...]:
    large = torch.zeros((64, 65536), dtype=torch.float32, device=device)
    return (
        lambda: ranks.sum(large),
        lambda: ranks.sum(large[:1, :1024].contiguous()),
        lambda: ranks.join_columns(large[:, :64], 64),
        lambda: ranks.take_word(large),
    )
