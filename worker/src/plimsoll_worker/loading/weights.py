"""Puts a checkpoint's tensors into a model.

The model is built without storage ("meta"); each parameter gets memory on the device once, and every tensor
is read straight into its place there. Reading the checkpoint into host memory first was the alternative: it
doubles what a start needs, and on a GPU the second copy is most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from plimsoll_worker.errors import ModelUnreadable
from plimsoll_worker.launch import Precision
from plimsoll_worker.loading.checkpoint import Checkpoint
from plimsoll_worker.loading.placement import Piece, place
from plimsoll_worker.models.decoder import Decoder

DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
GPU_READERS = 8
"""Threads that read tensors for a GPU. On a CPU one does: each holds a tensor that is being converted."""


def load_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    precision: Precision,
    context: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005 - of its signature
) -> Decoder:
    """The checkpoint's model on `device` in `precision`, ready for inference with sequences of up to
    `context` tokens (None: as many as it was made for). `progress` is told the bytes loaded and their sum.

    Raises ModelUnreadable when a tensor is missing or misshapen, ModelUnsupported when one has no place in
    the model.
    """
    config = checkpoint.config
    with torch.device("meta"):
        model = Decoder(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    pieces = place(shapes, checkpoint.names(), config)
    _allocate(model, device, DTYPES[precision])
    parameters = dict(model.named_parameters())
    _check_shapes(checkpoint, pieces, parameters)
    # The largest first, so that no reader is left alone with the embedding at the end.
    regions = [(piece.name, piece.region(parameters[piece.parameter])) for piece in pieces]
    regions.sort(key=lambda region: region[1].nbytes, reverse=True)
    done, total = 0, model.weight_bytes
    with ThreadPoolExecutor(GPU_READERS if device.type == "cuda" else 1) as readers:
        for region, _ in zip(regions, readers.map(lambda at: checkpoint.read(*at), regions), strict=True):
            done += region[1].nbytes
            progress(done, total)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    model.make_ready(context or config.max_position)
    return model.eval()


def _allocate(model: Decoder, device: torch.device, dtype: torch.dtype) -> None:
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        memory = torch.empty(parameter.shape, dtype=dtype, device=device)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(memory, requires_grad=False))


def _check_shapes(
    checkpoint: Checkpoint, pieces: Iterable[Piece], parameters: dict[str, nn.Parameter]
) -> None:
    """Before a byte is read."""
    for piece in pieces:
        expected = piece.region(parameters[piece.parameter]).shape
        found = checkpoint.shape(piece.name)
        if found != expected:
            raise ModelUnreadable(
                f"tensor {piece.name} is {list(found)}, the configuration says {list(expected)}"
            )
