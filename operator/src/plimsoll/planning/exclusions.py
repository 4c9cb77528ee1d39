"""Configurations that ran out of memory, told apart in one line: what failed once is not planned again.

A line and not a hash, because it stands in status for people to read.
"""

from __future__ import annotations

from plimsoll.api.v1alpha1 import PlanStatus
from plimsoll.planning.options import planned_configuration
from plimsoll.planning.snapshot import DeploymentRequest
from plimsoll.sizing.configuration import Configuration, Workload
from plimsoll.sizing.kv_cache import BLOCK_TOKENS, pool_tokens

RAN_OUT_OF_MEMORY = "RanOutOfMemory"
MOST_CONFIGURATIONS = 16
"""After so many nothing is tried any more: status remembers no more of them, and none may be tried twice."""


def configuration_of(plan: PlanStatus) -> str:
    """BF16 TP1xPP1 on NVIDIA-L4 with BF16 KV cache: 4096 tokens a sequence, 32768 in all, 2048 a pass."""
    config = planned_configuration(plan)
    return _line(config, plan.product, plan.max_context_tokens, plan.kv_cache_tokens, plan.max_batched_tokens)


def is_excluded(request: DeploymentRequest, config: Configuration, product: str, load: Workload) -> bool:
    """Whether the configuration ran out of memory before, or so many did that no other is tried."""
    if not request.excluded_configurations:
        return False
    if len(request.excluded_configurations) >= MOST_CONFIGURATIONS:
        return True
    pool = pool_tokens(
        context=load.max_context_tokens,
        sequences=load.max_sequences,
        kv_tokens=load.kv_tokens,
        block=BLOCK_TOKENS,
    )
    line = _line(config, product, load.max_context_tokens, pool, load.max_batched_tokens)
    return line in request.excluded_configurations


def _line(config: Configuration, product: str, context: int, pool: int, batched: int) -> str:
    weights = config.scheme.name if config.scheme else "stored" if config.stored else config.weights
    cut = f"TP{config.tensor_parallel}xPP{config.pipeline_parallel}"
    return (
        f"{weights} {cut} on {product or config.device} with {config.kv_cache} KV cache: "
        f"{context} tokens a sequence, {pool} in all, {batched} a pass"
    )
