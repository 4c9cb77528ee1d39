"""A model's matrices rounded layer by layer, each with what it is given.

Every layer is loaded as a pipeline's stage of one layer, shown the calibration's hidden states, rounded, and
shown them again, so that the next layer learns what rounded layers answer. One layer is in memory at a time,
besides the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from plimsoll_worker.kernels.batch import AttentionBatch
from plimsoll_worker.launch import Precision
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.loading.checkpoint import Checkpoint
from plimsoll_worker.loading.weights import load_model, quantizable
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.parallel.position import Position
from plimsoll_worker.quant.error_feedback import round_with_feedback
from plimsoll_worker.quant.grids import Grid


@dataclass(frozen=True, slots=True)
class Rounded:
    """One matrix of the engine."""

    values: Tensor
    """(outputs, inputs), all of the grid."""
    grid: Grid


def rounded_layers(
    checkpoint: Checkpoint,
    windows: Sequence[Tensor],
    choose: Callable[[Tensor, Tensor], Grid],
    device: torch.device,
) -> Iterator[Mapping[str, Rounded]]:
    """Of each layer its matrices by the names of their modules, on `device`.

    windows: token ids of one calibration text each. choose: (weights (outputs, inputs), mean square of each
    input) → the grid to round to.
    """
    config = checkpoint.config
    states = [window.to(device) for window in windows]
    longest, tokens = max(map(len, windows)), sum(map(len, windows))
    for layer in range(config.layer_count):
        model = load_model(
            checkpoint,
            device=device,
            precision=Precision.BF16 if device.type == "cuda" else Precision.FP32,
            context=longest,
            position=Position(first=layer, last=layer + 1, stage=layer, stages=config.layer_count),
        )
        with Given(model) as given:
            for state in states:
                answer(model, state)
        rounded = {}
        for name, linear in quantizable(model).items():
            assert linear.weight is not None
            weights, moments = linear.weight.float(), given.moments[name]
            grid = choose(weights, moments.diagonal() / tokens)
            values = round_with_feedback(weights, moments, grid, tokens)
            linear.weight.copy_(values)
            rounded[name] = Rounded(values, grid)
        states = [answer(model, state) for state in states]
        yield rounded


class Given(TorchFunctionMode):
    """Sums x xᵀ of all that a model's matrices are multiplied with, by the names of their modules. Layers
    multiply in several ways, fused and not; all of them end in one of torch's own products."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        linears = quantizable(model)
        self._names = {linear.undivided.data_ptr(): name for name, linear in linears.items()}  # type: ignore[union-attr]
        self.moments = {
            name: torch.zeros(linear.undivided.shape[1], linear.undivided.shape[1], device=model.device)
            for name, linear in linears.items()
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        place = _INPUT.get(func)
        if place is not None:
            name = self._names.get(args[place + 1].data_ptr())
            if name is not None:
                x = args[place].float()
                self.moments[name].addmm_(x.t(), x)
        return func(*args, **(kwargs or {}))


_INPUT = {torch.nn.functional.linear: 0, torch.Tensor.addmm_: 1}
"""Products of inputs and a weight → the place of the inputs among the arguments; the weight comes next."""


@torch.no_grad()
def answer(model: Decoder, state: Tensor) -> Tensor:
    """What one stage makes of the whole of a text: token ids or hidden states → hidden states. The cache is
    made anew, as nothing is asked twice."""
    batch = whole_text(len(state), state.device)
    cache = KVCache(model.share, blocks=1, block_size=len(state), dtype=model.dtype, device=state.device)
    return model(state.clone(), batch, cache)  # type: ignore[no-any-return]


def whole_text(tokens: int, device: torch.device) -> AttentionBatch:
    """One sequence of so many tokens, all of them new, in one block."""
    places = torch.arange(tokens, device=device)
    return AttentionBatch(
        block_tables=torch.zeros(1, 1, dtype=torch.int32, device=device),
        context_lens=torch.tensor([tokens], dtype=torch.int32, device=device),
        query_start=torch.tensor([0, tokens], dtype=torch.int32, device=device),
        positions=places,
        slots=places,
        max_query_len=tokens,
        max_context_len=tokens,
        block_size=tokens,
    )
