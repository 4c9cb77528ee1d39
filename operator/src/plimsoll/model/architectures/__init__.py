"""The model families that are read: which tensors they have, and what each tensor does.

A family that is not here is refused by name; its tensors' roles would be a guess.
"""

from __future__ import annotations

from plimsoll.model.architectures.decoder import DecoderFamily
from plimsoll.model.errors import ArchitectureUnsupported

FAMILIES = {
    known.name: known
    for known in (
        DecoderFamily(name="llama"),
        DecoderFamily(name="mistral", default_kv_heads=8, default_window=4096),
        DecoderFamily(name="qwen2", qkv_bias=True, default_kv_heads=32),
        DecoderFamily(name="qwen3", qk_norm=True, default_kv_heads=32, default_head_dim=128),
    )
}


def family(name: str, where: str) -> DecoderFamily:
    """The family called `name`. Raises ArchitectureUnsupported that names the file `where` and what is
    supported."""
    known = FAMILIES.get(name)
    if known is None:
        raise ArchitectureUnsupported(
            f"{where}: architecture {name[:80]!r} is not supported; supported are"
            f" {', '.join(sorted(FAMILIES))}"
        )
    return known


__all__ = ["FAMILIES", "DecoderFamily", "family"]
