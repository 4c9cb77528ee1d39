"""What a model is, in the few numbers that sizing and planning need: ModelFacts v1.

The inspect pod reads headers where the model lives and hands the facts back through its termination message,
of which the kubelet keeps 4096 bytes. So the facts are run-length encoded by layer class, not per tensor, and
packed as zlib + base85 behind a prefix. A Secret, a volume or egress for the operator were the rejected
alternatives.

Everything is counted in elements and bytes as stored in the checkpoint; what the engine makes of them is
sizing's matter.
"""

from __future__ import annotations

import base64
import zlib
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

PREFIX = "plimsoll.facts.v1:"
MAX_PACKED_BYTES = 4000
MAX_UNPACKED_BYTES = 256 * 1024


class FactsTooLarge(ValueError):
    """The packed facts do not fit a termination message."""


class FactsUnreadable(ValueError):
    """The text is not packed facts of a version this program knows."""


class Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


class Role(StrEnum):
    """What a group of tensors does; it decides how tensor parallelism divides it."""

    EMBEDDING = "embedding"
    """vocab x hidden; divided over the vocabulary."""
    HEAD = "head"
    """hidden x vocab; divided over the vocabulary."""
    ATTENTION_Q = "q"
    """Divided by query heads (also the output projection, which has the same width)."""
    ATTENTION_KV = "kv"
    """Divided by KV heads, replicated when there are fewer heads than ranks."""
    MLP = "mlp"
    """Divided over the intermediate width."""
    EXPERT = "expert"
    """Routed experts; divided over their intermediate width."""
    RECURRENT = "recurrent"
    """Projections of a state-space or linear-attention layer; divided over its heads."""
    REPLICATED = "replicated"
    """Matrices that every rank holds whole: routers, latent down-projections, indexers."""
    NORM = "norm"
    """Held whole by every rank (norms, rotary buffers, biases added after a reduction)."""
    VISION = "vision"
    """Image or audio tower and its projector: in the files, not loaded by a text engine."""
    MTP = "mtp"
    """Multi-token-prediction layers: in the files, loaded for speculative decoding only."""


class TensorGroup(Frozen):
    """All tensors of one role and stored element type: of one layer, or of the model's outer parts."""

    role: Role
    dtype: str
    """As the file names it: F32, F16, BF16, or a GGUF block type such as Q4_1. A quantized matrix is counted
    under the type that holds its numbers, I32 for GPTQ."""
    elements: Annotated[int, Field(ge=0)]
    """Numbers that the group stands for: a packed matrix counts as what it unpacks to, its scales as none."""
    bytes: Annotated[int, Field(ge=0)]
    """As stored, scales and zero points included."""


class State(Frozen):
    """What a recurrent layer keeps of a sequence, however long it is."""

    elements: Annotated[int, Field(ge=0)]
    """Divided over the ranks like the heads that own it."""
    dtype: str = ""
    """F32, F16 or BF16 where the model fixes it; empty: the precision that the engine computes in."""


