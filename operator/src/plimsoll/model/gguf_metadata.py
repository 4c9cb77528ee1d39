"""Hyper-parameters from the metadata of a GGUF file.

Keys are `<architecture>.<name>` (llama.cpp `gguf-py/gguf/constants.py`). Mistral checkpoints call themselves
llama here; that is what llama.cpp runs them as, and their tensors are the same.
"""

from __future__ import annotations

from typing import Any

from plimsoll.model.architectures import family
from plimsoll.model.config_json import MAX_LAYERS, MAX_WIDTH
from plimsoll.model.errors import ArchitectureUnsupported, FileUnreadable, FormatUnsupported
from plimsoll.model.gguf import GGUFHeader
from plimsoll.model.hyper_parameters import HyperParameters


def hyper_parameters(header: GGUFHeader, name: str) -> HyperParameters:
    """What the metadata says. Raises FileUnreadable, ArchitectureUnsupported or FormatUnsupported."""
    found = header.metadata.get("general.architecture")
    if not isinstance(found, str):
        raise ArchitectureUnsupported(f"{name}: general.architecture: expected a string, found {found!r:.80}")
    known = family(found, name)
    if header.metadata.get("split.count", 0) not in (0, 1):
        raise FormatUnsupported(
            f"{name}: split.count {header.metadata['split.count']}: a split GGUF is not read;"
            " merge it with llama-gguf-split --merge"
        )
    fields = _Fields(header.metadata, f"{known.name}.", name)
    hidden, heads = fields.size("embedding_length"), fields.size("attention.head_count")
    kv_heads = fields.size("attention.head_count_kv", default=heads)
    if heads % kv_heads:
        raise FileUnreadable(
            f"{name}: {known.name}.attention.head_count {heads} is no multiple of head_count_kv {kv_heads}"
        )
    layers = fields.size("block_count", most=MAX_LAYERS)
    key_dim = fields.size("attention.key_length", default=max(1, hidden // heads))
    tensors = {tensor.name: tensor for tensor in header.tensors}
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FileUnreadable(f"{name}: tensor token_embd.weight is missing or no matrix")
    window = fields.size("attention.sliding_window", default=0, least=0)
    return HyperParameters(
        architecture=known.name,
        hidden=hidden,
        intermediate=fields.size("feed_forward_length"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=fields.size("attention.value_length", default=key_dim),
        # Not `vocab_size`: converters pad the embedding, and it is the embedding that is loaded.
        vocab=embedding.shape[0],
        max_position=fields.size("context_length"),
        tied="output.weight" not in tensors,
        windows=(window or None,) * layers,
    )


class _Fields:
    def __init__(self, metadata: dict[str, Any], prefix: str, name: str) -> None:
        self._metadata = metadata
        self._prefix = prefix
        self._name = name

    def size(self, key: str, *, default: int | None = None, least: int = 1, most: int = MAX_WIDTH) -> int:
        value = self._metadata.get(self._prefix + key)
        if value is None and default is not None:
            return default
        if isinstance(value, tuple) and len(set(value)) == 1:
            # Some converters write the value of each layer.
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            found = "nothing" if value is None else repr(value)[:80]
            raise FileUnreadable(
                f"{self._name}: {self._prefix}{key}: expected a whole number from {least} to {most},"
                f" found {found}"
            )
        return value
