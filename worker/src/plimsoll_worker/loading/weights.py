"""Puts a checkpoint's tensors into a model.

The model is built without storage ("meta"); each parameter gets memory on the device once, and every tensor
is read straight into its place there, quantized on the way block by block. Reading the checkpoint into host
memory first was the alternative: it doubles what a start needs, and on a GPU the second copy is most of the
time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby

import torch
from torch import nn

from plimsoll_worker.errors import ModelUnreadable, ModelUnsupported
from plimsoll_worker.kernels.matrix import OneMatrix, QuantizedMatrix, rows_of
from plimsoll_worker.launch import Precision
from plimsoll_worker.layers.linear import QUANTIZED_PARTS, Linear, Quantizable
from plimsoll_worker.loading.checkpoint import Checkpoint, Part
from plimsoll_worker.loading.placement import Piece, place, shares
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.parallel.position import Position
from plimsoll_worker.quant.form import Form
from plimsoll_worker.quant.rounding import round_into
from plimsoll_worker.quant.stored import StoredMatrices, staying

DTYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
    Precision.FP8: torch.float8_e4m3fn,
}
"""The last only holds keys and values."""
GPU_READERS = 8
"""Threads that read tensors for a GPU. On a CPU one does: each holds a tensor that is being converted."""

SCRATCH_BYTES = 128 * 1024 * 1024
"""Of the rows of a matrix that one reader holds unquantized."""


def load_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    precision: Precision,
    matrices: Precision | None = None,
    as_stored: bool = False,
    context: int | None = None,
    position: Position | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005 - of its signature
) -> Decoder:
    """The checkpoint's model on `device`, computing in `precision`, ready for inference with sequences of up
    to `context` tokens (None: as many as it was made for). `matrices`: what those of the layers are rounded
    to while they are read (None: `precision`). `as_stored`: those that lie packed in the checkpoint stay so,
    also where they could be widened. `position`: whose share is loaded (None: the whole). `progress` is told
    the bytes loaded and their sum.

    Raises ModelUnreadable when a tensor is missing or misshapen, ModelUnsupported when one has no place in
    the model or cannot be quantized.
    """
    config = checkpoint.config
    with torch.device("meta"):
        whole, model = Decoder(config), Decoder(config, position)
    parameters = dict(whole.named_parameters())
    shapes = {name: found.shape for name, found in parameters.items()}
    pieces = place(shapes, checkpoint.names(), config)
    _check_shapes(checkpoint, pieces, parameters)
    pieces = shares(pieces, shapes, dict(model.named_parameters()), config, model.position)
    stored = staying(checkpoint.stored, as_stored=as_stored)
    pieces, forms = _formed(pieces, model, stored, Form.on_load(matrices or precision))
    give_memory(model, device, DTYPES[precision], forms)
    # The largest first, so that no reader is left alone with the embedding at the end.
    regions = [(piece, _region(model, piece)) for piece in pieces]
    regions.sort(key=lambda region: region[1].nbytes, reverse=True)
    done, total = 0, model.weight_bytes
    with ThreadPoolExecutor(GPU_READERS if device.type == "cuda" else 1) as readers:
        read = readers.map(lambda at: _read(checkpoint, stored, *at), regions)
        for region, _ in zip(regions, read, strict=True):
            done += region[1].nbytes
            progress(done, total)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    model.make_ready(context or config.max_position)
    return model.eval()


def quantizable(model: Decoder) -> dict[str, Quantizable]:
    """The matrices that may be kept in fewer bits, by the name of the module; parts of one by theirs."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Quantizable)
        and not module.sensitive
        and not (isinstance(module, Linear) and module.parts)
    }


def _formed(
    pieces: Iterable[Piece], model: Decoder, stored: StoredMatrices | None, on_load: Form | None
) -> tuple[tuple[Piece, ...], dict[str, Form]]:
    """The pieces, and what each module's matrix is kept in where that is not the precision of the
    computation. A matrix whose pieces are kept in several ways is divided, and they fill its parts."""
    matrices = quantizable(model)
    placed: list[Piece] = []
    forms: dict[str, Form] = {}
    for (module, leaf), group in groupby(pieces, lambda piece: tuple(piece.parameter.rsplit(".", 1))):
        if module not in matrices or leaf != "weight":
            placed += (_unpacked(piece, stored) for piece in group)
            continue
        runs = [
            (form, list(run)) for form, run in groupby(group, lambda piece: _form(piece, stored, on_load))
        ]
        matrix = matrices[module]
        if not isinstance(matrix, Linear):
            placed += _of_experts(matrix, module, runs)
            if runs[0][0] is not None:
                forms[module] = runs[0][0]
            continue
        if len(runs) > 1:
            matrix.divide([_height(run) for _, run in runs])
        for index, (form, run) in enumerate(runs):
            part = f"{module}.part{index}" if len(runs) > 1 else module
            placed += run if len(runs) == 1 else _moved(run, f"{part}.weight")
            if form is not None:
                forms[part] = form
    return tuple(placed), forms


