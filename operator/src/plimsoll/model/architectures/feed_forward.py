"""Feed-forward blocks: gated and plain MLPs, and mixtures of experts.

Source of names and shapes: the `modeling_*.py` of transformers 5.23 and the checkpoints' own indexes. Experts
are one tensor each in most checkpoints, whatever transformers fuses them to after loading.
"""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll.model.architectures.attention import linear
from plimsoll.model.blueprint import EXPERT, FeedForward, Tensor
from plimsoll.model.facts import Role
from plimsoll.model.fields import MAX_EXPERTS, Fields

GATED = ("gate_proj", "up_proj", "down_proj")


def gated(
    f: Fields, *, prefix: str = "mlp", bias: bool = False, fused: str = "", width: int | None = None
) -> FeedForward:
    """down(act(gate(x)) × up(x)). `fused`: gate and up are one matrix of that name."""
    width, hidden = width or f.size("intermediate_size"), f.hidden
    if fused:
        tensors = linear(f"{prefix}.{fused}", Role.MLP, 2 * width, hidden, bias=bias)
    else:
        tensors = linear(f"{prefix}.gate_proj", Role.MLP, width, hidden, bias=bias)
        tensors += linear(f"{prefix}.up_proj", Role.MLP, width, hidden, bias=bias)
    tensors += linear(f"{prefix}.down_proj", Role.MLP, hidden, width, bias=bias, bias_role=Role.NORM)
    return FeedForward(tensors)


def plain(f: Fields, *, up: str, down: str, width: int, bias: bool = False) -> FeedForward:
    """down(act(up(x)))."""
    tensors = linear(up, Role.MLP, width, f.hidden, bias=bias)
    return FeedForward(tensors + linear(down, Role.MLP, f.hidden, width, bias=bias, bias_role=Role.NORM))


@dataclass(frozen=True, kw_only=True)
class Experts:
    """How one family names and shapes its mixture of experts. Values are fields of config.json unless told
    otherwise."""

    count: str
    width: str
    active: str = "num_experts_per_tok"
    prefix: str = "mlp"
    """In the tensor names."""
    projections: tuple[str, ...] = GATED
    """Names of the matrices of one expert; the last one leads back to the hidden width."""
    router: str = "gate"
    router_dtype: str = ""
    """Stored type of the router where it is not that of the checkpoint."""
    correction_bias: str = ""
    """A buffer beside the router, by its name under the prefix."""
    shared_count: str = ""
    """How many experts' width the shared one has."""
    shared_width: str = ""
    """The width of the shared expert."""
    shared: str = "shared_experts"
    shared_gate: str = ""
    stacked: bool = False
    """All experts in one tensor of three dimensions, gate and up fused."""

    def feed_forward(self, f: Fields) -> FeedForward:
        """Router, experts and the shared expert of one layer."""
        count, width = f.size(self.count, most=MAX_EXPERTS), f.size(self.width)
        hidden, name = f.hidden, self.prefix
        tensors: tuple[Tensor, ...] = (
            Tensor(f"{name}.{self.router}.weight", Role.REPLICATED, (count, hidden), dtype=self.router_dtype),
        )
        if self.correction_bias:
            tensors += (
                Tensor(
                    f"{name}.{self.correction_bias}", Role.NORM, (count,), counted=False, dtype="F32",
                    required=True,
                ),
            )  # fmt: skip
        tensors += self._experts(count, width, hidden)
        shared = self._shared_width(f, width)
        if shared:
            names = GATED if self.stacked else self.projections
            for projection in names:
                shape = (hidden, shared) if projection == names[-1] else (shared, hidden)
                tensors += linear(f"{name}.{self.shared}.{projection}", Role.MLP, *shape)
        if self.shared_gate:
            tensors += (Tensor(f"{name}.{self.shared_gate}.weight", Role.REPLICATED, (1, hidden)),)
        divisors = [("columns of an expert", width)]
        if shared:
            divisors.append(("columns of the shared expert", shared))
        active = min(count, f.size(self.active, default=f.size("experts_per_token", default=1)))
        return FeedForward(tensors, tuple(divisors), active_width=active * width + shared)

    def _experts(self, count: int, width: int, hidden: int) -> tuple[Tensor, ...]:
        if self.stacked:
            up, down = self.projections
            return (
                Tensor(f"{self.prefix}.{up}", Role.EXPERT, (count, 2 * width, hidden), linear=True),
                Tensor(f"{self.prefix}.{down}", Role.EXPERT, (count, hidden, width), linear=True),
            )
        return tuple(
            Tensor(
                f"{self.prefix}.experts.{EXPERT}.{projection}.weight",
                Role.EXPERT,
                (hidden, width) if projection == self.projections[-1] else (width, hidden),
                copies=count,
                linear=True,
            )
            for projection in self.projections
        )

    def _shared_width(self, f: Fields, width: int) -> int:
        if self.shared_width:
            return f.size(self.shared_width, default=0, least=0)
        if self.shared_count:
            return width * f.size(self.shared_count, default=0, least=0, most=MAX_EXPERTS)
        return 0


def gpt_oss(f: Fields) -> FeedForward:
    """The experts of gpt-oss: stacked, transposed and biased."""
    count, width, hidden = (
        f.size("num_local_experts", most=MAX_EXPERTS),
        f.size("intermediate_size"),
        f.hidden,
    )
    active = f.size("num_experts_per_tok", default=4)
    return FeedForward(
        (
            Tensor("mlp.router.weight", Role.REPLICATED, (count, hidden)),
            Tensor("mlp.router.bias", Role.NORM, (count,)),
            Tensor("mlp.experts.gate_up_proj", Role.EXPERT, (count, hidden, 2 * width), linear=True),
            Tensor("mlp.experts.gate_up_proj_bias", Role.EXPERT, (count, 2 * width)),
            Tensor("mlp.experts.down_proj", Role.EXPERT, (count, width, hidden), linear=True),
            Tensor("mlp.experts.down_proj_bias", Role.NORM, (count, hidden)),
        ),
        (("columns of an expert", width),),
        active_width=active * width,
    )
