"""The model families that are known: which tensors they have, what each does, and what a layer caches.

    families.py     a row for each family
    decoder.py      the skeleton that a row fills in
    layouts.py      which layers have which block
    attention.py, recurrent.py, feed_forward.py, prediction.py, vision.py    the blocks
    peculiar.py     what one family alone does

A family that is not here is refused by name when there is only a config.json; its shapes would be a guess.
"""

from __future__ import annotations

from plimsoll.model.architectures.decoder import Decoder
from plimsoll.model.architectures.families import FAMILIES
from plimsoll.model.errors import ArchitectureUnsupported


def family(name: str, where: str) -> Decoder:
    """The family called `name`. Raises ArchitectureUnsupported that names the file `where` and what is
    supported."""
    known = FAMILIES.get(name)
    if known is None:
        raise ArchitectureUnsupported(
            f"{where}: unknown architecture: model_type {name[:80]!r} is not supported; supported are"
            f" {', '.join(sorted(FAMILIES))}"
        )
    return known


__all__ = ["FAMILIES", "Decoder", "family"]
