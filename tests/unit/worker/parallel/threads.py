"""Ranks as threads of one process: what they compute is the same, and no process has to start."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
SECONDS = 60
"""A rank that waits longer has been left alone."""


class Table:
    """Where the ranks lay what they say."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._laid: list[Any] = [None] * count
        self._barrier = Barrier(count, timeout=SECONDS)

    def exchange(self, rank: int, said: Any) -> list[Any]:
        """What all say, in order."""
        self._laid[rank] = said
        self._barrier.wait()
        found = list(self._laid)
        self._barrier.wait()
        return found

    def leave(self) -> None:
        """Let nobody wait for this one."""
        self._barrier.abort()


class ThreadRank:
    """One of them, as `Ranks` has it."""

    def __init__(self, table: Table, rank: int) -> None:
        self.leads = rank == 0
        self._table, self._rank = table, rank

    def sum(self, x: Tensor) -> Tensor:
        return torch.stack(self._table.exchange(self._rank, x.clone())).sum(dim=0)

    def join_columns(self, x: Tensor, width: int) -> Tensor:
        return torch.cat(self._table.exchange(self._rank, x.clone()), dim=1)[:, :width].contiguous()

    def take_word(self, x: Tensor) -> None:
        x.copy_(self._table.exchange(self._rank, x.clone())[0])

    def least(self, number: int) -> int:
        return min(self._table.exchange(self._rank, number))


def side_by_side(count: int, work: Callable[[ThreadRank, int], T]) -> list[T]:
    """`work` by each of so many ranks, all at once."""
    table = Table(count)

    def run(rank: int) -> T:
        try:
            return work(ThreadRank(table, rank), rank)
        except BaseException:
            table.leave()
            raise

    with ThreadPoolExecutor(count) as threads:
        return [each.result() for each in [threads.submit(run, rank) for rank in range(count)]]
