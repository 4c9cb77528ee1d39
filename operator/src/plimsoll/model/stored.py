"""Stored tensors, one by one, into the places that the blueprint has for them.

Quantized checkpoints store several tensors for one matrix: the packed one counts as the numbers it unpacks
to, scales, zero points and permutations count as bytes of the same matrix. Which modules a quantizer skipped
is not read from its configuration: the headers say it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from plimsoll.model.blueprint import Blueprint, Tensor
from plimsoll.model.closed_form import Key
from plimsoll.model.errors import ArchitectureUnsupported, FileUnreadable, FormatUnsupported
from plimsoll.model.facts import Role
from plimsoll.model.quantization.companions import Place, canonical, place
from plimsoll.model.source import StoredTensor

Naming = Literal["safetensors", "gguf"]
_FLOATS = frozenset({"F32", "F16", "BF16"})
_PACKED_TYPES = frozenset({"U8", "I8", "I32", "F8_E4M3", "F8_E5M2", "F4", "U32"})
_BITS = (2, 3, 4, 8)
COMPUTED = (".rotary_emb.inv_freq", "rope_freqs.weight", ".position_ids", ".self_attn.masked_bias")
"""Ends of names of what some converters store and every engine computes."""


@dataclass(frozen=True)
class _Slot:
    tensor: Tensor
    layer: int | None
    name: str


class Ledger:
    """Counts elements and bytes by layer, role and type."""

    def __init__(self, blueprint: Blueprint, naming: Naming, where: str) -> None:
        self.outer: tuple[Counter[Key], Counter[Key]] = (Counter(), Counter())
        self.layers = [(Counter[Key](), Counter[Key]()) for _ in blueprint.layers]
        self.packed = False
        self._blueprint = blueprint
        self._naming = naming
        self._where = where
        self._slots = _slots(blueprint)
        self._copies: Counter[str] = Counter()
        self._types: dict[str, str] = {}
        self._scales: list[tuple[_Slot, str, int]] = []

    def add(self, tensor: StoredTensor) -> None:
        """Count one tensor. Raises ArchitectureUnsupported, FileUnreadable or FormatUnsupported."""
        name = canonical(tensor.name)
        if name.endswith(COMPUTED):
            return
        found = place(name)
        slot = self._slot(found)
        if slot is None:
            self._open_ended(tensor, name)
        elif found.scale:
            self._scales.append((slot, found.module, tensor.bytes))
            self.packed = True
        else:
            self._matrix(tensor, slot, found)

    def finish(self) -> None:
        """Count the scales, whose matrix may stand in a later file, and see that nothing is missing."""
        for slot, module, size in self._scales:
            dtype = self._types.get(module)
            if dtype is None:
                raise FileUnreadable(f"{self._where}: {module}: has scales and no weight")
            self._count(slot, dtype, 0, size)
        for slot in self._slots.values():
            found, wanted = self._copies[slot.name], slot.tensor.copies
            if slot.tensor.required and found != wanted:
                missing = f"tensor {slot.name} is missing" if not found else (
                    f"{found} tensors {slot.name}, expected {wanted}"
                )  # fmt: skip
                raise FileUnreadable(f"{self._where}: {missing}")

    def _slot(self, found: Place) -> _Slot | None:
        exact = None if found.scale or found.packed else self._slots.get(found.module)
        return exact or self._slots.get(f"{found.module}.weight") or self._slots.get(found.module)

    def _matrix(self, tensor: StoredTensor, slot: _Slot, found: Place) -> None:
        wanted = slot.tensor
        self._copies[slot.name] += 1
        module = found.module.removesuffix(".weight")
        if self._naming == "gguf" or (tensor.dtype in _FLOATS and not found.packed):
            if tensor.shape != wanted.shape:
                raise FileUnreadable(
                    f"{self._where}: tensor {tensor.name} has shape {list(tensor.shape)},"
                    f" by its hyper-parameters it is {list(wanted.shape)}"
                )
        else:
            self._require_packed(tensor, wanted)
            self.packed = True
        self._types[module] = tensor.dtype
        self._count(slot, tensor.dtype, wanted.elements, tensor.bytes)

    def _require_packed(self, tensor: StoredTensor, wanted: Tensor) -> None:
        """Numbers packed at a whole count of bits, give or take the padding of a group."""
        if tensor.dtype not in _PACKED_TYPES or not wanted.linear:
            raise FormatUnsupported(
                f"{self._where}: tensor {tensor.name} is {tensor.dtype};"
                " weights in F32, F16 and BF16 are read, and linear layers packed in I32, U8, I8 or FP8"
            )
        if tensor.bytes * 8 not in {wanted.elements * bits for bits in _BITS}:
            raise FileUnreadable(
                f"{self._where}: tensor {tensor.name} of {tensor.bytes} bytes holds no"
                f" {list(wanted.shape)} at 2, 3, 4 or 8 bits, as by its hyper-parameters it must"
            )

    def _open_ended(self, tensor: StoredTensor, name: str) -> None:
        for prefix, role in self._blueprint.open_prefixes:
            if name.startswith(prefix):
                # A tower's own quantization is not followed: its numbers are those that stand there.
                self.outer[0][role, tensor.dtype] += tensor.elements
                self.outer[1][role, tensor.dtype] += tensor.bytes
                return
        raise ArchitectureUnsupported(
            f"{self._where}: tensor {tensor.name[:120]!r} is none that a {self._blueprint.architecture} model"
            f" of {len(self._blueprint.layers)} layers has"
        )

    def _count(self, slot: _Slot, dtype: str, elements: int, size: int) -> None:
        counts, sizes = self.outer if slot.layer is None else self.layers[slot.layer]
        whole, left = slot.tensor.elements, size
        parts = slot.tensor.parts()
        for role, count in parts[1:]:
            share = size * count // whole
            counts[role, dtype] += count if elements else 0
            sizes[role, dtype] += share
            left -= share
        counts[parts[0][0], dtype] += parts[0][1] if elements else 0
        sizes[parts[0][0], dtype] += left


def _slots(blueprint: Blueprint) -> dict[str, _Slot]:
    slots = {
        tensor.name: _Slot(tensor, None, tensor.name)
        for tensor in blueprint.outer
        if tensor.role is not Role.VISION
    }
    for index, layer in enumerate(blueprint.layers):
        prefix = blueprint.prefix.format(index)
        for tensor in layer.tensors:
            name = prefix + tensor.name
            slots[name] = _Slot(tensor, index, name)
    return slots
