"""The tensors that a checkpoint must hold by its hyper-parameters alone.

Layers that are alike are counted once; only a quantized checkpoint whose ignore list names single layers is
walked layer by layer. `closed_form` writes every tensor out, for repositories that are made up from a
config.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from plimsoll.model.blueprint import EXPERT, Blueprint, Layer, Tensor
from plimsoll.model.errors import ArchitectureUnsupported, FileUnreadable
from plimsoll.model.facts import Role
from plimsoll.model.fields import Fields
from plimsoll.model.quantization.config import Scheme, scheme
from plimsoll.model.quantization.packing import Part
from plimsoll.model.source import StoredTensor

Key = tuple[Role, str]


class ClosedForm:
    """What the files of a model hold, by its blueprint."""

    def __init__(self, blueprint: Blueprint, where: str) -> None:
        """Raises FileUnreadable without an element type, ArchitectureUnsupported for what is not sized."""
        self._blueprint = blueprint
        quantization = blueprint.quantization
        self.scheme: Scheme | None = None
        if quantization is not None:
            self.scheme = scheme(Fields(quantization, f"{where}: quantization_config"))
        dtype = blueprint.dtype or ("BF16" if self.scheme is not None else None)
        if dtype is None:
            raise FileUnreadable(
                f"{where}: torch_dtype: expected float32, float16 or bfloat16 when there are no weights"
            )
        if blueprint.open_ended:
            part = min(blueprint.open_ended)
            raise ArchitectureUnsupported(
                f"{where}: {part}: a config.json alone does not size it; point at the repository or folder"
            )
        self._dtype = dtype
        self._counted: dict[tuple[int, tuple[bool, ...]], tuple[Counter[Key], Counter[Key]]] = {}

    def outer(self) -> tuple[Counter[Key], Counter[Key]]:
        """Elements and bytes of all tensors outside the layers, by role and type."""
        return self._count(self._blueprint.outer, "")

    def layer(self, index: int) -> tuple[Counter[Key], Counter[Key]]:
        """Elements and bytes of one layer; alike layers share the answer."""
        layer, prefix = self._blueprint.layers[index], self._blueprint.prefix.format(index)
        key = (id(layer), self._choice(layer, prefix))
        if key not in self._counted:
            self._counted[key] = self._count(layer.tensors, prefix)
        return self._counted[key]

    def tensors(self) -> Iterator[StoredTensor]:
        """Every tensor by name."""
        yield from self._written_out(self._blueprint.outer, "")
        for index, layer in enumerate(self._blueprint.layers):
            yield from self._written_out(layer.tensors, self._blueprint.prefix.format(index))

    def _choice(self, layer: Layer, prefix: str) -> tuple[bool, ...]:
        if self.scheme is None:
            return ()
        return tuple(self._packed(tensor, prefix) for tensor in layer.tensors if tensor.linear)

    def _packed(self, tensor: Tensor, prefix: str) -> bool:
        if self.scheme is None or not tensor.linear:
            return False
        module = (prefix + tensor.name).removesuffix(".weight").replace(EXPERT, "0")
        return self.scheme.packs(module)

    def _stored(self, tensor: Tensor, prefix: str) -> Iterator[Part]:
        """What stands in the files for one copy; the first part holds the numbers."""
        dtype = tensor.dtype or self._dtype
        if self.scheme is not None and self._packed(tensor, prefix):
            module = (prefix + tensor.name).removesuffix(".weight")
            yield from self.scheme.packing.parts(tensor, module, dtype)
        else:
            yield Part(prefix + tensor.name, dtype, tensor.shape)

    def _count(self, tensors: tuple[Tensor, ...], prefix: str) -> tuple[Counter[Key], Counter[Key]]:
        elements: Counter[Key] = Counter()
        sizes: Counter[Key] = Counter()
        for tensor in tensors:
            if not _present(tensor) or not tensor.elements:
                continue
            parts = list(self._stored(tensor, prefix))
            size = sum(part.bytes for part in parts)
            for role, count in tensor.parts():
                key = (role, parts[0].dtype)
                elements[key] += count * tensor.copies
                sizes[key] += size * count // tensor.elements * tensor.copies
        return elements, sizes

    def _written_out(self, tensors: tuple[Tensor, ...], prefix: str) -> Iterator[StoredTensor]:
        for tensor in tensors:
            if not _present(tensor):
                continue
            for copy in range(tensor.copies):
                for part in self._stored(tensor, prefix):
                    name = part.name.replace(EXPERT, str(copy))
                    yield StoredTensor(name, part.dtype, part.shape, part.elements, part.bytes)


def _present(tensor: Tensor) -> bool:
    """Towers and prediction layers are in the files, though an engine may do without."""
    return tensor.required or tensor.role in (Role.VISION, Role.MTP)


def closed_form(blueprint: Blueprint, where: str) -> list[StoredTensor]:
    """Every tensor of the checkpoint. Raises as ClosedForm does."""
    return list(ClosedForm(blueprint, where).tensors())