def _form(piece: Piece, stored: StoredMatrices | None, on_load: Form | None) -> Form | None:
    """Raises ModelUnsupported where a rank's part cuts numbers apart that share a scale."""
    form = stored.forms.get(piece.name) if stored else on_load
    if form is not None:
        part = piece.part or Part()
        form.check_cut(piece.name, columns=part.columns, rows=(piece.rows, part.rows))
    return form


def _of_experts(
    matrices: Quantizable, module: str, runs: Sequence[tuple[Form | None, list[Piece]]]
) -> Iterator[Piece]:
    """The pieces, each of one expert where they are quantized. Raises ModelUnsupported where a checkpoint
    keeps some of them so and some otherwise."""
    if len(runs) > 1:
        raise ModelUnsupported(
            f"{runs[1][1][0].name} is kept in another form than {runs[0][1][0].name}: this engine keeps all"
            f" matrices of {module} alike; use the unquantized model"
        )
    ((form, pieces),) = runs
    for piece in pieces:
        if form is None or piece.expert is not None:
            yield piece
            continue
        for expert in range(_waiting(matrices)[0]):
            yield replace(piece, expert=expert, part=replace(piece.part or Part(), expert=expert))


def _unpacked(piece: Piece, stored: StoredMatrices | None) -> Piece:
    if stored and piece.name in stored.forms:
        raise ModelUnsupported(
            f"{piece.name} is quantized: this engine keeps embedding, head and routers in 16 bit; use"
            " the unquantized model"
        )
    return piece


def _height(run: Sequence[Piece]) -> int:
    """Rows that pieces fill, one below the other."""
    rows = [piece.rows for piece in run]
    return sum(last - first for first, last in filter(None, rows))


def _moved(run: Sequence[Piece], parameter: str) -> Iterator[Piece]:
    """The pieces, of which the first now begins its parameter."""
    assert run[0].rows is not None
    start = run[0].rows[0]
    for piece in run:
        assert piece.rows is not None, "pieces that share a matrix have rows"
        first, last = piece.rows
        yield replace(piece, parameter=parameter, rows=(first - start, last - start))


def give_memory(model: Decoder, device: torch.device, dtype: torch.dtype, forms: Mapping[str, Form]) -> None:
    """Memory on `device` for every parameter of a model that has none: quantized for the modules that `forms`
    names, in `dtype` for all else. Raises ModelUnsupported before there is any."""
    matrices = quantizable(model)
    for name, form in forms.items():
        *count, outputs, inputs = _waiting(matrices[name])
        form.check(name, outputs, inputs, count=math.prod(count))
    for name, form in forms.items():
        *count, outputs, inputs = _waiting(matrices[name])
        matrices[name].quantize(form.make(math.prod(count) * outputs, inputs, dtype, device))
    held = {f"{name}.{part}" for name in forms for part in QUANTIZED_PARTS}
    for name, parameter in list(model.named_parameters()):
        if name not in held:
            owner, _, leaf = name.rpartition(".")
            memory = torch.empty(parameter.shape, dtype=dtype, device=device)
            setattr(model.get_submodule(owner), leaf, nn.Parameter(memory, requires_grad=False))


def _waiting(matrices: Quantizable) -> torch.Size:
    """Shape of a weight that has no contents yet."""
    assert matrices.weight is not None
    return matrices.weight.shape


def _region(model: Decoder, piece: Piece) -> OneMatrix:
    """Where the tensor goes: a view."""
    owner, _, leaf = piece.parameter.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(module, Quantizable) and leaf == "weight" and module.quantized is not None:
        before = (piece.expert or 0) * module.rows
        first, last = piece.rows or (0, module.rows)
        return rows_of(module.quantized, before + first, before + last)
    return piece.region(model.get_parameter(piece.parameter))


def _read(checkpoint: Checkpoint, stored: StoredMatrices | None, piece: Piece, region: OneMatrix) -> None:
    if not isinstance(region, QuantizedMatrix):
        checkpoint.read(piece.name, region, piece.part)
        return
    part = piece.part or Part()
    if stored is not None and piece.name in stored.forms:
        stored.fill(piece.name, region, rows=part.rows, columns=part.columns)
        return
    device, step = region.numbers.device, max(1, SCRATCH_BYTES // (region.inputs * region.dtype.itemsize))
    offset = part.rows[0] if part.rows else 0
    for first in range(0, region.outputs, step):
        last = min(first + step, region.outputs)
        whole = piece.part is None and last - first == region.outputs
        scratch = torch.empty((last - first, region.inputs), dtype=region.dtype, device=device)
        rows = replace(part, rows=(offset + first, offset + last))
        checkpoint.read(piece.name, scratch, None if whole else rows)
        round_into(rows_of(region, first, last), scratch)
        if device.type == "cuda":
            # The next scratch may have this one's memory, and readers fill it on streams of their own.
            torch.cuda.current_stream(device).synchronize()


def _check_shapes(
    checkpoint: Checkpoint, pieces: Iterable[Piece], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Before a byte is read."""
    for piece in pieces:
        expected = piece.region(parameters[piece.parameter]).shape
        found = checkpoint.shape(piece.name)
        if found != expected:
            raise ModelUnreadable(
                f"tensor {piece.name} is {list(found)}, the configuration says {list(expected)}"
            )
