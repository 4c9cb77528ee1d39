"""MemoryProfile: what workers of one configuration measured, kept in the API so that the next plan is right.

The operator writes it whole. `spec.fingerprint` says what ran and is computed by the operator from the plan
and the revision, never taken from a report: a report that lies about itself can spoil nothing but its own
numbers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from plimsoll.api.v1alpha1.fields import Model, ShortText
from plimsoll.api.v1alpha1.status import Timestamp
from plimsoll_worker.launch import Device, MeasuredMemory, Precision

PROFILE_KIND = "MemoryProfile"
PROFILE_PLURAL = "memoryprofiles"

Count = Annotated[int, Field(ge=0)]


class Fingerprint(Model):
    """What ran: two workers with the same fingerprint take the same memory."""

    model_revision: ShortText
    """Commit of the repository, or a hash over headers and sizes."""
    architecture: ShortText
    """Model family, for people."""
    engine_version: ShortText
    """Version of the engine; a new one is measured anew."""
    image: Annotated[str, Field(max_length=512)]
    """Worker image. It decides the versions of torch and CUDA."""
    device: Device
    """Kind of device."""
    product: ShortText = ""
    """GPU product; empty on CPU."""
    memory_bytes: Count = 0
    """Memory of the GPU as the inventory has it; 0 on CPU."""
    weights: Precision
    """Precision of the weights; of a quantized checkpoint, of what it leaves unquantized."""
    compute: Precision
    """What is computed in, and what stays unquantized is kept in."""
    checkpoint_format: ShortText = ""
    """Format of a quantized checkpoint that stays as it is stored."""
    kv_cache: Precision
    """Precision of keys and values."""
    tensor_parallel: Annotated[int, Field(ge=1)]
    """GPUs a stage is divided over."""
    pipeline_parallel: Annotated[int, Field(ge=1)]
    """Stages."""
    stage: Count
    """The stage whose fullest rank was measured."""
    max_context_tokens: Annotated[int, Field(ge=1)]
    """Longest sequence served."""
    max_batched_tokens: Annotated[int, Field(ge=1)]
    """Most tokens of one forward pass."""
    max_concurrent_sequences: Annotated[int, Field(ge=1)]
    """Sequences served at the same time; CUDA graphs are captured up to it."""


class MemoryProfileSpec(Model):
    """What was measured on."""

    fingerprint: Fingerprint
    """What ran."""


class MemoryProfileStatus(Model):
    """What was measured."""

    bytes: MeasuredMemory | None = None
    """Bytes by category on the fullest rank; absent when it only ever ran out of memory."""
    kv_cache_tokens: Count = 0
    """Tokens that the KV pool held."""
    observations: Count = 0
    """Starts of workers whose reports agree with these bytes."""
    margin_bytes: Count = 0
    """Bytes that planning keeps free beside the measured ones: gone after two observations that agree, more
    after each time that memory ran out."""
    observer: ShortText = ""
    """The run that these bytes are of: uid of its pod, and how often the container had restarted."""
    out_of_memory: Count = 0
    """Times a worker of this fingerprint ran out of memory."""
    out_of_memory_run: ShortText = ""
    """The last run that did."""
    observed_time: Timestamp | None = None
    """When it was read."""
    expiry_time: Timestamp | None = None
    """When the profile is forgotten unless it is observed again."""


class MemoryProfile(Model):
    """What workers of one configuration measured. The operator writes it, and plans from it."""

    spec: MemoryProfileSpec
    """What was measured on."""
    status: MemoryProfileStatus = Field(default_factory=MemoryProfileStatus)
    """What was measured."""
