"""Steps as CUDA graphs: hundreds of kernels launched by one call.

A graph has fixed shapes, so there is one for each of a few batch sizes (`launch.graph_sizes`), and a smaller
batch is padded. All share one memory pool and the largest is captured first, so that the others fit into what
it took.
A decode step is two graphs: the model up to the hidden states, then logits and sampling. The second is left
out when a sequence asks for more than temperature and seed.
A step with prompts, as long as it is short (`launch.prompt_graph_sizes`), is one: the model up to the hidden
states. Without it Python would take longer to launch its kernels than the device to compute them, and the
first token of a short prompt would wait for Python.

Compiling the model and letting the compiler make graphs was the alternative: minutes at start, and shapes it
records anew when it likes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol

import torch

Work = Callable[[], None]

TOKENS_A_ROW = 4


class Recorder(Protocol):
    """Turns work into something that repeats it."""

    def record(self, work: Work) -> Work:
        """`work`, to be repeated on the same tensors with new contents. It has been run before."""
        ...


class CudaRecorder:
    """Captures on a stream of its own, all into one pool."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # thread_local: the HTTP server's thread may touch CUDA for /report meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class Repeater:
    """Runs the work itself again: where there are no graphs."""

    def record(self, work: Work) -> Work:
        return work


class PromptGraphs:
    """Recorded forwards of short steps with prompts, by tokens."""

    def __init__(self, sizes: tuple[int, ...], max_sequences: int) -> None:
        self.sizes = sizes
        self._max_sequences = max_sequences
        self._forward: dict[int, Work] = {}

    def rows(self, size: int) -> int:
        """Sequences that a step of `size` tokens is padded to: each is a program of attention's grid for
        every key head, which is to fit on a card at once."""
        return min(self._max_sequences, size // TOKENS_A_ROW)

    def bucket(self, tokens: int, sequences: int) -> int | None:
        """The tokens to pad a step to; None: too many for any."""
        fits = (size for size in self.sizes if size >= tokens and self.rows(size) >= sequences)
        return next(fits, None)

    def add(self, size: int, forward: Work) -> None:
        self._forward[size] = forward

    def forward(self, size: int) -> None:
        """Compute the hidden states of a step padded to `size` tokens."""
        self._forward[size]()


class DecodeGraphs:
    """Recorded steps by batch size."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self._forward: dict[int, Work] = {}
        self._sample: dict[int, Work | None] = {}

    def bucket(self, sequences: int) -> int | None:
        """The size to pad a batch to; None: too many for any."""
        at = bisect_left(self.sizes, sequences)
        return self.sizes[at] if at < len(self.sizes) else None

    def add(self, size: int, forward: Work, sample: Work | None) -> None:
        """`sample` None: on a stage that samples nothing."""
        self._forward[size] = forward
        self._sample[size] = sample

    def forward(self, size: int) -> None:
        """Compute the hidden states of a batch padded to `size`."""
        self._forward[size]()

    def sample(self, size: int) -> None:
        """Choose its tokens by temperature and seed."""
        sample = self._sample[size]
        assert sample is not None, "the last stage samples"
        sample()
