"""Turns a scheduled step into tensors, runs the model, samples, and leaves the tokens on their way to the
host.

The scheduler knows nothing of tensors and the model nothing of sequences. A step of one token a sequence is
replayed from a CUDA graph where there is one, and so is a short step with prompts; all others are launched
kernel by kernel, which a prompt's own length hides. On a CPU the same code runs without graphs.

Of a model whose layers are on several stages each has a runner, and all launch the same steps: hidden states
come from the stage before, go to the next, and the last stage samples.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ordered
from typing import Protocol

import torch
from torch import Tensor

from plimsoll_worker.engine.graphs import CudaRecorder, DecodeGraphs, PromptGraphs, Recorder
from plimsoll_worker.engine.in_flight import InFlight, LogprobRow
from plimsoll_worker.engine.rehearsal import longest_steps
from plimsoll_worker.engine.sampler import Chosen, Sampler, draw, sampling_position
from plimsoll_worker.engine.scheduler import Scheduled
from plimsoll_worker.engine.slot_tables import SlotTables
from plimsoll_worker.engine.staging import TURNS, Staging
from plimsoll_worker.engine.step_inputs import (
    Padding,
    StepInputs,
    decode_inputs,
    mixed_inputs,
    words_needed,
)
from plimsoll_worker.kernels.batch import AttentionBatch
from plimsoll_worker.launch import graph_sizes, prompt_graph_sizes
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.models.decoder import Decoder


class Neighbours(Protocol):
    """The stages before and after this one."""

    def receive(self, hidden: Tensor) -> None:
        """Fill hidden (tokens, hidden) with what the stage before has computed."""
        ...

    def send(self, hidden: Tensor) -> None:
        """Pass hidden (tokens, hidden) on. Its memory is used again by the next step."""
        ...


class Nobody:
    """While a stage only rehearses: nothing comes, and nobody takes anything."""

    def receive(self, hidden: Tensor) -> None:
        del hidden

    def send(self, hidden: Tensor) -> None:
        del hidden


class ModelRunner:
    """A model, its KV cache and what the device remembers of running sequences."""

    def __init__(
        self,
        model: Decoder,
        cache: KVCache,
        *,
        max_sequences: int,
        max_batched_tokens: int,
        max_context_tokens: int,
    ) -> None:
        self.model = model
        self.cache = cache
        self.max_sequences = max_sequences
        self.max_batched_tokens = max_batched_tokens
        self.max_context_tokens = max_context_tokens
        device = model.device
        position = model.position
        self.neighbours: Neighbours = Nobody()
        self.steps_ahead = 1 if device.type == "cuda" else 0
        in_flight = max(TURNS, position.stages + 2)
        tokens = max(max_batched_tokens, max_sequences)
        self._tables = SlotTables(
            max_sequences,
            max_context_tokens,
            cache.block_size,
            device,
            brings_tokens=position.is_first and not position.is_last,
        )
        self._staging = Staging(device, words_needed(tokens, max_sequences, cache.block_size), in_flight)
        self._sampler = Sampler(device, self._tokens_of)
        captured = max(max_sequences, *prompt_graph_sizes(max_batched_tokens), 0)
        self._hidden = torch.zeros((captured, model.config.hidden_size), dtype=model.dtype, device=device)
        self._arrived = torch.zeros(
            (0 if position.is_first else tokens, model.config.hidden_size), dtype=model.dtype, device=device
        )
        """Hidden states of the stage before."""
        self._tokens = torch.zeros(max_sequences, dtype=torch.int64, device=device)
        pinned = device.type == "cuda"
        self._read = [
            torch.zeros(max_sequences, dtype=torch.int64, pin_memory=pinned) for _ in range(in_flight)
        ]
        self._turn = 0
        self.graphs = DecodeGraphs(())
        self.prompt_graphs = PromptGraphs((), max_sequences)

    @property
    def workspace_bytes(self) -> int:
        """What it keeps on the device besides weights and KV cache."""
        parts = self._tables, self._staging, self._hidden, self._arrived, self._tokens
        return sum(part.nbytes for part in parts)

    @torch.inference_mode()
    def launch(self, step: Ordered[Scheduled], *, layers: int | None = None) -> InFlight:
        """Begin to compute a step and, on the last stage, to sample a token for each sequence that it
        completes; on the others nothing is read from it. `layers`: only so many of the model's."""
        rows = [part for part in step if part.completes]
        if len(rows) == len(step) and all(part.count == 1 for part in step):
            told = self._decode(step, layers)
        else:
            told = self._mixed(step, rows, layers)
        if not self.model.position.is_last:
            return InFlight([], self._read[0][:0], {}, None)
        self._turn = (self._turn + 1) % len(self._read)
        read = self._read[self._turn][: len(rows)]
        read.copy_(self._tokens[: len(rows)], non_blocking=True)
        event = None
        if self.model.device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        return InFlight([part.sequence for part in rows], read, told, event)

    @torch.inference_mode()
    def logits(self, step: Ordered[Scheduled]) -> Tensor:
        """Compute a step without sampling. Returns the logits (rows, vocabulary) of the sequences that it
        completes, in order. For who chooses the tokens himself: all known tokens are uploaded anew."""
        for part in step:
            self._tables.forget(part.sequence.slot)
        samples = sum(part.completes for part in step)
        inputs = self._stage(step, lambda: self._mixed_inputs(step, samples=samples))
        hidden = self._forward(inputs)
        return self.model.logits(hidden.index_select(0, inputs.last_tokens))

    @torch.inference_mode()
    def capture(self, recorder: Recorder | None = None) -> None:
        """Record graphs for short steps with prompts and for decode steps, the largest first, each after a
        run that compiles what it needs. On a CPU there is nothing to record, unless a recorder is given."""
        if recorder is None:
            if self.model.device.type == "cpu":
                return
            recorder = CudaRecorder(self.model.device)
        self.prompt_graphs = self._capture_prompts(recorder)
        self.graphs = self._capture_decoding(recorder)

    def _capture_prompts(self, recorder: Recorder) -> PromptGraphs:
        graphs = PromptGraphs(prompt_graph_sizes(self.max_batched_tokens), self.max_sequences)
        for size in reversed(graphs.sizes):
            self._staging.begin()
            inputs = self._mixed_inputs([], samples=0, padding=self._padding(size, graphs.rows(size)))
            self._staging.send()

            def forward(inputs: StepInputs = inputs, size: int = size) -> None:
                self._hidden[:size].copy_(self._forward(inputs))

            forward()
            graphs.add(size, recorder.record(forward))
        return graphs

    def _capture_decoding(self, recorder: Recorder) -> DecodeGraphs:
        graphs = DecodeGraphs(graph_sizes(self.max_sequences))
        samples = self.model.position.is_last
        for size in reversed(graphs.sizes):
            self._staging.begin()
            inputs = self._decode_inputs([], size)
            self._staging.send()

            def forward(inputs: StepInputs = inputs, size: int = size) -> None:
                self._hidden[:size].copy_(self._forward(inputs))

            def sample(inputs: StepInputs = inputs, size: int = size) -> None:
                self._sample(self._hidden[:size], inputs)

            forward()
            if samples:
                sample()
            graphs.add(size, recorder.record(forward), recorder.record(sample) if samples else None)
        return graphs

    @torch.inference_mode()
    def rehearse(self) -> None:
        """Run the steps that take the most memory, with every option of sampling asked for. Whatever the
        cache holds is overwritten.

        On a CPU with one layer, which tells as much as all: each reuses the buffers of the one before.
        """
        layers = 1 if self.model.device.type == "cpu" else None
        for step in longest_steps(
            tokens=self.max_batched_tokens,
            context=self.max_context_tokens,
            sequences=self.max_sequences,
            block_size=self.cache.block_size,
            vocabulary=self.model.config.vocab_size,
        ):
            self.launch(step, layers=layers)
            for part in step:
                self._tables.forget(part.sequence.slot)

    def _decode(self, step: Ordered[Scheduled], layers: int | None) -> dict[int, LogprobRow]:
        size = self.graphs.bucket(len(step))
        if size is None:
            inputs = self._stage(step, lambda: self._mixed_inputs(step, samples=len(step)))
        else:
            inputs = self._stage(step, lambda: self._decode_inputs(step, size))
        if not self.model.position.is_first:
            self._receive(len(step))
        if size is None:
            hidden = self._forward(inputs, layers)
        else:
            self.graphs.forward(size)
            hidden = self._hidden[:size]
        if not self.model.position.is_last:
            self.neighbours.send(hidden[: len(step)])
            return {}
        if size is not None and all(part.sequence.params.plain for part in step):
            self.graphs.sample(size)
            return {}
        return self._choose(hidden, inputs, step)

    def _mixed(
        self, step: Ordered[Scheduled], rows: Ordered[Scheduled], layers: int | None
    ) -> dict[int, LogprobRow]:
        samples = (self.graphs.bucket(len(rows)) or len(rows)) if rows else 0
        tokens = sum(part.count for part in step)
        graphs = self.prompt_graphs
        size = graphs.bucket(tokens, len(step)) if layers is None else None
        padding = None if size is None else self._padding(size, graphs.rows(size))
        inputs = self._stage(step, lambda: self._mixed_inputs(step, samples=samples, padding=padding))
        if not self.model.position.is_first:
            self._receive(tokens)
        if size is None:
            hidden = self._forward(inputs, layers)
        else:
            graphs.forward(size)
            hidden = self._hidden[:size]
        if not self.model.position.is_last:
            self.neighbours.send(hidden[:tokens])
            return {}
        return self._choose(hidden.index_select(0, inputs.last_tokens), inputs, rows) if rows else {}

    def _receive(self, tokens: int) -> None:
        """Hidden states of the stage before: they come to the first rank."""
        arrived = self._arrived[:tokens]
        self.neighbours.receive(arrived)
        self.model.ranks.take_word(arrived)

    def _stage(self, step: Ordered[Scheduled], laid_out: Callable[[], StepInputs]) -> StepInputs:
        """Bring a step to the device."""
        places: list[int] = []
        blocks: list[int] = []
        told: list[int] = []
        tokens: list[int] = []
        for part in step:
            self._tables.admit(part.sequence)
            self._tables.grown(part.sequence, places, blocks)
            self._tables.learned(part.sequence, told, tokens)
        self._staging.begin()
        inputs = laid_out()
        # Behind the arrays of the graph, whose places must not move.
        grown = self._tables.write(self._staging, places, blocks)
        learned = self._tables.write(self._staging, told, tokens)
        self._staging.send()
        if places:
            self._tables.apply_blocks(*grown)
        if told:
            self._tables.apply_tokens(*learned)
        return inputs

    def _decode_inputs(self, step: Ordered[Scheduled], size: int) -> StepInputs:
        """As the graph of this size has them."""
        longest = self.max_context_tokens
        return decode_inputs(
            step, self._staging, self._tables, self.cache.block_size, size=size, longest=longest
        )

    def _mixed_inputs(
        self, step: Ordered[Scheduled], *, samples: int, padding: Padding | None = None
    ) -> StepInputs:
        return mixed_inputs(
            step, self._staging, self._tables, self.cache.block_size, samples=samples, padding=padding
        )

    def _padding(self, tokens: int, rows: int) -> Padding:
        return Padding(tokens=tokens, rows=rows, longest=self.max_context_tokens)

    def _forward(self, inputs: StepInputs, layers: int | None = None) -> Tensor:
        """Hidden states (tokens, hidden) of the step."""
        pages = -(-inputs.max_context_len // self.cache.block_size)
        batch = AttentionBatch(
            block_tables=self._tables.blocks[:, :pages].index_select(0, inputs.slots),
            context_lens=inputs.context_lens,
            query_start=inputs.query_start,
            positions=inputs.positions,
            slots=inputs.cache_slots,
            max_query_len=inputs.max_query_len,
            max_context_len=inputs.max_context_len,
            block_size=self.cache.block_size,
        )
        if self.model.position.is_first:
            given = self._tables.tokens.view(-1).index_select(0, inputs.token_places).long()
        else:
            given = self._arrived[: len(inputs.positions)]
        hidden: Tensor = self.model(given, batch, self.cache, layers=layers)
        return hidden

    def _sample(self, hidden: Tensor, inputs: StepInputs) -> None:
        """Choose tokens by temperature and seed alone; nothing here depends on the host."""
        self._keep(draw(self.model.logits(hidden), inputs.noise), inputs)

    def _choose(self, hidden: Tensor, inputs: StepInputs, rows: Ordered[Scheduled]) -> dict[int, LogprobRow]:
        """Choose tokens for `hidden` (rows and padding, hidden) by whatever the sequences ask for. The first
        rank chooses for all: sums of probabilities need not come out alike on two cards."""
        logits, ranks = self.model.logits(hidden), self.model.ranks
        if ranks.leads:
            chosen = self._sampler(logits, rows, inputs.noise)
        else:
            chosen = Chosen(self._tokens.new_empty(len(logits)), {})
        ranks.take_word(chosen.tokens)
        self._keep(chosen.tokens, inputs)
        return {
            row: LogprobRow(*(part.to("cpu", non_blocking=True) for part in parts))
            for row, parts in chosen.logprobs.items()
        }

    def _keep(self, tokens: Tensor, inputs: StepInputs) -> None:
        """The tokens go where the next step finds them, and where they are read."""
        self._tokens[: tokens.shape[0]].copy_(tokens)
        self._tables.tokens.view(-1).index_copy_(0, inputs.new_places, tokens.int())

    def _tokens_of(self, rows: Ordered[Scheduled]) -> Tensor:
        """For the sampler: what the device knows of these sequences."""
        longest = max(sampling_position(part) for part in rows)
        slots = torch.tensor([part.sequence.slot for part in rows])
        if self.model.device.type == "cuda":
            slots = slots.pin_memory().to(self.model.device, non_blocking=True)
        return self._tables.tokens[:, :longest].index_select(0, slots)
