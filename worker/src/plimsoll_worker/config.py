"""A model's hyper-parameters: one type for every family of decoders and every file format.

Families differ by flags and numbers, not by code; what a flag means stands here, which family sets it in
`models/families.py`, and how files state it in `loading/config_json.py` and `loading/config_gguf.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plimsoll_worker.launch import Precision

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions divided by `factor` (kaiokendev, https://kaiokendev.github.io/til)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's stretch of the low frequencies (transformers, modeling_rope_utils,
    `_compute_llama3_parameters`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): low frequencies interpolated, high ones kept, a ramp
    between."""

    factor: float
    original_max_position: int
    attention_factor: float
    """Multiplies cosines and sines, so scores by its square."""
    beta_fast: float = 32.0
    """Rotations within the original context from which on a frequency is kept."""
    beta_slow: float = 1.0
    """Rotations up to which a frequency is interpolated."""
    truncate: bool = True
    """The ramp begins and ends at whole frequencies."""


@dataclass(frozen=True, slots=True)
class LongRope:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753): a divisor for each frequency, one set for contexts up to
    the original length and one for longer ones."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_position: int
    attention_factor: float
    """Multiplies cosines and sines, so scores by its square."""


@dataclass(frozen=True, slots=True)
class FrequencyFactors:
    """A divisor for each rotary frequency, head_dim / 2 of them: what GGUF keeps as the tensor
    `rope_freqs.weight`."""

    factors: tuple[float, ...]


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRope | FrequencyFactors | None


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding of a layer."""

    theta: float
    dim: int
    """Elements of a head that are rotated, the first ones; the rest passes."""
    scaling: RopeScaling = None


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What may differ from layer to layer."""

    rope: Rope
    window: int | None = None
    """Tokens that a query sees at most, itself included; None: all."""
    sparse: bool = False
    """Experts in place of one MLP."""


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """A mixture of experts (Shazeer et al. 2017, arXiv:1701.06538), without shared ones."""

    count: int
    per_token: int
    width: int
    """Intermediate width of one expert."""
    normalized: bool
    """The chosen experts' probabilities are scaled to a sum of 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder. Counts and widths are in elements."""

    architecture: str
    """A family of `models/families.py`."""
    hidden_size: int
    intermediate_size: int
    layers: tuple[LayerConfig, ...]
    head_count: int
    kv_head_count: int
    head_dim: int
    vocab_size: int
    max_position: int
    """Longest sequence the model was made for, tokens."""
    norm_eps: float
    norm_offset: float = 0.0
    """Added to the weights of every norm: Gemma stores them around 0."""
    sandwich_norms: bool = False
    """A norm behind attention and MLP too, before the residual takes them."""
    qk_norm: bool = False
    """Queries and keys are normalised by head, before rotation."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = "silu"
    attention_scale: float
    """Multiplies the scores before the softmax."""
    attention_softcap: float | None = None
    """Scores are squeezed to ± this by tanh."""
    logits_softcap: float | None = None
    logits_scale: float = 1.0
    """Multiplies the logits."""
    embedding_scale: float = 1.0
    """Multiplies embeddings; rounded to the weights' type first, as Gemma was trained."""
    residual_scale: float = 1.0
    """Multiplies what attention and MLP add to the residual."""
    experts: ExpertsConfig | None = None
    tied: bool
    """The head is the embedding."""
    eos_token_ids: tuple[int, ...]

    @property
    def layer_count(self) -> int:
        return len(self.layers)

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The different rotary embeddings of the layers."""
        return tuple(dict.fromkeys(layer.rope for layer in self.layers))

    def kv_bytes_per_token(self, precision: Precision) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.layer_count * self.kv_head_count * self.head_dim * precision.bytes
