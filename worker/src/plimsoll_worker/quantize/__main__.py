"""`python -m plimsoll_worker.quantize --model DIR --weights INT4 --out DIR`

Reads a folder of config.json and safetensors, layer by layer, and writes another one in compressed-tensors'
format, whose matrices are rounded with the inputs they are given (GPTQ). Workers load it as it is: name it as
`spec.model`, with `weights: Native`.

Exit codes: 0 written, 2 bad input; the message says what was found and what to do.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from plimsoll_worker.errors import ModelNotFound, ModelUnsupported, WorkerError
from plimsoll_worker.kernels.matrix import INT4_BLOCK
from plimsoll_worker.launch import INT4_GROUP, Precision
from plimsoll_worker.loading.checkpoint import Checkpoint, open_checkpoint
from plimsoll_worker.loading.safetensors import SafetensorsCheckpoint
from plimsoll_worker.loading.weights import quantizable
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.progress import say
from plimsoll_worker.quant.compressed import Scheme
from plimsoll_worker.quantize.layers import rounded_layers
from plimsoll_worker.quantize.words import own_words, words_of
from plimsoll_worker.quantize.written import Written

TOKENS = 16384
"""Ten for each input of SmolLM2-135M's widest matrices; larger models want more."""


def main(arguments: list[str] | None = None) -> int:
    """Quantize what is asked for. Returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="plimsoll_worker.quantize", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json and *.safetensors")
    parser.add_argument("--weights", choices=["INT4", "INT8", "FP8"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, empty or not there yet")
    parser.add_argument("--text", type=Path, help="what to calibrate on; default: the model's own words")
    parser.add_argument("--tokens", type=_positive, default=TOKENS, help="of the calibration (%(default)s)")
    parser.add_argument(
        "--group",
        type=int,
        default=INT4_GROUP,
        help="INT4: at most so many columns share a scale (%(default)s)",
    )
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    chosen = parser.parse_args(arguments)
    try:
        quantize(chosen)
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def quantize(chosen: argparse.Namespace) -> None:
    """Raises WorkerError."""
    device, began = torch.device(chosen.device), time.monotonic()
    checkpoint = open_checkpoint(chosen.model)
    scheme = scheme_for(checkpoint, Precision(chosen.weights), chosen.group)
    text = None if chosen.text is None else _read(chosen.text)
    written = Written(chosen.model, checkpoint, scheme, chosen.out)
    if text is None:
        windows = own_words(checkpoint, chosen.tokens, device)
    else:
        windows = words_of(checkpoint, text, chosen.tokens)
    say("calibrating", tokens=sum(map(len, windows)), weights=chosen.weights, group=scheme.group or "row")
    for number, rounded in enumerate(rounded_layers(checkpoint, windows, scheme.grid, device)):
        written.layer(number, rounded)
        say("layer", number=number, of=checkpoint.config.layer_count, seconds=int(time.monotonic() - began))
    written.close()
    say("written", folder=chosen.out)


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}, expected at least 1")
    return number


def _read(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"{text}: {error}") from error


def scheme_for(checkpoint: Checkpoint, precision: Precision, group: int) -> Scheme:
    """How the model's matrices can be kept. Raises ModelUnsupported for a model that cannot be quantized
    so."""
    if not isinstance(checkpoint, SafetensorsCheckpoint):
        raise ModelUnsupported("--model is a GGUF file: expected a folder with config.json and *.safetensors")
    if checkpoint.stored is not None:
        raise ModelUnsupported(
            f"{checkpoint.folder} is quantized already ({checkpoint.stored.format}); use the original model"
        )
    if checkpoint.config.experts is not None:
        raise ModelUnsupported(
            f"{checkpoint.folder} has experts, few of which meet any text: they are rounded while they are"
            " loaded instead (quantization.weights: INT8, FP8 or INT4)"
        )
    if precision is not Precision.INT4:
        return Scheme(precision)
    with torch.device("meta"):
        linears = quantizable(Decoder(checkpoint.config))
    widths = {linear.undivided.shape[1] for linear in linears.values()}
    for columns in range(group // INT4_BLOCK * INT4_BLOCK, 0, -INT4_BLOCK):
        if all(width % columns == 0 for width in widths):
            return Scheme(precision, columns)
    raise ModelUnsupported(
        f"matrices of {', '.join(map(str, sorted(widths)))} columns: no group of a multiple of {INT4_BLOCK}"
        f" up to {group} divides them all; INT8 and FP8 take any"
    )


if __name__ == "__main__":
    sys.exit(main())
