"""Multi-token-prediction layers: a last layer that drafts the token after next. They are in the files and are
loaded for speculative decoding only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from plimsoll.model.blueprint import Layer, Tensor
from plimsoll.model.facts import Role
from plimsoll.model.fields import Fields

MAX_PREDICTED = 16


def _drafting(tensor: Tensor, prefix: str) -> Tensor:
    return replace(tensor, name=prefix + tensor.name, role=Role.MTP, required=False, key_value_rows=0)


def _weight(name: str, *shape: int) -> Tensor:
    # None of them is packed in the published quantized checkpoints.
    return Tensor(f"{name}.weight", Role.MTP, shape, required=False)


def as_last_layers(
    field: str, *, own_ends: bool = True
) -> Callable[[Fields, Sequence[Layer]], tuple[Tensor, ...]]:
    """DeepSeek-V3 and GLM-4.5: stored as layers after the last one, with an embedding and a head of their
    own (arXiv 2412.19437, section 2.2). `field`: how many there are; `own_ends` False: the model's embedding
    and head serve."""

    def tensors(f: Fields, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
        hidden, vocab = f.hidden, f.size("vocab_size")
        found: list[Tensor] = []
        count = f.size(field, default=0, least=0, most=MAX_PREDICTED)
        for index in range(len(layers), len(layers) + count):
            prefix = f"model.layers.{index}."
            found += [_drafting(tensor, prefix) for tensor in layers[-1].tensors]
            found += [_weight(f"{prefix}{name}", hidden) for name in ("enorm", "hnorm", "shared_head.norm")]
            found += [_weight(f"{prefix}eh_proj", hidden, 2 * hidden)]
            if own_ends:
                found += [_weight(f"{prefix}embed_tokens", vocab, hidden)]
                found += [_weight(f"{prefix}shared_head.head", vocab, hidden)]
        return tuple(found)

    return tensors


def beside_the_model(field: str, default: int) -> Callable[[Fields, Sequence[Layer]], tuple[Tensor, ...]]:
    """Qwen3-Next and Qwen3.5: under `mtp.`, with the model's own embedding and head. The last layer of the
    model is one with full attention, as theirs is."""

    def tensors(f: Fields, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
        count = f.size(field, default=default, least=0, most=MAX_PREDICTED)
        if not count:
            return ()
        attending = next((layer for layer in reversed(layers) if layer.mixer.kv_heads), layers[-1])
        hidden = f.hidden
        found = [_weight("mtp.fc", hidden, 2 * hidden)]
        found += [_weight(f"mtp.{name}", hidden) for name in _NORMS]
        for index in range(count):
            found += [_drafting(tensor, f"mtp.layers.{index}.") for tensor in attending.tensors]
        return tuple(found)

    return tensors


_NORMS = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