class LayerClass(Frozen):
    """`count` consecutive layers that are alike."""

    count: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=0)]
    """0: the layer caches no keys of its own (recurrent, feed-forward only, or keys of an earlier layer)."""
    key_dim: Annotated[int, Field(ge=0)]
    """Width of one key head, elements. Latent attention: latent and rotary part, cached once for all
    heads."""
    value_dim: Annotated[int, Field(ge=0)]
    """Width of one value head; 0 where values are read out of the cached keys (latent attention)."""
    window: Annotated[int, Field(ge=1)] | None = None
    """Sliding window in tokens; None: full attention."""
    index_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes of one token in the cache of a sparse-attention indexer, on every rank."""
    states: tuple[State, ...] = ()
    """Recurrent state of one sequence."""
    groups: tuple[TensorGroup, ...]


class Divisor(Frozen):
    """A count that tensor parallelism must divide, besides heads and intermediate width."""

    what: str
    """As a message says it: `expert width`, `groups of 128 in the intermediate width`."""
    count: Annotated[int, Field(ge=1)]


class PackedMatrices(Frozen):
    """What the packed matrices of a quantized checkpoint are kept in, number by number."""

    precision: Literal["INT8", "INT4", "FP8"]
    group: Annotated[int, Field(ge=0)] = 0
    """Columns that share a scale and a minimum; 0: the whole row."""
    in_blocks: bool = False
    """FP8 with a scale for each 128 by 128."""


class ModelFacts(Frozen):
    """ModelFacts v1."""

    version: Literal[1] = 1
    architecture: str
    """The family: llama, mistral, … (config.json `model_type`, GGUF `general.architecture`)."""
    format: Literal["safetensors", "gguf"]
    revision: str
    """The hub commit the facts were read at; for files: a hash over headers and sizes."""
    file: str = ""
    """The GGUF file's name inside the source; empty for safetensors folders."""
    quantization: str = ""
    """How a safetensors checkpoint is quantized (gptq, awq, bitsandbytes, fp8, …); empty: it is not."""
    packed: PackedMatrices | None = None
    """Of a quantized checkpoint whose layout has an exact counterpart in the engine; None: it has none."""
    parameters: Annotated[int, Field(ge=1)]
    """Distinct parameters, tied ones once; prediction layers (MTP) not counted, a vision tower counted."""
    checkpoint_bytes: Annotated[int, Field(ge=1)]
    """Tensor data in the files."""
    hidden: Annotated[int, Field(ge=1)]
    intermediate: Annotated[int, Field(ge=1)]
    """Width of the dense MLP; where all layers are sparse, that of one expert."""
    expert_width: Annotated[int, Field(ge=0)] = 0
    """Intermediate elements of the experts that one token passes, shared ones included."""
    divisors: tuple[Divisor, ...] = ()
    heads: Annotated[int, Field(ge=1)]
    vocab: Annotated[int, Field(ge=1)]
    max_position: Annotated[int, Field(ge=1)]
    """Longest sequence the model was made for, tokens."""
    tied: bool
    """The head is the embedding: stored once, kept once on a device that holds both."""
    outer: tuple[TensorGroup, ...]
    """Embedding, head (none when tied and not stored), the last norm, vision tower and prediction layers."""
    layers: tuple[LayerClass, ...]
    """In model order."""

    @property
    def layer_count(self) -> int:
        return sum(layer.count for layer in self.layers)

    def pack(self) -> str:
        """One line of ASCII for a termination message. Raises FactsTooLarge."""
        raw = self.model_dump_json(by_alias=True, exclude_defaults=True).encode()
        packed = PREFIX + base64.b85encode(zlib.compress(raw, 9)).decode("ascii")
        if len(packed) > MAX_PACKED_BYTES:
            raise FactsTooLarge(
                f"packed facts take {len(packed)} bytes, a termination message holds {MAX_PACKED_BYTES}: "
                f"the model has {len(self.layers)} different layer classes"
            )
        return packed

    @classmethod
    def unpack(cls, text: str) -> ModelFacts:
        """The inverse of `pack`. Raises FactsUnreadable; never inflates more than 256 KiB."""
        if not text.startswith(PREFIX):
            raise FactsUnreadable(f"expected text that starts with {PREFIX!r}, found {text[:40]!r}")
        try:
            inflater = zlib.decompressobj()
            raw = inflater.decompress(base64.b85decode(text[len(PREFIX) :].strip()), MAX_UNPACKED_BYTES)
            if inflater.unconsumed_tail:
                raise FactsUnreadable(f"packed facts inflate to more than {MAX_UNPACKED_BYTES} bytes")
            return cls.model_validate_json(raw)
        except (ValueError, zlib.error) as error:
            if isinstance(error, FactsUnreadable):
                raise
            detail = error.errors()[0] if isinstance(error, ValidationError) else error
            raise FactsUnreadable(f"packed facts are damaged: {detail}") from error


class InspectFailure(Frozen):
    """What an inspect pod leaves when it cannot produce facts; becomes condition ModelResolved=False."""

    reason: str
    """CamelCase: ModelNotFound, ModelFileUnreadable, ModelFileTruncated, ArchitectureUnsupported,
    HubUnreachable, AccessDenied, FactsTooLarge, FormatUnsupported."""
    message: str
    """Names the file and the field."""
