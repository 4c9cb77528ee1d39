"""Which layers have which mixer and which feed-forward block: the patterns that families follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plimsoll.model.architectures.attention import grouped_query
from plimsoll.model.architectures.decoder import FeedForwards, Mixers
from plimsoll.model.architectures.feed_forward import Experts
from plimsoll.model.blueprint import FeedForward, Mixer
from plimsoll.model.fields import Fields

Windows = Callable[[Fields], list[int | None]]
Options = Callable[[Fields], dict[str, Any]]
SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"


def _no_options(_: Fields) -> dict[str, Any]:
    return {}


def full(f: Fields) -> list[int | None]:
    """Every layer sees everything."""
    return [None] * f.layers


def uniform(f: Fields) -> list[int | None]:
    """Every layer has the window, when there is one (mistral)."""
    window = f.values.get("sliding_window")
    return [None if window is None else f.size("sliding_window")] * f.layers


def switched(f: Fields) -> list[int | None]:
    """Qwen: only when `use_sliding_window` is on, and then from layer `max_window_layers` upwards or as
    `layer_types` says."""
    on = f.flag("use_sliding_window", default=False)
    if f.values.get("sliding_window") is None or not on:
        return full(f)
    window, kinds = f.size("sliding_window"), f.kinds("layer_types", f.layers, (SLIDING, FULL))
    if kinds is not None:
        return [window if kind == SLIDING else None for kind in kinds]
    first = f.size("max_window_layers", default=28, least=0)
    return [window if index >= first else None for index in range(f.layers)]


def interleaved(period: int) -> Windows:
    """Every `period`-th layer is full, the others have the window, unless `layer_types` says otherwise."""

    def windows(f: Fields) -> list[int | None]:
        kinds = f.kinds("layer_types", f.layers, (SLIDING, FULL))
        if f.values.get("sliding_window") is None:
            return full(f)
        window = f.size("sliding_window")
        every = f.size("sliding_window_pattern", default=f.size("_sliding_window_pattern", default=period))
        if kinds is None:
            kinds = [SLIDING if (index + 1) % every else FULL for index in range(f.layers)]
        return [window if kind == SLIDING else None for kind in kinds]

    return windows


def attention(windows: Windows = full, options: Options = _no_options) -> Mixers:
    """Grouped-query attention in every layer; `options` are those of `grouped_query`."""

    def mixers(f: Fields) -> list[Mixer]:
        chosen, made = options(f), dict[int | None, Mixer]()
        for window in dict.fromkeys(windows(f)):
            made[window] = grouped_query(f, window=window, **chosen)
        return [made[window] for window in windows(f)]

    return mixers


def everywhere(block: Callable[[Fields], Any]) -> Callable[[Fields], list[Any]]:
    """The same block in every layer."""
    return lambda f: [block(f)] * f.layers


def alternating(
    is_attention: Callable[[Fields, int], bool],
    attend: Callable[[Fields], Mixer],
    recur: Callable[[Fields], Mixer],
) -> Mixers:
    """Attention in some layers, a recurrent mixer in the others."""

    def mixers(f: Fields) -> list[Mixer]:
        where = [is_attention(f, index) for index in range(f.layers)]
        made = {kind: (attend if kind else recur)(f) for kind in set(where)}
        return [made[kind] for kind in where]

    return mixers


def sparse(
    experts: Experts, dense: Callable[[Fields], FeedForward], is_sparse: Callable[[Fields, int], bool]
) -> FeedForwards:
    """Experts in some layers, a dense block in the others."""

    def feeds(f: Fields) -> list[FeedForward]:
        where = [is_sparse(f, index) for index in range(f.layers)]
        made = {kind: experts.feed_forward(f) if kind else dense(f) for kind in set(where)}
        return [made[kind] for kind in where]

    return feeds


def after_first(f: Fields, index: int) -> bool:
    """DeepSeek: the first layers are dense; `mlp_layer_types` names each."""
    kinds = f.kinds("mlp_layer_types", f.layers, ("dense", "sparse"))
    if kinds is not None:
        return kinds[index] == "sparse"
    step = f.size("moe_layer_freq", default=1)
    return index >= f.size("first_k_dense_replace", default=0, least=0) and index % step == 0


def stepped(f: Fields, index: int) -> bool:
    """Qwen: every `decoder_sparse_step`-th layer but those in `mlp_only_layers`."""
    if f.size("num_experts", default=0, least=0) == 0 or index in f.indices("mlp_only_layers"):
        return False
    return (index + 1) % f.size("decoder_sparse_step", default=1) == 0


def linear_but_every_fourth(f: Fields, index: int) -> bool:
    """Qwen3-Next: full attention in every `full_attention_interval`-th layer; `layer_types` names each."""
    kinds = f.kinds("layer_types", f.layers, (LINEAR, FULL))
    if kinds is not None:
        return kinds[index] == FULL
    return (index + 1) % f.size("full_attention_interval", default=4) == 0


def attends(f: Fields, index: int) -> bool:
    """Granite 4: `layer_types` names the layers with attention; without it there are none."""
    kinds = f.kinds("layer_types", f.layers, ("mamba", "attention"))
    return kinds is not None and kinds[index] == "attention"
